"""Many durations in ten numbers, and back to durations: what a row of a benchmark keeps of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

FEWEST_FOR_P99: Final = 200
"""Of fewer samples p99 is the slowest one or nearly so: what happened once, and nothing that comes again."""

_KNOWN_AT: Final = (0.0, 0.5, 0.95, 0.99, 1.0)
_P99_SPREAD: Final = 2.5 * math.sqrt(0.99 * 0.01)  # 2.5 standard errors of the part that is below p99, of one sample
_PARTS: Final = 10


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
    p99_low_ms: float | None = None  # so low and so high it may well be by chance; None: not known
    p99_high_ms: float | None = None

    @staticmethod
    def of(durations_ns: Sequence[int], independent: int | None = None) -> Durations:
        """Exact: every sample counts. Percentiles are samples, never between two of them.

        Args:
            independent: how many of them have nothing to do with each other; all where None.
        """
        if not durations_ns:
            return Durations(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        ms = np.sort(np.asarray(durations_ns, np.float64)) / 1e6
        spread = _P99_SPREAD / math.sqrt(independent or len(ms))
        parts = (0.5, 0.95, 0.99, max(0.0, 0.99 - spread), min(1.0, 0.99 + spread))
        p50, p95, p99, low, high = (float(np.quantile(ms, part, method="inverted_cdf")) for part in parts)
        return Durations(
            len(ms), float(ms.mean()), float(ms.std()), float(ms[0]), p50, p95, p99, float(ms[-1]), low, high
        )

    @property
    def has_p99(self) -> bool:
        """Whether there are enough samples for `p99_ms` to mean something."""
        return self.count >= FEWEST_FOR_P99

    @staticmethod
    def constant(ms: float) -> Durations:
        """Something that always takes the same time."""
        return Durations(1, ms, 0.0, ms, ms, ms, ms, ms)

    def quantile_ms(self, part: float) -> float:
        """About the duration that `part` (0 to 1) of all stay below: straight lines between what is known."""
        known = (self.min_ms, self.p50_ms, self.p95_ms, self.p99_ms, self.max_ms)
        return float(np.interp(part, _KNOWN_AT, known))


def relative_error(parts: Sequence[float]) -> float | None:
    """Relative standard error of a mean, or of the rate that is one over it; None of fewer than two parts.

    Args:
        parts: how long, or how much, each of several like pieces of work was, in their order. Neighbours are taken
            together where there are many, since what slows one often slows the next too.
    """
    together = max(1, len(parts) // _PARTS)
    whole = len(parts) // together
    sums = np.asarray(parts[: whole * together], np.float64).reshape(whole, together).sum(axis=1)
    if whole < 2 or not sums.any():
        return None
    return float(sums.std(ddof=1) / sums.mean() / math.sqrt(whole))
