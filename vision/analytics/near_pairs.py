"""`near_pairs` finds the pairs of a track and a detection that are near enough to be compared."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy import count_nonzero  # several times faster than any() and all() on small arrays
from numpy.typing import NDArray

from vision.analytics.class_groups import ClassIds
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray

_FEW: Final = 4_000
"""Number of tracks times number of detections up to which a comparison of all pairs takes the least time."""

_SLACK: Final = 1.001  # factor by which reaches are larger than necessary, because of rounding errors


class Near(NamedTuple):
    """M tracks or detections, from which `near_pairs` forms pairs."""

    places: FloatArray  # (2, M) centers in pixels
    extent: FloatArray  # (2, M) widths and heights in pixels
    variance: FloatArray  # (2, M) or (M,) variances of the centers
    is_far: BoolArray  # (M,) which of the two `deviations` applies: True for the second
    deviations: tuple[float, float]
    """Distances in standard deviations from which boxes that do not overlap cannot match."""
    groups: ClassIds  # (M,) only objects of the same group can match
    camera: IndexArray | None  # (M,) index of the camera; None if there is only one camera


def near_pairs(tracks: Near, detections: Near, farthest: FloatArray) -> tuple[IndexArray, IndexArray]:
    """Return the indices of the tracks (K,) and of the detections (K,) of the near pairs.

    A pair is near if both have the same camera and group, and their horizontal and vertical distances in pixels are
    less than the track's entry in `farthest` (M,). The result can omit pairs that cannot match. These are pairs whose
    boxes do not overlap, and whose distance in standard deviations is at least the smaller of their `deviations`.

    The pairs are sorted by track, and then by detection.
    """
    number = len(detections.groups)
    if len(farthest) * number <= _FEW:
        return _compare_all(tracks, detections, farthest)
    rows, columns = np.divmod(_search(tracks, detections, farthest), number)
    return rows, columns


@lru_cache(maxsize=32)
def _all_pairs(number: int) -> tuple[IndexArray, IndexArray]:
    """Return the row and the column of each of the first `_FEW` elements of a flat table with `number` columns.

    A table look-up takes a tenth of the time of a division.
    """
    rows, columns = np.divmod(np.arange(_FEW), number)
    return rows, columns


def _compare_all(tracks: Near, detections: Near, farthest: FloatArray) -> tuple[IndexArray, IndexArray]:
    """Return the near pairs, as `near_pairs` does. Compare positions in float32, which is faster."""
    places, seen = tracks.places.astype(np.float32), detections.places.astype(np.float32)
    offset = places[:, :, None] - seen[:, None, :]
    within = np.abs(offset, out=offset) < farthest.astype(np.float32)[:, None]
    near: BoolArray = within[0]
    near &= within[1]
    keys = near.ravel().nonzero()[0]
    all_rows, all_columns = _all_pairs(near.shape[1])
    rows, columns = all_rows[keys], all_columns[keys]
    allowed = tracks.groups[rows] == detections.groups[columns]
    if tracks.camera is not None and detections.camera is not None:
        allowed &= tracks.camera[rows] == detections.camera[columns]
    if count_nonzero(allowed) < len(allowed):
        rows, columns = rows[allowed], columns[allowed]
    return rows, columns


def _search(tracks: Near, detections: Near, farthest: FloatArray) -> IndexArray:
    """Return the near pairs that can match, as track * N + detection, in ascending order.

    A search in the sorted horizontal positions finds the candidates. `farthest` (M,) is as in `near_pairs`.
    """
    reach, seen_reach = np.fmin(_reach(tracks), farthest), _reach(detections)
    first, end, order = _candidates(tracks, detections, np.minimum(reach[0] + seen_reach[0].max(), farthest))
    number = end - first
    rows = np.arange(len(number)).repeat(number)
    at = np.arange(len(rows)) + (end - number.cumsum()).repeat(number)
    of_track = _together(tracks.places, reach).repeat(number, axis=0)
    of_detection = _together(detections.places, seen_reach).take(order, axis=0).take(at, axis=0)
    offset = np.abs((of_track[:, 0] - of_detection[:, 0]).view(np.float32))
    within = offset < (of_track[:, 1] + of_detection[:, 1]).view(np.float32)
    (near,) = (within[::2] & within[1::2]).nonzero()
    rows, columns = rows[near], order[at[near]]
    allowed = tracks.groups[rows] == detections.groups[columns]
    allowed &= np.maximum(offset[::2][near], offset[1::2][near]) < farthest.astype(np.float32)[rows]
    keys: IndexArray = (rows * len(order) + columns)[allowed]
    keys.sort()
    return keys


def _reach(objects: Near) -> FloatArray:
    """Return the horizontal and vertical reach (2, M) of each of `objects` in pixels.

    A pair cannot match if the distance is at least the sum of both reaches, horizontally or vertically.
    """
    near, far = objects.deviations
    deviations = np.where(objects.is_far, far, near)
    reach: FloatArray = _SLACK * np.maximum(0.5 * objects.extent, deviations * np.sqrt(objects.variance))
    return reach


def _together(places: FloatArray, reach: FloatArray) -> NDArray[np.complex64]:
    """Return `places` and `reach` as complex numbers (M, 2), so that one NumPy call reads all four coordinates."""
    table = np.empty((len(reach[0]), 4), np.float32)
    table[:, :2], table[:, 2:] = places.T, reach.T
    return table.view(np.complex64)


def _candidates(tracks: Near, detections: Near, distance: FloatArray) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Find the detections of the same camera whose horizontal distance from each track is less than `distance` (M,).

    The results can include detections that are slightly farther away.

    Returns:
        The first index (M,) and the end index (M,) of the detections of each track in a sorted order, and this order
        (N,) as indices of detections.
    """
    x, seen_x, distance = tracks.places[0], detections.places[0], _SLACK * distance
    low, high = x - distance, x + distance
    if tracks.camera is not None and detections.camera is not None:
        # Move each camera by more than its width, so that one search finds no detections of other cameras.
        shift = 2.0 * (max(high.max(), seen_x.max()) - min(low.min(), seen_x.min()))
        low += shift * tracks.camera
        high += shift * tracks.camera
        seen_x = seen_x + shift * detections.camera
    order = seen_x.argsort()
    seen_x = seen_x[order]
    return seen_x.searchsorted(low), seen_x.searchsorted(high, "right"), order
