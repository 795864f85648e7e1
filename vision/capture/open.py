"""The choice of the library that opens a camera. Libraries are imported when a camera needs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from vision.capture.images import holds_images
from vision.capture.source import Source
from vision.capture.supervisor import SupervisorPolicy
from vision.config.app import CameraConfig
from vision.config.source_address import RECORDED, Csi, File, Folder, Http, Rtsp, Synthetic, Usb
from vision.errors import DeviceMissing, SourceError
from vision.types import PixelFormat
from vision.version import pip_hint

if TYPE_CHECKING:
    from vision.capture.ffmpeg.decoder import OpenDecoder

log = logging.getLogger(__name__)

Clock = Callable[[], int]

_MIN_INTERVALS = 3  # of a slow camera, before its read times out
_MIN_PYAV = 12  # as in pyproject.toml


def open_source(
    camera: CameraConfig,
    *,
    offline: bool,
    pixel_formats: tuple[PixelFormat, ...],
    nvdec: bool = False,
    clock: Clock = time.monotonic_ns,
) -> Source:
    """Return the source of a camera, not yet open.

    Args:
        camera: the camera to open.
        offline: read files and synthetic cameras as fast as possible. Has no effect on live cameras.
        pixel_formats: the formats that the detector accepts, cheapest first.
        nvdec: decode on the GPU what NVDEC supports, into buffers in GPU or host memory. See `chooses_nvdec`.
        clock: the monotonic clock, in ns.

    Raises:
        SourceError: the required or configured library is missing, or cannot open this kind of source.
    """
    match camera.address:
        case Synthetic(text):
            return _open_synthetic(camera, text, offline, pixel_formats, clock)
        case Usb(device) if camera.reader != "gstreamer":
            return _open_usb(camera, device, pixel_formats, clock)
        case File(path) | Folder(path) if holds_images(path):
            return _open_images(camera, path, offline, pixel_formats, clock)
        case (Rtsp() | Http() | File()) as address if nvdec or _uses_nvdec(camera, pixel_formats):
            return _open_with_nvdec(camera, address, offline, pixel_formats, clock)
        case (Rtsp() | Csi() | Usb()) as address if _uses_gstreamer(camera, address):
            from vision.capture.gstreamer.source import GStreamerSource

            return GStreamerSource(camera, pixel_formats, clock=clock)
        case (Rtsp() | Http() | File()) as address:
            return _open_with_ffmpeg(camera, address, offline, pixel_formats, clock)
        case address:
            raise AssertionError(address)  # CSI without GStreamer has raised above, and a folder holds images


def supervisor_policy(camera: CameraConfig) -> SupervisorPolicy:
    """Return the timeouts that apply to a camera. A camera set to one frame in 10 s is not lost after 5 s."""
    slow_s = _MIN_INTERVALS / camera.fps if camera.fps is not None else 0.0
    return SupervisorPolicy(
        read_timeout_s=max(camera.read_timeout_s, slow_s),
        frozen_after_s=camera.frozen_after_s,
        finite=isinstance(camera.address, RECORDED),
    )


# --- GStreamer --------------------------------------------------------------------------------------------------------


def _uses_gstreamer(camera: CameraConfig, address: Rtsp | Csi | Usb) -> bool:
    """Return True for CSI, for `reader: gstreamer`, and for RTSP where GStreamer is installed.

    GStreamer reports every lost packet and the capture times of RTSP cameras.

    Raises:
        SourceError: GStreamer is required, and is not available.
    """
    if camera.reader in {"opencv", "ffmpeg", "nvdec"}:
        return False
    required = camera.reader == "gstreamer" or isinstance(address, Csi)
    from vision.capture.gstreamer.source import available

    reason = available(camera)
    if required and reason is not None:
        raise SourceError(
            f"GStreamer cannot open it: {reason}", hint="`vision doctor` lists the missing packages", code="gstreamer"
        )
    if reason is not None:
        _warn_once(f"camera {camera.id}: opened with FFmpeg, because {reason}")
    return reason is None


# --- FFmpeg -----------------------------------------------------------------------------------------------------------


def _open_with_ffmpeg(
    camera: CameraConfig, address: Rtsp | Http | File, offline: bool, formats: tuple[PixelFormat, ...], clock: Clock
) -> Source:
    _require_pyav()
    if isinstance(address, File):
        from vision.capture.ffmpeg.file import VideoFile
        from vision.capture.ffmpeg.rotation import RotatingDecoder

        open_decoder = partial(RotatingDecoder, offline=offline)
        return VideoFile(address.path, formats, open_decoder, loop=camera.loop, offline=offline, clock=clock)
    from vision.capture.ffmpeg.source import FFmpegSource

    return FFmpegSource(camera, formats, clock=clock)


def _require_pyav() -> None:
    reason = missing_pyav()
    if reason is not None:
        raise SourceError(f"FFmpeg cannot open it: {reason}", hint=pip_hint("av>=12.3"), code="pyav-missing")


@cache
def missing_pyav() -> str | None:
    """Return None if PyAV is usable, else the reason. Cached: a failing import searches every folder each time."""
    try:
        import av
    except ImportError as error:
        return f"PyAV is not installed: {error}"
    version = str(av.__version__)
    if int(version.partition(".")[0]) < _MIN_PYAV:
        return f"PyAV is {version}, expected {_MIN_PYAV} or later"
    return None


# --- NVDEC ------------------------------------------------------------------------------------------------------------


def _uses_nvdec(camera: CameraConfig, formats: tuple[PixelFormat, ...]) -> bool:
    """Return True for `reader: nvdec`, except for programs that need bgr: drawing and evaluating."""
    if camera.reader != "nvdec":
        return False
    if "nv12" not in formats:
        _warn_once(f"camera {camera.id}: not decoded with NVDEC, which delivers nv12; this needs {', '.join(formats)}")
        return False
    return True


def chooses_nvdec(camera: CameraConfig) -> bool:
    """Return True if `reader: auto` decodes with NVDEC what FFmpeg reads, for a detector that reads GPU memory.

    NVDEC is not chosen:

    * where GStreamer reads, which delivers frames earlier and reports every lost packet;
    * over UDP, because NVDEC does not report the frames that lost packets have damaged;
    * for looped files, because each pass would begin with 0.25 s without a frame (H100).
    """
    if camera.reader != "auto" or missing_pyav() is not None:
        return False
    match camera.address:
        case Rtsp() as address:
            return camera.transport == "tcp" and _has_nvdec() and not _uses_gstreamer(camera, address)
        case Http():
            return _has_nvdec()
        case File(path):
            return not (camera.loop or holds_images(path)) and _has_nvdec()
        case _:
            return False


@cache
def _has_nvdec() -> bool:
    """Return True on a graphics card with NVDEC. A Jetson's decoders are of another kind. Cached: it cannot change."""
    try:
        from vision.gpu.cuda import open_device

        if open_device().integrated:
            return False
        from vision.capture.nvdec.bindings import require_nvdec

        require_nvdec()
    except (DeviceMissing, SourceError) as missing:
        log.info("frames are decoded on the CPU, not on the graphics card: %s (%s)", missing.args[0], missing.hint)
        return False
    return True


def _open_with_nvdec(
    camera: CameraConfig, address: Rtsp | Http | File, offline: bool, formats: tuple[PixelFormat, ...], clock: Clock
) -> Source:
    _require_pyav()
    try:
        from vision.capture.nvdec.bindings import require_nvdec
    except DeviceMissing as missing:
        raise SourceError(f"NVDEC cannot be used: {missing.args[0]}", hint=missing.hint, code="nvdec") from missing
    require_nvdec()
    from vision.capture.nvdec.decoder import NvdecDecoder

    if isinstance(address, File):
        from vision.capture.ffmpeg.file import VideoFile
        from vision.capture.ffmpeg.rotation import RotatingDecoder, upright_only

        nvdec = upright_only(address.path, partial(NvdecDecoder, live=False))
        open_decoder = _with_fallback(camera, nvdec, partial(RotatingDecoder, offline=offline))
        return VideoFile(address.path, formats, open_decoder, loop=camera.loop, offline=offline, clock=clock)
    from vision.capture.ffmpeg.decoder import FFmpegDecoder
    from vision.capture.ffmpeg.source import FFmpegSource

    open_decoder = _with_fallback(camera, partial(NvdecDecoder, live=True), FFmpegDecoder)
    return FFmpegSource(camera, formats, open_decoder=open_decoder, clock=clock)


def _with_fallback(camera: CameraConfig, nvdec: OpenDecoder, ffmpeg: OpenDecoder) -> OpenDecoder:
    """Return a decoder that falls back to FFmpeg, unless the configuration requires NVDEC."""
    if camera.reader == "nvdec":
        return nvdec
    from vision.capture.nvdec.fallback import NvdecOrFFmpeg

    def warn(text: str) -> None:
        _warn_once(f"camera {camera.id}: {text}")

    return partial(NvdecOrFFmpeg, nvdec=nvdec, ffmpeg=ffmpeg, warn=warn)


# --- OpenCV and synthetic cameras -------------------------------------------------------------------------------------


def _open_images(
    camera: CameraConfig, path: Path, offline: bool, formats: tuple[PixelFormat, ...], clock: Clock
) -> Source:
    if camera.reader != "auto":
        raise SourceError(
            f"{camera.source}: `reader: {camera.reader}` cannot read images", hint="leave out `reader`", code="reader"
        )
    try:
        from vision.capture.opencv.bindings import require_bgr
        from vision.capture.opencv.file import ImageFolder
    except ImportError as error:
        raise _opencv_missing(error) from error
    require_bgr(formats, camera.source)
    return ImageFolder(path, fps=camera.fps, loop=camera.loop, offline=offline, clock=clock)


def _open_usb(camera: CameraConfig, device: str, formats: tuple[PixelFormat, ...], clock: Clock) -> Source:
    try:
        from vision.capture.opencv.bindings import require_bgr
        from vision.capture.opencv.source import DeviceRequest, V4L2Source
    except ImportError as error:
        raise _opencv_missing(error) from error
    require_bgr(formats, camera.id)
    request = DeviceRequest(device, camera.width, camera.height, camera.fps, camera.open_timeout_s)
    return V4L2Source(request, clock=clock)


def _open_synthetic(
    camera: CameraConfig, text: str, offline: bool, formats: tuple[PixelFormat, ...], clock: Clock
) -> Source:
    from vision.capture.synthetic.source import SyntheticSource
    from vision.capture.synthetic.spec import SyntheticSpec

    spec = SyntheticSpec.parse(text)
    if camera.width is not None and camera.height is not None:
        spec = replace(spec, width_px=camera.width, height_px=camera.height)
    if camera.fps is not None:
        spec = replace(spec, fps=camera.fps)
    return SyntheticSource(spec, formats, offline=offline, clock=clock)


def _opencv_missing(error: ImportError) -> SourceError:
    return SourceError(
        f"OpenCV is not installed: {error}", hint="`vision doctor` shows how to install it", code="opencv-missing"
    )


@cache
def _warn_once(text: str) -> None:
    """Log a warning once: a camera that is away opens its source every half minute."""
    log.warning("%s", text)
