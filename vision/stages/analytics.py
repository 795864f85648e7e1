"""`AnalyticsStage`: tracks become events and counts.

`Analytics` knows one camera and one frame size. The stage keeps one for each camera and restarts it with each epoch:
after a reconnection the frame may show something else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from vision.analytics.camera_analytics import Analytics
from vision.config.analytics import CameraAnalytics
from vision.state.background_flusher import BackgroundFlusher
from vision.state.counters import CounterJournal
from vision.types import Counts, Event, FrameMeta, Result, Tracks

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Watched:
    """One camera's analytics, with what it has counted so far."""

    analytics: Analytics
    config: CameraAnalytics
    epoch: int | None = None
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
    """Tracks become events and counts, with lines and zones for each camera that has some.

    Counters live on in a file for each camera below `folder`, and in memory alone where there is none.

    Raises:
        ConfigError: a class that the model does not have, or a folder that cannot be used.
    """

    def __init__(
        self,
        sections: Mapping[str, CameraAnalytics],
        class_names: Sequence[str],
        *,
        forget_s: float = 1.5,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            sections: `analytics:` of camera.yaml, by camera id.
            class_names: the model's, by class id.
            forget_s: seconds after which an object that is no longer seen has left; the tracker's `lost_s`.
        """
        self._cameras: dict[str, _Watched] = {}
        with ExitStack() as opened:
            self._journals = opened
            forcer = (
                None if folder is None else opened.enter_context(closing(BackgroundFlusher()))
            )  # closed after the journals
            for camera_id, config in sections.items():
                journal = None
                if folder is not None:
                    journal = CounterJournal(folder / f"{camera_id}.counters", forcer=forcer)
                    opened.callback(journal.close)
                # The size of the frame is known with the first one; wrong class names are found now.
                analytics = Analytics(config, camera_id, class_names, 1, 1, forget_s=forget_s, journal=journal)
                self._cameras[camera_id] = _Watched(analytics, config)
            self._journals = opened.pop_all()

    def __call__(self, result: Result) -> Result:
        watched = self._cameras.get(result.meta.camera_id)
        if watched is None:
            return result
        if not isinstance(result.objects, Tracks):
            raise TypeError(f"expected tracks to watch, got {type(result.objects).__name__}: is a TrackStage before?")
        events: tuple[Event, ...] = ()
        if watched.epoch != result.meta.epoch:
            events = self._restart(watched, result.meta)
        events += watched.analytics.update(result.objects, result.meta.captured_ns)
        if events:
            watched.count()
        return replace(result, events=result.events + events, counts=watched.counts)

    def close(self) -> None:
        """Write what counters have counted. May be called twice."""
        self._journals.close()

    @staticmethod
    def _restart(watched: _Watched, meta: FrameMeta) -> tuple[Event, ...]:
        analytics, before = watched.analytics, (watched.analytics.width_px, watched.analytics.height_px)
        watched.epoch = meta.epoch
        events = analytics.restart(meta.width_px, meta.height_px, meta.captured_ns)
        if analytics.outside and before != (meta.width_px, meta.height_px):
            log.warning(
                "camera %s: outside of its frame of %dx%d, and so never reached: %s; `vision draw` shows where",
                meta.camera_id,
                meta.width_px,
                meta.height_px,
                ", ".join(analytics.outside),
            )
        return events
