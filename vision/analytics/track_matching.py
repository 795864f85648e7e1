"""`Pairs` matches tracks with detections. `similarity` compares a track with a detection."""

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
_CLEAR_SPEED2: Final = np.array(3.0**2)  # square of the speed above which a direction has full weight, in variances
# A match can be wrong if a different object appears beside an object whose own detection is weak.
_DOUBTFUL: Final = 0.5  # a match with at most this similarity can be wrong
_CLEAR: Final = 0.75  # a weak detection with a greater similarity can be the object itself
_CLEARER: Final = 0.25  # so can one that is more similar than the match by more than this, if the track is certain
_OTHER_IOU: Final = 0.4  # overlap below which two detections are two objects
_DECREASE: Final = np.array(-1.0 / _REACH**2)  # NumPy computes faster with an array than with a Python number
_LEAST_SPAN: Final = np.array(1e-9)  # added to a divisor that can be 0
_HALF: Final = np.array(0.5)
_ZERO: Final = np.array(0.0)
_FOR_SIMILARITY: Final = np.array([0, 1, 2, 3, 4, 5, 8, 9, 16, 20, 21])


def distance_of(least: float) -> float:
    """Return the smallest distance, in standard deviations, at which boxes without overlap are at most `least` similar.

    `least` must be greater than the weight of the direction, because distance does not reduce the effect of the
    direction.
    """
    return _REACH * math.sqrt(max(0.0, -math.log(2.0 * (least - _DIRECTION_WEIGHT))))


class Pairs:
    """Pairs of a track and a detection that can match, with their similarity. All other pairs are omitted."""

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
            least: similarity up to which a pair never matches. Pairs with at most this similarity are removed.
            shape: number of all tracks, and number of all detections.
        """
        similar = (similarity > least).nonzero()[0]
        # Among pairs of equal similarity, the first becomes the last, because the last pair of a track wins.
        order = similar[(-similarity[similar]).argsort(kind="stable")[::-1]]
        self._tracks, self._detections = tracks[order], detections[order]
        self._similarity = similarity[order]
        self._all_tracks, self._all_detections = shape

    def can_match(self, tracks: BoolArray, detections: BoolArray, least: float) -> BoolArray:
        """Return a mask (M,) of the tracks that `match` could match with a detection.

        Args:
            tracks: mask (M,) of the tracks to consider.
            detections: mask (N,) of the detections to consider.
            least: similarity above which a pair can match.
        """
        first = self._similarity.searchsorted(least, "right")
        rows = self._tracks[first:]
        found = np.zeros_like(tracks)
        found[rows[tracks[rows] & detections[self._detections[first:]]]] = True
        return found

    def release_misled(
        self, others: BoolArray, boxes: FloatArray, least: float, certain: BoolArray, matches: IndexArray
    ) -> None:
        """Remove each match that probably shows a different object, if another detection probably shows the right one.

        The similarity of such a match is at most `_DOUBTFUL`. The similarity of one of the detections `others` is
        greater than `_CLEAR`, or if the track is certain, greater than the similarity of the match by more than
        `_CLEARER`. The IoU of these two detections is less than `_OTHER_IOU`, so they show two objects.

        Args:
            others: mask (N,) of detections that are not matched.
            boxes: corners of the detections (N, 4).
            least: similarity up to which a detection of `others` cannot continue a track, not below `least` of the
                constructor.
            certain: mask (M,) of the tracks that certainly follow their object.
            matches: detection of each track (M,), or -1 if there is no match. Removed matches are set to -1.
        """
        rows, columns, values = self._tracks, self._detections, self._similarity
        if not len(rows) or values[0] > _DOUBTFUL:
            return
        end = values.searchsorted(_DOUBTFUL, "right")
        is_doubtful = matches.take(rows[:end]) == columns[:end]
        if not np.count_nonzero(is_doubtful):
            return
        first = values.searchsorted(least, "right")
        chosen = others[columns[first:]].nonzero()[0] + first
        if not len(chosen):
            return
        best = np.empty(self._all_tracks, np.intp)
        best.fill(-1)
        best[rows[chosen]] = chosen  # the last of several pairs of a track is the best one
        doubtful = is_doubtful.nonzero()[0]
        doubtful = doubtful[best[rows[doubtful]] >= 0]
        if not len(doubtful):
            return
        tracks = rows[doubtful]
        value = values[best[tracks]]
        clear = (value > _CLEAR) | (certain[tracks] & (value - values[doubtful] > _CLEARER))
        tracks = tracks[clear]
        overlaps = iou(boxes[matches[tracks]], boxes[columns[best[tracks]]]).diagonal()
        matches[tracks[overlaps < _OTHER_IOU]] = -1

    def match(self, tracks: BoolArray, detections: BoolArray, least: float, matches: IndexArray) -> None:
        """Match tracks and detections so that the sum of `similarity - least` over the matched pairs is maximal.

        Args:
            tracks: mask (M,) of the tracks to match.
            detections: mask (N,) of the detections to match.
            least: similarity up to which a pair never matches, not below `least` of the constructor.
            matches: array (M,) to which the detection of each matched track is written.
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
    """Find the optimal assignment for the tracks that compete for contested detections.

    The competing tracks are the tracks that can match a contested detection, the tracks that can match another
    detection of these tracks, and so on.

    Args:
        rows: track (K,) of each pair that can match.
        columns: detection (K,) of each pair.
        gain: similarity (K,) of each pair above the minimum.
        contested: mask (N,) of the contested detections, which is overwritten.
        best: array (M,) to which the detection of each competing track is written, or -1 if there is no detection.
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
    # `lapjv` can extend the matrix to a square and compute the total cost, but both take longer than the assignment.
    side = max(len(tracks), len(detections))
    cost = np.zeros((side, side))
    cost[tracks.searchsorted(rows[chosen]), detections.searchsorted(columns[chosen])] = -gain[chosen]
    assigned = lap.lapjv(cost, return_cost=False)[0][: len(tracks)]
    worth = cost[np.arange(len(tracks)), assigned] < 0
    best[tracks] = np.where(worth, detections.take(assigned, mode="clip"), -1)


def place_variance(state: FloatArray, size: FloatArray) -> FloatArray:
    """Return the variances (2, M) of the centers of tracks, limited so that no track matches a distant detection.

    `size` (M,) is the longer side of each track's box.
    """
    widest = _WIDEST_UNCERTAINTY * size
    variance: FloatArray = np.minimum(state[VAR_PLACE], widest * widest)
    return variance


def similarity(
    state: FloatArray, variance: FloatArray, frame: FrameDetections, rows: IndexArray, columns: IndexArray
) -> FloatArray:
    """Return the similarity of K pairs of a track and a detection, from about 0 to 1.

    The similarity combines overlap, distance, size, and direction. Overlap alone fails if frames are far apart in time,
    and distance alone fails if objects are close together.

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
    shared = extent + seen_extent
    shared *= _HALF
    shared -= np.abs(offset)
    np.minimum(smaller, shared, out=shared)
    np.maximum(shared, _ZERO, out=shared)
    common, smallest = shared[0] * shared[1], smaller[0] * smaller[1]
    area, seen_area = extent[0] * extent[1], seen_extent[0] * seen_extent[1]
    likeness = smallest * smallest
    likeness /= area * seen_area
    area += seen_area
    area -= common
    common /= area  # the overlap
    offset *= offset
    offset /= track[6:8] + frame.noise[columns]
    value: FloatArray = offset[0] + offset[1]
    value *= _DECREASE
    np.exp(value, out=value)
    value *= likeness
    value += common
    value *= _HALF
    along, moved2, speed2 = moved * speed, moved * moved, speed * speed
    clear2 = np.maximum(speed2[0] + speed2[1], _CLEAR_SPEED2 * var_speed)
    clear2 *= moved2[0] + moved2[1]
    np.sqrt(clear2, out=clear2)
    clear2 += _LEAST_SPAN
    direction = along[0] + along[1]
    direction *= _DIRECTION_WEIGHT
    direction /= clear2
    value += direction
    return value
