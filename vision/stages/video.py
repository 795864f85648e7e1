"""`VideoStage` draws results on frames, writes the frames to one video file per camera, and shows them in windows.

For each camera, a thread draws and encodes the frames. If frames arrive faster than the thread can encode them, some
frames are skipped and counted. Each frame keeps its capture time, so the video plays in real time.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.analytics.frame_clock import FrameClock
from vision.config.paths import exists, is_file
from vision.detect.reference.crops import PartReader
from vision.errors import ConfigError, from_os_error
from vision.stages.frame_worker import FrameWorker
from vision.stages.video_encoder import open_encoder
from vision.state.free_space import FreeSpace
from vision.types import Frame, Result

log = logging.getLogger(__name__)

Image: TypeAlias = NDArray[np.uint8]
Draw: TypeAlias = Callable[[Image, Result], None]
"""Function that draws a result on an image of its frame, (H, W, 3) BGR."""

_BUFFERS: Final = 8  # number of frames per camera that can wait for the thread
_WINDOW_MS: Final = 30  # time to process the events of the window system between two frames


class VideoStage:
    """Stage that writes the annotated frames of each camera to a video file, shows them in a window, or both."""

    def __init__(
        self,
        paths: Mapping[str, Path],
        camera_ids: Sequence[str],
        draw: Draw,
        *,
        show: bool = False,
        lossless: bool = False,
    ) -> None:
        """Start a thread for each camera.

        Args:
            paths: video file of each camera, by camera id. The frames of a camera without a path are not written.
            camera_ids: ids of all cameras.
            draw: function that the threads call to draw a result.
            show: if True, show the frames of each camera in a window.
            lossless: if True, wait for the encoder instead of skipping frames.
        """
        self._lossless = lossless
        self._window = _Window() if show else None
        self._cameras = {camera_id: _CameraVideo(paths.get(camera_id), draw, self._window) for camera_id in camera_ids}
        self._workers = {
            camera_id: FrameWorker(f"video-{camera_id}", video.write, buffers=_BUFFERS, lossless=lossless)
            for camera_id, video in self._cameras.items()
        }

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Copy the frame for the thread of its camera, and return `result`.

        Raises:
            VisionError: the stage is lossless, and the thread of the camera has failed.
        """
        worker = self._workers[frame.meta.camera_id]
        if self._lossless:
            worker.check()
        worker.add(frame, result)
        return result

    def counters(self) -> dict[str, int]:
        """Return the numbers of drawn and skipped frames. A frame that a full disk cannot store is in both numbers."""
        return {
            "video.written": sum(video.written for video in self._cameras.values()),
            "video.skipped": sum(worker.skipped for worker in self._workers.values())
            + sum(video.lost for video in self._cameras.values()),
        }

    def progress(self) -> dict[str, int | None]:
        """Return, by thread name, the number of processed frames, or None if no frame waits."""
        return {f"video-{camera_id}": worker.progress() for camera_id, worker in self._workers.items()}

    def close(self) -> None:
        """Finish the videos and close the windows. Idempotent.

        Raises:
            VisionError: the thread of a camera has failed, for example because its video cannot be written.
        """
        for worker in self._workers.values():
            worker.finish()
        if self._window is not None:
            self._window.close()
        for worker in self._workers.values():
            worker.join()
        for worker in self._workers.values():
            worker.check()


class _CameraVideo:
    """The video of one camera. A thread for this camera draws and encodes the frames."""

    def __init__(self, path: Path | None, draw: Draw, window: _Window | None) -> None:
        self.written = self.lost = 0
        self._path = path
        self._space = None if path is None else FreeSpace(path.parent)
        self._failing = False
        self._draw = draw
        self._window = window
        self._parts = PartReader()

    def write(self, copies: Iterator[tuple[Frame, Result]]) -> None:
        """Draw the result on each frame. Write the frames to the file, if any, and show them in the window, if any.

        If there are no frames, create no file. While the disk is nearly full, count frames as lost instead of writing
        them.

        Raises:
            VisionError: the file cannot be written.
        """
        first = next(copies, None)
        if first is None:
            return
        meta, clock = first[0].meta, FrameClock()
        opened = nullcontext() if self._path is None else open_encoder(self._path, meta.width_px, meta.height_px)
        with opened as encoder:
            for frame, result in chain([first], copies):
                clock.advance(frame.meta.captured_ns)
                image = self._annotate(frame, result)
                if encoder is not None and self._has_room():
                    encoder.write(image, clock.now_s)
        if encoder is not None:
            log.info("camera %s: video %s, %s, %d frames", meta.camera_id, self._path, encoder.codec, self.written)

    def _has_room(self) -> bool:
        """Return True if the disk is not nearly full. Otherwise, count a lost frame.

        Log only the first of successive losses.
        """
        is_low = self._space is not None and self._space.is_low()
        if is_low and not self._failing:
            log.error("the disk of %s is nearly full: frames are not written until there is space", self._path)
        self._failing = is_low
        self.lost += is_low
        return not is_low

    def _annotate(self, frame: Frame, result: Result) -> Image:
        """Draw the result on the copy of its frame. Show and return the image, which is valid as long as the copy."""
        meta = frame.meta
        image = np.ascontiguousarray(self._parts.read(frame, 0, 0, meta.width_px, meta.height_px))
        self._draw(image, result)
        self.written += 1
        if self._window is not None:
            self._window.put(meta.camera_id, image)
        return image


class _Window:
    """Display of the newest frame of each camera, in one window per camera.

    A separate thread makes all calls to the window system.
    """

    def __init__(self) -> None:
        self._newest: dict[str, Image] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="window", daemon=True)
        self._thread.start()

    def put(self, camera_id: str, image: Image) -> None:
        """Replace the image that the window of the camera shows."""
        copy = image.copy()
        with self._lock:
            self._newest[camera_id] = copy

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                with self._lock:
                    newest, self._newest = self._newest, {}
                for camera_id, image in newest.items():
                    cv2.imshow(f"vision {camera_id}", image)
                # If there is no window, `waitKey` returns immediately.
                if cv2.waitKey(_WINDOW_MS) < 0 and not newest:
                    self._closing.wait(_WINDOW_MS / 1000)
            cv2.destroyAllWindows()
        except cv2.error as error:
            log.error("closing the window after an OpenCV error: %s", str(error).strip().splitlines()[-1])


def video_paths(path: Path, camera_ids: Sequence[str]) -> dict[str, Path]:
    """Return the video file of each camera: `path` for a single camera, ``NAME-CAMERA.mp4`` for several cameras.

    Raises:
        ConfigError: the name does not end in .mp4, or the folder is missing or not writable.
        Unavailable: the folder cannot be used at present, for example because the disk is full.
    """
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"--video: expected a file that ends in .mp4, got {path}", code="video-name")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"x")
    except OSError as error:
        text, hint = (
            f"--video: cannot write to the folder {path.parent}",
            "create the folder, or make it writable for this user",
        )
        raise from_os_error(text, error, hint=hint, code="video-folder") from error
    single = len(camera_ids) == 1
    paths = {name: path if single else path.with_name(f"{path.stem}-{name}{path.suffix}") for name in camera_ids}
    for each in paths.values():
        if exists(each) and not is_file(each):  # to open a pipe would wait for its reader
            raise ConfigError(f"--video: expected a file, but {each} exists and is none", code="video-name")
    return paths


def check_window() -> None:
    """Raise `ConfigError` if OpenCV was built without support for windows or, on Linux, if there is no display."""
    if not has_windows(cv2.getBuildInformation()):
        text = "--show: OpenCV was built without support for windows (a headless build)"
        hint = "use --video OUT.mp4, or install opencv-python instead of opencv-python-headless"
        raise ConfigError(text, hint=hint, code="no-window")
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        # Without a display, Qt ends the process.
        text = "--show: there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set"
        hint = "use --video OUT.mp4, or start the command in a desktop session"
        raise ConfigError(text, hint=hint, code="no-display")


def has_windows(build_information: str) -> bool:
    """Return True if the build information of OpenCV names a window system."""
    lines = [line.split(":", 1) for line in build_information.splitlines() if line.strip().startswith("GUI:")]
    return any(value.strip() not in ("", "NONE") for _, value in lines)
