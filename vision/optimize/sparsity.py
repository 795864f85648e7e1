"""Structured 2:4 sparsity: of every four consecutive input channels, at most two weights are not zero.

Sparse tensor cores of NVIDIA GPUs skip these zeros. A group consists of four consecutive input channels, for one output
channel and one position of a convolution kernel. Many guides form groups from the flattened weights instead. The two
definitions are the same only for 1x1 kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.optimize.onnx_graph import Floats, Graph, Layer

GROUP: Final = 4
KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class Compliance:
    """The fraction of a layer's groups that follow the 2:4 pattern, or the reason why the layer cannot be sparse."""

    name: str
    operator: str
    shape: tuple[int, ...]
    skipped: str
    """Reason why the layer cannot be sparse; empty if it can be sparse."""
    compliant: float
    """Fraction of groups in which at most two weights are not zero; 0 if the layer cannot be sparse."""


def as_groups(weights: NDArray[Any], input_axis: int) -> NDArray[Any]:
    """Return the weights as an array (N, 4). Each row contains a group of four consecutive input channels."""
    return np.moveaxis(weights, input_axis, -1).reshape(-1, GROUP)


def magnitude_mask(weights: NDArray[Any], input_axis: int) -> NDArray[np.bool_]:
    """Return a mask of the two weights of largest magnitude in each group, with the shape of `weights`."""
    groups = np.abs(as_groups(weights, input_axis))
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, np.argsort(-groups, axis=1, kind="stable")[:, :KEPT], True, axis=1)
    moved = np.moveaxis(weights, input_axis, -1).shape
    return np.moveaxis(mask.reshape(moved), -1, input_axis)


def compliant_part(weights: NDArray[Any], input_axis: int) -> float:
    """Return the fraction of groups in which at most two weights are not zero, from 0 to 1."""
    return float((np.count_nonzero(as_groups(weights, input_axis), axis=1) <= KEPT).mean())


def reason_to_skip(layer: Layer, graph: Graph) -> str:
    """Return the reason why a layer cannot be sparse, or an empty string if it can be sparse."""
    inputs = {tensor.name for tensor in graph.model.graph.input}
    if layer.operator == "ConvTranspose":
        return "TensorRT has no sparse kernels for ConvTranspose"
    if layer.is_depthwise:
        return "depthwise: each output has one input channel"
    if layer.operator == "Conv" and layer.activations in inputs:
        return "first layer: it reads the frame"
    channels = layer.shape[layer.input_axis]
    if channels % GROUP:
        return f"{channels} input channels are not a multiple of {GROUP}"
    return ""


def eligible_layers(graph: Graph) -> Mapping[str, str]:
    """Return a dict from the name of each layer to the reason why it cannot be sparse, or to "" if it can be sparse."""
    return {layer.name: reason_to_skip(layer, graph) for layer in graph.layers}


def verify(graph: Graph) -> list[Compliance]:
    """Return the compliance of each layer with the 2:4 pattern, or the reason why the layer cannot be sparse."""
    reasons = eligible_layers(graph)
    return [
        Compliance(
            layer.name,
            layer.operator,
            layer.shape,
            reasons[layer.name],
            0.0 if reasons[layer.name] else compliant_part(graph.array(layer.weights), layer.input_axis),
        )
        for layer in graph.layers
    ]


Repair = Callable[[Graph, Layer], None]
"""Function that prunes one layer of a graph in place. The earlier layers of the graph are pruned already."""


def prune_by_magnitude(graph: Graph, layer: Layer) -> None:
    """Set the two weights of smallest magnitude in each group of a layer to zero."""
    weights: Floats = graph.array(layer.weights)
    graph.replace(layer.weights, np.where(magnitude_mask(weights, layer.input_axis), weights, 0).astype(weights.dtype))


def sparsify(
    graph: Graph, prune: Repair = prune_by_magnitude, progress: Callable[[int], None] = lambda _: None
) -> Graph:
    """Return a copy of a model whose eligible layers follow the 2:4 pattern. `prune` changes one layer at a time."""
    result = graph.copy()
    reasons = eligible_layers(result)
    for index, layer in enumerate(result.layers, start=1):
        if not reasons[layer.name]:
            prune(result, layer)
        progress(index)
    return result
