"""Tests of the back-end that the program chooses for the second model, and of its engine, built without a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.detect.test_classifier import save
from tests.unit.engine_models import needs_no_gpu, needs_rtx
from tests.unit.optimize.models import save_cells
from vision.cli.main import main
from vision.config import CascadeConfig, load_classifier_spec
from vision.detect.onnxruntime.classifier import OnnxRuntimeClassifier
from vision.detect.open import check_second_model, open_second_model
from vision.engine.build import BuildOptions
from vision.engine.build_plan import resolve_classifier
from vision.engine.cache import EngineCache
from vision.engine.library import GpuDescription
from vision.engine.open import load_or_build
from vision.errors import DeviceMissing, ModelError

AMPERE = GpuDescription("NVIDIA RTX A4000", (8, 6))
AHEAD = BuildOptions(ahead_of_time=True)


def cascade(**values: Any) -> CascadeConfig:
    return CascadeConfig.model_validate({"model": "paint", **values})


@needs_no_gpu
@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_onnxruntime_runs_the_model_without_a_gpu(tmp_path: Path, backend: str) -> None:
    spec = load_classifier_spec(save(tmp_path))
    with closing(open_second_model(tmp_path, spec, cascade(backend=backend, max_batch=5))) as classifier:
        assert isinstance(classifier, OnnxRuntimeClassifier)
        assert classifier.max_batch == 5
    check_second_model(tmp_path, spec, cascade(backend=backend))


@needs_no_gpu
@pytest.mark.parametrize("check", [check_second_model, open_second_model])
def test_configured_backend_is_not_replaced(tmp_path: Path, check: Callable[..., object]) -> None:
    spec = load_classifier_spec(save(tmp_path))
    with pytest.raises(DeviceMissing):
        check(tmp_path, spec, cascade(backend="tensorrt"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate the presence of TensorRT and a GPU."""
    real = importlib.import_module

    def load(name: str) -> object:
        if name == "vision.detect.tensorrt.detector":
            return SimpleNamespace(check_device=lambda _: None)
        return real(name)

    monkeypatch.setattr("vision.detect.open.importlib.import_module", load)


@pytest.mark.usefixtures("gpu")
def test_model_for_tensorrt_is_checked_without_an_engine(tmp_path: Path) -> None:
    spec = load_classifier_spec(save(tmp_path))
    check_second_model(tmp_path, spec, cascade(backend="tensorrt"))
    (tmp_path / "paint.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelError) as caught:
        check_second_model(tmp_path, spec, cascade(backend="tensorrt"))
    assert caught.value.code == "model-format"


@pytest.mark.parametrize(("batch", "expected"), [("batch", 8), (3, 3)])
def test_fixed_batch_size_of_the_file_is_used(tmp_path: Path, batch: int | str, expected: int) -> None:
    spec = load_classifier_spec(save(tmp_path, batch=batch))
    assert resolve_classifier(cascade(max_batch=8), tmp_path, spec).max_batch == expected


@needs_rtx
@pytest.mark.engine
@pytest.mark.parametrize(("batch", "batches"), [("batch", [1, 2, 4, 6]), (3, [3])])
def test_engine_is_built_once_for_each_batch_size(tmp_path: Path, batch: int | str, batches: list[int]) -> None:
    spec = load_classifier_spec(save(tmp_path, batch=batch))
    plan = resolve_classifier(cascade(max_batch=6), tmp_path, spec)
    cache = EngineCache(tmp_path / "cache")
    first, second = (load_or_build(tmp_path, spec, AMPERE, plan, AHEAD, cache=cache) for _ in range(2))
    assert first.built is not None and second.built is None
    assert second.plan == first.plan
    shapes = [profile.shapes["images"] for profile in first.built.profiles]
    assert [shape.max[0] for shape in shapes if shape.min == shape.max] == batches
    assert {shape.max[1:] for shape in shapes} == {(3, 24, 16)}


@needs_rtx
@pytest.mark.engine
@pytest.mark.parametrize(("backend", "names"), [("auto", {"cells", "paint"}), ("onnxruntime", {"cells"})])
def test_vision_build_builds_both_models_of_a_configuration(tmp_path: Path, backend: str, names: set[str]) -> None:
    save_cells(tmp_path / "cells")
    save(tmp_path / "paint")
    config = tmp_path / "camera.yaml"
    config.write_text(
        "model: ./cells\npipeline: track\ncameras: [{id: gate, source: 'synthetic:64x48@5'}]\ndetect: {max_batch: 1}\n"
        f"cascade: {{model: ./paint, max_batch: 2, backend: {backend}}}\n"
    )
    cache = tmp_path / "cache"
    assert main(["build", "--config", str(config), "--for-gpu", "RTX A4000:86", "--cache", str(cache)]) == 0
    assert {path.name.split("-")[0] for path in cache.glob("*.engine")} == names
