"""Folding of convolutions with few outputs: several columns of the frame at once.

The kernels that TensorRT-RTX chooses compute at least 64 output channels. A convolution with 16 or 32 of them, as the
first stages of small detectors have on their largest frames, wastes the rest. A folded convolution computes `factor`
adjacent columns as that many more channels: the kernel is wider by `stride * (factor - 1)`, holds the weights of each
column at the place where that column's window begins, with zeros around them, and its stride is `factor` times as
large. The sums are the same, with zeros added. On an H100 (fp16, batch 32, 104 x 104) 32 -> 32 channels took 65 us, and
35 us folded; 32 -> 16 took 64 and 26; 16 -> 16 took 45 and 36.

The result, [batch, factor * channels, height, width / factor], has the memory layout of the original output with
interleaved channels. Expressing that takes a transposition, which the library fuses with the kernel of the activation
after it. This is free if that activation has its own kernel, and costs one if the library would have fused it with the
convolution. As the logs of its builds show, it does the latter with LeakyRelu, SiLU and similar activations
(TensorRT-RTX 1.4, 1.6), unless a Concat joins the results with others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

KERNEL_OUTPUTS = 64
"""Output channels that the library's kernels compute at least."""

MOST_OUTPUTS = KERNEL_OUTPUTS // 2
"""With more, a second column does not fit into one kernel."""

LEAST_OUTPUTS = 8
"""Fewer would be folded into kernels that are more than ten columns wide, mostly of zeros."""

LEAST_INPUTS = 16
"""Fewer are the frame's own, and have kernels of another kind."""

MOST_INPUTS = 32
"""From 64 on nothing was gained (64 -> 32 measured): the zeros cost what the wasted channels did."""

ACTIVATIONS = frozenset(
    {"Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Selu", "Sigmoid", "Softplus", "Tanh"}
)
"""Pointwise operators that may get a kernel of their own. Relu and Clip never do: convolutions have them inside."""

INSIDE_ALONE = frozenset({"Sigmoid", "Tanh"})
"""Activations that convolutions have inside as well, unless the convolution's output is also needed itself."""

_QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_OFFICIAL = ("", "ai.onnx")
_RESHAPE_OPSET = 5  # from here on Reshape takes its shape as an input


def fold_narrow_convolutions(model: onnx.ModelProto) -> tuple[str, ...]:
    """Fold the convolutions for which that is likely to save time, in place. The results stay the same.

    Those are convolutions with constant float32 weights, few inputs and outputs, and overlapping windows. The width of
    the output is known, and only pointwise activations read it, whose results are joined with others. Quantised models
    stay as they are.

    Returns:
        Names of the folded convolutions, or of their outputs if they have none.
    """
    graph = model.graph
    opset = next((each.version for each in model.opset_import if each.domain in _OFFICIAL), 0)
    if opset < _RESHAPE_OPSET or any(node.op_type in _QUANTISING for node in graph.node):
        return ()
    index = _Index(model)
    nodes: list[onnx.NodeProto] = []
    folded: list[str] = []
    replaced: set[str] = set()
    for node in graph.node:
        nodes.append(node)
        fold = index.fold_of(node)
        if fold is not None:
            folded.append(node.name or node.output[0])
            replaced.update(name for name in node.input[1:] if name)
            unfolding, constants = fold.apply(node, index)
            nodes.extend(unfolding)
            graph.initializer.extend(constants)
    if folded:
        del graph.node[:]
        graph.node.extend(nodes)
        _remove_unread(graph, replaced)
    return tuple(folded)


@dataclass(frozen=True, slots=True)
class _Fold:
    """Parameters of one fold."""

    factor: int  # columns that are computed together
    weights: NDArray[np.float32]  # [outputs, inputs, height, width], of one column
    bias: NDArray[np.float32] | None
    strides: tuple[int, int]
    height: int | None  # of the output; None where it is open
    width: int  # of the output

    def apply(self, node: onnx.NodeProto, index: _Index) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Change the convolution.

        The padding stays as it is. The last of `width` windows ends where the last of `width / factor` wider ones does,
        and the columns left over after it are fewer than the old stride, and so fewer than the new one.

        Returns:
            The nodes that follow the convolution, and the constants of all of them.
        """
        from onnx import helper, numpy_helper

        label, result = node.name or node.output[0], node.output[0]
        channels, _, kernel_height, _ = self.weights.shape
        wide = _widened(self.weights, self.factor, self.strides[1])
        columns = [0, self.factor, channels, self.height or -1, self.width // self.factor]
        constants: dict[str, NDArray[Any]] = {
            "weights": wide,
            "columns": np.array(columns, np.int64),  # [batch, column, channel, y, x / factor]
            "whole": np.array([0, 0, 0, -1], np.int64),  # the last two of [batch, channel, y, x / factor, column]
        }
        if self.bias is not None:
            constants["bias"] = np.tile(self.bias, self.factor)
        named = {key: index.fresh(f"{label}_folded_{key}") for key in constants}
        wide_output, split, moved = (index.fresh(f"{label}_{key}") for key in ("folded", "split", "moved"))
        del node.input[1:]
        node.input.extend(named[key] for key in ("weights", "bias") if key in named)
        node.output[0] = wide_output
        _set(node, "kernel_shape", (kernel_height, wide.shape[3]))
        _set(node, "strides", (self.strides[0], self.strides[1] * self.factor))
        names = [index.fresh(f"{label}_unfold_{number}") for number in range(3)]
        unfolding = [
            helper.make_node("Reshape", [wide_output, named["columns"]], [split], names[0]),
            helper.make_node("Transpose", [split], [moved], names[1], perm=[0, 2, 3, 4, 1]),
            helper.make_node("Reshape", [moved, named["whole"]], [result], names[2]),
        ]
        return unfolding, [numpy_helper.from_array(values, named[key]) for key, values in constants.items()]


class _Index:
    """Index of a model: readers, shapes and values of its tensors, and the names in use."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._outputs = {each.name for each in graph.output}
        self._constants = _float_constants(graph)
        self._shapes = _shapes_of(model)
        self._names = set(_names_in(graph))
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in set(_reads(node)):
                self._readers[name].append(node)

    def fresh(self, name: str) -> str:
        """Reserve and return an unused name: `name`, or one like it."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def fold_of(self, node: onnx.NodeProto) -> _Fold | None:
        """Return how to fold a node, or None if that is impossible or saves nothing."""
        if node.op_type != "Conv" or node.domain not in _OFFICIAL or not self._is_plain(node):
            return None
        parameters = [self._values(name) for name in node.input[1:] if name]
        shape = self._shapes.get(node.output[0], ())
        if any(each is None for each in parameters) or len(shape) != 4 or shape[3] is None:
            return None
        weights, bias = (*parameters, None)[:2]
        if weights is None:
            return None
        across, down = _sequence(node, "strides", (1, 1))[::-1]
        factor = _factor(weights.shape, across)
        if factor == 1 or shape[3] % factor or not self._is_activated_and_joined(node.output[0]):
            return None
        return _Fold(factor, weights, bias, (down, across), shape[2], shape[3])

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Return True for a convolution with one group, no dilation, and padding given as numbers."""
        group, auto_pad = _attribute(node, "group", 1), _attribute(node, "auto_pad", b"NOTSET")
        return group == 1 and auto_pad == b"NOTSET" and set(_sequence(node, "dilations", (1, 1))) == {1}

    def _values(self, name: str) -> NDArray[np.float32] | None:
        """Return a float32 constant of the file."""
        from onnx import numpy_helper

        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def _is_activated_and_joined(self, name: str) -> bool:
        """Return True if only activations read a tensor, and a Concat reads their results."""
        made = [name]
        for each in made:  # grows: Mish may be Softplus, Tanh and a product
            made.extend(node.output[0] for node in self._readers[each] if self._activates(node))
        products = [node for node in self._readers[name] if node.op_type == "Mul" and set(node.input) <= set(made)]
        unary = [node for node in self._readers[name] if self._activates(node)]
        if name in self._outputs or len(unary) + len(products) < len(self._readers[name]):
            return False
        if not products and all(node.op_type in INSIDE_ALONE for node in unary):
            return False
        return self._is_joined([*made[1:], *(node.output[0] for node in products)])

    def _activates(self, node: onnx.NodeProto) -> bool:
        """Return True for a pointwise activation of one tensor; its other inputs are constants."""
        if node.op_type not in ACTIVATIONS or node.domain not in _OFFICIAL:
            return False
        by_tanh = _attribute(node, "approximate", b"none") != b"none"  # Gelu; this one convolutions have inside
        return not by_tanh and all(slope in self._constants for slope in node.input[1:])  # of PRelu

    def _is_joined(self, names: Iterable[str]) -> bool:
        """Return True if a Concat reads one of the tensors, directly or after an addition."""
        reached = list(names)
        for name in reached:  # grows
            for node in self._readers[name]:
                if node.op_type == "Concat":
                    return True
                if node.op_type == "Add":
                    reached.append(node.output[0])
        return False


def _factor(shape: Sequence[int], stride: int) -> int:
    """Return the number of columns that a convolution computes together; 1 if that saves nothing.

    Args:
        shape: of the weights, [outputs, inputs, height, width].
        stride: along the width. Windows that do not overlap share nothing, as in every 1 x 1 convolution.
    """
    outputs, inputs, _, width = shape
    narrow = LEAST_OUTPUTS <= outputs <= MOST_OUTPUTS and LEAST_INPUTS <= inputs <= MOST_INPUTS
    if not narrow or stride >= width:
        return 1
    return 1 << (KERNEL_OUTPUTS // outputs).bit_length() - 1


def _widened(weights: NDArray[np.float32], factor: int, stride: int) -> NDArray[np.float32]:
    """Return weights of `factor` columns, [factor * outputs, inputs, height, width + stride * (factor - 1)]."""
    outputs, inputs, height, width = weights.shape
    wide = np.zeros((factor * outputs, inputs, height, width + stride * (factor - 1)), np.float32)
    for column in range(factor):
        rows = slice(column * outputs, (column + 1) * outputs)
        wide[rows, ..., column * stride : column * stride + width] = weights
    return wide


# ------------------------------------------------------------------------------------------------ reading ONNX


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _sequence(node: onnx.NodeProto, name: str, default: tuple[int, int]) -> tuple[int, ...]:
    return tuple(_attribute(node, name, default))


def _set(node: onnx.NodeProto, name: str, values: Sequence[int]) -> None:
    from onnx import helper

    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name == name:
            del node.attribute[index]
    node.attribute.append(helper.make_attribute(name, values))


def _float_constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the float32 tensors with values in the file. Inputs with default values are excluded."""
    from onnx import TensorProto

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = _attribute(node, "value", None) if node.op_type == "Constant" else None
        if value is not None:
            constants[node.output[0]] = value
    inputs = {each.name for each in graph.input}
    return {
        name: tensor
        for name, tensor in constants.items()
        if tensor.data_type == TensorProto.FLOAT and tensor.data_location != TensorProto.EXTERNAL and name not in inputs
    }


def _shapes_of(model: onnx.ModelProto) -> Mapping[str, tuple[int | None, ...]]:
    """Return the shapes of node outputs, as far as they follow from the inputs; None for a free side.

    Shapes stored in the file are not used: they may belong to another frame size than the current input.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.ClearField("value_info")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare).graph
    except onnx.shape_inference.InferenceError:  # an operator is not known; the library is the judge of that
        return {}
    return {
        each.name: tuple(side.dim_value or None for side in each.type.tensor_type.shape.dim)
        for each in (*inferred.value_info, *inferred.output)
    }


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads; branches and loops also read tensors of the graph around them."""
    yield from node.input
    for graph in _subgraphs(node):
        for inner in graph.node:
            yield from _reads(inner)


def _names_in(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield all names of tensors and nodes."""
    for each in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield each.name
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for inner in _subgraphs(node):
            yield from _names_in(inner)


def _remove_unread(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Remove the constants of `names` that nothing reads."""
    read = {name for node in graph.node for name in _reads(node)} | {each.name for each in graph.output}
    unread = set(names) - read
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in unread:
            del graph.initializer[index]
    for index in reversed(range(len(graph.node))):
        if unread.intersection(graph.node[index].output):  # a Constant
            del graph.node[index]
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name in unread:
            del graph.value_info[index]
