"""Tests of the positions and the scales of QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import checker, numpy_helper

from tests.unit.optimize.models import SIDE, cells_model, graph_of, model, node, random
from vision.errors import ModelError
from vision.optimize.onnx_graph import Graph, open_graph
from vision.optimize.quantize import quantize, quantized_inputs


class Ones(dict[str, float]):
    """Thresholds that have the value 1 for every tensor."""

    def __missing__(self, name: str) -> float:
        return 1.0


def quantized(made: onnx.ModelProto, folder: Path, layers: set[str] | None = None) -> Graph:
    result = quantize(graph_of(made, folder), Ones(), layers)
    checker.check_model(result.model)
    return result


def dequantized_inputs(graph: Graph) -> dict[str, list[str]]:
    """Return, for each node name, the tensors from which the inputs of the node are quantized."""
    producers = graph.producers()
    found: dict[str, list[str]] = {}
    for each in graph.model.graph.node:
        if each.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        behind = [
            producers[producers[name].input[0]].input[0]
            for name in each.input
            if name in producers and producers[name].op_type == "DequantizeLinear"
        ]
        if behind:
            found[each.name] = behind
    return found


def test_inputs_of_layers_and_the_residual_branch_are_quantized_and_nothing_else(tmp_path: Path) -> None:
    graph = quantized(cells_model(), tmp_path)
    assert dequantized_inputs(graph) == {
        "conv0": ["images", "w0"],
        "conv1": ["relu0", "w1"],
        "sum": ["relu0"],
        "conv2": ["sum", "w2"],
        "conv3": ["conv2", "w3"],
    }
    relu = next(each for each in graph.model.graph.node if each.name == "relu0")
    assert list(relu.input) == ["conv0"]
    conv0 = next(each for each in graph.model.graph.node if each.name == "conv0")
    assert conv0.input[2] == "b0"
    assert graph.initializers["b0"].data_type == onnx.TensorProto.FLOAT


def test_tensor_that_several_layers_read_has_one_pair(tmp_path: Path) -> None:
    graph = quantized(cells_model(), tmp_path)
    readers = [each for each in graph.model.graph.node if each.op_type == "QuantizeLinear" and each.input[0] == "relu0"]
    assert len(readers) == 1


def residual(first: str, second: str) -> onnx.ModelProto:
    """Return a model with images -> a (Conv), b (Conv, then SiLU), and c (MaxPool). Its output is first + second."""
    nodes = [
        node("Conv", ["images", "wa"], "a"),
        node("Conv", ["images", "wb"], "b0"),
        node("Sigmoid", ["b0"], "b1"),
        node("Mul", ["b0", "b1"], "b"),
        node("MaxPool", ["images"], "c", kernel_shape=[1, 1]),
        node("Add", [first, second], "output"),
    ]
    return model(nodes, {"wa": random(3, 3, 1, 1), "wb": random(3, 3, 1, 1, seed=1)})


@pytest.mark.parametrize(
    ("first", "second", "branch"),
    [
        ("a", "c", ["c"]), ("c", "a", ["c"]), ("b", "c", ["c"]), ("c", "b", ["c"]), ("a", "b", ["b"]),
        ("c", "images", None),
    ],
)  # fmt: skip
def test_residual_branch_is_the_input_that_no_convolution_computes(
    tmp_path: Path, first: str, second: str, branch: list[str] | None
) -> None:
    assert dequantized_inputs(quantized(residual(first, second), tmp_path)).get("output") == branch


def test_addition_of_a_constant_is_not_quantized(tmp_path: Path) -> None:
    nodes = [node("Conv", ["images", "w"], "a"), node("Add", ["a", "constant"], "output")]
    made = model(nodes, {"w": random(3, 3, 1, 1), "constant": np.ones((1, 3, 1, 1), np.float32)})
    assert dequantized_inputs(quantized(made, tmp_path)) == {"a": ["images", "w"]}


def dense(operator: str, **attributes: Any) -> onnx.ModelProto:
    """Return the model images (batch, 6) -> `operator` (Gemm or MatMul) with 4 output channels."""
    shape = (4, 6) if attributes.get("transB") else (6, 4)
    return model([node(operator, ["images", "w"], "output", **attributes)], {"w": random(*shape)}, shape=("batch", 6))


def transposed() -> onnx.ModelProto:
    return model([node("ConvTranspose", ["images", "w"], "output")], {"w": random(3, 4, 2, 2)})


def depthwise() -> onnx.ModelProto:
    return model([node("Conv", ["images", "w"], "output", group=3)], {"w": random(3, 1, 3, 3)})


@pytest.mark.parametrize(
    ("made", "axis", "channels"),
    [
        (model([node("Conv", ["images", "w"], "output")], {"w": random(4, 3, 1, 1)}), 0, 4),
        (dense("MatMul"), 1, 4),
        (dense("Gemm"), 1, 4),
        (dense("Gemm", transB=1), 0, 4),
        (transposed(), 1, 4),
        (depthwise(), 0, 3),
    ],
    ids=["conv", "matmul", "gemm", "gemm-transposed", "conv-transpose", "depthwise"],
)
def test_weights_have_one_symmetric_scale_for_each_output_channel(
    tmp_path: Path, made: onnx.ModelProto, axis: int, channels: int
) -> None:
    graph = quantized(made, tmp_path)
    pair = next(each for each in graph.model.graph.node if each.op_type == "QuantizeLinear" and each.input[0] == "w")
    assert {each.name: each.i for each in pair.attribute} == {"axis": axis}
    weights = graph.array("w")
    others = tuple(each for each in range(weights.ndim) if each != axis)
    scales, zeros = (numpy_helper.to_array(graph.initializers[name]) for name in pair.input[1:])
    np.testing.assert_allclose(scales, np.abs(weights).max(axis=others) / 127, rtol=1e-6)
    assert scales.shape == (channels,)
    assert zeros.dtype == np.int8 and not zeros.any()


def run(made: bytes, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"]).run(None, dict(inputs))[0])


@pytest.mark.parametrize(
    "made", [dense("MatMul"), dense("Gemm", transB=1), transposed(), depthwise(), residual("b", "c"), cells_model()]
)
def test_quantized_model_computes_almost_the_same(tmp_path: Path, made: onnx.ModelProto) -> None:
    shape = [axis.dim_value or 2 for axis in made.graph.input[0].type.tensor_type.shape.dim]
    inputs = {"images": np.random.default_rng(3).uniform(0, 1, shape).astype(np.float32)}
    graph = graph_of(made, tmp_path)
    names = list(quantized_inputs(graph))
    session = onnxruntime.InferenceSession(graph.with_outputs(names), providers=["CPUExecutionProvider"])
    largest = {name: float(np.abs(each).max()) for name, each in zip(names, session.run(names, inputs), strict=True)}
    expected, found = run(graph.serialized(), inputs), run(quantize(graph, largest).serialized(), inputs)
    assert np.abs(expected - found).max() < 0.03 * np.abs(expected).max()


def test_channel_of_zeros_and_a_tensor_of_zeros_have_usable_scales(tmp_path: Path) -> None:
    weights = random(4, 3, 1, 1)
    weights[2] = 0
    graph = graph_of(model([node("Conv", ["images", "w"], "output")], {"w": weights}), tmp_path)
    found = run(quantize(graph, {"images": 0.0}).serialized(), {"images": np.zeros((1, 3, SIDE, SIDE), np.float32)})
    assert np.isfinite(found).all() and not found.any()


def test_only_the_chosen_layers_are_quantized(tmp_path: Path) -> None:
    assert dequantized_inputs(quantized(cells_model(), tmp_path, {"conv0", "conv2"})) == {
        "conv0": ["images", "w0"],
        "conv2": ["sum", "w2"],
    }


def test_layers_that_share_weights_each_have_their_pair(tmp_path: Path) -> None:
    nodes = [node("Conv", ["images", "w"], "a"), node("Conv", ["a", "w"], "output")]
    found = dequantized_inputs(quantized(model(nodes, {"w": random(3, 3, 1, 1)}), tmp_path))
    assert found == {"a": ["images", "a_input_1"], "output": ["a", "w"]}


def test_weights_in_constant_nodes_and_nodes_without_names_are_found(tmp_path: Path) -> None:
    made = model([node("Conv", ["images", "w"], "a"), node("Conv", ["a", "w"], "output")], {})
    constant = onnx.helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(random(3, 3, 1, 1), "value"))
    made.graph.node.insert(0, constant)
    for each in made.graph.node:
        each.name = ""
    graph = graph_of(made, tmp_path)
    assert len({layer.name for layer in graph.layers}) == 2


def test_batch_normalization_is_folded(tmp_path: Path) -> None:
    ones = {name: np.ones(4, np.float32) for name in ("scale", "bias", "mean", "var")}
    nodes = [
        node("Conv", ["images", "w"], "a"),
        node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], "b"),
        node("Relu", ["b"], "output"),
    ]
    graph = graph_of(model(nodes, {"w": random(4, 3, 1, 1), **ones}), tmp_path)
    assert "BatchNormalization" not in {each.op_type for each in graph.model.graph.node}
    assert graph.layers[0].bias


def test_old_opset_is_upgraded(tmp_path: Path) -> None:
    made = model(
        [node("Conv", ["images", "w"], "a"), node("Relu", ["a"], "output")], {"w": random(3, 3, 1, 1)}, opset=9
    )
    graph = graph_of(made, tmp_path)
    assert graph.model.opset_import[0].version >= 13
    checker.check_model(quantize(graph, Ones()).model)


def half_model() -> onnx.ModelProto:
    return model([node("Conv", ["images", "w"], "output")], {"w": random(3, 3, 1, 1).astype(np.float16)})


def old_model() -> onnx.ModelProto:
    """Return a model with an operator that no converter supports."""
    nodes = [node("Conv", ["images", "w"], "a"), node("Upsample", ["a", "scales"], "output")]
    weights = {"w": random(3, 3, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)}
    made = model(nodes, weights, opset=9)
    made.graph.node[1].op_type = "Unheard"
    return made


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (half_model(), "not-float32"),
        (model([node("Relu", ["images"], "output")], {}), "no-layers"),
        (old_model(), "opset"),
    ],
    ids=["half", "no-layers", "old"],
)
def test_unsuitable_model_is_refused(tmp_path: Path, made: onnx.ModelProto, code: str) -> None:
    with pytest.raises(ModelError) as caught:
        graph_of(made, tmp_path)
    assert caught.value.code == code


def test_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    path = tmp_path / "quantized.onnx"
    path.write_bytes(quantized(cells_model(), tmp_path).serialized())
    with pytest.raises(ModelError) as caught:
        open_graph(path)
    assert caught.value.code == "already-quantized"
