"""Tests of the values of constant inputs, and of the shipped model with other input and output formats."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.paths import ROOT
from vision.config import ModelSpec, load_model_spec, shipped_models
from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
from vision.detect.reference.inputs import constant_input, is_channels_last
from vision.engine.onnx_transform import rewrite_onnx
from vision.errors import ModelError
from vision.types import Detections, Frame, FrameMeta

SHIPPED = shipped_models() / "nanodet-g-416"


def spec(**constants: tuple[float, ...]) -> ModelSpec:
    shipped = load_model_spec(SHIPPED)
    size = shipped.input.model_copy(update={"width": 640, "height": 480, "constants": constants})
    return shipped.model_copy(update={"input": size})


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "expected"),
    [
        ("orig_target_sizes", (None, 2), "int64", [[640, 480]] * 3),
        ("orig_target_sizes", (1, 2), "int64", [[640, 480]]),
        ("orig_target_sizes", ("N", "two"), "float32", [[640, 480]] * 3),
        ("orig_target_sizes", (2,), "float32", [640, 480]),
        ("im_shape", (None, 2), "float16", [[480, 640]] * 3),
        ("scale_factor", (-1, 2), "float32", [[1, 1]] * 3),
        ("threshold", (), "float32", 0.25),
        ("threshold", (1,), "float32", [0.25]),
        ("threshold", (None, 1), "float32", [[0.25]] * 3),
    ],
)
def test_constant_input_has_the_shape_of_the_file(
    name: str, shape: tuple[int | str | None, ...], dtype: str, expected: Any
) -> None:
    value = constant_input(spec(threshold=(0.25,)), name, shape, dtype, 3)
    assert value.dtype == dtype
    assert value.flags.c_contiguous
    np.testing.assert_array_equal(value, expected)
    assert value.shape == np.shape(expected)


def test_configured_values_replace_the_known_ones() -> None:
    value = constant_input(spec(im_shape=(96.0, 128.0)), "im_shape", (1, 2), "float32", 1)
    assert value.tolist() == [[96, 128]]


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [
        ("threshold", (1,), "unknown-input"),
        ("orig_target_sizes", (1, 3), "constant-shape"),
        ("scale_factor", (1, 4), "constant-shape"),
    ],
)
def test_constant_input_that_does_not_fit_is_refused(name: str, shape: tuple[int, ...], code: str) -> None:
    with pytest.raises(ModelError) as caught:
        constant_input(spec(), name, shape, "float32", 1)
    assert caught.value.code == code
    assert name in caught.value.hint


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((1, 3, 64, 64), False),
        ((1, 64, 64, 3), True),
        (("N", "H", "W", 3), True),
        (("N", 3, "H", "W"), False),
        (("N", "C", "H", "W"), False),
        ((1, 3, 64, 3), False),
        ((-1, -1, -1, 3), True),
    ],
)
def test_layout_of_the_frame_follows_the_shape(shape: tuple[int | str, ...], last: bool) -> None:
    assert is_channels_last(shape) == last


# ------------------------------------------------------------------------------------------------ shipped model


def clip() -> Frame:
    capture = cv2.VideoCapture(str(ROOT / "configs" / "vtest.mp4"))
    pixels: NDArray[np.uint8] = np.asarray(capture.read()[1], np.uint8)
    capture.release()
    return Frame.wrap(FrameMeta("clip", 0, 0, 0, 0, 768, 576), pixels, "bgr")


def detected(path: Path, model: ModelSpec) -> Detections:
    with closing(OnnxRuntimeDetector(path, model, score=0.4, batches_in_flight=1, threads=2)) as detector:
        detector.submit(0, [clip()])
        (found,) = detector.wait(0, 60)
    return found


def normalizing(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Return the model with a uint8 input (batch, height, width, 3) that the model normalizes itself."""
    (old,) = model.graph.input
    name = old.name
    old.CopyFrom(
        helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", spec.input.height, spec.input.width, 3])
    )
    nodes = [
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["real", "the_mean"], ["centered"]),
        helper.make_node("Div", ["centered", "the_std"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], [name], perm=[0, 3, 1, 2]),
    ]
    for index, node in enumerate(nodes):
        model.graph.node.insert(index, node)
    for key, values in (("the_mean", spec.input.mean), ("the_std", spec.input.std)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.float32), key))
    return model


@pytest.mark.parametrize("form", ["fp16", "uint8, channels last"])
def test_shipped_model_finds_the_same_objects_with_a_different_input(form: str, tmp_path: Path) -> None:
    shipped, path = load_model_spec(SHIPPED), tmp_path / "model.onnx"
    file = SHIPPED / shipped.file
    wanted, model = detected(file, shipped), shipped
    if form == "fp16":
        path.write_bytes(rewrite_onnx(file.read_bytes(), "fp16", keep_inputs=False, keep_outputs=False))
    else:
        onnx.save_model(normalizing(onnx.load(str(file)), shipped), str(path))
        plain = shipped.input.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
        model = shipped.model_copy(update={"input": plain})
    found = detected(path, model)
    assert len(found) == len(wanted) >= 5
    limit = {"fp16": (2.0, 0.02), "uint8, channels last": (0.05, 1e-3)}[form]
    for box, class_id, score in zip(found.boxes_xyxy, found.class_ids, found.scores, strict=True):
        nearest = int(np.abs(wanted.boxes_xyxy - box).max(axis=1).argmin())
        np.testing.assert_allclose(box, wanted.boxes_xyxy[nearest], atol=limit[0])
        assert class_id == wanted.class_ids[nearest]
        assert abs(score - wanted.scores[nearest]) < limit[1]
