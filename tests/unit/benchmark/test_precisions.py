"""Tests of `vision bench --precisions`: the comparison of precisions, rejected models, and the outputs."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from tests.unit.optimize.models import SPEC, model, node, random, save_cells
from vision.benchmark.precisions import PrecisionSettings, measure_precisions, print_precisions
from vision.cli.main import main
from vision.errors import ConfigError, DeviceMissing
from vision.optimize.onnx_graph import open_graph
from vision.optimize.samples import compare, random_samples

PRECISIONS = ("fp32", "fp16", "int8", "int8-sparse")
SHAPES = {"images": (1, 3, 16, 16)}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise DeviceMissing("no GPU in this test")

    monkeypatch.setattr("vision.gpu.cuda.open_device", refuse)


def settings(*precisions: str, **options: object) -> PrecisionSettings:
    return PrecisionSettings(precisions or PRECISIONS, seconds=0.02, **options)  # type: ignore[arg-type]


def classifier(folder: Path) -> Path:
    """Save a small classifier with random weights and the layers of ResNet, for inputs of any size."""
    nodes = [
        node("Conv", ["images", "w0"], "a", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "b"),
        node("Conv", ["b", "w1"], "c", pads=[1, 1, 1, 1]),
        node("Add", ["c", "b"], "d"),
        node("GlobalAveragePool", ["d"], "e"),
        node("Flatten", ["e"], "f"),
        node("Gemm", ["f", "w2"], "output", transB=1),
    ]
    weights = {"w0": random(8, 3, 3, 3), "w1": random(8, 8, 3, 3), "w2": random(10, 8)}
    path = folder / "classifier.onnx"
    path.write_bytes(model(nodes, weights, shape=("batch", 3, "height", "width")).SerializeToString())
    return path


def tokens(folder: Path) -> Path:
    """Save a small model for tokens, with an embedding, a mask, and a matrix product."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in ("ids", "mask")]
    nodes = [
        node("Gather", ["table", "ids"], "embedded"),
        node("Cast", ["mask"], "real", to=TensorProto.FLOAT),
        node("Unsqueeze", ["real", "last"], "column"),
        node("Mul", ["embedded", "column"], "masked"),
        node("MatMul", ["masked", "w"], "output"),
    ]
    weights = {"table": random(50, 16), "w": random(16, 16), "last": np.array([2])}
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "length", 16])
    made = helper.make_model(
        helper.make_graph(nodes, "tokens", inputs, [output], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(made)
    path = folder / "tokens.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_detector_is_compared_on_frames(tmp_path: Path) -> None:
    path = save_cells(tmp_path) / SPEC.file
    report = measure_precisions(path, SPEC, settings())
    rows = {row.precision: row for row in report.rows}
    assert tuple(rows) == PRECISIONS
    assert rows["fp16"].reason and rows["fp16"].durations is None
    for precision in ("fp32", "int8", "int8-sparse"):
        row = rows[precision]
        assert not row.reason and row.durations is not None and row.difference is not None
        assert 0 < row.durations.p50_ms <= row.durations.p99_ms
        assert row.rows_per_s > 0 and row.size_bytes > 1000
    same, changed, pruned = (rows[name].difference for name in ("fp32", "int8", "int8-sparse"))
    assert same is not None and changed is not None and pruned is not None
    assert same.error == 0
    assert changed.error is not None and 0 < changed.error < 0.05
    assert (
        pruned.error is not None and 0 < pruned.error < 0.05
    )  # at most two weights of a group are not zero before the pruning


@pytest.mark.parametrize("batch", [1, 3])
def test_classifier_is_compared_on_random_inputs(tmp_path: Path, batch: int) -> None:
    chosen = settings("fp32", "int8", shapes={"images": (batch, 3, 24, 24)}, batches=(batch,))
    report = measure_precisions(classifier(tmp_path), None, chosen)
    differences = [row.difference for row in report.rows]
    assert [row.batch for row in report.rows] == [batch] * 2
    assert differences[0] is not None and differences[0].agreement == 1
    difference = differences[1]
    assert difference is not None and difference.error is not None and 0 < difference.error < 0.1


def test_token_model_is_compared_on_valid_indices(tmp_path: Path) -> None:
    path = tokens(tmp_path)
    shapes = {"ids": (2, 7), "mask": (2, 7)}
    samples = random_samples(open_graph(path), 1, shapes)
    assert all(batch["ids"].min() >= 0 and batch["ids"].max() < 50 for batch in samples.batches)
    assert all((batch["mask"] == 1).all() for batch in samples.batches)
    report = measure_precisions(path, None, settings(shapes=shapes))
    assert [row.precision for row in report.rows if not row.reason] == ["fp32", "int8", "int8-sparse"]


def test_output_that_is_not_finite_has_no_error_and_is_reported(tmp_path: Path) -> None:
    report = measure_precisions(classifier(tmp_path), None, settings("fp32", shapes=SHAPES))
    outputs = [{"output": np.ones((1, 10), np.float32)}]
    overflowed = [{"output": np.full((1, 10), np.nan, np.float32)}]
    found = compare(random_samples(open_graph(tmp_path / "classifier.onnx"), 1, SHAPES), outputs, overflowed)
    assert found.error is None
    console = Console(record=True, width=200, file=io.StringIO())
    print_precisions(replace(report, rows=(replace(report.rows[0], difference=found),)), console)
    assert "fp32, batch 1: the outputs contain NaN or infinite values" in console.export_text()


def test_open_shape_is_refused_with_the_option_that_sets_it(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    with pytest.raises(ConfigError) as caught:
        measure_precisions(path, None, settings())
    assert caught.value.code == "dynamic-shape"
    assert "--shape images=1x3x1x1" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        measure_precisions(path, None, settings(shapes={"images": (1, 4, 8, 8)}))
    assert caught.value.code == "dynamic-shape"
    with pytest.raises(ConfigError) as caught:
        measure_precisions(path, None, settings(shapes={"images": (1, 3, 8, 8), "x": (1,)}))
    assert caught.value.code == "no-input"


def test_model_without_layers_that_can_be_sparse_says_so(tmp_path: Path) -> None:
    path = tmp_path / "one.onnx"
    path.write_bytes(model([node("Conv", ["images", "w"], "output")], {"w": random(4, 3, 3, 3)}).SerializeToString())
    report = measure_precisions(path, None, settings("fp32", "int8-sparse"))
    assert [bool(row.reason) for row in report.rows] == [False, True]


@pytest.mark.integration  # starts the programs that describe the machine
def test_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, file = classifier(tmp_path), tmp_path / "out.json"
    command = ["bench", str(path), "--precisions", "fp32,fp16,int8", "--shape", "images=1x3x16x16", "--seconds", "0.02"]
    assert main([*command, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["schema"] == "vision.precisions/1"
    assert [row["precision"] for row in document["rows"]] == ["fp32", "fp16", "int8"]
    assert document["rows"][1]["reason"] in capsys.readouterr().out.replace("\n", "")


def test_arguments_that_contradict_are_refused(tmp_path: Path) -> None:
    path = str(classifier(tmp_path))
    assert main(["bench", path, "--precisions", "fp32", "--parts", "engine"]) == 2
    assert main(["bench", path, "--precisions", "fp3"]) == 2
    assert main(["bench", path, "--precisions", "fp32", "--shape", "images"]) == 2
    assert main(["bench", path, "--shape", "images=1x3x16x16"]) == 2
    assert main(["bench", str(tmp_path / "none.onnx"), "--precisions", "fp32"]) == 78
    assert main(["bench", path, "--precisions", "fp16", "--shape", "images=1x3x16x16", "--seconds", "0.02"]) == 1
