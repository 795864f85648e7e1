"""`Pairs` matches tracks with detections by their similarity."""

from __future__ import annotations

import lap
import numpy as np

from vision.analytics.geometry import BoolArray, FloatArray, IndexArray


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
