"""`TrackSnapshot`: the objects of one frame, as input of lines and zones."""

from __future__ import annotations

from dataclasses import dataclass

from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, Points


@dataclass(frozen=True, slots=True)
class TrackSnapshot:
    """The M objects of one frame."""

    now_s: float
    rows: IndexArray  # (M,) in the track table, which still has the `points` of the frame before
    fresh: BoolArray | None  # (M,) True for new objects; None: no object is new
    points: Points  # (M, A) of each anchor
    distances: FloatArray  # (M, 2 L) signed, from each line, twice
    margin: FloatArray  # (M,) pixels by which a border must be passed
