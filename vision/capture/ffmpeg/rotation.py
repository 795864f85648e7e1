"""FFmpeg's decoder for recordings: decodes ahead, and rotates frames.

A telephone that is held upright records rotated frames, and a matrix to rotate them back. FFmpeg passes the matrix on
with each frame, and leaves the rotation to the application.
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

_OFFLINE_THREADS: Final = (
    4  # 361 instead of 310 frames/s for the shipped clip on two cores; more would take cores from the detector
)
_MATRIX: Final = "DISPLAYMATRIX"
_ONE: Final = 1 << 16
_TURNS: Final = {(0, -_ONE, _ONE, 0): 1, (-_ONE, 0, 0, -_ONE): 2, (0, _ONE, -_ONE, 0): 3}
"""Quarter turns to the left by a, b, c, d of AV_FRAME_DATA_DISPLAYMATRIX, of 16.16 bits. Other matrices are ignored."""


def quarter_turns(frame: VideoFrame) -> int:
    """Return the quarter turns to the left from the decoded frame to the frame to show: 0 to 3."""
    matrix: Any = frame.side_data.get(_MATRIX)
    if matrix is None:
        return 0
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    return _TURNS.get((a, b, c, d), 0)


def upright_only(path: Path, open_decoder: OpenDecoder) -> OpenDecoder:
    """Wrap `open_decoder`, which cannot rotate frames, to refuse recordings that need rotation."""

    def opened(stream: VideoStream, pixel_formats: tuple[PixelFormat, ...]) -> PacketDecoder:
        turns = _first_frame_turns(path, stream.index)
        if turns:
            raise SourceError(f"its frames need a rotation by {90 * turns} degrees, which NVDEC does not support")
        return open_decoder(stream, pixel_formats)

    return opened


def _first_frame_turns(path: Path, stream: int) -> int:
    """Return the quarter turns of the first frame. Errors are left to the decoder."""
    with suppress(av.FFmpegError, StopIteration), open_container(str(path.absolute())) as container:
        frame = next(container.decode(container.streams[stream]))
        return quarter_turns(frame) if isinstance(frame, VideoFrame) else 0
    return 0


class RotatingDecoder(FFmpegDecoder):
    """An `FFmpegDecoder` that rotates frames. `offline`: it decodes ahead, on more cores."""

    def __init__(self, stream: VideoStream, pixel_formats: tuple[PixelFormat, ...], *, offline: bool) -> None:
        super().__init__(stream, pixel_formats)
        if offline:
            stream.codec_context.thread_count = _OFFLINE_THREADS
            stream.codec_context.thread_type = "AUTO"
        self._pixel_format: PixelFormat = "bgr"
        self._turns = 0
        self._unrotated = np.empty(0, np.uint8)

    def decode(self, packet: Packet[Any]) -> Sequence[DecodedFrame]:
        """Decode as `FFmpegDecoder` does. Any failure costs one packet only: recordings are read to their end."""
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
        shape = frame_shape(image.height, image.width, self._pixel_format)
        if self._unrotated.shape != shape:
            self._unrotated = np.empty(shape, np.uint8)
        super().write(image, FrameBuffer.wrap(self._unrotated, self._pixel_format))
        theirs = _planes(self._unrotated, image.height, image.width, self._pixel_format)
        for target, source in zip(_planes(pixels, height_px, width_px, self._pixel_format), theirs, strict=True):
            target[...] = np.rot90(source, self._turns)

    def _size(self, image: VideoFrame) -> tuple[int, int]:
        """Return height and width after the rotation."""
        return (image.width, image.height) if self._turns % 2 else (image.height, image.width)


def _fits(out: NDArray[np.uint8], height_px: int, width_px: int, pixel_format: PixelFormat) -> bool:
    try:
        return out.shape == frame_shape(height_px, width_px, pixel_format)
    except ValueError:  # odd sides: the caller finds no buffer for them either
        return False


def _planes(
    pixels: NDArray[np.uint8], height_px: int, width_px: int, pixel_format: PixelFormat
) -> Sequence[NDArray[np.uint8]]:
    """Return views (rows, columns, ...) of a contiguous frame, one for each plane."""
    if pixel_format in {"bgr", "bgrx"}:
        return [pixels]
    flat, half = pixels.reshape(-1), (height_px // 2, width_px // 2)
    luma, chroma = flat[: height_px * width_px].reshape(height_px, width_px), flat[height_px * width_px :]
    return [luma, *(chroma.reshape(2, *half) if pixel_format == "i420" else [chroma.reshape(*half, 2)])]
