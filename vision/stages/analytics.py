"""`TrackStage` turns detections into tracks. `AnalyticsStage` turns tracks into events and counts.

Each stage has one `Tracker` or `Analytics` object for each camera. The stage restarts this object at the start of each
epoch, because the camera can show a different scene after a reconnection.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from msgspec import structs

from vision.analytics.camera_analytics import Analytics
from vision.analytics.camera_view import Similarity, displacement, in_pixels, moved
from vision.analytics.class_groups import DEFAULT_GROUPS, ClassGroups
from vision.analytics.count_accuracy import CountAccuracy, load_clips
from vision.analytics.reset_schedule import ResetSchedule
from vision.analytics.tracker import Tracker, update_together
from vision.config import AppConfig, TrackConfig
from vision.config.analytics import CameraAnalytics, pixels_per_unit
from vision.stages.hidden_objects import HiddenObjects
from vision.state.counters import HasCameraCounters
from vision.types import Counts, Detections, Event, FrameMeta, Result, Tracks

log = logging.getLogger(__name__)


_Analytics = TypeVar("_Analytics", bound=Analytics)


class TrackStage:
    """Stage that turns detections into tracks, with a new tracker for each camera and epoch.

    A detection starts a track if its score reaches both `score` (`detect.score_threshold` in camera.yaml) and
    `TrackConfig.new_score`. After that, detections with lower scores can extend the track. Therefore, the detector must
    report detections down to `detector_score`.

    Args:
        config: settings of the trackers. If None, the defaults are used.
        score: minimum score of a detection that starts a track. If `TrackConfig.new_score` is higher, it applies
            instead.
        class_names: classes of the model, by class id. The groups of `TrackConfig.class_groups` refer to these classes.
        camera_ids: ids of all cameras of the program. Each of these cameras has its own track ids, which depend only on
            this camera, and which no other camera uses. If empty, all trackers of the process share one sequence of
            ids.
    """

    def __init__(
        self,
        config: TrackConfig | None = None,
        *,
        score: float = 0.0,
        class_names: Sequence[str] = (),
        camera_ids: Sequence[str] = (),
    ) -> None:
        config = config or TrackConfig()
        groups = DEFAULT_GROUPS if config.class_groups is None else config.class_groups
        self._groups = ClassGroups(class_names, groups)
        self._hidden: dict[str, HiddenObjects] = {}
        self._trackers: dict[str, tuple[int, Tracker]] = {}
        self._ids = {camera: _TrackIds(number, len(camera_ids)) for number, camera in enumerate(camera_ids, 1)}
        self._has_ids = bool(camera_ids)  # also while there is no camera
        self._reached = 0  # upper limit of the ids of removed cameras
        self._configure(config, score)

    def _configure(self, config: TrackConfig, score: float) -> None:
        self.detector_score = min(score, config.low_score)
        self._config = config.model_copy(update={"new_score": max(score, config.new_score)})
        self._least_score = min(score, config.high_score)
        self._score_key = "detect.score_threshold" if score > config.new_score else "track.new_score"

    def reconfigure(self, config: AppConfig) -> None:
        """Use new settings. The tracks continue, except the tracks of cameras that `config` no longer contains."""
        self._configure(config.track, config.detect.score_threshold)
        cameras = [camera.id for camera in config.cameras]
        self._trackers = {camera: each for camera, each in self._trackers.items() if camera in cameras}
        self._hidden = {camera: self._hidden_objects() for camera in self._trackers}
        for _, tracker in self._trackers.values():
            tracker.config = self._config
        if self._has_ids:
            self._number(cameras)

    def _number(self, cameras: Sequence[str]) -> None:
        """Assign a sequence of track ids to each camera, so that no two cameras have an id in common.

        If a camera is new, redistribute all ids above the highest assigned id among the cameras.
        """
        self._reached = max([self._reached, *(ids.reached for ids in self._ids.values())])
        is_new = not self._ids.keys() >= set(cameras)
        self._ids = {camera: self._ids.get(camera) or _TrackIds(1, 1) for camera in cameras}
        if is_new:
            for first, camera in enumerate(cameras, 1):
                self._ids[camera].divide(first, len(cameras), self._reached)

    def _hidden_objects(self) -> HiddenObjects:
        return HiddenObjects(self._least_score, self._config.new_score, self._score_key)

    def last_ids(self) -> dict[str, int]:
        """Return, by camera id, an upper limit of the track ids that the camera has used, or 0 if it has used none."""
        return {camera: ids.last for camera, ids in self._ids.items()}

    def continue_after(self, last_ids: Mapping[str, int]) -> None:
        """Give new tracks of each camera higher ids than a previous process did. Call this before the first frame.

        `last_ids` contains the result of the method `last_ids` in the previous process.
        """
        for camera, last in last_ids.items():
            self._ids[camera].skip(last)

    def __call__(self, result: Result) -> Result:
        return self.process_together([result])[0]

    def process_together(self, results: Sequence[Result]) -> list[Result]:
        """Track the objects of several cameras. Return the results with tracks, in the same order.

        Raises:
            TypeError: the objects of a result are not detections, for example because a different `TrackStage` has
                already tracked them.
        """
        tracked = update_together([self._frame(result) for result in results])
        return [structs.replace(result, objects=tracks) for result, tracks in zip(results, tracked, strict=True)]

    def _frame(self, result: Result) -> tuple[Tracker, Detections, int]:
        """Return the tracker of the camera, and the detections and the capture time of the frame."""
        if not isinstance(result.objects, Detections):
            raise TypeError(f"expected detections, got {type(result.objects).__name__}: use only one TrackStage")
        meta, detections = result.meta, result.objects
        tracker = self._tracker(meta)
        hidden = self._hidden[meta.camera_id]
        if not hidden.done:
            hidden.update(detections, meta)
        return tracker, detections, meta.captured_ns

    def _tracker(self, meta: FrameMeta) -> Tracker:
        epoch, tracker = self._trackers.get(meta.camera_id, (None, None))
        if tracker is None or epoch != meta.epoch:
            ids = self._ids.get(meta.camera_id)
            tracker = Tracker(self._config, (meta.width_px, meta.height_px), self._groups, ids)
            self._hidden.setdefault(meta.camera_id, self._hidden_objects())
        self._trackers[meta.camera_id] = meta.epoch, tracker
        return tracker


class _TrackIds(Iterator[int]):
    """Iterator over the track ids of one camera: `first`, `first + step`, `first + 2 * step`, ..."""

    def __init__(self, first: int, step: int) -> None:
        self.last = 0
        self._next, self._step = first, step

    def __next__(self) -> int:
        self.last, self._next = self._next, self._next + self._step
        return self.last

    @property
    def reached(self) -> int:
        """An upper limit of the ids that were assigned."""
        return self._next - 1

    def divide(self, first: int, step: int, after: int) -> None:
        """Continue with the ids above `after` in the sequence `first`, `first + step`, `first + 2 * step`, ..."""
        self._next, self._step = first, step
        self.skip(after)

    def skip(self, last: int) -> None:
        """Skip all track ids up to and including `last`."""
        self.last = max(self.last, last)
        self._next += max(0, last - self._next + self._step) // self._step * self._step


@dataclass(slots=True)
class _Watched:
    """The `Analytics` object of one camera, and the camera's current counts."""

    analytics: Analytics
    epoch: int
    frame_size: tuple[int, int]
    counts: Counts
    resets: ResetSchedule


class AnalyticsStage:
    """Stage that turns tracks into events and counts, for every camera that has lines or zones."""

    def __init__(
        self,
        sections: Mapping[str, CameraAnalytics],
        class_names: Sequence[str],
        *,
        forget_s: float = 1.5,
        state: HasCameraCounters | None = None,
        resets: bool = True,
    ) -> None:
        """Create the stage.

        Args:
            sections: configuration of each camera that has lines or zones, by camera id.
            class_names: class names of the model, by class id. `sections` must use only these names.
            forget_s: time in seconds after which an undetected object counts as gone. Pass the tracker's `lost_s`.
            state: source of counters that continue after a restart. If None, the counters start at 0.
            resets: if True, reset the counters at the times in `CameraAnalytics.reset_at`.

        Raises:
            ConfigError: an accuracy file is missing or invalid.
            Unavailable: an accuracy file cannot be read at present, for example because the disk fails.
        """
        self._sections = dict(sections)
        self._class_names = tuple(class_names)
        self._forget_s = forget_s
        self._cameras: dict[str, _Watched] = {}
        self._accuracy = open_accuracy(self._sections)
        self._state = state
        self._resets = resets
        self._outdated: set[str] = set()  # cameras whose analytics have an earlier configuration
        self._views: dict[str, Similarity] = {}  # of cameras that were moved
        self._held: set[str] = set()

    def follow(self, camera_id: str, view: Similarity | None, *, hold: bool) -> None:
        """Move the lines and zones of a camera by `view`, the movement of its image, from the next frame on.

        If `hold` is True, count nothing until the next call. If `view` is None, return the lines and zones to their
        configured positions.
        """
        (self._held.add if hold else self._held.discard)(camera_id)
        known = self._views.get(camera_id)
        if view is None or displacement(view) == 0:
            self._views.pop(camera_id, None)
        else:
            self._views[camera_id] = view
        if self._views.get(camera_id) is not known and camera_id in self._cameras:
            self._outdated.add(camera_id)

    def section(self, camera_id: str, width_px: int, height_px: int) -> CameraAnalytics | None:
        """Return the configuration of a camera, with lines and zones at their positions in the current view.

        Return None if the camera has neither lines nor zones. `width_px` and `height_px` are the size of the frame.
        """
        section, view = self._sections.get(camera_id), self._views.get(camera_id)
        return section if section is None or view is None else moved(section, view, width_px, height_px)

    def reconfigure(self, config: AppConfig) -> None:
        """Use new lines, zones, and settings. Unchanged lines and zones keep their state (`Analytics.reconfigure`).

        Raises:
            ConfigError: an accuracy file is missing or invalid.
            Unavailable: an accuracy file cannot be read at present, for example because the disk fails.
        """
        self._accuracy = open_accuracy(config.analytics)
        self._sections, self._forget_s = dict(config.analytics), config.track.lost_s
        cameras = {camera.id for camera in config.cameras}
        self._cameras = {camera: watched for camera, watched in self._cameras.items() if camera in cameras}
        self._outdated = set(self._cameras)

    def __call__(self, result: Result) -> Result:
        events = self._update_outdated(result.meta) if result.meta.camera_id in self._outdated else ()
        if result.meta.camera_id not in self._sections:
            return structs.replace(result, events=result.events + events) if events else result
        if not isinstance(result.objects, Tracks):
            raise TypeError(f"expected tracks, got {type(result.objects).__name__}: add a TrackStage before this stage")
        watched, restarted = self._watched(result.meta)
        events += restarted
        period_s = watched.resets.starts_period(result.meta.captured_utc_ns)
        if period_s is not None:
            events += watched.analytics.start_period(period_s, result.meta.captured_ns)
        if result.meta.camera_id not in self._held:
            events += watched.analytics.update(result.objects, result.meta.captured_ns)
        if events:
            watched.counts = self._counts(result.meta.camera_id, watched.analytics, watched.frame_size)
        return structs.replace(result, events=result.events + events, counts=watched.counts)

    def _update_outdated(self, meta: FrameMeta) -> tuple[Event, ...]:
        """Apply the current configuration and view to the analytics of a camera.

        Return the events that this change causes.
        """
        camera_id = meta.camera_id
        self._outdated.remove(camera_id)
        watched = self._cameras[camera_id]
        section = self.section(camera_id, *watched.frame_size)
        events = watched.analytics.reconfigure(section or CameraAnalytics(), self._forget_s, meta.captured_ns)
        if section is None:
            del self._cameras[camera_id]
            return events
        watched.resets = self._schedule(camera_id, watched.analytics)
        watched.counts = self._counts(camera_id, watched.analytics, watched.frame_size)
        self._warn_outside(camera_id, watched.frame_size)
        return events

    def _schedule(self, camera_id: str, analytics: Analytics) -> ResetSchedule:
        return ResetSchedule(self._sections[camera_id].reset_at if self._resets else (), analytics.period_s)

    def _watched(self, meta: FrameMeta) -> tuple[_Watched, tuple[Event, ...]]:
        """Return the analytics of a camera, and the events that a restart causes.

        If necessary, create or restart the analytics.
        """
        watched = self._cameras.get(meta.camera_id)
        if watched is not None and watched.epoch == meta.epoch:
            return watched, ()
        size = meta.width_px, meta.height_px
        events: tuple[Event, ...] = ()
        if watched is not None:
            events = watched.analytics.restart(*size, meta.captured_ns)
        if watched is None or watched.frame_size != size:
            self._warn_outside(meta.camera_id, size)
            if watched is not None and meta.camera_id in self._views:
                self._outdated.add(meta.camera_id)
        if watched is None:
            analytics = self._open(meta.camera_id, size)
            resets = self._schedule(meta.camera_id, analytics)
        else:
            analytics, resets = watched.analytics, watched.resets
        counts = self._counts(meta.camera_id, analytics, size)
        watched = self._cameras[meta.camera_id] = _Watched(analytics, meta.epoch, size, counts, resets)
        return watched, events

    def _counts(self, camera_id: str, analytics: Analytics, frame_size: tuple[int, int]) -> Counts:
        counts, accuracy, view = analytics.counts(), self._accuracy.get(camera_id), self._views.get(camera_id)
        if view is not None:
            (xx, xy, dx), (yx, yy, dy) = in_pixels(view, frame_size[0]).round(6).tolist()
            counts = replace(counts, view=(xx, xy, dx, yx, yy, dy))
        if accuracy is None:
            return counts
        return replace(counts, intervals=accuracy.intervals({**counts.lines, **counts.zones}))

    def _open(self, camera_id: str, size: tuple[int, int]) -> Analytics:
        return self._new_analytics(Analytics, camera_id, size)

    def _new_analytics(self, kind: type[_Analytics], camera_id: str, size: tuple[int, int]) -> _Analytics:
        counters = self._state.counters(camera_id) if self._state is not None else None
        section, names = self.section(camera_id, *size), self._class_names
        assert section is not None
        return kind(section, camera_id, names, *size, forget_s=self._forget_s, counters=counters)

    def _warn_outside(self, camera_id: str, size: tuple[int, int]) -> None:
        if outside := ", ".join(shapes_outside(self._sections[camera_id], *size)):
            text = "camera %s: these lie entirely outside the frame of %dx%d and count nothing: %s; see `vision draw`"
            log.warning(text, camera_id, *size, outside)


def open_accuracy(sections: Mapping[str, CameraAnalytics]) -> dict[str, CountAccuracy]:
    """Load the accuracy file of each camera that has one. Return the fitted models by camera id.

    Raises:
        ConfigError: a file is missing or invalid.
        Unavailable: a file cannot be read at present, for example because the disk fails.
    """
    return {
        camera: CountAccuracy.of_clips(load_clips(Path(section.accuracy)).values())
        for camera, section in sections.items()
        if section.accuracy is not None
    }


def shapes_outside(section: CameraAnalytics, width_px: int, height_px: int) -> list[str]:
    """Return the names of the lines and zones that lie entirely to the right of or below the frame."""
    scale_x, scale_y = pixels_per_unit(section.units, width_px, height_px)
    corners: list[tuple[str, Sequence[tuple[float, float]]]] = [(line.name, line.points) for line in section.lines]
    corners += [(zone.name, zone.polygon) for zone in section.zones]
    return [
        name
        for name, points in corners
        if min(x for x, _ in points) * scale_x >= width_px or min(y for _, y in points) * scale_y >= height_px
    ]
