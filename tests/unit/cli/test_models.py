"""Tests of `vision models FOLDER`, of `vision models add`, and of models that `vision check` rejects."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper

from tests.detector_scene import FORMS, Scene
from tests.tiny_models import save_constant_model
from vision.cli.main import main
from vision.config import load_model_spec

SCENE = Scene()
ULTRALYTICS = {
    "author": "Ultralytics",
    "names": "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}",
    "stride": "32",
    "task": "detect",
    "imgsz": "[320, 320]",
}
CARD = """\
name: mine
file: mine.onnx
input: {width: 320, height: 320, scale: 0.00392156862745098}
head: HEAD
classes: [a, b, c, d, e]
licence: CC0-1.0
"""


@pytest.fixture(autouse=True)
def _work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers


def save(path: Path, form: str, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_constant_model(path, FORMS[form][1](SCENE), sides=(320, 320))
    model = onnx.load(str(path))
    helper.set_model_props(model, metadata or {})
    onnx.save_model(model, str(path))
    return path


def save_folder(folder: Path, form: str, head: str) -> Path:
    save(folder / "mine.onnx", form)
    (folder / "model.yaml").write_text(CARD.replace("HEAD", head))
    return folder


def save_config(model: str) -> str:
    Path("frame.png").write_bytes(cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes())
    text = f"model: {model}\ndetect: {{backend: onnxruntime}}\ncameras:\n  - {{id: gate, source: frame.png}}\n"
    text += f"publish: {{bind: ipc://{Path.cwd()}/out}}\n"
    Path("camera.yaml").write_text(text)
    return "camera.yaml"


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# ------------------------------------------------------------------------------------------------ add


def test_added_model_can_be_used_without_a_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "download" / "best.onnx", "YOLOv8", ULTRALYTICS)
    assert main(["models", "add", "download/best.onnx", "--license", "MIT", "--json"]) == 0
    added = printed(capsys)
    assert added["folder"] == "models/best"
    assert added["missing"] == {}
    assert added["objects"]
    spec = load_model_spec(tmp_path / "models" / "best")
    assert (spec.name, spec.licence, spec.head.kind) == ("best", "MIT", "yolov8")
    assert (tmp_path / "models" / "best" / spec.file).read_bytes() == Path("download/best.onnx").read_bytes()
    assert np.asarray(cv2.imread(added["image"])).shape == (576, 768, 3)
    assert main(["models", "models", "--json"]) == 0
    assert [row["fault"] for row in printed(capsys)["models"]] == [""]
    assert main(["check", save_config("models/best")]) == 0


@pytest.mark.parametrize("form", ["YOLOX without decoding", "YOLO-NAS", "NanoDet per stride", "RT-DETR", "YOLOv10"])
def test_unknown_properties_are_listed_by_their_keys(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(Path("best.onnx"), form)
    assert main(["models", "add", "best.onnx", "--json"]) == 0
    assert set(printed(capsys)["missing"]) == {
        "input.color, input.scale, input.mean, input.std",
        "classes",
        "licence",
    }
    text = Path("models/best/model.yaml").read_text()
    assert all(f"# check `{key}`" in text for key in ("classes", "licence"))
    assert load_model_spec(Path("models/best")).head.model_dump(exclude_defaults=True) == FORMS[form][0]


def test_folder_name_and_sample_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    save(Path("best (1).onnx"), "YOLOv8", ULTRALYTICS)
    cv2.imwrite("own.png", np.full((40, 60, 3), 90, np.uint8))
    arguments = ["--name", "hats", "--into", "own/models", "--sample", "own.png", "--json"]
    assert main(["models", "add", "best (1).onnx", *arguments]) == 0
    added = printed(capsys)
    assert added["folder"] == "own/models/hats"
    assert np.asarray(cv2.imread(added["image"])).shape == (40, 60, 3)
    assert load_model_spec(Path("own/models/hats")).file == "hats.onnx"


def test_external_weights_are_copied(capsys: pytest.CaptureFixture[str]) -> None:
    path = save(Path("download/best.onnx"), "YOLOv8", ULTRALYTICS)
    model = onnx.load(str(path))
    onnx.save_model(model, str(path), save_as_external_data=True, location="best.onnx.data", size_threshold=1024)
    assert main(["models", "add", str(path)]) == 0
    assert Path("models/best/best.onnx.data").read_bytes() == Path("download/best.onnx.data").read_bytes()
    assert "models/best" in capsys.readouterr().out


def test_model_is_not_replaced() -> None:
    save(Path("best.onnx"), "YOLOv8", ULTRALYTICS)
    assert main(["models", "add", "best.onnx"]) == 0
    before = Path("models/best/model.yaml").stat().st_mtime_ns
    assert main(["models", "add", "best.onnx"]) == 78
    assert Path("models/best/model.yaml").stat().st_mtime_ns == before
    assert main(["models", "add", "best.onnx", "--name", "not a name"]) == 78


@pytest.mark.parametrize("arguments", [["add"], ["add", "a.onnx", "b.onnx"], ["a", "b"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    assert main(["models", *arguments]) == 2


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("best.pt", b"PK\x03\x04"),
        ("best.engine", b"ftrt"),
        ("best.tflite", b"\0\0\0\0TFL3"),
        ("best.onnx", b"<html></html>"),
        ("best.onnx", b""),
        ("best.onnx", b"version https://git-lfs.github.com/spec/v1\n"),
        ("none.onnx", None),
    ],
)
def test_file_that_is_not_onnx_is_not_added(name: str, contents: bytes | None) -> None:
    if contents is not None:
        Path(name).write_bytes(contents)
    assert main(["models", "add", name]) == 78
    assert not Path("models").exists()


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    save(Path("models/best.onnx"), "YOLOv8")
    assert main(["models", "models"]) == 78
    assert main(["models", "none"]) == 78


def test_folder_of_models_and_of_one_model_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(Path("all/good"), "YOLOv8", "{kind: yolov8}")
    save_folder(Path("all/wrong"), "YOLOv8 in fractions", "{kind: yolov8}")
    assert main(["models", "all", "--json"]) == 78
    good, wrong = printed(capsys)["models"]
    assert good["fault"] == ""
    assert "box_scale: fraction" in wrong["fault"]
    assert main(["models", "all/good", "--json"]) == 0
    assert len(printed(capsys)["models"]) == 1


# ------------------------------------------------------------------------------------------------ check


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "model-missing"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-500]), "damaged-model"),
    "empty": (lambda path: path.write_bytes(b""), "damaged-model"),
    "pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "lfs-pointer",
    ),
    "HTML": (lambda path: path.write_text("<!doctype html><title>Sign in</title>"), "html-page"),
    "TFLite": (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(90)), "model-format"),
    "PyTorch": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(90)), "model-format"),
    "fractions": (lambda path: save(path, "YOLOv8 in fractions"), "boxes-collapsed"),
    "logits": (lambda path: save(path, "YOLOv8 with logits"), "scores-out-of-range"),
    "YOLOv5": (lambda path: save(path, "YOLOv5"), "head-mismatch"),
    "YOLO-NAS": (lambda path: save(path, "YOLO-NAS"), "head-mismatch"),
    "segmentation": (lambda path: save(path, "YOLOv8", {"task": "segment"}), "wrong-task"),
    "other classes": (lambda path: save(path, "YOLOv8", {"names": "['helmet', 'head']"}), "classes-mismatch"),
}


@pytest.mark.integration
@pytest.mark.parametrize("damage", BROKEN)
def test_check_refuses_what_the_start_refuses(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_folder(Path("mine"), "YOLOv8", "{kind: yolov8}")
    change, code = BROKEN[damage]
    change(folder / "mine.onnx")
    config = save_config("./mine")
    assert main(["check", config, "--json"]) == 78
    fault = printed(capsys)["fault"]
    assert fault["code"] == code
    assert [(each["line"], each["key"]) for each in fault["faults"]] == [(1, "model")]
    assert main(["run", config, "--offline"]) == 78


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("best.onnx", ""),
        ("./best.onnx", ""),
        ("bare.onnx", "model-incomplete"),
        ("best.pt", "model-format"),
        ("./best.engine", "model-format"),
        ("best.tflite", "model-format"),
        ("none.onnx", "model-missing"),
        ("none.pt", "model-missing"),
        ("html.onnx", "html-page"),
    ],
)
def test_model_file_in_the_configuration(model: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(Path("best.onnx"), "YOLOv8", ULTRALYTICS)
    save(Path("bare.onnx"), "YOLOv8")
    Path("html.onnx").write_text("<html></html>")
    for name in ("best.pt", "best.engine", "best.tflite"):
        Path(name).write_bytes(bytes(100))
    config = save_config(model)
    assert main(["check", config, "--json"]) == (78 if code else 0)
    fault = printed(capsys)["fault"]
    assert (fault["code"] if fault else "") == code
