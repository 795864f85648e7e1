"""Samples of a layer's input as rows, and its weights as a matrix, so that its outputs are `matrix @ row + bias`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vision.optimize.onnx_graph import Floats, Graph, Layer

if TYPE_CHECKING:
    import onnx

Places = NDArray[np.int64]


class Patches:
    """Converter of an ungrouped Conv, Gemm, or MatMul layer: of its weights to a matrix, and of its inputs to rows.

    The matrix and the rows have a column for each kernel position and input channel. The channels of a position are in
    consecutive columns.
    """

    def __init__(self, graph: Graph, layer: Layer) -> None:
        node = next(each for each in graph.model.graph.node if each.name == layer.name)
        self._layer = layer
        self._spatial = layer.shape[2:]
        count = len(self._spatial)
        self._strides = _integers(node, "strides", [1] * count)
        self._dilations = _integers(node, "dilations", [1] * count)
        self._pads = _integers(node, "pads", [0] * 2 * count)
        self._auto_pad = next((each.s.decode() for each in node.attribute if each.name == "auto_pad"), "NOTSET")

    @property
    def columns(self) -> int:
        return int(np.prod(self._spatial, dtype=int)) * self._layer.shape[self._layer.input_axis]

    def matrix(self, weights: Floats) -> Floats:
        """Return the weights as a matrix (output channels, columns)."""
        moved = np.moveaxis(weights, (self._layer.output_axis, self._layer.input_axis), (0, -1))
        return moved.reshape(len(moved), -1)

    def weights(self, matrix: NDArray[Any]) -> Floats:
        """Convert a matrix back to weights of the layer: the inverse of the method `matrix`."""
        moved = matrix.reshape(len(matrix), *self._spatial, -1)
        return np.moveaxis(moved, (0, -1), (self._layer.output_axis, self._layer.input_axis)).astype(np.float32)

    def places(self, shape: tuple[int, ...], most: int, random: np.random.Generator) -> Places:
        """Choose up to `most` random positions of the output for an input of this shape.

        Return the flat indices of these positions, in ascending order.
        """
        if not self._spatial:
            total = int(np.prod(shape[:-1], dtype=int))
        else:
            total = shape[0] * int(np.prod(self._output_sides(shape), dtype=int))
        return np.sort(random.choice(total, min(most, total), replace=False))

    def rows(self, values: NDArray[Any], places: Places) -> Floats:
        """Return the inputs from which the outputs at `places` are computed, as an array (N, columns)."""
        if not self._spatial:
            return np.asarray(values.reshape(-1, values.shape[-1])[places], np.float32)
        begins, ends = self._padding(values.shape)
        padded = np.pad(values, ((0, 0), (0, 0), *zip(begins, ends, strict=True)))
        image, *starts = np.unravel_index(places, (len(values), *self._output_sides(values.shape)))
        result = np.empty((len(places), *self._spatial, values.shape[1]), np.float32)
        for kernel in np.ndindex(*self._spatial):
            at = [
                start * stride + offset * dilation
                for start, stride, offset, dilation in zip(starts, self._strides, kernel, self._dilations, strict=True)
            ]
            target, source = (slice(None), *kernel), (image, slice(None), *at)
            result[target] = padded[source]
        return result.reshape(len(places), -1)

    def _padding(self, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Return the padding before and after each spatial axis, for an input of this shape."""
        count = len(self._spatial)
        if not self._auto_pad.startswith("SAME"):
            return self._pads[:count], self._pads[count:]
        totals = [
            max(0, (-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side)
            for side, stride, kernel, dilation in zip(
                shape[2:], self._strides, self._spatial, self._dilations, strict=True
            )
        ]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        return (small, large) if self._auto_pad == "SAME_UPPER" else (large, small)

    def _output_sides(self, shape: tuple[int, ...]) -> list[int]:
        begins, ends = self._padding(shape)
        return [
            (side + begin + end - (kernel - 1) * dilation - 1) // stride + 1
            for side, begin, end, kernel, dilation, stride in zip(
                shape[2:], begins, ends, self._spatial, self._dilations, self._strides, strict=True
            )
        ]


def _integers(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    """Return a list attribute of a node, or `default` if the node does not have the attribute."""
    return next((list(each.ints) for each in node.attribute if each.name == name), default)
