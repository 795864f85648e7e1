"""FFmpeg's decoder for recordings: ahead of whoever reads, and upright.

A telephone that is held upright records lying frames, and a matrix that says how to turn them. OpenCV turns them;
FFmpeg hands the matrix on with each frame and leaves the turning to who shows it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vision.capture.ffmpeg.bindings import open_container
from vision.capture.ffmpeg.decoder import DecodedFrame, FFmpegDecoder, OpenDecoder, PacketDamaged, PacketDecoder
from vision.capture.source import StreamInfo
from vision.errors import SizeChanged, SourceError
from vision.types import FrameBuffer, PixelFormat, frame_shape

_OFFLINE_THREADS: Final = 4  # as `vision.capture.opencv.file` has on four cores and more
_MATRIX: Final = "DISPLAYMATRIX"
_ONE: Final = 1 << 16
_TURNS: Final = {(0, -_ONE, _ONE, 0): 1, (-_ONE, 0, 0, -_ONE): 2, (0, _ONE, -_ONE, 0): 3}
"""Quarter turns to the left by a, b, c, d of AV_FRAME_DATA_DISPLAYMATRIX, of 16.16 bits. Other matrices are let be."""


def quarter_turns(frame: VideoFrame) -> int:
    """To the left, from the frame as it is decoded to the one that is to be shown: 0 to 3."""
    matrix: Any = frame.side_data.get(_MATRIX)
    if matrix is None:
        return 0
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    return _TURNS.get((a, b, c, d), 0)


def upright_only(path: Path, open_decoder: OpenDecoder) -> OpenDecoder:
    """`open_decoder`, which cannot turn frames, for a recording whose frames need not be turned."""

    def opened(stream: VideoStream, pixel_formats: tuple[PixelFormat, ...]) -> PacketDecoder:
        turns = _turns_of(path, stream.index)
        if turns:
            raise SourceError(f"its frames are to be turned by {90 * turns} degrees to the left, which NVDEC cannot do")
        return open_decoder(stream, pixel_formats)

    return opened


def _turns_of(path: Path, stream: int) -> int:
    """By its first frame; whoever decodes it says what is wrong with it."""
    with suppress(av.FFmpegError, StopIteration), open_container(str(path.absolute())) as container:
        frame = next(container.decode(container.streams[stream]))
        return quarter_turns(frame) if isinstance(frame, VideoFrame) else 0
    return 0


class RotatingDecoder(FFmpegDecoder):
    """As `FFmpegDecoder`, with frames turned as the recording says. `offline`: it decodes ahead, on more cores."""

    def __init__(self, stream: VideoStream, pixel_formats: tuple[PixelFormat, ...], *, offline: bool) -> None:
        super().__init__(stream, pixel_formats)
        if offline:
            stream.codec_context.thread_count = _OFFLINE_THREADS
            stream.codec_context.thread_type = "AUTO"
        self._pixel_format: PixelFormat = "bgr"
        self._turns = 0
        self._lying = np.empty(0, np.uint8)

    def decode(self, packet: Packet[Any]) -> Sequence[DecodedFrame]:
        """As `FFmpegDecoder.decode`; a failure costs the packet, whatever it was: recordings are read to their end."""
        try:
            return super().decode(packet)
        except SourceError:
            raise PacketDamaged from None

    def describe(self, image: VideoFrame, fps: float | None) -> StreamInfo:
        info = super().describe(image, fps)
        self._pixel_format, self._turns = info.pixel_format, quarter_turns(image)
        height_px, width_px = self._size(image)
        return StreamInfo(width_px, height_px, info.pixel_format, fps, info.decoder, info.yuv)

    def write(self, image: VideoFrame, out: FrameBuffer) -> None:
        if not self._turns:
            super().write(image, out)
            return
        height_px, width_px = self._size(image)
        pixels = out.require_host()
        if not _fits(pixels, height_px, width_px, self._pixel_format):
            raise SizeChanged(height_px, width_px)
        lying = frame_shape(image.height, image.width, self._pixel_format)
        if self._lying.shape != lying:
            self._lying = np.empty(lying, np.uint8)
        super().write(image, FrameBuffer.wrap(self._lying, self._pixel_format))
        theirs = _planes(self._lying, image.height, image.width, self._pixel_format)
        for target, source in zip(_planes(pixels, height_px, width_px, self._pixel_format), theirs, strict=True):
            target[...] = np.rot90(source, self._turns)

    def _size(self, image: VideoFrame) -> tuple[int, int]:
        """Height and width, upright."""
        return (image.width, image.height) if self._turns % 2 else (image.height, image.width)


def _fits(out: NDArray[np.uint8], height_px: int, width_px: int, pixel_format: PixelFormat) -> bool:
    try:
        return out.shape == frame_shape(height_px, width_px, pixel_format)
    except ValueError:  # odd sides: whoever is told the new size finds no buffer for it either
        return False


def _planes(
    pixels: NDArray[np.uint8], height_px: int, width_px: int, pixel_format: PixelFormat
) -> Sequence[NDArray[np.uint8]]:
    """Views (rows, columns, ...) of a contiguous frame, one for each plane."""
    if pixel_format in {"bgr", "bgrx"}:
        return [pixels]
    flat, half = pixels.reshape(-1), (height_px // 2, width_px // 2)
    luma, chroma = flat[: height_px * width_px].reshape(height_px, width_px), flat[height_px * width_px :]
    return [luma, *(chroma.reshape(2, *half) if pixel_format == "i420" else [chroma.reshape(*half, 2)])]
