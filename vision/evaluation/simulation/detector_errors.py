"""Model of how detections differ from the ground truth (`ErrorModel`), and a detector that creates such detections.

An error of an object lasts for some time: an object that is missed in one frame is likely to be missed in the next
frame. All errors are stationary processes in continuous time, so their rates do not depend on the frame rate.
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

PARTS: Final = (0.15, 0.35, 0.6, 0.85, 1.0)
"""Visible fractions of an object for which `ErrorModel.recall` and `ErrorModel.score` contain values."""

_LOWEST_SCORE: Final = 0.05  # minimum score of a detection
# Second boxes and false boxes, as nanodet-g-416 reports them on PETS09-S2L1 (tests/accuracy/detector_errors.py).
_SECOND_OFFSET: Final = 0.25  # standard deviation of center and size, as a part of the size
_SECOND_SCORE: Final = (0.2, 0.6)  # range of the score, as a part of the score of the first box
_FALSE_SCORE: Final = (0.15, 0.09)  # minimum of the score, and mean of the difference from this minimum
_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """Errors of a simulated detector, such as missed objects, inaccurate boxes, and false objects.

    Lengths in `jitter` are fractions of the width or height of the object's box.
    """

    recall: tuple[float, ...] = (1.0,) * len(PARTS)
    """Fraction of the objects that are detected, for each visible fraction in `PARTS`."""
    miss_s: float = 0.3  # time constant of misses
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Standard deviations of the center x, center y, width, and height of boxes."""
    jitter_s: float = 0.15  # time constant of jitter and of second boxes
    score: tuple[float, ...] = (1.0,) * len(PARTS)
    """Mean score, for each visible fraction in `PARTS`."""
    score_deviation: float = 0.0  # standard deviation of the score
    score_s: float = 0.5  # time constant of scores
    smallest_px: float = 0.0  # height at which half of the objects are missed
    cut: float = 0.0  # fraction of the partly hidden objects whose box encloses only the visible part
    double: float = 0.0  # mean number of second boxes per box, less than 1
    false_per_frame: float = 0.0  # mean number of boxes without an object
    false_s: float = 0.3  # mean duration of a false object
    flicker: float = 0.0  # fraction of the time with a wrong class, for classes that are confused
    flicker_s: float = 0.8  # time constant of wrong classes


DETECTORS: Final[Mapping[str, ErrorModel]] = {
    "exact": ErrorModel(),
    "good": ErrorModel(
        recall=(0.6, 0.8, 0.93, 0.98, 0.99),
        miss_s=0.2,
        jitter=(0.02, 0.015, 0.03, 0.02),
        jitter_s=0.2,
        score=(0.4, 0.5, 0.6, 0.7, 0.8),
        score_deviation=0.1,
        cut=0.6,
        double=0.02,
        false_per_frame=1.0,
        flicker=0.05,
        smallest_px=12.0,
    ),
    "poor": ErrorModel(
        recall=(0.77, 0.89, 0.98, 0.985, 0.996),
        jitter=(0.13, 0.04, 0.17, 0.08),
        jitter_s=0.23,
        score=(0.4, 0.43, 0.44, 0.57, 0.71),
        score_deviation=0.14,
        cut=0.6,
        double=0.58,
        false_per_frame=15.9,
        flicker=0.2,
        smallest_px=12.0,
    ),
}
"""Error models by name.

The values of `poor` are those of nanodet-g-416 at 416x416 pixels on PETS09-S2L1, for scores of at least 0.15
(tests/accuracy/detector_errors.py measures them). The clip has no vehicles and no objects below 30 pixels, so `cut`,
`flicker`, and `smallest_px` are assumptions. All values of `good` are assumptions about a larger model.
"""


class SimulatedDetector:
    """Detector that creates the detections of one scene, frame by frame. The same seed always gives the same errors.

    Args:
        errors: the error model.
        view: the camera, of which only the frame size is used.
        class_ids: true class id of each object, by object number from 1.
        confused: wrong class ids that the detector sometimes reports for each object, by object number from 1.
        seed: seed of the errors, an integer of at least 0.
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
        # Gaussian processes of each object: center x, center y, width, height, score, miss, cut, class, second box,
        # and center x, center y, width, and height of the second box.
        self._state = self._rng.standard_normal((13, objects))
        jitter_s = [errors.jitter_s] * 4
        others_s = [errors.score_s, errors.miss_s, max(errors.jitter_s, 0.5), errors.flicker_s, errors.jitter_s]
        self._constants_s = np.array([*jitter_s, *others_s, *jitter_s])[:, None]
        self._false: list[tuple[FloatArray, float, int]] = []  # box, score, class
        self._last_s = -math.inf

    def detect(self, frame: TrueFrame) -> Detections:
        """Return the detections of the next frame, highest score first."""
        step_s, self._last_s = frame.time_s - self._last_s, frame.time_s
        self._advance(step_s)
        boxes, scores, classes = self._of_objects(frame)
        false_boxes, false_scores, false_classes = self._of_nothing(step_s)
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

    def _advance(self, step_s: float) -> None:
        """Advance the random processes from which the errors are computed by `step_s` seconds.

        They are Ornstein-Uhlenbeck processes with variance 1.
        """
        fade = np.exp(-step_s / self._constants_s)
        noise = self._rng.standard_normal(self._state.shape)
        self._state = fade * self._state + np.sqrt(1.0 - fade * fade) * noise

    def _of_objects(self, frame: TrueFrame) -> tuple[FloatArray, FloatArray, FloatArray]:
        errors, state = self._errors, self._state[:, frame.ids]
        height = frame.boxes_xyxy[:, 3] - frame.boxes_xyxy[:, 1]
        recall = np.interp(frame.visible, PARTS, errors.recall)
        if errors.smallest_px:
            recall = recall / (1.0 + (errors.smallest_px / np.maximum(height, 1.0)) ** 4)
        threshold = np.array([_threshold(float(part)) for part in recall])
        detected = (recall >= 1.0) | (state[5] < threshold)
        cut = (frame.visible < 0.9) & (state[6] < _threshold(errors.cut))
        boxes = np.where(cut[:, None], frame.visible_xyxy, frame.boxes_xyxy)
        boxes = _moved(boxes, state[:4] * np.array(errors.jitter)[:, None])
        scores = np.interp(frame.visible, PARTS, errors.score) + errors.score_deviation * state[4]
        scores = np.clip(scores, _LOWEST_SCORE, 1.0)
        classes = np.array([self._class_of(int(number)) for number in frame.ids], np.float64)
        double = detected & (state[8] < _threshold(errors.double))
        second = _moved(boxes[double], _SECOND_OFFSET * state[9:, double])
        share = self._rng.uniform(*_SECOND_SCORE, int(double.sum()))
        return (
            np.concatenate([boxes[detected], second]),
            np.concatenate([scores[detected], scores[double] * share]),
            np.concatenate([classes[detected], classes[double]]),
        )

    def _class_of(self, number: int) -> int:
        """Return the id of the class that the detector currently reports for the object `number`."""
        others = self._confused.get(number, ())
        if others and self._errors.flicker:
            place = _NORMAL.cdf(float(self._state[7, number])) / self._errors.flicker
            if place < 1.0:
                return others[int(place * len(others))]
        return self._class_ids[number]

    def _of_nothing(self, step_s: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the boxes (K, 4), scores (K,), and class ids (K,) of the false objects in the next frame.

        The frame is `step_s` seconds after the previous frame. False objects appear at random places, and last for
        random times. Their number in a frame has the same Poisson distribution at every frame rate.
        """
        rng, mean = self._rng, self._errors.false_per_frame
        stays = math.exp(-step_s / self._errors.false_s)
        self._false = [one for one in self._false if rng.random() < stays]
        classes = list(self._class_ids.values()) or [0]
        for _ in range(int(rng.poisson(mean * (1.0 - stays)))):
            height = float(rng.uniform(0.05, 0.3)) * self._size[1]
            width = height * float(rng.uniform(0.3, 0.8))
            x, y = rng.uniform(0, self._size[0]), rng.uniform(0.2, 1.0) * self._size[1]
            box = np.array([x - width / 2, y - height, x + width / 2, y])
            score = min(_FALSE_SCORE[0] + float(rng.exponential(_FALSE_SCORE[1])), 1.0)
            self._false.append((box, score, int(rng.choice(classes))))
        boxes = np.array([one[0] for one in self._false]).reshape(-1, 4)
        scores, class_ids = ([one[column] for one in self._false] for column in (1, 2))
        return boxes, np.array(scores, np.float64), np.array(class_ids, np.float64)


def _threshold(part: float) -> float:
    """Return the quantile of the standard normal distribution for the probability `part`."""
    return _NORMAL.inv_cdf(min(max(part, 1e-9), 1 - 1e-9))


def _moved(boxes_xyxy: FloatArray, shares: FloatArray) -> FloatArray:
    """Move and scale boxes (N, 4).

    The first two rows of `shares` (4, N) are the motion of the center, as fractions of the width and height. The last
    two rows are the natural logarithms of the factors for the width and height.
    """
    size = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    middle = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2 + shares[:2].T * size
    half = size * np.exp(shares[2:].T) / 2
    return np.concatenate([middle - half, middle + half], axis=1)
