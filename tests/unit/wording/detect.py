"""Expected texts of errors about models and detectors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from vision.config import ModelSpec, checked_model_file, load_model_spec
from vision.detect.classes import class_ids
from vision.detect.reference.heads import make_head
from vision.errors import VisionError

SPEC = ModelSpec.model_validate(
    {
        "name": "mine",
        "file": "mine.onnx",
        "input": {"width": 64, "height": 64},
        "head": {"kind": "yolov5"},
        "classes": ["cat", "dog"],
        "nms": {},
        "licence": "CC0-1.0",
    }
)


def _text(action: Callable[[], object]) -> str:
    try:
        action()
    except VisionError as error:
        return str(error)
    return "no error"


def _file_text(contents: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mine.onnx").write_text(contents)
        return _text(lambda: checked_model_file(Path(folder), SPEC)).replace(folder, "FOLDER")


def _file_as_folder_text() -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mine.onnx").touch()
        return _text(lambda: load_model_spec(Path(folder) / "mine.onnx")).replace(folder, "FOLDER")


ROWS = [
    (
        "a head that does not fit",
        lambda: _text(lambda: make_head(SPEC, 2, 0.5).bind({"output0": (1, 6, 84)})),
        (
            "mine: head `yolov5` with 2 classes expects (batch, boxes, 7); the model has output0 (1, 6, 84)\n"
            "  hint: by their shapes, these outputs can fit head `yolov8`; `vision check` tries them"
        ),
    ),
    (
        "an unknown class",
        lambda: _text(lambda: class_ids(("cat", "dog"), ["dig"], "mine")),
        "detect.classes: the model mine has no class 'dig'\n  hint: did you mean 'dog'?",
    ),
    (
        "a Git LFS pointer in place of the model",
        lambda: _file_text("version https://git-lfs.github.com/spec/v1\n"),
        "mine: FOLDER/mine.onnx is a Git LFS pointer, not an ONNX file\n  hint: `git lfs pull` fetches the model",
    ),
    (
        "an ONNX file in place of its folder",
        _file_as_folder_text,
        (
            "FOLDER/mine.onnx is an ONNX file; expected a folder with it and a model.yaml\n"
            "  hint: write `model: FOLDER`, and add a model.yaml there; `vision models` shows an example"
        ),
    ),
]
