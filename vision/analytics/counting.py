"""`ShapeCounters`: how often each line and zone of a camera was crossed, entered and left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from vision.config.analytics import CameraAnalytics
from vision.state.counters import CameraCounters

Counts: TypeAlias = dict[str, int]


class ShapeCounters:
    """Counters by line and zone: in total and, as ``in:person``, by class."""

    def __init__(self, config: CameraAnalytics, stored: CameraCounters | None = None) -> None:
        """
        Args:
            stored: stores the counters and has their values at the start. None: they start at 0.
        """
        self._stored = stored
        self._counts: dict[str, Counts] = {line.name: {"in": 0, "out": 0} for line in config.lines}
        self._counts |= {zone.name: {"entered": 0, "left": 0} for zone in config.zones}
        if stored is not None:
            for (name, key), value in stored.counts().items():
                if key.partition(":")[0] in self._counts.get(name, ()):
                    self._counts[name][key] = value

    def add(self, name: str, key: str, class_name: str) -> Counts:
        """Count one object. Return the counters of the line or zone."""
        counts = self._counts[name]
        keys = (key, f"{key}:{class_name}")
        for each_key in keys:
            counts[each_key] = counts.get(each_key, 0) + 1
        if self._stored is not None:
            self._stored.add(name, keys)
        return counts

    def flush(self) -> None:
        """Store what was counted since the last call."""
        if self._stored is not None:
            self._stored.flush()

    def snapshot(self) -> Mapping[str, Mapping[str, int]]:
        """Return a copy of all counters by line or zone and key."""
        return {name: dict(counts) for name, counts in self._counts.items()}
