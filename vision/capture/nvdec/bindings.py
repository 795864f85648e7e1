"""Access to NVDEC, the video decoder of NVIDIA's graphics cards, through PyNvVideoCodec.

This is the only module that calls PyNvVideoCodec. The source code of PyNvVideoCodec shows the following behavior, which
is not documented:

* Frames are in a pool, which the next call to `decode` overwrites.
* Copies on the given CUDA stream fill the pool, so copies from the pool must use the same stream.
* If the frame size changes, frames are scaled to the first size, so each session decodes only one size.
* Damaged frames are concealed, and not reported.
* With low latency, a packet marked as the end of its frame outputs the frame; otherwise, the next packet outputs it.

The module supports graphics cards in x86 and Arm servers. A Jetson has different decoders, which GStreamer uses
(`vision.capture.gstreamer.source`).
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

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
"""Names of the members of ``cudaVideoCodec``, by the names of FFmpeg's decoders. Motion JPEG is missing, because NVDEC
does not decode it."""

_NAMES: Final = "H.264, H.265, AV1, VP8, VP9, or MPEG-2"

_NO_LIBRARY: Final = install_hint("nvdec")
_NO_DRIVER: Final = (
    "the driver's video libraries are missing: install them, or start the container with "
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
)


@functools.cache
def _library() -> Any:
    """Import and return the module PyNvVideoCodec.

    Raises:
        SourceError: PyNvVideoCodec is missing or older than 2.0, or the driver's video libraries are missing.
    """
    try:
        library = importlib.import_module("PyNvVideoCodec")
    except ModuleNotFoundError as error:
        raise SourceError(f"NVDEC cannot be used: {error}", hint=_NO_LIBRARY, code="nvdec") from error
    except Exception as error:
        raise SourceError(f"NVDEC cannot be used: {_one_line(error)}", hint=_NO_DRIVER, code="nvdec") from error
    logging.getLogger("PyNvVideoCodec").setLevel(logging.WARNING)  # with INFO, it logs the driver's version
    if not hasattr(library, "DisplayDecodeLatencyType"):
        version = getattr(library, "__version__", "unknown")
        raise SourceError(f"expected PyNvVideoCodec 2.0 or later, got {version}", hint=_NO_LIBRARY, code="nvdec")
    return library


def require_nvdec(codec: str | None = None) -> None:
    """Check that NVDEC is usable, and that it supports `codec` (FFmpeg's name; None skips this check).

    Raises:
        SourceError: NVDEC is not usable, or does not support the codec.
        DeviceError: the GPU does not work.
    """
    if codec is not None and codec not in CODECS:
        raise SourceError(
            f"NVDEC cannot decode {codec}: expected {_NAMES}",
            hint="set the camera to H.264 or H.265, or remove `reader` so that the CPU decodes the stream",
            code="nvdec-codec",
        )
    try:
        open_device()
    except DeviceMissing as missing:
        raise SourceError(f"NVDEC cannot be used: {missing.args[0]}", hint=missing.hint, code="nvdec") from missing
    _library()


_Key: TypeAlias = tuple[str, YuvEncoding, bool, bytes]


@dataclass(frozen=True, slots=True)
class Surface:
    """A decoded nv12 frame in GPU memory, valid until its session is called again."""

    height_px: int
    width_px: int
    time: int  # the argument `time` of `Session.decode`
    planes: tuple[tuple[int, int], ...]  # for luma and chroma: address, and bytes from one row to the next
    yuv: YuvEncoding
    stream: Stream  # of the session

    def copy_to(self, out: FrameBuffer) -> None:
        """Copy the frame to the host memory of `out`, or to GPU memory if `out` has no host memory. Wait for the copy.

        Raises:
            SizeChanged: `out` has a different size or format.
        """
        if (out.height_px, out.width_px, out.pixel_format) != (self.height_px, self.width_px, "nv12"):
            raise SizeChanged(self.height_px, self.width_px)
        target, row_bytes = out.device_address if out.host is None else out.host.ctypes.data, self.width_px
        for (address, pitch_bytes), rows in zip(self.planes, (self.height_px, self.height_px // 2), strict=True):
            copy_rows(target, address, self.stream, rows=rows, row_bytes=row_bytes, pitch_bytes=pitch_bytes)
            target += rows * row_bytes
        self.stream.synchronize()  # the caller reads `out` immediately, and the decoder reuses the memory of the frame


class Session:
    """An NVDEC decoder for one stream of one frame size and encoding."""

    def __init__(self, codec: str, yuv: YuvEncoding, *, at_once: bool) -> None:
        """Create the decoder. Its frames have the encoding `yuv`.

        If `at_once` is True, the call that decodes a frame also returns it. This requires a stream that sends frames in
        display order.

        Raises:
            SourceError: NVDEC cannot decode this stream, or has no memory for it.
            DeviceError: the GPU is missing or does not work.
        """
        library = _library()
        device = open_device()
        use_device(device)  # the calling thread may be a new one
        latency = library.DisplayDecodeLatencyType
        self.parameters = b""  # the parameter sets of the stream; empty if the session cannot be used again
        self._codec = codec
        self._yuv = yuv
        self._at_once = at_once
        self._stream = Stream()
        self._packet = library.PacketData
        self._nv12 = library.Pixel_Format.NV12
        self._flag = library.VideoPacketFlag.ENDOFPICTURE if at_once else None
        try:
            self._decoder: Any = library.CreateDecoder(
                gpuid=device.index,
                codec=getattr(library.cudaVideoCodec, CODECS[codec]),
                cudacontext=0,  # the device's primary context, which the CUDA runtime API also uses
                cudastream=self._stream.address,
                usedevicememory=True,
                latency=latency.LOW if at_once else latency.NATIVE,
            )
        except Exception as error:
            self._stream.close()
            raise self._failure(error) from error

    def decode(self, data: bytes, time: int) -> Sequence[Surface]:
        """Decode one coded frame, or flush the decoder if `data` is empty. Return the frames that are ready.

        H.264 and H.265 frames must be in Annex B. `time` becomes the `Surface.time` of the decoded frame.

        Raises:
            SourceError: this GPU cannot decode the frame, or the decoder failed.
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
            self.parameters = b""
            raise self._failure(error) from error
        return [self._surface(frame) for frame in frames]

    def close(self) -> None:
        """Free the decoder and its pool. Idempotent."""
        self._decoder = None
        self._stream.close()

    @property
    def key(self) -> _Key:
        """The properties that a stream must have so that this session can decode it."""
        return (self._codec, self._yuv, self._at_once, self.parameters)

    def _surface(self, frame: Any) -> Surface:
        if frame.format != self._nv12:
            raise SourceError(f"expected frames in nv12 from NVDEC, got {frame.format}", code="decoding")
        planes = [plane.__cuda_array_interface__ for plane in frame.cuda()]
        height_px, width_px = (int(side) for side in planes[0]["shape"][:2])
        layout = tuple((int(plane["data"][0]), int((plane.get("strides") or [width_px])[0])) for plane in planes)
        return Surface(height_px, width_px, int(frame.getPTS()), layout, self._yuv, self._stream)

    def _failure(self, error: Exception) -> SourceError:
        return SourceError(
            f"NVDEC cannot decode this {CODECS.get(self._codec, self._codec)} stream: {_one_line(error)}",
            hint="`reader: ffmpeg` decodes on the CPU; if GPU memory is low, use fewer cameras or smaller frames",
            code="decoding",
        )


def _one_line(error: Exception) -> str:
    """Return the first part of an error text as one line of at most 400 characters.

    The rest, which is omitted, contains instructions that PyNvVideoCodec appends to its errors.
    """
    return " ".join(str(error).partition("\n\n")[0].split())[:400] or type(error).__name__
