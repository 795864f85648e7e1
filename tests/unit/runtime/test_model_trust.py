"""A model that other users can replace causes a warning, also if it is the second model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.log_records import log_args
from tests.unit.detect.test_classifier import save
from vision.config import CascadeConfig, shipped_models
from vision.runtime import builder
from vision.runtime.builder import find_model, find_second_model

NAME = "nanodet-g-416"


@pytest.mark.parametrize(
    ("changed", "mode", "warnings"),
    [
        (".", 0o755, 0),
        (".", 0o777, 1),
        ("model.yaml", 0o644, 0),
        ("model.yaml", 0o666, 1),
        (f"{NAME}.onnx", 0o666, 1),
    ],
)
def test_replaceable_model_causes_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: str, mode: int, warnings: int
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(shipped_models() / NAME, folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    (folder / changed).chmod(mode)
    for _ in range(2):
        assert find_model(str(folder))[0] == folder
    assert len(log_args(caplog, "vision.runtime.model_trust")) == warnings


@pytest.mark.parametrize(("mode", "warnings"), [(0o644, 0), (0o666, 1)])
def test_replaceable_onnx_file_without_model_yaml_causes_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, mode: int, warnings: int
) -> None:
    path = tmp_path / f"{NAME}.onnx"
    shutil.copy(shipped_models() / NAME / path.name, path)
    path.chmod(mode)
    monkeypatch.setattr(builder, "spec_of_file", lambda _: find_model(NAME)[1])  # the file itself is no complete model
    for _ in range(2):
        assert find_model(str(path))[0] == tmp_path
    assert len(log_args(caplog, "vision.runtime.model_trust")) == warnings


def test_replaceable_second_model_causes_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "second"
    save(folder)
    folder.chmod(0o777)
    for _ in range(2):
        assert find_second_model(CascadeConfig(model=str(folder)))[0] == folder
    assert len(log_args(caplog, "vision.runtime.model_trust")) == 1
