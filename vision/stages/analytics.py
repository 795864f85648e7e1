"""`AnalyticsStage`: tracks become events and counts.

`Analytics` knows one camera and one frame size. The stage keeps one for each camera and restarts it with each epoch:
after a reconnection the frame may show something else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vision.analytics.camera_analytics import Analytics
from vision.config.analytics import CameraAnalytics
from vision.state.database import StateDatabase
from vision.types import Counts, Event, FrameMeta, Result, Tracks

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Watched:
    """One camera's analytics and its counts so far."""

    analytics: Analytics
    config: CameraAnalytics
    epoch: int
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.count()

    def count(self) -> None:
        counted, of_line = self.analytics.counts(), {line.name for line in self.config.lines}
        self.counts = Counts(
            {name: counts for name, counts in counted.items() if name in of_line},
            {name: counts for name, counts in counted.items() if name not in of_line},
            self.analytics.occupancy(),
        )


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
            watched.count()
        return replace(result, events=result.events + events, counts=watched.counts)

    def _watched(self, meta: FrameMeta) -> tuple[_Watched, tuple[Event, ...]]:
        """Return the analytics of a camera, started or restarted for a new epoch, and the ends of its states."""
        watched = self._cameras.get(meta.camera_id)
        if watched is not None and watched.epoch == meta.epoch:
            return watched, ()
        size, before = (meta.width_px, meta.height_px), (0, 0)
        events: tuple[Event, ...] = ()
        if watched is None:
            watched = self._cameras[meta.camera_id] = self._begin(meta)
        else:
            before = watched.analytics.frame_size
            watched.epoch = meta.epoch
            events = watched.analytics.restart(*size, meta.captured_ns)
        if watched.analytics.outside and before != size:
            log.warning(
                "camera %s: completely outside its frame of %dx%d, so nothing is counted there: %s; see `vision draw`",
                meta.camera_id,
                meta.width_px,
                meta.height_px,
                ", ".join(watched.analytics.outside),
            )
        return watched, events

    def _begin(self, meta: FrameMeta) -> _Watched:
        camera_id = meta.camera_id
        config = self._sections[camera_id]
        analytics = Analytics(
            config,
            camera_id,
            self._class_names,
            meta.width_px,
            meta.height_px,
            forget_s=self._forget_s,
            counters=self._state.counters(camera_id) if self._state is not None else None,
        )
        return _Watched(analytics, config, meta.epoch)
