"""`CameraViewStage` finds cameras that were moved or covered. If configured, it keeps lines and zones in place.

Every 2.5 seconds, a thread of the stage compares a frame of each watched camera with the stored backgrounds of that
camera (`vision.analytics.camera_view`). With `realign`, the lines and zones follow a small movement of the camera, and
the analytics count nothing while the thread cannot find the scene. Without `realign`, the stage only reports a camera
that was moved.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

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
from vision.config.reporting import ReportAfter
from vision.errors import VisionError
from vision.stages.frame_worker import FrameWorker
from vision.state.private_files import make_private_folder, read_checked, write_checked
from vision.types import Event, Frame, Result

log = logging.getLogger(__name__)

_BUFFERS: Final = 2
_STOP_S: Final = 1.0
_DISPLACED: Final = 0.01  # shift of a corner, in widths of the frame, above which a camera without `realign` was moved
_RETURNED: Final = 0.005  # shift of a corner, in widths of the frame, below which a moved camera is back
_GAP_S: Final = 7.0  # time without frames, for example without a connection, that does not count
_MOST_BYTES: Final = 8 << 20  # of a file with the appearances of a camera
_FORMAT: Final = 1


class FollowsView(Protocol):
    """Interface of a stage whose lines and zones follow the view of a moved camera, such as `AnalyticsStage`."""

    def follow(self, camera_id: str, view: Similarity | None, *, hold: bool) -> None:
        """Move the lines and zones of a camera by `view`, the movement of its image.

        If `hold` is True, count nothing until the next call. If `view` is None, return the lines and zones to their
        configured positions.
        """


_Fault: TypeAlias = Literal["", "moved", "covered"]
_FAULTS: Final[Mapping[str, _Fault]] = {"moved": "moved", "covered": "covered"}  # by state of the tracker


class _Seen(NamedTuple):
    """The view and the faults of a camera, as the comparing thread found them. Each change creates a new object."""

    view: Similarity
    held: bool  # True if counting must stop
    is_learned: bool  # False until the camera has a background
    reported: _Fault  # the fault that has lasted for as long as the configuration requires; "" if there is none


_UNSEEN: Final = _Seen(np.eye(2, 3), held=False, is_learned=False, reported="")


@dataclass(slots=True)
class _Camera:
    """The settings and the view of one camera.

    Only the thread that compares frames uses the tracker and the times, and only this thread writes `seen`.
    """

    key: str  # identifies the geometry of the lines and zones
    realigns: bool
    stores: bool  # True if its backgrounds are kept over restarts
    patience: ReportAfter
    tracker: ViewTracker | None = None
    saved: int = 0  # `ViewTracker.changes` at the last save
    due_ns: int = 0  # capture time of the next frame to examine
    examined_s: float | None = None  # capture time of the last examined frame
    found_s: float = 0.0  # capture time of the last frame without a fault
    seen: _Seen = _UNSEEN
    told: _Seen | None = None  # `seen` as last passed to the analytics and to subscribers


class CameraViewStage:
    """Stage that reports moved or covered cameras, and that moves lines and zones of cameras with `realign: true`.

    The stage must come before the analytics stage, if the pipeline has an analytics stage.
    """

    def __init__(self, config: AppConfig, analytics: FollowsView | None, folder: Path | None) -> None:
        """Create the stage, and start its thread.

        Args:
            config: the configuration, which selects the cameras to watch.
            analytics: the stage that follows the views of the cameras, or None if the pipeline has no such stage.
            folder: folder for the backgrounds of cameras with lines, zones, or ground points. If None, the stage learns
                the backgrounds at each start.

        Raises:
            ModelError: the folder cannot be created, or other users can write to it or to a folder above it.
            Unavailable: the folder cannot be created at present, for example because the disk is full.
        """
        self._analytics = analytics
        self._folder = folder
        if folder is not None:
            make_private_folder(folder)
        self._cameras: dict[str, _Camera] = {}
        self._ending: dict[str, _Fault] = {}  # reported faults of cameras that are no longer watched
        self.reconfigure(config)
        self._realigned = 0
        self._worker = FrameWorker("views", self._compare, buffers=_BUFFERS, lossless=False)

    def reconfigure(self, config: AppConfig) -> None:
        """Use a new configuration. If the lines or zones of a camera change, its current view becomes the reference.

        If a camera was reported as moved or covered, its next result contains the end of this state in two cases: the
        camera is no longer watched, or its current view has become the reference.
        """
        cameras, watched = {}, set(config.watched_views)
        for each in config.cameras:
            if each.id in watched:
                section = config.analytics.get(each.id, CameraAnalytics())
                cameras[each.id] = self._configured(each.id, section, config.report_after(each))
        present = {each.id for each in config.cameras}
        for camera_id in self._cameras.keys() - cameras.keys():
            self._follow(camera_id, None, held=False)
            told = self._cameras[camera_id].told
            if told is not None and camera_id in present:  # the publisher ends the states of removed cameras
                self._ending[camera_id] = told.reported
        self._cameras = cameras

    def _configured(self, camera_id: str, section: CameraAnalytics, patience: ReportAfter) -> _Camera:
        """Return the state of a camera under new settings. If lines or zones have changed, return a new state.

        `patience` contains the time that a fault must last before it is reported.
        """
        known, key = self._cameras.get(camera_id), geometry_key(section)
        stores = section.realign or bool(section.lines or section.zones or section.ground)
        new = _Camera(key, section.realign, stores, patience)
        if known is None:
            return new
        told = None if known.told is None else known.told._replace(view=_UNSEEN.view, is_learned=False)
        if known.key != key:
            new.told = told
            if displacement(known.seen.view) > 0:
                log.warning("camera %s: its lines and zones now refer to its present view", camera_id)
            return new
        if known.realigns != section.realign:
            self._follow(camera_id, None, held=False)
            known.told = told
        known.realigns, known.stores, known.patience = section.realign, stores, patience
        return known

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Copy the frame for the thread if a comparison is due. Add events to the result if the view has changed.

        Raises:
            VisionError: the thread has failed.
        """
        self._worker.check()
        camera_id = result.meta.camera_id
        events: list[Event] = []
        if self._ending and (fault := self._ending.pop(camera_id, "")):
            events.append(_event(f"camera_{fault}", result, {"phase": "end"}))
        camera = self._cameras.get(camera_id)
        if camera is not None:
            if result.meta.captured_ns >= camera.due_ns and self._worker.add(frame, result):
                camera.due_ns = result.meta.captured_ns + int(INTERVAL_S * 1e9)
            if (seen := camera.seen) is not camera.told:
                events += self._changes(result, camera, seen)
                camera.told = seen
        return replace(result, events=(*result.events, *events)) if events else result

    def progress(self) -> Mapping[str, object]:
        """Return, by thread name, the number of compared frames, or None if no frame waits."""
        return {"views": self._worker.progress()}

    def counters(self) -> Mapping[str, int]:
        """Return how often lines and zones were moved, and for how many cameras counting is currently paused."""
        held = sum(camera.realigns and camera.seen.held for camera in self._cameras.values())
        return {"views.realigned": self._realigned, "views.held": held}

    def close(self) -> None:
        """Compare the frames that wait, and stop the thread. Wait at most one second for the thread."""
        self._worker.finish()
        self._worker.join(_STOP_S)

    def _follow(self, camera_id: str, view: Similarity | None, *, held: bool) -> None:
        if self._analytics is not None:
            self._analytics.follow(camera_id, view, hold=held)

    def _changes(self, result: Result, camera: _Camera, seen: _Seen) -> Iterator[Event]:
        """Pass the new findings about a camera, `seen`, to the analytics stage.

        Yield an event if the camera now counts, or no longer counts, as moved or covered, or if its lines were moved.
        """
        told = camera.told or _UNSEEN
        if camera.realigns:
            self._follow(result.meta.camera_id, seen.view, held=seen.held)
        if told.reported and seen.reported != told.reported:
            yield _event(f"camera_{told.reported}", result, {"phase": "end"})
        if seen.reported and seen.reported != told.reported:
            is_known = not seen.held and displacement(seen.view) > 0
            where = _described(seen.view, result.meta.width_px) if is_known else {}
            yield _event(f"camera_{seen.reported}", result, {"phase": "begin", **where})
        if camera.realigns and told.is_learned and displacement(seen.view, told.view) > 0:
            self._realigned += 1
            yield _event(
                "camera_realigned", result, {"phase": "instant", **_described(seen.view, result.meta.width_px)}
            )

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _compare(self, copies: Iterator[tuple[Frame, Result]]) -> None:
        for frame, result in copies:
            camera_id, now_s = result.meta.camera_id, result.meta.captured_ns / 1e9
            camera = self._cameras.get(camera_id)
            if camera is None:
                continue
            if camera.tracker is None:
                camera.tracker = self._opened(camera_id, camera)
            tracker = camera.tracker
            tracker.update(view_image(luma(frame), result.objects.boxes_xyxy), now_s)
            if tracker.changes != camera.saved or displacement(tracker.view, camera.seen.view) > 0:
                camera.saved = tracker.changes
                self._save(camera_id, camera, tracker)
            held = tracker.state in _FAULTS
            seen = _Seen(tracker.view, held, tracker.state != "learning", _reported(camera, tracker, now_s))
            if seen.view is not camera.seen.view or seen[1:] != camera.seen[1:]:
                camera.seen = seen

    def _opened(self, camera_id: str, camera: _Camera) -> ViewTracker:
        if self._folder is None or not camera.stores:
            return ViewTracker()
        path = self._folder / f"{camera_id}.npz"
        try:
            contents = read_checked(path)
            return ViewTracker() if contents is None else loaded(contents, camera.key)
        except (VisionError, OSError, ValueError, KeyError) as error:
            log.warning("camera %s: its stored view cannot be used and is learned again: %s", camera_id, error)
            return ViewTracker()

    def _save(self, camera_id: str, camera: _Camera, tracker: ViewTracker) -> None:
        if self._folder is None or not camera.stores:
            return
        try:
            write_checked(self._folder / f"{camera_id}.npz", saved(tracker, camera.key))
        except (VisionError, OSError) as error:
            log.warning("camera %s: cannot store its view: %s", camera_id, error)


def _reported(camera: _Camera, tracker: ViewTracker, now_s: float) -> _Fault:
    """Return "moved" or "covered" if at `now_s` (seconds) the camera was so for the configured time. Otherwise, ""."""
    if camera.examined_s is None or now_s - camera.examined_s > _GAP_S:
        camera.found_s = now_s
    camera.examined_s = now_s
    fault, reported = _fault(camera, tracker), camera.seen.reported
    if not fault:
        if tracker.state != "unsure":
            camera.found_s = now_s
        return ""
    patience_s = camera.patience.moved if fault == "moved" else camera.patience.covered
    if patience_s is None:
        return ""
    return fault if fault == reported or now_s - camera.found_s >= patience_s else reported


def _fault(camera: _Camera, tracker: ViewTracker) -> _Fault:
    if tracker.state in _FAULTS:
        return _FAULTS[tracker.state]
    if camera.realigns:
        return ""
    if camera.seen.reported == "moved":
        return "moved" if displacement(tracker.view) > _RETURNED else ""
    return "moved" if tracker.state == "aligned" and displacement(tracker.view) > _DISPLACED else ""


def luma(frame: Frame) -> Image:
    """Return the brightness of the pixels, (H, W). For color formats, this is the green channel."""
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
    """Return the contents of a file that stores what a tracker has learned: the camera's backgrounds and its view.

    `key` is the `geometry_key` of the lines and zones. The format of the file is .npz.
    """
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
    """Return the tracker from a file that `saved` wrote.

    If `key` differs from the key in the file, return a new tracker.

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
