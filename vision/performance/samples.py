"""Many durations in eight numbers, and back to durations: what a row of a benchmark keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_KNOWN_AT: Final = (0.0, 0.5, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Durations:
    """Of one thing done `count` times, milliseconds. All 0 where it was never done."""

    count: int
    mean_ms: float
    std_ms: float
    min_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @staticmethod
    def of(durations_ns: Sequence[int]) -> Durations:
        """Exact: every sample counts. Percentiles are samples, never between two of them."""
        if not durations_ns:
            return Durations(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        ms = np.sort(np.asarray(durations_ns, np.float64)) / 1e6
        p50, p95, p99 = (float(np.quantile(ms, q, method="inverted_cdf")) for q in (0.5, 0.95, 0.99))
        return Durations(len(ms), float(ms.mean()), float(ms.std()), float(ms[0]), p50, p95, p99, float(ms[-1]))

    @staticmethod
    def constant(ms: float) -> Durations:
        """Something that always takes the same time."""
        return Durations(1, ms, 0.0, ms, ms, ms, ms, ms)

    def quantile_ms(self, part: float) -> float:
        """About the duration that `part` (0 to 1) of all stay below: straight lines between what is known."""
        known = (self.min_ms, self.p50_ms, self.p95_ms, self.p99_ms, self.max_ms)
        return float(np.interp(part, _KNOWN_AT, known))
