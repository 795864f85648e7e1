"""`AnalyticsStage`: tracks become events and counts.

`Analytics` knows one camera and one frame size. The stage keeps one for each camera and restarts it with each epoch:
after a reconnection the frame may show something else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vision.analytics.camera_analytics import Analytics
from vision.config.analytics import CameraAnalytics, pixels_per_unit
from vision.state.database import StateDatabase
from vision.types import Counts, Event, FrameMeta, Result, Tracks

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Watched:
    """One camera's analytics and its counts so far."""

    analytics: Analytics
    epoch: int
    frame_size: tuple[int, int]
    counts: Counts


class AnalyticsStage:
    """Tracks become events and counts, on every camera with lines or zones.

    With a `state`, counters continue after a restart. Without one they start at 0.
    """

    def __init__(
        self,
        sections: Mapping[str, CameraAnalytics],
        class_names: Sequence[str],
        *,
        forget_s: float = 1.5,
        state: StateDatabase | None = None,
    ) -> None:
        """
        Args:
            sections: `analytics:` of camera.yaml, by camera id.
            class_names: classes of the model, by class id; `sections` names only classes among them.
            forget_s: seconds after which an object that is no longer detected has left; the tracker's `lost_s`.
            state: stores the counters; the caller closes it.
        """
        self._sections = dict(sections)
        self._class_names = tuple(class_names)
        self._forget_s = forget_s
        self._cameras: dict[str, _Watched] = {}
        self._state = state

    def __call__(self, result: Result) -> Result:
        if result.meta.camera_id not in self._sections:
            return result
        if not isinstance(result.objects, Tracks):
            raise TypeError(f"expected tracks, got {type(result.objects).__name__}: add a TrackStage before")
        watched, events = self._watched(result.meta)
        events += watched.analytics.update(result.objects, result.meta.captured_ns)
        if events:
            watched.counts = watched.analytics.counts()
        return replace(result, events=result.events + events, counts=watched.counts)

    def _watched(self, meta: FrameMeta) -> tuple[_Watched, tuple[Event, ...]]:
        """Return the analytics of a camera, started or restarted for a new epoch, and the ends of its states."""
        watched = self._cameras.get(meta.camera_id)
        if watched is not None and watched.epoch == meta.epoch:
            return watched, ()
        size = meta.width_px, meta.height_px
        events: tuple[Event, ...] = ()
        if watched is not None:
            events = watched.analytics.restart(*size, meta.captured_ns)
        if watched is None or watched.frame_size != size:
            self._warn_outside(meta.camera_id, size)
        analytics = self._open(meta.camera_id, size) if watched is None else watched.analytics
        watched = self._cameras[meta.camera_id] = _Watched(analytics, meta.epoch, size, analytics.counts())
        return watched, events

    def _open(self, camera_id: str, size: tuple[int, int]) -> Analytics:
        return Analytics(
            self._sections[camera_id],
            camera_id,
            self._class_names,
            *size,
            forget_s=self._forget_s,
            counters=self._state.counters(camera_id) if self._state is not None else None,
        )

    def _warn_outside(self, camera_id: str, size: tuple[int, int]) -> None:
        if outside := shapes_outside(self._sections[camera_id], *size):
            log.warning(
                "camera %s: completely outside its frame of %dx%d, so nothing is counted there: %s; see `vision draw`",
                camera_id,
                *size,
                ", ".join(outside),
            )


def shapes_outside(section: CameraAnalytics, width_px: int, height_px: int) -> list[str]:
    """Return the names of lines and zones with no part in the frame, as if configured for another resolution."""
    scale_x, scale_y = pixels_per_unit(section.units, width_px, height_px)
    corners: list[tuple[str, Sequence[tuple[float, float]]]] = [(line.name, line.points) for line in section.lines]
    corners += [(zone.name, zone.polygon) for zone in section.zones]
    return [
        name
        for name, points in corners
        if min(x for x, _ in points) * scale_x >= width_px or min(y for _, y in points) * scale_y >= height_px
    ]
