"""`TrackTable`: the state of each object between two frames. `TrackSnapshot`: the objects of one frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, Points

_NO_ID: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class TrackSnapshot:
    """The M objects of one frame."""

    now_s: float
    rows: IndexArray  # (M,) in the track table, which still has the `points` of the frame before
    fresh: BoolArray | None  # (M,) True for new objects; None: no object is new
    points: Points  # (M, A) of each anchor
    distances: FloatArray  # (M, 2 L) signed, from each line, twice
    margin: FloatArray  # (M,) pixels by which a border must be passed


@dataclass(frozen=True, slots=True)
class TrackColumn:
    """One quantity: its dtype, its shape for one object, and its value for a new object."""

    dtype: DTypeLike
    shape: tuple[int, ...] = ()
    blank: float = 0

    def rows(self, number: int) -> NDArray[Any]:
        """Return the column of new objects, (number, *shape)."""
        return np.full((number, *self.shape), self.blank, self.dtype)


class TrackTable(dict[str, NDArray[Any]]):
    """Columns by name, with one row per track, in ascending order of ids."""

    def __init__(self, columns: Mapping[str, TrackColumn]) -> None:
        super().__init__({name: column.rows(0) for name, column in columns.items()})
        self._kinds = columns
        # One more than there are tracks, so that every search finds a row.
        self._ids: NDArray[np.int64] = np.array([_NO_ID])

    @property
    def ids(self) -> NDArray[np.int64]:
        """(R,) ascending."""
        return self._ids[:-1]

    def rows_of(self, track_ids: NDArray[np.int64]) -> tuple[IndexArray, BoolArray | None]:
        """Return the row of each of the M ids. Add a row for each new id.

        Returns:
            The rows (M,), and (M,) True for new ids; None if no id is new.
        """
        rows = self._ids.searchsorted(track_ids)
        present = self._ids[rows] == track_ids
        if present.all():
            return rows, None
        added = np.unique(track_ids[~present])
        ids = np.concatenate([self.ids, added])
        order = ids.argsort(kind="stable")
        self._ids = np.append(ids[order], _NO_ID)
        for name, values in self.items():
            self[name] = np.concatenate([values, self._kinds[name].rows(len(added))])[order]
        return self._ids.searchsorted(track_ids), ~present

    def keep(self, kept: BoolArray) -> None:
        """Delete all rows that are not `kept`."""
        self._ids = np.append(self.ids[kept], _NO_ID)
        for name, values in self.items():
            self[name] = values[kept]
