"""What is remembered of each object between two pictures: columns with one row per track id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vision.analytics.geometry import BoolArray, IndexArray


class Memory:
    """Columns of one row per track, in ascending order of ids. Columns are reached by `memory["name"]`."""

    def __init__(self, columns: Mapping[str, tuple[int | None, DTypeLike]]) -> None:
        """`columns`: name to width (None for a plain column) and dtype; new rows are zero."""
        self._columns: dict[str, NDArray[Any]] = {
            name: np.zeros((0,) if width is None else (0, width), dtype) for name, (width, dtype) in columns.items()
        }
        self.ids: NDArray[np.int64] = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def rows_of(self, track_ids: NDArray[np.int64]) -> tuple[IndexArray, BoolArray]:
        """Row of each of the M ids, made where there was none, and whether it was made."""
        rows = np.searchsorted(self.ids, track_ids)
        known = (
            self.ids[np.minimum(rows, len(self.ids) - 1)] == track_ids
            if len(self.ids)
            else np.zeros(rows.shape, np.bool_)
        )
        if known.all():
            return rows, ~known
        added = np.unique(track_ids[~known])
        ids = np.concatenate([self.ids, added])
        order = np.argsort(ids, kind="stable")
        self.ids = ids[order]
        for name, values in self._columns.items():
            blank = np.zeros((len(added), *values.shape[1:]), values.dtype)
            self._columns[name] = np.concatenate([values, blank])[order]
        return np.searchsorted(self.ids, track_ids), ~known

    def keep(self, kept: BoolArray) -> None:
        """Forget all other rows."""
        self.ids = self.ids[kept]
        for name, values in self._columns.items():
            self._columns[name] = values[kept]
