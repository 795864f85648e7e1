"""Heads whose outputs have a row or a column per box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Final

from vision.detect.reference.decoder import Coding
from vision.detect.reference.extras import extras, joined_with_extra
from vision.detect.reference.head import Head
from vision.detect.reference.layout import (
    Layout,
    Part,
    Shape,
    Values,
    is_named,
    is_size,
    joined,
    named_last,
    tables,
)

_BOX_NAMES: Final = ("box", "det", "loc", "reg")
_MOST_SUPPRESSED: Final = 1000
"""Maximum number of rows of an export that includes NMS. An output with more rows contains all boxes of the network."""


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


class YoloV8(Head):
    """Head with one column per box: center x and y, width, height, and class scores (YOLOv8, v9, 11, 12).

    Some exports transpose the output, so that it has one row per box. A transposed output is accepted only if it has a
    row for each cell, or many rows. An output with few rows is that of RT-DETR, which needs no NMS.
    """

    coding = "centers"

    @property
    def expected(self) -> str:
        values = 4 + self._class_count
        return f"(batch, {values}, boxes) or (batch, boxes, {values})"

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        dense = {name: shape for name, shape in shapes.items() if len(shape) == 3 and self._is_dense(shape[1])}
        for axis, found in ((1, shapes), (2, dense)):
            by_column = axis == 1
            for name, classes, extra in joined_with_extra(self._spec.head, found, axis, 4, self._class_count):
                part = Part(Values(0, 0, by_column), Values(0, 4, by_column))
                yield extra.added_to(Layout((name,), (part,), classes), 4 + (classes or self._class_count))

    def _is_dense(self, rows: int | None) -> bool:
        return rows is None or rows > _MOST_SUPPRESSED or rows == self._cells


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

    The values are in one output with the order x1, y1, x2, y2, score, class, or in two to four outputs. Exports without
    NMS have the same columns, but a row for each box of the network. For such exports, the detector runs NMS.
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


class _Numbered(Head):
    """Head with one row per object: the number of the frame, x1, y1, x2, y2, then score and class in either order.

    The rows have no batch axis, so the model accepts only one frame at a time.
    """

    coding = "corners"
    has_batch = False
    score: ClassVar[int]  # column of the score
    class_id: ClassVar[int]  # column of the class

    @property
    def expected(self) -> str:
        return "(objects, 7)"

    def without_batch(self, shapes: Mapping[str, Shape]) -> frozenset[str]:
        return frozenset(name for name, shape in shapes.items() if len(shape) == 2 and shape[1] == 7)

    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        for name, (_, columns) in tables(shapes).items():
            if columns == 7:
                part = Part(Values(0, 1), Values(0, self.score))
                yield Layout((name,), (part,), class_ids=Values(0, self.class_id), needs_nms=False)


class YoloV7(_Numbered):
    """Head of YOLOv7 with ``--end2end --max-wh``. In each row, the class precedes the score."""

    score = 6
    class_id = 5


class YoloNasFlat(_Numbered):
    """Head of the "flat" export of YOLO-NAS with NMS. In each row, the score precedes the class."""

    score = 5
    class_id = 6


class TensorFlow(EndToEnd):
    """Head with the outputs of TensorFlow's object detection API: the outputs of `EndToEnd`, but with y before x."""

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
