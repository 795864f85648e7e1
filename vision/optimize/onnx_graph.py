"""The layers of an ONNX model that have weights, and the preparation of the model for changes to these layers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.engine.onnx_transform import load_onnx, with_weights
from vision.errors import ConfigError, ModelError
from vision.state.private_files import sha256_of
from vision.state.scratch import scratch_folder
from vision.version import install_hint

if TYPE_CHECKING:
    import onnx

Floats = NDArray[np.float32]

OLDEST_OPSET: Final = 13
"""Lowest opset in which QuantizeLinear and DequantizeLinear have an axis for scales of each channel."""

_TARGET_OPSET: Final = 17
_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_QUANTIZED: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
     "MatMulInteger"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv, ConvTranspose, Gemm, or MatMul node with weights in the file."""

    name: str
    """Unique name of the node."""
    operator: str
    """Type of the node, such as ``Conv``."""
    activations: str
    """Name of the input tensor that depends on the frame."""
    weights: str
    """Name of the initializer that contains the weights."""
    bias: str
    """Name of the initializer that contains the bias; empty if there is none."""
    shape: tuple[int, ...]
    """Shape of the weights."""
    output_axis: int
    """Axis of the weights with the output channels, each of which has its own scale."""
    input_axis: int
    """Axis of the weights with the input channels, along which products are summed."""
    group: int
    """Number of groups of channels; 1 if all input channels affect every output channel."""

    @property
    def is_depthwise(self) -> bool:
        return self.operator in ("Conv", "ConvTranspose") and self.group > 1 and self.shape[1] == 1


class Graph:
    """An ONNX model in memory whose nodes all have unique names, and whose weights are initializers.

    Each layer has weights and a bias of its own, so that a change to a layer does not affect other nodes. Only layers
    of a quantized model can share weights.
    """

    def __init__(self, model: onnx.ModelProto, sha256: str) -> None:
        """Take ownership of `model`, and change it in place.

        Give names to its nodes, convert constants to initializers, and copy the weights and biases that are shared.

        Args:
            sha256: hash of the original file, including external weights.
        """
        self.model = model
        self.sha256 = sha256
        self._name_nodes()
        self._convert_constants()
        self.initializers: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._separate_parameters()
        self.layers: tuple[Layer, ...] = tuple(self._layers())

    def copy(self) -> Graph:
        """Return an independent copy of the graph."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return Graph(model, self.sha256)

    def serialized(self) -> bytes:
        return bytes(self.model.SerializeToString())

    def array(self, name: str) -> Floats:
        """Return a copy of the values of the initializer `name`."""
        from onnx import numpy_helper

        return np.array(numpy_helper.to_array(self.initializers[name]))

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Replace the values of the initializer `name` with `values`."""
        from onnx import numpy_helper

        self.initializers[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))

    def add_initializer(self, name: str, values: NDArray[Any]) -> str:
        """Add the initializer `name` with these values. Return `name`."""
        from onnx import numpy_helper

        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        self.initializers[name] = self.model.graph.initializer[-1]
        return name

    def producers(self) -> Mapping[str, onnx.NodeProto]:
        """Return the node that computes each tensor, by the name of the tensor."""
        return {name: node for node in self.model.graph.node for name in node.output if name}

    def readers(self) -> Mapping[str, list[onnx.NodeProto]]:
        """Return the nodes that read each tensor, by the name of the tensor."""
        readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            for name in node.input:
                readers[name].append(node)
        return readers

    def with_outputs(self, names: list[str]) -> bytes:
        """Return the serialized model with the tensors `names` as its only outputs."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return bytes(model.SerializeToString())

    def _name_nodes(self) -> None:
        taken: Counter[str] = Counter()
        for index, node in enumerate(self.model.graph.node):
            name = node.name or f"{node.op_type}_{index}"
            taken[name] += 1
            node.name = name if taken[name] == 1 else f"{name}_{index}"

    def _convert_constants(self) -> None:
        """Convert nodes whose output is a constant tensor to initializers, except outputs of the model.

        Such nodes are Constant nodes that contain a tensor, and Identity nodes whose input is an initializer. Exporters
        use these Identity nodes to share equal weights and biases.
        """
        graph = self.model.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        outputs = {output.name for output in graph.output}
        for node in list(graph.node):
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                source = node.attribute[0].t
            elif node.op_type == "Identity" and node.input[0] in constants:
                source = constants[node.input[0]]
            else:
                continue
            if node.output[0] not in outputs:
                tensor = graph.initializer.add()
                tensor.CopyFrom(source)
                tensor.name = node.output[0]
                constants[tensor.name] = tensor
                graph.node.remove(node)

    def _separate_parameters(self) -> None:
        """Copy weights and biases that several nodes read, so that each layer has its own."""
        reads = Counter(_names_read(self.model.graph))
        for node in self.model.graph.node:
            if node.op_type not in _WEIGHTED:
                continue
            for index, name in enumerate(node.input):
                if index and name in self.initializers and reads[name] > 1:
                    reads[name] -= 1  # the last reader keeps the original
                    node.input[index] = self.add_initializer(f"{node.name}_input_{index}", self.array(name))

    def _source(self, name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
        """Return the tensor from which the tensor `name` is computed by only copying, quantizing, and dequantizing."""
        while name in producers and producers[name].op_type in ("Identity", "QuantizeLinear", "DequantizeLinear"):
            name = producers[name].input[0]
        return name

    def _layers(self) -> Iterator[Layer]:
        producers = self.producers()
        for node in self.model.graph.node:
            if node.op_type not in _WEIGHTED or len(node.input) < 2 or node.input[0] in self.initializers:
                continue
            name = self._source(node.input[1], producers)
            weights = self.initializers.get(name)
            if weights is None or (node.op_type in ("Gemm", "MatMul") and len(weights.dims) != 2):
                continue
            output_axis, input_axis = _axes(node)
            bias = node.input[2] if len(node.input) > 2 and node.input[2] in self.initializers else ""
            group = attribute(node, "group", 1)
            shape = tuple(weights.dims)
            yield Layer(node.name, node.op_type, node.input[0], name, bias, shape, output_axis, input_axis, group)


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the name of each tensor that a graph or one of its subgraphs reads or returns, once for each reader."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from node.input
        for each in node.attribute:
            for inner in (each.g, *each.graphs):
                yield from _names_read(inner)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node, or `default` if the node does not have the attribute."""
    return next((int(each.i) for each in node.attribute if each.name == name), default)


def _axes(node: onnx.NodeProto) -> tuple[int, int]:
    """Return the axes of the output channels and of the input channels in the weights of a node."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return 0, 1
    return 1, 0


def open_graph(path: Path, *, quantized: bool = False) -> Graph:
    """Load a model in float32, and prepare it: upgrade an old opset, and fold batch normalization.

    Args:
        quantized: True if a model with QuantizeLinear nodes, or with weights of a different type, is accepted.

    Raises:
        ConfigError: ONNX Runtime, which folds batch normalization, is not installed.
        ModelError: a package is missing, or the file is not an ONNX model, has an old opset that cannot be upgraded,
            has weights that are not float32, has no weighted layers, or is quantized already.
    """
    contents = with_weights(path.read_bytes(), path.parent)
    model = load_onnx(contents)
    operators = {node.op_type for node in model.graph.node}
    if operators & _QUANTIZED and not quantized:
        raise ModelError(
            f"{path} is quantized already: it has {', '.join(sorted(operators & _QUANTIZED))} nodes",
            hint="use the float32 model that it was made from",
            code="already-quantized",
        )
    model = _upgraded(model, path)
    if "BatchNormalization" in operators:
        model = _folded(model)
    graph = Graph(model, sha256_of(contents))
    if not graph.layers:
        raise ModelError(f"{path} has no Conv, Gemm, or MatMul layers with weights", code="no-layers")
    if not quantized:
        _require_float32(graph, path)
    return graph


def _require_float32(graph: Graph, path: Path) -> None:
    import onnx

    for layer in graph.layers:
        kind = graph.initializers[layer.weights].data_type
        if kind != onnx.TensorProto.FLOAT:
            raise ModelError(
                f"{path}: expected weights in float32, but layer {layer.name} has {_type_name(kind)}",
                hint="export the model in float32; the engine still runs the other layers in 16 bits",
                code="not-float32",
            )


def _type_name(kind: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(kind)).lower()


def _upgraded(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model, converted to a newer opset if its opset is older than `OLDEST_OPSET`.

    Raises:
        ModelError: the conversion fails.
    """
    from onnx import version_converter

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), _TARGET_OPSET)
    if opset >= OLDEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _TARGET_OPSET)
    except Exception as error:  # the converter raises errors that have no common base class
        raise ModelError(
            f"{path} has opset {opset}, expected at least {OLDEST_OPSET}, and it cannot be upgraded: {error}",
            hint=f"export the model with `opset_version={_TARGET_OPSET}`, or with `--opset {_TARGET_OPSET}`",
            code="opset",
        ) from error


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model after the basic optimizations of ONNX Runtime, which fold batch normalization into weights."""
    import onnx

    ort = require_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with scratch_folder("vision-") as folder:
        target = folder / "folded.onnx"
        options.optimized_model_filepath = str(target)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(target)


def require_onnxruntime() -> Any:
    """Return the module `onnxruntime`. Raise `ConfigError` if it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"optimizing a model needs ONNX Runtime: {error}", hint=install_hint("build"), code="package-missing"
        ) from error
    return onnxruntime


def open_session(model: bytes, *, threads: int = 0) -> Any:
    """Return an ONNX Runtime session of a serialized model on the CPU. If `threads` is 0, use one thread per core.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        ModelError: ONNX Runtime cannot load the model.
    """
    ort = require_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise ModelError(f"ONNX Runtime cannot load the model: {error}", code="unsupported-model") from error
