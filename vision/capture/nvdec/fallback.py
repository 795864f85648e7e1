"""Packet decoder that uses NVDEC if it supports the stream, otherwise FFmpeg, for `reader: auto` on a graphics card.

Only the first key frame shows whether the card can decode a stream, and the settings of a camera can change between two
connections. Therefore, the decoder is chosen again for each connection. Both decoders accept the same packets, so the
stream is not opened twice. If the caller's buffers are in GPU memory, FFmpeg's frames are copied there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import numpy as np
from av.packet import Packet

from vision.capture.ffmpeg.decoder import CodedStream, DecodedFrame, OpenDecoder, PacketDamaged, PacketDecoder
from vision.capture.nvdec.idle_sessions import idle_sessions
from vision.capture.source import StreamInfo
from vision.errors import OutOfMemory, SourceError
from vision.gpu.cuda import Stream, memory_info
from vision.gpu.memory import copy_to_device
from vision.types import FrameBuffer, PixelFormat

_RESERVED: Final = 8
"""NVDEC is used only if at least 1/8 of the card's memory is free, because later cameras need memory for buffers."""

_MOST_KEPT: Final = 64  # packets; after more packets without a frame, the decoder can no longer be replaced


class NvdecOrFFmpeg:
    """Decoder that uses NVDEC or FFmpeg. It implements `vision.capture.ffmpeg.decoder.PacketDecoder`."""

    def __init__(
        self,
        stream: CodedStream,
        pixel_formats: tuple[PixelFormat, ...],
        *,
        nvdec: OpenDecoder,
        ffmpeg: OpenDecoder,
        warn: Callable[[str], object],
    ) -> None:
        """Create the decoder.

        `nvdec` opens the preferred decoder, and `ffmpeg` opens the other decoder. FFmpeg decodes in these cases:

        * Opening the preferred decoder, or decoding its first frame, raises `SourceError` or `OutOfMemory`.
        * The GPU has too little free memory.
        * `pixel_formats` does not contain nv12.

        In the first two cases, `warn` is called with the reason.
        """
        self._open_ffmpeg = partial(ffmpeg, stream, pixel_formats)
        self._warn = warn
        self._kept: deque[Packet[Any]] = deque(maxlen=_MOST_KEPT)  # packets passed to NVDEC before its first frame
        self._settled = False
        self._copies: Stream | None = None  # set if FFmpeg decodes
        self._staged = FrameBuffer.wrap(np.empty((0, 0, 3), np.uint8), "bgr")
        if "nv12" not in pixel_formats:  # a later pass of a loop whose first pass FFmpeg decoded
            self._decoder = self._fall_back()
            return
        try:
            _require_room()
            self._decoder = nvdec(stream, pixel_formats)
        except (SourceError, OutOfMemory) as refusal:
            self._decoder = self._fall_back(refusal)

    def _fall_back(self, refusal: Exception | None = None) -> PacketDecoder:
        if refusal is not None:
            self._warn(f"decoded on the CPU, because {refusal.args[0]}")
        self._settled = True
        self._copies = Stream()
        return self._open_ffmpeg()

    def decode(self, packet: Packet[Any]) -> Sequence[DecodedFrame]:
        if self._settled:
            return self._decoder.decode(packet)
        self._kept.append(_copy(packet))
        try:
            frames = self._decoder.decode(packet)
        except (SourceError, OutOfMemory) as refusal:
            self._decoder.close()
            self._decoder = self._fall_back(refusal)
            return self._decode_kept()
        if frames:
            self._settled = True
            self._kept.clear()
        return frames

    def _decode_kept(self) -> Sequence[DecodedFrame]:
        frames: list[DecodedFrame] = []
        while self._kept:
            with suppress(PacketDamaged):
                frames += self._decoder.decode(self._kept.popleft())
        return frames

    def describe(self, frame: Any, fps: float | None) -> StreamInfo:
        return self._decoder.describe(frame, fps)

    def write(self, frame: Any, out: FrameBuffer) -> None:
        if self._copies is None or out.host is not None:
            self._decoder.write(frame, out)
            return
        if (self._staged.shape, self._staged.pixel_format) != (out.shape, out.pixel_format):
            self._staged = FrameBuffer.allocate(out.height_px, out.width_px, out.pixel_format)
        self._decoder.write(frame, self._staged)
        pixels = self._staged.require_host()
        copy_to_device(out.device_address, pixels.ctypes.data, pixels.nbytes, self._copies)
        self._copies.synchronize()  # the caller reads `out` immediately

    def close(self) -> None:
        self._decoder.close()
        copies, self._copies = self._copies, None
        if copies is not None:
            copies.close()


def _require_room() -> None:
    """Raise `SourceError` if less than 1/8 of the GPU memory is free, even after the idle sessions were closed."""
    free_bytes, total_bytes = memory_info()
    if free_bytes * _RESERVED < total_bytes:
        idle_sessions.close()
        free_bytes, total_bytes = memory_info()
    if free_bytes * _RESERVED < total_bytes:
        raise SourceError(f"less than 1/{_RESERVED} of the graphics card's memory is free", code="out-of-memory")


def _copy(packet: Packet[Any]) -> Packet[Any]:
    """Return a copy of a packet, because a decoder can remove the data from the original."""
    copied: Packet[Any] = Packet(bytes(packet)) if packet.size else Packet(0)
    if packet.size:
        copied.pts, copied.dts, copied.time_base = packet.pts, packet.dts, packet.time_base
    return copied
