"""Tests of the folding of narrow convolutions: results match ONNX Runtime, and others stay unchanged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from tests.paths import ROOT
from tests.unit.engine_models import model, needs_rtx, spec, value
from vision.engine import library
from vision.engine.build import BuildOptions, build_engine
from vision.engine.build_plan import BuildPlan
from vision.engine.conv_folding import ACTIVATIONS, fold_narrow_convolutions
from vision.engine.library import GpuDescription
from vision.engine.onnx_transform import rewrite_onnx

NANODET = ROOT / "models" / "nanodet-g-416" / "nanodet-g-416.onnx"

ACTIVATED: dict[str, list[NodeProto]] = {
    kind: [helper.make_node(kind, ["a"], ["z"])] for kind in sorted(ACTIVATIONS - {"PRelu", "Sigmoid", "Tanh"})
} | {
    "one slope": [helper.make_node("PRelu", ["a", "slope"], ["z"])],
    "slopes": [helper.make_node("PRelu", ["a", "slopes"], ["z"])],
    "SiLU": [helper.make_node("Sigmoid", ["a"], ["g"]), helper.make_node("Mul", ["a", "g"], ["z"])],
    "Mish of opset 17": [
        helper.make_node("Softplus", ["a"], ["f"]),
        helper.make_node("Tanh", ["f"], ["g"]),
        helper.make_node("Mul", ["g", "a"], ["z"]),
    ],
    "two": [
        helper.make_node("Sigmoid", ["a"], ["f"]),
        helper.make_node("LeakyRelu", ["a"], ["g"]),
        helper.make_node("Add", ["f", "g"], ["z"]),
    ],
}
"""Nodes of activations from the tensor a to the tensor z. Each activation gets a separate kernel."""

JOINED = (helper.make_node("Concat", ["z", "z"], ["y"], axis=1),)


def network(
    activation: Sequence[NodeProto] = ACTIVATED["LeakyRelu"],
    joined: Sequence[NodeProto] = JOINED,
    *,
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] | None = None,
    pads: tuple[int, int, int, int] | None = (1, 1, 1, 1),
    channels: tuple[int, int] = (32, 32),
    size: tuple[int | str, int | str] = (5, 16),
    batch: int | str = "n",
    bias: bool = True,
    group: int = 1,
    dtype: type[np.floating] = np.float32,
    opset: int = 20,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return the model: images -> Conv "narrow" -> a -> activation -> z -> joined -> y."""
    rng = np.random.default_rng(0)
    inputs, outputs = channels
    kernel_shape = (outputs, inputs // group, *kernel)
    constants = {
        "w": rng.normal(size=kernel_shape).astype(dtype) / np.float32(inputs).astype(dtype),
        "b": rng.normal(size=outputs).astype(dtype),
        "slope": np.full((1, 1, 1), 0.2, dtype),
        "slopes": np.linspace(0.1, 0.3, outputs, dtype=dtype).reshape(-1, 1, 1),
        "low": np.zeros((), dtype),
        "sizes": np.array([outputs // 2, outputs - outputs // 2]),
    }
    all_attributes = {"strides": strides, "pads": pads, "group": group if group > 1 else None, **attributes}
    given: dict[str, Any] = {name: each for name, each in all_attributes.items() if each is not None}
    narrow = helper.make_node("Conv", ["images", "w", *("b" for _ in range(bias))], ["a"], "narrow", **given)
    nodes = [narrow, *activation, *joined]
    read = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(each, name) for name, each in constants.items() if name in read]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ends = [value("images", (batch, inputs, *size), kind)], [value("y", ("batch", "c", "y", "x"), kind)]
    return onnx.load_model_from_string(model(nodes, *ends, weights, opset=opset, domains=["elsewhere"]))


def with_branch(reads: str, *, inside: str = "r") -> onnx.ModelProto:
    """Return the network with a subgraph that reads the tensor `reads` from outside the subgraph."""
    onnx_model = network()
    branch = helper.make_graph([helper.make_node("Relu", [reads], [inside])], "branch", [], [value(inside, None)])
    onnx_model.graph.node.append(helper.make_node("If", ["yes"], ["y2"], then_branch=branch, else_branch=branch))
    onnx_model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    onnx_model.graph.output.append(value("y2", ("batch", "c", "y", "x")))
    return onnx_model


def giving(name: str, shape: Sequence[int | str]) -> onnx.ModelProto:
    """Return the network with the additional output `name`."""
    onnx_model = network()
    onnx_model.graph.output.append(value(name, shape))
    return onnx_model


def outputs_of(onnx_model: onnx.ModelProto, frames: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, {"images": frames})]


def shapes_of(onnx_model: onnx.ModelProto, names: Sequence[str]) -> list[list[str | int]]:
    graph = onnx.shape_inference.infer_shapes(onnx_model, strict_mode=True).graph
    infos = {each.name: each.type.tensor_type.shape.dim for each in (*graph.value_info, *graph.output)}
    return [[side.dim_value if side.HasField("dim_value") else "open" for side in infos[name]] for name in names]


def kernels_of(onnx_model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes of the weights of all convolutions."""
    shapes = {tensor.name: list(tensor.dims) for tensor in onnx_model.graph.initializer}
    return {node.name: shapes[node.input[1]] for node in onnx_model.graph.node if node.op_type == "Conv"}


def copy_of(original: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(original)
    return copy


def fold(onnx_model: onnx.ModelProto) -> tuple[str, ...]:
    """Fold convolutions of a model in place. Return the names of the folded convolutions."""
    loaded = ir.from_proto(onnx_model)
    folded = fold_narrow_convolutions(loaded)
    onnx_model.CopyFrom(ir.to_proto(loaded))
    return folded


def check_fold(
    original: onnx.ModelProto, expected: Sequence[str], size: tuple[int, int, int] = (32, 5, 16), batch: int = 2
) -> onnx.ModelProto:
    """Fold a model. Compare its results and inferred shapes with the original model. Return the folded model."""
    folded = copy_of(original)
    assert fold(folded) == tuple(expected)
    onnx.checker.check_model(folded, full_check=True)
    tensors = [node.output[0] for node in original.graph.node if node.op_type != "Constant"]
    assert shapes_of(folded, tensors) == shapes_of(original, tensors)
    frames = np.random.default_rng(1).normal(size=(batch, *size)).astype(np.float32)
    for actual, right in zip(outputs_of(folded, frames), outputs_of(original, frames), strict=True):
        assert actual.shape == right.shape
        assert np.max(np.abs(actual - right)) <= 1e-5 * np.max(np.abs(right))
    return folded


# ------------------------------------------------------------------------------------------------ folded convolutions


@pytest.mark.parametrize("activation", ACTIVATED)
def test_convolution_before_a_supported_activation_is_folded(activation: str) -> None:
    check_fold(network(ACTIVATED[activation]), ["narrow"])


@pytest.mark.parametrize(
    ("outputs", "strides", "width", "shape"),
    [
        (32, (1, 1), 16, [64, 32, 3, 4]),
        (17, (1, 1), 16, [34, 32, 3, 4]),
        (24, (1, 1), 16, [48, 32, 3, 4]),
        (16, (1, 1), 16, [64, 32, 3, 6]),
        (16, (2, 1), 16, [64, 32, 3, 6]),
        (16, (1, 2), 16, [64, 32, 3, 9]),
        (32, (2, 2), 15, [64, 32, 3, 5]),
        (8, (1, 1), 16, [64, 32, 3, 10]),
        (8, (1, 1), 8, [64, 32, 3, 10]),  # the folded output has one column
        (9, (1, 1), 16, [36, 32, 3, 6]),
    ],
)
def test_folding_joins_as_many_columns_as_fit_into_64_channels(
    outputs: int, strides: tuple[int, int], width: int, shape: list[int]
) -> None:
    original = network(channels=(32, outputs), strides=strides, size=(5, width))
    assert kernels_of(check_fold(original, ["narrow"], (32, 5, width))) == {"narrow": shape}


GEOMETRY = st.fixed_dictionaries(
    {
        "kernel": st.sampled_from([(3, 3), (5, 5), (1, 3), (3, 2), (2, 4)]),
        "strides": st.tuples(st.integers(1, 2), st.integers(1, 3)),
        "pads": st.tuples(*[st.integers(0, 3)] * 4),
        "channels": st.tuples(st.sampled_from([16, 20, 32]), st.sampled_from([8, 12, 16, 24, 32])),
        "size": st.tuples(st.integers(5, 7), st.integers(5, 24)),
        "bias": st.booleans(),
        "batch": st.sampled_from(["n", 2]),
    }
)


@pytest.mark.engine
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(geometry=GEOMETRY, activation=st.sampled_from(["LeakyRelu", "SiLU"]))
def test_folding_any_geometry_gives_the_same_results(geometry: dict[str, Any], activation: str) -> None:
    (inputs, outputs), (height, width) = geometry["channels"], geometry["size"]
    stride, across = geometry["strides"][1], geometry["kernel"][1]
    columns = {8: 8, 12: 4, 16: 4, 24: 2, 32: 2}[outputs]
    result_width = (width + geometry["pads"][1] + geometry["pads"][3] - across) // stride + 1
    expected = ["narrow"] if result_width % columns == 0 and stride < across else []
    check_fold(network(ACTIVATED[activation], **geometry), expected, (inputs, height, width))


def test_free_height_is_supported() -> None:
    check_fold(network(size=("h", 16)), ["narrow"])


def test_name_of_the_official_domain_is_supported() -> None:
    original = network()
    original.opset_import[0].domain = "ai.onnx"
    check_fold(original, ["narrow"])


def test_missing_attributes_have_their_defaults() -> None:
    check_fold(network(kernel=(3, 3), pads=None, size=(5, 18)), ["narrow"], (32, 5, 18))


JOINS: dict[str, Sequence[NodeProto]] = {
    "something added": [
        helper.make_node("Add", ["z", "images"], ["s"]),
        helper.make_node("Concat", ["s"], ["y"], axis=1),
    ],
    "read by others too": [
        helper.make_node("MaxPool", ["z"], ["p", ""], kernel_shape=[1, 1]),
        helper.make_node("Concat", ["p", "z"], ["y"], axis=1),
    ],
}


@pytest.mark.parametrize("joined", JOINS)
def test_convolution_with_joined_results_is_folded(joined: str) -> None:
    check_fold(network(joined=JOINS[joined]), ["narrow"])


def test_existing_names_are_not_reused() -> None:
    joined = [
        helper.make_node("Identity", ["z"], ["narrow_folded"], "narrow_unfold_split"),
        helper.make_node("Identity", ["narrow_folded"], ["narrow_folded_"], "narrow_unfold_moved"),
        helper.make_node("Concat", ["narrow_folded_", "narrow_folded_weights", "z"], ["y"], "narrow_split", axis=1),
    ]
    original = network(joined=joined, batch=2)
    taken = np.ones((2, 1, 5, 16), np.float32)
    original.graph.initializer.append(numpy_helper.from_array(taken, "narrow_folded_weights"))
    graph = check_fold(original, ["narrow"]).graph
    names = [node.name for node in graph.node if node.name]
    assert len(names) == len(set(names)) == 7


def test_names_in_branches_are_not_reused() -> None:
    graph = check_fold(with_branch("images", inside="narrow_folded"), ["narrow"]).graph
    assert graph.node[0].output[0] == "narrow_folded_"


def test_unnamed_convolution_is_reported_by_its_output() -> None:
    original = network()
    original.graph.node[0].name = ""
    check_fold(original, ["a"])


def test_unused_weights_are_removed() -> None:
    folded = check_fold(network(), ["narrow"])
    weights = {tensor.name: list(tensor.dims) for tensor in folded.graph.initializer}
    assert {"w", "b"}.isdisjoint(weights)
    assert sorted(weights.values()) == [[4], [5], [64], [64, 32, 3, 4]]


def test_weights_that_are_an_output_are_kept() -> None:
    folded = check_fold(giving("w", (32, 32, 3, 3)), ["narrow"])
    assert "w" in {tensor.name for tensor in folded.graph.initializer}


@pytest.mark.parametrize(
    ("second", "folded", "kept"), [("LeakyRelu", ["narrow", "second"], False), ("Relu", ["narrow"], True)]
)
def test_shared_weights_are_removed_only_if_every_user_is_folded(second: str, folded: list[str], kept: bool) -> None:
    joined = [
        helper.make_node("Conv", ["z", "w", "b"], ["a2"], "second", pads=[1, 1, 1, 1]),
        helper.make_node(second, ["a2"], ["z2"]),
        helper.make_node("Concat", ["z", "z2"], ["y"], axis=1),
    ]
    onnx_model = check_fold(network(joined=joined), folded)
    assert ({"w", "b"} <= {tensor.name for tensor in onnx_model.graph.initializer}) is kept


def test_weights_in_constant_nodes_are_folded() -> None:
    original = network()
    values = {tensor.name: tensor for tensor in original.graph.initializer}
    constants = [helper.make_node("Constant", [], [name], value=values[name]) for name in ("w", "b")]
    nodes = [*constants, *original.graph.node]
    del original.graph.initializer[:], original.graph.node[:]
    original.graph.node.extend(nodes)
    folded = check_fold(original, ["narrow"])
    assert "Constant" not in {node.op_type for node in folded.graph.node}


def test_shapes_stored_in_the_file_are_ignored() -> None:
    original = network(batch=2)
    noted = [value("w", (32, 32, 3, 3)), value("a", (2, 32, 5, 16)), value("z", (2, 32, 5, 16))]
    original.graph.value_info.extend(noted)
    folded = check_fold(original, ["narrow"])
    assert list(folded.graph.value_info) == noted[1:], "the weights are gone"
    wrong = network(batch=2)
    wrong.graph.value_info.append(value("a", (2, 32, 5, 15)))
    assert fold(wrong) == ("narrow",)


# ------------------------------------------------------------------------------------------------ other convolutions


def then(kind: str, *more: str, **attributes: Any) -> list[NodeProto]:
    """Return the nodes of the chain a -> operator `kind` -> z."""
    return [helper.make_node(kind, ["a", *more], ["z"], **attributes)]


def as_input(name: str) -> onnx.ModelProto:
    """Return the network with the constant `name` as an input, so that the constant can be replaced at run time."""
    onnx_model = network(ACTIVATED["one slope"])
    dims = next(tensor.dims for tensor in onnx_model.graph.initializer if tensor.name == name)
    onnx_model.graph.input.append(value(name, dims))
    return onnx_model


def computed(name: str) -> onnx.ModelProto:
    """Return the network with a node that computes the parameter `name`."""
    onnx_model = network(ACTIVATED["one slope"])
    for node in onnx_model.graph.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = "computed"
    onnx_model.graph.node.insert(0, helper.make_node("Identity", [name], ["computed"]))
    return onnx_model


def in_another_file(name: str) -> onnx.ModelProto:
    onnx_model = network()
    tensor = next(tensor for tensor in onnx_model.graph.initializer if tensor.name == name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return onnx_model


def of_another_domain(node: int) -> onnx.ModelProto:
    onnx_model = network()
    onnx_model.graph.node[node].domain = "elsewhere"
    return onnx_model


BESIDE = [helper.make_node("Concat", ["z", "a"], ["y"], axis=1)]
TIMES_ANOTHER = [helper.make_node("Relu", ["images"], ["r"]), helper.make_node("Mul", ["a", "r"], ["z"])]
SPLIT = [
    helper.make_node("Split", ["z", "sizes"], ["z1", "z2"], axis=1),
    helper.make_node("Concat", ["z2", "z1"], ["y"], axis=1),
]

LEFT_ALONE: dict[str, Callable[[], onnx.ModelProto]] = {
    "kernel of one column": lambda: network(kernel=(3, 1), pads=(1, 0, 1, 0)),
    "windows that do not overlap": lambda: network(kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0)),
    "two columns are more than 64 channels": lambda: network(channels=(32, 33)),
    "kernel would be mostly zeros": lambda: network(channels=(32, 7)),
    "few inputs": lambda: network(channels=(15, 32)),
    "many inputs": lambda: network(channels=(33, 32)),
    "groups": lambda: network(group=2),
    "dilated": lambda: network(dilations=[1, 2], pads=(1, 2, 1, 2)),
    "padding by rule": lambda: network(pads=None, auto_pad="SAME_UPPER"),
    "width not divisible": lambda: network(size=(5, 15)),
    "width open": lambda: network(size=(5, "w")),
    "float16 already": lambda: network(dtype=np.float16),
    "weights are an input": lambda: as_input("w"),
    "bias is an input": lambda: as_input("b"),
    "slope is an input": lambda: as_input("slope"),
    "weights are in another file": lambda: in_another_file("w"),
    "weights are computed": lambda: computed("w"),
    "bias is computed": lambda: computed("b"),
    "output of the model": lambda: giving("a", ("n", 32, 5, 16)),
    "no activation": lambda: network(then("Identity")),
    "Relu inside": lambda: network(then("Relu")),
    "Clip inside": lambda: network(then("Clip", "low")),
    "Sigmoid inside": lambda: network(then("Sigmoid")),
    "Tanh inside": lambda: network(then("Tanh")),
    "Gelu by tanh inside": lambda: network(then("Gelu", approximate="tanh")),
    "product with something else": lambda: network(TIMES_ANOTHER),
    "read without activation too": lambda: network(joined=BESIDE),
    "read in a branch": lambda: with_branch("a"),
    "not joined": lambda: network(joined=[helper.make_node("MaxPool", ["z"], ["y"], kernel_shape=[2, 2])]),
    "only parts are joined": lambda: network(joined=SPLIT),
    "Reshape had no input for its shape": lambda: network(opset=4),
    "convolution of another domain": lambda: of_another_domain(0),
    "activation of another domain": lambda: of_another_domain(1),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_unsuitable_convolution_is_unchanged(case: str) -> None:
    assert fold(LEFT_ALONE[case]()) == ()


@pytest.mark.parametrize(
    "beside",
    [
        [
            helper.make_node("QuantizeLinear", ["images", "scale"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]),
        ],
        [helper.make_node("Anything", ["images"], ["q"], domain="nowhere")],
    ],
    ids=["quantised", "operator of a domain that is not imported"],
)
def test_unsuitable_model_is_unchanged(beside: list[NodeProto]) -> None:
    onnx_model = network()
    onnx_model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "scale"))
    onnx_model.graph.node.extend(beside)
    assert fold(onnx_model) == ()


# ------------------------------------------------------------------------------------------------ the shipped model


def test_shipped_model_has_six_folded_convolutions() -> None:
    original = onnx.load_model(NANODET)
    expected = ["conv_10", "conv_14", "conv_18", "conv_23", "conv_36", "conv_45"]
    folded = check_fold(original, expected, (3, 416, 416), batch=1)
    assert {name: shape for name, shape in kernels_of(folded).items() if name in expected} == {
        "conv_10": [64, 32, 3, 4],
        "conv_14": [64, 32, 3, 6],
        "conv_18": [64, 16, 3, 6],
        "conv_23": [64, 32, 3, 4],
        "conv_36": [64, 32, 3, 4],
        "conv_45": [64, 32, 3, 4],
    }


def test_folded_model_in_float16_gives_the_same_results() -> None:
    original = network(size=(8, 32))
    folded = copy_of(original)
    assert fold(folded)
    half = rewrite_onnx(folded.SerializeToString(), "fp16", keep_inputs=True, keep_outputs=True)
    frames = np.random.default_rng(2).normal(size=(1, 32, 8, 32)).astype(np.float32)
    (actual,), (right,) = (outputs_of(each, frames) for each in (onnx.load_model_from_string(half), original))
    assert np.max(np.abs(actual - right)) < 5e-3 * np.max(np.abs(right))


# ------------------------------------------------------------------------------------------------ engines


def stage(activation: str, size: tuple[int | str, int] = (64, 64)) -> bytes:
    """Build the first stage of a small detector: two narrow convolutions whose results are joined."""
    rng = np.random.default_rng(0)
    shapes = {"w0": (32, 3, 3, 3), "w1": (32, 32, 3, 3), "w2": (16, 32, 3, 3), "w3": (64, 48, 1, 1)}
    weights = [numpy_helper.from_array(rng.normal(size=each).astype(np.float32) / 9, k) for k, each in shapes.items()]
    padded: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["images", "w0"], ["first"], "first", **padded),
        helper.make_node("Relu", ["first"], ["z0"], "relu"),
    ]
    for number in (1, 2):
        nodes.append(
            helper.make_node("Conv", [f"z{number - 1}", f"w{number}"], [f"a{number}"], f"narrow{number}", **padded)
        )
        for node in ACTIVATED[activation]:
            inputs, outputs = ([f"{name}{number}" for name in names] for names in (node.input, node.output))
            nodes.append(helper.make_node(node.op_type, inputs, outputs, f"{node.op_type}{number}"))
    nodes.append(helper.make_node("Concat", ["z1", "z2"], ["joined"], "joined", axis=1))
    nodes.append(helper.make_node("Conv", ["joined", "w3"], ["y"], "last"))
    batch = 4 if isinstance(size[0], int) else "n"
    return model(nodes, [value("images", (batch, 3, *size))], [value("y", (batch, 64, *size))], weights)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives all subsequent messages of TensorRT, including verbose messages."""
    lines: list[str] = []
    take = library.take_message

    def listen(severity: str, text: str) -> None:
        lines.append(text)
        take(severity, text)

    monkeypatch.setattr(library, "take_message", listen)
    return lines


def build(onnx_model: bytes, messages: list[str], *, folded: bool, **of: Any) -> list[tuple[str, str]]:
    """Build an engine. Return the name and the kind of each kernel."""
    messages.clear()
    chosen = BuildPlan("fp16", 4, half_input=True, folded=folded)
    built = build_engine(
        onnx_model, spec(size=64, **of), chosen, GpuDescription("NVIDIA L4", (8, 9)), BuildOptions(True)
    )
    assert len(built.plan) > 10_000
    text = "\n".join(messages)
    return re.findall(r"^Name: (\S+?),? .*?LayerType: (\w+),", text[text.rindex("Layers:") :], re.MULTILINE)


@needs_rtx
@pytest.mark.parametrize("activation", ["LeakyRelu", "SiLU"])
def test_unfolding_is_part_of_the_kernel_for_the_activation(activation: str, messages: list[str]) -> None:
    onnx_model = stage(activation)
    before, after = (build(onnx_model, messages, folded=folded) for folded in (False, True))
    usual = {"LeakyRelu": "MulMax", "SiLU": "Silu"}[activation]
    joined = [name for name, _ in before if f"Corr{usual}" in name]  # TensorRT-RTX 1.7 joins one with its convolution
    assert len(after) == len(before) + len(joined)
    assert Counter(kind for _, kind in after)["correlation"] == 4
    usual_names = {name for name, _ in before}
    transposing = [name for name, kind in after if "Tran" in name and kind == "kgen" and name not in usual_names]
    assert len(transposing) == 2
    assert all(usual in name for name in transposing)


@needs_rtx
def test_folded_engine_for_any_height_has_two_transposes(messages: list[str]) -> None:
    profiles = [{"batch": [1, 2, 4], "height": [32, 64, 64], "width": [64, 64, 64]}]
    kernels = build(stage("LeakyRelu", ("h", 64)), messages, folded=True, profiles=profiles)
    assert len([name for name, _ in kernels if "Tran" in name]) == 2
