"""`CrowdDetector`: zones that have held more objects than their threshold for long enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vision.config.analytics import ZoneConfig

_CLOCK_GRAIN_S: Final = 1e-3  # capture times are no more exact than this


@dataclass(slots=True)
class _Crowd:
    """One zone with a threshold."""

    above: int
    for_s: float
    is_crowded: bool = False
    change_since_s: float | None = None  # since when the state has differed from `is_crowded`
    from_s: float = 0.0
    most: int = 0


class CrowdDetector:
    """Detects the begin and end of crowding, each after `crowded_for_s` without a break."""

    def __init__(self, zones: Sequence[ZoneConfig]) -> None:
        self.occupants = [0] * len(zones)  # of each zone
        self._crowds = {
            zone: _Crowd(config.crowd_threshold, config.crowded_for_s)
            for zone, config in enumerate(zones)
            if config.crowd_threshold is not None
        }

    def update(self, now_s: float, *, unobserved: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield zone and data of each event.

        Args:
            unobserved: the camera was away for so long that no state has lasted.
        """
        for zone, crowd in self._crowds.items():
            occupants = self.occupants[zone]
            if crowd.is_crowded:
                crowd.most = max(crowd.most, occupants)
            if (occupants > crowd.above) is crowd.is_crowded:
                crowd.change_since_s = None
                continue
            if unobserved or crowd.change_since_s is None:
                crowd.change_since_s = now_s
            if now_s - crowd.change_since_s < crowd.for_s - _CLOCK_GRAIN_S:
                continue
            if crowd.is_crowded:
                yield zone, self._end(zone, crowd, now_s)
            else:
                crowd.is_crowded, crowd.from_s, crowd.most = True, crowd.change_since_s, occupants
                yield zone, {"phase": "begin", "occupancy": occupants, "above": crowd.above}
            crowd.change_since_s = None

    def end(self, now_s: float) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """End every crowd now. Yield zone and data of each event."""
        for zone, crowd in self._crowds.items():
            if crowd.is_crowded:
                yield zone, self._end(zone, crowd, now_s)

    def _end(self, zone: int, crowd: _Crowd, now_s: float) -> Mapping[str, Any]:
        crowd.is_crowded = False
        return {
            "phase": "end",
            "occupancy": self.occupants[zone],
            "above": crowd.above,
            "most": crowd.most,
            "lasted_s": round(now_s - crowd.from_s, 3),
        }
