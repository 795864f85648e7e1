"""Tests of 2:4 pruning, of the repair of pruned weights, and of the verification."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from tests.unit.optimize.models import SPEC, cell_images, graph_of, model, node, random, save_cells, save_images
from vision.cli.main import main
from vision.config.load import load_model_spec
from vision.errors import Closed, ConfigError, VisionError
from vision.optimize import sparse
from vision.optimize.frames import frames_of_images
from vision.optimize.onnx_graph import Graph, open_session
from vision.optimize.patches import Patches
from vision.optimize.quantize import quantize
from vision.optimize.repair import LeastSquares, fit, sparse_gpt_mask
from vision.optimize.sparsity import compliant_part, magnitude_mask, sparsify, verify
from vision.optimize.task import Task


@pytest.mark.parametrize(
    ("shape", "axis"), [((8, 16, 3, 3), 1), ((8, 16, 1, 1), 1), ((8, 4), 1), ((16, 5), 0), ((6, 8, 5), 1)]
)
def test_two_largest_of_four_input_channels_stay(shape: tuple[int, ...], axis: int) -> None:
    weights = random(*shape)
    mask = magnitude_mask(weights, axis)
    assert mask.shape == shape
    moved, kept = np.moveaxis(weights, axis, -1), np.moveaxis(mask, axis, -1)
    for place in np.ndindex(moved.shape[:-1]):
        for start in range(0, shape[axis], 4):
            group, chosen = np.abs(moved[place][start : start + 4]), kept[place][start : start + 4]
            assert chosen.sum() == 2
            assert group[chosen].min() >= group[~chosen].max()
    assert compliant_part(weights * mask, axis) == 1
    assert compliant_part(weights, axis) == 0


def test_groups_of_flattened_weights_are_not_the_pattern() -> None:
    weights = random(8, 16, 3, 3)
    groups = weights.reshape(-1, 4)
    smallest = np.argsort(np.abs(groups), axis=1)[:, :2]
    np.put_along_axis(groups, smallest, 0, axis=1)
    assert compliant_part(weights, 1) < 0.9


def mixed_model() -> onnx.ModelProto:
    """Return a model with layers of all kinds."""
    nodes = [
        node("Conv", ["images", "first"], "a", pads=[1, 1, 1, 1]),
        node("Conv", ["a", "wide"], "b", pads=[1, 1, 1, 1]),
        node("Conv", ["b", "depthwise"], "c", group=8),
        node("Conv", ["c", "grouped"], "d", group=2),
        node("ConvTranspose", ["d", "transposed"], "e"),
        node("Conv", ["e", "narrow"], "f"),
        node("GlobalAveragePool", ["f"], "g"),
        node("Flatten", ["g"], "h"),
        node("Gemm", ["h", "gemm"], "i", transB=1),
        node("MatMul", ["i", "matmul"], "output"),
    ]
    shapes = {
        "first": (8, 3, 3, 3), "wide": (8, 8, 3, 3), "depthwise": (8, 1, 1, 1), "grouped": (8, 4, 1, 1),
        "transposed": (8, 6, 1, 1), "narrow": (8, 6, 1, 1), "gemm": (12, 8), "matmul": (12, 5),
    }  # fmt: skip
    return model(nodes, {name: random(*shape, seed=index) for index, (name, shape) in enumerate(shapes.items())})


ELIGIBLE = {"b", "d", "i", "output"}


def test_all_eligible_layers_follow_the_pattern_and_others_are_unchanged(tmp_path: Path) -> None:
    dense = graph_of(mixed_model(), tmp_path)
    pruned = sparsify(dense)
    layers = {layer.name: layer for layer in verify(pruned)}
    assert {name for name, layer in layers.items() if not layer.skipped} == ELIGIBLE
    assert all(layers[name].compliant == 1 for name in ELIGIBLE)
    for layer in dense.layers:
        same = np.array_equal(dense.array(layer.weights), pruned.array(layer.weights))
        assert same is (layer.name not in ELIGIBLE)


def test_dense_model_does_not_comply(tmp_path: Path) -> None:
    assert [layer.compliant for layer in verify(graph_of(mixed_model(), tmp_path)) if not layer.skipped] == [0] * 4


def test_weights_that_are_shared_along_different_axes_are_pruned_along_each(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["images", "w"], "a"), node("Gemm", ["a", "w"], "output", transB=1)]
    graph = sparsify(graph_of(model(nodes, {"w": random(8, 8)}, shape=("batch", 8)), tmp_path))
    assert [(layer.skipped, layer.compliant) for layer in verify(graph)] == [("", 1), ("", 1)]


def test_zeros_stay_zeros_after_quantization(tmp_path: Path) -> None:
    graph = sparsify(graph_of(mixed_model(), tmp_path))
    made = quantize(graph, {layer.activations: 1.0 for layer in graph.layers})
    path = tmp_path / "int8.onnx"
    path.write_bytes(made.serialized())
    assert main(["sparsify", str(path), "--verify"]) == 0
    assert [layer.compliant for layer in verify(Graph(made.model, "")) if not layer.skipped] == [1] * 4
    names = [f"{layer.name}_weights_dequantized" for layer in graph.layers if layer.name in ELIGIBLE]
    inputs = {"images": np.ones((1, 3, 32, 32), np.float32)}
    restored = open_session(made.with_outputs(names)).run(names, inputs)
    for name, weights in zip(names, restored, strict=True):
        layer = next(each for each in graph.layers if name == f"{each.name}_weights_dequantized")
        assert compliant_part(weights, layer.input_axis) == 1


@pytest.mark.parametrize("sparse_model", [True, False])
def test_verification_decides_the_exit_code(tmp_path: Path, sparse_model: bool) -> None:
    graph = graph_of(mixed_model(), tmp_path)
    path = tmp_path / "any.onnx"
    path.write_bytes((sparsify(graph) if sparse_model else graph).serialized())
    assert main(["sparsify", str(path), "--verify"]) == (0 if sparse_model else 1)


def test_verification_needs_a_model(tmp_path: Path) -> None:
    assert main(["sparsify", "--verify"]) == 2
    assert main(["sparsify", str(tmp_path / "none.onnx"), "--verify"]) == 78
    assert main(["sparsify", str(tmp_path / "none.pt"), "--verify"]) == 78


# ------------------------------------------------------------------------------------------------ patches


def layer_model(operator: str, shape: tuple[int, ...], inputs: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    weights = {"w": random(*shape)}
    return model([node(operator, ["images", "w"], "output", **attributes)], weights, shape=inputs)


@pytest.mark.parametrize(
    "made",
    [
        layer_model("Conv", (5, 4, 3, 3), (2, 4, 9, 11), pads=[1, 1, 1, 1]),
        layer_model("Conv", (5, 4, 3, 3), (2, 4, 9, 11), pads=[0, 1, 2, 0], strides=[2, 3]),
        layer_model("Conv", (5, 4, 3, 2), (2, 4, 9, 11), dilations=[2, 1]),
        layer_model("Conv", (5, 4, 3, 3), (2, 4, 9, 12), auto_pad="SAME_UPPER", strides=[2, 2]),
        layer_model("Conv", (5, 4, 2, 4), (2, 4, 9, 12), auto_pad="SAME_LOWER"),
        layer_model("Conv", (5, 4, 3), (2, 4, 9), pads=[1, 1]),
        layer_model("Gemm", (4, 5), (7, 4)),
        layer_model("Gemm", (5, 4), (7, 4), transB=1),
        layer_model("MatMul", (4, 5), (2, 3, 4)),
    ],
)
def test_matrix_times_patches_is_the_output_of_the_layer(tmp_path: Path, made: onnx.ModelProto) -> None:
    graph = graph_of(made, tmp_path)
    (layer,) = graph.layers
    patches = Patches(graph, layer)
    shape = tuple(axis.dim_value for axis in made.graph.input[0].type.tensor_type.shape.dim)
    values = random(*shape, seed=5)
    (output,) = open_session(graph.serialized()).run(None, {"images": values})
    flat = np.moveaxis(output, 1, -1) if layer.operator == "Conv" else output
    places = patches.places(shape, 10**6, np.random.default_rng(0))
    weights = graph.array(layer.weights)
    found = patches.rows(values, places) @ patches.matrix(weights).T
    np.testing.assert_allclose(found, flat.reshape(-1, flat.shape[-1]), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(patches.weights(patches.matrix(weights)), weights)
    assert len(patches.places(shape, 3, np.random.default_rng(0))) == 3


# ------------------------------------------------------------------------------------------------ repair


def correlated(columns: int, count: int = 4000) -> np.ndarray:
    """Return samples (count, columns) with strong correlations, like those of neighboring activations."""
    return random(count, 3) @ random(3, columns, seed=1) + 0.3 * random(count, columns, seed=2)


def test_repaired_weights_are_the_best_for_their_mask() -> None:
    samples, weights = correlated(16).astype(np.float64), random(6, 16, seed=3).astype(np.float64)
    hessian = samples.T @ samples / len(samples)
    mask = sparse_gpt_mask(weights, hessian)
    assert (mask.reshape(-1, 4).sum(axis=1) == 2).all()
    fitted = fit(weights, hessian, mask)
    outputs = samples @ weights.T
    for row, kept in enumerate(mask):
        best, *_ = np.linalg.lstsq(samples[:, kept], outputs[:, row], rcond=None)
        np.testing.assert_allclose(fitted[row, kept], best, atol=1e-6)
        assert not fitted[row, ~kept].any()


def test_repair_is_better_than_magnitude() -> None:
    samples, weights = correlated(64), random(32, 64, seed=3)
    hessian = samples.T @ samples / len(samples)
    fitted = fit(weights.astype(np.float64), hessian, sparse_gpt_mask(weights.astype(np.float64), hessian))

    def error(pruned: np.ndarray) -> float:
        return float(np.square(samples @ (pruned - weights).T).mean())

    assert error(fitted) < 0.3 * error(weights * magnitude_mask(weights, 1))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images", cell_images(16))


def run(tmp_path: Path, images: Path | None, *, repair: bool, **options: Any) -> None:
    task = Task(save_cells(tmp_path / "cells"), SPEC, tmp_path / "out", images, **options)
    sparse.run(task, threading.Event(), Console(quiet=True), repair=repair)


@pytest.mark.parametrize("repair", [True, False])
def test_sparse_model_folder_is_written(tmp_path: Path, images: Path, repair: bool) -> None:
    run(tmp_path, images, repair=repair, max_drop=1.0)
    assert load_model_spec(tmp_path / "out").name == "out"
    assert main(["sparsify", str(tmp_path / "out"), "--verify"]) == 0
    report = json.loads((tmp_path / "out" / "optimization.json").read_text())
    assert report["method"] == ("least-squares repair" if repair else "magnitude")


def test_repair_restores_a_model_whose_channels_repeat(tmp_path: Path, images: Path) -> None:
    run(tmp_path, images, repair=True)
    report = json.loads((tmp_path / "out" / "optimization.json").read_text())
    assert report["accuracy"]["value"] > 0.99


def branches(biases: tuple[str, str, str], *, identity: bool = False) -> onnx.ModelProto:
    """Return a model with three convolutions of the same frame. Their outputs depend on large biases."""
    nodes = [node("Conv", ["images", "first"], "relu0", pads=[1, 1, 1, 1])]
    weights = {"first": np.abs(random(8, 3, 3, 3))}
    for index, bias in enumerate(biases):
        weights |= {f"w{index}": random(8, 8, 1, 1, seed=index) + 0.5, bias: random(8, seed=9)}
        if identity:
            nodes.append(node("Identity", [bias], f"same{index}"))
        nodes.append(node("Conv", ["relu0", f"w{index}", f"same{index}" if identity else bias], f"conv{index}"))
    nodes.append(node("Concat", [f"conv{index}" for index in range(3)], "output", axis=1))
    return model(nodes, weights)


@pytest.mark.parametrize("identity", [True, False])
def test_layers_that_share_a_bias_are_repaired_as_well_as_others(tmp_path: Path, images: Path, identity: bool) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    frames = frames_of_images(images, folder, SPEC.input, 16, lambda _: None)
    values = np.stack(cell_images(16)).transpose(0, 3, 1, 2)[:, ::-1].astype(np.float32) / 255

    def outputs(graph: Graph) -> np.ndarray:
        return np.asarray(open_session(graph.serialized()).run(None, {"images": values})[0])

    def repaired(made: onnx.ModelProto) -> np.ndarray:
        dense = graph_of(made, tmp_path)
        return outputs(sparsify(dense, LeastSquares(dense, SPEC, frames, 16)))

    wanted = outputs(graph_of(branches(("b0", "b1", "b2")), tmp_path))
    separate = repaired(branches(("b0", "b1", "b2")))
    assert np.abs(separate - wanted).mean() < 0.5 * np.abs(wanted).mean()
    np.testing.assert_allclose(repaired(branches(("b", "b", "b"), identity=identity)), separate, rtol=1e-4, atol=1e-4)


def test_each_layer_gets_its_own_weights_and_the_model_computes_the_same(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["images", "w", "b"], "a"),
        node("Conv", ["a", "w", "b"], "c"),
        node("Reshape", ["b", "shape"], "b3"),
        node("Add", ["c", "b3"], "output"),
    ]
    made = model(nodes, {"w": random(3, 3, 1, 1), "b": random(3), "shape": np.array([3, 1, 1])})
    graph = graph_of(made, tmp_path)
    first, second = graph.layers
    assert first.weights != second.weights
    assert len({first.bias, second.bias, "b"}) == 3
    inputs = {"images": random(1, 3, 32, 32)}
    (wanted,), (given,) = (
        open_session(each).run(None, inputs) for each in (made.SerializeToString(), graph.serialized())
    )
    np.testing.assert_array_equal(given, wanted)
    assert graph.copy().serialized() == graph.serialized()


def test_sparse_model_that_loses_too_much_is_written_aside(tmp_path: Path, images: Path) -> None:
    with pytest.raises(VisionError) as caught:
        run(tmp_path, images, repair=False, max_drop=-1.0)
    assert caught.value.code == "accuracy-drop"
    assert (tmp_path / "out.rejected" / "model.yaml").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("repair", [True, False])
def test_frames_are_required(tmp_path: Path, repair: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, None, repair=repair)
    assert caught.value.code == "no-images"


def test_nothing_is_written_after_a_stop(tmp_path: Path, images: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Closed):
        sparse.run(
            Task(save_cells(tmp_path / "cells"), SPEC, tmp_path / "out", images),
            stop,
            Console(quiet=True),
            repair=False,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "images"}
