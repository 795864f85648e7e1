"""`VideoEncoder`: images into an MP4 file, each at its own time.

H.264 with libx264, which PyAV's wheels bring and every player and browser plays. A PyAV of the system without libx264
writes MPEG-4 Part 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.container import OutputContainer
from numpy.typing import NDArray

from vision.errors import VisionError

_TICKS_PER_S: Final = 60_000  # a multiple of all usual frame rates, and less than 2**16, MPEG-4's limit
_USUAL_FPS: Final = 25  # for the rate control only


class VideoEncoder:
    """Takes images with their times."""

    def __init__(self, container: OutputContainer, width_px: int, height_px: int) -> None:
        has_h264 = "libx264" in av.codecs_available
        self.codec = "H.264" if has_h264 else "MPEG-4 Part 2"
        self._container = container
        self._stream = container.add_stream("libx264" if has_h264 else "mpeg4", rate=_USUAL_FPS)
        # Colors are encoded in blocks of 2x2 pixels.
        self._stream.width, self._stream.height = max(2, width_px // 2 * 2), max(2, height_px // 2 * 2)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)
        self._stream.options = {"crf": "20", "preset": "fast"} if has_h264 else {"qscale": "4"}
        self._ticks = -1  # of the last image
        self._interval = _TICKS_PER_S // _USUAL_FPS

    def write(self, image: NDArray[np.uint8], time_s: float) -> None:
        """Encode one image.

        Args:
            image: (H, W, 3) BGR. Another size than the first is scaled; an odd last row or column is left out.
            time_s: time since the first image.
        """
        width_px, height_px = self._stream.width, self._stream.height
        if image.shape[0] - height_px in (0, 1) and image.shape[1] - width_px in (0, 1):
            image = image[:height_px, :width_px]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "bgr24")
        frame = frame.reformat(width_px, height_px, "yuv420p", interpolation="AREA")
        frame.time_base = Fraction(1, _TICKS_PER_S)
        ticks = max(round(time_s * _TICKS_PER_S), self._ticks + 1)
        if self._ticks >= 0:
            self._interval = ticks - self._ticks
        frame.pts = self._ticks = ticks
        self._mux(frame)

    def finish(self) -> None:
        """Write what the codec still holds."""
        self._mux(None)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._interval  # counts for the last image only, which no other one follows
            self._container.mux(packet)


@contextmanager
def open_encoder(path: Path, width_px: int, height_px: int) -> Iterator[VideoEncoder]:
    """Open an encoder into `path`, which ends in ``.mp4``. If the caller fails, the file is removed.

    Raises:
        VisionError: the file cannot be written.
    """
    try:
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            encoder = VideoEncoder(container, width_px, height_px)
            yield encoder
            encoder.finish()
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, av.FFmpegError):
            raise VisionError(f"cannot write {path}: {error.strerror}", code="video-not-writable") from error
        raise
