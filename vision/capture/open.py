"""Which class opens a camera. Libraries are imported when a camera needs them, and the choice is said, never silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from vision.capture.source import Source
from vision.capture.supervisor import SupervisorPolicy
from vision.config.app import CameraConfig
from vision.config.source_address import NETWORK, RECORDED, Csi, File, Folder, Http, Rtsp, SourceAddress, Synthetic, Usb
from vision.errors import DeviceMissing, SourceError
from vision.types import PixelFormat
from vision.version import install_hint

if TYPE_CHECKING:
    from vision.capture.ffmpeg.packets import OpenDecoder

log = logging.getLogger(__name__)

Clock = Callable[[], int]

_SLOW_INTERVALS = 3
_OLDEST_PYAV = 12  # as in pyproject.toml
_READ_BY_FFMPEG = (Rtsp, Http, File, Folder)
_NVDEC_HINT = install_hint("nvdec")


def open_source(
    camera: CameraConfig,
    *,
    offline: bool,
    pixel_formats: tuple[PixelFormat, ...],
    nvdec: bool = False,
    clock: Clock = time.monotonic_ns,
) -> Source:
    """The source of a camera, not yet open.

    Args:
        offline: files and generators are read as fast as the reader goes; live cameras are as always.
        pixel_formats: what the detector takes, the cheapest first.
        nvdec: a graphics card decodes what it can, into buffers of its own memory or others: `chooses_nvdec`.

    Raises:
        SourceError: the library that it needs, or that was asked for, is not there or cannot open this kind.
    """
    address = camera.address
    if isinstance(address, Synthetic):
        return _synthetic(camera, address, offline, pixel_formats, clock)
    if nvdec or _through_nvdec(camera, pixel_formats):
        return _nvdec(camera, address, offline, pixel_formats, clock)
    if isinstance(address, (File, Folder)):
        return _path(camera, address, offline, pixel_formats, clock)
    if _through_gstreamer(camera, address):
        from vision.capture.gstreamer.source import GStreamerSource

        return GStreamerSource(camera, pixel_formats, clock=clock)
    if _through_pyav(camera, address, pixel_formats):
        from vision.capture.ffmpeg.source import PyAVSource

        return PyAVSource(camera, pixel_formats, clock=clock)
    return _opencv(camera, address, pixel_formats, clock)


def supervision_of(camera: CameraConfig) -> SupervisorPolicy:
    """How the camera is to be watched."""
    return SupervisorPolicy(
        read_timeout_s=_read_timeout_s(camera),
        frozen_after_s=camera.frozen_after_s,
        finite=isinstance(camera.address, RECORDED),
    )


def _read_timeout_s(camera: CameraConfig) -> float:
    """A camera that is asked for one frame in 10 s is not lost after 5 s without one."""
    return max(camera.read_timeout_s, _SLOW_INTERVALS / camera.fps if camera.fps is not None else 0.0)


def _through_gstreamer(camera: CameraConfig, address: SourceAddress) -> bool:
    """GStreamer where it was asked for, for CSI, and for RTSP where it can: it knows damage and capture times.

    Raises:
        SourceError: it was asked for, or there is no other way, and it cannot.
    """
    if camera.reader in {"opencv", "ffmpeg", "nvdec"}:
        if isinstance(address, Csi):
            raise SourceError(f"`reader: {camera.reader}` cannot open CSI cameras", hint="leave out `reader`")
        return False
    wanted = camera.reader == "gstreamer" or isinstance(address, Csi)
    if not isinstance(address, Rtsp) and not wanted:
        return False
    from vision.capture.gstreamer.source import available

    reason = available(camera)
    if wanted and reason is not None:
        raise SourceError(f"GStreamer cannot open it: {reason}", hint="`vision doctor` says what to install")
    if reason is not None:
        second = "ffmpeg" if missing_pyav() is None else "opencv"
        _say_once(f"camera {camera.id}: through {second}, because {reason}")
    return reason is None


def _through_pyav(camera: CameraConfig, address: SourceAddress, formats: tuple[PixelFormat, ...]) -> bool:
    """FFmpeg by PyAV where it was asked for; for network cameras, because it sees new frame sizes; and for recordings
    where the detector prefers what FFmpeg decodes to. One that prefers bgr would have to convert what OpenCV has.

    Raises:
        SourceError: it was asked for, and cannot.
    """
    if camera.reader == "ffmpeg" and not isinstance(address, _READ_BY_FFMPEG):
        raise SourceError(
            "`reader: ffmpeg` opens rtsp:// and http:// cameras and files only", hint="leave out `reader`"
        )
    if camera.reader not in {"auto", "ffmpeg", "nvdec"} or not isinstance(address, _READ_BY_FFMPEG):
        return False
    if isinstance(address, (File, Folder)) and camera.reader != "ffmpeg" and formats[0] == "bgr":
        return False
    reason = missing_pyav()
    if camera.reader == "ffmpeg" and reason is not None:
        raise SourceError(f"PyAV cannot open it: {reason}", hint=install_hint("ffmpeg"))
    if reason is not None:
        _say_once(f"camera {camera.id}: through opencv, because {reason}")
    return reason is None


def _through_nvdec(camera: CameraConfig, formats: tuple[PixelFormat, ...]) -> bool:
    """Where it was asked for. Drawing and evaluating want bgr, which it does not give.

    Raises:
        SourceError: it was asked for, and cannot.
    """
    if camera.reader != "nvdec":
        return False
    if "nv12" not in formats:
        _say_once(f"camera {camera.id}: not through nvdec, because that gives nv12, and {', '.join(formats)} is wanted")
        return False
    reason = missing_pyav()
    if reason is not None:
        raise SourceError(f"PyAV, which reads streams for NVDEC, cannot be used: {reason}", hint=_NVDEC_HINT)
    return True


def chooses_nvdec(camera: CameraConfig) -> bool:
    """Return whether `reader: auto` decodes with NVDEC what FFmpeg reads, for a detector that reads GPU memory.

    Not where GStreamer reads, which gives frames out earlier and knows of every lost packet; not over UDP, because
    NVDEC does not tell which frames lost packets have damaged; and not in loops, because each pass would begin with
    0.25 s without a frame (H100).
    """
    address = camera.address
    if (
        camera.reader != "auto"
        or not isinstance(address, _READ_BY_FFMPEG)
        or missing_pyav() is not None
        or not _has_nvdec()
    ):
        return False
    match address:
        case Rtsp():
            return camera.transport == "tcp" and not _through_gstreamer(camera, address)
        case File(path) | Folder(path):
            return not (camera.loop or _shows_images(path))
        case _:
            return True


@cache
def _has_nvdec() -> bool:
    """On a graphics card: a Jetson's decoders are of another kind. Once, since that does not change."""
    try:
        from vision.gpu.cuda import open_device

        if open_device().integrated:
            return False
        from vision.capture.nvdec.decoder import require_nvdec

        require_nvdec()
    except (DeviceMissing, SourceError) as missing:
        log.info("frames are decoded on the CPU, not on the graphics card: %s (%s)", missing.args[0], missing.hint)
        return False
    return True


def _nvdec(
    camera: CameraConfig, address: SourceAddress, offline: bool, formats: tuple[PixelFormat, ...], clock: Clock
) -> Source:
    try:
        from vision.capture.nvdec.decoder import require_nvdec
    except DeviceMissing as missing:
        raise SourceError(f"NVDEC cannot be used: {missing.args[0]}", hint=missing.hint) from missing
    require_nvdec()
    from vision.capture.nvdec.source import NvdecDecoder

    if isinstance(address, (File, Folder)):
        from vision.capture.ffmpeg.file import PyAVFile
        from vision.capture.ffmpeg.rotation import RotatingDecoder, upright_only

        path = address.path
        nvdec = upright_only(path, partial(NvdecDecoder, live=False))
        open_decoder = _or_ffmpeg(camera, nvdec, partial(RotatingDecoder, offline=offline))
        return PyAVFile(path, formats, open_decoder, loop=camera.loop, offline=offline, clock=clock)
    from vision.capture.ffmpeg.packets import FFmpegDecoder
    from vision.capture.ffmpeg.source import PyAVSource

    open_decoder = _or_ffmpeg(camera, partial(NvdecDecoder, live=True), FFmpegDecoder)
    return PyAVSource(camera, formats, open_decoder=open_decoder, clock=clock)


def _or_ffmpeg(camera: CameraConfig, nvdec: OpenDecoder, ffmpeg: OpenDecoder) -> OpenDecoder:
    """`reader: nvdec` insists."""
    if camera.reader == "nvdec":
        return nvdec
    from vision.capture.nvdec.fallback import NvdecOrFFmpeg

    def say(text: str) -> None:
        _say_once(f"camera {camera.id}: {text}")

    return partial(NvdecOrFFmpeg, nvdec=nvdec, ffmpeg=ffmpeg, say=say)


@cache
def missing_pyav() -> str | None:
    """None where PyAV can be used, else why not. Once: an import that fails looks everywhere each time."""
    try:
        import av
    except ImportError as error:
        return f"PyAV is not there: {error}"
    version = str(av.__version__)
    if int(version.partition(".")[0]) < _OLDEST_PYAV:
        return f"PyAV is {version}, expected {_OLDEST_PYAV} or later"
    return None


@cache
def _say_once(text: str) -> None:
    """A camera that is away opens its source every half minute, for ever for the same reason."""
    log.warning("%s", text)


def _synthetic(
    camera: CameraConfig, address: Synthetic, offline: bool, formats: tuple[PixelFormat, ...], clock: Clock
) -> Source:
    from vision.capture.synthetic.source import Synthetic as SyntheticSource
    from vision.capture.synthetic.source import SyntheticSpec

    _refuse_library(camera, "made-up frames need no library")
    spec = SyntheticSpec.parse(address.text)
    if camera.width is not None and camera.height is not None:
        spec = replace(spec, width_px=camera.width, height_px=camera.height)
    if camera.fps is not None:
        spec = replace(spec, fps=camera.fps)
    return SyntheticSource(spec, formats, offline=offline, clock=clock)


def _path(
    camera: CameraConfig, address: File | Folder, offline: bool, formats: tuple[PixelFormat, ...], clock: Clock
) -> Source:
    path = address.path
    if _shows_images(path):
        return _images(path, camera, offline, formats, clock)
    if _through_pyav(camera, address, formats):
        from vision.capture.ffmpeg.file import PyAVFile
        from vision.capture.ffmpeg.rotation import RotatingDecoder

        open_decoder = partial(RotatingDecoder, offline=offline)
        return PyAVFile(path, formats, open_decoder, loop=camera.loop, offline=offline, clock=clock)
    if camera.reader == "gstreamer":
        _refuse_library(camera, "files are read with FFmpeg")
    try:
        from vision.capture.opencv.file import VideoFile
        from vision.capture.opencv.reader import require_bgr
    except ImportError as error:
        raise _no_opencv(error) from error
    require_bgr(formats, camera.source)
    return VideoFile(path, loop=camera.loop, offline=offline, clock=clock)


def _shows_images(path: Path) -> bool:
    """Rather than a video. Without OpenCV FFmpeg may read an image, as a video of one frame."""
    try:
        from vision.capture.opencv.images import SUFFIXES
    except ImportError:
        return path.is_dir()
    return path.is_dir() or path.suffix.lower() in SUFFIXES


def _images(path: Path, camera: CameraConfig, offline: bool, formats: tuple[PixelFormat, ...], clock: Clock) -> Source:
    if camera.reader in {"gstreamer", "ffmpeg"}:
        _refuse_library(camera, "images are read with OpenCV")
    try:
        from vision.capture.opencv.images import ImageFolder
        from vision.capture.opencv.reader import require_bgr
    except ImportError as error:
        raise _no_opencv(error) from error
    require_bgr(formats, camera.source)
    return ImageFolder(path, fps=camera.fps, loop=camera.loop, offline=offline, clock=clock)


def _opencv(camera: CameraConfig, address: SourceAddress, formats: tuple[PixelFormat, ...], clock: Clock) -> Source:
    try:
        from vision.capture.opencv.reader import require_bgr
        from vision.capture.opencv.source import Link, LiveCapture, NetworkLink, UsbLink
    except ImportError as error:
        raise _no_opencv(error) from error

    require_bgr(formats, camera.id)
    link: Link
    if isinstance(address, Usb):
        link = UsbLink(address.device, camera.width, camera.height, camera.fps, camera.open_timeout_s)
    else:
        assert isinstance(address, NETWORK)
        link = NetworkLink(address.url, camera.transport, camera.open_timeout_s, _read_timeout_s(camera))
    return LiveCapture(link, clock=clock)


def _no_opencv(error: ImportError) -> SourceError:
    return SourceError(f"OpenCV is not there: {error}", hint="`vision doctor` says how to install it")


def _refuse_library(camera: CameraConfig, why: str) -> None:
    if camera.reader != "auto":
        raise SourceError(f"expected no `reader: {camera.reader}` for this source: {why}")
