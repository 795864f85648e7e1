"""`Pairs` matches tracks with detections by their `similarity`; `pairs_within_reach` finds the pairs to compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import lap
import numpy as np
from numpy.typing import NDArray

from vision.analytics.frame_detections import FrameDetections
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray
from vision.analytics.track_state import PLACE

_REACH: Final = 3.0  # distance in standard deviations at which nearness is 1/e
_WIDEST_UNCERTAINTY: Final = 0.3  # maximum uncertainty in object sizes, so that no match is far away after a gap
_DIRECTION_WEIGHT: Final = 0.1  # added for the same direction, subtracted for the opposite one
_CLEAR_SPEED: Final = 3.0  # speed in standard deviations above which a direction has full weight
_FOR_SIMILARITY: Final = np.array([0, 1, 2, 3, 4, 5, 8, 9, 16, 20, 21])

_BLOCK: Final = 4_000
"""Number of pairs up to which several cameras are compared at once, although only pairs of one camera can be near."""

Span: TypeAlias = tuple[int, int]
"""The first and the end index of the tracks or detections of one camera."""


def pairs_within_reach(
    places: FloatArray,
    reach: FloatArray,
    seen: FloatArray,
    spans: Iterable[tuple[Span, Span]],
    labels: Sequence[tuple[NDArray[Any], NDArray[Any]]],
) -> tuple[IndexArray, IndexArray]:
    """Return the indices of the tracks (K,) and detections (K,) that are near each other and have the same labels.

    The pairs are in the order of the tracks, and then of the detections. Comparisons in float32 are faster.

    Args:
        places: centers (2, M) of the tracks.
        reach: largest distance (M,) from each track, horizontally and vertically.
        seen: centers (2, N) of the detections.
        spans: span of the tracks and span of the detections of each camera, in order.
        labels: pairs of a label of each track (M,) and a label of each detection (N,), such as their cameras.
    """
    at, seen_at, reach_px = places.astype(np.float32), seen.astype(np.float32), reach.astype(np.float32)
    found = []
    for (first, end), (first_seen, end_seen) in _blocks(spans):
        offset = at[:, first:end, None] - seen_at[:, None, first_seen:end_seen]
        within = np.abs(offset, out=offset) < reach_px[first:end, None]
        near = within[0]
        near &= within[1]
        for of_tracks, of_detections in labels:
            near &= of_tracks[first:end, None] == of_detections[first_seen:end_seen]
        rows, columns = np.divmod(near.ravel().nonzero()[0], end_seen - first_seen)  # faster than 2-dimensional nonzero
        if first or first_seen:
            rows += first
            columns += first_seen
        found.append((rows, columns))
    if len(found) == 1:
        return found[0]
    rows, columns = (np.concatenate(each) for each in zip(*found, strict=True))
    return rows, columns


def _blocks(spans: Iterable[tuple[Span, Span]]) -> list[tuple[Span, Span]]:
    """Join the spans of successive cameras while they have at most `_BLOCK` pairs together."""
    blocks: list[tuple[Span, Span]] = []
    for (first, end), (first_seen, end_seen) in spans:
        if blocks:
            (begin, _), (begin_seen, _) = blocks[-1]
            if (end - begin) * (end_seen - begin_seen) <= _BLOCK:
                blocks[-1] = (begin, end), (begin_seen, end_seen)
                continue
        blocks.append(((first, end), (first_seen, end_seen)))
    return blocks


class Pairs:
    """The pairs of a track and a detection that can match, with their similarity. All other pairs are omitted."""

    def __init__(
        self,
        tracks: IndexArray,
        detections: IndexArray,
        similarity: FloatArray,
        *,
        least: float,
        shape: tuple[int, int],
    ) -> None:
        """Store K pairs, sorted by similarity.

        Args:
            tracks: index of the track of each pair (K,), ascending.
            detections: index of the detection of each pair (K,), ascending for each track.
            similarity: similarity of each pair (K,).
            least: similarity up to which a pair never matches. The pairs with at most this similarity are removed.
            shape: number of all tracks, and of all detections.
        """
        similar = (similarity > least).nonzero()[0]
        order = similar[(-similarity[similar]).argsort(kind="stable")[::-1]]  # of equal pairs, the first is last
        self._tracks, self._detections = tracks[order], detections[order]
        self._similarity = similarity[order]
        self._all_tracks, self._all_detections = shape

    def can_match(self, tracks: BoolArray, detections: BoolArray, least: float) -> BoolArray:
        """Return a mask of the `tracks` that `match` could match with `detections`."""
        first = self._similarity.searchsorted(least, "right")
        rows = self._tracks[first:]
        found = np.zeros_like(tracks)
        found[rows[tracks[rows] & detections[self._detections[first:]]]] = True
        return found

    def match(self, tracks: BoolArray, detections: BoolArray, least: float, matches: IndexArray) -> None:
        """Match tracks and detections, given as masks. Write the detection of each matched track to `matches`.

        The assignment maximizes the sum of `similarity - least` over the matched pairs. Pairs with at most
        `least`, which must not be below that of the constructor, never match.
        """
        first = self._similarity.searchsorted(least, "right")
        rows, columns = self._tracks[first:], self._detections[first:]
        allowed = tracks[rows]
        allowed &= detections[columns]
        chosen = allowed.nonzero()[0]
        if not len(chosen):
            return
        rows, columns = rows[chosen], columns[chosen]
        best = np.empty(self._all_tracks, np.intp)
        best.fill(-1)
        best[rows] = columns  # the last of several pairs of a track is the best one
        matched = (best >= 0).nonzero()[0]
        wanted = best[matched]
        # If all tracks have different best detections, this assignment is optimal.
        if len(set(wanted.tolist())) < len(wanted):
            contested = np.bincount(wanted, minlength=self._all_detections) > 1
            _settle(rows, columns, self._similarity[first:][chosen] - least, contested, best)
            matched = (best >= 0).nonzero()[0]
            wanted = best[matched]
        matches[matched] = wanted


def _settle(rows: IndexArray, columns: IndexArray, gain: FloatArray, contested: BoolArray, best: IndexArray) -> None:
    """Find the optimal assignment for the tracks that compete for the `contested` detections (N,).

    These are the tracks that can match such a detection, the tracks that can match another detection of these tracks,
    and so on.
    Write the detection of each of these tracks to `best`; -1 if there is none.
    """
    competing = np.zeros(len(best), np.bool_)
    number = 0
    while True:
        competing[rows[contested[columns]]] = True
        chosen = competing[rows]
        contested[columns[chosen]] = True
        before, number = number, int(np.count_nonzero(chosen))
        if number == before:
            break
    tracks, detections = competing.nonzero()[0], contested.nonzero()[0]
    cost = np.zeros((len(tracks), len(detections)))
    cost[tracks.searchsorted(rows[chosen]), detections.searchsorted(columns[chosen])] = -gain[chosen]
    _, assigned, _ = lap.lapjv(cost, extend_cost=True)
    worth = assigned >= 0
    worth &= cost[np.arange(len(tracks)), assigned] < 0
    best[tracks] = np.where(worth, detections[assigned], -1)


def similarity(
    state: FloatArray, size: FloatArray, frame: FrameDetections, rows: IndexArray, columns: IndexArray
) -> FloatArray:
    """Return the similarity of K pairs of a track and a detection, from about 0 to 1.

    It comes from overlap, distance, size, and direction. Overlap alone fails if frames are far apart in time, and
    distance alone fails if objects are close together.

    Args:
        state: state of the tracks (ROWS, M), predicted at the time of the frame.
        size: longer side of the box of each track (M,).
        frame: the detections.
        rows: index of the track of each pair (K,).
        columns: index of the detection of each pair (K,).
    """
    track, seen = state.take(_FOR_SIMILARITY, axis=0).take(rows, axis=1), frame.at.take(columns, axis=1)
    extent, seen_extent, speed, var_speed = track[2:4], seen[2:4], track[4:6], track[8]
    offset, moved = seen[PLACE] - track[PLACE], seen[PLACE] - track[9:11]
    smaller = np.minimum(extent, seen_extent)
    shared = np.minimum(smaller, (extent + seen_extent) * 0.5 - np.abs(offset))
    np.maximum(shared, 0.0, out=shared)
    common, smallest = shared[0] * shared[1], smaller[0] * smaller[1]
    area, seen_area = extent[0] * extent[1], seen_extent[0] * seen_extent[1]
    overlap = common / (area + seen_area - common)
    likeness = smallest * smallest / (area * seen_area)
    variance = np.minimum(track[6:8], ((_WIDEST_UNCERTAINTY * size) ** 2)[rows]) + frame.noise[columns]
    distance2 = offset * offset / variance
    value: FloatArray = 0.5 * (overlap + likeness * np.exp((distance2[0] + distance2[1]) * (-1.0 / _REACH**2)))
    along, moved2, speed2 = moved * speed, moved * moved, speed * speed
    clear2 = np.maximum(speed2[0] + speed2[1], _CLEAR_SPEED**2 * var_speed)
    value += _DIRECTION_WEIGHT * (along[0] + along[1]) / (np.sqrt((moved2[0] + moved2[1]) * clear2) + 1e-9)
    return value
