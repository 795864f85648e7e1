"""NVDEC, the video decoder of NVIDIA's graphics cards, through PyNvVideoCodec: packets in, GPU memory out.

This is the only module that calls PyNvVideoCodec. Its sources, not its documentation, show that:

* Frames lie in a pool that the next `decode` writes to again.
* The pool is filled by copies on the CUDA stream that is given, so copies out of it belong on the same stream.
* A stream that changes its frame size is scaled to the first one: a session is for one size.
* It conceals damaged frames, and does not report them.
* With `latency` it outputs a frame at once if told where the frame ends; without, when the next one begins.

For graphics cards in x86 and Arm servers. A Jetson has decoders of another kind, which GStreamer reaches
(`vision.capture.gstreamer.source`).
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vision.errors import DeviceMissing, SizeChanged, SourceError
from vision.gpu.cuda import Stream, open_device, use_device
from vision.gpu.memory import copy_rows
from vision.types import FrameBuffer, YuvEncoding
from vision.version import install_hint

CODECS: Final = {
    "h264": "H264",
    "hevc": "HEVC",
    "av1": "AV1",
    "libdav1d": "AV1",
    "libaom-av1": "AV1",
    "vp8": "VP8",
    "libvpx": "VP8",
    "vp9": "VP9",
    "libvpx-vp9": "VP9",
    "mpeg2video": "MPEG2",
}
"""From FFmpeg's decoders to members of ``cudaVideoCodec``. Motion JPEG is not among them: CUDA kernels decode it."""

_NAMES: Final = "H.264, H.265, AV1, VP8, VP9 or MPEG-2"

_NO_LIBRARY: Final = install_hint("nvdec")
_NO_DRIVER: Final = (
    "the driver's video libraries are not there: install them, or start the container with "
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
)


@functools.cache
def _library() -> Any:
    """PyNvVideoCodec.

    Raises:
        SourceError: it is not there, or the driver lacks its video libraries.
    """
    try:
        library = importlib.import_module("PyNvVideoCodec")
    except ModuleNotFoundError as error:
        raise SourceError(f"NVDEC cannot be used: {error}", hint=_NO_LIBRARY) from error
    except Exception as error:
        raise SourceError(f"NVDEC cannot be used: {_one_line(error)}", hint=_NO_DRIVER) from error
    logging.getLogger("PyNvVideoCodec").setLevel(logging.WARNING)  # it sets INFO, and says which driver it found
    if not hasattr(library, "DisplayDecodeLatencyType"):
        version = getattr(library, "__version__", "unknown")
        raise SourceError(f"expected PyNvVideoCodec 2.0 or later, found {version}", hint=_NO_LIBRARY)
    return library


def require_nvdec(codec: str | None = None) -> None:
    """Check that NVDEC is usable.

    Args:
        codec: FFmpeg's name of a codec, which must be supported too.

    Raises:
        SourceError: NVDEC cannot be used, or does not support the codec.
    """
    if codec is not None and codec not in CODECS:
        raise SourceError(
            f"NVDEC cannot decode {codec}: expected {_NAMES}",
            hint="set the camera to H.264 or H.265, or leave out `reader`: then it is decoded on the CPU",
        )
    try:
        open_device()
    except DeviceMissing as missing:
        raise SourceError(f"NVDEC cannot be used: {missing.args[0]}", hint=missing.hint) from missing
    _library()


@dataclass(frozen=True, slots=True)
class _Plane:
    address: int
    rows: int
    row_bytes: int
    pitch_bytes: int


@dataclass(frozen=True, slots=True)
class Surface:
    """A decoded frame in GPU memory, nv12; valid until its session is called again."""

    height_px: int
    width_px: int
    time: int  # as it was given with the coded frame
    planes: tuple[_Plane, ...]
    yuv: YuvEncoding

    def copy_to(self, out: FrameBuffer, stream: Stream) -> None:
        """Copy to host memory if `out` has any, otherwise to its GPU memory. Returns when the copy is complete.

        Raises:
            SizeChanged: `out` has another size.
        """
        if (out.height_px, out.width_px, out.pixel_format) != (self.height_px, self.width_px, "nv12"):
            raise SizeChanged(self.height_px, self.width_px)
        target = out.device_address if out.host is None else out.host.ctypes.data
        for plane in self.planes:
            copy_rows(
                target,
                plane.address,
                stream,
                rows=plane.rows,
                row_bytes=plane.row_bytes,
                pitch_bytes=plane.pitch_bytes,
            )
            target += plane.rows * plane.row_bytes
        stream.synchronize()  # the reader begins at once, and the decoder uses this memory again


class Session:
    """An NVDEC decoder for one stream of one frame size and encoding."""

    def __init__(self, codec: str, stream: Stream, yuv: YuvEncoding, *, at_once: bool) -> None:
        """
        Args:
            codec: of `CODECS`.
            stream: what the decoder's copies are queued on.
            yuv: of its frames: NVDEC does not tell.
            at_once: every frame comes out of the call that it went into. Not for streams that send frames in
                another order than they are shown in.

        Raises:
            SourceError: there is no decoder to be had.
        """
        library = _library()
        device = open_device()
        use_device(device)  # the calling thread may be a new one
        latency = library.DisplayDecodeLatencyType
        self._codec = codec
        self._yuv = yuv
        self._packet = library.PacketData
        self._nv12 = library.Pixel_Format.NV12
        self._flag = library.VideoPacketFlag.ENDOFPICTURE if at_once else None
        try:
            self._decoder: Any = library.CreateDecoder(
                gpuid=device.index,
                codec=getattr(library.cudaVideoCodec, CODECS[codec]),
                cudacontext=0,  # the device's primary context, which the runtime API works in too
                cudastream=stream.address,
                usedevicememory=True,
                latency=latency.LOW if at_once else latency.NATIVE,
            )
        except Exception as error:
            raise self._failure(error) from error

    def decode(self, data: bytes, time: int) -> Sequence[Surface]:
        """Decode one coded frame (H.264 and H.265: Annex B), or flush if `data` is empty. Return the ready frames.

        Raises:
            SourceError: it cannot be decoded on this GPU, or the decoder failed.
        """
        packet = self._packet()
        if data:
            packet.bsl_data = np.frombuffer(data, np.uint8).ctypes.data
            packet.bsl = len(data)
            packet.pts = time
            if self._flag is not None:
                packet.decode_flag = self._flag
        try:
            frames = self._decoder.Decode(packet)
        except Exception as error:
            raise self._failure(error) from error
        return [self._surface(frame) for frame in frames]

    def close(self) -> None:
        """Free the decoder and its pool. Idempotent."""
        self._decoder = None

    def _surface(self, frame: Any) -> Surface:
        if frame.format != self._nv12:
            raise SourceError(f"expected frames in nv12, NVDEC gave {frame.format}")
        luma, chroma = (view.__cuda_array_interface__ for view in frame.cuda())
        height_px, width_px = (int(side) for side in luma["shape"][:2])
        planes = tuple(_plane(view, width_px) for view in (luma, chroma))
        return Surface(height_px, width_px, int(frame.getPTS()), planes, self._yuv)

    def _failure(self, error: Exception) -> SourceError:
        return SourceError(
            f"NVDEC cannot decode this {CODECS.get(self._codec, self._codec)}: {_one_line(error)}",
            hint="`reader: ffmpeg` decodes on the CPU; where memory is short, take fewer cameras or smaller frames",
        )


def _plane(view: Any, width_px: int) -> _Plane:
    """From ``__cuda_array_interface__``; a row of nv12 has as many bytes as the frame is wide, in both planes."""
    strides = view.get("strides")
    return _Plane(int(view["data"][0]), int(view["shape"][0]), width_px, int(strides[0]) if strides else width_px)


def _one_line(error: Exception) -> str:
    """Return the first words of an error: the library appends many lines of instructions."""
    return " ".join(str(error).partition("\n\n")[0].split())[:400] or type(error).__name__
