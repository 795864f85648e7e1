"""The parts of a pipeline, opened as the configuration says: what `build` in pipelines/ composes."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vision.capture.open import chooses_nvdec, open_source, supervision_of
from vision.capture.supervisor import CameraSupervisor
from vision.config import (
    AppConfig,
    CameraConfig,
    CascadeConfig,
    ClassifierSpec,
    DetectConfig,
    ModelSpec,
    folder_of_model,
    load_classifier_spec,
    load_model_spec,
    nearest,
    shipped_models,
)
from vision.detect.detector import Detector, ReadsDevice
from vision.detect.open import open_detector, published_class_names
from vision.errors import Closed, ModelError, VisionError
from vision.messaging import codec
from vision.messaging.publisher import Publisher, Recorder
from vision.runtime.latest_slot import EXTRA_BUFFERS, Allocate, LatestSlot
from vision.runtime.runtime import FRAMES_HELD_BY_STAGES, Camera
from vision.runtime.sink import Sink
from vision.runtime.status import Report
from vision.stages.analytics import AnalyticsStage
from vision.stages.secondary_model import CascadeStage
from vision.stages.snapshots import SnapshotStage
from vision.stages.stage import PixelStage, Stage
from vision.state.event_journal import EventJournal
from vision.types import PixelFormat, Result, frame_shape

log = logging.getLogger(__name__)

_ASSUMED_HW = (1080, 1920)  # of a camera that has not answered yet


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line adds to the configuration."""

    stop: threading.Event
    offline: bool = False  # every frame of files, as fast as it goes
    record: Path | None = None
    sink: Sink | None = None  # takes the results in place of the socket
    open_detector: Callable[[Path, ModelSpec, DetectConfig], Detector] | None = None  # in place of the usual one

    def check_stop(self) -> None:
        """
        Raises:
            Closed: the program was told to stop while it was starting.
        """
        if self.stop.is_set():
            raise Closed("stopped while starting")


class PublisherSink:
    """Results and status messages to one `Publisher`."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def publish(self, result: Result) -> None:
        self._publisher.publish(result)

    def report(self, report: Report) -> None:
        for message in report.messages():
            self._publisher.publish_status(message)

    def counters(self) -> Mapping[str, int]:
        return self._publisher.counters()


def find_model(site: AppConfig) -> tuple[Path, ModelSpec]:
    """The folder of the site's model, and its card.

    Raises:
        ModelError: there is no such model, or its card is wrong.
    """
    folder = folder_of_model(site.model, shipped_models())
    if not folder.exists():
        known = sorted(path.parent.name for path in shipped_models().glob("*/model.yaml"))
        raise ModelError(
            f"no model {site.model!r}: expected one of {', '.join(known)}, or a folder with model.yaml",
            hint=f"did you mean {near!r}?"
            if (near := nearest(site.model, known))
            else "`vision models` lists the models, and shows the model.yaml of a model of your own",
            code="model-unknown",
        )
    return folder, load_model_spec(folder)


def find_second_model(cascade: CascadeConfig) -> tuple[Path, ClassifierSpec]:
    """The folder of the model that looks at objects, and its card.

    Raises:
        ModelError: there is no such model, or its card is wrong.
    """
    folder = folder_of_model(cascade.model, shipped_models())
    return folder, load_classifier_spec(folder)


def open_publisher(site: AppConfig, options: RunOptions, resources: ExitStack) -> Sink:
    """Bind the socket, and open the recording where one is wanted; or the sink that `options` names.

    Raises:
        ConfigError: the address or the file is taken or impossible.
    """
    options.check_stop()
    if options.sink is not None:
        return options.sink
    _, spec = find_model(site)
    recorder = None
    if options.record is not None:
        recorder = Recorder(options.record)
        resources.callback(_close_recorder, recorder, options.record)
    journal = None
    if (state := state_folder(site, options)) is not None:
        journal = EventJournal(state / "events", keep=site.publish.max_events, boot=codec.boot_id())
        resources.enter_context(closing(journal))
    publisher = Publisher(
        site.publish.bind,
        node=site.node or socket.gethostname(),
        class_names=published_class_names(spec, site.detect),
        encoding=site.publish.encoding,
        queue=site.publish.queue,
        recorder=recorder,
        journal=journal,
        replay=site.publish.replay,
    )
    resources.enter_context(publisher)
    log.info("publishing on %s", publisher.address)
    return PublisherSink(publisher)


def _close_recorder(recorder: Recorder, path: Path) -> None:
    """
    Raises:
        VisionError: lines are missing, so that a script does not take the file for the whole.
    """
    recorder.close()
    if recorder.lost:
        raise VisionError(f"--record: {recorder.lost} of {recorder.lost + recorder.written} results are not in {path}")


def detector_of(site: AppConfig, options: RunOptions, resources: ExitStack, *, score: float | None = None) -> Detector:
    """Load the model and everything that finding objects needs.

    Args:
        score: lowest score to report, in place of `detect.score_threshold`: for a stage that uses weaker detections.

    Raises:
        ConfigError: a class is unknown, or the back-end is not there.
        ModelError: the model is missing, damaged, or not what its card says.
        Closed: it was stopped meanwhile: building an engine takes minutes.
    """
    options.check_stop()
    folder, spec = find_model(site)
    began = time.monotonic()
    detect = site.detect if score is None else site.detect.model_copy(update={"score_threshold": score})
    opening = options.open_detector or partial(open_detector, stop=options.stop)
    detector = opening(folder, spec, detect)
    resources.enter_context(closing(detector))
    log.info("detector: %s, %s, ready in %.1f s", spec.name, detector.spec.name, time.monotonic() - began)
    return detector


def state_folder(site: AppConfig, options: RunOptions) -> Path | None:
    """The folder of what outlives a restart. None: nothing does, as in an offline run, which is one of many alike."""
    return None if site.state_dir is None or options.offline else Path(site.state_dir)


def open_analytics(site: AppConfig, options: RunOptions, resources: ExitStack) -> AnalyticsStage:
    """Lines and zones of all cameras, with their counters as they were left.

    Raises:
        ConfigError: a class is unknown, or the counters cannot be kept.
    """
    options.check_stop()
    _, spec = find_model(site)
    state = state_folder(site, options)
    if state is None and site.analytics and not options.offline:
        log.info("counters begin at 0 with each start; `state_dir: FOLDER` in the configuration keeps them")
    stage = AnalyticsStage(
        site.analytics,
        published_class_names(spec, site.detect),
        forget_s=site.track.lost_s,
        folder=None if state is None else state / "counters",
    )
    return resources.enter_context(closing(stage))


def open_cascade(site: AppConfig, options: RunOptions, resources: ExitStack) -> list[CascadeStage]:
    """The stage of the second model; none where none is configured.

    Raises:
        ModelError: the model is missing, damaged, or no classifier.
    """
    options.check_stop()
    if site.cascade is None:
        return []
    from vision.detect.onnxruntime.classifier import open_classifier  # only here is OpenCV needed

    _, spec = find_model(site)
    folder, second = find_second_model(site.cascade)
    began = time.monotonic()
    classifier = open_classifier(folder, second, threads=site.cascade.threads, max_batch=site.cascade.max_batch)
    names = published_class_names(spec, site.detect)
    stage = CascadeStage(classifier, site.cascade, names, lossless=options.offline)
    resources.enter_context(closing(stage))
    log.info("second model: %s, ready in %.1f s", second.name, time.monotonic() - began)
    return [stage]


def open_snapshots(site: AppConfig, options: RunOptions, resources: ExitStack) -> list[SnapshotStage]:
    """The stage that writes frames of events; none where none are wanted, or where nobody is told of events.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    options.check_stop()
    wanted = site.snapshots
    if wanted is None or options.sink is not None:
        return []
    from vision.detect.reference.crops import JpegEncoder  # only here is OpenCV needed

    stage = SnapshotStage(
        Path(wanted.folder),
        JpegEncoder(max_side_px=wanted.max_side_px, quality=wanted.quality).encode,
        kinds=wanted.kinds,
        max_files=wanted.max_files,
        most_bytes=wanted.max_mb * 1_000_000,
        lossless=options.offline,
    )
    return [resources.enter_context(closing(stage))]


def build_cameras(
    site: AppConfig, options: RunOptions, detector: Detector, stages: Sequence[Stage] = ()
) -> list[Camera]:
    """A slot and a supervisor for each camera; nothing is opened before the runtime starts them.

    Args:
        stages: those of the runtime; one that looks at pixels holds frames longer.
    """
    options.check_stop()
    changed = threading.Condition()
    leases = detector.spec.batches_in_flight + FRAMES_HELD_BY_STAGES * any(
        isinstance(stage, PixelStage) for stage in stages
    )
    if isinstance(detector, ReadsDevice):
        log.info("%s", frame_budget(site.cameras, detector.spec.pixel_formats[0], leases + EXTRA_BUFFERS))
    return [_camera(camera, options, detector, leases, changed) for camera in site.cameras]


def frame_budget(cameras: Sequence[CameraConfig], pixel_format: PixelFormat, buffers: int) -> str:
    """What the frames will take of the memory: how large they are is known only once the cameras answer."""
    height_px, width_px = _ASSUMED_HW
    sizes = [frame_shape(each.height or height_px, each.width or width_px, pixel_format) for each in cameras]
    mib = buffers * sum(math.prod(size) for size in sizes) / 2**20
    unknown = sum(each.height is None or each.width is None for each in cameras)
    assumed = f"; {unknown} of them taken as {width_px}x{height_px}" if unknown else ""
    return (
        f"frames: {buffers} buffers for each of {len(cameras)} cameras, {mib:.1f} MiB page-locked, and as much on a "
        f"GPU that has its own memory ({pixel_format}{assumed})"
    )


def _camera(
    config: CameraConfig, options: RunOptions, detector: Detector, leases: int, changed: threading.Condition
) -> Camera:
    policy = supervision_of(config)
    if options.offline:
        config = config.model_copy(update={"loop": False})  # each file once, or it would never end
    nvdec = isinstance(detector, ReadsDevice) and chooses_nvdec(config)
    slot = LatestSlot(
        config.id,
        _buffers(config, detector, nvdec=nvdec or config.reader == "nvdec"),
        leases=leases,
        lossless=options.offline and policy.finite,
        max_fps=config.max_fps,
        max_frame_age_s=config.max_frame_age_s,
        changed=changed,
    )
    factory = partial(
        open_source, config, offline=options.offline, pixel_formats=detector.spec.pixel_formats, nvdec=nvdec
    )
    return Camera(slot, CameraSupervisor(config.id, factory, slot, policy))


def _buffers(config: CameraConfig, detector: Detector, *, nvdec: bool) -> Allocate:
    """Where the camera's frames lie: in the GPU's memory if they are decoded there and the detector can read them."""
    if not nvdec:
        return detector.frame_buffer
    if isinstance(detector, ReadsDevice):
        return detector.device_buffer
    log.warning(
        "camera %s: decoded on the GPU and copied from there, because %s reads none of its memory",
        config.id,
        detector.spec.name,
    )
    return detector.frame_buffer
