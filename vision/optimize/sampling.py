"""Choice of the frames for calibration: spread over cameras, time, and brightness, without near-duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import numpy as np
from numpy.typing import NDArray

CELLS: Final = 24
"""Number of rows and of columns of the grid on which frames are compared."""

_SAME_LEVELS: Final = 2.0  # near-duplicates differ by at most this number of gray levels (of 255) in each cell
_BRIGHTNESS_LEVELS: Final = 32  # width of a group of similar brightness


@dataclass(frozen=True, slots=True)
class Candidate:
    """A frame of a camera that can be chosen for the calibration, described by the gray levels of its cells."""

    camera: str
    number: int
    """Number of the candidate, unique for its camera. Later candidates have larger numbers."""
    cells: NDArray[np.float32]
    """Mean gray levels (CELLS, CELLS), from 0 to 255."""

    @property
    def brightness(self) -> float:
        """Mean gray level of the frame, from 0 to 255."""
        return float(self.cells.mean())


def gray_cells(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean gray level of each cell of a grid on a BGR image (H, W, 3), as float32 (CELLS, CELLS)."""
    rows = np.linspace(0, image.shape[0], CELLS + 1).astype(int)[:-1]
    columns = np.linspace(0, image.shape[1], CELLS + 1).astype(int)[:-1]
    gray = image @ np.array([0.114, 0.587, 0.299], np.float32)
    sums = np.add.reduceat(np.add.reduceat(gray, rows, axis=0), columns, axis=1)
    heights = np.maximum(np.diff([*rows, image.shape[0]]), 1)
    widths = np.maximum(np.diff([*columns, image.shape[1]]), 1)
    return np.asarray(sums / np.outer(heights, widths), np.float32)


def is_near_duplicate(cells: NDArray[np.float32], others: Sequence[NDArray[np.float32]]) -> bool:
    """Return True if a frame differs from one of `others` by at most 2 gray levels in every cell."""
    return bool(others) and bool((np.abs(np.stack(others) - cells).max(axis=(1, 2)) <= _SAME_LEVELS).any())


def choose(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Choose up to `count` candidates, the same number from each group with the same camera and similar brightness.

    The chosen candidates of a group are spread over time. If a group has too few candidates, the other groups
    contribute more. The result is in the order of `candidates`.
    """
    groups: dict[tuple[str, int], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.camera, int(candidate.brightness // _BRIGHTNESS_LEVELS)].append(candidate)
    rounds = zip_longest(*(spread(group) for group in groups.values()))
    chosen = [candidate for turn in rounds for candidate in turn if candidate is not None][:count]
    taken = {(candidate.camera, candidate.number) for candidate in chosen}
    return [candidate for candidate in candidates if (candidate.camera, candidate.number) in taken]


def spread(group: Sequence[Candidate]) -> list[Candidate]:
    """Return all candidates in bit-reversed order. In this order, the first N are spread evenly, for every N."""
    bits = max(1, (len(group) - 1).bit_length())
    order = (int(f"{index:0{bits}b}"[::-1], 2) for index in range(1 << bits))
    return [group[index] for index in order if index < len(group)]
