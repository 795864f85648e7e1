"""Folding of convolutions with few output channels, so that they compute several columns of a frame together.

The kernels that TensorRT-RTX selects compute at least 64 output channels. In small detectors, the first convolutions,
which process the largest feature maps, have only 16 or 32 output channels, so most of the work of a kernel is wasted.

A folded convolution computes `factor` adjacent columns as additional channels. The stride of the convolution becomes
`factor` times as large, and its kernel becomes wider by `stride * (factor - 1)`. For each column, the kernel contains
the original weights at the offset of the column's window, and zeros around these weights. The sums are the same, with
zeros added.

On an H100 (fp16, batch 32, 104 x 104), folding reduces the time of a convolution from 65 to 35 µs for 32 -> 32
channels, from 64 to 26 µs for 32 -> 16 channels, and from 45 to 36 µs for 16 -> 16 channels.

The result, [batch, factor * channels, height, width / factor], has the memory layout of the original output with
interleaved channels. In the graph, a transposition restores the original shape. The library fuses this transposition
with the kernel of the activation that follows.

The transposition is free if the activation has a separate kernel. Otherwise, it costs one kernel, because the library
would have fused the activation with the convolution. The build logs (TensorRT-RTX 1.4, 1.6) show that the library fuses
LeakyRelu, SiLU, and similar activations with the convolution, unless a Concat joins their results with other tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

KERNEL_OUTPUTS = 64
"""Minimum number of output channels that the kernels of the library compute."""

MOST_OUTPUTS = KERNEL_OUTPUTS // 2
"""Maximum number of output channels of a convolution to fold. With more, two columns do not fit into one kernel."""

LEAST_OUTPUTS = 8
"""Minimum number of output channels of a convolution to fold. With fewer, folded kernels would be mostly zeros."""

LEAST_INPUTS = 16
"""Minimum number of input channels of a convolution to fold. With fewer, the library uses different kernels."""

MOST_INPUTS = 32
"""Maximum number of input channels of a convolution to fold. With 64, the added zeros cost as much time as is saved."""

ACTIVATIONS = frozenset(
    {"Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Selu", "Sigmoid", "Softplus", "Tanh"}
)
"""Pointwise activations that may get a separate kernel. Relu and Clip never do: they are fused with convolutions."""

INSIDE_ALONE = frozenset({"Sigmoid", "Tanh"})
"""Activations that are fused with convolutions, unless another node needs the output of the convolution."""

_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_RESHAPE_OPSET = 5  # since this version, the target shape of Reshape is an input

_Shapes: TypeAlias = Mapping[str, tuple[int | None, ...]]


def fold_narrow_convolutions(model: ir.Model) -> tuple[str, ...]:
    """Fold, in place, the convolutions of a model for which folding is likely to save time.

    The results of the model stay the same. Quantized models are not changed. A convolution is folded only if all of
    these conditions are met:

    - It has constant float32 weights, 16 to 32 input channels, 8 to 32 output channels, and overlapping windows.
    - The width of its output is known, and is divisible by the folding factor.
    - Only pointwise activations read the output, and a Concat joins their results with other tensors.

    Returns:
        The names of the folded convolutions. A convolution without a name is listed by the name of its output.
    """
    graph = model.graph
    opset = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 0))
    if opset < _RESHAPE_OPSET or any(node.op_type in _QUANTIZING for node in graph):
        return ()
    shapes = _shapes_of(model)
    folds = {node: fold for node in graph if (fold := _fold_of(node, shapes)) is not None}
    if not folds:
        return ()
    names = set(_names_in(graph))
    replaced = {value for node in folds for value in node.inputs[1:] if value is not None}
    folded = tuple(node.name or str(node.outputs[0].name) for node in folds)
    for node, fold in folds.items():
        fold.apply(node, graph, names)
    _remove_unread(graph, replaced)
    return folded


@dataclass(frozen=True, slots=True)
class _Fold:
    """Parameters for folding one convolution."""

    factor: int  # number of columns to compute together
    weights: NDArray[np.float32]  # [outputs, inputs, height, width], before folding
    bias: NDArray[np.float32] | None
    strides: tuple[int, int]
    height: int | None  # of the output; None if it is unknown
    width: int  # of the output

    def apply(self, node: ir.Node, graph: ir.Graph, names: set[str]) -> None:
        """Replace the convolution in a graph by one with wider windows, and restore the original layout of its result.

        The padding does not change. The output of the original convolution has `width` columns, and each wider window
        computes `factor` of them. The last window of both convolutions ends at the same column of the input. The number
        of columns after it is smaller than the original stride, so no additional window fits.
        """
        import onnx_ir as ir

        label = node.name or str(node.outputs[0].name)
        channels, _, kernel_height, _ = self.weights.shape
        wide = _widened(self.weights, self.factor, self.strides[1])
        columns = [0, self.factor, channels, self.height or -1, self.width // self.factor]

        def constant(key: str, values: NDArray[Any]) -> ir.Value:
            name = _fresh(f"{label}_folded_{key}", names)
            value = ir.Value(name=name, const_value=ir.tensor(values, name=name))
            graph.register_initializer(value)
            return value

        def step(op_type: str, inputs: Sequence[ir.Value], key: str, **attributes: Any) -> ir.Value:
            added = ir.node(op_type, inputs, attributes, name=_fresh(f"{label}_unfold_{key}", names))
            added.outputs[0].name = _fresh(f"{label}_{key}", names)
            nodes.append(added)
            return added.outputs[0]

        inputs = [node.inputs[0], constant("weights", wide)]
        if self.bias is not None:
            inputs.append(constant("bias", np.tile(self.bias, self.factor)))
        attributes = dict(node.attributes)
        attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", (kernel_height, wide.shape[3]))
        attributes["strides"] = ir.AttrInt64s("strides", (self.strides[0], self.strides[1] * self.factor))
        convolution = ir.Node("", "Conv", inputs, attributes.values(), name=node.name)
        convolution.outputs[0].name = _fresh(f"{label}_folded", names)
        nodes = [convolution]
        # to [batch, column, channel, y, x / factor], to [batch, channel, y, x / factor, column], then join the last two
        split = step("Reshape", [convolution.outputs[0], constant("columns", np.array(columns, np.int64))], "split")
        moved = step("Transpose", [split], "moved", perm=[0, 2, 3, 4, 1])
        whole = step("Reshape", [moved, constant("whole", np.array([0, 0, 0, -1], np.int64))], "whole")
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, [whole])


def _fold_of(node: ir.Node, shapes: _Shapes) -> _Fold | None:
    """Return the parameters for folding a node, or None if folding is impossible or saves no time."""
    if node.op_type != "Conv" or node.domain or not _is_plain(node):
        return None
    parameters = [_constant(value) for value in node.inputs[1:] if value is not None]
    shape = shapes.get(str(node.outputs[0].name), ())
    if any(values is None for values in parameters) or len(shape) != 4 or shape[3] is None:
        return None
    weights, bias = (*parameters, None)[:2]
    if weights is None:
        return None
    down, across = node.attributes.get_ints("strides", (1, 1))
    factor = _factor(weights.shape, across)
    if factor == 1 or shape[3] % factor or not _is_activated_and_joined(node.outputs[0]):
        return None
    return _Fold(factor, weights, bias, (down, across), shape[2], shape[3])


def _is_plain(node: ir.Node) -> bool:
    """Return True if a convolution has one group, no dilation, and explicit padding."""
    attributes = node.attributes
    dilations = set(attributes.get_ints("dilations", (1, 1)))
    return (
        attributes.get_int("group", 1) == 1
        and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and dilations == {1}
    )


def _constant(value: ir.Value) -> NDArray[np.float32] | None:
    """Return the value of a float32 constant.

    Return None for other tensors, inputs with default values, and external data.
    """
    import onnx_ir as ir

    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or isinstance(tensor, ir.ExternalTensor):
        return None
    return np.asarray(tensor.numpy())


def _is_activated_and_joined(value: ir.Value) -> bool:
    """Return True if only activations with separate kernels read a tensor, and a Concat joins one of their results.

    An activation has a separate kernel if TensorRT-RTX does not fuse it with the convolution before it.
    """
    activated = [value]
    for tensor in activated:  # the list grows, because Mish can be Softplus, Tanh, and a product
        activated.extend(node.outputs[0] for node in tensor.consumers() if _activates(node))
    readers = value.consumers()
    products = [node for node in readers if node.op_type == "Mul" and set(node.inputs) <= set(activated)]
    unary = [node for node in readers if _activates(node)]
    if value.is_graph_output() or len(unary) + len(products) < len(readers):
        return False
    if not products and all(node.op_type in INSIDE_ALONE for node in unary):
        return False
    return _is_joined([*activated[1:], *(node.outputs[0] for node in products)])


def _activates(node: ir.Node) -> bool:
    """Return True if a node is one of `ACTIVATIONS`, except Gelu with the tanh approximation.

    The inputs of the node after the first, such as slopes, must be constants.
    """
    if node.op_type not in ACTIVATIONS or node.domain:
        return False
    by_tanh = node.attributes.get_string("approximate", "none") != "none"  # this Gelu is fused with convolutions
    return not by_tanh and all(slope is not None and _constant(slope) is not None for slope in node.inputs[1:])


def _is_joined(values: Iterable[ir.Value]) -> bool:
    """Return True if a Concat reads one of the tensors, or a sum that contains one of them."""
    reached = list(values)
    for value in reached:  # the list grows
        for node in value.consumers():
            if node.op_type == "Concat":
                return True
            if node.op_type == "Add":
                reached.append(node.outputs[0])
    return False


def _factor(shape: Sequence[int], stride: int) -> int:
    """Return the number of columns to compute together. 1 means that folding would save no time.

    `shape` is the shape of the weights, [outputs, inputs, height, width]. `stride` is the horizontal stride. Folding
    saves time only if windows overlap, because other windows, such as those of a 1 x 1 convolution, share no inputs.
    """
    outputs, inputs, _, width = shape
    narrow = LEAST_OUTPUTS <= outputs <= MOST_OUTPUTS and LEAST_INPUTS <= inputs <= MOST_INPUTS
    if not narrow or stride >= width:
        return 1
    return 1 << (KERNEL_OUTPUTS // outputs).bit_length() - 1


def _widened(weights: NDArray[np.float32], factor: int, stride: int) -> NDArray[np.float32]:
    """Return the folded weights, float32 [factor * outputs, inputs, height, width + stride * (factor - 1)]."""
    last = stride * (factor - 1)
    padding = [((0, 0), (0, 0), (0, 0), (start, last - start)) for start in range(0, last + 1, stride)]
    return np.concatenate([np.pad(weights, sides) for sides in padding])


def _shapes_of(model: ir.Model) -> _Shapes:
    """Infer the shapes of node outputs, by name, from the shapes of the model's inputs.

    Unknown sizes are None. The result is empty if the inference fails. Shapes that are stored in the file are not used,
    because they may belong to a different frame size.
    """
    import onnx
    import onnx_ir as ir

    bare = ir.to_proto(model)
    bare.graph.ClearField("value_info")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare).graph
    except onnx.shape_inference.InferenceError:
        return {}
    return {
        info.name: tuple(side.dim_value or None for side in info.type.tensor_type.shape.dim)
        for info in (*inferred.value_info, *inferred.output)
    }


def _names_in(graph: ir.Graph) -> Iterable[str]:
    """Yield the names of the graph's inputs and initializers, and of all nodes and their outputs, even in subgraphs."""
    import onnx_ir as ir

    yield from (str(value.name) for value in (*graph.inputs, *graph.initializers.values()))
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield str(node.name)
        yield from (str(value.name) for value in node.outputs)


def _fresh(name: str, names: set[str]) -> str:
    """Return `name`, with underscores appended until it is not in `names`. Add the result to `names`."""
    while name in names:
        name += "_"
    names.add(name)
    return name


def _remove_unread(graph: ir.Graph, values: Iterable[ir.Value]) -> None:
    """Remove from the graph the constants in `values` that no node uses."""
    for value in values:
        if value.uses() or value.is_graph_output():
            continue
        producer = value.producer()
        if producer is None:
            del graph.initializers[str(value.name)]
        else:
            graph.remove(producer, safe=True)
