"""Tests of rewritten ONNX files, whose types and shapes change, but whose results do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests.paths import ROOT
from tests.unit.engine_models import convolution, first_layer, quantized
from vision.engine.onnx_transform import reshape_onnx, rewrite_onnx, widen_input, with_weights
from vision.errors import ModelError

NANODET = ROOT / "models" / "nanodet-g-416" / "nanodet-g-416.onnx"


def outputs(model: bytes, frames: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """Return the outputs of ONNX Runtime for a model of any input type."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    fed = frames.astype(np.float16) if given.type == "tensor(float16)" else frames
    return [np.asarray(each, np.float64) for each in session.run(None, {given.name: fed})]


def relative_error(found: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


def types_of(model: bytes) -> set[int]:
    """Return the types of the weights, inputs, and outputs."""
    graph = onnx.load_model_from_string(model).graph
    ends = (*graph.input, *graph.output)
    return {tensor.data_type for tensor in graph.initializer} | {each.type.tensor_type.elem_type for each in ends}


HALVES: Final[tuple[Literal["fp16", "bf16"], ...]] = ("fp16", "bf16")
ENDS = [(True, True), (False, True), (True, False), (False, False)]


@pytest.mark.engine
@pytest.mark.parametrize(("keep_inputs", "keep_outputs"), ENDS)
def test_shipped_model_in_float16_gives_the_same_results(keep_inputs: bool, keep_outputs: bool) -> None:
    original = NANODET.read_bytes()
    rewritten = rewrite_onnx(original, "fp16", keep_inputs=keep_inputs, keep_outputs=keep_outputs)
    frames = np.random.default_rng(0).normal(size=(1, 3, 416, 416)).astype(np.float32)
    for found, right in zip(outputs(rewritten, frames), outputs(original, frames), strict=True):
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


@pytest.mark.parametrize("to", HALVES)
def test_model_in_the_target_type_is_unchanged(to: Literal["fp16", "bf16"]) -> None:
    """The model was exported in the target type, or was converted before. A second conversion would duplicate names."""
    half = rewrite_onnx(convolution(), to, keep_inputs=True, keep_outputs=True)
    assert rewrite_onnx(half, to, keep_inputs=False, keep_outputs=False) is half


@pytest.mark.parametrize(("keep_io", "kinds"), [(True, {1, 16}), (False, {16})])
def test_bfloat16_replaces_all_but_the_kept_float32(keep_io: bool, kinds: set[int]) -> None:
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


def test_finite_value_beyond_bfloat16_stays_finite() -> None:
    """Language models often use the lowest float32 value as a mask. As infinity, this value would turn a 0 into NaN."""
    lowest = float(np.finfo(np.float32).min)
    rewritten = onnx.load_model_from_string(
        rewrite_onnx(convolution(weight=lowest), "bf16", keep_inputs=False, keep_outputs=False)
    )
    found = np.asarray(onnx.numpy_helper.to_array(rewritten.graph.initializer[0]), np.float32)
    assert np.all(np.isfinite(found))
    assert float(found.min()) < 0.99 * lowest


def test_weight_that_float16_does_not_have_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        rewrite_onnx(convolution(weight=70000.0), "fp16", keep_inputs=True, keep_outputs=True)
    assert caught.value.code == "float16-overflow"


@pytest.mark.parametrize("value", [float(np.finfo(np.float32).min), -1e9])
@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "constant"])
def test_mask_value_is_limited_to_the_range_of_float16(value: float, constant: bool) -> None:
    """Exported language models add such a value, which float16 cannot represent, to the scores of masked tokens."""
    tensor = onnx.numpy_helper.from_array(np.array(value, np.float32), "low")
    nodes = [onnx.helper.make_node("Constant", [], ["low"], value=tensor)] if constant else []
    nodes += [
        onnx.helper.make_node("Greater", ["x", "zero"], ["seen"]),
        onnx.helper.make_node("Where", ["seen", "x", "low"], ["masked"]),
        onnx.helper.make_node("Softmax", ["masked"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (2, 8)) for name in "xy"]
    zero = onnx.numpy_helper.from_array(np.array(0, np.float32), "zero")
    graph = onnx.helper.make_graph(nodes, "mask", ends[:1], ends[1:], [zero] if constant else [zero, tensor])
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    values = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    rewritten = rewrite_onnx(model, "fp16", keep_inputs=True, keep_outputs=True)
    np.testing.assert_allclose(outputs(rewritten, values)[0], outputs(model, values)[0], atol=1e-3)


def test_invalid_onnx_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        rewrite_onnx(b"\xff\xfe no ONNX", "fp16", keep_inputs=True, keep_outputs=True)
    assert caught.value.code == "not-onnx"


def test_quantized_model_gets_scales_in_float16_and_computes_the_same() -> None:
    original = quantized()
    rewritten = rewrite_onnx(original, "fp16", keep_inputs=True, keep_outputs=True)
    loaded = onnx.load_model_from_string(rewritten)
    onnx.checker.check_model(loaded, full_check=True)
    assert loaded.opset_import[0].version >= 19, "QuantizeLinear takes float16 from there on"
    nodes = {node.op_type for node in loaded.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= nodes
    frames = np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)
    (found,), (right,) = outputs(rewritten, frames), outputs(original, frames)
    assert (
        relative_error(found, right) < 0.05
    )  # versions of ONNX Runtime round differently: few values differ by one step of the quantization


def test_model_without_quantization_keeps_its_opset() -> None:
    rewritten = onnx.load_model_from_string(
        rewrite_onnx(convolution(opset=17), "fp16", keep_inputs=True, keep_outputs=True)
    )
    assert rewritten.opset_import[0].version == 17


# ------------------------------------------------------------------------------------------------ shapes


def widened(frames: NDArray[np.float32], seed: int = 3) -> NDArray[np.float32]:
    """Return the frames with a fourth channel, which must not affect the results."""
    noise = np.random.default_rng(seed).normal(size=frames[:, :1].shape).astype(np.float32)
    return np.concatenate([frames, noise], axis=1)


@pytest.mark.parametrize("original", [convolution(), convolution((2, 3, 16, 16)), NANODET.read_bytes()])
def test_wider_input_changes_no_result(original: bytes) -> None:
    side = 416 if len(original) > 100_000 else 16
    frames = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    wide, widened_it = reshape_onnx(original, interleave=True, fold=False)
    assert widened_it
    onnx.checker.check_model(onnx.load_model_from_string(wide), full_check=True)
    for found, right in zip(outputs(wide, widened(frames)), outputs(original, frames), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


def test_widening_and_folding_together_change_no_result() -> None:
    """TensorRT-RTX receives the shipped model in this form, but with other data types."""
    original = NANODET.read_bytes()
    frames = np.random.default_rng(0).normal(size=(1, 3, 416, 416)).astype(np.float32)
    reshaped, widened_it = reshape_onnx(original, interleave=True, fold=True)
    assert widened_it
    for found, right in zip(outputs(reshaped, widened(frames)), outputs(original, frames), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def test_unsuitable_model_is_not_reshaped() -> None:
    assert reshape_onnx(b"untouched", interleave=False, fold=False) == (b"untouched", False)
    grey = first_layer(channels=1)
    assert reshape_onnx(grey, interleave=True, fold=True) == (grey, False)


@pytest.mark.parametrize(
    "reason",
    [
        {"channels": 1},
        {"channels": 4},
        {"group": 3},
        {"operator": "ConvTranspose"},
        {"second_reader": "Relu"},
        {"shared": True},
    ],
)
def test_unsuitable_input_is_not_widened(reason: dict[str, int | str | bool]) -> None:
    loaded = onnx.load_model_from_string(first_layer(**reason))  # type: ignore[arg-type]
    before = loaded.SerializeToString()
    assert not widen_input(ir.from_proto(loaded))
    assert loaded.SerializeToString() == before


def test_input_that_only_convolutions_read_is_widened() -> None:
    assert widen_input(ir.from_proto(onnx.load_model_from_string(first_layer())))


def test_invalid_onnx_cannot_be_reshaped() -> None:
    with pytest.raises(ModelError) as caught:
        reshape_onnx(b"\xff\xfe no ONNX", interleave=True, fold=False)
    assert caught.value.code == "not-onnx"


# ------------------------------------------------------------------------------------------------ external weights


def beside(folder: Path) -> tuple[bytes, Path]:
    """Return a model with external weights in `folder`, and the path of the file with the weights."""
    model = onnx.load_model_from_string(convolution())
    onnx.save_model(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return (folder / "m.onnx").read_bytes(), folder / "m.data"


def test_external_weights_are_embedded(tmp_path: Path) -> None:
    model, data = beside(tmp_path)
    whole = with_weights(model, tmp_path)
    frames = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(outputs(whole, frames)[0], outputs(convolution(), frames)[0])
    assert rewrite_onnx(whole, "fp16", keep_inputs=True, keep_outputs=True)
    data.write_bytes(bytes(data.stat().st_size))
    assert with_weights(model, tmp_path) != whole, "other weights are another model, with another hash"


def test_model_without_external_weights_is_unchanged(tmp_path: Path) -> None:
    model = convolution()
    assert with_weights(model, tmp_path) is model


@pytest.mark.parametrize("damage", [Path.unlink, lambda data: data.write_bytes(b"short")])
def test_missing_or_short_external_weights_are_refused(damage: Callable[[Path], object], tmp_path: Path) -> None:
    model, data = beside(tmp_path)
    damage(data)
    with pytest.raises(ModelError) as error:
        with_weights(model, tmp_path)
    assert error.value.code == "external-weights"
