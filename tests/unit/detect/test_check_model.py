"""Tests that `check_model` reports each model that `open_detector` would reject."""

from __future__ import annotations

import importlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import tiny_models
from tests.unit.detect.test_models import (
    HEADS,
    broken_empty,
    broken_missing,
    broken_other,
    broken_sha,
    broken_truncated,
    detect,
    save_colours,
    save_mine,
)
from vision.cli.main import main
from vision.config import load_model_spec
from vision.detect.open import check_model, open_detector
from vision.errors import ConfigError, DeviceMissing, ModelError, VisionError

BACKENDS = ("onnxruntime", "auto")


def lfs_pointer(folder: Path) -> None:
    (folder / "colours.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def fault_of(folder: Path, **options: object) -> VisionError | None:
    try:
        check_model(folder, load_model_spec(folder), detect(**options))
    except VisionError as error:
        return error
    return None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate the presence of TensorRT and a GPU."""
    real = importlib.import_module

    def load(name: str) -> object:
        if name == "vision.detect.tensorrt.detector":
            return SimpleNamespace(check_device=lambda _: None)
        return real(name)

    monkeypatch.setattr("vision.detect.open.importlib.import_module", load)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sound_model_passes(backend: str, tmp_path: Path) -> None:
    assert fault_of(save_colours(tmp_path / "colours"), backend=backend) is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (broken_missing, "model-missing"),
        (broken_other, "html-page"),
        (broken_truncated, "damaged-model"),
        (broken_sha, "model-sha256"),
        (lfs_pointer, "lfs-pointer"),
    ],
)
def test_damaged_file_is_refused(backend: str, damage: Callable[[Path], None], code: str, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    damage(folder)
    error = fault_of(folder, backend=backend)
    assert isinstance(error, ModelError)
    assert error.code == code


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    "damage", [broken_missing, broken_empty, broken_other, broken_truncated, broken_sha, lfs_pointer]
)
def test_damaged_file_is_refused_for_tensorrt(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    damage(folder)
    assert isinstance(fault_of(folder, backend="tensorrt"), ModelError)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("backend", ["onnxruntime", "auto", "tensorrt"])
def test_head_that_does_not_fit_is_refused(backend: str, tmp_path: Path) -> None:
    folder = save_mine(tmp_path / "mine", "{kind: yolov5}", HEADS["yolov8"][1])
    error = fault_of(folder, backend=backend)
    assert isinstance(error, ModelError)
    assert error.code == "head-mismatch"
    assert "yolov8" in error.hint


@pytest.mark.usefixtures("gpu")
def test_operator_unknown_to_onnx_runtime_passes(tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    model = onnx.load(str(folder / "colours.onnx"))
    model.graph.node[0].op_type = "EfficientNMS_TRT"
    onnx.save_model(model, str(folder / "colours.onnx"))
    assert fault_of(folder, backend="tensorrt") is None
    assert fault_of(folder, backend="onnxruntime") is not None


@pytest.mark.usefixtures("gpu")
def test_model_with_plugins_runs_only_with_tensorrt(tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    with (folder / "model.yaml").open("a") as card:
        card.write("plugins: [VisionNMS]\n")
    assert fault_of(folder, backend="tensorrt") is None
    error = fault_of(folder, backend="onnxruntime")
    assert isinstance(error, ModelError)
    assert error.code == "plugins-need-tensorrt"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_tensorrt_without_gpu_is_refused(tmp_path: Path) -> None:
    assert isinstance(fault_of(save_colours(tmp_path / "colours"), backend="tensorrt"), DeviceMissing)


@pytest.mark.parametrize("backend", ["onnxruntime", "auto", "fake"])
def test_unknown_class_is_refused(backend: str, tmp_path: Path) -> None:
    error = fault_of(save_colours(tmp_path / "colours"), backend=backend, classes=["person"])
    assert isinstance(error, ConfigError)
    assert "person" in str(error)


def save_size_free_model(folder: Path) -> Path:
    """Save a network with a dynamic input size, but with a fixed output of the 16 boxes of 32x32 frames."""
    folder = save_colours(folder)
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["pooled", "weights"], ["cells"]),
        helper.make_node("Reshape", ["cells", "shape"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "size-free",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 7, 16])],
        [
            numpy_helper.from_array(np.zeros((7, 3, 1, 1), np.float32), "weights"),
            numpy_helper.from_array(np.array([0, 7, -1]), "shape"),
        ],
    )
    opset = helper.make_opsetid("", tiny_models.OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=tiny_models.IR_VERSION)
    onnx.save_model(model, str(folder / "colours.onnx"))
    return folder


@pytest.mark.parametrize(("side", "code"), [(32, ""), (64, "input-size")])
def test_input_size_other_than_exported_is_refused(side: int, code: str, tmp_path: Path) -> None:
    folder = save_size_free_model(tmp_path / "colours")
    spec = folder / "model.yaml"
    spec.write_text(spec.read_text().replace("width: 32, height: 32", f"width: {side}, height: {side}"))
    error = fault_of(folder)
    assert (error.code if error else "") == code


def test_input_size_of_a_model_with_free_axes_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_size_free_model(tmp_path / "colours")
    with caplog.at_level(logging.INFO, "vision.detect.onnxruntime.network"):
        assert fault_of(folder) is None
    assert "32x32" in caplog.text


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours")
    with pytest.raises(ModelError) as error:
        load_model_spec(folder / "colours.onnx")
    assert error.value.code == "model-is-a-file"
    assert str(folder) in error.value.hint


@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
@pytest.mark.parametrize(
    ("contents", "sha256", "code"),
    [(b"replaced", "0" * 64, "plugin-sha256"), (None, "0" * 64, "plugin-missing")],
)
def test_plugin_library_is_checked_before_the_gpu(
    tmp_path: Path, backend: str, contents: bytes | None, sha256: str, code: str
) -> None:
    """The check of the library also runs on machines without a GPU, a driver, or TensorRT."""
    folder = save_colours(tmp_path)
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(f"{text}\nplugins: [{{file: libmine.so, sha256: '{sha256}'}}]\n")
    if contents is not None:
        (folder / "libmine.so").write_bytes(contents)
    spec = load_model_spec(folder)
    for call in (check_model, open_detector):
        with pytest.raises(ModelError) as caught:
            call(folder, spec, detect(backend=backend))
        assert caught.value.code == code
    assert main(["build", str(folder)]) == ModelError.exit_code
