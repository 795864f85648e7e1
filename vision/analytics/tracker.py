"""`Tracker` turns the detections of one camera into tracks.

Cameras drop frames and change their frame rate, so every parameter is a time, a score, or a multiple of the object's
size. Therefore, the same rules apply at 30, 10, and 3 frames/s.

The tracker matches detections with published tracks in two stages, as in ByteTrack (Zhang et al., "ByteTrack:
Multi-Object Tracking by Associating Every Detection Box", ECCV 2022):

1. Strong detections can match any published track.
2. Weak detections can match recently detected tracks that have no match or a doubtful match.

The other strong detections continue unpublished tracks or start new tracks. The motion model is a Kalman filter in
continuous time. Two parts come from OC-SORT (Cao et al., "Observation-Centric SORT", CVPR 2023): the similarity
includes the direction, and an option computes the motion of an object after a gap from only two positions.

One array contains all tracks, with a row for each quantity, so that the number of NumPy calls per frame is fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from msgspec.structs import replace
from numpy import count_nonzero  # several times faster than any() and all() on small arrays
from numpy.typing import NDArray

from vision.analytics.class_groups import ClassGroups, ClassIds, vote
from vision.analytics.frame_clock import CLOCK_GRAIN_S, FrameClock
from vision.analytics.frame_detections import SCORE_GRAIN, FrameDetections
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, covered_parts, edges_of_frames, iou, round_px
from vision.analytics.near_pairs import Near, near_pairs
from vision.analytics.track_matching import Pairs, distance_of, place_variance, similarity
from vision.analytics.track_sizes import SizeFilter, hidden_heights_px, size_step
from vision.analytics.track_state import (
    AT,
    BORN_S,
    COVARIANCE,
    EXTENT,
    FILTER,
    LEAD,
    PLACE,
    ROWS,
    SEEN_AT,
    SEEN_S,
    SPEED,
    STRONG_S,
    VAR_AT,
    VAR_SPEED,
    VOTES,
    WHOLE,
    PerTrack,
    is_standing,
    measure_growth,
    motion,
    new_state,
    predict,
    restart_motion,
    values_at,
)
from vision.config import TrackConfig
from vision.types import Detections, Tracks

_SIZE_NOISE: Final = 1.5  # ratio of the variance of width and height to the variance of the center
_NOISE_OF_ROWS: Final = np.array([[1.0], [1.0], [_SIZE_NOISE], [_SIZE_NOISE]])

# The similarity of a track and a detection is from about 0 to 1 (`similarity`).
_FARTHEST: Final = 2.0  # maximum distance of a match in object sizes, at which nearness is 0.01
_ANY_STAGE: Final = 0.12  # minimum similarity of a published track and a strong detection
_WEAK_STAGE: Final = 0.5  # minimum similarity of a published track and a weak detection
_STANDING_STAGE: Final = 0.7  # the same for a standing object that has had only weak detections for `weak_s`
_WEAK_STEPS: Final = 4.5  # usual intervals after the last detection in which a weak detection can continue a track
_TENTATIVE_STAGE: Final = 0.1  # minimum similarity of an unpublished track and a strong detection
_ANY_DISTANCE: Final = distance_of(_ANY_STAGE)  # beyond it, boxes that do not overlap cannot match
_OF_TRACKS: Final = math.inf, _ANY_DISTANCE
"""Distances of unpublished and published tracks. Unpublished tracks match at any distance in the right direction."""
_OF_DETECTIONS: Final = distance_of(_WEAK_STAGE), _ANY_DISTANCE  # distances of weak and strong detections
_EDGE_PX: Final = 1.0  # distance from the edge of the frame at which a box counts as cut off
_COVERED: Final = 0.2  # an object counts as covered if a nearer box covers at least this part of its box
_SAME_OBJECT_IOU: Final = 0.7  # a detection that overlaps a tracked object this much is the same object
_PERHAPS_SAME_IOU: Final = 0.4  # a detection with this overlap is another object only if it lasts `_PERHAPS_SAME_S`
_PERHAPS_SAME_S: Final = 0.5

_NONE, _ONE = np.array(0), np.array(1.0)  # NumPy computes faster with an array than with a Python number
_CORNERS: Final = np.array([[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]])
"""Matrix that converts center x, center y, width, and height to corners x1, y1, x2, y2."""

_MAX_DETECTIONS: Final = 1_000  # maximum number of detections of several cameras that are processed together

_shared_ids = itertools.count(1)


class Tracker:
    """Tracker of the objects of one camera. It is not thread-safe.

    Detections of different classes are different objects, unless the classes are in one group. Capture times can stay
    the same, go back, or jump ahead. If a capture time goes back, the clock advances by the usual interval, so the age
    of a track never decreases. A gap longer than both `lost_s` and 2.5 times the usual interval ends every track.

    Args:
        config: scores and times that control the tracks, or None for the defaults.
        frame_size_px: width and height of the frame, or None if the size is unknown. The tracker clips published boxes
            to the frame. Boxes that the edge of the frame cuts off may change their size at any rate.
        groups: groups of classes that the detector confuses, or None if there are no groups. The class of a track is
            the class with the most votes in its group.
        track_ids: ids of new tracks. All trackers of the process without `track_ids` share one sequence of ids.
    """

    def __init__(
        self,
        config: TrackConfig | None = None,
        frame_size_px: tuple[int, int] | None = None,
        groups: ClassGroups | None = None,
        track_ids: Iterator[int] | None = None,
    ) -> None:
        self.config = config or TrackConfig()  # can be replaced between two frames, if `class_groups` stays the same
        self._new_ids = _shared_ids if track_ids is None else track_ids
        self._class_groups = groups if groups is not None and groups.grouped else None
        self._frame_size_px = frame_size_px
        self._state: FloatArray = np.zeros((ROWS, 0))
        self._ids: NDArray[np.int64] = np.zeros(0, np.int64)  # 0 means not yet published
        self._classes: ClassIds = np.zeros(0, np.int32)
        self._groups: ClassIds = np.zeros(0, np.int32)
        self._time = FrameClock()
        self._motion = motion(0.0)
        self._size_step = 1.0, 0.0  # result of `size_step`
        self._seen_s = 0.0  # no track was last detected before this time

    def update(self, detections: Detections, captured_ns: int) -> Tracks:
        """Process the detections of one frame.

        Args:
            detections: detections down to `TrackConfig.low_score`. Detections with a lower score, without area, or with
                infinite or NaN coordinates are ignored.
            captured_ns: capture time of the frame on the monotonic clock.

        Returns:
            The published tracks that were detected in this frame. Each box lies between the detected and the predicted
                box. A higher score and a more likely size move the box toward the detected box. The boxes are rounded
                to 0.2 px.
        """
        return update_together([(self, detections, captured_ns)])[0]

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        if count_nonzero(kept) < len(kept):
            self._state, self._ids = self._state.compress(kept, axis=1), self._ids[kept]
            self._classes, self._groups = self._classes[kept], self._groups[kept]

    def _advance(self, captured_ns: int) -> None:
        """Advance to the time of the frame. End the tracks that have been lost for too long."""
        step_s = self._time.advance(captured_ns)
        least_s = self._time.now_s - self._time.memory_s(self.config.lost_s) - CLOCK_GRAIN_S
        if self._seen_s < least_s:
            self._keep(self._state[SEEN_S] >= least_s)
            self._seen_s = float(self._state[SEEN_S].min(initial=self._time.now_s))
        self._motion = motion(step_s)
        if step_s:
            self._size_step = size_step(step_s)


def update_together(frames: Sequence[tuple[Tracker, Detections, int]]) -> list[Tracks]:
    """Process one frame of each of several cameras, as `Tracker.update` does, with the same NumPy calls for all.

    The trackers must have equal settings. The results do not depend on which frames are processed together. Most of the
    time for a frame is the fixed cost of NumPy calls, so a frame takes less time in a group than alone.

    `frames` contains the tracker, the detections, and the capture time in nanoseconds of each frame. Return the
    published tracks of each frame, in the same order.
    """
    results: list[Tracks] = []
    while len(results) < len(frames):
        group: list[tuple[Tracker, Detections, int]] = []
        detections = 0
        for frame in frames[len(results) :]:
            detections += len(frame[1])
            if group and (detections > _MAX_DETECTIONS or any(frame[0] is tracker for tracker, _, _ in group)):
                break
            group.append(frame)
        for tracker, _, captured_ns in group:
            tracker._advance(captured_ns)
        together = _TracksTogether([tracker for tracker, _, _ in group])
        results += together.update([found for _, found, _ in group])
    return results


class _TracksTogether:
    """Tracks of one or several cameras during one update, in the order of the cameras."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        first = trackers[0]
        self._trackers = trackers
        self._config, self._class_groups = first.config, first._class_groups
        self._camera: IndexArray | None = None  # (M,) index of each track's camera; None if there is only one camera
        self._clocks = [tracker._time.now_s for tracker in trackers]
        self._now_s: PerTrack = first._time.now_s
        self._usual_s: PerTrack = first._time.usual_s
        self._tentative_s: PerTrack = first._time.memory_s(self._config.tentative_s)
        self._size_step: tuple[PerTrack, PerTrack] = first._size_step
        sizes_px = tuple(tracker._frame_size_px for tracker in trackers)
        self._edges = None if None in sizes_px else edges_of_frames(sizes_px, _EDGE_PX)
        self._state, self._ids = first._state, first._ids
        self._classes, self._groups = first._classes, first._groups
        if len(trackers) > 1:
            self._concatenate()
        if len(self._ids):
            of_cameras = [tracker._state[FILTER] for tracker in trackers]
            predict(self._state, of_cameras, [tracker._motion for tracker in trackers], self._camera)

    def _concatenate(self) -> None:
        trackers = self._trackers
        self._state = np.concatenate([tracker._state for tracker in trackers], axis=1)
        self._ids = np.concatenate([tracker._ids for tracker in trackers])
        self._classes = np.concatenate([tracker._classes for tracker in trackers])
        self._groups = np.concatenate([tracker._groups for tracker in trackers])
        self._camera = np.arange(len(trackers)).repeat([len(tracker._ids) for tracker in trackers])
        wanted_s, clocks = self._config.tentative_s, [(tracker._time, tracker._size_step) for tracker in trackers]
        times = [(clock.now_s, clock.usual_s, clock.memory_s(wanted_s), *step) for clock, step in clocks]
        self._now_s, self._usual_s, self._tentative_s, *size_step = np.array(times).take(self._camera, axis=0).T
        self._size_step = size_step[0], size_step[1]

    def update(self, detections: Sequence[Detections]) -> list[Tracks]:
        """Match the detections of each camera's frame with the tracks. Return the published tracks of each frame."""
        frame = FrameDetections(detections, self._config, self._class_groups, self._edges)
        matches = self._associate(frame)
        tracks = (matches >= _NONE).nonzero()[0]
        matched = matches[tracks]
        all_published = count_nonzero(self._ids) == len(self._ids)
        previous = None if all_published else self._publish(tracks)
        trust = self._correct(tracks, matched, frame)
        if all_published:
            results = self._results(tracks, matched, frame, trust)
        else:
            published = self._ids[tracks] > 0
            results = self._results(tracks[published], matched[published], frame, trust[published])
            if previous is not None:
                results = self._with_previous(results, tracks[published], previous[published].astype(np.float32))
            self._keep((self._ids > 0) | (self._now_s - self._state[SEEN_S] <= self._tentative_s))
        self._begin(frame, matched)
        self._store()
        return results

    # --- association --------------------------------------------------------------------------------------------------

    def _associate(self, frame: FrameDetections) -> IndexArray:
        """Return the index of the detection matched to each track, or -1 for a track without a match."""
        matches = np.empty(len(self._ids), np.intp)
        matches.fill(-1)
        if not len(matches) or not len(frame.scores):
            return matches
        pairs = self._pairs(frame)
        strong, published = frame.strong, self._ids > _NONE
        pairs.match(published, strong, _ANY_STAGE, matches)
        if count_nonzero(strong) < len(strong):
            certain = self._state[STRONG_S] >= self._now_s - self._config.weak_s - CLOCK_GRAIN_S
            pairs.release_misled(weak := ~strong, frame.boxes, _WEAK_STAGE, certain, matches)
            self._continue_weakly(pairs, published & (matches < 0), weak, matches)
        if count_nonzero(published) < len(published):
            strong = strong.copy()
            strong[matches[matches >= 0]] = False
            pairs.match(~published, strong, _TENTATIVE_STAGE, matches)
        return matches

    def _continue_weakly(self, pairs: Pairs, tracks: BoolArray, weak: BoolArray, matches: IndexArray) -> None:
        """Match weak detections with recently detected tracks, and add the matches to `matches`.

        If an object does not move, or is partly behind another object, weak detections can continue its track for a
        longer time. The method overwrites `tracks` and `weak`.
        """
        if not count_nonzero(tracks):
            return
        now_s, config = self._now_s, self._config
        just_before_s = _WEAK_STEPS * self._usual_s + CLOCK_GRAIN_S
        weak_since_s = self._state[STRONG_S]
        lasting = weak_since_s >= now_s - config.weak_standing_s
        older = tracks & lasting
        tracks &= self._state[SEEN_S] >= now_s - just_before_s
        longest = max if isinstance(just_before_s, float) else np.maximum
        recent = tracks & (weak_since_s >= now_s - longest(config.weak_s, just_before_s))
        older &= ~recent
        if count_nonzero(older) and count_nonzero(older := pairs.can_match(older, weak, _WEAK_STAGE)):
            recent |= self._covered(older, matches)
        pairs.match(recent, weak, _WEAK_STAGE, matches)
        tracks &= lasting & (matches < _NONE)
        if count_nonzero(tracks) and count_nonzero(tracks := tracks & is_standing(self._state)):
            weak[matches[matches >= 0]] = False
            pairs.match(tracks, weak, _STANDING_STAGE, matches)

    def _covered(self, tracks: BoolArray, matches: IndexArray) -> BoolArray:
        """Return a mask (M,) of the `tracks` whose objects are partly behind an object with a match in this frame."""
        covered, hidden, nearer = np.zeros_like(tracks), tracks.nonzero()[0], (matches >= 0).nonzero()[0]
        corners = _CORNERS.dot(self._state[AT]).T
        covers = covered_parts(corners[hidden], corners[nearer]) >= _COVERED
        if self._camera is not None:
            covers &= self._camera[hidden][:, None] == self._camera[nearer]
        covered[hidden] = covers.any(axis=1)
        return covered

    def _pairs(self, frame: FrameDetections) -> Pairs:
        """Return the pairs of a track and a detection that are near each other, with their similarity."""
        state, at = self._state, frame.at
        size = np.maximum(state[2], state[3])
        variance = place_variance(state, size)
        tracks = Near(state[PLACE], state[EXTENT], variance, self._ids > _NONE, _OF_TRACKS, self._groups, self._camera)
        seen = Near(at[PLACE], at[EXTENT], frame.noise, frame.strong, _OF_DETECTIONS, frame.groups, frame.camera)
        rows, columns = near_pairs(tracks, seen, _FARTHEST * size)
        value = similarity(state, variance, frame, rows, columns)
        return Pairs(rows, columns, value, least=_TENTATIVE_STAGE, shape=(len(size), len(frame.scores)))

    # --- the life of a track ------------------------------------------------------------------------------------------

    def _publish(self, tracks: IndexArray) -> FloatArray | None:
        """Assign ids to matched tracks that are old enough to be published. Return `Tracks.previous_xyxy` (M, 4).

        Return None if all matched tracks already have ids. Call this before `_correct`, which overwrites the previous
        positions.
        """
        new = self._ids[tracks] == 0
        if not count_nonzero(new):
            return None
        age_s = values_at(self._now_s, tracks) - self._state[BORN_S][tracks]
        new &= age_s >= self._config.confirm_s - CLOCK_GRAIN_S
        published = tracks[new]
        for track in published:
            self._ids[track] = next(self._trackers[0 if self._camera is None else self._camera[track]]._new_ids)
        before = self._state.take(published, axis=1)
        before[PLACE] = before[SEEN_AT]
        previous = np.full((len(tracks), 4), math.nan)
        previous[new] = round_px((_CORNERS @ before[AT]).T)
        return previous

    def _with_previous(
        self, results: Sequence[Tracks], tracks: IndexArray, previous: NDArray[np.float32]
    ) -> list[Tracks]:
        """Return `results` with the boxes `previous` (M, 4) of the published `tracks` (M,) added."""
        of_camera = [previous[first:end] for first, end in self._ranges(self._cameras_of(tracks), len(tracks))]
        return [
            result if np.isnan(boxes).all() else replace(result, previous_xyxy=boxes)
            for result, boxes in zip(results, of_camera, strict=True)
        ]

    def _correct(self, tracks: IndexArray, matched: IndexArray, frame: FrameDetections) -> FloatArray:
        """Update the state of matched tracks with their detections. Return the weight (M,) of each box, up to 1."""
        if not len(tracks):
            return np.ones(0)
        all_tracks = len(tracks) == len(self._ids)
        state = self._state if all_tracks else self._state.take(tracks, axis=1)
        at = frame.at.take(matched, axis=1)  # much faster than an index, unlike in one dimension
        noise = _NOISE_OF_ROWS.dot(frame.noise[matched][None])  # as a product of all pairs, but faster
        error = at - state[AT]
        now_s = values_at(self._now_s, tracks)
        trend_share, growth_variance = self._size_step
        sizes = SizeFilter(now_s, values_at(trend_share, tracks), values_at(growth_variance, tracks))
        belief = sizes.weigh(state, at, noise, frame.cut[matched])
        noise /= belief
        inverse = _ONE / (state[VAR_AT] + noise)
        gain, speed_gain = state[VAR_AT] * inverse, state[COVARIANCE] * inverse
        trust = _ONE - gain
        state[AT] += gain * error
        state[SPEED] += speed_gain * error
        state[VAR_SPEED] -= speed_gain * state[COVARIANCE]
        state[VAR_AT] *= trust
        state[COVARIANCE] *= trust
        gap_s = now_s - state[SEEN_S]
        if self._config.reactivation == "observation":
            usual_s = values_at(self._usual_s, tracks)
            again = (gap_s > 1.5 * usual_s + CLOCK_GRAIN_S).nonzero()[0]
            restart_motion(state, again, at, noise, gap_s)
        measure_growth(state, gap_s, frame.cut[matched])
        state[SEEN_AT] = at[PLACE]
        state[SEEN_S] = now_s
        np.putmask(state[STRONG_S], frame.strong[matched], now_s)
        if self._class_groups is not None:
            classes = self._classes[tracks]
            vote(classes, state[LEAD], state[VOTES], frame.classes[matched], frame.scores[matched])
            self._classes[tracks] = classes
        if not all_tracks:
            self._state[:, tracks] = state
        return belief

    def _begin(self, frame: FrameDetections, matched: IndexArray) -> None:
        """Start tracks for unmatched detections with at least `new_score` that do not show a tracked object.

        A detection shows a tracked object if its IoU with a matched detection is at least `_SAME_OBJECT_IOU`. If the
        IoU is lower, but at least `_PERHAPS_SAME_IOU`, the track is published `_PERHAPS_SAME_S` later. Detections with
        high scores come first, until there are `max_objects` tracks. `matched` are indices of matched detections.
        """
        fresh = frame.scores >= self._config.new_score - SCORE_GRAIN
        fresh[matched] = False
        new = fresh.nonzero()[0]
        if not len(new):
            return
        later_s = np.zeros(len(frame.scores))
        if len(matched):
            overlap = iou(frame.boxes[new], frame.boxes[matched])
            overlap[frame.groups[new][:, None] != frame.groups[matched]] = 0.0
            if frame.camera is not None:
                overlap[frame.camera[new][:, None] != frame.camera[matched]] = 0.0
            most = overlap.max(axis=1)
            later_s[new] = _PERHAPS_SAME_S * (most >= _PERHAPS_SAME_IOU)
            new = new[most < _SAME_OBJECT_IOU]
        if not len(new):
            return
        new = self._best(new[np.argsort(-frame.scores[new], kind="stable")], frame.camera)
        now_s = self._clocks[0] if frame.camera is None else np.array(self._clocks)[frame.camera[new]]
        state = new_state(frame.at[:, new], _NOISE_OF_ROWS * frame.noise[new], frame.scores[new], now_s)
        state[BORN_S] += later_s[new]
        self._state = np.concatenate([self._state, state], axis=1)
        self._ids = np.concatenate([self._ids, np.zeros(len(new), np.int64)])
        self._classes = np.concatenate([self._classes, frame.classes[new]])
        self._groups = np.concatenate([self._groups, frame.groups[new]])
        if self._camera is not None and frame.camera is not None:
            self._sort(np.concatenate([self._camera, frame.camera[new]]))

    def _best(self, new: IndexArray, camera: IndexArray | None) -> IndexArray:
        """Return `new` without the detections that would give a camera more than `max_objects` tracks.

        `camera` (N,) contains the index of the camera of each detection, or None if there is only one camera.
        """
        if camera is None or self._camera is None:
            return new[: max(0, self._config.max_objects - len(self._ids))]
        new_of = [new[camera[new] == number] for number in range(len(self._trackers))]
        room = (self._config.max_objects - np.bincount(self._camera, minlength=len(self._trackers))).clip(0)
        return np.concatenate([new[:number] for new, number in zip(new_of, room.tolist(), strict=True)])

    def _sort(self, camera: IndexArray) -> None:
        """Sort the tracks by `camera`, with new tracks last."""
        order = camera.argsort(kind="stable")
        self._state, self._ids, self._camera = self._state.take(order, axis=1), self._ids[order], camera[order]
        self._classes, self._groups = self._classes[order], self._groups[order]

    def _results(
        self, tracks: IndexArray, matched: IndexArray, frame: FrameDetections, trust: FloatArray
    ) -> list[Tracks]:
        """Return each camera's tracks to publish.

        `tracks` and `matched` are the indices (M,) of the tracks and of their detections. `trust` (M,) is the weight of
        each detected box, up to 1.
        """
        cameras = self._cameras_of(tracks)
        boxes = np.ascontiguousarray(_CORNERS.dot(self._state[AT].take(tracks, axis=1)).T)
        scores, detected = frame.scores[matched], frame.boxes.take(matched, axis=0)
        error = detected - boxes
        error *= (scores * trust).repeat(4).reshape(boxes.shape)
        boxes += error  # from the track's position toward the detection
        if self._edges is not None:
            self._edges.clip(boxes, detected, cameras)
        boxes = round_px(boxes)
        hidden_px = hidden_heights_px(self._state[WHOLE][tracks], detected, boxes)
        boxes_xyxy, scores_float32 = boxes.astype(np.float32), scores.astype(np.float32)
        classes, ids = self._classes[tracks], self._ids[tracks]
        age_s = values_at(self._now_s, tracks) - self._state[BORN_S][tracks]
        age_ms = np.rint(age_s * 1e3).astype(np.int64)
        results = []
        for number, (first, end) in enumerate(self._ranges(cameras, len(tracks))):
            found, hidden, shapes = frame.detections[number], None, None
            if hidden_px is not None and count_nonzero(hidden_px[0][first:end]):
                hidden = hidden_px[1][first:end]
            if found.shapes is not None:
                shapes = found.shapes.take(frame.rows_of(number, matched[first:end]))
            results.append(
                Tracks(
                    boxes_xyxy[first:end],
                    scores_float32[first:end],
                    classes[first:end],
                    ids[first:end],
                    age_ms[first:end],
                    truncated_candidates=found.truncated_candidates,
                    hidden_px=hidden,
                    shapes=shapes,
                )
            )
        return results

    def _cameras_of(self, tracks: IndexArray) -> IndexArray | None:
        return None if self._camera is None else self._camera[tracks]

    def _ranges(self, camera: IndexArray | None, number: int) -> list[tuple[int, int]]:
        """Return the first and the end index of each camera's tracks among `number` tracks, sorted by `camera`."""
        if camera is None:
            return [(0, number)]
        bounds = camera.searchsorted(np.arange(len(self._trackers) + 1)).tolist()
        return list(itertools.pairwise(bounds))

    def _keep(self, kept: BoolArray) -> None:
        if count_nonzero(kept) < len(kept):
            self._state, self._ids = self._state.compress(kept, axis=1), self._ids[kept]
            self._classes, self._groups = self._classes[kept], self._groups[kept]
            if self._camera is not None:
                self._camera = self._camera[kept]

    def _store(self) -> None:
        """Store the tracks in the tracker of each camera."""
        ranges = self._ranges(self._camera, len(self._ids))
        for tracker, (first, end) in zip(self._trackers, ranges, strict=True):
            tracker._state, tracker._ids = self._state[:, first:end], self._ids[first:end]
            tracker._classes, tracker._groups = self._classes[first:end], self._groups[first:end]
