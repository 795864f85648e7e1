"""Positions of scores, boxes, and classes in the outputs of a network, as plain data.

A head derives the layout from the shapes of the outputs. The NumPy decoder and the GPU kernel both use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Shape: TypeAlias = tuple[int | None, ...]
"""Shape of an output, batch axis first. The size of an axis is None if the model does not fix it."""

Table: TypeAlias = tuple[int | None, int | None]
"""Shape of the output for one frame as a table: numbers of rows and columns."""

Floats: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Values:
    """Position of one kind of value, such as the scores, in a model's outputs for one frame."""

    output: int  # index into `Layout.outputs`
    first: int = 0  # index of the first of these values, for each box
    by_column: bool = False  # True if the output has a column per box, False if it has a row per box

    def table(self, outputs: Sequence[Floats]) -> Floats:
        """Return the whole output as a table (boxes, values). `outputs` are the outputs for one frame."""
        array = outputs[self.output]
        table = array.reshape(len(array), math.prod(array.shape[1:]))
        return table.T if self.by_column else table


@dataclass(frozen=True, slots=True)
class Part:
    """Group of boxes whose values are in the same outputs: the boxes of one stride, or all boxes."""

    boxes: Values
    scores: Values
    """Class scores, or the only score if the layout has `class_ids`."""
    objectness: Values | None = None
    extra: Values | None = None
    """Extra values of each box: keypoints, angle, or mask coefficients. None if there are none."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way in which a head can read the outputs of a model."""

    outputs: tuple[str, ...]
    """Names, in the order of `Decoder.decode`."""
    parts: tuple[Part, ...]
    classes: int | None = None
    """Number of classes. None if the shapes do not show it."""
    class_ids: Values | None = None
    """Class of each box, in a layout with one score and one class per box. None if boxes have a score per class."""
    count: int | None = None
    """Index of the output with the number of valid boxes. None if all boxes are valid."""
    needs_nms: bool = True
    """True if NMS must follow, because several boxes can describe the same object."""
    extra_count: int = 0
    """Number of extra values of each box."""
    keypoint_values: int = 0
    """Number of values of a keypoint: 2 (x, y), or 3 with a score. 0 if the extra values are not keypoints."""
    prototypes: int | None = None
    """Index of the output with the mask prototypes (coefficients, rows, columns). None if there are no masks."""


def as_table(shape: Shape) -> Table | None:
    """Return the shape of an output for one frame as a table, or None if the output cannot be a table.

    Maps (batch, values, rows, columns) of fixed size become tables with one column per cell. In an output with four
    axes, axis 2 (the third) is dropped if its length is 1.
    """
    match shape:
        case (_, rows, columns) | (_, rows, 1, columns):
            return rows, columns
        case (_, rows, int(height), int(width)):
            return rows, height * width
        case _:
            return None


def tables(shapes: Mapping[str, Shape], axes: Sequence[int] = (3,)) -> dict[str, Table]:
    """Return the table shapes, by output name, of the outputs that `as_table` can convert to tables.

    `axes` are the accepted numbers of axes.
    """
    found = {name: as_table(shape) for name, shape in shapes.items() if len(shape) in axes}
    return {name: table for name, table in found.items() if table is not None}


def with_batch(shapes: Mapping[str, Shape], names: frozenset[str]) -> dict[str, Shape]:
    """Return the shapes, after adding a batch axis of length 1 to the outputs `names`, which have no batch axis."""
    return {name: (1, *shape) if name in names else shape for name, shape in shapes.items()}


def is_size(axis: int | None, size: int) -> bool:
    """Return True if an axis has this size, or if the model does not fix its size."""
    return axis is None or axis == size


def joined(shapes: Mapping[str, Shape], axis: int, others: int) -> Iterator[tuple[str, int | None, int | None]]:
    """Yield the outputs whose axis `axis` (1 or 2) has space for at least one class score and `others` other values.

    Yields:
        Name of the output, number of boxes, and number of classes. A number is None if the model does not fix it.
    """
    for name, table in tables(shapes).items():
        values, boxes = table[axis - 1], table[2 - axis]
        if values is None or values > others:
            yield name, boxes, None if values is None else values - others


def named_last(names: Mapping[str, object], parts: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return all ordered pairs of output names, for heads that must find two outputs, such as scores and boxes.

    Pairs in which only the second name contains one of `parts` come first.
    """
    return sorted(permutations(names, 2), key=lambda pair: is_named(pair[0], parts) - is_named(pair[1], parts))


def is_named(name: str, parts: tuple[str, ...]) -> bool:
    """Return True if a name contains one of `parts`, which must be in lower case. The case of the name is ignored."""
    return any(part in name.lower() for part in parts)


def in_words(shapes: Mapping[str, Shape]) -> str:
    """Return the names and shapes of outputs as text for error messages."""

    def side(axis: int | None) -> str:
        return "?" if axis is None else str(axis)

    return ", ".join(f"{name} ({', '.join(map(side, shape))})" for name, shape in shapes.items()) or "nothing"
