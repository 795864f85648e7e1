"""Tests of the metadata of ONNX files: reading the metadata, and comparing them with model.yaml."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tests.log_records import log_args
from vision.config import ModelSpec
from vision.config.onnx_header import OnnxHeader
from vision.detect.classes import COCO80
from vision.detect.metadata import ModelMetadata, check_metadata, is_coco80, read_metadata, yaml_list
from vision.errors import ModelError

LOGGER = "vision.detect.metadata"


def read(**entries: str) -> ModelMetadata:
    return read_metadata(OnnxHeader(metadata=entries))


def spec(classes: Any, *, width: int = 640, height: int = 640) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "mine",
            "file": "mine.onnx",
            "input": {"width": width, "height": height},
            "head": {"kind": "yolov8"},
            "classes": classes,
            "licence": "CC0-1.0",
        }
    )


def code_of(classes: Any, metadata: ModelMetadata, **size: int) -> str:
    try:
        check_metadata(spec(classes, **size), metadata)
    except ModelError as error:
        assert error.hint or error.code == "input-size"
        assert error.exit_code == 78
        return error.code
    return ""


def test_metadata_of_ultralytics_is_read() -> None:
    metadata = read(
        names="{0: 'person', 10: 'x', 1: 'a', 2: 'b', 3: 'c', 4: 'd', 5: 'e', 6: 'f', 7: 'g', 8: 'h', 9: \"it's\"}",
        imgsz="[480, 640]",
        stride="32",
        task="detect",
        end2end="False",
        args="{'batch': 1, 'half': False, 'nms': False}",
        author="Ultralytics",
        license="AGPL-3.0 License (https://ultralytics.com/license)",
        channels="3",
    )
    assert metadata.names is not None
    assert metadata.names[0] == "person"
    assert metadata.names[9:] == ("it's", "x")
    assert (metadata.width, metadata.height, metadata.stride) == (640, 480, 32)
    assert (metadata.task, metadata.suppressed, metadata.licence) == ("detect", False, "AGPL-3.0")
    assert metadata.ultralytics
    assert metadata.head_task == "detect"


@pytest.mark.parametrize(
    ("key", "text", "names"),
    [
        ("names", "['helmet', 'head']", ("helmet", "head")),
        ("names", '["helmet", "head"]', ("helmet", "head")),
        ("names", '{"0": "helmet", "1": "head"}', ("helmet", "head")),
        ("character", "text\ntitle\nfigure", ("text", "title", "figure")),
        ("labels", "helmet, head", ("helmet", "head")),
        ("class_names", "['helmet']", ("helmet",)),
        ("names", "{0: 'a', 2: 'c'}", None),
        ("names", "", None),
        ("classes", "80", None),
        ("labels", "labels.txt", None),
        ("names", "[]", None),
        ("author", "['a']", None),
    ],
)
def test_class_names_are_read_in_every_notation(key: str, text: str, names: tuple[str, ...] | None) -> None:
    assert read(**{key: text}).names == names


@pytest.mark.parametrize(
    ("entries", "suppressed"),
    [
        ({}, None),
        ({"end2end": "True"}, True),
        ({"end2end": "False"}, False),
        ({"args": "{'nms': True}", "end2end": "False"}, True),
        ({"args": "{'nms': False}"}, False),
        ({"args": "broken {"}, None),
    ],
)
def test_suppression_is_read(entries: dict[str, str], suppressed: bool | None) -> None:
    assert read(**entries).suppressed is suppressed


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("[640, 480]", (480, 640)),
        ("640", (640, 640)),
        ("(320, 320)", (320, 320)),
        ("[0, 1]", (None, None)),
        ("[6.5]", (None, None)),
        ("x", (None, None)),
        ("[1, 2, 3]", (None, None)),
    ],
)
def test_size_is_read(text: str, size: tuple[int | None, int | None]) -> None:
    metadata = read(imgsz=text)
    assert (metadata.width, metadata.height) == size


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify", "Segment"])
def test_other_task_is_refused(task: str) -> None:
    assert code_of("coco80", read(task=task)) == "wrong-task"


@pytest.mark.parametrize(("names", "code"), [(("a", "b"), ""), (("a", "b", "c"), "keypoints-mismatch")])
def test_number_of_keypoints_is_compared(names: tuple[str, ...], code: str) -> None:
    pose = spec(["person"])
    head = pose.head.model_copy(update={"task": "pose", "keypoints": names})
    metadata = read(task="pose", kpt_shape="[2, 3]", names="{0: 'person'}")
    found = ""
    try:
        check_metadata(pose.model_copy(update={"head": head}), metadata)
    except ModelError as error:
        found = error.code
    assert found == code


HATS = "{0: 'hard-hat', 1: 'head'}"
COCO_TEXT = json.dumps(dict(enumerate(COCO80)))


@pytest.mark.parametrize(
    ("classes", "names", "code"),
    [
        ("coco80", HATS, "classes-mismatch"),
        ("coco80", str([f"class{index}" for index in range(80)]), "classes-mismatch"),
        ("coco80", str(list(COCO80[1:] + COCO80[:1])), "classes-mismatch"),
        ("coco80", COCO_TEXT, ""),
        ("coco80", COCO_TEXT.replace("motorcycle", "motorbike").replace("tv", "TVmonitor"), ""),
        ("coco91", COCO_TEXT, "classes-mismatch"),
        (["hard-hat", "head"], HATS, ""),
        (["Hard Hat", "HEAD"], HATS, ""),
        (["head", "hard-hat"], HATS, "classes-mismatch"),
        (["hard-hat"], HATS, "classes-mismatch"),
        (["hard-hat", "head", "vest"], HATS, "classes-mismatch"),
        (["Schutzhelm", "Kopf"], HATS, ""),
        (list(COCO80), COCO_TEXT, ""),
    ],
)
def test_classes_are_compared(classes: Any, names: str, code: str) -> None:
    assert code_of(classes, read(names=names)) == code


def test_hint_lists_the_classes_of_the_file() -> None:
    with pytest.raises(ModelError) as caught:
        check_metadata(spec("coco80"), read(names=HATS))
    assert "classes: [hard-hat, head]" in caught.value.hint


def test_renamed_classes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, LOGGER):
        check_metadata(spec(["Schutzhelm", "head"]), read(names=HATS))
    ((name, pairs),) = log_args(caplog, LOGGER, logging.WARNING)
    assert name == "mine"
    assert "Schutzhelm" in str(pairs)
    assert "'head'" not in str(pairs)


@pytest.mark.parametrize(
    ("size", "entries", "code", "warnings"),
    [
        ((640, 640), {"stride": "32", "imgsz": "[640, 640]"}, "", 0),
        ((640, 384), {"stride": "32", "imgsz": "[384, 640]"}, "", 0),
        ((320, 320), {"stride": "32", "imgsz": "[640, 640]"}, "", 1),
        ((640, 360), {"stride": "32", "imgsz": "[640, 640]"}, "input-size", 0),
        ((336, 320), {"stride": "32"}, "input-size", 0),
        ((672, 672), {"stride": "64"}, "input-size", 0),
        ((336, 336), {"stride": "[8, 16]"}, "", 0),
    ],
)
def test_size_and_stride_are_compared(
    size: tuple[int, int], entries: dict[str, str], code: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, LOGGER):
        assert code_of("coco80", read(**entries), width=size[0], height=size[1]) == code
    assert len(log_args(caplog, LOGGER, logging.WARNING)) == warnings


def test_file_without_metadata_passes() -> None:
    assert code_of(["anything"], read()) == ""
    assert code_of(["anything"], read(comment="exported on Monday")) == ""


def test_names_are_written_as_yaml() -> None:
    assert yaml_list(["hard-hat", "no", "a: b", "Größe", "AGPL-3.0", "1"]) == (
        '[hard-hat, "no", "a: b", "Größe", AGPL-3.0, "1"]'
    )
    assert is_coco80([name.upper() for name in COCO80])
    assert not is_coco80(COCO80[:79])
