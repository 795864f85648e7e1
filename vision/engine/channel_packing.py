"""Input frames with interleaved channels instead of planes.

Tensor cores take interleaved channels, in groups of at least four. So a network with an input of three planes begins
with a kernel that only interleaves them and adds a fourth channel of zeros. The letterbox writes every pixel anyway and
can write them in this order: the input gets a fourth channel with zero weights, and the kernel is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

INTERLEAVED_CHANNELS = 4


def widen_input(model: onnx.ModelProto) -> bool:
    """Give the frame's input a fourth channel, in place. The results stay the same.

    Returns:
        True if that was possible: the model has one input, of three channels, and only convolutions over all three read
        it, with weights that nothing else uses.
    """
    import onnx

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if len(graph.input) != 1:
        return False
    (frame,) = graph.input
    sides = frame.type.tensor_type.shape.dim
    readers = [node for node in graph.node if frame.name in node.input]
    kernels = {node.input[1] for node in readers if _convolves(node, frame.name, weights)}
    users = [node for node in graph.node if kernels.intersection(node.input)]
    if len(sides) != 4 or sides[1].dim_value != 3 or not readers or users != readers:
        return False
    for name in kernels:
        kernel = onnx.numpy_helper.to_array(weights[name])
        wide = np.pad(kernel, ((0, 0), (0, INTERLEAVED_CHANNELS - 3), (0, 0), (0, 0)))
        weights[name].CopyFrom(onnx.numpy_helper.from_array(wide, name))
    sides[1].dim_value = INTERLEAVED_CHANNELS
    return True


def _convolves(node: onnx.NodeProto, frame: str, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Return True for a convolution over all channels of the frame with weights that are in the file."""
    if node.op_type != "Conv" or node.input[0] != frame or node.input[1] not in weights:
        return False
    dims = weights[node.input[1]].dims
    group = next((each.i for each in node.attribute if each.name == "group"), 1)
    return group == 1 and len(dims) == 4 and dims[1] == 3
