"""Tests that paths that are too long for the system are reported like paths that do not exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vision.capture.open import open_source
from vision.config import CameraConfig
from vision.config.load import load_config, resolve_config
from vision.config.paths import can_write
from vision.errors import VisionError
from vision.evaluation.count_errors import check_accuracy_file
from vision.evaluation.language.labels import read_labels
from vision.runtime.builder import find_model

LONG = (
    "a" * 300,
    "./" + "a" * 300,
    "a" * 300 + ".onnx",
    "./" + "a/" * 3000 + "b.mp4",
    "a" * 300 + "/",
    "a" * 300 + ".jpg",
)


def _read_camera(path: str) -> None:
    open_source(CameraConfig(id="a", source=path), offline=False, pixel_formats=("bgr",)).open()


@pytest.mark.parametrize("path", LONG)
@pytest.mark.parametrize(
    "read",
    [lambda path: load_config(resolve_config(path), {}), find_model, _read_camera],
    ids=["file", "model", "camera"],
)
def test_path_that_is_too_long_is_refused(read: Callable[[str], object], path: str) -> None:
    with pytest.raises(VisionError):
        read(path)


def test_folder_of_a_camera_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VisionError):
        _read_camera(f"{tmp_path}/missing/")


def test_image_of_a_label_whose_name_is_too_long_is_refused(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text(f'{{"true": true, "camera": "a", "kind": "rule", "name": "b", "frames": ["{"a" * 300}"]}}\n')
    with pytest.raises(VisionError) as caught:
        read_labels(labels)
    assert [fault.line for fault in caught.value.faults] == [1]
    check_accuracy_file(Path("a" * 300 + ".json"))


def test_files_that_can_be_written(tmp_path: Path) -> None:
    existing = tmp_path / "existing.json"
    existing.touch()
    to_new, to_missing, to_folder = (tmp_path / f"to-{name}" for name in ("new", "missing", "folder"))
    to_new.symlink_to(tmp_path / "new.json")
    to_missing.symlink_to(tmp_path / "missing" / "new.json")
    to_folder.symlink_to(tmp_path)
    assert [can_write(path) for path in (existing, tmp_path / "new.json", to_new)] == [True, True, True]
    assert [can_write(path) for path in (tmp_path, tmp_path / "missing" / "a", to_missing, to_folder)] == [False] * 4
