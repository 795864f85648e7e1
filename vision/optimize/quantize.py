"""Explicit int8 quantization: QuantizeLinear and DequantizeLinear nodes (Q/DQ) where TensorRT fuses them.

All scales are symmetric. Activations have one scale per tensor, and weights one scale per output channel. Q/DQ nodes
are on the inputs of layers with weights, and on the residual branch of additions, so that the addition becomes part of
the convolution before it. There are no Q/DQ nodes between a convolution and its activation function. The bias stays
float, because TensorRT derives the quantization of the bias from the other scales, and refuses an int32 bias.

Weights stay float32 in the file, followed by a Q/DQ pair, because all versions of TensorRT accept this form.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from vision.optimize.onnx_graph import Graph, Layer

if TYPE_CHECKING:
    import onnx

LEVELS: Final = 127
"""Largest int8 level in use. The level -128 is not used, so that the range is symmetric."""

_ACTIVATIONS: Final = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "Softplus",
     "Gelu", "Mish", "Mul", "BatchNormalization"}
)  # fmt: skip
_CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})
_SMALLEST: Final = 1e-6  # threshold of a tensor that is always 0
_MOST_STEPS: Final = 6  # operators between a convolution and an addition, such as Sigmoid and Mul of a SiLU


def quantized_inputs(graph: Graph, layers: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the names of all tensors that `quantize` quantizes: inputs of layers and residual branches.

    `layers` contains the names of the layers to quantize; None means all.
    """
    chosen = [layer for layer in graph.layers if layers is None or layer.name in layers]
    names = [layer.activations for layer in chosen]
    names += [name for name, _, _ in residual_branches(graph, {layer.name for layer in chosen})]
    return tuple(dict.fromkeys(names))


def residual_branches(graph: Graph, layers: Collection[str]) -> Iterator[tuple[str, onnx.NodeProto, int]]:
    """Yield each residual branch of an addition: its tensor, the Add node, and the index of the tensor in the node.

    An addition has a residual branch if neither input is a constant, and a convolution of `layers` computes one input,
    possibly through an activation function, for this addition only. The other input is the residual branch. If such
    convolutions compute both inputs, the second input is the residual branch.
    """
    producers, readers = graph.producers(), graph.readers()
    constants = graph.initializers.keys()
    for node in graph.model.graph.node:
        if node.op_type != "Add" or len(node.input) != 2 or set(node.input) & constants:
            continue
        first, second = (len(readers[name]) == 1 and _from_convolution(name, producers, layers) for name in node.input)
        if first or second:
            index = 1 if first else 0
            yield node.input[index], node, index


def _from_convolution(name: str, producers: Mapping[str, onnx.NodeProto], layers: Collection[str]) -> bool:
    """Return True if a tensor comes from a convolution of `layers`, possibly through an activation function."""
    for _ in range(_MOST_STEPS):
        node = producers.get(name)
        if node is None:
            return False
        if node.op_type in _CONVOLUTIONS:
            return node.name in layers
        if node.op_type not in _ACTIVATIONS:
            return False
        name = node.input[0]
    return False


def quantize(graph: Graph, thresholds: Mapping[str, float], layers: Collection[str] | None = None) -> Graph:
    """Return a copy of a model in which the layers named `layers` compute int8. None means all layers.

    Args:
        thresholds: largest absolute value to represent, for each tensor of `quantized_inputs`.
    """
    result = graph.copy()
    writer = _Writer(result, thresholds)
    nodes = {node.name: node for node in result.model.graph.node}
    chosen = [layer for layer in result.layers if layers is None or layer.name in layers]
    residuals = list(residual_branches(result, {layer.name for layer in chosen}))
    for layer in chosen:
        node = nodes[layer.name]
        node.input[0] = writer.activation(layer.activations)
        node.input[1] = writer.weights(layer)
    for name, node, index in residuals:
        node.input[index] = writer.activation(name)
    writer.finish()
    return result


class _Writer:
    """Writer of Q/DQ pairs to a graph: one pair per tensor of activations, and one per layer for its weights."""

    def __init__(self, graph: Graph, thresholds: Mapping[str, float]) -> None:
        self._graph = graph
        self._thresholds = thresholds
        self._activations: dict[str, str] = {}
        self._after: dict[str, list[onnx.NodeProto]] = {}  # pairs by the tensor that they follow
        self._first: list[onnx.NodeProto] = []  # pairs of weights

    def activation(self, name: str) -> str:
        """Create the Q/DQ pair of a tensor of activations, unless it exists. Return the name of the pair's output."""
        if name not in self._activations:
            scale = np.array(max(self._thresholds[name], _SMALLEST) / LEVELS, np.float32)
            pair = self._pair(name, name, scale, np.zeros((), np.int8), axis=None)
            self._after[name] = pair
            self._activations[name] = pair[1].output[0]
        return self._activations[name]

    def weights(self, layer: Layer) -> str:
        """Create the Q/DQ pair of the weights of a layer. Return the name of the pair's output."""
        values = self._graph.array(layer.weights)
        axes = tuple(axis for axis in range(values.ndim) if axis != layer.output_axis)
        largest = np.abs(values).max(axis=axes)
        scales = np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32)
        zeros = np.zeros(len(scales), np.int8)
        pair = self._pair(f"{layer.name}_weights", layer.weights, scales, zeros, axis=layer.output_axis)
        self._first += pair
        return str(pair[1].output[0])

    def _pair(
        self, label: str, name: str, scale: np.ndarray, zero: np.ndarray, axis: int | None
    ) -> list[onnx.NodeProto]:
        from onnx import helper

        scale_name = self._graph.add_initializer(f"{label}_scale", scale)
        zero_name = self._graph.add_initializer(f"{label}_zero_point", zero)
        levels, restored = f"{label}_quantized", f"{label}_dequantized"
        ends = (("QuantizeLinear", name, levels), ("DequantizeLinear", levels, restored))
        pair = [
            helper.make_node(operator, [source, scale_name, zero_name], [target], name=f"{target}_node")
            for operator, source, target in ends
        ]
        if axis is not None:
            for node in pair:
                node.attribute.append(helper.make_attribute("axis", axis))
        return pair

    def finish(self) -> None:
        """Insert all Q/DQ pairs into the graph, so that the nodes stay in topological order."""
        nodes = list(self._graph.model.graph.node)
        computed = {name for node in nodes for name in node.output}
        ordered = [*self._first]
        for name, pair in self._after.items():
            if name not in computed:  # an input of the model
                ordered += pair
        for node in nodes:
            ordered.append(node)
            for name in node.output:
                ordered += self._after.get(name, [])
        del self._graph.model.graph.node[:]
        self._graph.model.graph.node.extend(ordered)
