"""Model of the errors of a detector (`ErrorModel`), and a simulated detector with such errors.

Errors of one object last for some time: an object that is missed in one frame is likely to be missed in the next one.
They are stationary processes in continuous time, so that, except for false objects, the frame rate has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from vision.evaluation.simulation.projection import CameraView, FloatArray
from vision.evaluation.simulation.truth import TrueFrame
from vision.types import Detections

_PARTS: Final = (0.15, 0.35, 0.6, 0.85, 1.0)  # visible fractions to which `ErrorModel.recall` and `score` refer
_LOWEST_SCORE: Final = 0.05
_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """Errors of a detector. Positions and sizes are fractions of the width or height of the object's box."""

    recall: tuple[float, ...] = (1.0,) * len(_PARTS)
    """Fraction of objects that are detected if the fraction 0.15, 0.35, 0.6, 0.85 or 1 of the object is visible."""
    miss_s: float = 0.3  # time constant of misses
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Standard deviations of center x, center y, width and height."""
    jitter_s: float = 0.15  # time constant of jitter
    score: tuple[float, ...] = (1.0,) * len(_PARTS)  # mean scores, for the same visible fractions as `recall`
    score_deviation: float = 0.0  # standard deviation of the score
    score_s: float = 0.5  # time constant of the score
    smallest_px: float = 0.0  # height at which half of the objects are missed; 0 means that height has no effect
    cut: float = 0.0  # fraction of partly hidden objects whose box encloses only the visible part
    double: float = 0.0  # mean number of second boxes per box
    false_per_frame: float = 0.0  # parameter for false objects; with 1, a frame at 5, 10 or 25 fps has 1.3, 1.6 or 2.7
    false_s: float = 0.3  # mean duration of a false object
    flicker: float = 0.0  # fraction of the time with a wrong class, for objects that can be confused
    flicker_s: float = 0.8  # time constant of the class


class SimulatedDetector:
    """Simulated detector for one scene. The same seed gives the same errors.

    Args:
        errors: error model.
        view: camera; only the size of its frames is used.
        class_ids: true class ID, by object.
        confused: class IDs that are sometimes reported instead, by object.
        seed: any number from 0.
    """

    def __init__(
        self,
        errors: ErrorModel,
        view: CameraView,
        class_ids: Mapping[int, int],
        confused: Mapping[int, Sequence[int]],
        seed: int,
    ) -> None:
        self._errors = errors
        self._size = (view.width_px, view.height_px)
        self._class_ids = class_ids
        self._confused = confused
        self._rng = np.random.default_rng((seed, 1))
        objects = max(class_ids, default=0) + 1
        # Gaussian processes by object: center x, center y, width, height, score, miss, cut, class.
        self._state = self._rng.standard_normal((8, objects))
        self._false: list[tuple[FloatArray, float, int, float]] = []  # box, score, class, end
        self._last_s = -math.inf

    def detect(self, frame: TrueFrame) -> Detections:
        """Return the detections of the next frame, in order of descending scores."""
        self._advance(frame.time_s)
        boxes, scores, classes = self._of_objects(frame)
        false_boxes, false_scores, false_classes = self._of_nothing(frame.time_s)
        all_boxes = np.concatenate([boxes, false_boxes])
        edges = np.tile(np.array(self._size, np.float64), 2)
        all_boxes = np.clip(all_boxes, 0.0, edges)
        all_scores = np.concatenate([scores, false_scores])
        all_classes = np.concatenate([classes, false_classes])
        valid = (all_boxes[:, 2] - all_boxes[:, 0] >= 1.0) & (all_boxes[:, 3] - all_boxes[:, 1] >= 1.0)
        order = np.flatnonzero(valid)[np.argsort(-all_scores[valid], kind="stable")]
        return Detections(
            all_boxes[order].astype(np.float32),
            all_scores[order].astype(np.float32),
            all_classes[order].astype(np.int32),
        )

    def _advance(self, time_s: float) -> None:
        """Advance all processes to a time. They are Ornstein-Uhlenbeck processes with variance 1."""
        errors = self._errors
        constants = np.array(
            [errors.jitter_s] * 4 + [errors.score_s, errors.miss_s, max(errors.jitter_s, 0.5), errors.flicker_s]
        )[:, None]
        fade = np.exp(-(time_s - self._last_s) / constants)
        noise = self._rng.standard_normal(self._state.shape)
        self._state = fade * self._state + np.sqrt(1.0 - fade * fade) * noise
        self._last_s = time_s

    def _of_objects(self, frame: TrueFrame) -> tuple[FloatArray, FloatArray, FloatArray]:
        errors, state = self._errors, self._state[:, frame.ids]
        height = frame.boxes_xyxy[:, 3] - frame.boxes_xyxy[:, 1]
        recall = np.interp(frame.visible, _PARTS, errors.recall)
        if errors.smallest_px:
            recall = recall / (1.0 + (errors.smallest_px / np.maximum(height, 1.0)) ** 4)
        threshold = np.array([_NORMAL.inv_cdf(float(np.clip(part, 1e-9, 1 - 1e-9))) for part in recall])
        detected = (recall >= 1.0) | (state[5] < threshold)
        cut = (frame.visible < 0.9) & (state[6] < _NORMAL.inv_cdf(float(np.clip(errors.cut, 1e-9, 1 - 1e-9))))
        boxes = np.where(cut[:, None], frame.visible_xyxy, frame.boxes_xyxy)
        boxes = _moved(boxes, state[:4] * np.array(errors.jitter)[:, None])
        scores = np.interp(frame.visible, _PARTS, errors.score) + errors.score_deviation * state[4]
        scores = np.clip(scores, _LOWEST_SCORE, 1.0)
        classes = np.array([self._class_of(int(number)) for number in frame.ids], np.float64)
        boxes, scores, classes = boxes[detected], scores[detected], classes[detected]
        double = self._rng.random(len(scores)) < errors.double
        second = _moved(boxes[double], self._rng.normal(0.0, 0.15, (4, int(double.sum()))))
        return (
            np.concatenate([boxes, second]),
            np.concatenate([scores, scores[double] * self._rng.uniform(0.4, 0.9, int(double.sum()))]),
            np.concatenate([classes, classes[double]]),
        )

    def _class_of(self, number: int) -> int:
        """Return the class ID that the detector currently reports for an object."""
        others = self._confused.get(number, ())
        if others and self._errors.flicker:
            place = _NORMAL.cdf(float(self._state[7, number])) / self._errors.flicker
            if place < 1.0:
                return others[int(place * len(others))]
        return self._class_ids[number]

    def _of_nothing(self, time_s: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return boxes, scores and classes of false objects, which appear at random positions for random durations."""
        errors, rng = self._errors, self._rng
        kept = [one for one in self._false if one[3] > time_s]
        wanted = errors.false_per_frame
        # The births do not depend on the time since the last frame, so more frames/s cause more false objects.
        born = rng.poisson(max(wanted - len(kept), 0.0) if not kept else wanted * 0.3) if wanted else 0
        for _ in range(int(born)):
            height = float(rng.uniform(0.05, 0.3)) * self._size[1]
            width = height * float(rng.uniform(0.3, 0.8))
            x, y = rng.uniform(0, self._size[0]), rng.uniform(0.2, 1.0) * self._size[1]
            box = np.array([x - width / 2, y - height, x + width / 2, y])
            classes = list(self._class_ids.values()) or [0]
            kept.append(
                (box, float(rng.uniform(0.2, 0.6)), int(rng.choice(classes)), time_s + rng.exponential(errors.false_s))
            )
        self._false = kept
        boxes = np.array([one[0] for one in kept]).reshape(-1, 4)
        return boxes, np.array([one[1] for one in kept]), np.array([one[2] for one in kept], np.float64)


def _moved(boxes_xyxy: FloatArray, shares: FloatArray) -> FloatArray:
    """Change center x, center y, width and height of boxes (N, 4) by fractions (4, N) of the size. Return new boxes."""
    size = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    middle = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2 + shares[:2].T * size
    half = size * np.exp(shares[2:].T) / 2
    return np.concatenate([middle - half, middle + half], axis=1)
