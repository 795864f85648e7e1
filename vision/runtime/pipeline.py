"""`pipeline`, which assembles the parts of a pipeline into a runtime, in one process or in several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from vision.capture.open import require_library
from vision.config import AppConfig
from vision.detect.open import published_class_names
from vision.errors import registered_secrets
from vision.messaging.publisher import Publisher
from vision.messaging.recorder import Recorder
from vision.runtime import capture_worker, result_processes
from vision.runtime.builder import (
    Build,
    OpenStages,
    RunOptions,
    find_model,
    open_configured_detector,
    open_recording_publisher,
    open_video,
    prepare_language,
)
from vision.runtime.camera_factory import CameraFactory, build_capture
from vision.runtime.capture_processes import RemoteCamera
from vision.runtime.process_count import process_count
from vision.runtime.recording import open_packets, open_recording, plan_packets
from vision.runtime.result_messages import WorkerSetup
from vision.runtime.result_processes import ResultProcesses
from vision.runtime.runtime import Runtime
from vision.runtime.worker_process import SpareProcess
from vision.stages.analytics import TrackStage
from vision.stages.stage import PixelStage, Sink, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The `build` function of a pipeline that has the stages from `open_stages`, a publisher, and `sinks`.

    The function opens the detector after the stages and the publisher. Opening the detector takes longest, so this
    order reports errors of the stages and the publisher early. The `ExitStack` argument closes everything that was
    opened.
    """

    open_stages: OpenStages
    sinks: Sequence[Sink] = ()
    name: str = ""  # from which a result worker loads the pipeline; empty if it cannot be loaded by name

    def __call__(self, config: AppConfig, options: RunOptions, resources: ExitStack) -> Runtime:
        for camera in config.cameras if options.open_source is None else ():
            require_library(camera)
        count = self._workers(config, options)
        language = prepare_language(config, options)
        options = _with_packet_addresses(config, options)
        options = options if language is None else replace(options, inquiries=language.address)
        stages_closed = resources.enter_context(ExitStack())
        stages = self.open_stages(config, replace(options, result_workers=count > 1), stages_closed)
        reads_pixels = any(isinstance(stage, PixelStage) for stage in stages)
        publisher, recorder = open_recording_publisher(config, options, resources, proxy=count > 1, language=language)
        spare = self._spare(config, options, count)
        # Workers start while the detector is opened. Only the detector knows whether workers can read the frames.
        workers = None
        if count > 1 and not reads_pixels:
            stages_closed.close()
            workers = self._start_workers(config, options, publisher, recorder, spare, with_frames=False)
            resources.callback(workers.close)
        detector = open_configured_detector(config, options, resources, score=_lowest_score(stages))
        options = _with_capture_workers(config, options)
        packets = open_packets(config, options.packet_addresses, options.capture_workers, resources)
        if packets is not None and isinstance(publisher, Publisher):
            open_recording(config, publisher, packets, resources)
            options = replace(options, packets=packets)
        factory = CameraFactory.of(options, detector, stages)
        cameras, capture = build_capture(config, factory, spare)
        if count > 1 and reads_pixels:
            if any(isinstance(camera.supervisor, RemoteCamera) and camera.supervisor.on_gpu for camera in cameras):
                log.info("one process handles all results, because a stage reads pixels that are only on the GPU")
            else:
                stages_closed.close()
                workers = self._start_workers(config, options, publisher, recorder, spare, with_frames=True)
                resources.callback(workers.close)
        if workers is not None:
            workers.wait_ready(options.stop)
        return Runtime(
            cameras=cameras,
            capture=capture,
            factory=factory,
            detector=detector,
            stages=stages,
            sinks=[publisher, *self.sinks],
            workers=workers,
            observe=options.observe,
            model=config.model,
            status_interval_s=config.status.interval_s,
            stop_timeout_s=config.stop_timeout_s,
            hang_s=config.hang_s,
        )

    def _workers(self, config: AppConfig, options: RunOptions) -> int:
        """Return the number of processes that run the stages (result workers), or 1 if this process runs the stages."""
        count = process_count(config)
        reasons = {
            "the video needs the frames": options.has_video,
            "the pipeline has its own sinks": bool(self.sinks),
            "the pipeline has no name": not self.name,
            "the results are not published": options.sink is not None,
            "the second model runs with TensorRT": config.cascade is not None and config.cascade.backend == "tensorrt",
        }
        reason = next((reason for reason, applies in reasons.items() if applies), "")
        if count > 1 and reason:
            log.info("one process handles all results, because %s", reason)
            return 1
        return count

    def _spare(self, config: AppConfig, options: RunOptions, result_workers: int) -> SpareProcess | None:
        """Return the spare process, which can replace any worker process that ends.

        Return None if there are no workers, or if the run is offline, because its workers are not replaced.
        """
        if options.offline or not (options.capture_workers or process_count(config) > 1):
            return None
        entries = [capture_worker.ENTRY] if result_workers == 1 else [capture_worker.ENTRY, result_processes.ENTRY]
        modules = [entry.partition(":")[0] for entry in entries]
        if result_workers > 1 and not self.name.endswith(".py"):
            modules.append(f"{modules[-1]}.{self.name}")
        return SpareProcess(modules)

    def _start_workers(
        self,
        config: AppConfig,
        options: RunOptions,
        publisher: Sink,
        recorder: Recorder | None,
        spare: SpareProcess | None,
        *,
        with_frames: bool,
    ) -> ResultProcesses:
        assert isinstance(publisher, Publisher)
        assert publisher.proxy is not None
        setup = WorkerSetup(
            pipeline=self.name,
            config=config,
            secrets=registered_secrets(),
            offline=options.offline,
            private=publisher.proxy.private,
            instance=publisher.numbering.instance,
            node=publisher.numbering.node,
            class_names=published_class_names(find_model(config.model)[1], config.detect),
            records=recorder is not None,
            inquiries=options.inquiries,
        )
        return ResultProcesses(
            setup,
            process_count(config),
            publisher,
            state=options.state,
            recorder=recorder,
            observe=options.observe,
            with_frames=with_frames,
            spare=spare,
        )


def _lowest_score(stages: Sequence[Stage]) -> float | None:
    """Return the lowest score of the detections that the trackers in `stages` need. Return None without a tracker.

    A detection whose score is too low for publication can still continue a track.
    """
    return min((stage.detector_score for stage in stages if isinstance(stage, TrackStage)), default=None)


def _with_packet_addresses(config: AppConfig, options: RunOptions) -> RunOptions:
    """Return options with the addresses at which other processes receive the cameras' coded frames (packets).

    If no process needs packets, return the options unchanged.
    """
    if options.offline or options.open_source is not None or options.sink is not None:
        return options
    return replace(options, packet_addresses=plan_packets(config, options.capture_workers or process_count(config)))


def _with_capture_workers(config: AppConfig, options: RunOptions) -> RunOptions:
    """Return options with the number of processes that read cameras (capture workers), as configured.

    If one process does everything, or `options` already contains a number, return the options unchanged.
    """
    count = process_count(config)
    if count == 1 or options.capture_workers:
        return options
    return replace(options, capture_workers=count)


def pipeline(open_stages: OpenStages, *, sinks: Sequence[Sink] = ()) -> Pipeline:
    """Return the `build` function of a pipeline that has the stages from `open_stages`, a publisher, and `sinks`.

    With several processes, each result worker calls `open_stages`, and processes the results of some of the cameras. A
    pipeline with `sinks` handles all results in one process.
    """
    return Pipeline(open_stages, tuple(sinks))


def with_video(build: Build) -> Build:
    """Return a function that calls `build`, and then appends the stage for `--video` and `--show`, if necessary."""

    def build_with_video(config: AppConfig, options: RunOptions, resources: ExitStack) -> Runtime:
        if not isinstance(build, Pipeline) and process_count(config) > 1:
            log.info("one process handles all cameras and results, because `build` does not come from `pipeline`")
        video = open_video(config, options, resources)
        runtime = build(config, options, resources)
        for stage in video:
            runtime.add_stage(stage)
        return runtime

    return build_with_video
