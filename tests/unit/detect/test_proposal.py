"""Tests that proposals for model.yaml contain all facts from the ONNX file and the sample, and name missing facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.detector_scene import FORMS, Scene
from tests.tiny_models import save_constant_model
from vision.config import load_model_spec
from vision.detect.classes import COCO80
from vision.detect.proposal import model_name, propose, spec_of_file
from vision.errors import ModelError
from vision.runtime.builder import find_model

SCENE = Scene()
NAMES = "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}"
ULTRALYTICS = {
    "author": "Ultralytics",
    "names": NAMES,
    "stride": "32",
    "task": "detect",
    "imgsz": "[320, 320]",
    "license": "AGPL-3.0 License (https://ultralytics.com/license)",
}
INPUT_KEY = "input.color, input.scale, input.mean, input.std"


def save(path: Path, form: str, metadata: Mapping[str, str] | None = None, scene: Scene = SCENE) -> Path:
    save_constant_model(path, FORMS[form][1](scene), sides=(scene.height, scene.width))
    model = onnx.load(str(path))
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save_model(model, str(path))
    return path


def head_of(path: Path) -> dict[str, Any]:
    return propose(path).spec.head.model_dump(exclude_defaults=True)


@pytest.mark.parametrize("form", FORMS)
def test_head_is_found_by_the_sample(form: str, tmp_path: Path) -> None:
    assert head_of(save(tmp_path / "a.onnx", form, {"names": NAMES})) == FORMS[form][0]


@pytest.mark.parametrize("form", ["YOLOv8", "YOLOX without decoding", "YOLO-NAS", "NanoDet", "RT-DETR"])
def test_number_of_classes_is_found_without_names(form: str, tmp_path: Path) -> None:
    proposal = propose(save(tmp_path / "a.onnx", form))
    assert proposal.spec.classes == tuple(f"class-{index}" for index in range(5))
    assert proposal.spec.head.model_dump(exclude_defaults=True) == FORMS[form][0]
    assert set(proposal.missing) == {"classes", "licence", INPUT_KEY}


def test_file_of_ultralytics_leaves_nothing_open(tmp_path: Path) -> None:
    proposal = propose(save(tmp_path / "a.onnx", "YOLOv8", ULTRALYTICS))
    assert proposal.missing == {}
    assert set(proposal.found) == {"input.width, input.height", "head", "classes", "licence", INPUT_KEY}
    assert proposal.spec.licence == "AGPL-3.0"
    assert proposal.spec.input.scale == pytest.approx(1 / 255)
    assert (proposal.spec.input.width, proposal.spec.input.height) == (320, 320)


def test_given_license_is_used(tmp_path: Path) -> None:
    proposal = propose(save(tmp_path / "a.onnx", "YOLOv8", ULTRALYTICS), "LicenseRef-own: 1")
    assert proposal.spec.licence == "LicenseRef-own: 1"
    (tmp_path / "model.yaml").write_text(proposal.yaml())
    assert load_model_spec(tmp_path) == proposal.spec


@pytest.mark.parametrize("form", FORMS)
def test_written_yaml_is_the_proposal(form: str, tmp_path: Path) -> None:
    proposal = propose(save(tmp_path / "a.onnx", form, {"names": "['no', 'a: b', '#', '1', 'grün']"}))
    (tmp_path / "model.yaml").write_text(proposal.yaml(), encoding="utf-8")
    assert load_model_spec(tmp_path) == proposal.spec
    assert proposal.spec.classes == ("no", "a: b", "#", "1", "grün")


def test_80_classes_without_names_are_those_of_coco(tmp_path: Path) -> None:
    scene = Scene(classes=80)
    proposal = propose(save(tmp_path / "a.onnx", "YOLOv8", scene=scene))
    assert proposal.spec.classes == "coco80"
    assert "classes" in proposal.missing
    named = propose(save(tmp_path / "b.onnx", "YOLOv8", {"names": str(list(COCO80))}, scene))
    assert named.spec.classes == "coco80"
    assert "classes" in named.found


@pytest.mark.parametrize(
    ("form", "metadata"),
    [
        ("YOLOv8", {}),
        ("YOLOv5", {}),
        ("YOLOv10", {"end2end": "True"}),
        ("RT-DETR by Ultralytics", {}),
        ("YOLOv10", {"args": "{'nms': True}", "end2end": "False"}),
    ],
)
def test_file_of_ultralytics_needs_no_model_yaml(form: str, metadata: dict[str, str], tmp_path: Path) -> None:
    path = save(tmp_path / "my best.onnx", form, {**ULTRALYTICS, **metadata})
    folder, spec = find_model(str(path))
    assert folder == tmp_path
    assert spec.name == "my-best"
    assert spec.head.model_dump(exclude_defaults=True) == FORMS[form][0]
    assert spec.classes == ("a", "b", "c", "d", "e")
    assert spec == spec_of_file(path)


@pytest.mark.parametrize("missing", ["names", "stride"])
def test_file_without_complete_metadata_needs_a_model_yaml(missing: str, tmp_path: Path) -> None:
    metadata = {key: text for key, text in ULTRALYTICS.items() if key not in {missing, "author"}}
    with pytest.raises(ModelError) as caught:
        spec_of_file(save(tmp_path / "a.onnx", "YOLOv8", metadata))
    assert caught.value.code == "model-incomplete"
    assert "vision models add" in caught.value.hint


@pytest.mark.parametrize("task", ["classify", "depth"])
def test_other_task_in_the_metadata_is_refused(task: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", "YOLOv8", {**ULTRALYTICS, "task": task})
    for propose_ in (propose, spec_of_file):
        with pytest.raises(ModelError) as caught:
            propose_(path)
        assert caught.value.code == "wrong-task"


def test_outputs_of_no_detector_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    save_constant_model(path, {"probabilities": np.full((1, 320, 320), 0.5, np.float32)}, sides=(320, 320))
    with pytest.raises(ModelError) as caught:
        propose(path)
    assert caught.value.code == "head-mismatch"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolo11n.onnx", "yolo11n"),
        ("my best (1).onnx", "my-best-1"),
        ("-.onnx", "model"),
        ("a" * 90 + ".onnx", "a" * 64),
    ],
)
def test_name_is_that_of_the_file(name: str, expected: str) -> None:
    assert model_name(Path(name)) == expected
