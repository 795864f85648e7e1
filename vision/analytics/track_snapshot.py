"""The objects of one frame, as those see them who watch lines and zones."""

from __future__ import annotations

from dataclasses import dataclass

from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, Points


@dataclass(frozen=True, slots=True)
class TrackSnapshot:
    """M objects."""

    now_s: float
    rows: IndexArray  # (M,) in the memory, which still has the `points` of the frame before
    fresh: BoolArray | None  # (M,) never seen before; None: none of them
    points: Points  # (M, A) of each anchor
    distances: FloatArray  # (M, 2 L) signed, from each line, and once more
    margin: FloatArray  # (M,) pixels by which a border must be passed
