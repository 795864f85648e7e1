"""`TrackTable`: the state of each object between two frames, in columns with one row per track id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vision.analytics.geometry import BoolArray, IndexArray

_NO_ID: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class TrackColumn:
    """One quantity: its dtype, its shape for one object, and its value for a new object."""

    dtype: DTypeLike
    shape: tuple[int, ...] = ()
    blank: float = 0


class TrackTable:
    """Columns of one row per track, in ascending order of ids. `table["name"]` is a column."""

    def __init__(self, columns: Mapping[str, TrackColumn]) -> None:
        self._kinds = dict(columns)
        self._columns: dict[str, NDArray[Any]] = {name: _blank(column, 0) for name, column in columns.items()}
        self._ids: NDArray[np.int64] = np.array(
            [_NO_ID]
        )  # one more than there are tracks, so that every search finds a row

    def __len__(self) -> int:
        return len(self._ids) - 1

    @property
    def ids(self) -> NDArray[np.int64]:
        """(R,) ascending."""
        return self._ids[:-1]

    def id_of(self, row: int) -> int:
        return int(self._ids[row])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

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
        for name, values in self._columns.items():
            self._columns[name] = np.concatenate([values, _blank(self._kinds[name], len(added))])[order]
        return self._ids.searchsorted(track_ids), ~present

    def keep(self, kept: BoolArray) -> None:
        """Delete all rows that are not `kept`."""
        self._ids = np.append(self.ids[kept], _NO_ID)
        for name, values in self._columns.items():
            self._columns[name] = values[kept]


def _blank(column: TrackColumn, rows: int) -> NDArray[Any]:
    return np.full((rows, *column.shape), column.blank, column.dtype)
