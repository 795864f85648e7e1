"""Functions that open the parts of a pipeline as configured. `vision.runtime.pipeline` assembles them.

Most functions named `open_*` open a resource and register it with the `ExitStack` argument, which closes it. They can
raise these errors:

* `ConfigError`: this machine lacks something that the configuration requires, or the configuration does not fit the
  model, for example because it names a class that the model does not have.
* `ModelError`: a model is missing, damaged, or different from its model.yaml.
* `DeviceError`: the device is missing or fails.
* `Unavailable`: an address, a disk, or a lock cannot be used at present.
* `Closed`: the run was stopped while it was starting.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vision.capture.open import NamedOpener
from vision.config import (
    AppConfig,
    CascadeConfig,
    ClassifierSpec,
    DetectConfig,
    ModelSpec,
    check_classes,
    folder_of_model,
    load_classifier_spec,
    load_model_spec,
    shipped_models,
)
from vision.config.archive import ArchiveConfig
from vision.config.model_file import ONNX_SUFFIX, is_model_path
from vision.config.onvif import OnvifConfig
from vision.config.page import PageConfig
from vision.config.paths import exists, is_file
from vision.config.wording import did_you_mean
from vision.detect.detector import Detector
from vision.detect.open import open_detector, open_second_model, published_class_names
from vision.detect.proposal import spec_of_file
from vision.errors import Closed, ModelError, VisionError
from vision.language.process import LanguageProcess
from vision.messaging import codec
from vision.messaging.control_protocol import own_folder
from vision.messaging.curve import KeyFolder
from vision.messaging.node_events import NodeEvents, NodeEventSettings
from vision.messaging.publisher import Publisher
from vision.messaging.recorder import Recorder
from vision.outputs.archive.process import ArchiveProcess
from vision.outputs.onvif.process import MetadataProcess
from vision.outputs.page.process import PageProcess, page_settings
from vision.outputs.sinks.process import open_sinks
from vision.runtime.model_trust import require_trusted_model
from vision.runtime.monitoring.process import open_monitoring
from vision.runtime.recording import Packets
from vision.runtime.runtime import Runtime
from vision.runtime.stage_runner import Observe
from vision.stages.analytics import AnalyticsStage, TrackStage
from vision.stages.secondary_model import CascadeStage
from vision.stages.stage import PixelStage, Sink, Stage
from vision.state.counters import HasCameraCounters
from vision.state.database import StateDatabase
from vision.version import require_cv2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of one run that are not part of the configuration."""

    stop: threading.Event  # ends the run when it is set, even while the run is starting
    offline: bool = False  # process every frame of files, as fast as possible
    record: Path | None = None  # file in which to record the results
    video: Path | None = None  # annotated video, which ends in .mp4; with several cameras, one file for each
    show: bool = False  # show the annotated frames in windows
    sink: Sink | None = None  # receives the results instead of the publisher
    observe: Observe | None = None  # called for each published result
    open_detector: Callable[[Path, ModelSpec, DetectConfig], Detector] | None = None  # replaces vision.detect.open
    open_source: NamedOpener | None = None  # replaces vision.capture.open
    result_workers: bool = False  # True if processes other than the main process run the stages
    packet_addresses: tuple[str, ...] = ()  # addresses at which other processes receive packets
    packets: Packets | None = None  # passes on the packets of cameras; None if no process needs them
    capture_workers: int = 0  # number of processes that read the cameras; 0 means threads of this process
    state: StateDatabase | None = None  # stores events and counters beyond the run (`open_state`)
    counters: HasCameraCounters | None = None  # replaces the counters of `state` in a result worker
    followers: list[Callable[[AppConfig], None]] = field(default_factory=list)  # called with each new configuration
    inquiries: str = ""  # address of the process that asks the language model; empty if there is none
    config_file: Path | None = None  # file of the configuration; None if the configuration was built in Python
    group: tuple[str, ...] = ()  # the cameras of a result worker; empty if this process handles all results

    @property
    def has_video(self) -> bool:
        """True if the run writes annotated frames to a file or shows them in a window."""
        return self.video is not None or self.show

    def check_stop(self) -> None:
        """Raise `Closed` if the run was stopped while it was starting."""
        if self.stop.is_set():
            raise Closed("stopped while starting")


Build = Callable[[AppConfig, RunOptions, ExitStack], Runtime]
"""Type of the `build` function of a pipeline file, which creates the runtime."""

OpenStages = Callable[[AppConfig, RunOptions, ExitStack], Sequence[Stage]]
"""Type of functions that open the stages of a pipeline. The runtime runs the stages in the returned order."""


def find_model(name: str) -> tuple[Path, ModelSpec]:
    """Return the folder and the specification of the model `name`.

    Args:
        name: name of a shipped model, or path of a folder with model.yaml or of an ONNX file.

    Raises:
        ModelError: there is no such model, its model.yaml is invalid, other users can replace the model, or `name` is
            an ONNX file that does not describe the model completely.
        Unavailable: a file cannot be read at present, for example because the disk fails.
    """
    folder = folder_of_model(name, shipped_models())
    if is_file(folder) and folder.suffix == ONNX_SUFFIX:
        require_trusted_model(folder.parent, folder)
        return folder.parent, spec_of_file(folder)
    if exists(folder):
        spec = load_model_spec(folder)
        if folder.parent != shipped_models():
            require_trusted_model(folder, folder / spec.file)
        return folder, spec
    if is_model_path(name):
        text, hint = f"the model {folder} does not exist", "a path is relative to the folder of camera.yaml"
        raise ModelError(text, hint=hint, code="model-missing")
    names = sorted(path.parent.name for path in shipped_models().glob("*/model.yaml"))
    hint = did_you_mean(name, names) or "`vision models` lists them, and shows how to write a model.yaml"
    text = f"no model {name!r}: expected one of {', '.join(names)}, or a folder with model.yaml"
    raise ModelError(text, hint=hint, code="model-unknown")


def _class_names(config: AppConfig) -> tuple[str, ...]:
    """Return the names of the model's classes, in the order of their ids.

    Raises:
        ConfigError: the configuration names a class that the model does not have.
        ModelError: the model is missing or invalid.
    """
    names = published_class_names(find_model(config.model)[1], config.detect)
    check_classes(config, names)
    return names


def find_second_model(cascade: CascadeConfig) -> tuple[Path, ClassifierSpec]:
    """Return the folder and the specification of the second model.

    Raises:
        ModelError: the model is missing or invalid, or other users can replace it.
    """
    folder = folder_of_model(cascade.model, shipped_models())
    spec = load_classifier_spec(folder)
    if folder.parent != shipped_models():
        require_trusted_model(folder, folder / spec.file)
    return folder, spec


def open_publisher(config: AppConfig, options: RunOptions, resources: ExitStack) -> Sink:
    """Return `options.sink`, which receives the results instead of a publisher, if it is set.

    Otherwise, open and return the publisher, as `open_recording_publisher` does.
    """
    return open_recording_publisher(config, options, resources, proxy=False)[0]


def open_recording_publisher(
    config: AppConfig,
    options: RunOptions,
    resources: ExitStack,
    *,
    proxy: bool,
    language: LanguageProcess | None = None,
) -> tuple[Sink, Recorder | None]:
    """Open the publisher, and start the processes that subscribe to it.

    The processes are the HTTP server, the page, the server of ONVIF metadata, the archive, and the sinks, if they are
    configured. An offline run has no archive, no page, no ONVIF metadata, and, because it stores no events, no sinks.
    If `options.sink` is set, open nothing, and return `options.sink` without a recorder.

    Args:
        config: the configuration.
        options: options of the run. `record` names the file of the recorder.
        resources: closes the publisher, the recorder, and the processes.
        proxy: if True, other processes can also publish messages through the publisher.
        language: object that starts the process that asks the language model about events, and publishes the events
            with the answers. This function starts it. None if the run does not ask the model.

    Returns:
        The publisher, and the recorder of its results. The recorder is None if nothing is recorded.
    """
    if options.sink is not None:
        return options.sink, None
    _, spec = find_model(config.model)
    recorder = None if options.record is None else _open_recorder(options.record, resources)
    keys = None if config.publish.curve is None else KeyFolder(Path(config.publish.curve))
    publisher = Publisher(
        config.publish.bind,
        node=config.node or socket.gethostname(),
        class_names=published_class_names(spec, config.detect),
        encoding=config.publish.encoding,
        masks=config.publish.masks,
        queue=config.publish.queue,
        recorder=recorder,
        event_log=options.state.events if options.state is not None else None,
        replay=config.publish.replay,
        has_sinks=bool(config.sinks),
        max_subscribers=config.publish.max_subscribers,
        keys=keys,
        proxy=proxy,
        node_events=None if options.offline else _node_events(config, options),
        gate=language,
    )
    resources.enter_context(publisher)
    if language is not None:
        resources.enter_context(language).start(publisher)
        publisher.add_counters(language.counters)
    log.info("publishing on %s", publisher.address)
    if config.http is not None:
        resources.enter_context(open_monitoring(config.http, publisher, config.status.interval_s, keys))
    if config.sinks and options.state is not None:
        open_sinks(config, publisher, options.state.events, keys, resources)
    if config.archive is not None:
        _open_archive(config.archive, options, publisher, keys, resources)
    if config.onvif is not None:
        _open_metadata(config, config.onvif, options, publisher, keys=keys, resources=resources)
    if config.page is not None:
        _open_page(config, config.page, options, publisher, keys=keys, resources=resources)
    if not options.offline:
        resources.callback(publisher.end_states)  # while the processes above still receive messages
    return publisher, recorder


def _node_events(config: AppConfig, options: RunOptions) -> NodeEvents:
    return NodeEvents(NodeEventSettings.of(config), None if options.state is None else options.state.run)


def _open_archive(
    config: ArchiveConfig, options: RunOptions, publisher: Publisher, keys: KeyFolder | None, resources: ExitStack
) -> None:
    """Start the process that writes the archive. An offline run has no archive, because its frames are not live."""
    if options.offline:
        log.info("the archive is not written, because the run is offline")
        return
    client = None if keys is None else keys.internal_client()
    replay = publisher.replay_address is not None
    process = ArchiveProcess(config, publisher.internal_address, replay=replay, keys=client)
    publisher.add_counters(resources.enter_context(process).counters)


def _open_metadata(
    config: AppConfig,
    onvif: OnvifConfig,
    options: RunOptions,
    publisher: Publisher,
    *,
    keys: KeyFolder | None,
    resources: ExitStack,
) -> None:
    """Start the process that serves ONVIF metadata.

    An offline run serves no metadata, because its frames are not live.
    """
    if options.offline:
        log.info("ONVIF metadata is not served, because the run is offline")
        return
    client = None if keys is None else keys.internal_client()
    cameras = [camera.id for camera in config.cameras]
    process = MetadataProcess(onvif, publisher.internal_address, cameras, keys=client)
    publisher.add_counters(resources.enter_context(process).counters)


def _open_page(
    config: AppConfig,
    page: PageConfig,
    options: RunOptions,
    publisher: Publisher,
    *,
    keys: KeyFolder | None,
    resources: ExitStack,
) -> None:
    """Start the process that serves the web page of the program.

    An offline run has no page, because the run ends when its files end.
    """
    if options.offline:
        log.info("the page is not served, because the run is offline")
        return
    require_hiding(config)
    client = None if keys is None else keys.internal_client()
    address = publisher.internal_address
    settings = page_settings(
        config,
        page,
        address,
        class_names=_class_names(config),
        packets=options.packet_addresses,
        keys=client,
        config_file=options.config_file,
    )
    process = resources.enter_context(PageProcess(page.bind, settings))
    options.followers.append(process.reconfigure)
    publisher.add_counters(process.counters)


def require_hiding(config: AppConfig) -> None:
    """Raise `ConfigError` if the web page must hide private parts of images, but OpenCV cannot be imported."""
    if config.page is not None and any(section.masks or section.blur for section in config.privacy.values()):
        require_cv2("privacy, with page")


def _open_recorder(path: Path, resources: ExitStack) -> Recorder:
    recorder = Recorder(path)
    resources.callback(_close_recorder, recorder, path)
    return recorder


def _close_recorder(recorder: Recorder, path: Path) -> None:
    """Close the recording. Raise `VisionError` if the file lacks results, so that scripts notice the loss."""
    recorder.close()
    if recorder.lost:
        raise VisionError(f"--record: {recorder.lost} of {recorder.lost + recorder.written} results are not in {path}")


def open_configured_detector(
    config: AppConfig, options: RunOptions, resources: ExitStack, *, score: float | None = None
) -> Detector:
    """Load the model and open the detector. If `score` is not None, it replaces `detect.score_threshold`."""
    options.check_stop()
    folder, spec = find_model(config.model)
    began = time.monotonic()
    detect = config.detect if score is None else config.detect.model_copy(update={"score_threshold": score})
    opening = options.open_detector or partial(open_detector, stop=options.stop)
    detector = opening(folder, spec, detect)
    resources.enter_context(closing(detector))
    log.info("detector: %s, %s, ready in %.1f s", spec.name, detector.spec.name, time.monotonic() - began)
    return detector


def open_state(config: AppConfig, resources: ExitStack) -> StateDatabase | None:
    """Open the database for events and counters that persist across restarts. Return None if no database is configured.

    The result is for `RunOptions.state`. Do not use it in an offline run, whose results must be repeatable.
    """
    if config.state_dir is None:
        return None
    state = StateDatabase(
        Path(config.state_dir), max_events=config.publish.max_events, boot=codec.boot_id(), marks=own_folder()
    )
    resources.enter_context(closing(state))
    resources.enter_context(state.run)
    return state


def open_analytics(config: AppConfig, options: RunOptions) -> AnalyticsStage:
    """Create the stage that evaluates all lines and zones.

    The counters continue from `options.counters` or, if `options.counters` is None, from `options.state`. If both are
    None, the counters start at 0.
    """
    if config.state_dir is None and config.analytics and not options.offline:
        log.info("counters start at 0 in each run; to keep the counts, set `state_dir: FOLDER` in the configuration")
    return AnalyticsStage(
        config.analytics,
        _class_names(config),
        forget_s=config.track.lost_s,
        state=options.counters or options.state,
        resets=not options.offline,  # the time of the day must not change the results of files
    )


def open_tracking(config: AppConfig) -> TrackStage:
    """Create the stage that tracks the objects of all cameras."""
    return TrackStage(
        config.track,
        score=config.detect.score_threshold,
        class_names=_class_names(config),
        camera_ids=[camera.id for camera in config.cameras],
    )


def open_cascade(config: AppConfig, options: RunOptions, resources: ExitStack) -> list[CascadeStage]:
    """Open the stage that classifies objects with the second model. Return [] if no second model is configured."""
    options.check_stop()
    if config.cascade is None:
        return []
    names, began = _class_names(config), time.monotonic()
    cascade = config.cascade
    if cascade.backend == "auto" and options.result_workers:
        # The frames of a result worker are in shared memory, and its process does not use the GPU.
        log.info("the second model runs on the CPU, because result workers cut out the objects")
        cascade = cascade.model_copy(update={"backend": "onnxruntime"})
    folder, spec = find_second_model(cascade)
    classifier = open_second_model(folder, spec, cascade, stop=options.stop)
    stage = CascadeStage(classifier, cascade, names, lossless=options.offline)
    resources.enter_context(closing(stage))
    log.info("second model: %s, ready in %.1f s", classifier.name, time.monotonic() - began)
    return [stage]


def prepare_language(config: AppConfig, options: RunOptions) -> LanguageProcess | None:
    """Create, but do not start, the process that asks the language model. Return None if the run needs no model.

    An offline run does not ask the model, because the results of the run must be repeatable.
    """
    if config.language is None or not (config.verify or config.describe) or options.sink is not None:
        return None
    if options.offline:
        log.info("verify, describe: the language model is not asked in an offline run")
        return None
    return LanguageProcess(config)


def open_video(config: AppConfig, options: RunOptions, resources: ExitStack) -> list[PixelStage]:
    """Open the stage that writes or shows the annotated video. Return an empty list if no video is requested."""
    if not options.has_video:
        return []
    require_cv2("--show" if options.video is None else "--video")
    from vision.stages.annotation import FrameAnnotator
    from vision.stages.video import VideoStage, check_window, video_paths

    camera_ids = [camera.id for camera in config.cameras]
    paths = {} if options.video is None else video_paths(options.video, camera_ids)
    if options.show:
        check_window()
    annotator = FrameAnnotator(config.analytics, _class_names(config), config.privacy)
    stage = VideoStage(paths, camera_ids, annotator.draw, show=options.show, lossless=options.offline)
    return [resources.enter_context(closing(stage))]
