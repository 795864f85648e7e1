"""Stand-in for PyNvVideoCodec on the emulated GPU, with the calls that `vision` uses. FFmpeg decodes the video.

The stand-in has the peculiarities of NVDEC:

* Frames are in a pool. Each call overwrites these frames, with copies on the caller's stream.
* A decoder returns all frames in the size of its first frame.
* A decoder accepts only units with start codes (Annex B), and no units with a length prefix.
"""

from __future__ import annotations

import ctypes
from enum import Enum
from fractions import Fraction
from typing import Any

import av
import numpy as np
from cuda.bindings import runtime
from cuda.bindings.device import gpu

__version__ = "2.2.0"

WIDEST_PX = 4096


class PyNvVCException(Exception):
    pass


class PyNvVCExceptionUnsupported(PyNvVCException):
    pass


class cudaVideoCodec(Enum):
    H264 = "h264"
    HEVC = "hevc"
    AV1 = "libdav1d"
    VP8 = "vp8"
    VP9 = "vp9"
    MPEG2 = "mpeg2video"


class DisplayDecodeLatencyType(Enum):
    NATIVE = 0
    LOW = 1
    ZERO = 2


class VideoPacketFlag(Enum):
    ENDOFPICTURE = 8


class Pixel_Format(Enum):
    NV12 = 0
    P016 = 1


class PacketData:
    def __init__(self) -> None:
        self.bsl = 0
        self.bsl_data = 0
        self.pts = 0
        self.decode_flag: VideoPacketFlag | None = None


class _View:
    def __init__(self, address: int, shape: tuple[int, int, int]) -> None:
        _, columns, depth = shape
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "strides": (columns * depth, depth, 1),
            "typestr": "|u1",
            "data": (address, False),
        }


class DecodedFrame:
    def __init__(self, address: int, size: tuple[int, int], pts: int, pixels: Pixel_Format) -> None:
        self.format = pixels
        self._address = address
        self._size = size
        self._pts = pts

    def cuda(self) -> list[_View]:
        height, width = self._size
        return [
            _View(self._address, (height, width, 1)),
            _View(self._address + height * width, (height // 2, width // 2, 2)),
        ]

    def getPTS(self) -> int:
        return self._pts


class PyNvDecoder:
    def __init__(self, codec: cudaVideoCodec, stream: int, latency: DisplayDecodeLatencyType) -> None:
        self._codec = codec
        self._stream = stream
        self._at_once = latency is not DisplayDecodeLatencyType.NATIVE
        self._context: Any = av.CodecContext.create(codec.value, "r")
        self._context.thread_count = 1
        self._size: tuple[int, int] | None = None
        self._pool: list[int] = []
        self._late: list[Any] = []  # frames that a decoder returns only when the next frame begins

    def Decode(self, packet: PacketData) -> list[DecodedFrame]:
        last = not packet.bsl
        for address in self._pool:
            runtime.emulate(self._stream, lambda address=address: self._spoil(address))
        try:
            frames = self._late + self._context.decode(None if last else self._packet(packet))
        except av.FFmpegError:
            frames = self._late
        if last:
            self._context.flush_buffers()  # NVDEC accepts another stream after the end of one
        keep = 0 if last or (self._at_once and packet.decode_flag is VideoPacketFlag.ENDOFPICTURE) else 1
        count = max(0, len(frames) - keep)
        self._late = frames[count:]
        return [self._give(at, frame) for at, frame in enumerate(frames[:count])]

    @staticmethod
    def _packet(packet: PacketData) -> av.Packet:
        data = ctypes.string_at(packet.bsl_data, packet.bsl)
        coded = av.Packet(data)
        coded.pts = packet.pts
        coded.time_base = Fraction(1, 1_000_000_000)
        return coded

    def _spoil(self, address: int) -> None:
        ctypes.memset(address, 0x33, self._bytes())

    def _bytes(self) -> int:
        height, width = self._size or (0, 0)
        return height * width * 3 // 2

    def _give(self, at: int, frame: Any) -> DecodedFrame:
        if self._codec is cudaVideoCodec.H264 and frame.width > WIDEST_PX:
            raise PyNvVCExceptionUnsupported(
                f"HandleVideoSequence : Resolution not supported on this GPU\n"
                f"Resolution          : {frame.width}x{frame.height}\nMax Supported (wxh) : {WIDEST_PX}x{WIDEST_PX}"
            )
        self._size = self._size or (frame.height, frame.width)
        height, width = self._size
        pixels = frame.reformat(width=width, height=height, format="nv12").to_ndarray()
        if at == len(self._pool):
            self._pool.append(gpu.allocate(self._bytes()))
        address = self._pool[at]
        runtime.emulate(self._stream, lambda: self._write(address, pixels))
        deep = frame.format.components[0].bits > 8
        return DecodedFrame(address, self._size, frame.pts or 0, Pixel_Format.P016 if deep else Pixel_Format.NV12)

    def _write(self, address: int, pixels: np.ndarray) -> None:
        """Copy pixels to the pool. The bound method keeps the pool alive until the copy ends.

        On a real GPU, freeing memory waits for the copy.
        """
        ctypes.memmove(address, pixels.ctypes.data, pixels.nbytes)

    def __del__(self) -> None:
        for address in self._pool:
            gpu.free(address)


def CreateDecoder(
    gpuid: int = 0,
    codec: cudaVideoCodec = cudaVideoCodec.H264,
    cudacontext: int = 0,
    cudastream: int = 0,
    usedevicememory: bool = False,
    latency: DisplayDecodeLatencyType = DisplayDecodeLatencyType.NATIVE,
) -> PyNvDecoder:
    if gpuid != 0:
        raise PyNvVCException("GPU ordinal out of range. Should be within [0, 0]")
    if not usedevicememory or not cudastream:
        raise PyNvVCException("the emulator decodes into device memory, on a stream")
    return PyNvDecoder(codec, cudastream, latency)
