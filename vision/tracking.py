"""Detections become tracks: one `Tracker` per camera, which knows time and not frames.

Cameras drop pictures and change their rate, so every parameter is a time, a score, or a multiple of the object's size;
the same objects filmed at 30, 10 or 3 pictures a second are followed by the same rules.

Association has two stages as in ByteTrack (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every
Detection Box", ECCV 2022): sure detections may find any known object again, unsure ones only carry on what was seen
just before, and only sure ones begin objects. Motion is a Kalman filter in continuous time. From OC-SORT (Cao et al.,
"Observation-Centric SORT", CVPR 2023) come the agreement of direction as part of the similarity and, as an option, the
motion after an object was found again.

All tracks lie in one array with a row per quantity, so that a picture costs a fixed number of NumPy calls.
"""

from __future__ import annotations

import itertools
import math
from typing import Final, TypeAlias

import lap
import numpy as np
from numpy.typing import NDArray

from vision.config.tracking import TrackConfig
from vision.elapsed import Elapsed
from vision.types import Detections, Tracks

FloatArray: TypeAlias = NDArray[np.float64]
IndexArray: TypeAlias = NDArray[np.intp]

# The motion model. Lengths are in object sizes (the longer side of the box), so that near and far objects are alike.
# The values are those of people on foot, wide enough for what moves faster: acceleration is what the filter adapts by.
_POSITION_NOISE: Final = 0.05  # standard deviation of a sure detection's centre; ByteTrack's 1/20
_UNSURE_NOISE: Final = 0.2  # more of it for each unit of score that is missing to _SURE_SCORE
_SURE_SCORE: Final = 0.8
_SIZE_NOISE: Final = 1.5  # variance of width and height over that of the centre
_POSITION_AGITATION: Final = 0.5  # growth of the speed's variance, sizes² per s³
_SIZE_AGITATION: Final = 0.05
_POSITION_DAMPING: Final = 0.2  # 1/s by which an unobserved speed fades
_SIZE_DAMPING: Final = 4.0
_NOISE_OF_ROWS: Final = np.array([[1.0], [1.0], [_SIZE_NOISE], [_SIZE_NOISE]])
_FIRST_VAR_SPEED: Final = np.array([[2.0], [2.0], [0.2], [0.2]]) ** 2  # of a new object, sizes² per s²

# Similarity of a track and a detection, about 0 to 1.
_REACH: Final = 3.0  # standard deviations at which nearness has fallen to 1/e
_FARTHEST: Final = 2.0  # sizes beyond which nothing is alike; nearness has fallen to a hundredth there
_WIDEST_UNCERTAINTY: Final = 0.3  # sizes; whoever was long lost may not be found just anywhere
_DIRECTION_WEIGHT: Final = 0.1  # added for the same direction, subtracted for the opposite one
_CLEAR_SPEED: Final = 3.0  # standard deviations of speed from which a direction counts in full
_ANY_STAGE: Final = 0.1  # least similarity to a sure detection
_WEAK_STAGE: Final = 0.5  # to an unsure one
_TENTATIVE_STAGE: Final = 0.1  # of an unpublished object to a sure detection
_SAME_OBJECT_IOU: Final = 0.4  # a new detection that overlaps a followed object this much is the same object

_CLOCK_GRAIN_S: Final = 1e-3  # capture times are no more exact than this

# Rows of the state. Four rows each: centre x, centre y, width, height.
_AT: Final = slice(0, 4)
_SPEED: Final = slice(4, 8)
_VAR_AT: Final = slice(8, 12)
_COVARIANCE: Final = slice(12, 16)
_VAR_SPEED: Final = slice(16, 20)
_SEEN_AT: Final = slice(20, 24)  # where it was last detected
_SEEN_S: Final = 24  # when it was last detected
_STRONG_S: Final = 25  # when it was last detected with at least high_score
_BORN_S: Final = 26
_ROWS: Final = 27
_FOR_SIMILARITY: Final = np.array([0, 1, 2, 3, 4, 5, 8, 9, 16, 20, 21])[:, None]

_next_track_id = itertools.count(1)  # one for the process: ids never meet, whatever the camera or epoch


class Tracker:
    """Follows the objects of one camera. Not thread-safe.

    Detections of different classes are different objects. Time that stands still, jumps back or jumps ahead is
    understood: a capture time before the last one counts as one usual interval later, and a gap longer than `lost_s`
    (and two usual intervals) ends every track. Ids, ages and the order of events therefore never run backwards.
    """

    def __init__(self, config: TrackConfig | None = None) -> None:
        self._config = config or TrackConfig()
        self._forget()

    def __len__(self) -> int:
        """Objects that are remembered, published or not."""
        return len(self._ids)

    @property
    def jumps_back(self) -> int:
        """Capture times that lay before the last one, since the start or the last reset."""
        return self._time.jumps_back

    def reset(self) -> None:
        """Forget every object, as at a new epoch. Their ids are not used again."""
        self._forget()

    def update(self, detections: Detections, captured_ns: int) -> Tracks:
        """Take one picture's detections.

        Args:
            detections: down to `TrackConfig.low_score`; boxes that are not finite or have no area are passed over.
            captured_ns: monotonic time of the picture.

        Returns:
            The published objects that were detected in this picture. A box lies between what was detected and what the
            motion led to expect, nearer to the detection the higher its score is.
        """
        self._advance(captured_ns)
        picture = _Picture(detections, self._config.low_score)
        matches = self._associate(picture)
        tracks = (matches >= 0).nonzero()[0]
        found = matches[tracks]
        self._correct(tracks, found, picture)
        published = self._ids[tracks] > 0
        result = self._tracks(tracks[published], found[published], picture)
        self._keep((self._ids > 0) | (self._time.now_s - self._state[_SEEN_S] <= self._config.tentative_s))
        self._begin(picture, found)
        return result

    # --- time ---------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._state: FloatArray = np.zeros((_ROWS, 0))
        self._ids: NDArray[np.int64] = np.zeros(0, np.int64)  # 0: not yet published
        self._classes: NDArray[np.int32] = np.zeros(0, np.int32)
        self._time = Elapsed()

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        if not kept.all():
            self._state = self._state[:, kept]
            self._ids = self._ids[kept]
            self._classes = self._classes[kept]

    def _advance(self, captured_ns: int) -> None:
        """Move every track to the time of the picture."""
        step_s = self._time.advance(captured_ns)
        if len(self._ids):
            memory_s = self._time.memory_s(self._config.lost_s)
            self._keep(self._state[_SEEN_S] >= self._time.now_s - memory_s - _CLOCK_GRAIN_S)
        if len(self._ids) and step_s:
            self._predict(step_s)

    def _predict(self, step_s: float) -> None:
        """Ornstein-Uhlenbeck speed, integrated exactly: any two steps give what their sum gives.

        Centre and size do not depend on each other in this model, so the 8×8 filter of the literature falls apart into
        four filters of 2×2, computed here for all tracks at once.
        """
        state = self._state
        fade, travel, var_at, covariance, var_speed = _motion(step_s)
        scale2 = np.maximum(state[2], state[3]) ** 2
        at, speed = state[_AT], state[_SPEED]
        at += travel * speed
        speed *= fade
        old_covariance = state[_COVARIANCE].copy()
        old_var_speed = state[_VAR_SPEED]
        state[_VAR_AT] += travel * (2.0 * old_covariance + travel * old_var_speed) + var_at * scale2
        state[_COVARIANCE] = fade * (old_covariance + travel * old_var_speed) + covariance * scale2
        state[_VAR_SPEED] = fade * fade * old_var_speed + var_speed * scale2
        np.maximum(state[2:4], 1.0, out=state[2:4])

    # --- association --------------------------------------------------------------------------------------------------

    def _associate(self, picture: _Picture) -> IndexArray:
        """For each track its detection, or -1."""
        config = self._config
        matches = np.full(len(self._ids), -1, np.intp)
        if not len(matches) or not len(picture.scores):
            return matches
        similarity = self._similarity(picture)
        strong = picture.scores >= config.high_score
        published = self._ids > 0
        sure = strong.nonzero()[0]
        _match(similarity, published.nonzero()[0], sure, _ANY_STAGE, matches)
        if len(sure) < len(strong):
            now_s, just_before_s = self._time.now_s, 1.5 * self._time.usual_s + _CLOCK_GRAIN_S
            candidates = published & (matches < 0) & (self._state[_SEEN_S] >= now_s - just_before_s)
            candidates &= self._state[_STRONG_S] >= now_s - max(config.weak_s, just_before_s)
            _match(similarity, candidates.nonzero()[0], (~strong).nonzero()[0], _WEAK_STAGE, matches)
        tentative = (~published).nonzero()[0]
        if len(tentative):
            strong[matches[matches >= 0]] = False
            _match(similarity, tentative, strong.nonzero()[0], _TENTATIVE_STAGE, matches)
        return matches

    def _similarity(self, picture: _Picture) -> FloatArray:
        """(M, N): half overlap, half nearness in standard deviations and likeness of size, and the direction.

        Overlap alone fails where pictures are far apart in time, nearness alone where objects are close together. Only
        pairs within reach are computed, which are few: the rest is 0.
        """
        state = self._state
        similarity = np.zeros((state.shape[1], len(picture.scores)))
        size = np.maximum(state[2], state[3])
        reach = (_FARTHEST * size)[:, None]
        near = np.abs(state[0][:, None] - picture.at[0]) < reach
        near &= np.abs(state[1][:, None] - picture.at[1]) < reach
        near &= self._classes[:, None] == picture.classes
        rows, columns = near.nonzero()
        x, y, width, height, speed_x, speed_y, var_x, var_y, var_speed, seen_x, seen_y = state[_FOR_SIMILARITY, rows]
        at_x, at_y, at_width, at_height = picture.at[:, columns]
        offset_x, offset_y = at_x - x, at_y - y
        narrow, low = np.minimum(width, at_width), np.minimum(height, at_height)
        common = np.minimum(narrow, (width + at_width) * 0.5 - np.abs(offset_x)).clip(0.0)
        common *= np.minimum(low, (height + at_height) * 0.5 - np.abs(offset_y)).clip(0.0)
        area, at_area = width * height, at_width * at_height
        overlap = common / (area + at_area - common)
        likeness = (narrow * low) ** 2 / (area * at_area)
        widest = ((_WIDEST_UNCERTAINTY * size) ** 2)[rows]
        noise = picture.noise[columns]
        distance2 = offset_x * offset_x / (np.minimum(var_x, widest) + noise)
        distance2 += offset_y * offset_y / (np.minimum(var_y, widest) + noise)
        value = 0.5 * (overlap + likeness * np.exp(distance2 * (-1.0 / _REACH**2)))
        moved_x, moved_y = at_x - seen_x, at_y - seen_y
        speed2 = speed_x * speed_x + speed_y * speed_y
        clear = np.minimum(1.0, np.sqrt(speed2 / var_speed) / _CLEAR_SPEED)
        cosine = (moved_x * speed_x + moved_y * speed_y) / (np.sqrt((moved_x**2 + moved_y**2) * speed2) + 1e-9)
        value += _DIRECTION_WEIGHT * clear * cosine
        similarity[rows, columns] = value
        return similarity

    # --- the life of a track ------------------------------------------------------------------------------------------

    def _correct(self, tracks: IndexArray, found: IndexArray, picture: _Picture) -> None:
        """The Kalman filter's update with what was detected, and what follows from being detected."""
        if not len(tracks):
            return
        state = self._state[:, tracks]
        at = picture.at[:, found]
        noise = _NOISE_OF_ROWS * picture.noise[found]
        inverse = 1.0 / (state[_VAR_AT] + noise)
        gain = state[_VAR_AT] * inverse
        speed_gain = state[_COVARIANCE] * inverse
        error = at - state[_AT]
        state[_AT] += gain * error
        state[_SPEED] += speed_gain * error
        state[_VAR_SPEED] -= speed_gain * state[_COVARIANCE]
        state[_VAR_AT] *= 1.0 - gain
        state[_COVARIANCE] *= 1.0 - gain
        if self._config.reactivation == "observation":
            gap_s = self._time.now_s - state[_SEEN_S]
            again = (gap_s > 1.5 * self._time.usual_s + _CLOCK_GRAIN_S).nonzero()[0]
            _restart_motion(state, again, at, noise, gap_s)
        state[_SEEN_AT] = at
        state[_SEEN_S] = self._time.now_s
        state[_STRONG_S, picture.scores[found] >= self._config.high_score] = self._time.now_s
        self._state[:, tracks] = state
        confirmed = (self._ids[tracks] == 0) & (
            self._time.now_s - state[_BORN_S] >= self._config.confirm_s - _CLOCK_GRAIN_S
        )
        for track in tracks[confirmed]:
            self._ids[track] = next(_next_track_id)

    def _begin(self, picture: _Picture, found: IndexArray) -> None:
        """Sure detections that belong to no track begin one, best score first while there is room."""
        fresh = picture.scores >= self._config.new_score
        fresh[found] = False
        new = fresh.nonzero()[0]
        if len(new) and len(found):
            overlap = _iou(picture.boxes[new], picture.boxes[found])
            overlap[picture.classes[new][:, None] != picture.classes[found]] = 0.0
            new = new[overlap.max(axis=1) < _SAME_OBJECT_IOU]
        if not len(new):
            return
        room = self._config.max_objects - len(self._ids)
        new = new[np.argsort(-picture.scores[new], kind="stable")[:room]]
        state = np.zeros((_ROWS, len(new)))
        state[_AT] = state[_SEEN_AT] = picture.at[:, new]
        state[_VAR_AT] = _NOISE_OF_ROWS * picture.noise[new]
        state[_VAR_SPEED] = _FIRST_VAR_SPEED * np.maximum(picture.at[2, new], picture.at[3, new]) ** 2
        state[_SEEN_S:] = self._time.now_s
        self._state = np.concatenate([self._state, state], axis=1)
        self._ids = np.concatenate([self._ids, np.zeros(len(new), np.int64)])
        self._classes = np.concatenate([self._classes, picture.classes[new]])

    def _tracks(self, tracks: IndexArray, found: IndexArray, picture: _Picture) -> Tracks:
        x, y, width, height = self._state[_AT, tracks]
        boxes = np.empty((len(tracks), 4))
        boxes[:, 0], boxes[:, 1] = x - 0.5 * width, y - 0.5 * height
        boxes[:, 2], boxes[:, 3] = x + 0.5 * width, y + 0.5 * height
        scores = picture.scores[found]
        boxes += scores[:, None] * (picture.boxes[found] - boxes)
        return Tracks(
            boxes_xyxy=boxes.astype(np.float32),
            scores=scores.astype(np.float32),
            class_ids=self._classes[tracks],
            track_ids=self._ids[tracks],
            age_ms=np.rint((self._time.now_s - self._state[_BORN_S, tracks]) * 1e3).astype(np.int64),
        )


class _Picture:
    """The usable detections of one picture, in the forms that the tracker needs."""

    __slots__ = ("at", "boxes", "classes", "noise", "scores")

    def __init__(self, detections: Detections, low_score: float) -> None:
        boxes = detections.boxes_xyxy.astype(np.float64).reshape(-1, 4)
        scores = detections.scores.astype(np.float64)
        finite = np.isfinite(boxes)
        if not finite.all():
            boxes[~finite.all(axis=1)] = 0.0  # without area, hence not usable
        at = np.empty((4, len(scores)))
        at[:2] = (boxes[:, :2] + boxes[:, 2:]).T
        at[:2] *= 0.5
        at[2:] = (boxes[:, 2:] - boxes[:, :2]).T
        size = np.maximum(at[2], at[3])
        # float32 scores: the threshold must not be missed by the width of a rounding
        usable = (scores >= low_score - 1e-6) & (np.minimum(at[2], at[3]) > 0)
        classes = detections.class_ids
        if not usable.all():
            boxes, scores, classes, at, size = (
                boxes[usable],
                scores[usable],
                classes[usable],
                at[:, usable],
                size[usable],
            )
        self.boxes: FloatArray = boxes  # (N, 4) corners
        self.scores: FloatArray = scores
        self.classes: NDArray[np.int32] = classes
        self.at: FloatArray = at  # (4, N) centre x, centre y, width, height
        relative = _POSITION_NOISE + _UNSURE_NOISE * np.maximum(_SURE_SCORE - scores, 0.0)
        self.noise: FloatArray = (relative * size) ** 2  # (N,) variance of the centre


def _restart_motion(state: FloatArray, again: IndexArray, at: FloatArray, noise: FloatArray, gap_s: FloatArray) -> None:
    """Motion from the last and the new position alone, for tracks found again after a gap.

    The limit of OC-SORT's re-update, which runs the filter along a straight virtual path between the two positions.
    """
    if not len(again):
        return
    gap = gap_s[again]
    state[4:6, again] = (at[:2, again] - state[20:22, again]) / gap
    state[12:14, again] = noise[:2, again] / gap
    state[16:18, again] = 2.0 * noise[:2, again] / gap**2
    state[8:10, again] = noise[:2, again]


def _motion(step_s: float) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Fading and travel of the speed over a step, and what the step adds to the covariance of an object of size 1.

    Each (4, 1). Gillespie, "Exact numerical simulation of the Ornstein-Uhlenbeck process and its integral", 1996.
    """
    columns = []
    for damping, agitation in ((_POSITION_DAMPING, _POSITION_AGITATION), (_SIZE_DAMPING, _SIZE_AGITATION)):
        fade = math.exp(-damping * step_s)
        travel = (1.0 - fade) / damping
        spread = (1.0 - fade * fade) / (2.0 * damping)
        var_at = agitation * max(step_s - 2.0 * travel + spread, 0.0) / damping**2
        columns.append((fade, travel, var_at, agitation * travel * travel / 2.0, agitation * spread))
    position, size = columns
    values = np.array((position, position, size, size)).T[:, :, None]
    return values[0], values[1], values[2], values[3], values[4]


def _iou(a_xyxy: FloatArray, b_xyxy: FloatArray) -> FloatArray:
    """(M, N) intersection over union."""
    ax1, ay1, ax2, ay2 = a_xyxy.T[:, :, None]
    bx1, by1, bx2, by2 = b_xyxy.T
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    common: FloatArray = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    union: FloatArray = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    return common / union


def _match(similarity: FloatArray, rows: IndexArray, columns: IndexArray, least: float, matches: IndexArray) -> None:
    """Pair tracks (rows) with detections (columns), none of which has a partner yet; written into `matches`.

    Of all pairings the one with the greatest sum of what the similarities exceed `least` by.
    """
    if not len(rows) or not len(columns):
        return
    gain = similarity[rows[:, None], columns] - least
    best = gain.argmax(axis=1)
    worth = gain[np.arange(len(rows)), best] > 0
    if not worth.all():
        rows, gain, best = rows[worth], gain[worth], best[worth]
        if not len(rows):
            return
    if np.bincount(best).max() > 1:  # somebody wants the same; otherwise each has its best, which nothing exceeds
        _, best, _ = lap.lapjv(np.minimum(-gain, 0.0), extend_cost=True)
        worth = best >= 0
        worth &= gain[np.arange(len(rows)), best] > 0
        rows, best = rows[worth], best[worth]
    matches[rows] = columns[best]
