"""Frames into a video file: H.264 by the program ffmpeg, which every player and browser knows, where that is
installed; else OpenCV's MPEG-4, because its wheels bring no encoder for H.264.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.errors import VisionError

Frame = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Takes (H, W, 3) uint8 BGR frames."""

    words: str  # what it is, for people
    _size: tuple[int, int]
    _take: Callable[[Frame], object]

    def write(self, frame: Frame) -> None:
        """One frame. One of another size is scaled; an odd last row or column is left out."""
        width_px, height_px = self._size
        if frame.shape[0] - height_px in (0, 1) and frame.shape[1] - width_px in (0, 1):
            self._take(np.ascontiguousarray(frame[:height_px, :width_px]))
        else:
            self._take(np.asarray(cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA), np.uint8))


@contextmanager
def open_encoder(
    path: Path, width_px: int, height_px: int, fps: float, *, ffmpeg: str | None = None
) -> Iterator[Encoder]:
    """Open an encoder into `path`, which ends in ``.mp4``. If the caller fails, the file is removed.

    Args:
        ffmpeg: the program to use; the one on the PATH where absent, and none where empty.

    Raises:
        VisionError: the file cannot be written.
    """
    program = (shutil.which("ffmpeg") or "") if ffmpeg is None else ffmpeg
    size = (max(2, width_px // 2 * 2), max(2, height_px // 2 * 2))  # colours are coded in blocks of 2x2 pixels
    try:
        if program and _has_h264(program):
            with _by_ffmpeg(program, path, size, fps) as take:
                yield Encoder("H.264", size, take)
        else:
            with _by_opencv(path, size, fps) as take:
                yield Encoder("MPEG-4; with the program ffmpeg installed, H.264, which browsers play too", size, take)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _has_h264(program: str) -> bool:
    try:
        done = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise VisionError(f"cannot start {program}: {error.strerror}") from error
    return " libx264 " in done.stdout


@contextmanager
def _by_opencv(path: Path, size: tuple[int, int], fps: float) -> Iterator[Callable[[Frame], object]]:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    try:
        if not writer.isOpened():
            raise VisionError(f"OpenCV cannot write {path}", hint="a name that ends in .mp4, in a folder that is there")
        yield writer.write
    finally:
        writer.release()


@contextmanager
def _by_ffmpeg(program: str, path: Path, size: tuple[int, int], fps: float) -> Iterator[Callable[[Frame], object]]:
    frames = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:.6g}", "-i", "-"]
    coding = ["-an", "-c:v", "libx264", "-crf", "20", "-preset", "fast", "-pix_fmt", "yuv420p"]
    command = [program, "-loglevel", "error", "-y", *frames, *coding, "-movflags", "+faststart", str(path.absolute())]
    # In a session of its own, because Ctrl-C is for us: ffmpeg would end before it has what was drawn.
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        stdin, stderr = process.stdin, process.stderr
        gone = False
        try:
            yield lambda frame: stdin.write(frame.data)
        except BrokenPipeError:
            gone = True
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                stdin.close()
        said = stderr.read().decode(errors="replace").strip()
        if process.wait() != 0 or gone:
            raise VisionError(f"ffmpeg cannot write {path}: {said.splitlines()[-1] if said else 'no reason given'}")
