"""`VideoEncoder` writes frames to an MP4 file, in which each frame has its own timestamp.

The codec is H.264, which every player and browser supports. Its encoder is libx264, which the wheels of PyAV include.
If the PyAV of a Linux distribution lacks libx264, the codec is MPEG-4 Part 2.
"""

from __future__ import annotations

import os
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
from vision.state.private_files import open_restricted

_TICKS_PER_S: Final = 60_000  # a multiple of all common frame rates, and below the limit of MPEG-4, 2**16
_USUAL_FPS: Final = 25  # used only by the rate control of the codec


class VideoEncoder:
    """Encoder of frames with timestamps. `open_encoder` creates the encoder, and closes its file."""

    def __init__(self, container: OutputContainer, width_px: int, height_px: int) -> None:
        has_h264 = "libx264" in av.codecs_available
        self.codec = "H.264" if has_h264 else "MPEG-4 Part 2"
        self._container = container
        self._stream = container.add_stream("libx264" if has_h264 else "mpeg4", rate=_USUAL_FPS)
        # The sides must be even, because color is encoded in blocks of 2x2 pixels.
        self._stream.width, self._stream.height = max(2, width_px // 2 * 2), max(2, height_px // 2 * 2)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)
        self._stream.options = {"crf": "20", "preset": "fast"} if has_h264 else {"qscale": "4"}
        self._ticks = -1  # time of the last frame; -1 if there is none
        self._interval = _TICKS_PER_S // _USUAL_FPS

    def write(self, image: NDArray[np.uint8], time_s: float) -> None:
        """Encode one frame.

        Args:
            image: (H, W, 3) BGR. If the image is larger than the video by at most one row and one column, this row and
                column are cut off. For any other difference in size, the image is scaled to the size of the video.
            time_s: time since the first frame, in seconds.
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
        """Write the frames that the codec still buffers."""
        self._mux(None)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._interval  # players use it only for the last frame, which has no successor
            self._container.mux(packet)


@contextmanager
def open_encoder(path: Path, width_px: int, height_px: int) -> Iterator[VideoEncoder]:
    """Open an encoder that writes to `path`, which ends in ``.mp4``. If an error occurs, remove the file.

    Raises:
        VisionError: the file cannot be written.
    """
    try:
        with suppress(OSError):  # FFmpeg reports the error
            os.close(open_restricted(path, os.O_WRONLY | os.O_CREAT))
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
