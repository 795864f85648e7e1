"""Functions that choose the library that opens a camera. Each library is imported only when a camera needs it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from vision.capture.pacing import FramePacer
from vision.capture.source import Source, holds_images
from vision.capture.supervisor import SupervisorPolicy
from vision.config import CameraConfig
from vision.config.source_address import RECORDED, Csi, File, Folder, Http, Rtsp, Synthetic, Usb
from vision.errors import ConfigError, DeviceMissing, SourceError
from vision.types import PixelFormat
from vision.version import pip_hint, require_cv2

if TYPE_CHECKING:
    from vision.capture.ffmpeg.decoder import CodedStream, OpenDecoder, PacketDecoder
    from vision.capture.packet_tap import PacketTap

log = logging.getLogger(__name__)

_MIN_INTERVALS = 3  # frame intervals that pass before a read of a slow camera times out
_CLOSE_S = 10.0  # time that a call can take beyond the open timeout, for example to close a pipeline
_MIN_PYAV = 12  # must agree with pyproject.toml


class NamedOpener(msgspec.Struct, frozen=True):
    """Reference to a function that replaces `open_source`.

    Every process of the program imports the function by its name, and calls it with the stored arguments.
    """

    name: str  # as ``package.module:function``
    arguments: Mapping[str, Any] = {}  # further keyword arguments of the function; MessagePack must support them

    def __call__(self, camera: CameraConfig, **options: Any) -> Source:
        """Call the function with the arguments of `open_source` and the stored `arguments`. Return the new source."""
        module, _, name = self.name.partition(":")
        source: Source = getattr(importlib.import_module(module), name)(camera, **self.arguments, **options)
        return source


def open_source(
    camera: CameraConfig,
    *,
    offline: bool,
    pixel_formats: tuple[PixelFormat, ...],
    nvdec: bool = False,
    tap: PacketTap | None = None,
) -> Source:
    """Return the source of a camera, without opening the source.

    Args:
        camera: configuration of the camera.
        offline: if True, files and synthetic cameras are read as fast as possible. Live cameras are not affected.
        pixel_formats: formats that the detector accepts, cheapest first.
        nvdec: if True, NVDEC decodes the streams that it supports, into buffers in GPU or host memory. For
            `reader: auto`, `chooses_nvdec` returns this value.
        tap: receiver of the packets of network cameras and files that FFmpeg reads, or None if there is no receiver. If
            `tap.recorded` is True, `reader: auto` chooses FFmpeg.

    Raises:
        ConfigError: the library that this camera needs is missing. `require_library` can check this in advance.
        SourceError: the synthetic address is invalid, or the reader does not support the source, the detector's pixel
            formats, or this machine.
    """
    recorded = tap is not None and tap.recorded
    match camera.address:
        case Synthetic(text):
            return _open_synthetic(camera, text, pixel_formats, offline=offline)
        case Usb() if camera.reader != "gstreamer":
            _require_bgr(camera.id, pixel_formats)
            from vision.capture.opencv.source import V4L2Source

            return V4L2Source(camera)
        case File(path) | Folder(path) if isinstance(camera.address, Folder) or holds_images(path):
            return _open_images(camera, path, pixel_formats, offline=offline)
        case (Rtsp() | Http() | File()) as address if nvdec or _uses_nvdec(camera, pixel_formats):
            return _open_with_pyav(camera, address, pixel_formats, tap, offline=offline, nvdec=True)
        case (Rtsp() | Csi() | Usb()) as address if _uses_gstreamer(camera, address, recorded=recorded):
            from vision.capture.gstreamer.source import GStreamerSource

            return GStreamerSource(camera, pixel_formats)
        case (Rtsp() | Http() | File()) as address:
            return _open_with_pyav(camera, address, pixel_formats, tap, offline=offline, nvdec=False)
        case address:
            raise AssertionError(address)  # CSI without GStreamer raises an error above


def require_library(camera: CameraConfig) -> None:
    """Check that the library that a camera needs is installed. Without the library, retries cannot succeed.

    Raises:
        ConfigError: the library is missing. The hint shows how to install it.
    """
    match camera.address:
        case Synthetic():
            pass
        case Usb() if camera.reader != "gstreamer":
            require_cv2(f"camera {camera.id}")
        case File(path) | Folder(path) if isinstance(camera.address, Folder) or holds_images(path):
            require_cv2(f"camera {camera.id}")
        case (Rtsp() | Csi() | Usb()) as address if _uses_gstreamer(camera, address):
            pass
        case _:
            _require_pyav()


def require_formats(camera: CameraConfig, pixel_formats: tuple[PixelFormat, ...]) -> None:
    """If `reader: nvdec` is configured, check that the detector accepts nv12 frames, which NVDEC delivers.

    `pixel_formats` are the formats that the detector accepts.

    Raises:
        ConfigError: `reader: nvdec` is configured, but the detector does not accept nv12.
    """
    if camera.reader == "nvdec" and "nv12" not in pixel_formats:
        text = f"camera {camera.id}: `reader: nvdec` decodes to nv12, but the detector reads only "
        text += ", ".join(pixel_formats)
        hint = "remove `reader`, or set `detect.backend: tensorrt`, which reads the frames of the GPU"
        raise ConfigError(text, hint=hint, code="nvdec-detector")


def supervisor_policy(camera: CameraConfig) -> SupervisorPolicy:
    """Return the timeouts of a camera, whether its stream can end, and whether to open it again after a failure.

    If `fps` is configured, the read timeout is at least 3 frame intervals, so that slow cameras do not time out.
    """
    slow_s = _MIN_INTERVALS / camera.fps if camera.fps is not None else 0.0
    return SupervisorPolicy(
        read_timeout_s=max(camera.read_timeout_s, slow_s),
        frozen_after_s=camera.frozen_after_s,
        finite=isinstance(camera.address, (*RECORDED, Http)),  # an HTTP server can also send a file, which ends
        retry=not isinstance(camera.address, (File, Folder)),
        longest_call_s=camera.open_timeout_s + _CLOSE_S,
    )


# --- GStreamer --------------------------------------------------------------------------------------------------------


def _uses_gstreamer(camera: CameraConfig, address: Rtsp | Csi | Usb, *, recorded: bool = False) -> bool:
    """Return True if GStreamer reads the camera.

    CSI cameras and `reader: gstreamer` require GStreamer; if it is missing, raise `ConfigError`. With `reader: auto`,
    GStreamer reads RTSP cameras if it is installed, because it reports every lost packet and the capture times. If a
    camera is recorded, FFmpeg reads the camera instead, because recordings contain the packets that FFmpeg reads.
    """
    if camera.reader in {"opencv", "ffmpeg", "nvdec"} or (recorded and camera.reader == "auto"):
        return False
    required = camera.reader == "gstreamer" or isinstance(address, Csi)
    from vision.capture.gstreamer.source import available

    reason = available(camera)
    if required and reason is not None:
        text, hint = f"GStreamer cannot open {camera.id}: {reason}", "`vision doctor` lists the missing packages"
        raise ConfigError(text, hint=hint, code="gstreamer")
    if reason is not None:
        _warn_once(f"camera {camera.id}: opened with FFmpeg, because {reason}")
    return reason is None


# --- FFmpeg -----------------------------------------------------------------------------------------------------------


def _open_with_pyav(
    camera: CameraConfig,
    address: Rtsp | Http | File,
    formats: tuple[PixelFormat, ...],
    tap: PacketTap | None,
    *,
    offline: bool,
    nvdec: bool,
) -> Source:
    """Return a source that reads with FFmpeg, and decodes with FFmpeg or, if `nvdec` is True, with NVDEC."""
    _require_pyav()
    from vision.capture.ffmpeg.decoder import FFmpegDecoder

    path = address.path if isinstance(address, File) else None
    reading: Literal["live", "recorded", "offline"] = "live" if path is None else "offline" if offline else "recorded"
    open_decoder: OpenDecoder = partial(FFmpegDecoder, reading=reading)
    if nvdec:
        open_decoder = _nvdec_decoder(camera, path, open_decoder)
    if path is not None:
        from vision.capture.ffmpeg.file import VideoFile

        return VideoFile(path, formats, open_decoder, FramePacer(offline=offline), loop=camera.loop, tap=tap)
    from vision.capture.ffmpeg.source import FFmpegSource

    return FFmpegSource(camera, formats, open_decoder, tap)


def _require_pyav() -> None:
    if (reason := missing_pyav()) is not None:
        raise ConfigError(f"FFmpeg cannot be used: {reason}", hint=pip_hint("av>=12.3"), code="pyav-missing")


@cache
def missing_pyav() -> str | None:
    """Return the reason why PyAV is not usable, or None if it is usable.

    The result is cached, because a failed import is slow.
    """
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
    """Return True for `reader: nvdec`, unless `formats`, the formats that the caller accepts, lacks nv12.

    In this case, log a warning, and return False, because NVDEC delivers only nv12.
    """
    if camera.reader != "nvdec":
        return False
    if "nv12" not in formats:
        accepted = ", ".join(formats)
        _warn_once(f"camera {camera.id}: not decoded with NVDEC, which delivers nv12; this command expects {accepted}")
        return False
    return True


def chooses_nvdec(camera: CameraConfig, *, recorded: bool = False) -> bool:
    """Return True if `reader: auto` decodes a stream with NVDEC, for a detector that reads GPU memory.

    `recorded` is True if the packets of the camera are recorded, so that FFmpeg must read the camera.

    Even if NVDEC is usable, it is not chosen in these cases:

    * GStreamer can read the camera. GStreamer delivers frames with less delay, and reports every lost packet.
    * The transport is UDP. NVDEC does not report frames that were damaged by lost packets.
    * A file is looped. Each pass would start with 0.25 s without a frame (measured on an H100).
    """
    if camera.reader != "auto" or missing_pyav() is not None:
        return False
    match camera.address:
        case Rtsp() as address:
            if camera.transport != "tcp" or not _has_nvdec():
                return False
            return not _uses_gstreamer(camera, address, recorded=recorded)
        case Http():
            return _has_nvdec()
        case File(path):
            return not (camera.loop or holds_images(path)) and _has_nvdec()
        case _:
            return False


@cache
def _has_nvdec() -> bool:
    """Return True if the machine has a graphics card with NVDEC. Return False on a Jetson. Cache the result."""
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


def _nvdec_decoder(camera: CameraConfig, recording: Path | None, ffmpeg: OpenDecoder) -> OpenDecoder:
    """Return a function that opens a decoder with NVDEC.

    If NVDEC cannot decode a stream, `ffmpeg` opens the decoder instead, unless `reader: nvdec` is configured.
    `recording` is the path of the file to decode, or None for a live camera.

    Raises:
        SourceError: NVDEC is not usable.
    """
    try:
        from vision.capture.nvdec.bindings import require_nvdec
    except DeviceMissing as missing:
        raise SourceError(f"NVDEC cannot be used: {missing.args[0]}", hint=missing.hint, code="nvdec") from missing
    require_nvdec()
    from vision.capture.ffmpeg.bindings import require_upright
    from vision.capture.ffmpeg.decoder import JpegStream
    from vision.capture.nvdec.decoder import NvdecDecoder
    from vision.capture.nvdec.fallback import NvdecOrFFmpeg

    def nvdec(stream: CodedStream, pixel_formats: tuple[PixelFormat, ...]) -> PacketDecoder:
        if recording is not None and not isinstance(stream, JpegStream):
            require_upright(recording, stream)
        return NvdecDecoder(stream, pixel_formats, live=recording is None)

    def warn(text: str) -> None:
        _warn_once(f"camera {camera.id}: {text}")

    return nvdec if camera.reader == "nvdec" else partial(NvdecOrFFmpeg, nvdec=nvdec, ffmpeg=ffmpeg, warn=warn)


# --- OpenCV and synthetic cameras -------------------------------------------------------------------------------------


def _require_bgr(name: str, pixel_formats: tuple[PixelFormat, ...]) -> None:
    """Check that OpenCV is installed, and that the detector accepts bgr, the only format that OpenCV delivers.

    Raises:
        ConfigError: OpenCV is missing.
        SourceError: the detector does not accept bgr.
    """
    require_cv2(f"camera {name}")
    if "bgr" not in pixel_formats:
        raise SourceError(
            f"{name}: OpenCV delivers bgr frames, but the detector accepts only {', '.join(pixel_formats)}",
            hint="open the camera with `reader: gstreamer`",
            code="pixel-format",
        )


def _open_images(camera: CameraConfig, path: Path, pixel_formats: tuple[PixelFormat, ...], *, offline: bool) -> Source:
    if camera.reader != "auto":
        raise SourceError(
            f"{camera.source}: `reader: {camera.reader}` cannot read images", hint="remove `reader`", code="reader"
        )
    _require_bgr(camera.id, pixel_formats)
    from vision.capture.opencv.file import ImageFolder

    return ImageFolder(path, FramePacer(offline=offline), fps=camera.fps, loop=camera.loop)


def _open_synthetic(
    camera: CameraConfig, text: str, pixel_formats: tuple[PixelFormat, ...], *, offline: bool
) -> Source:
    from vision.capture.synthetic.source import SyntheticSource
    from vision.capture.synthetic.spec import SyntheticSpec

    spec = SyntheticSpec.parse(text)
    if camera.width is not None and camera.height is not None:
        spec = replace(spec, width_px=camera.width, height_px=camera.height)
    if camera.fps is not None:
        spec = replace(spec, fps=camera.fps)
    return SyntheticSource(spec, pixel_formats, FramePacer(offline=offline))


@cache
def _warn_once(text: str) -> None:
    """Log a warning only once per text, because the source of an unreachable camera is reopened every half minute."""
    log.warning("%s", text)
