"""`CameraViewStage` keeps lines and zones in place if a camera is moved, and holds the counts while this is impossible.

A thread of the stage compares a frame of each camera with the stored backgrounds every 2.5 seconds
(`vision.analytics.camera_view`). If the camera has moved a little, the analytics continue with lines and zones at their
new positions. If the scene cannot be found, nothing is counted until it is found again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from msgspec.structs import replace

from vision.analytics.camera_view import (
    INTERVAL_S,
    WIDTH_PX,
    Appearance,
    Image,
    Similarity,
    ViewTracker,
    displacement,
    view_image,
)
from vision.config import AppConfig
from vision.config.analytics import CameraAnalytics
from vision.errors import VisionError
from vision.stages.frame_worker import FrameWorker
from vision.state.private_files import make_private_folder, read_checked, write_checked
from vision.types import Event, Frame, Result

log = logging.getLogger(__name__)

_BUFFERS: Final = 2
_STOP_S: Final = 1.0
_HELD: Final = ("moved", "covered")
_MOST_BYTES: Final = 8 << 20  # of a file with the appearances of a camera
_FORMAT: Final = 1


class FollowsView(Protocol):
    """Protocol of the analytics stage, which follows the view of a camera."""

    def follow(self, camera_id: str, view: Similarity | None, *, hold: bool) -> None:
        """Move the lines and zones of a camera by `view`, and count nothing while `hold` is True.

        If `view` is None, return them to their configured positions.
        """


@dataclass(slots=True)
class _Camera:
    """The state of one camera. Only the thread of the stage uses `tracker` and writes `seen`."""

    key: str  # identifies the geometry of the lines and zones
    tracker: ViewTracker | None = None
    saved: int = 0  # `ViewTracker.changes` at the last save
    due_ns: int = 0  # capture time of the next frame to examine
    seen: tuple[str, Similarity] = field(default=("learning", np.eye(2, 3)))  # state of the tracker, and its view
    told: tuple[str, Similarity] = field(default=("learning", np.eye(2, 3)))  # `seen` as last passed to the analytics


class CameraViewStage:
    """Moves the lines and zones of each camera with `realign: true`. Place it before the analytics stage."""

    def __init__(self, sections: Mapping[str, CameraAnalytics], analytics: FollowsView, folder: Path | None) -> None:
        """Start the thread.

        Args:
            sections: the section `analytics` by camera id. Cameras without `realign: true` are ignored.
            folder: folder for the backgrounds of the cameras. If None, they are learned again after each start.

        Raises:
            ConfigError: the folder cannot be created, or is not private.
        """
        self._analytics = analytics
        self._folder = folder
        if folder is not None:
            make_private_folder(folder)
        self._cameras: dict[str, _Camera] = {}
        self._configure(sections)
        self._realigned = 0
        self._worker = FrameWorker("views", self._compare, buffers=_BUFFERS, lossless=False)

    def _configure(self, sections: Mapping[str, CameraAnalytics]) -> None:
        cameras = {}
        for camera_id, section in sections.items():
            if not section.realign:
                continue
            key, known = geometry_key(section), self._cameras.get(camera_id)
            if known is not None and known.key != key and displacement(known.seen[1]) > 0:
                log.warning("camera %s: its lines and zones now refer to its present view", camera_id)
            cameras[camera_id] = known if known is not None and known.key == key else _Camera(key)
        for camera_id in self._cameras.keys() - cameras.keys():
            self._analytics.follow(camera_id, None, hold=False)
        self._cameras = cameras

    def reconfigure(self, config: AppConfig) -> None:
        """Use new lines and zones. If those of a camera have changed, its present view becomes the reference view."""
        self._configure(config.analytics)

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Give the frame to the thread if one is due. Return the result with events if the view has changed.

        Raises:
            VisionError: the thread has failed.
        """
        self._worker.check()
        camera = self._cameras.get(result.meta.camera_id)
        if camera is None:
            return result
        if result.meta.captured_ns >= camera.due_ns and self._worker.add(frame, result):
            camera.due_ns = result.meta.captured_ns + int(INTERVAL_S * 1e9)
        seen = camera.seen
        if seen is camera.told:
            return result
        events = tuple(self._changes(result, camera, seen))
        camera.told = seen
        return replace(result, events=result.events + events) if events else result

    def progress(self) -> Mapping[str, object]:
        """Return the progress of the thread."""
        return {"views": self._worker.progress()}

    def counters(self) -> Mapping[str, int]:
        """Return the number of times that lines and zones were moved, and the number of cameras that count nothing."""
        held = sum(camera.seen[0] in _HELD for camera in self._cameras.values())
        return {"views.realigned": self._realigned, "views.held": held}

    def close(self) -> None:
        """Stop the thread."""
        self._worker.finish()
        self._worker.join(_STOP_S)

    def _changes(self, result: Result, camera: _Camera, seen: tuple[str, Similarity]) -> Iterator[Event]:
        """Pass the new view to the analytics stage. Yield events if counting stops or continues, or lines moved."""
        (state, view), (before, old) = seen, camera.told
        held, was_held = state in _HELD, before in _HELD
        moved_by = displacement(view, old)
        self._analytics.follow(result.meta.camera_id, view, hold=held)
        if held != was_held:
            data = {"phase": "begin", "reason": state} if held else {"phase": "end", "reason": before}
            yield _event("camera_moved", result, data)
        if moved_by > 0 and before != "learning":  # otherwise, it is the view before the restart
            self._realigned += 1
            yield _event("camera_realigned", result, {"phase": "instant", **_described(view, result.meta.width_px)})

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _compare(self, copies: Iterator[tuple[Frame, Result]]) -> None:
        for frame, result in copies:
            camera = self._cameras.get(result.meta.camera_id)
            if camera is None:
                continue
            if camera.tracker is None:
                camera.tracker = self._opened(result.meta.camera_id, camera)
            tracker = camera.tracker
            image = view_image(luma(frame), result.objects.boxes_xyxy)
            tracker.update(image, result.meta.captured_ns / 1e9)
            if tracker.changes != camera.saved or displacement(tracker.view, camera.seen[1]) > 0:
                camera.saved = tracker.changes
                self._save(result.meta.camera_id, camera, tracker)
            if tracker.state != camera.seen[0] or tracker.view is not camera.seen[1]:
                camera.seen = tracker.state, tracker.view

    def _opened(self, camera_id: str, camera: _Camera) -> ViewTracker:
        if self._folder is None:
            return ViewTracker()
        path = self._folder / f"{camera_id}.npz"
        try:
            contents = read_checked(path)
            return ViewTracker() if contents is None else loaded(contents, camera.key)
        except (VisionError, OSError, ValueError, KeyError) as error:
            log.warning("camera %s: its stored view cannot be used and is learned again: %s", camera_id, error)
            return ViewTracker()

    def _save(self, camera_id: str, camera: _Camera, tracker: ViewTracker) -> None:
        if self._folder is None:
            return
        try:
            write_checked(self._folder / f"{camera_id}.npz", saved(tracker, camera.key))
        except (VisionError, OSError) as error:
            log.warning("camera %s: cannot store its view: %s", camera_id, error)


def luma(frame: Frame) -> Image:
    """Return the brightness of the pixels (H, W). If the pixels are in color, this is the green channel."""
    pixels = frame.pixels
    if frame.pixel_format in ("nv12", "i420"):
        return pixels[: frame.meta.height_px]
    return np.ascontiguousarray(pixels[..., 1])


def geometry_key(section: CameraAnalytics) -> str:
    """Return a key that changes with the positions of the lines, zones, and ground points."""
    places: dict[str, Any] = {
        "units": section.units,
        "lines": [line.points for line in section.lines],
        "zones": [zone.rings for zone in section.zones],
        "ground": section.ground.points if section.ground is not None else None,
    }
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()


def saved(tracker: ViewTracker, key: str) -> bytes:
    """Return the appearances and the view of a tracker as the contents of a file."""
    file = io.BytesIO()
    header = json.dumps({"format": _FORMAT, "key": key})
    np.savez_compressed(
        file,
        header=np.frombuffer(header.encode(), np.uint8),
        pixels=np.stack([each.pixels for each in tracker.appearances]),
        views=np.stack([each.view for each in tracker.appearances]),
        view=tracker.view,
    )
    return file.getvalue()


def loaded(contents: bytes, key: str) -> ViewTracker:
    """Return the tracker that `saved` wrote; a new one if the lines and zones have been changed since.

    Raises:
        ValueError: the file is too large, or was not written by `saved`.
        KeyError: a part of the file is missing.
    """
    if len(contents) > _MOST_BYTES:
        raise ValueError(f"expected at most {_MOST_BYTES} bytes, got {len(contents)}")
    with np.load(io.BytesIO(contents), allow_pickle=False) as parts:
        header = json.loads(parts["header"].tobytes())
        if header != {"format": _FORMAT, "key": key}:
            return ViewTracker()
        appearances = [
            Appearance.of(pixels, view) for pixels, view in zip(parts["pixels"], parts["views"], strict=True)
        ]
        return ViewTracker(appearances, parts["view"])


def _described(view: Similarity, width_px: int) -> dict[str, float]:
    """Return the rotation and the zoom of a view, and the shift of the upper left corner in pixels."""
    zoom = float(np.hypot(view[0, 0], view[1, 0]))
    shift_px = view[:, 2] * width_px / WIDTH_PX
    return {
        "shift_x_px": round(float(shift_px[0]), 1),
        "shift_y_px": round(float(shift_px[1]), 1),
        "rotation_deg": round(float(np.degrees(np.arctan2(view[1, 0], view[0, 0]))), 2),
        "zoom": round(zoom, 4),
    }


def _event(kind: str, result: Result, data: Mapping[str, Any]) -> Event:
    return Event(kind, "view", result.meta.camera_id, None, result.meta.captured_ns, data)
