"""Tests that files that are not ONNX are recognized before a library reads them. The error names the file type."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests import tiny_models
from vision.config.model_file import folder_of_model, is_model_path, read_model_header, refuse_other_format
from vision.config.onnx_header import NotOnnx, TensorInfo, parse_header
from vision.errors import ModelError


def saved(path: Path, **metadata: str) -> bytes:
    tiny_models.save_colour_model(path)
    model = onnx.load(str(path))
    helper.set_model_props(model, metadata)
    onnx.save_model(model, str(path))
    return path.read_bytes()


def test_header_agrees_with_onnx(tmp_path: Path) -> None:
    contents = saved(tmp_path / "a.onnx", names="{0: 'rot', 1: 'grün'}", stride="32")
    header = read_model_header(tmp_path / "a.onnx")
    assert header.metadata == {"names": "{0: 'rot', 1: 'grün'}", "stride": "32"}
    assert header.inputs == (TensorInfo("images", "float32", ("batch", 3, 32, 32)),)
    assert header.outputs == (TensorInfo("output", "float32", ("batch", 7, 1)),)
    assert parse_header(memoryview(contents)) == header


def test_weights_that_are_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.zeros((3, 3, 1, 1), np.float32), "weights")
    sides: list[int | None] = [1, None, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["frames", "weights"], ["out"])],
        "old",
        [
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, [3, 3, 1, 1]),
            helper.make_tensor_value_info("frames", TensorProto.UINT8, sides),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT16, None)],
        [weights],
    )
    model = helper.make_model(graph)
    header = parse_header(memoryview(model.SerializeToString()))
    assert header.inputs == (TensorInfo("frames", "uint8", (1, None, 4, 4)),)
    assert header.outputs == (TensorInfo("out", "float16", ()),)


def _zip() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("best/data.pkl", b"\x80\x02}q\x00.")
    return target.getvalue()


DESCRIPTION = json.dumps({"description": "Ultralytics YOLO11n model", "task": "detect"}).encode()
OTHERS = {
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "lfs-pointer"),
    "git-annex pointer": (b"/annex/objects/SHA256E-s12--00.onnx\n", "lfs-pointer"),
    "HTML page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "html-page"),
    "HTML page after spaces": (b"\xef\xbb\xbf \r\n<HTML><head></head>404</HTML>", "html-page"),
    "XML error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "model-format"),
    "JSON error": (b'{"error": "Repository not found"}', "model-format"),
    "text": (b"Entry not found", "model-format"),
    "TFLite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "model-format"),
    "ORT format": (b"\x18\x00\x00\x00ORTM" + bytes(64), "model-format"),
    "TensorRT": (b"ftrt" + bytes(64), "model-format"),
    "TensorRT by Ultralytics": (struct.pack("<i", len(DESCRIPTION)) + DESCRIPTION + b"ftrt", "model-format"),
    "safetensors": (struct.pack("<Q", 18) + b'{"__metadata__":{}}' + bytes(8), "model-format"),
    "PyTorch": (_zip(), "model-format"),
    "old PyTorch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(64), "model-format"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "model-format"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(64), "model-format"),
    "ncnn": (b"7767517\n75 83\nInput images 0 1 images\n", "model-format"),
    "empty": (b"", "damaged-model"),
    "zeros": (bytes(4096), "damaged-model"),
    "noise": (np.random.default_rng(1).bytes(4096), "damaged-model"),
}


@pytest.mark.parametrize("form", OTHERS)
def test_other_file_is_refused_by_its_content(form: str, tmp_path: Path) -> None:
    contents, code = OTHERS[form]
    (tmp_path / "a.onnx").write_bytes(contents)
    with pytest.raises(ModelError) as caught:
        read_model_header(tmp_path / "a.onnx", "mine")
    assert caught.value.code == code
    assert caught.value.hint
    assert caught.value.exit_code == 78
    assert str(tmp_path / "a.onnx") in caught.value.args[0]


@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(part: float, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    contents = saved(path, names="{0: 'a'}")
    path.write_bytes(contents[: max(1, int(part * len(contents)))])
    with pytest.raises(ModelError) as caught:
        read_model_header(path)
    assert caught.value.code == "damaged-model"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_not_onnx(contents: bytes) -> None:
    try:
        parse_header(memoryview(contents))
    except NotOnnx:
        return


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "none.onnx", "model-missing"), (tmp_path, "model-unreadable")):
        with pytest.raises(ModelError) as caught:
            read_model_header(path)
        assert caught.value.code == code


def test_missing_external_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    saved(path)
    model = onnx.load(str(path))
    onnx.save_model(
        model, str(path), save_as_external_data=True, location="a.onnx.data", size_threshold=0, convert_attribute=False
    )
    assert read_model_header(path).weight_files == {"a.onnx.data"}
    (tmp_path / "a.onnx.data").unlink()
    with pytest.raises(ModelError) as caught:
        read_model_header(path)
    assert caught.value.code == "external-weights"
    assert "a.onnx.data" in caught.value.args[0]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("best.pt", "format=onnx"),
        ("best.PTH", "export"),
        ("best.torchscript", "export"),
        ("best.engine", "vision build"),
        ("best.plan", "vision build"),
        ("best.trt", "vision build"),
        ("best.tflite", "tf2onnx"),
        ("saved_model.pb", "tf2onnx"),
        ("best.h5", "tf2onnx"),
        ("model.safetensors", "ONNX"),
        ("inference.pdmodel", "paddle2onnx"),
        ("best.xml", "ONNX"),
        ("best.mlmodel", "ONNX"),
    ],
)
def test_other_suffix_is_refused_with_the_next_step(name: str, advice: str) -> None:
    assert is_model_path(name)
    with pytest.raises(ModelError) as caught:
        refuse_other_format(Path("models") / name)
    assert caught.value.code == "model-format"
    assert advice in caught.value.hint


@pytest.mark.parametrize("name", ["best.onnx", "best", "yolov8.1", "models/best.v2", "best.yaml"])
def test_onnx_file_and_folder_have_no_other_suffix(name: str) -> None:
    refuse_other_format(Path(name))


def test_model_file_is_a_path_without_a_slash(tmp_path: Path) -> None:
    assert folder_of_model("best.onnx", tmp_path) == Path("best.onnx")
    assert folder_of_model("best.pt", tmp_path) == Path("best.pt")
    assert folder_of_model("best", tmp_path) == tmp_path / "best"
