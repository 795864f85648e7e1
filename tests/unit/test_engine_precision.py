"""Precisions: what a GPU has, how a library is told, and what rewriting does to the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests.unit.engine_models import convolution, quantised
from vision.engine.library import GpuDescription
from vision.engine.precision import (
    Precision,
    Quantised,
    Typing,
    check_quantisation,
    plan_typing,
    precisions_of,
    require_precision,
    rewrite_onnx,
)
from vision.errors import ModelError

NANODET = Path(__file__).parents[2] / "models" / "nanodet-g-416" / "nanodet-g-416.onnx"


@pytest.mark.parametrize(
    ("capability", "has"),
    [
        ((5, 0), "fp32"),
        ((5, 3), "fp32 fp16"),
        ((7, 2), "fp32 fp16 int8"),
        ((7, 5), "fp32 fp16 int8"),
        ((8, 0), "fp32 fp16 int8 tf32 bf16"),
        ((8, 7), "fp32 fp16 int8 tf32 bf16"),  # Orin
        ((8, 9), "fp32 fp16 int8 tf32 bf16 fp8"),
        ((9, 0), "fp32 fp16 int8 tf32 bf16 fp8"),
        ((11, 0), "fp32 fp16 int8 tf32 bf16 fp8"),  # Thor
    ],
)
def test_precisions_by_compute_capability(capability: tuple[int, int], has: str) -> None:
    assert precisions_of(capability) == tuple(has.split())


def test_precision_that_the_gpu_lacks_is_refused_with_those_that_it_has() -> None:
    require_precision("fp8", GpuDescription("NVIDIA L4", (8, 9)))
    with pytest.raises(ModelError) as caught:
        require_precision("fp8", GpuDescription("Orin", (8, 7)))
    assert "Orin (compute capability 8.7) has no fp8; it has fp32, fp16, int8, tf32, bf16" in str(caught.value)
    assert "precision: fp16" in caught.value.hint


@pytest.mark.parametrize(
    ("precision", "weak", "typing"),
    [
        ("fp32", True, Typing(False, (), ("TF32",), "none")),
        ("fp32", False, Typing(True, (), ("TF32",), "none")),
        ("tf32", True, Typing(False, ("TF32",), (), "none")),
        ("tf32", False, Typing(True, ("TF32",), (), "none")),
        ("fp16", True, Typing(False, ("FP16", "TF32"), (), "none")),
        ("fp16", False, Typing(True, ("TF32",), (), "fp16")),
        ("bf16", True, Typing(False, ("BF16", "TF32"), (), "none")),
        ("bf16", False, Typing(True, ("TF32",), (), "bf16")),
        ("int8", True, Typing(False, ("INT8", "FP16", "TF32"), (), "none")),
        ("int8", False, Typing(True, ("TF32",), (), "fp16")),
        ("fp8", True, Typing(False, ("FP8", "FP16", "TF32"), (), "none")),
        ("fp8", False, Typing(True, ("TF32",), (), "fp16")),
    ],
)
def test_typing(precision: Precision, weak: bool, typing: Typing) -> None:
    assert plan_typing(precision, weak_typing=weak) == typing


@pytest.mark.parametrize(
    ("precision", "found", "says"),
    [
        ("int8", "none", "needs a model with int8 QuantizeLinear nodes, this one has none"),
        ("int8", "fp8", "this one has fp8 ones"),
        ("fp8", "int8", "this one has int8 ones"),
        ("fp16", "int8", "the model is quantised to int8, and precision fp16 was asked for"),
    ],
)
def test_quantisation_and_precision_must_agree(precision: Precision, found: Quantised, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        check_quantisation(precision, found)


@pytest.mark.parametrize(("precision", "found"), [("int8", "int8"), ("fp8", "fp8"), ("fp16", "none"), ("fp32", "none")])
def test_quantisation_and_precision_that_agree(precision: Precision, found: Quantised) -> None:
    check_quantisation(precision, found)


@pytest.mark.parametrize(
    ("precision", "weak_typing", "head", "half_ends"),
    [
        ("fp16", False, "nanodet", (True, True)),
        ("fp16", False, "yolov8", (True, False)),  # its outputs are coordinates
        ("fp16", True, "nanodet", (True, False)),  # its last layers may be float32
        ("int8", False, "nanodet", (True, True)),
        ("int8", True, "nanodet", (False, False)),
        ("bf16", False, "nanodet", (False, False)),  # the kernels have no bfloat16
        ("bf16", True, "nanodet", (False, False)),
        ("fp32", False, "nanodet", (False, False)),
        ("tf32", True, "nanodet", (False, False)),
    ],
)
def test_which_ends_of_a_network_may_be_half(
    precision: Precision, weak_typing: bool, head: str, half_ends: tuple[bool, bool]
) -> None:
    assert plan_typing(precision, weak_typing=weak_typing).half_ends(head) == half_ends


# ------------------------------------------------------------------------------------------------ rewriting


def outputs(model: bytes, pictures: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """What ONNX Runtime computes, whatever type the model takes."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    fed = pictures.astype(np.float16) if given.type == "tensor(float16)" else pictures
    return [np.asarray(each, np.float64) for each in session.run(None, {given.name: fed})]


def relative_error(found: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


def types_of(model: bytes) -> set[int]:
    """Types of weights, inputs and outputs."""
    graph = onnx.load_model_from_string(model).graph
    ends = (*graph.input, *graph.output)
    return {tensor.data_type for tensor in graph.initializer} | {each.type.tensor_type.elem_type for each in ends}


ENDS = [(True, True), (False, True), (True, False), (False, False)]


@pytest.mark.parametrize(("keep_inputs", "keep_outputs"), ENDS)
def test_the_shipped_model_in_float16_computes_the_same(keep_inputs: bool, keep_outputs: bool) -> None:
    original = NANODET.read_bytes()
    rewritten = rewrite_onnx(original, "fp16", keep_inputs=keep_inputs, keep_outputs=keep_outputs)
    pictures = np.random.default_rng(0).normal(size=(1, 3, 416, 416)).astype(np.float32)
    for found, right in zip(outputs(rewritten, pictures), outputs(original, pictures), strict=True):
        assert relative_error(found, right) < 1e-3
    graph = onnx.load_model_from_string(rewritten).graph
    nodes = [node.op_type for node in graph.node]
    assert nodes.count("Cast") == keep_inputs + 2 * keep_outputs, "no casts inside the network"
    kinds = [[each.type.tensor_type.elem_type for each in ends] for ends in (graph.input, graph.output)]
    assert kinds == [[1 if keep_inputs else 10], [1 if keep_outputs else 10] * 2]
    assert len(rewritten) < 0.55 * len(original)


def test_rewritten_nodes_are_in_order_and_pass_the_checker() -> None:
    rewritten = onnx.load_model_from_string(rewrite_onnx(convolution(), "fp16", keep_inputs=True, keep_outputs=True))
    onnx.checker.check_model(rewritten, full_check=True)


@pytest.mark.parametrize(("keep_io", "kinds"), [(True, {1, 16}), (False, {16})])
def test_bfloat16_everywhere_but_where_float32_is_kept(keep_io: bool, kinds: set[int]) -> None:
    assert types_of(rewrite_onnx(convolution(), "bf16", keep_inputs=keep_io, keep_outputs=keep_io)) == kinds


def test_bfloat16_weights_are_the_float32_ones_rounded_to_nearest() -> None:
    original = onnx.load_model_from_string(convolution(weight=3.0e38)).graph.initializer[0]
    rewritten = onnx.load_model_from_string(
        rewrite_onnx(convolution(weight=3.0e38), "bf16", keep_inputs=False, keep_outputs=False)
    )
    found = np.asarray(onnx.numpy_helper.to_array(rewritten.graph.initializer[0]), np.float32)
    right = onnx.numpy_helper.to_array(original)
    assert np.all(np.isfinite(found)), "a weight that float16 does not have survives"
    assert float(np.max(np.abs(found - right) / np.abs(right))) <= 2.0**-8


def test_weight_that_float16_does_not_have_is_refused() -> None:
    with pytest.raises(ModelError, match="weight w0 has the value 70000, and float16 ends at 65504"):
        rewrite_onnx(convolution(weight=70000.0), "fp16", keep_inputs=True, keep_outputs=True)


def test_what_is_no_onnx_is_refused() -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        rewrite_onnx(b"\xff\xfe no ONNX", "fp16", keep_inputs=True, keep_outputs=True)


def test_quantised_model_gets_scales_in_float16_and_computes_the_same() -> None:
    original = quantised()
    rewritten = rewrite_onnx(original, "fp16", keep_inputs=True, keep_outputs=True)
    loaded = onnx.load_model_from_string(rewritten)
    onnx.checker.check_model(loaded, full_check=True)
    assert loaded.opset_import[0].version >= 19, "QuantizeLinear takes float16 from there on"
    nodes = {node.op_type for node in loaded.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= nodes
    pictures = np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)
    (found,), (right,) = outputs(rewritten, pictures), outputs(original, pictures)
    assert relative_error(found, right) < 0.02


def test_model_without_quantisation_keeps_its_opset() -> None:
    rewritten = onnx.load_model_from_string(
        rewrite_onnx(convolution(opset=17), "fp16", keep_inputs=True, keep_outputs=True)
    )
    assert rewritten.opset_import[0].version == 17
