"""Decoder that converts the raw outputs of a network to candidates. It is the reference for the GPU kernel.

Each box has one class. If the network gives a score for each class, the class of a box is the reported class with the
highest score. Among classes with the same score, the lowest id wins.

Each box whose score reaches the threshold is a candidate. Candidates are sorted by score, and equal scores by the index
of the box. Because decoding is slow, only the boxes of the best candidates are decoded (see `Decoder.limit`). Boxes
with values that are not finite are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.config import ModelSpec
from vision.detect.reference.extras import keypoint_names
from vision.detect.reference.layout import Floats, Indices, Layout, Part, Values
from vision.detect.reference.postprocess import Candidates, best_first
from vision.detect.reference.shapes import CandidateShapes, Keypoints, MaskCoefficients, RotatedBoxes
from vision.errors import ModelError

Coding: TypeAlias = Literal["distances", "grid", "centers", "corners", "corners-yx", "rotated"]
"""Meaning of the values of a box:

- distances: a distribution of the distance of each side from the center of the cell, in units of the stride.
- grid: center x and y relative to the cell, in units of the stride, then the logarithms of width and height in these
  units. Keypoints are also relative to the cell.
- centers: center x and y, width, and height.
- corners: x1, y1, x2, and y2.
- corners-yx: y1, x1, y2, and x2.
- rotated: center x and y, and width and height before the rotation. The extra value is the angle in radians.
"""

_YX: Final = [1, 0, 3, 2]
_REALS: Final = ("float32", "float16")
_NUMBERS: Final = (*_REALS, "int32", "int64")


@dataclass(frozen=True, slots=True)
class Grid:
    """The N cells into which the strides divide the model's input, stride by stride, and row by row within a stride."""

    cells: Floats  # (N, 2) column and row
    strides: Floats  # (N,) model pixels

    @classmethod
    def of(cls, width: int, height: int, strides: Sequence[int]) -> Grid:
        cells, steps = [], []
        for stride in strides:
            columns, rows = -(-width // stride), -(-height // stride)
            x, y = np.meshgrid(np.arange(columns), np.arange(rows))
            cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
            steps.append(np.full(columns * rows, stride))
        return cls(np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules by which the raw outputs of a model become candidates: thresholds, classes, activation, and box coding."""

    coding: Coding
    class_count: int
    score: np.float32  # lowest score of a candidate
    floor: np.float32  # values below it, raw or after the softmax, cannot reach `score`
    classes: Indices  # ids to report, in ascending order
    sigmoid: bool
    softmax: bool  # True if the scores of a box are the softmax of the raw values of all classes
    root: bool  # True if the score is the root of class score times objectness, False if it is the product
    unit_px: Floats  # (4,) model pixels per unit of x1, y1, x2, y2
    strides: tuple[int, ...]
    grid: Grid
    center: tuple[float, float]  # center of a cell = (cell + center[0]) * stride + center[1]
    bins: int


class Decoder:
    """Decoder for the raw outputs of one model. It does not change, so any thread can call it."""

    def __init__(
        self, spec: ModelSpec, rules: Rules, layout: Layout, without_batch: frozenset[str] = frozenset()
    ) -> None:
        self.rules = rules
        self.layout = layout
        self.without_batch = without_batch
        """Names of the outputs that have no batch axis, because the model accepts only one frame at a time."""
        self.needs_nms = layout.needs_nms
        self.limit = spec.nms.max_candidates if layout.needs_nms else spec.nms.max_objects
        """Maximum number of candidates that `decode` returns."""
        self._name = spec.name
        self._keypoint_names = keypoint_names(spec, layout)
        self._canvas_px = (spec.input.width, spec.input.height)
        self._reported = np.zeros(rules.class_count, np.bool_)
        self._reported[rules.classes] = True
        if rules.coding == "distances":
            centers = (rules.grid.cells + rules.center[0]) * rules.grid.strides[:, None] + rules.center[1]
            self._corners = np.concatenate([centers, centers], axis=1, dtype=np.float32)
            self._reach = rules.grid.strides[:, None] * np.array([-1, -1, 1, 1], np.float32)
            self._bins = np.arange(rules.bins, dtype=np.float32)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs to read, in the order that `decode` expects."""
        return self.layout.outputs

    @property
    def width(self) -> int:
        """Number of raw values of a box, without scores and extra values."""
        return 4 * self.rules.bins if self.rules.coding == "distances" else 4

    def of_frame(self, outputs: Sequence[NDArray[Any]], index: int) -> list[Floats]:
        """Return the outputs of frame `index` for `decode`.

        `outputs` are the outputs for a batch, in the order of `self.outputs`.
        """
        pairs = zip(self.outputs, outputs, strict=True)
        return [np.asarray(value if name in self.without_batch else value[index], np.float32) for name, value in pairs]

    def raw_scores(self, outputs: Sequence[Floats]) -> list[Floats]:
        """Return views of all class scores and objectness values in a model's outputs, before the activation."""
        views = []
        for part in self.layout.parts:
            views.append(self._class_scores(part, outputs))
            if part.objectness is not None:
                views.append(_column(part.objectness, outputs))
        return views

    def check_types(self, dtypes: Sequence[str]) -> None:
        """Check the types of the outputs, in the order of `self.outputs`.

        Scores, objectness, boxes, and prototypes must be in fp32 or fp16. Class ids and the number of boxes can also be
        in int32 or int64. All scores and objectness values must have one type. All boxes must have one type.

        Raises:
            ModelError: the type of an output is not accepted, or types that must be the same differ.
        """
        layout = self.layout
        factors = [part.objectness for part in layout.parts if part.objectness is not None]
        groups: list[tuple[list[Values], tuple[str, ...]]] = [
            ([*(part.scores for part in layout.parts), *factors], _REALS),
            ([*(part.boxes for part in layout.parts), *(each.extra for each in layout.parts if each.extra)], _REALS),
        ]
        if layout.class_ids is not None:
            groups.append(([layout.class_ids], _NUMBERS))
        if layout.count is not None:
            groups.append(([Values(layout.count)], _NUMBERS))
        if layout.prototypes is not None:
            groups.append(([Values(layout.prototypes)], _REALS))
        for group, accepted in groups:
            indices = [values.output for values in group]
            types = {dtypes[index] for index in indices}
            if types - set(accepted) or len(types) > 1:
                names = ", ".join(dict.fromkeys(self.outputs[index] for index in indices))
                raise ModelError(
                    f"{self._name}: expected {' or '.join(accepted)} for {names}, got {' and '.join(sorted(types))}",
                    hint="export the model with outputs in fp32 or fp16",
                    code="output-dtype",
                )

    def check_scores(self, outputs: Sequence[Floats]) -> None:
        """Check that scores and objectness of one frame are from 0 to 1 if the head has no activation.

        Raises:
            ModelError: the head has no activation, and a value is NaN or outside [0, 1] by more than 0.001.
        """
        views = [view for view in self.raw_scores(outputs) if view.size]
        if self.rules.sigmoid or self.rules.softmax or not views:
            return
        low, high = np.min([view.min() for view in views]), np.max([view.max() for view in views])
        if low >= -1e-3 and high <= 1 + 1e-3:
            return
        raise ModelError(
            f"{self._name}: expected scores from 0 to 1, got {low:.3g} to {high:.3g}",
            hint="if the model outputs logits, write `activation: sigmoid` or `softmax` under `head` in model.yaml; "
            "otherwise the model may need a different head",
            code="scores-out-of-range",
        )

    def decode(self, outputs: Sequence[Floats]) -> Candidates:
        """Return the candidates of one frame, best first.

        Args:
            outputs: outputs of one frame in the order of `self.outputs`, float32 without the batch axis.
        """
        if self.layout.class_ids is not None:
            index, class_ids, scores, unnamed = self._labelled(self.layout.class_ids, outputs)
        else:
            index, class_ids, scores = self._classified(outputs)
            unnamed = 0
        chosen, truncated_candidates = best_first(scores, self.limit)
        with np.errstate(over="ignore", invalid="ignore"):
            boxes = self._boxes(outputs, index[chosen]) * self.rules.unit_px
            extra = self._extra(outputs, index[chosen], boxes)
            if self.rules.coding == "rotated":
                boxes = RotatedBoxes(extra).enclosing()
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(extra).all(axis=1)
        boxes, chosen = boxes[finite], chosen[finite]
        shapes = self._shapes(boxes, extra[finite], outputs)
        class_ids = class_ids[chosen].astype(np.int32)
        return Candidates(boxes, scores[chosen], class_ids, truncated_candidates, unnamed, shapes)

    # ------------------------------------------------------------------------------------------------ scores

    def _class_scores(self, part: Part, outputs: Sequence[Floats]) -> Floats:
        count = self.rules.class_count if self.layout.class_ids is None else 1
        first = part.scores.first
        return part.scores.table(outputs)[:, first : first + count]

    def _classified(self, outputs: Sequence[Floats]) -> tuple[Indices, Indices, Floats]:
        """Return the box index, class id, and score of every candidate, in ascending order of the box indices."""
        found, start = [], 0
        for part in self.layout.parts:
            scores = self._class_scores(part, outputs)
            scores = softmax(scores) if self.rules.softmax else scores
            index, class_ids, reached = self._best_classes(part, scores, outputs)
            found.append((index + start, class_ids, reached))
            start += len(scores)
        if len(found) == 1:
            return found[0]
        index, class_ids, reached = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return index, class_ids, reached

    def _best_classes(self, part: Part, scores: Floats, outputs: Sequence[Floats]) -> tuple[Indices, Indices, Floats]:
        """Return the box index in `part`, class id, and score of each candidate. `scores` is (boxes, classes)."""
        rules, factors = self.rules, None
        if not len(rules.classes):
            return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0, np.float32)
        if len(rules.classes) < rules.class_count:
            scores = scores.T[rules.classes].T if part.scores.by_column else scores[:, rules.classes]
        if rules.score <= 0 and part.objectness is None:
            index = np.arange(len(scores))  # faster than to find that no score is too low
        elif part.objectness is None:
            index = _boxes_over(scores, rules.floor, by_column=part.scores.by_column)
        else:
            factors = _column(part.objectness, outputs)
            index = np.flatnonzero(factors >= rules.floor)  # a product of fractions is not larger than its factors
        rows = scores[index]
        rows[np.isnan(rows)] = -np.inf
        columns = rows.argmax(axis=1)
        best = rows[np.arange(len(rows)), columns]
        over = best >= rules.floor
        index, columns, values = index[over], columns[over], self._activated(best[over])
        if factors is not None:
            values = values * self._activated(factors[index])
            values = np.sqrt(values) if rules.root else values
        sure = values >= rules.score
        return index[sure], rules.classes[columns[sure]], values[sure]

    def _labelled(self, named: Values, outputs: Sequence[Floats]) -> tuple[Indices, Indices, Floats, int]:
        """Find the candidates of a model that returns a class id for each box, at the position `named` in its outputs.

        Return the box index, class id, and score of every candidate. Also return the number of boxes whose score
        reaches the threshold, but whose class id has no name in model.yaml.
        """
        rules, part = self.rules, self.layout.parts[0]
        scores, class_ids = _column(part.scores, outputs), _column(named, outputs)
        if self.layout.count is not None:
            count = max(0, int(outputs[self.layout.count].ravel()[0]))
            scores, class_ids = scores[:count], class_ids[:count]
        index = np.flatnonzero(scores >= rules.floor)
        values, class_ids = self._activated(scores[index]), class_ids[index]
        sure = values >= rules.score
        index, values, class_ids = index[sure], values[sure], class_ids[sure]
        known = (class_ids >= 0) & (class_ids < rules.class_count) & (class_ids == np.floor(class_ids))
        unnamed = len(known) - int(np.count_nonzero(known))
        index, values, ids = index[known], values[known], class_ids[known].astype(np.intp)
        kept = self._reported[ids]
        return index[kept], ids[kept], values[kept], unnamed

    def _activated(self, raw: Floats) -> Floats:
        if self.rules.sigmoid:
            return sigmoid(raw)
        return np.clip(raw, np.float32(0), np.float32(1)) if self.rules.root else raw

    # ------------------------------------------------------------------------------------------------ boxes

    def _values(self, outputs: Sequence[Floats], index: Indices) -> Floats:
        """Return the raw values (N, `width`) of the boxes with these indices."""
        return _gathered([part.boxes for part in self.layout.parts], self.width, outputs, index)

    def _boxes(self, outputs: Sequence[Floats], index: Indices) -> Floats:
        """Return the boxes (N, 4) with these indices, in the unit of the model: xyxy, or center and size if rotated."""
        values = self._values(outputs, index)
        match self.rules.coding:
            case "corners":
                return values
            case "corners-yx":
                return values[:, _YX]
            case "rotated":
                return values
            case "centers":
                return to_xyxy(values)
            case "grid":
                grid = self.rules.grid
                strides = grid.strides[index, None]
                centers = (values[:, :2] + grid.cells[index]) * strides
                return to_xyxy(np.concatenate([centers, np.exp(values[:, 2:]) * strides], axis=1))
            case "distances":
                return self._from_distances(values, index)

    def _extra(self, outputs: Sequence[Floats], index: Indices, boxes: Floats) -> Floats:
        """Return the values (N, `width_of_extra`) for keypoints, masks, or rotation of the boxes with these indices."""
        places = [part.extra for part in self.layout.parts if part.extra is not None]
        if not places:
            return np.zeros((len(index), 0), np.float32)
        extra = _gathered(places, self.layout.extra_count, outputs, index)
        if self.rules.coding == "grid":  # landmarks are relative to the cell, like the center of the box
            grid = self.rules.grid
            points = extra.reshape(len(index), -1, 2) + grid.cells[index, None]
            return (points * grid.strides[index, None, None]).reshape(extra.shape)
        return np.concatenate([boxes, extra], axis=1) if self.rules.coding == "rotated" else extra

    @property
    def width_of_extra(self) -> int:
        """Number of extra values per box: keypoints, angle, or mask coefficients.

        For a rotated box, its center, width, and height are 4 more values.
        """
        return self.layout.extra_count + 4 * (self.rules.coding == "rotated")

    def _shapes(self, boxes: Floats, extra: Floats, outputs: Sequence[Floats]) -> CandidateShapes | None:
        if self.layout.prototypes is None:
            return self.shapes(extra)
        return MaskCoefficients(extra, boxes, outputs[self.layout.prototypes], self._canvas_px)

    def cell_px(self, mask_shape: tuple[int, int]) -> tuple[float, float]:
        """Return the width and height, in model pixels, of one cell of the mask prototypes.

        `mask_shape` contains the numbers of rows and columns of the prototypes.
        """
        return self._canvas_px[0] / mask_shape[1], self._canvas_px[1] / mask_shape[0]

    def shapes(self, extra: Floats) -> RotatedBoxes | Keypoints | None:
        """Convert extra values (N, `width_of_extra`) to keypoints or rotated boxes.

        Return None if the model has neither.
        """
        if self.rules.coding == "rotated":
            return RotatedBoxes(extra)
        if not self.layout.keypoint_values:
            return None
        values = self.layout.keypoint_values
        points = extra.reshape(len(extra), extra.shape[1] // values, values).copy()
        points[..., :2] *= self.rules.unit_px[:2]
        return Keypoints(points, self._keypoint_names)

    def _from_distances(self, values: Floats, index: Indices) -> Floats:
        # One row per side, and few operations, because each operation takes several microseconds with cold caches.
        logits = values.reshape(-1, self.rules.bins)
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits, out=logits)
        total = weights.sum(axis=1)
        weights *= self._bins
        distances = weights.sum(axis=1)
        distances /= total
        boxes: Floats = distances.reshape(-1, 4) * self._reach[index] + self._corners[index]
        return boxes


def _boxes_over(scores: Floats, floor: np.float32, *, by_column: bool) -> Indices:
    """Return the ascending indices of the rows of `scores` (boxes, classes) that have a value of at least `floor`."""
    if by_column:
        return np.unique(np.flatnonzero(floor <= scores.T) % max(1, len(scores)))
    return np.unique(np.flatnonzero(scores >= floor) // max(1, scores.shape[1]))


def _gathered(places: Sequence[Values], count: int, outputs: Sequence[Floats], index: Indices) -> Floats:
    """Return an array (N, `count`) with `count` values for each of the N boxes in `index`.

    `places` contains the position of the values in each part of the layout, in the order of the parts.
    """
    if len(places) == 1:
        first = places[0].first
        return places[0].table(outputs)[index, first : first + count]
    values, start = np.empty((len(index), count), np.float32), 0
    for place in places:
        table = place.table(outputs)
        inside = (index >= start) & (index < start + len(table))
        values[inside] = table[index[inside] - start, place.first : place.first + count]
        start += len(table)
    return values


def _column(values: Values, outputs: Sequence[Floats]) -> Floats:
    return values.table(outputs)[:, values.first]


def logit_floor(score: float) -> float:
    """Return a logit that is lower than every logit whose float32 sigmoid reaches `score`."""
    if score <= 0:
        return -math.inf
    return min(math.log(score / (1 - score)) - 1e-3, 10.0) if score < 1 else 10.0


def sigmoid(logits: Floats) -> Floats:
    """Return ``1 / (1 + exp(-x))`` in float32."""
    with np.errstate(over="ignore"):
        result: Floats = np.float32(1) / (np.float32(1) + np.exp(-logits))
    return result


def softmax(logits: Floats) -> Floats:
    """Return ``exp(x) / sum(exp(x))`` over the columns of each row, in float32."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def to_xyxy(boxes_cxcywh: Floats) -> Floats:
    """Convert boxes (N, 4) from center, width, and height to the corners x1, y1, x2, y2."""
    half = boxes_cxcywh[:, 2:] * np.float32(0.5)
    return np.concatenate([boxes_cxcywh[:, :2] - half, boxes_cxcywh[:, :2] + half], axis=1)
