"""Summaries of many durations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

FEWEST_FOR_P99: Final = 200
"""With fewer samples p99 is the slowest one or nearly so, and does not repeat."""

_P99_SPREAD: Final = 2.5 * math.sqrt(0.99 * 0.01)  # 2.5 standard errors of the part below p99, for one sample
_PARTS: Final = 10


@dataclass(frozen=True, slots=True)
class Durations:
    """Statistics of `count` durations, milliseconds. All 0 without samples."""

    count: int
    mean_ms: float
    std_ms: float
    min_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    p99_low_ms: float | None = None  # confidence limits of p99; None: not known
    p99_high_ms: float | None = None

    @staticmethod
    def of(durations_ns: Sequence[int], independent: int | None = None) -> Durations:
        """Return exact statistics. Each percentile is one of the samples.

        Args:
            independent: number of independent samples; all of them if None.
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
        """True if there are enough samples for `p99_ms`."""
        return self.count >= FEWEST_FOR_P99


def relative_error(parts: Sequence[float]) -> float | None:
    """Return the relative standard error of a mean, or of the rate that is its inverse; None for fewer than two parts.

    Args:
        parts: duration or size of each of several equal pieces of work, in order. If there are many, neighbours are
            added up, because what slows one often slows the next.
    """
    together = max(1, len(parts) // _PARTS)
    whole = len(parts) // together
    sums = np.asarray(parts[: whole * together], np.float64).reshape(whole, together).sum(axis=1)
    if whole < 2 or not sums.any():
        return None
    return float(sums.std(ddof=1) / sums.mean() / math.sqrt(whole))
