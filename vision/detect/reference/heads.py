"""Classes that find the scores and boxes in the outputs of a model: one class per family of detectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

import numpy as np

from vision.config import ModelSpec
from vision.detect.classes import COCO91, background_ids
from vision.detect.reference.decoder import Coding, Decoder, Grid, Rules, logit_floor
from vision.detect.reference.extras import TASKS, check_task, expected_extra, extras, is_clear, joined_with_extra
from vision.detect.reference.layout import (
    Layout,
    Part,
    Shape,
    Values,
    in_words,
    is_named,
    is_size,
    joined,
    named_last,
    tables,
)
from vision.errors import ModelError

_BOX_NAMES: Final = ("box", "det", "loc", "reg")
_MOST_SUPPRESSED: Final = 1000
"""Maximum number of rows of an export that includes NMS. An output with more rows contains all boxes of the network."""


class Head(ABC):
    """Base class of heads. Each head reads the outputs of one family of detectors. It is stateless and thread-safe."""

    coding: ClassVar[Coding]
    root: ClassVar[bool] = False
    center: ClassVar[tuple[float, float]] = (0.5, 0.0)
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    bins: ClassVar[int] = 0

    def __init__(self, spec: ModelSpec, class_count: int, score: float, classes: Sequence[int] | None = None) -> None:
        """Create the head for candidates with a score of at least `score`.

        Args:
            classes: ids of the classes to keep. None means all classes. Background classes are never kept.
        """
        self._spec = spec
        self._class_count = class_count
        sigmoid = spec.head.activation == "sigmoid"
        least = score * score * (1 - 1e-6) if self.root else score
        wanted = set(range(class_count) if classes is None else classes) - set(background_ids(spec))
        sides = (spec.input.width, spec.input.height) * 2 if spec.head.box_scale == "fraction" else (1,) * 4
        strides = spec.head.strides or self.strides
        self.rules = Rules(
            coding="rotated" if spec.head.task == "obb" else self.coding,
            class_count=class_count,
            score=np.float32(score),
            floor=np.float32(logit_floor(least) if sigmoid else least),
            classes=np.array(sorted(wanted), np.intp),
            sigmoid=sigmoid,
            root=self.root,
            unit_px=np.array(sides, np.float32),
            strides=strides,
            grid=Grid.of(spec.input.width, spec.input.height, strides),
            center=self.center,
            bins=spec.head.bins or self.bins,
        )

    @property
    @abstractmethod
    def expected(self) -> str:
        """Text that describes the shapes of the outputs that this head reads."""

    @abstractmethod
    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        """Yield each possible layout of outputs of these shapes, for any number of classes, the most likely first."""

    def without_batch(self, shapes: Mapping[str, Shape]) -> frozenset[str]:
        """Return the names of the outputs without a batch axis, because the model accepts only one frame at a time."""
        del shapes
        return frozenset()

    def fits(self, shapes: Mapping[str, Shape]) -> Layout | None:
        """Return the most likely layout of these outputs for the model's number of classes; None if none fits."""
        return next((way for way in self._ways(shapes) if way.classes in {None, self._class_count}), None)

    def bind(self, shapes: Mapping[str, Shape]) -> Decoder:
        """Return the decoder for outputs of these shapes.

        Raises:
            ModelError: the head cannot read the outputs.
        """
        without_batch = self.without_batch(shapes)
        shapes = {name: (1, *shape) if name in without_batch else shape for name, shape in shapes.items()}
        layout = self.fits(shapes)
        if layout is None:
            raise ModelError(
                f"{self._spec.name}: head `{self._spec.head.kind}` with {self._class_count} classes expects "
                f"{self.expected}{expected_extra(self._spec.head)}; the model has {in_words(shapes)}",
                hint=self._advice(shapes),
                code="head-mismatch",
            )
        return Decoder(self._spec, self.rules, layout, without_batch)

    def _advice(self, shapes: Mapping[str, Shape]) -> str:
        task = self._spec.head.task
        heads = {kind: other(self._spec, self._class_count, 1.0) for kind, other in HEADS.items()}
        fitting = [kind for kind, head in heads.items() if kind in TASKS.get(task, heads) and head.fits(shapes)]
        if fitting:
            return f"by their shapes, these outputs can fit head `{'` or `'.join(fitting)}`; `vision check` tries them"
        if task == "detect" and (other_task := self._other_task(shapes)):
            return f"these outputs fit {other_task}"
        counts = [way.classes for way in self._ways(shapes) if way.classes is not None]
        if counts:
            known = ", for example `classes: coco91`" if counts[0] == len(COCO91) else ""
            if counts[0] == self._class_count + 1 and self._spec.head.kind in TASKS["obb"] and task == "detect":
                known = ", unless the last value is the angle of an oriented box (`task: obb`)"
            if self._spec.head.keypoints is not None:
                known = f", or `keypoints` must list more or fewer names than {len(self._spec.head.keypoints)}"
            return f"these outputs have {counts[0]} classes; `classes` in model.yaml must list the same number{known}"
        return "no head fits; `vision models` shows the outputs that each head expects"

    def _other_task(self, shapes: Mapping[str, Shape]) -> str:
        """Return text that names a head and a task that clearly fit the outputs; empty if there are none."""
        for task, kinds in TASKS.items():
            spec = self._spec.model_copy(update={"head": self._spec.head.model_copy(update={"task": task})})
            for kind in sorted(kinds, key=lambda kind: kind != self._spec.head.kind):
                layout = HEADS[kind](spec, self._class_count, 1.0).fits(shapes)
                if layout is not None and is_clear(spec, layout):
                    return f"head `{kind}` with `task: {task}`"
        return ""

    @property
    def _sizes(self) -> list[tuple[int, int]]:
        """Numbers of rows and columns of cells, for each stride."""
        size = self._spec.input
        return [(-(-size.height // stride), -(-size.width // stride)) for stride in self.rules.strides]

    @property
    def _cells(self) -> int:
        return len(self.rules.grid.strides)

    def _per_cell(self, shapes: Mapping[str, Shape], level: tuple[int, int]) -> dict[str, tuple[int | None, bool]]:
        """Find the outputs with values for each cell of one stride, as rows of a table or as a map per value.

        Returns:
            For each output name, the number of values per cell (None if the model does not fix it), and whether the
            output contains maps.
        """
        rows, columns = level
        found: dict[str, tuple[int | None, bool]] = {}
        for name, shape in shapes.items():
            if len(shape) == 3 and is_size(shape[1], rows * columns):
                found[name] = (shape[2], False)
            elif len(shape) == 4 and is_size(shape[2], rows) and is_size(shape[3], columns):
                found[name] = (shape[1], True)
        return found


def _same(counts: Sequence[int | None]) -> bool:
    return len({count for count in counts if count is not None}) <= 1


class _Distances(Head):
    """Head with class scores per cell and, for each side of the box, a distribution of its distance from the center.

    The distance is the expectation of the softmax over `bins` (Generalized Focal Loss, Li et al., NeurIPS 2020), in
    units of the stride. Scores and distances are separate outputs, one output with the scores first, or two outputs
    per stride.
    """

    coding = "distances"

    @property
    def expected(self) -> str:
        cells, sides, count = self._cells, 4 * self.rules.bins, self._class_count
        return (
            f"(batch, {cells}, {count}) scores and (batch, {cells}, {sides}) distances, both in one (batch, {cells}, "
            f"{count + sides}), or scores and distances for each of the strides {self.rules.strides}"
        )

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        sides = 4 * self.rules.bins
        whole = {name: table for name, table in tables(shapes).items() if is_size(table[0], self._cells)}
        for scores, distances in named_last(whole, ("dis", "reg", "box")):
            if is_size(whole[distances][1], sides):
                yield Layout((scores, distances), (Part(Values(1), Values(0)),), whole[scores][1])
        for name, _, classes in joined({name: shapes[name] for name in whole}, 2, sides):
            first = 0 if classes is None else classes
            yield Layout((name,), (Part(Values(0, first or self._class_count), Values(0)),), classes)
        yield from self._per_stride(shapes)

    def _per_stride(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        names: list[str] = []
        parts, counts = [], []
        for level in self._sizes:
            found = {name: way for name, way in self._per_cell(shapes, level).items() if name not in names}
            for scores, distances in named_last(found, ("dis", "reg", "box")):
                if is_size(found[distances][0], 4 * self.rules.bins):
                    at = len(names)
                    parts.append(Part(Values(at + 1, 0, found[distances][1]), Values(at, 0, found[scores][1])))
                    counts.append(found[scores][0])
                    names += [scores, distances]
                    break
            else:
                return
        if _same(counts):
            yield Layout(tuple(names), tuple(parts), counts[0])


class NanoDet(_Distances):
    """Head of the original NanoDet, not NanoDet-Plus. The center of cell x is at ``(x + 0.5) * stride - 0.5``."""

    center = (0.5, -0.5)
    bins = 11


class NanoDetPlus(_Distances):
    """Head of NanoDet-Plus. The center of cell x is at ``x * stride``."""

    center = (0.0, 0.0)
    strides = (8, 16, 32, 64)
    bins = 8


class PicoDet(_Distances):
    """Head of PicoDet exports without the post-processor. The center of cell x is at ``(x + 0.5) * stride``."""

    strides = (8, 16, 32, 64)
    bins = 8


class YoloV5(Head):
    """Head with one row per box: center x and y, width, height, objectness, and class scores (YOLOv5).

    The score of a box for a class is the product of the objectness and the class score.
    """

    coding = "centers"

    @property
    def expected(self) -> str:
        return f"(batch, boxes, {5 + self._class_count})"

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        for name, classes, extra in joined_with_extra(self._spec.head, shapes, 2, 5, self._class_count):
            layout = Layout((name,), (Part(Values(0), Values(0, 5), Values(0, 4)),), classes)
            yield extra.added_to(layout, 5 + (classes or self._class_count))


class YoloX(Head):
    """Head with the values of YOLOv5 for each cell, but with boxes relative to the cell.

    YOLOX exports these values, in one output or in one per stride, if `decode_in_inference` is off.
    """

    coding = "grid"

    @property
    def expected(self) -> str:
        values = 5 + self._class_count
        return f"(batch, {self._cells}, {values}), or (batch, {values}, rows, columns) for each stride"

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        for name, boxes, classes in joined(shapes, 2, 5):
            if is_size(boxes, self._cells):
                yield Layout((name,), (Part(Values(0), Values(0, 5), Values(0, 4)),), classes)
        names: list[str] = []
        parts, counts = [], []
        for level in self._sizes:
            for name, (values, by_column) in self._per_cell(shapes, level).items():
                if name not in names and (values is None or values > 5):
                    at = len(names)
                    parts.append(Part(*(Values(at, first, by_column) for first in (0, 5, 4))))
                    counts.append(None if values is None else values - 5)
                    names.append(name)
                    break
            else:
                return
        if _same(counts):
            yield Layout(tuple(names), tuple(parts), counts[0])


class YuNet(Head):
    """Head with four outputs per stride: class scores, objectness, boxes relative to the cell, and face landmarks.

    The landmarks are not read. The score is the square root of the product of class score and objectness.
    """

    coding = "grid"
    root = True

    @property
    def expected(self) -> str:
        return (
            f"(batch, cells, {self._class_count}) scores, (batch, cells, 1) objectness, and (batch, cells, 4) boxes "
            f"for each of the strides {self.rules.strides}"
        )

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        names: list[str] = []
        parts, counts = [], []
        for level in self._sizes:
            found = {name: way for name, way in self._per_cell(shapes, level).items() if name not in names}
            boxes = [name for name in found if found[name][0] == 4]
            pairs = [pair for pair in named_last(found, ("obj",)) if found[pair[1]][0] == 1 and boxes[:1] != [pair[0]]]
            if not boxes or not pairs:
                return
            pairs.sort(key=lambda pair: found[pair[0]][0] != self._class_count)
            (scores, objectness), at = pairs[0], len(names)
            names += [scores, objectness, boxes[0]]
            parts.append(Part(*(Values(at + k, 0, found[names[at + k]][1]) for k in (2, 0, 1))))
            counts.append(found[scores][0])
        if _same(counts):
            yield Layout(tuple(names), tuple(parts), counts[0])


class YoloV8(Head):
    """Head with one column per box: center x and y, width, height, and class scores (YOLOv8, v9, 11, 12)."""

    coding = "centers"

    @property
    def expected(self) -> str:
        return f"(batch, {4 + self._class_count}, boxes)"

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        for name, classes, extra in joined_with_extra(self._spec.head, shapes, 1, 4, self._class_count):
            part = Part(Values(0, 0, by_column=True), Values(0, 4, by_column=True))
            yield extra.added_to(Layout((name,), (part,), classes), 4 + (classes or self._class_count))


class Corners(Head):
    """Head with the corners x1, y1, x2, y2 of each box, and class scores (SSD, YOLO-NAS, YOLOv4, PP-YOLOE).

    The scores have a row or a column per box.
    """

    coding = "corners"

    @property
    def expected(self) -> str:
        count = self._class_count
        return f"(batch, boxes, 4) corners and (batch, boxes, {count}) or (batch, {count}, boxes) scores"

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        found = tables(shapes, (3, 4))
        for scores, boxes in named_last(found, _BOX_NAMES):
            (rows, columns), (count, values) = found[scores], found[boxes]
            if values != 4:
                continue
            if count is None or is_size(rows, count):
                yield Layout((boxes, scores), (Part(Values(0), Values(1)),), columns)
            if count is not None and columns == count:
                yield Layout((boxes, scores), (Part(Values(0), Values(1, by_column=True)),), rows)


class RtDetr(Head):
    """Head with a box (center x and y, width, height) and class scores per query, in one or two outputs.

    The best queries are the objects, without NMS, as in RT-DETR (Zhao et al., CVPR 2024).
    """

    coding = "centers"

    @property
    def expected(self) -> str:
        count = self._class_count
        return (
            f"(batch, queries, 4) boxes and (batch, queries, {count}) scores, or both in one (batch, queries, "
            f"{4 + count})"
        )

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        found = tables(shapes)
        for scores, boxes in named_last(found, _BOX_NAMES):
            (queries, classes), (rows, columns) = found[scores], found[boxes]
            if is_size(columns, 4) and (queries is None or is_size(rows, queries)):
                yield Layout((boxes, scores), (Part(Values(0), Values(1)),), classes, needs_nms=False)
        for name, _, classes in joined(shapes, 2, 4):
            yield Layout((name,), (Part(Values(0), Values(0, 4)),), classes, needs_nms=False)


class EndToEnd(Head):
    """Head with the corners, one score, and one class per object (YOLOv10, YOLO26, exports that include NMS).

    The values are in one output with the order x1, y1, x2, y2, score, class, or in two to four outputs. Exports that
    stop before NMS have the same columns, but a row for each box of the network. The detector then runs NMS.
    """

    coding: ClassVar[Coding] = "corners"

    @property
    def expected(self) -> str:
        if self._spec.head.task != "detect":
            return "(batch, objects, 6)"
        return (
            "(batch, objects, 6), (batch, objects, 4) boxes with (batch, objects) scores and classes, or (batch, "
            "objects, 5) boxes and scores with (batch, objects) classes"
        )

    def without_batch(self, shapes: Mapping[str, Shape]) -> frozenset[str]:
        if any(len(shape) > 2 for shape in shapes.values()):
            return frozenset()
        return frozenset(shapes if any(len(shape) == 2 and shape[1] in {4, 5, 6} for shape in shapes.values()) else ())

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        found = tables(shapes)
        for name, (rows, columns) in found.items():
            part, nms = Part(Values(0), Values(0, 4)), self._has_all_boxes(rows)
            for extra in extras(self._spec.head, shapes, None if columns is None else columns - 6, 0):
                if is_size(columns, 6 + extra.count):
                    layout = Layout((name,), (part,), class_ids=Values(0, 5), needs_nms=nms)
                    yield extra.added_to(layout, 6)
        if self._spec.head.task != "detect":
            return
        for boxes, (rows, columns) in found.items():
            counts = [name for name, shape in shapes.items() if _is_count(name, shape, rows)]
            lists = {name: shape[1] for name, shape in shapes.items() if len(shape) == 2 and name not in counts}
            beside = {name: size for name, size in lists.items() if rows is None or is_size(size, rows)}
            nms = self._has_all_boxes(rows)
            if columns == 5 and beside:
                labels = min(beside, key=lambda name: not is_named(name, ("class", "label")))
                yield Layout((boxes, labels), (Part(Values(0), Values(0, 4)),), class_ids=Values(1), needs_nms=nms)
            if columns != 4 or len(beside) < 2:
                continue
            pairs = named_last(beside, ("class", "label"))
            scores, labels = min(pairs, key=lambda pair: not is_named(pair[0], ("score", "conf")))
            part = Part(Values(0), Values(1))
            if counts:
                names = (boxes, scores, labels, counts[0])
                yield Layout(names, (part,), class_ids=Values(2), count=3, needs_nms=nms)
            else:
                yield Layout((boxes, scores, labels), (part,), class_ids=Values(2), needs_nms=nms)

    def _has_all_boxes(self, rows: int | None) -> bool:
        """Return True if the number of rows shows that the output contains all boxes of the network, before NMS."""
        if rows is None:
            return False
        levels = [rows * columns for rows, columns in self._sizes]
        return rows > _MOST_SUPPRESSED or rows in {sum(levels), 3 * sum(levels)}


def _is_count(name: str, shape: Shape, rows: int | None) -> bool:
    """Return True if an output contains the number of objects per frame. `rows` is the number of boxes per frame."""
    return len(shape) == 1 or (shape[1:] == (1,) and (rows != 1 or is_named(name, ("num", "count"))))


class TensorFlow(EndToEnd):
    """Head with the outputs of TensorFlow's object detection API: those of `EndToEnd`, but with y before x."""

    coding = "corners-yx"


class Paddle(Head):
    """Head with one row per object: class, score, x1, y1, x2, y2 (PaddleDetection with NMS).

    A second output can contain the number of rows. In a model for one frame, the rows have no batch axis.
    """

    coding = "corners"

    @property
    def expected(self) -> str:
        return "(objects, 6) or (batch, objects, 6), and optionally the number of objects"

    def without_batch(self, shapes: Mapping[str, Shape]) -> frozenset[str]:
        return frozenset(name for name, shape in shapes.items() if len(shape) == 2 and shape[1] == 6)

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        counts = [name for name, shape in shapes.items() if len(shape) == 1 or shape[1:] == (1,)]
        for name, (_, columns) in tables(shapes).items():
            if is_size(columns, 6):
                names, count = ((name, counts[0]), 1) if counts else ((name,), None)
                part = Part(Values(0, 2), Values(0, 1))
                yield Layout(names, (part,), class_ids=Values(0, 0), count=count, needs_nms=False)


HEADS: Mapping[str, type[Head]] = {
    "nanodet": NanoDet,
    "nanodet-plus": NanoDetPlus,
    "picodet": PicoDet,
    "yolov5": YoloV5,
    "yolox": YoloX,
    "yolov8": YoloV8,
    "yunet": YuNet,
    "corners": Corners,
    "end-to-end": EndToEnd,
    "rt-detr": RtDetr,
    "paddle": Paddle,
    "tensorflow": TensorFlow,
}


def make_head(spec: ModelSpec, class_count: int, score: float, classes: Sequence[int] | None = None) -> Head:
    """Create the head of the kind and task in `spec`. Raise `ModelError` if the kind does not support the task."""
    check_task(spec)
    return HEADS[spec.head.kind](spec, class_count, score, classes)
