"""NVDEC where it can decode a stream, and FFmpeg where it cannot: `reader: auto` on a graphics card.

What a card decodes shows with a stream's first key frame, and a camera may be set to something else until its next
connection. So the choice is made again for each, between decoders that take the same packets, and nothing is opened
twice. Where the frames go was decided before that, once: GPU memory. FFmpeg's are copied there, which the detector
would have done later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream

from vision.capture.ffmpeg.decoder import DecodedFrame, OpenDecoder, PacketDamaged, PacketDecoder
from vision.capture.source import StreamInfo
from vision.errors import OutOfMemory, SourceError
from vision.gpu.cuda import Stream, memory_info
from vision.gpu.memory import copy_to_device
from vision.types import FrameBuffer, PixelFormat

_RESERVED: Final = 8
"""With less than this part of the card's memory free, no decoder is opened: cameras that come later need buffers."""

_MOST_KEPT: Final = 64  # packets; a decoder that holds back more frames than that is none that can be left


class NvdecOrFFmpeg:
    """Satisfies `vision.capture.ffmpeg.decoder.PacketDecoder`; FFmpeg's frames go into GPU memory, too."""

    def __init__(
        self,
        stream: VideoStream,
        pixel_formats: tuple[PixelFormat, ...],
        *,
        nvdec: OpenDecoder,
        ffmpeg: OpenDecoder,
        warn: Callable[[str], object],
    ) -> None:
        """
        Args:
            nvdec: makes the decoder that is wanted. It may refuse a stream, and so may the decoder up to its first
                frame: with `SourceError` or `OutOfMemory`.
            ffmpeg: makes the one for what is refused.
            warn: logs the reason.
        """
        self._stream = stream
        self._pixel_formats = pixel_formats
        self._ffmpeg = ffmpeg
        self._warn = warn
        self._kept: deque[Packet[Any]] = deque(maxlen=_MOST_KEPT)  # what NVDEC has taken before its first frame
        self._settled = False
        self._copies: Stream | None = None  # FFmpeg decodes
        self._staged = FrameBuffer.wrap(np.empty((0, 0, 3), np.uint8), "bgr")
        self._decoder = self._first(nvdec)

    def _first(self, nvdec: OpenDecoder) -> PacketDecoder:
        if "nv12" not in self._pixel_formats:  # as for the later passes of a loop that FFmpeg began
            return self._other()
        try:
            require_room()
            return nvdec(self._stream, self._pixel_formats)
        except (SourceError, OutOfMemory) as refusal:
            self._log_refusal(refusal)
            return self._other()

    def _other(self) -> PacketDecoder:
        self._settled = True
        self._copies = Stream()
        return self._ffmpeg(self._stream, self._pixel_formats)

    def decode(self, packet: Packet[Any]) -> Sequence[DecodedFrame]:
        if self._settled:
            return self._decoder.decode(packet)
        self._kept.append(_copy(packet, self._stream))
        try:
            found = self._decoder.decode(packet)
        except (SourceError, OutOfMemory) as refusal:
            return self._begin_again(refusal)
        if found:
            self._settled = True
            self._kept.clear()
        return found

    def _begin_again(self, refusal: Exception) -> Sequence[DecodedFrame]:
        """With what was taken so far, by FFmpeg."""
        self._log_refusal(refusal)
        self._decoder.close()
        self._decoder = self._other()
        found: list[DecodedFrame] = []
        while self._kept:
            with suppress(PacketDamaged):
                found += self._decoder.decode(self._kept.popleft())
        return found

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
        self._copies.synchronize()  # the reader begins at once

    def close(self) -> None:
        self._decoder.close()
        copies, self._copies = self._copies, None
        if copies is not None:
            copies.close()

    def _log_refusal(self, refusal: Exception) -> None:
        self._warn(f"decoded on the CPU, because {refusal.args[0]}")


def require_room() -> None:
    """Check that enough GPU memory is free for a decoder.

    Raises:
        SourceError: less than an eighth of it is free.
    """
    free_bytes, total_bytes = memory_info()
    if free_bytes * _RESERVED < total_bytes:
        raise SourceError(f"less than 1/{_RESERVED} of the graphics card's memory is free")


def _copy(packet: Packet[Any], stream: VideoStream) -> Packet[Any]:
    """Copy a packet: decoders may take the data out of it."""
    copied: Packet[Any] = Packet(bytes(packet)) if packet.size else Packet(0)
    copied.stream = stream
    if packet.size:
        copied.pts, copied.dts, copied.time_base = packet.pts, packet.dts, packet.time_base
    return copied
