"""Tests of models with a shape input, that is, an input that determines shapes. Its values come from model.yaml."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.gpu.opening import EMULATED, open_model
from vision.config import DetectConfig, ModelSpec
from vision.engine.profiles import Range
from vision.errors import ModelError
from vision.types import Frame, FrameMeta

SIDE = 64
SIZES = ([16, 16], [32, 64], [64, 64])
OUTPUTS = {"boxes": 4, "scores": 1}
PROFILES = [{"batch": [1, 2, 4], "values": {"size": [[16, 16], [32, 32], [64, 64]]}}]


def save(path: Path) -> None:
    """Write a network that scales each frame to `size` and back, and detects each quarter of the frame as an object.

    The score of a quarter is its mean brightness after scaling, so it depends on `size`.
    """
    boxes = np.array([[[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]]], np.float32)
    nodes = [
        helper.make_node("Shape", ["images"], ["whole"]),
        helper.make_node("Slice", ["whole", "zero", "two", "zero"], ["front"]),
        helper.make_node("Concat", ["front", "size"], ["target"], axis=0),
        helper.make_node("Resize", ["images", "", "", "target"], ["scaled"], mode="nearest"),
        helper.make_node("Concat", ["front", "sides"], ["original"], axis=0),
        helper.make_node("Resize", ["scaled", "", "", "original"], ["back"], mode="nearest"),
        helper.make_node("AveragePool", ["back"], ["four"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("ReduceMean", ["four"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Reshape", ["mean", "columns"], ["scores"]),
        helper.make_node("Shape", ["scores"], ["count"]),
        helper.make_node("Slice", ["count", "zero", "one", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "one", "one"], ["times"], axis=0),
        helper.make_node("Tile", ["corners", "times"], ["boxes"]),
    ]
    numbers = {"zero": [0], "one": [1], "two": [2], "columns": [0, 4, 1], "sides": [SIDE, SIDE]}
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    constants.append(numpy_helper.from_array(boxes, "corners"))
    frames = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    size = helper.make_tensor_value_info("size", TensorProto.INT64, [2])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, columns]) for name, columns in OUTPUTS.items()
    ]
    graph = helper.make_graph(nodes, "sizes", [frames, size], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def card(size: list[int]) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "sizes",
            "file": "sizes.onnx",
            "licence": "none",
            "input": {"width": SIDE, "height": SIDE, "scale": 1 / 255, "constants": {"size": size}},
            "head": {"kind": "corners"},
            "classes": ["bright"],
            "profiles": PROFILES,
        }
    )


def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(100, 255, (SIDE, SIDE, 3), np.uint8)


def detector(folder: Path, size: list[int]) -> Any:
    save(folder / "sizes.onnx")
    detect = DetectConfig(score_threshold=0.1, max_batch=4, precision="fp32")
    engine: dict[str, Any] = {}
    if EMULATED:
        engine = {"batches": (1, 4), "shape_values": {"size": Range((16, 16), (32, 32), (64, 64))}}
    return open_model(folder, card(size), detect, {name: (4, columns) for name, columns in OUTPUTS.items()}, **engine)


@pytest.mark.parametrize("size", SIZES)
def test_detector_runs_with_the_configured_size(device: Any, size: list[int], tmp_path: Path) -> None:
    frame = Frame.wrap(FrameMeta("cam", 0, 0, 0, 0, SIDE, SIDE), pixels(), "bgr")
    with closing(detector(tmp_path, size)) as opened:
        opened.submit(0, [frame, frame, frame])
        found = opened.wait(0, 20.0)
    session = onnxruntime.InferenceSession(str(tmp_path / "sizes.onnx"), providers=["CPUExecutionProvider"])
    images = (pixels()[..., ::-1].astype(np.float32) / 255).transpose(2, 0, 1)[None]
    boxes, scores = session.run(None, {"images": np.ascontiguousarray(images), "size": np.array(size, np.int64)})
    order = np.argsort(-scores[0, :, 0])
    for each in found:
        np.testing.assert_allclose(each.scores, scores[0, order, 0], atol=2e-3)
        np.testing.assert_allclose(each.boxes_xyxy, boxes[0, order], atol=0.5)


def test_scores_depend_on_the_size(tmp_path: Path) -> None:
    save(tmp_path / "sizes.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "sizes.onnx"), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)
    first, *others = (session.run(None, {"images": images, "size": np.array(size)})[1] for size in SIZES)
    assert all(np.abs(first - other).max() > 0.01 for other in others)


def test_size_outside_of_the_profile_is_refused(device: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        detector(tmp_path, [8, 8])
    assert caught.value.code == "shape-values"
