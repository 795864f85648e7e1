"""`CameraFactory`, which creates the cameras of a program when the program starts, and while it runs."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from vision.capture.open import chooses_nvdec, open_source, require_formats, supervisor_policy
from vision.capture.supervisor import CameraSupervisor
from vision.config import AppConfig, CameraConfig
from vision.detect.detector import Detector, ReadsDevice
from vision.runtime.builder import RunOptions
from vision.runtime.camera_set import FRAMES_HELD_BY_STAGES, Camera
from vision.runtime.capture_processes import BUFFERS_ON_THE_WAY, CaptureProcesses, RemoteCamera
from vision.runtime.frame_messages import CapturedCamera, CaptureSetup
from vision.runtime.latest_slot import EXTRA_BUFFERS, Allocate, LatestSlot
from vision.runtime.remote_slot import RemoteSlot
from vision.runtime.worker_process import SpareProcess
from vision.stages.stage import PixelStage, Stage
from vision.types import PixelFormat, frame_shape

log = logging.getLogger(__name__)

_ASSUMED_HW: Final = (1080, 1920)  # frame size assumed for a camera that has not answered yet


@dataclass(frozen=True, slots=True)
class CameraFactory:
    """Factory of cameras whose slots share one condition.

    If capture workers read the cameras (`RunOptions.capture_workers`), the supervisor of each camera is a
    `RemoteCamera`.
    """

    options: RunOptions
    detector: Detector
    leases: int  # maximum number of frames of a camera that are leased at the same time
    changed: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def of(cls, options: RunOptions, detector: Detector, stages: Sequence[Stage] = ()) -> CameraFactory:
        """Return a factory for the cameras of a run with these `stages`.

        If a stage or the annotated video reads pixels, each camera gets more frame buffers.
        """
        reads_pixels = options.has_video or any(isinstance(stage, PixelStage) for stage in stages)
        leases = detector.spec.batches_in_flight + FRAMES_HELD_BY_STAGES * reads_pixels
        return cls(options, detector, leases)

    def create(self, config: CameraConfig, *, first_epoch: int = 0) -> Camera:
        """Create a camera without opening its source. Its epochs start at `first_epoch`.

        The epoch of a camera increases with each reconnection or change of the frame size.
        """
        lossless = self.options.offline and supervisor_policy(config).finite
        slot: LatestSlot
        if self.options.capture_workers:
            slot = RemoteSlot(
                config.id,
                leases=self.leases,
                lossless=lossless,
                max_fps=config.max_fps,
                max_frame_age_s=config.max_frame_age_s,
                changed=self.changed,
            )
        else:
            slot = LatestSlot(
                config.id,
                self._allocator(config),
                leases=self.leases,
                lossless=lossless,
                max_fps=config.max_fps,
                max_frame_age_s=config.max_frame_age_s,
                changed=self.changed,
            )
        return self._camera(config, slot, first_epoch)

    def check(self, cameras: Sequence[CameraConfig]) -> None:
        """Raise `ConfigError` if the detector does not accept the frames of a camera's reader.

        If `options` replaces the opener of sources or the sink, as in evaluations, do nothing. Evaluations can decode
        with a different library, because they do not measure the decoder.
        """
        options = self.options
        if options.open_source is not None or options.sink is not None:
            return
        for camera in cameras:
            require_formats(camera, self.detector.spec.pixel_formats)

    def reopen(self, config: CameraConfig, slot: LatestSlot, *, first_epoch: int) -> Camera:
        """Create a camera that continues to use `slot`. The previous camera must no longer write to the slot."""
        slot.reopen(self._allocator(config), max_fps=config.max_fps, max_frame_age_s=config.max_frame_age_s)
        return self._camera(config, slot, first_epoch)

    def _camera(self, config: CameraConfig, slot: LatestSlot, first_epoch: int) -> Camera:
        options, formats = self.options, self.detector.spec.pixel_formats
        policy = supervisor_policy(config)
        if options.offline:
            config = config.model_copy(update={"loop": False})  # otherwise the run never ends
        nvdec = self._chooses_nvdec(config)
        if isinstance(slot, RemoteSlot):
            captured = CapturedCamera(config, nvdec, slot.lossless, first_epoch, recorded=self._is_recorded(config))
            return Camera(slot, RemoteCamera(captured, slot, on_gpu=self._fills_gpu_memory(config)))
        factory = partial(
            options.open_source or open_source, config, offline=options.offline, pixel_formats=formats, nvdec=nvdec
        )
        frame_tap = None
        if options.packets is not None and (tap := options.packets.tap(config.id)) is not None:
            factory = partial(factory, tap=tap)
            frame_tap = options.packets.frame_tap(config.id)
        supervisor = CameraSupervisor(config.id, factory, slot, policy, first_epoch=first_epoch, frame_tap=frame_tap)
        return Camera(slot, supervisor)

    def _chooses_nvdec(self, config: CameraConfig) -> bool:
        return isinstance(self.detector, ReadsDevice) and chooses_nvdec(config, recorded=self._is_recorded(config))

    def _is_recorded(self, config: CameraConfig) -> bool:
        return self.options.packets is not None and config.id in self.options.packets.recorded

    def _allocator(self, config: CameraConfig) -> Allocate:
        """Return the function that allocates a frame buffer for a camera, in GPU memory or in host memory."""
        detector = self.detector
        if self._fills_gpu_memory(config) and isinstance(detector, ReadsDevice):
            return detector.device_buffer
        return detector.frame_buffer

    def _fills_gpu_memory(self, config: CameraConfig) -> bool:
        """Return True if the GPU decodes a camera, and the detector reads GPU memory.

        If the GPU decodes the camera, but the detector does not read GPU memory, log a warning.
        """
        if not self._chooses_nvdec(config) and config.reader != "nvdec":
            return False
        if isinstance(self.detector, ReadsDevice):
            return True
        text = "camera %s: frames are decoded on the GPU and copied to the host, because %s does not read GPU memory"
        log.warning(text, config.id, self.detector.spec.name)
        return False

    @property
    def buffers(self) -> int:
        """Number of buffers for frames that each camera needs."""
        return self.leases + EXTRA_BUFFERS + (BUFFERS_ON_THE_WAY if self.options.capture_workers else 0)

    def frame_bytes(self, cameras: Sequence[CameraConfig]) -> int:
        """Return the size of the frame buffers of cameras in bytes. Unknown frame sizes count as 1920x1080."""
        return self.buffers * _frame_bytes(cameras, self.detector.spec.pixel_formats[0])


def build_cameras(
    config: AppConfig, options: RunOptions, detector: Detector, stages: Sequence[Stage] = ()
) -> list[Camera]:
    """Create the cameras as `build_capture` does, but read all cameras in this process."""
    factory = CameraFactory.of(replace(options, capture_workers=0), detector, stages)
    return build_capture(config, factory)[0]


def build_capture(
    config: AppConfig, factory: CameraFactory, spare: SpareProcess | None = None
) -> tuple[list[Camera], CaptureProcesses | None]:
    """Create the cameras and, if `RunOptions.capture_workers` is not 0, the workers that read the cameras.

    Return the cameras and the workers. If threads of this process read the cameras, return None in place of the
    workers. If `spare` is not None, the workers keep this spare process running.

    Raises:
        ConfigError: the detector does not accept the frames of a camera's reader.
    """
    options, detector = factory.options, factory.detector
    options.check_stop()
    factory.check(config.cameras)
    if isinstance(detector, ReadsDevice):
        log.info("%s", frame_budget(config.cameras, detector.spec.pixel_formats[0], factory.buffers))
    cameras = [factory.create(camera) for camera in config.cameras]
    if not options.capture_workers:
        return cameras, None
    remote = [camera.supervisor for camera in cameras if isinstance(camera.supervisor, RemoteCamera)]
    setup = CaptureSetup({}, detector.spec.pixel_formats, options.offline, config.hang_s, options.open_source)
    capture = CaptureProcesses(
        remote,
        setup,
        detector,
        workers=options.capture_workers,
        leases=factory.leases,
        changed=factory.changed,
        packets=() if options.packets is None else options.packets.addresses,
        spare=spare,
    )
    return cameras, capture


def _frame_bytes(cameras: Sequence[CameraConfig], pixel_format: PixelFormat) -> int:
    """Return the total size in bytes of one frame of each camera. Unknown frame sizes count as 1920x1080."""
    height_px, width_px = _ASSUMED_HW
    sizes = [frame_shape(camera.height or height_px, camera.width or width_px, pixel_format) for camera in cameras]
    return sum(math.prod(size) for size in sizes)


def frame_budget(cameras: Sequence[CameraConfig], pixel_format: PixelFormat, buffers: int) -> str:
    """Return the log line that states the memory for `buffers` frame buffers per camera.

    Unknown frame sizes are assumed to be 1920x1080.
    """
    height_px, width_px = _ASSUMED_HW
    mib = buffers * _frame_bytes(cameras, pixel_format) / 2**20
    unknown = sum(camera.height is None or camera.width is None for camera in cameras)
    assumed = f"; {unknown} of them assumed to be {width_px}x{height_px}" if unknown else ""
    return (
        f"frames: {buffers} buffers for each of {len(cameras)} cameras need {mib:.1f} MiB of page-locked memory, and "
        f"the same amount on a GPU that has its own memory ({pixel_format}{assumed})"
    )
