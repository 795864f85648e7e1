"""`Tracker` turns the detections of one camera into tracks.

Cameras drop frames and change their frame rate, so every parameter is a time, a score, or a multiple of the object's
size. Therefore, the same rules apply at 30, 10 and 3 frames/s.

Detections are matched with published tracks in two stages, as in ByteTrack (Zhang et al., "ByteTrack: Multi-Object
Tracking by Associating Every Detection Box", ECCV 2022): first strong detections with any of these tracks, then weak
detections with tracks that were detected just before. The other strong detections continue unpublished tracks or start
new tracks. The motion model is a Kalman filter in continuous time. Two parts come from OC-SORT (Cao et al.,
"Observation-Centric SORT", CVPR 2023): the similarity includes the direction, and an option computes the motion of an
object after a gap from only two positions.

One array contains all tracks, with a row for each quantity, so that the number of NumPy calls per frame is fixed.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import lap
import numpy as np
from numpy import count_nonzero  # several times faster than any() and all() on small arrays
from numpy.typing import NDArray

from vision.analytics.class_groups import ClassGroups, ClassIds, single_boxes, vote
from vision.analytics.frame_clock import CLOCK_GRAIN_S, FrameClock
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, iou, reach_edge
from vision.analytics.track_sizes import SizeFilter
from vision.analytics.track_state import (
    AT,
    BORN_S,
    COVARIANCE,
    DOUBTED_S,
    EXTENT,
    FILTER,
    LEAD,
    MISFIT,
    PLACE,
    ROWS,
    SEEN_AT,
    SEEN_S,
    SPEED,
    STRONG_S,
    TREND,
    VAR_AT,
    VAR_SPEED,
    VOTES,
    WHOLE,
    motion,
)
from vision.config import TrackConfig
from vision.types import Detections, Tracks

# The motion model. Lengths are in object sizes (the longer side of the box), so that the distance to the camera does
# not matter. The values fit people on foot. The filter also follows faster objects, because it allows acceleration.
_POSITION_NOISE: Final = 0.05  # standard deviation of the center of a strong detection; 1/20 as in ByteTrack
_UNSURE_NOISE: Final = 0.2  # added per unit of score below `_SURE_SCORE`
_SURE_SCORE: Final = 0.8
_SIZE_NOISE: Final = 1.5  # ratio of the variance of width and height to the variance of the center
_EDGE_PX: Final = 1.0  # distance from the edge of the frame at which a box counts as cut off
_NOISE_OF_ROWS: Final = np.array([[1.0], [1.0], [_SIZE_NOISE], [_SIZE_NOISE]])
_FIRST_VAR_SPEED: Final = np.array([[2.0], [2.0], [0.2], [0.2]]) ** 2  # variance for a new object, sizes² per s²

# The similarity of a track and a detection, from about 0 to 1.
_REACH: Final = 3.0  # distance in standard deviations at which nearness is 1/e
_FARTHEST: Final = 2.0  # maximum distance of a match in object sizes, at which nearness is 0.01
_WIDEST_UNCERTAINTY: Final = 0.3  # maximum uncertainty in object sizes, so that no match is far away after a gap
_DIRECTION_WEIGHT: Final = 0.1  # added for the same direction, subtracted for the opposite one
_CLEAR_SPEED: Final = 3.0  # speed in standard deviations above which a direction has full weight
_ANY_STAGE: Final = 0.12  # minimum similarity of a published track and a strong detection
_WEAK_STAGE: Final = 0.5  # minimum similarity of a published track and a weak detection
_WEAK_STEPS: Final = 4.5  # usual intervals since the last detection within which a weak detection can continue a track
_TENTATIVE_STAGE: Final = 0.1  # minimum similarity of an unpublished track and a strong detection
_SAME_OBJECT_IOU: Final = 0.4  # a detection that overlaps a tracked object this much is the same object

SCORE_GRAIN: Final = 1e-6  # tolerance of thresholds, because scores are rounded to float32

_CENTERS: Final = np.array([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [-1, 0, 1, 0], [0, -1, 0, 1]])
"""Matrix that converts corners x1, y1, x2, y2 to center x, center y, width and height."""
_CORNERS: Final = np.array([[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]])
"""Matrix that converts center x, center y, width and height to corners x1, y1, x2, y2."""

_FOR_SIMILARITY: Final = np.array([0, 1, 2, 3, 4, 5, 8, 9, 16, 20, 21])

_next_track_id = itertools.count(1)  # one counter, so that ids are unique across all cameras and epochs


class Tracker:
    """Tracker of the objects of one camera. It is not thread-safe.

    Detections of different classes are different objects, unless the classes are in one group. Capture times can stay
    the same, go back or jump ahead. If a capture time goes back, the clock advances by the usual interval. A gap longer
    than both `lost_s` and 2.5 times the usual interval ends every track. Therefore, ids and ages never decrease.

    Args:
        config: scores and times that control the tracks; the defaults if None.
        frame_size_px: width and height of the frame; None if unknown. Published boxes are clipped to the frame. Boxes
            that the edge of the frame cuts off may change their size at any rate.
        groups: groups of classes that the detector confuses; None if there are none. The class of a track is
            the class with the most votes in its group.
    """

    def __init__(
        self,
        config: TrackConfig | None = None,
        frame_size_px: tuple[int, int] | None = None,
        groups: ClassGroups | None = None,
    ) -> None:
        self._config = config or TrackConfig()
        self._class_groups = groups if groups is not None and groups.grouped else None
        self._edges_px = None if frame_size_px is None else np.array(frame_size_px, np.float64)
        self._state: FloatArray = np.zeros((ROWS, 0))
        self._ids: NDArray[np.int64] = np.zeros(0, np.int64)  # 0 means not yet published
        self._classes: ClassIds = np.zeros(0, np.int32)
        self._groups: ClassIds = np.zeros(0, np.int32)
        self._time = FrameClock()
        self._step_s, self._step = 0.0, motion(0.0)  # reused, because most steps have the same length
        self._sizes = SizeFilter(self._time)

    def update(self, detections: Detections, captured_ns: int) -> Tracks:
        """Process the detections of one frame.

        Args:
            detections: detections down to `TrackConfig.low_score`. Detections with a lower score, without area, or
                with infinite or NaN coordinates are ignored.
            captured_ns: capture time of the frame on the monotonic clock.

        Returns:
            The published tracks that were detected in this frame. Each box lies between the detected and the predicted
            box: the higher the score and the more likely the size, the nearer to the detected box.
        """
        self._advance(captured_ns)
        frame = _Frame(detections, self._config, self._edges_px, self._class_groups)
        matches = self._associate(frame)
        tracks = (matches >= 0).nonzero()[0]
        matched = matches[tracks]
        trust = self._correct(tracks, matched, frame)
        published = self._ids[tracks] > 0
        result = self._tracks(tracks[published], matched[published], frame, trust[published])
        self._keep((self._ids > 0) | (self._time.now_s - self._state[SEEN_S] <= self._config.tentative_s))
        self._begin(frame, matched)
        return result

    # --- time ---------------------------------------------------------------------------------------------------------

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        if count_nonzero(kept) < len(kept):
            self._state = self._state[:, kept]
            self._ids = self._ids[kept]
            self._classes = self._classes[kept]
            self._groups = self._groups[kept]

    def _advance(self, captured_ns: int) -> None:
        """Predict every track at the time of the frame. End the tracks that have been lost for too long."""
        step_s = self._time.advance(captured_ns)
        if len(self._ids):
            memory_s = self._time.memory_s(self._config.lost_s)
            self._keep(self._state[SEEN_S] >= self._time.now_s - memory_s - CLOCK_GRAIN_S)
        if len(self._ids) and step_s:
            self._predict(step_s)

    def _predict(self, step_s: float) -> None:
        """Predict all tracks after `step_s`. The speed is an Ornstein-Uhlenbeck process, integrated exactly.

        In this model, center and size do not depend on each other, so the 8×8 filter of the literature separates into
        four filters of 2×2. Their means and covariances are the first 20 rows of the state: one matrix updates all.
        """
        if step_s != self._step_s:
            self._step_s, self._step = step_s, motion(step_s)
            self._sizes.set_step(step_s)
        transition, growth = self._step
        state = self._state
        scale2 = np.maximum(state[2], state[3]) ** 2
        state[FILTER] = transition @ state[FILTER] + growth * scale2
        np.maximum(state[EXTENT], 1.0, out=state[EXTENT])

    # --- association --------------------------------------------------------------------------------------------------

    def _associate(self, frame: _Frame) -> IndexArray:
        """Return the index of the detection matched to each track; -1 if there is none."""
        config = self._config
        matches = np.empty(len(self._ids), np.intp)
        matches.fill(-1)
        if not len(matches) or not len(frame.scores):
            return matches
        similarity = self._similarity(frame)
        strong = frame.strong.copy()
        published = self._ids > 0
        sure = strong.nonzero()[0]
        _match(similarity, published.nonzero()[0], sure, _ANY_STAGE, matches)
        if len(sure) < len(strong):
            now_s, just_before_s = self._time.now_s, _WEAK_STEPS * self._time.usual_s + CLOCK_GRAIN_S
            candidates = published & (matches < 0) & (self._state[SEEN_S] >= now_s - just_before_s)
            candidates &= self._state[STRONG_S] >= now_s - max(config.weak_s, just_before_s)
            _match(similarity, candidates.nonzero()[0], (~strong).nonzero()[0], _WEAK_STAGE, matches)
        tentative = (~published).nonzero()[0]
        if len(tentative):
            strong[matches[matches >= 0]] = False
            _match(similarity, tentative, strong.nonzero()[0], _TENTATIVE_STAGE, matches)
        return matches

    def _similarity(self, frame: _Frame) -> FloatArray:
        """Return the similarity (M, N) of tracks and detections, from overlap, distance, size and direction.

        Overlap alone fails if frames are far apart in time, and distance alone fails if objects are close together. To
        save time, only pairs within reach are computed. For all other pairs, the similarity is 0.
        """
        state, at = self._state, frame.at
        similarity = np.zeros((state.shape[1], len(frame.scores)))
        size = np.maximum(state[2], state[3])
        rows, columns = self._within_reach(size, frame)
        track, seen = state.take(_FOR_SIMILARITY, axis=0).take(rows, axis=1), at.take(columns, axis=1)
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
        value = 0.5 * (overlap + likeness * np.exp((distance2[0] + distance2[1]) * (-1.0 / _REACH**2)))
        along, moved2, speed2 = moved * speed, moved * moved, speed * speed
        clear2 = np.maximum(speed2[0] + speed2[1], _CLEAR_SPEED**2 * var_speed)
        value += _DIRECTION_WEIGHT * (along[0] + along[1]) / (np.sqrt((moved2[0] + moved2[1]) * clear2) + 1e-9)
        similarity[rows, columns] = value
        return similarity

    def _within_reach(self, size: FloatArray, frame: _Frame) -> tuple[IndexArray, IndexArray]:
        """Return the indices of the tracks (K,) and detections (K,) that are near each other and in the same group.

        Comparisons in float32 are faster.
        """
        x, y = self._state[PLACE].astype(np.float32)[:, :, None]
        seen_x, seen_y = frame.at[PLACE].astype(np.float32)
        reach = (_FARTHEST * size).astype(np.float32)[:, None]
        offset = x - seen_x
        near = np.abs(offset, out=offset) < reach
        np.subtract(y, seen_y, out=offset)
        near &= np.abs(offset, out=offset) < reach
        near &= self._groups[:, None] == frame.groups
        rows, columns = np.divmod(near.ravel().nonzero()[0], near.shape[1])  # much faster than nonzero in 2 dimensions
        return rows, columns

    # --- the life of a track ------------------------------------------------------------------------------------------

    def _correct(self, tracks: IndexArray, matched: IndexArray, frame: _Frame) -> FloatArray:
        """Update the state of matched tracks with their detections. Return the weight (M,) of each box, up to 1.

        Assign ids to tracks that are now old enough to be published.
        """
        if not len(tracks):
            return np.ones(0)
        all_tracks = len(tracks) == len(self._ids)
        state = self._state if all_tracks else self._state.take(tracks, axis=1)
        at = frame.at.take(matched, axis=1)  # much faster than an index
        noise = _NOISE_OF_ROWS * frame.noise[matched]
        error = at - state[AT]
        belief = self._sizes.weigh(state, at, noise, frame.cut[matched])
        noise /= belief
        inverse = 1.0 / (state[VAR_AT] + noise)
        gain, speed_gain = state[VAR_AT] * inverse, state[COVARIANCE] * inverse
        trust = 1.0 - gain
        state[AT] += gain * error
        state[SPEED] += speed_gain * error
        state[VAR_SPEED] -= speed_gain * state[COVARIANCE]
        state[VAR_AT] *= trust
        state[COVARIANCE] *= trust
        now_s = self._time.now_s
        if self._config.reactivation == "observation":
            gap_s = now_s - state[SEEN_S]
            again = (gap_s > 1.5 * self._time.usual_s + CLOCK_GRAIN_S).nonzero()[0]
            _restart_motion(state, again, at, noise, gap_s)
        state[SEEN_AT] = at[PLACE]
        state[SEEN_S] = now_s
        state[STRONG_S, frame.strong[matched]] = now_s
        if self._class_groups is not None:
            classes = self._classes.take(tracks)
            vote(classes, state[LEAD], state[VOTES], frame.classes.take(matched), frame.scores.take(matched))
            self._classes[tracks] = classes
        if not all_tracks:
            self._state[:, tracks] = state
        tentative = self._ids[tracks] == 0
        if count_nonzero(tentative):
            tentative &= now_s - state[BORN_S] >= self._config.confirm_s - CLOCK_GRAIN_S
            for track in tracks[tentative]:
                self._ids[track] = next(_next_track_id)
        return belief

    def _begin(self, frame: _Frame, matched: IndexArray) -> None:
        """Start tracks for detections with at least `new_score` that neither match nor overlap a track.

        The best detections come first, until there are `max_objects` tracks.
        """
        fresh = frame.scores >= self._config.new_score - SCORE_GRAIN
        fresh[matched] = False
        new = fresh.nonzero()[0]
        if not len(new):
            return
        if len(matched):
            overlap = iou(frame.boxes[new], frame.boxes[matched])
            overlap[frame.groups[new][:, None] != frame.groups[matched]] = 0.0
            new = new[overlap.max(axis=1) < _SAME_OBJECT_IOU]
        if not len(new):
            return
        room = self._config.max_objects - len(self._ids)
        new = new[np.argsort(-frame.scores[new], kind="stable")[:room]]
        state = np.zeros((ROWS, len(new)))
        state[AT] = frame.at[:, new]
        state[SEEN_AT] = frame.at[PLACE, new]
        state[VAR_AT] = _NOISE_OF_ROWS * frame.noise[new]
        state[VAR_SPEED] = _FIRST_VAR_SPEED * np.maximum(frame.at[2, new], frame.at[3, new]) ** 2
        state[SEEN_S:] = self._time.now_s
        state[DOUBTED_S] = state[MISFIT] = math.inf
        state[TREND] = state[WHOLE] = 0.0
        state[LEAD] = state[VOTES] = frame.scores[new]
        self._state = np.concatenate([self._state, state], axis=1)
        self._ids = np.concatenate([self._ids, np.zeros(len(new), np.int64)])
        self._classes = np.concatenate([self._classes, frame.classes[new]])
        self._groups = np.concatenate([self._groups, frame.groups[new]])

    def _tracks(self, tracks: IndexArray, matched: IndexArray, frame: _Frame, trust: FloatArray) -> Tracks:
        boxes = (_CORNERS @ self._state[AT].take(tracks, axis=1)).T
        scores = frame.scores[matched]
        detected = frame.boxes.take(matched, axis=0)
        boxes += (scores * trust)[:, None] * (detected - boxes)
        if self._edges_px is not None:
            corners = boxes.reshape(-1, 2, 2)
            np.clip(corners, 0.0, self._edges_px, out=corners)
            outside = (boxes[:, :2] >= boxes[:, 2:]).any(axis=1)
            boxes[outside] = detected[outside]
        return Tracks(
            boxes_xyxy=boxes.astype(np.float32),
            scores=scores.astype(np.float32),
            class_ids=self._classes[tracks],
            track_ids=self._ids[tracks],
            age_ms=np.rint((self._time.now_s - self._state[BORN_S].take(tracks)) * 1e3).astype(np.int64),
            truncated_candidates=frame.truncated_candidates,
            hidden_px=self._hidden_px(tracks, detected, boxes),
            shapes=None if frame.shapes is None else frame.shapes.take(matched),
        )

    def _hidden_px(self, tracks: IndexArray, detected: FloatArray, published: FloatArray) -> NDArray[np.float32] | None:
        """Return the height (M,), in pixels, of the hidden part below each published box; None if nothing is hidden."""
        whole = self._state[WHOLE].take(tracks)
        if not count_nonzero(whole):
            return None
        below = np.maximum(detected[:, 1] + whole - published[:, 3], 0.0)
        return np.where(whole > 0.0, below, 0.0).astype(np.float32)


class _Frame:
    """The usable detections of one frame, in the layouts that the tracker needs."""

    __slots__ = (
        "at", "boxes", "classes", "cut", "groups", "noise", "scores", "shapes", "strong", "truncated_candidates",
    )  # fmt: skip

    def __init__(
        self,
        detections: Detections,
        config: TrackConfig,
        edges_px: FloatArray | None,
        class_groups: ClassGroups | None,
    ) -> None:
        boxes = detections.boxes_xyxy.astype(np.float64).reshape(-1, 4)
        scores = detections.scores.astype(np.float64)
        finite = np.isfinite(boxes)
        if count_nonzero(finite) < finite.size:
            boxes[~finite.all(axis=1)] = 0.0  # a box without area is not usable
        at = _CENTERS @ boxes.T
        size = np.maximum(at[2], at[3])
        usable = (scores >= config.low_score - SCORE_GRAIN) & (np.minimum(at[2], at[3]) > 0)
        groups = classes = detections.class_ids
        shapes = detections.shapes
        if class_groups is not None:
            groups = class_groups.of(classes)
            if count_nonzero(groups != classes):
                usable[usable] = single_boxes(boxes[usable], scores[usable], classes[usable], groups[usable])
        if count_nonzero(usable) < len(usable):
            boxes, scores, classes, groups = boxes[usable], scores[usable], classes[usable], groups[usable]
            at, size = at[:, usable], size[usable]
            shapes = None if shapes is None else shapes.take(usable.nonzero()[0])
        self.shapes = shapes
        self.truncated_candidates = detections.truncated_candidates
        self.boxes: FloatArray = boxes  # (N, 4) corners
        self.scores: FloatArray = scores
        self.strong: NDArray[np.bool_] = scores >= config.high_score - SCORE_GRAIN
        self.classes: ClassIds = classes
        self.groups: ClassIds = groups
        self.cut: BoolArray = reach_edge(boxes, edges_px, _EDGE_PX)
        self.at: FloatArray = at  # (4, N) center x, center y, width, height
        relative = _POSITION_NOISE + _UNSURE_NOISE * np.maximum(_SURE_SCORE - scores, 0.0)
        self.noise: FloatArray = (relative * size) ** 2  # (N,) variance of the center


def _restart_motion(state: FloatArray, again: IndexArray, at: FloatArray, noise: FloatArray, gap_s: FloatArray) -> None:
    """For tracks that are detected again after a gap, compute the motion from only the last and the new position.

    The result is the limit of OC-SORT's re-update, which runs the filter along a straight path between the positions.
    """
    if not len(again):
        return
    gap = gap_s[again]
    state[4:6, again] = (at[:2, again] - state[SEEN_AT, again]) / gap
    state[12:14, again] = noise[:2, again] / gap
    state[16:18, again] = 2.0 * noise[:2, again] / gap**2
    state[8:10, again] = noise[:2, again]


def _match(similarity: FloatArray, rows: IndexArray, columns: IndexArray, least: float, matches: IndexArray) -> None:
    """Match tracks (`rows`) with unmatched detections (`columns`). Write the index of each detection to `matches`.

    The assignment maximizes the sum of `similarity - least` over all pairs with a similarity above `least`.
    """
    if not len(rows) or not len(columns):
        return
    gain = similarity.take(rows, axis=0).take(columns, axis=1) - least
    best = gain.argmax(axis=1)
    worth = gain[np.arange(len(rows)), best] > 0
    if count_nonzero(worth) < len(rows):
        rows, gain, best = rows[worth], gain[worth], best[worth]
        if not len(rows):
            return
    # If all tracks have different best detections, this assignment is optimal.
    if len(set(best.tolist())) < len(best):
        _, best, _ = lap.lapjv(np.minimum(-gain, 0.0), extend_cost=True)
        worth = best >= 0
        worth &= gain[np.arange(len(rows)), best] > 0
        rows, best = rows[worth], best[worth]
    matches[rows] = columns[best]
