"""Checks of a model's outputs for the sample frames. The checks find outputs that contradict the model's description.

The shapes of outputs do not show how to read the outputs. Boxes can be corners or centers, in pixels or fractions,
before or after suppression. Therefore, the checks examine the values of the outputs. No check requires that the sample
frames show objects that the model knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.postprocess import Overlaps, kept_in_order

_Floats = NDArray[np.float32]

_MANY: Final = 20  # minimum number of boxes whose distribution on the canvas is judged
_WRONG: Final = 0.2  # accepted fraction of wrong boxes, because boxes with low scores can be anywhere
_STRAY: Final = 0.1  # fraction of the canvas by which centers can lie outside of it
_NEAR_CORNER: Final = 0.05  # fraction of the canvas within which the position of a box does not show how to read it
_HUGE: Final = (4.0, 1.2)  # largest side per canvas side, of few and of many boxes; objects can exceed the frame
_HUGE_SHARE: Final = 0.5
_OVERLAP: Final = 0.7  # IoU of two boxes of one class that describe the same object
_CONFIDENT: Final = 0.25  # score of an object
_BEST: Final = 100  # number of boxes of an unsuppressed output that are compared
_FEW_PX: Final = 1.5
_DENSE: Final = 1000  # rows; an output with that many rows cannot contain only objects


@dataclass(frozen=True, slots=True)
class Reading:
    """Boxes that a head reads in the outputs for one frame, best score first."""

    boxes_xyxy: _Floats  # (N, 4) model pixels
    scores: _Floats  # (N,)
    class_ids: NDArray[np.int32]  # (N,)

    def without_padding(self) -> Reading:
        """Return a copy without padding rows, which fill an output of fixed size.

        In a padding row, the score or both sides of the box are 0.
        """
        real = (self.boxes_xyxy[:, :2] != self.boxes_xyxy[:, 2:]).any(axis=1) & (self.scores > 0)
        return Reading(self.boxes_xyxy[real], self.scores[real], self.class_ids[real])


@dataclass(frozen=True, slots=True)
class Finding:
    """Reason why the outputs of a model cannot be read as model.yaml describes."""

    code: str
    text: str


def judge(
    readings: Sequence[Reading], size: tuple[int, int], *, suppressed: bool, bounded: bool = False
) -> Finding | None:
    """Return the first reason why the boxes of a sample cannot be right, or None if there is no such reason.

    Args:
        readings: one reading for each frame of the sample.
        size: width and height of the canvas in model pixels.
        suppressed: True if no non-maximum suppression follows, because the model returns one box per object. In this
            case, repeated boxes are a fault.
        bounded: True if the head limits the distances of the sides from a cell. In this case, huge boxes are accepted.
    """
    readings = [reading.without_padding() for reading in readings]
    boxes = np.concatenate([reading.boxes_xyxy for reading in readings]).astype(np.float64)
    several = any(len(reading.scores) > 1 for reading in readings)
    canvas = np.array(size, np.float64)
    found = next(_geometry(boxes, canvas, several=several, bounded=bounded), None)
    return found or (_overlap(readings) if suppressed else None)


def _geometry(
    boxes: NDArray[np.float64], canvas: NDArray[np.float64], *, several: bool, bounded: bool
) -> Iterator[Finding]:
    """Yield a finding for each fault in the positions and sizes of boxes (N, 4) on a canvas (2,).

    `several` is True if a frame has more than one box. For `bounded`, see `judge`.
    """
    if not len(boxes):
        return
    low, high = boxes[:, :2], boxes[:, 2:]
    centers, sides = (low + high) / 2, high - low
    reversed_share = (sides < -1e-3 * canvas).any(axis=1).mean()
    if reversed_share > _WRONG:
        yield Finding("corners-reversed", f"x2 < x1 or y2 < y1 in {reversed_share:.0%} of the boxes")
    least, most = boxes.min(), boxes.max()
    if several and least > -_FEW_PX and most < _FEW_PX:
        yield Finding("boxes-collapsed", f"all boxes lie between {least:.3g} and {most:.3g} pixels")
    spread = np.ptp(centers, axis=0)
    if len(np.unique(boxes, axis=0)) >= _BEST and (spread < 0.03 * canvas).all():
        text = f"the centers of all {len(boxes)} boxes lie within {spread[0]:.3g} x {spread[1]:.3g} pixels"
        yield Finding("boxes-collapsed", f"{text} of a canvas of {canvas[0]:.0f} x {canvas[1]:.0f}")
    outside = ((centers < -_STRAY * canvas) | (centers > (1 + _STRAY) * canvas)).any(axis=1)
    where = f"the canvas of {canvas[0]:.0f} x {canvas[1]:.0f} pixels"
    if outside.mean() > _WRONG:
        yield Finding("boxes-outside", f"the centers of {outside.mean():.0%} of the boxes lie outside {where}")
    huge = (sides > _HUGE[len(boxes) >= _MANY] * canvas).any(axis=1).mean()
    if huge > _HUGE_SHARE and not bounded:
        yield Finding("boxes-outside", f"{huge:.0%} of the boxes are larger than {where}")
    far = (centers > _NEAR_CORNER * canvas).all(axis=1)  # boxes of 0 pixels in the corner fill up tables
    grows = (high[far] >= 3 * low[far] - 1e-3 * canvas).all(axis=1)
    if np.count_nonzero(far) >= _MANY and np.mean(grows) > 0.98 and (spread > 0.3 * canvas).all():
        yield Finding("boxes-misread", "the sizes of all boxes grow with their distance from the upper left corner")


def _overlap(readings: Sequence[Reading]) -> Finding | None:
    """Return a finding if several boxes describe the same object, although the model should have suppressed them."""
    for reading in readings:
        sure = np.flatnonzero(reading.scores >= _CONFIDENT)
        dense = len(reading.scores) >= _DENSE
        if len(sure) < 3 and dense:
            sure = np.arange(_BEST)
        if len(sure) < 3:
            continue
        kept = kept_in_order(reading.boxes_xyxy[sure], reading.class_ids[sure], Overlaps(_OVERLAP, 1.0))
        doubled = len(sure) - int(np.count_nonzero(kept))
        if doubled >= max(2, len(sure) // 2):
            rows = f"; the output has {len(reading.scores)} rows" if dense else ""
            return Finding("not-suppressed", f"{doubled} of {len(sure)} boxes repeat a better box{rows}")
    return None


def judge_scores(views: Sequence[NDArray[np.float32]], *, logits: bool) -> Finding | None:
    """Return a finding if raw values cannot be the scores of a model.

    Return None if they can be the scores, or if there are no values.

    Args:
        views: class scores and objectness values before the activation, in any shape.
        logits: True if the head has an activation, and therefore expects logits. Other heads expect values from 0 to 1.
    """
    views = [view for view in views if view.size]
    if not views:
        return None
    low, high = float(np.min([view.min() for view in views])), float(np.max([view.max() for view in views]))
    if not np.isfinite([low, high]).all():
        return Finding("scores-out-of-range", f"expected scores from 0 to 1, got {low:.3g} to {high:.3g}")
    fractions = low >= -1e-3 and high <= 1 + 1e-3
    if not logits and not fractions:
        return Finding("scores-out-of-range", f"expected scores from 0 to 1, got {low:.3g} to {high:.3g}")
    if logits and fractions and low >= 0 and sum(view.size for view in views) >= _MANY:
        return Finding("scores-out-of-range", f"expected logits, got values from {low:.3g} to {high:.3g}")
    return None


def judge_class_ids(columns: Sequence[NDArray[np.float32]]) -> Finding | None:
    """Return a finding if more than half of the values in columns of class ids are not whole numbers."""
    values = np.concatenate([column.ravel() for column in columns])
    fractions = (values != np.rint(values)).mean() if values.size else 0.0
    if fractions <= 0.5:
        return None
    return Finding("classes-misread", f"{fractions:.0%} of the values that should be class ids are not whole numbers")


def judge_offsets(tables: Sequence[NDArray[np.float32]]) -> Finding | None:
    """Return a finding if tables (N, 4) of offsets and logarithms of sizes contain only values from 0 to 1.

    The logarithm of a size is negative for a box smaller than a cell, and greater than 1 for a box three times as large
    as a cell. If there are fewer than `_MANY` boxes, return None.
    """
    values = np.concatenate([table.ravel() for table in tables])
    if len(values) < 4 * _MANY or values.min() < 0 or values.max() > 1:
        return None
    return Finding("boxes-misread", "all offsets and logarithms of sizes lie between 0 and 1, as fractions do")


def agreement(reading: Reading) -> float:
    """Return the mean IoU of boxes that describe the same object, from 0 to 1. Return 0 if there are no such boxes.

    A network with cells finds the same object in several cells. If the boxes are decoded correctly, the boxes of one
    object agree. Two boxes describe the same object if they have the same class and an IoU of more than 0.1.
    """
    best = reading.scores[0] if len(reading.scores) else 0.0
    sure = np.flatnonzero(reading.scores >= max(0.05, best / 2))[:_BEST]
    if len(sure) < 2:
        return 0.0
    boxes = reading.boxes_xyxy[sure].astype(np.float64)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    shared = np.clip(np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2]), 0, None).prod(axis=2)
    area = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        overlap = np.nan_to_num(shared / (area[:, None] + area - shared))
    same = reading.class_ids[sure, None] == reading.class_ids[sure]
    near = overlap[same & (overlap > 0.1) & ~np.eye(len(sure), dtype=np.bool_)]
    return float(near.mean()) if near.size else 0.0
