"""Histograms of activations over any number of frames, in constant memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BINS: Final = 4096
"""Number of bins on each side of 0."""


@dataclass(slots=True)
class Histogram:
    """Counts of the values of one tensor, in `BINS` bins on each side of 0.

    If a value exceeds the range, the range is doubled as often as needed, and neighboring bins are added up. Thus the
    largest value is always in the outer half, and the memory does not grow.
    """

    counts: NDArray[np.int64]
    """(2 * BINS,) counts of values from `-limit` to `limit`."""
    limit: float = 0.0
    """Largest absolute value of the range; 0 if all values so far are 0."""
    low: float = 0.0
    """Smallest value so far; 0 if no value is negative."""
    high: float = 0.0
    """Largest value so far; 0 if no value is positive."""

    @staticmethod
    def empty() -> Histogram:
        return Histogram(np.zeros(2 * BINS, np.int64))

    @property
    def largest(self) -> float:
        """Largest absolute value that was counted so far."""
        return max(-self.low, self.high)

    @property
    def bin_width(self) -> float:
        return self.limit / BINS

    def add(self, values: NDArray[Any]) -> bool:
        """Count the values of an array of any shape. If a value is not finite, count nothing, and return False."""
        flat = values.reshape(-1)
        if not flat.size:
            return True
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen()
        if not self.limit:
            self.counts[BINS] += flat.size
            return True
        bins = flat.astype(np.float32) * np.float32(BINS / self.limit)
        bins += np.float32(BINS)
        np.minimum(bins, np.float32(2 * BINS - 1), out=bins)
        self.counts += np.bincount(bins.astype(np.int32), minlength=2 * BINS)
        return True

    def _widen(self) -> None:
        """Widen the range of the bins until it includes the largest absolute value so far."""
        if not self.limit:
            self.limit = self.largest
        while self.limit < self.largest:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[BINS // 2 : BINS + BINS // 2] = merged
            self.limit *= 2

    def trimmed(self, most_bins: int = BINS) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return counts (B,) up to the largest absolute value on both sides of 0, and the edges of the bins (B + 1,).

        If a side has more than `most_bins` bins, neighboring bins are added up.
        """
        if not self.limit:
            return np.array([0, int(self.counts.sum())]), np.array([-1, 0, 1], np.float32)
        used = min(BINS, int(np.ceil(self.largest / self.bin_width)))
        together = -(-used // most_bins)
        half = -(-used // together)
        padded = np.zeros(2 * half * together, np.int64)
        extra = half * together - used
        padded[extra : extra + 2 * used] = self.counts[BINS - used : BINS + used]
        counts = padded.reshape(-1, together).sum(axis=1)
        edges = np.arange(-half, half + 1) * (self.bin_width * together)
        return counts, edges.astype(np.float32)

    def magnitudes(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the counts of absolute values (B,), and the edges of the bins (B + 1,), from 0 upward."""
        counts, edges = self.trimmed()
        half = len(counts) // 2
        return counts[half:] + counts[:half][::-1], edges[half:]
