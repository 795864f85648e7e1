"""`Pairs` matches tracks with detections by their `similarity`."""

from __future__ import annotations

import math
from typing import Final

import lap
import numpy as np

from vision.analytics.frame_detections import FrameDetections
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, iou
from vision.analytics.track_state import PLACE, VAR_PLACE

_REACH: Final = 3.0  # distance in standard deviations at which nearness is 1/e
_WIDEST_UNCERTAINTY: Final = 0.3  # maximum uncertainty in object sizes, so that no match is far away after a gap
_DIRECTION_WEIGHT: Final = 0.1  # added for the same direction, subtracted for the opposite one
_CLEAR_SPEED: Final = 3.0  # speed in standard deviations above which a direction has full weight
# A match can be wrong if a different object appears beside an object whose own detection is weak.
_DOUBTFUL: Final = 0.5  # similarity of a match up to which it can be wrong
_CLEAR: Final = 0.75  # similarity of the weak detection from which it can be the object itself
_OTHER_IOU: Final = 0.4  # overlap below which two detections are two objects
_FOR_SIMILARITY: Final = np.array([0, 1, 2, 3, 4, 5, 8, 9, 16, 20, 21])


def distance_of(least: float) -> float:
    """Return the distance in standard deviations from which boxes that do not overlap are at most `least` similar.

    `least` must be greater than the weight of the direction, which a large distance does not reduce.
    """
    return _REACH * math.sqrt(max(0.0, -math.log(2.0 * (least - _DIRECTION_WEIGHT))))


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

    def release_misled(self, others: BoolArray, boxes: FloatArray, matches: IndexArray) -> None:
        """Set matches to -1 that are probably different objects, if the object itself was probably detected, too.

        Such a match is at most `_DOUBTFUL` similar, and one of the detections `others` is more than `_CLEAR` similar.
        The two boxes overlap by less than `_OTHER_IOU`, so they are not two boxes of one object.

        Args:
            others: mask (N,) of detections that are not matched.
            boxes: corners of the detections (N, 4).
            matches: detection of each track (M,); -1 if there is none.
        """
        rows, columns = self._tracks, self._detections
        if not len(rows) or self._similarity[0] > _DOUBTFUL:
            return
        end = self._similarity.searchsorted(_DOUBTFUL, "right")
        is_doubtful = matches.take(rows[:end]) == columns[:end]
        if not np.count_nonzero(is_doubtful):
            return
        first = self._similarity.searchsorted(_CLEAR, "right")
        clear = others[columns[first:]].nonzero()[0] + first
        if not len(clear):
            return
        best = np.empty(self._all_tracks, np.intp)
        best.fill(-1)
        best[rows[clear]] = columns[clear]  # the last of several pairs of a track is the best one
        doubtful = rows[:end][is_doubtful]
        doubtful = doubtful[best[doubtful] >= 0]
        if not len(doubtful):
            return
        overlaps = iou(boxes[matches[doubtful]], boxes[best[doubtful]]).diagonal()
        matches[doubtful[overlaps < _OTHER_IOU]] = -1

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


def place_variance(state: FloatArray, size: FloatArray) -> FloatArray:
    """Return the variances (2, M) of the centers of tracks, at most that of the widest uncertainty of a match."""
    widest = _WIDEST_UNCERTAINTY * size
    variance: FloatArray = np.minimum(state[VAR_PLACE], widest * widest)
    return variance


def similarity(
    state: FloatArray, variance: FloatArray, frame: FrameDetections, rows: IndexArray, columns: IndexArray
) -> FloatArray:
    """Return the similarity of K pairs of a track and a detection, from about 0 to 1.

    It comes from overlap, distance, size, and direction. Overlap alone fails if frames are far apart in time, and
    distance alone fails if objects are close together.

    Args:
        state: state of the tracks (ROWS, M), predicted at the time of the frame.
        variance: result of `place_variance` (2, M).
        frame: the detections.
        rows: index of the track of each pair (K,).
        columns: index of the detection of each pair (K,).
    """
    values = state.take(_FOR_SIMILARITY, axis=0)
    values[6:8] = variance
    track, seen = values.take(rows, axis=1), frame.at.take(columns, axis=1)
    extent, seen_extent, speed, var_speed = track[2:4], seen[2:4], track[4:6], track[8]
    offset, moved = seen[PLACE] - track[PLACE], seen[PLACE] - track[9:11]
    smaller = np.minimum(extent, seen_extent)
    shared = np.minimum(smaller, (extent + seen_extent) * 0.5 - np.abs(offset))
    np.maximum(shared, 0.0, out=shared)
    common, smallest = shared[0] * shared[1], smaller[0] * smaller[1]
    area, seen_area = extent[0] * extent[1], seen_extent[0] * seen_extent[1]
    overlap = common / (area + seen_area - common)
    likeness = smallest * smallest / (area * seen_area)
    distance2 = offset * offset / (track[6:8] + frame.noise[columns])
    value: FloatArray = 0.5 * (overlap + likeness * np.exp((distance2[0] + distance2[1]) * (-1.0 / _REACH**2)))
    along, moved2, speed2 = moved * speed, moved * moved, speed * speed
    clear2 = np.maximum(speed2[0] + speed2[1], _CLEAR_SPEED**2 * var_speed)
    value += _DIRECTION_WEIGHT * (along[0] + along[1]) / (np.sqrt((moved2[0] + moved2[1]) * clear2) + 1e-9)
    return value
