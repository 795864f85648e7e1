"""Heads whose outputs have values for each cell of a grid: NanoDet, PicoDet, YOLOX, and YuNet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from vision.detect.reference.extras import FACE_KEYPOINTS
from vision.detect.reference.head import Head
from vision.detect.reference.layout import Layout, Part, Shape, Values, is_size, joined, named_last, tables

_LANDMARK_VALUES: Final = 2 * len(FACE_KEYPOINTS)


def _same(counts: Sequence[int | None]) -> bool:
    return len({count for count in counts if count is not None}) <= 1


class _Distances(Head):
    """Head with class scores per cell and, for each side of a box, a distribution of its distance from the cell center.

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

    The landmarks are keypoints without scores. Exports without them are also read, except with `task: pose`. The score
    is the square root of the product of class score and objectness.
    """

    coding = "grid"
    root = True

    @property
    def expected(self) -> str:
        optional = "" if self._spec.head.task == "pose" else "optional "
        return (
            f"(batch, cells, {self._class_count}) scores, (batch, cells, 1) objectness, (batch, cells, 4) boxes, and "
            f"{optional}(batch, cells, {_LANDMARK_VALUES}) landmarks for each of the strides {self.rules.strides}"
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
            layout = Layout(tuple(names), tuple(parts), counts[0])
            with_landmarks = self._with_landmarks(shapes, layout)
            if with_landmarks is not None:
                yield with_landmarks
            elif self._spec.head.task != "pose":
                yield layout

    def _with_landmarks(self, shapes: Mapping[str, Shape], layout: Layout) -> Layout | None:
        """Return the layout with the landmarks of all strides.

        Return None if the outputs lack the landmarks of a stride.
        """
        if len(self._spec.head.keypoints or FACE_KEYPOINTS) != len(FACE_KEYPOINTS):
            return None
        names, parts = list(layout.outputs), []
        for level, part in zip(self._sizes, layout.parts, strict=True):
            found = self._per_cell(shapes, level)
            free = [name for name in found if name not in names and found[name][0] == _LANDMARK_VALUES]
            if not free:
                return None
            parts.append(replace(part, extra=Values(len(names), 0, found[free[0]][1])))
            names.append(free[0])
        return replace(
            layout, outputs=tuple(names), parts=tuple(parts), extra_count=_LANDMARK_VALUES, keypoint_values=2
        )
