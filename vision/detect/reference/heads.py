"""Decoders of network outputs, one class per family of models. Each is the reference for the GPU kernel of its family.

Every pair of box and class whose score reaches the threshold is a candidate. Its index is ``box * classes + class``. A
box can be a candidate for several classes, as in COCO's evaluation. Decoding boxes takes the most time, and few boxes
are needed. Therefore, only the boxes of the best pairs are decoded: `max_candidates`, or `max_objects` without NMS.
Equal scores are sorted by index.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.config import ModelSpec
from vision.detect.reference.postprocess import Candidates, best_first
from vision.errors import ModelError

Shape: TypeAlias = tuple[int | None, ...]
"""Shape of an output, batch axis first. The size of an axis is None if the model does not fix it."""

Floats: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Fit:
    """Way in which a head can read the outputs of a model."""

    outputs: tuple[str, ...]  # names of the outputs, in the order that `Head.decode` expects
    classes: int | None  # number of classes; None if the shapes do not show it


class Head(ABC):
    """Decodes the outputs of one model. Has no state, so that several threads can call it at the same time."""

    needs_nms = True

    def __init__(self, spec: ModelSpec, class_count: int, score: float, classes: Sequence[int] | None = None) -> None:
        """Create a decoder for scores of at least `score` and for the class ids in `classes` (None: all classes)."""
        self._spec = spec
        self._class_count = class_count
        self.score = np.float32(score)
        self.classes: Indices = np.array(sorted(set(range(class_count) if classes is None else classes)), np.intp)
        self._sigmoid = spec.head.activation == "sigmoid"
        # A raw score below `floor` cannot reach `score`, so the activation is computed only for few pairs.
        self.floor = np.float32(_logit_floor(score)) if self._sigmoid else self.score
        self._limit = spec.nms.max_candidates if self.needs_nms else spec.nms.max_objects
        sides = (spec.input.width, spec.input.height) * 2 if spec.head.box_scale == "fraction" else (1,) * 4
        self._unit_px = np.array(sides, np.float32)

    @property
    @abstractmethod
    def expected(self) -> str:
        """Text that describes the shapes of the outputs that this head reads."""

    @abstractmethod
    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Fit]:
        """Yield every way to read outputs of these shapes, for any number of classes, the most likely way first."""

    def fits(self, shapes: Mapping[str, Shape]) -> Fit | None:
        """Return how this head, with its number of classes, reads outputs of these shapes; None if it cannot."""
        return next((way for way in self._ways(shapes) if way.classes in {None, self._class_count}), None)

    def choose_outputs(self, shapes: Mapping[str, Shape]) -> tuple[str, ...]:
        """Return the names of the model's outputs to read, in the order of `decode`.

        Raises:
            ModelError: the head cannot read the outputs.
        """
        fit = self.fits(shapes)
        if fit is None:
            raise ModelError(
                f"{self._spec.name}: head `{self._spec.head.kind}` with {self._class_count} classes expects "
                f"{self.expected}; the model has {_in_words(shapes)}",
                hint=self._advice(shapes),
                code="head-mismatch",
            )
        return fit.outputs

    def _advice(self, shapes: Mapping[str, Shape]) -> str:
        heads = {kind: other(self._spec, self._class_count, 1.0) for kind, other in HEADS.items()}
        fitting = [kind for kind, head in heads.items() if head.fits(shapes)]
        if fitting:
            return f"these outputs fit head `{'` or `'.join(fitting)}`"
        counts = [way.classes for way in self._ways(shapes) if way.classes is not None]
        if counts:
            return f"these outputs have {counts[0]} classes; `classes` in model.yaml must list the same number"
        return "no head fits; `vision models` shows the outputs that each head expects"

    @abstractmethod
    def raw_scores(self, outputs: Sequence[Floats]) -> Floats:
        """Return the scores in the outputs of one frame, before the activation. Their shape depends on the head."""

    def _pairs(self, outputs: Sequence[Floats]) -> tuple[Indices, Indices, Floats]:
        """Return the box indices, class ids, and scores of all pairs that reach the threshold, sorted by pair index.

        This implementation expects raw scores of shape (boxes, classes).
        """
        scores = self.raw_scores(outputs)
        if len(self.classes) < scores.shape[1]:
            scores = scores[:, self.classes]
        index, column = np.divmod(np.flatnonzero(scores >= self.floor), scores.shape[1])
        return self._activated(index, column, scores[index, column])

    @abstractmethod
    def _boxes(self, outputs: Sequence[Floats], index: Indices) -> Floats:
        """Decode the boxes with these indices. Return them as xyxy (N, 4), in the unit that the model uses."""

    def decode(self, outputs: Sequence[Floats]) -> Candidates:
        """Decode the outputs of one frame. Return the candidates.

        Args:
            outputs: outputs of one frame in the order of `choose_outputs`, float32 without the batch axis.
        """
        index, class_ids, scores = self._pairs(outputs)
        chosen, truncated_candidates = best_first(scores, self._limit)
        with np.errstate(over="ignore", invalid="ignore"):
            boxes = self._boxes(outputs, index[chosen]) * self._unit_px
        finite = np.isfinite(boxes).all(axis=1)
        chosen = chosen[finite]
        return Candidates(boxes[finite], scores[chosen], class_ids[chosen].astype(np.int32), truncated_candidates)

    def check_scores(self, outputs: Sequence[Floats]) -> None:
        """Check that the outputs of one frame contain possible scores.

        Raises:
            ModelError: the head applies no activation, and a score is outside [0, 1].
        """
        scores = self.raw_scores(outputs)
        if self._sigmoid or not scores.size or (scores.min() >= -1e-3 and scores.max() <= 1 + 1e-3):
            return
        raise ModelError(
            f"{self._spec.name}: expected scores from 0 to 1, got {scores.min():.3g} to {scores.max():.3g}",
            hint="if the model outputs logits, write `activation: sigmoid` under `head` in model.yaml; "
            "otherwise the model may need a different head",
            code="scores-out-of-range",
        )

    def _activated(self, index: Indices, column: Indices, scores: Floats) -> tuple[Indices, Indices, Floats]:
        """Apply the activation to pairs. Return box indices, class ids, and scores of pairs that reach `score`."""
        if self._sigmoid:
            scores = sigmoid(scores)
            sure = scores >= self.score
            index, column, scores = index[sure], column[sure], scores[sure]
        return index, self.classes[column], scores


class NanoDet(Head):
    """Head with class scores per cell and, for each side of the box, a distribution of its distance from the center.

    The distance is the expectation of the softmax over `bins` (Generalized Focal Loss, Li et al., NeurIPS 2020), in
    units of the stride. Cells are ordered by stride, then row by row. The center of cell x is at
    ``x * stride + (stride - 1) / 2``.
    The model has separate outputs for scores and distances, or one output with the scores in the first columns.
    """

    def __init__(self, spec: ModelSpec, class_count: int, score: float, classes: Sequence[int] | None = None) -> None:
        super().__init__(spec, class_count, score, classes)
        self._sides = 4 * spec.head.bins
        self._bins = np.arange(spec.head.bins, dtype=np.float32)
        centers, strides = _cells(spec)
        self._cells = len(centers)
        self._corners = np.concatenate([centers, centers], axis=1)
        self._reach = strides[:, None] * np.array([-1, -1, 1, 1], np.float32)

    @property
    def expected(self) -> str:
        cells, sides = self._cells, self._sides
        return (
            f"(batch, {cells}, {self._class_count}) scores and (batch, {cells}, {sides}) distances, "
            f"or both in one (batch, {cells}, {self._class_count + sides})"
        )

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Fit]:
        cells = self._cells
        tables = {name: shape[1:] for name, shape in shapes.items() if len(shape) == 3 and _is(shape[1], cells)}
        for scores, distances in _named_last(tables, ("dist", "reg", "box")):
            if _is(tables[distances][1], self._sides):
                yield Fit((scores, distances), tables[scores][1])
        yield from _joined({name: shapes[name] for name in tables}, 2, self._sides)

    def raw_scores(self, outputs: Sequence[Floats]) -> Floats:
        return outputs[0] if len(outputs) == 2 else outputs[0][:, : -self._sides]

    def _boxes(self, outputs: Sequence[Floats], index: Indices) -> Floats:
        # Each row is one side. With cold caches, even a small operation takes several microseconds, so use few of them.
        logits = outputs[-1][index, -self._sides :].reshape(-1, len(self._bins))
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits, out=logits)
        total = weights.sum(axis=1)
        weights *= self._bins
        distances = weights.sum(axis=1)
        distances /= total
        boxes: Floats = distances.reshape(-1, 4) * self._reach[index] + self._corners[index]
        return boxes


class YoloV5(Head):
    """Head with one row per box: center x and y, width, height, objectness, and class scores (YOLOv5).

    The score of a pair is the product of the objectness and the class score.
    """

    @property
    def expected(self) -> str:
        return f"(batch, boxes, {5 + self._class_count})"

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Fit]:
        yield from _joined(shapes, 2, 5)

    def raw_scores(self, outputs: Sequence[Floats]) -> Floats:
        return outputs[0][:, 4:]

    def _pairs(self, outputs: Sequence[Floats]) -> tuple[Indices, Indices, Floats]:
        rows = outputs[0]
        likely = np.flatnonzero(rows[:, 4] >= self.floor)  # a product of fractions is not larger than any factor
        objectness, scores = rows[likely, 4:5], rows[likely[:, None], 5 + self.classes]
        if self._sigmoid:
            objectness, scores = sigmoid(objectness), sigmoid(scores)
        scores = scores * objectness
        row, column = np.divmod(np.flatnonzero(scores >= self.score), len(self.classes))
        return likely[row], self.classes[column], scores[row, column]

    def _boxes(self, outputs: Sequence[Floats], index: Indices) -> Floats:
        return to_xyxy(outputs[0][index, :4])


class YoloV8(Head):
    """Head with one column per box: center x and y, width, height, and class scores (YOLOv8, v9, 11, 12)."""

    @property
    def expected(self) -> str:
        return f"(batch, {4 + self._class_count}, boxes)"

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Fit]:
        yield from _joined(shapes, 1, 4)

    def raw_scores(self, outputs: Sequence[Floats]) -> Floats:
        return outputs[0][4:]

    def _pairs(self, outputs: Sequence[Floats]) -> tuple[Indices, Indices, Floats]:
        scores = self.raw_scores(outputs)
        if len(self.classes) < len(scores):
            scores = scores[self.classes]
        row, index = np.divmod(np.flatnonzero(scores >= self.floor), scores.shape[1])
        ascending = np.lexsort((row, index))
        row, index = row[ascending], index[ascending]
        return self._activated(index, row, scores[row, index])

    def _boxes(self, outputs: Sequence[Floats], index: Indices) -> Floats:
        return to_xyxy(outputs[0][:4, index].T)


class EndToEnd(Head):
    """Head with one row per object: x1, y1, x2, y2, score, class (YOLOv10, YOLO26, exports that include NMS).

    The head also reads the four outputs of TensorRT's plugin EfficientNMS_TRT: count, boxes, scores, and classes.
    """

    needs_nms = False

    @property
    def expected(self) -> str:
        return "(batch, objects, 6), or the four outputs of EfficientNMS_TRT"

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Fit]:
        for name, shape in shapes.items():
            if len(shape) == 3 and _is(shape[2], 6):
                yield Fit((name,), None)
        tables = {name: shape[1:] for name, shape in shapes.items()}
        numbers = [name for name, table in tables.items() if table == (1,)]
        boxes = [name for name, table in tables.items() if len(table) == 2 and table[1] == 4]
        rows = {name: table for name, table in tables.items() if len(table) == 1 and name not in numbers}
        if len(shapes) == 4 and len(numbers) == len(boxes) == 1 and len(rows) == 2:
            yield Fit((numbers[0], boxes[0], *_named_last(rows, ("class", "label"))[0]), None)

    def raw_scores(self, outputs: Sequence[Floats]) -> Floats:
        return _rows(outputs)[:, 4]

    def _pairs(self, outputs: Sequence[Floats]) -> tuple[Indices, Indices, Floats]:
        rows = _rows(outputs)
        index = np.flatnonzero((rows[:, 4] >= self.floor) & np.isin(rows[:, 5], self.classes))
        column = np.searchsorted(self.classes, rows[index, 5])
        return self._activated(index, column, rows[index, 4])

    def _boxes(self, outputs: Sequence[Floats], index: Indices) -> Floats:
        return _rows(outputs)[index, :4]


def _rows(outputs: Sequence[Floats]) -> Floats:
    """Return the outputs of an `EndToEnd` model as rows (N, 6)."""
    if len(outputs) == 1:
        return outputs[0]
    number, boxes, scores, class_ids = outputs
    return np.concatenate([boxes, scores[:, None], class_ids[:, None]], axis=1)[: int(number[0])]


class RtDetr(Head):
    """Head with a box (center x and y, width, height) and class scores for each query (RT-DETR, D-FINE).

    As in the post-processor of RT-DETR (Zhao et al., CVPR 2024), the objects are the pairs of query and class with the
    highest scores, without NMS.
    """

    needs_nms = False

    @property
    def expected(self) -> str:
        return f"(batch, queries, 4) boxes and (batch, queries, {self._class_count}) scores"

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Fit]:
        tables = {name: shape[1:] for name, shape in shapes.items() if len(shape) == 3}
        for scores, boxes in _named_last(tables, ("box",)):
            (queries, classes), (rows, columns) = tables[scores], tables[boxes]
            if _is(columns, 4) and (queries is None or _is(rows, queries)):
                yield Fit((boxes, scores), classes)

    def raw_scores(self, outputs: Sequence[Floats]) -> Floats:
        return outputs[1]

    def _boxes(self, outputs: Sequence[Floats], index: Indices) -> Floats:
        return to_xyxy(outputs[0][index])


HEADS: Mapping[str, type[Head]] = {
    "nanodet": NanoDet,
    "yolov5": YoloV5,
    "yolov8": YoloV8,
    "end-to-end": EndToEnd,
    "rt-detr": RtDetr,
}


def make_head(spec: ModelSpec, class_count: int, score: float, classes: Sequence[int] | None = None) -> Head:
    """Create the head of the kind that `spec` selects. For the arguments, see `Head`."""
    return HEADS[spec.head.kind](spec, class_count, score, classes)


def _in_words(shapes: Mapping[str, Shape]) -> str:
    def side(axis: int | None) -> str:
        return "?" if axis is None else str(axis)

    return ", ".join(f"{name} ({', '.join(map(side, shape))})" for name, shape in shapes.items()) or "nothing"


def _is(axis: int | None, size: int) -> bool:
    return axis is None or axis == size


def _joined(shapes: Mapping[str, Shape], axis: int, others: int) -> Iterator[Fit]:
    """Yield each output with three axes whose axis `axis` is longer than `others`. The rest of the axis is classes."""
    for name, shape in shapes.items():
        if len(shape) == 3:
            columns = shape[axis]
            if columns is None or columns > others:
                yield Fit((name,), None if columns is None else columns - others)


def _named_last(names: Mapping[str, object], parts: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return all ordered pairs of names. Pairs in which only the second name contains one of `parts` come first."""

    def matches(name: str) -> bool:
        return any(part in name.lower() for part in parts)

    return sorted(permutations(names, 2), key=lambda pair: matches(pair[0]) - matches(pair[1]))


def _cells(spec: ModelSpec) -> tuple[Floats, Floats]:
    """Return the centers (N, 2) and the strides (N,) of NanoDet's cells, in model pixels."""
    centers, strides = [], []
    for stride in spec.head.strides:
        columns, rows = -(-spec.input.width // stride), -(-spec.input.height // stride)
        x, y = np.meshgrid(np.arange(columns), np.arange(rows))
        centers.append(np.stack([x.ravel(), y.ravel()], axis=1) * stride + (stride - 1) / 2)
        strides.append(np.full(columns * rows, stride))
    return np.concatenate(centers).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _logit_floor(score: float) -> float:
    """Return a logit that is lower than any logit whose sigmoid, in float32, reaches `score`."""
    if score <= 0:
        return -math.inf
    return min(math.log(score / (1 - score)) - 1e-3, 10.0) if score < 1 else 10.0


def sigmoid(logits: Floats) -> Floats:
    """Return the sigmoid ``1 / (1 + exp(-x))`` of each logit x, in float32."""
    with np.errstate(over="ignore"):
        result: Floats = np.float32(1) / (np.float32(1) + np.exp(-logits))
    return result


def to_xyxy(boxes_cxcywh: Floats) -> Floats:
    """Convert boxes (N, 4) from center x and y, width, and height to the corners x1, y1, x2, and y2."""
    half = boxes_cxcywh[:, 2:] * np.float32(0.5)
    return np.concatenate([boxes_cxcywh[:, :2] - half, boxes_cxcywh[:, :2] + half], axis=1)
