"""`VideoStage`: what is detected, drawn on the frames, as a video file for each camera and in a window.

The results thread only copies the frame, while its lease lasts. A thread for each camera draws and encodes. When frames
come faster than that, some are missing in the video. They are counted.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.crops import PartReader
from vision.errors import ConfigError, VisionError
from vision.stages.frame_copy import FrameCopy
from vision.stages.video_encoder import open_encoder
from vision.types import Frame, Result

log = logging.getLogger(__name__)

Image: TypeAlias = NDArray[np.uint8]
Draw: TypeAlias = Callable[[Image, Result], None]
"""Draws a result on its frame, (H, W, 3) BGR."""

_BUFFERS: Final = 8  # frames of a camera that wait for its thread
_WINDOW_MS: Final = 30  # for the window's own events between two frames


class VideoStage:
    """Writes the annotated frames of each camera to a video file, and shows them in a window."""

    def __init__(
        self,
        paths: Mapping[str, Path],
        camera_ids: Sequence[str],
        draw: Draw,
        fps: Callable[[str], float],
        *,
        show: bool = False,
        lossless: bool = False,
    ) -> None:
        """
        Args:
            paths: the files by camera id. Without one, a camera is only shown.
            draw: several threads call it.
            fps: returns the frame rate of a camera's video. Called when its first frame has come.
            lossless: wait for the encoder instead of leaving frames out.
        """
        self._window = _Window() if show else None
        self._cameras = {
            camera_id: _CameraVideo(camera_id, paths.get(camera_id), draw, fps, self._window, lossless=lossless)
            for camera_id in camera_ids
        }

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Copy the frame for its camera's thread. Return the result unchanged.

        Raises:
            VisionError: a lossless video cannot be written.
        """
        self._cameras[frame.meta.camera_id].add(frame, result)
        return result

    def counters(self) -> dict[str, int]:
        """Return the number of frames drawn, and of those left out."""
        cameras = self._cameras.values()
        return {
            "video.written": sum(camera.written for camera in cameras),
            "video.skipped": sum(camera.skipped for camera in cameras),
        }

    def close(self) -> None:
        """Finish the videos and close the window. Idempotent.

        Raises:
            VisionError: a video could not be written.
        """
        for camera in self._cameras.values():
            camera.finish()
        if self._window is not None:
            self._window.close()
        for camera in self._cameras.values():
            camera.join()
        for camera in self._cameras.values():
            camera.check()


class _CameraVideo:
    """The frames that wait for one camera's thread, and the thread."""

    def __init__(
        self,
        camera_id: str,
        path: Path | None,
        draw: Draw,
        fps: Callable[[str], float],
        window: _Window | None,
        *,
        lossless: bool,
    ) -> None:
        self.written = self.skipped = 0
        self._camera_id = camera_id
        self._path = path
        self._draw = draw
        self._fps = fps
        self._window = window
        self._lossless = lossless
        self._parts = PartReader()
        self._error: Exception | None = None
        self._free: queue.SimpleQueue[FrameCopy] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(FrameCopy.empty())
        self._waiting: queue.SimpleQueue[FrameCopy | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"video-{camera_id}", daemon=True)
        self._thread.start()

    def add(self, frame: Frame, result: Result) -> None:
        if self._lossless:
            self.check()
        try:
            copy = self._free.get(block=self._lossless)
        except queue.Empty:
            self.skipped += 1
            return
        copy.copy(frame, result)
        self._waiting.put(copy)

    def check(self) -> None:
        """Raise the error of the thread, if there is one."""
        if isinstance(self._error, VisionError):
            raise self._error
        if self._error is not None:
            raise VisionError(f"the video of camera {self._camera_id} failed: {self._error}") from self._error

    def finish(self) -> None:
        self._waiting.put(None)

    def join(self) -> None:
        self._thread.join()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._write()
        except Exception as error:  # noqa: BLE001 - `check` raises it, whatever it is
            self._error = error
            log.error("camera %s: the video ends here: %s", self._camera_id, error)
            while (copy := self._waiting.get()) is not None:  # a lossless run waits for a free copy
                self.skipped += 1
                self._free.put(copy)

    def _write(self) -> None:
        copy = self._waiting.get()
        if copy is None:
            return
        if self._path is None:
            self._drain(copy, lambda _image: None)
            return
        assert copy.frame is not None
        meta = copy.frame.meta
        with open_encoder(self._path, meta.width_px, meta.height_px, self._fps(self._camera_id)) as encoder:
            log.info("camera %s: video %s, %s", self._camera_id, self._path, encoder.words)
            self._drain(copy, encoder.write)
        log.info("camera %s: video of %d frames, %d left out", self._camera_id, self.written, self.skipped)

    def _drain(self, first: FrameCopy, write: Callable[[Image], None]) -> None:
        copy: FrameCopy | None = first
        while copy is not None:
            try:
                image = self._annotated(copy)
                write(image)
                self.written += 1
                if self._window is not None:
                    self._window.put(self._camera_id, image)
            finally:
                copy.clear()
                self._free.put(copy)
            copy = self._waiting.get()

    def _annotated(self, copy: FrameCopy) -> Image:
        """Draw on the copy; the image is valid until the copy is used again."""
        assert copy.frame is not None and copy.result is not None
        meta = copy.frame.meta
        image = np.ascontiguousarray(self._parts.read(copy.frame, 0, 0, meta.width_px, meta.height_px))
        self._draw(image, copy.result)
        return image


class _Window:
    """A window for each camera, with its newest image. One thread calls the window system."""

    def __init__(self) -> None:
        self._newest: dict[str, Image] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="window", daemon=True)
        self._thread.start()

    def put(self, camera_id: str, image: Image) -> None:
        """Replace the camera's image."""
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
                # Without a window, `waitKey` returns at once.
                if cv2.waitKey(_WINDOW_MS) < 0 and not newest:
                    self._closing.wait(_WINDOW_MS / 1000)
            cv2.destroyAllWindows()
        except cv2.error as error:
            log.error("the window is closed: %s", str(error).strip().splitlines()[-1])


def video_paths(path: Path, camera_ids: Sequence[str]) -> dict[str, Path]:
    """Return the file of each camera: `path`, or for several cameras ``NAME-CAMERA.mp4``.

    Raises:
        ConfigError: the name does not end in .mp4, or the folder is missing or not writable.
    """
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"--video: expected a file that ends in .mp4, got {path}", code="video-name")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ConfigError(
            f"--video: cannot write to the folder {path.parent}",
            hint="create the folder, or make it writable for this user",
            code="video-folder",
        )
    if len(camera_ids) == 1:
        return {camera_ids[0]: path}
    return {camera_id: path.with_name(f"{path.stem}-{camera_id}{path.suffix}") for camera_id in camera_ids}


def check_window() -> None:
    """Check that this OpenCV can open a window here.

    Raises:
        ConfigError: OpenCV was built without windows, or there is no display.
    """
    if not has_windows(cv2.getBuildInformation()):
        raise ConfigError(
            "--show: this OpenCV was built without windows (a headless build)",
            hint="use --video OUT.mp4, or install opencv-python in place of opencv-python-headless",
            code="no-window",
        )
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        # Qt would end the process.
        raise ConfigError(
            "--show: there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set",
            hint="use --video OUT.mp4, or start the command in a desktop session",
            code="no-display",
        )


def has_windows(build_information: str) -> bool:
    """Return True if OpenCV's build information names a window system."""
    lines = [line.split(":", 1) for line in build_information.splitlines() if line.strip().startswith("GUI:")]
    return any(value.strip() not in ("", "NONE") for _, value in lines)
