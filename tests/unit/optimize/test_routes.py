"""Tests of the calibration by TensorRT 10, and of the calibration by NVIDIA ModelOpt in a separate environment."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.unit.optimize.models import SPEC, cell_images, save_cells, save_images
from vision.cli.main import main
from vision.config.load import load_model_spec
from vision.engine import calibrators
from vision.errors import Closed, ConfigError, DeviceMissing, ModelError
from vision.optimize import int8
from vision.optimize.calibration import Calibration
from vision.optimize.frames import Frames, frames_of_images
from vision.optimize.int8 import Int8Options
from vision.optimize.modelopt import arguments
from vision.optimize.onnx_graph import open_graph
from vision.optimize.quantize import quantized_inputs
from vision.optimize.task import Task

MODELOPT = os.environ.get("VISION_MODELOPT_PYTHON")

STAND_IN = """
import json, os, shutil, sys, time
from pathlib import Path
import numpy as np

options = {}
for word in sys.argv[1:]:
    if word.startswith("--"):
        name = word[2:]
        options[name] = []
    else:
        options[name].append(word)
with np.load(options["calibration_data_path"][0]) as data:
    options["shapes"] = {name: [list(data[name].shape), str(data[name].dtype)] for name in data.files}
    options["largest"] = float(max(abs(data[name]).max() for name in data.files))
Path(os.environ["REPORT"]).write_text(json.dumps(options))
mode = os.environ.get("MODE", "")
if mode == "hang":
    time.sleep(600)
if mode == "fail":
    sys.exit("ValueError: this model has no convolution")
shutil.copy(options["onnx_path"][0], options["output_path"][0])
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_cells(tmp_path / "cells")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images", cell_images(16))


@pytest.fixture
def frames(tmp_path: Path, images: Path) -> Frames:
    (tmp_path / "frames").mkdir()
    return frames_of_images(images, tmp_path / "frames", SPEC.input, 16, lambda _: None)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for the ModelOpt program on the path, which writes its arguments to a file. Return this file."""
    package = tmp_path / "site" / "modelopt" / "onnx" / "quantization"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(STAND_IN)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("REPORT", str(tmp_path / "report.json"))
    return tmp_path / "report.json"


def run(model: Path, images: Path, output: Path, *, stop: threading.Event | None = None, **options: Any) -> None:
    task = Task(model, SPEC, output, images, max_drop=1.0)
    int8.run(task, Int8Options(**options), stop or threading.Event(), Console(quiet=True))


# ------------------------------------------------------------------------------------------------ ModelOpt


def test_arguments_of_modelopt() -> None:
    given = arguments(Path("a.onnx"), Path("b.onnx"), Path("c.npz"), "minmax", ["conv 1", "conv2"])
    assert given[:2] == ["-m", "modelopt.onnx.quantization"]
    assert given[-3:] == ["--nodes_to_exclude", "conv 1", "conv2"]
    pairs = dict(zip(given[2:-3:2], given[3:-3:2], strict=True))
    assert pairs["--calibration_method"] == "max"
    assert (pairs["--quantize_mode"], pairs["--high_precision_dtype"]) == ("int8", "fp32")
    assert (pairs["--onnx_path"], pairs["--output_path"]) == ("a.onnx", "b.onnx")
    assert "--nodes_to_exclude" not in arguments(Path("a"), Path("b"), Path("c"), "entropy", [])


@pytest.mark.integration
def test_modelopt_gets_the_prepared_frames(tmp_path: Path, model: Path, images: Path, report: Path) -> None:
    run(model, images, tmp_path / "out", route="modelopt", algorithms=("entropy",), keep=1)
    options = json.loads(report.read_text())
    size = SPEC.input
    assert options["shapes"] == {"images": [[16, 3, size.height, size.width], "float32"]}
    assert options["largest"] == pytest.approx(1.0, abs=0.05), "normalized as model.yaml says"
    assert options["calibration_method"] == ["entropy"]
    assert len(options["nodes_to_exclude"]) == 1
    written = json.loads((tmp_path / "out" / "optimization.json").read_text())
    assert (written["with"], written["kept"]) == ("modelopt", options["nodes_to_exclude"])


@pytest.mark.integration
def test_failure_of_modelopt_is_reported(
    tmp_path: Path, model: Path, images: Path, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", "fail")
    with pytest.raises(ModelError) as caught:
        run(model, images, tmp_path / "out", route="modelopt", algorithms=("minmax",))
    assert caught.value.code == "modelopt-fails"
    assert "no convolution" in caught.value.args[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_stop_ends_modelopt(
    tmp_path: Path, model: Path, images: Path, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", "hang")
    stop = threading.Event()

    def stop_when_it_runs() -> None:
        while not report.exists():
            if stop.wait(0.05):
                return
        stop.set()

    thread = threading.Thread(target=stop_when_it_runs)
    thread.start()
    try:
        with pytest.raises(Closed):
            run(model, images, tmp_path / "out", route="modelopt", algorithms=("minmax",), stop=stop)
    finally:
        stop.set()
        thread.join()
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
@pytest.mark.parametrize("python", [sys.executable, "/nonexistent/python", "/dev/null"])
def test_missing_modelopt_is_reported_before_frames_are_read(tmp_path: Path, model: Path, python: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(
            model,
            tmp_path / "no-images",
            tmp_path / "out",
            route="modelopt",
            algorithms=("minmax",),
            python=Path(python),
        )
    assert caught.value.code == ("modelopt-missing" if python == sys.executable else "invalid-value")


@pytest.mark.parametrize("algorithm", ["mse", "percentile"])
@pytest.mark.parametrize("route", ["modelopt", "tensorrt"])
def test_algorithm_that_a_route_lacks_is_refused(tmp_path: Path, model: Path, route: str, algorithm: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(model, tmp_path / "no-images", tmp_path / "out", route=route, algorithms=(algorithm,))
    assert caught.value.code == "invalid-value"


def test_python_is_an_option_of_modelopt_only(model: Path, images: Path) -> None:
    assert main(["calibrate", str(model), "--images", str(images), "--python", sys.executable]) == 2


@pytest.mark.integration
@pytest.mark.skipif(MODELOPT is None, reason="VISION_MODELOPT_PYTHON names no Python with nvidia-modelopt")
@pytest.mark.parametrize("algorithm", ["minmax", "entropy"])
def test_modelopt_quantizes_a_model(tmp_path: Path, model: Path, images: Path, algorithm: str) -> None:
    output = tmp_path / "cells-int8"
    command = ["calibrate", str(model), "--images", str(images), "--output", str(output), "--algorithm", algorithm]
    assert main([*command, "--with", "modelopt", "--python", str(MODELOPT), "--max-drop", "0.2"]) == 0
    quantized = open_graph_nodes(output / load_model_spec(output).file)
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(quantized)


def open_graph_nodes(path: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(str(path)).graph.node]


# ------------------------------------------------------------------------------------------------ TensorRT


def test_tensorrt_without_calibrators_or_a_gpu_is_reported_before_frames_are_read(tmp_path: Path, model: Path) -> None:
    with pytest.raises((ModelError, DeviceMissing)) as caught:
        run(model, tmp_path / "no-images", tmp_path / "out", route="tensorrt", algorithms=("entropy",))
    assert isinstance(caught.value, DeviceMissing) or caught.value.code == "no-calibrators"


def test_scales_of_tensorrt_become_thresholds_and_are_cached(
    model: Path, frames: Frames, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = open_graph(model / SPEC.file)
    names = quantized_inputs(graph)
    calls: list[int] = []

    def scales(_model: bytes, _spec: object, kind: str, batches: Any) -> dict[str, float]:
        calls.append(sum(len(batch["images"]) for batch in batches))
        return dict.fromkeys(names, (2.0 if kind == "minmax" else 1.0) / 127)

    monkeypatch.setattr(calibrators, "find_scales", scales)
    for _ in range(2):
        calibration = Calibration(graph, SPEC, frames, route="tensorrt")
        assert calibration.thresholds("minmax", lambda _: None) == dict.fromkeys(names, pytest.approx(2.0))
        assert calibration.thresholds("entropy", lambda _: None) == dict.fromkeys(names, pytest.approx(1.0))
    assert calls == [16, 16]
    other = Calibration(graph, SPEC, frames).thresholds("minmax", lambda _: None)
    assert other["images"] == pytest.approx(1.0, abs=0.05), "ONNX Runtime has its own table"
    assert len(list(cache.iterdir())) == 3


def test_table_of_another_model_is_not_used(
    tmp_path: Path, model: Path, frames: Frames, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, other = open_graph(model / SPEC.file), open_graph(save_cells(tmp_path / "other", outlier=1.0) / SPEC.file)
    for each, scale in ((graph, 1.0), (other, 2.0)):
        found = dict.fromkeys(quantized_inputs(each), scale)
        monkeypatch.setattr(calibrators, "find_scales", lambda *_, found=found: found)
        mine = set(cache.iterdir()) if cache.exists() else set()
        Calibration(each, SPEC, frames, route="tensorrt").thresholds("entropy", lambda _: None)
    (first,) = mine
    (second,) = set(cache.iterdir()) - mine
    second.replace(first)
    found = dict.fromkeys(quantized_inputs(graph), 1.0)
    monkeypatch.setattr(calibrators, "find_scales", lambda *_: found)
    again = Calibration(graph, SPEC, frames, route="tensorrt").thresholds("entropy", lambda _: None)
    assert again == dict.fromkeys(found, pytest.approx(127.0)), "not the scales of the other model"
