"""Tests of the output layouts of public exporters. ONNX Runtime runs a model with known objects for each layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.detector_outputs import (
    CAR,
    EXPORTS,
    FOUND,
    HEIGHT,
    NAMES,
    ROWS,
    WIDTH,
    WITHOUT_BATCH,
    Export,
    as_type,
    centers,
    corners,
    scores,
)
from tests.log_records import log_args
from tests.tiny_models import save_typed_model
from vision.config import ModelSpec
from vision.detect.classes import COCO80, COCO91, class_ids, class_names
from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
from vision.detect.onnxruntime.network import OnnxNetwork
from vision.errors import ModelError
from vision.types import Detections, Frame, FrameMeta


def spec_of(export: Export, **sections: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "tiny",
            "file": "tiny.onnx",
            "input": {"width": WIDTH, "height": HEIGHT},
            "head": export.head,
            "classes": export.names,
            "licence": "CC0-1.0",
            **sections,
        }
    )


def frame(width_px: int = 2 * WIDTH, height_px: int = 2 * HEIGHT) -> Frame:
    pixels = np.full((height_px, width_px, 3), 90, np.uint8)
    return Frame.wrap(FrameMeta("cam", 0, 0, 0, 0, width_px, height_px), pixels, "bgr")


def opened(
    path: Path,
    export: Export,
    outputs: Mapping[str, NDArray[Any]] | None = None,
    *,
    spec: ModelSpec | None = None,
    score: float = 0.3,
    wanted: Sequence[str] | None = None,
    **model: Any,
) -> OnnxRuntimeDetector:
    spec = spec or spec_of(export)
    save_typed_model(path, outputs or as_type(export, np.float32), sides=(HEIGHT, WIDTH), **model)
    ids = class_ids(class_names(spec), wanted, spec.name)
    return OnnxRuntimeDetector(path, spec, score=score, classes=ids, batches_in_flight=1, threads=1)


def detected(detector: OnnxRuntimeDetector, *frames: Frame) -> list[Detections]:
    detector.submit(0, frames or (frame(),))
    return detector.wait(0, 60)


def assert_found(found: Detections, export: Export, *, scale: float = 2.0, rtol: float = 1e-5) -> None:
    boxes, ids, values = zip(*export.found, strict=True)
    assert found.class_ids.tolist() == list(ids)
    np.testing.assert_allclose(found.scores, values, rtol=rtol)
    np.testing.assert_allclose(found.boxes_xyxy, np.array(boxes) * scale, atol=2 * export.tolerance_px, rtol=rtol)


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("batch", ["batch", 2])
def test_export_finds_the_known_objects(name: str, batch: int | str, tmp_path: Path) -> None:
    export = EXPORTS[name]
    with closing(opened(tmp_path / "tiny.onnx", export, batch=batch)) as detector:
        for found in detected(detector, *[frame()] * detector.spec.max_batch):
            assert_found(found, export)


@pytest.mark.parametrize("name", EXPORTS)
def test_export_in_half_precision_finds_the_same_objects(name: str, tmp_path: Path) -> None:
    export = EXPORTS[name]
    outputs = as_type(export, np.float16)
    with closing(opened(tmp_path / "tiny.onnx", export, outputs, dtype=TensorProto.FLOAT16)) as detector:
        (found,) = detected(detector)
    boxes, ids, _ = zip(*export.found, strict=True)
    assert found.class_ids.tolist() == list(ids)
    np.testing.assert_allclose(found.boxes_xyxy, 2 * np.array(boxes), atol=0.6)


@pytest.mark.parametrize("name", ["nanodet-m, six outputs", "picodet, pairs", "yunet", "rt-detr, official", "pp-yoloe"])
def test_outputs_can_be_in_any_order(name: str, tmp_path: Path) -> None:
    export = EXPORTS[name]
    outputs = as_type(export, np.float32)
    random = np.random.default_rng(5)
    for _ in range(5):
        names = list(outputs)
        if not name.startswith("picodet"):  # the outputs of picodet have no meaningful names, so the scores come first
            random.shuffle(names)
        shuffled = {each: outputs[each] for each in names}
        with closing(opened(tmp_path / "tiny.onnx", export, shuffled)) as detector:
            assert_found(detected(detector)[0], export)


def save_without_batch(path: Path, name: str, *, free: bool) -> dict[str, tuple[int, ...]]:
    """Save a network for one frame. Its outputs have no batch axis. Return their shapes, with -1 for a free axis."""
    outputs = as_type(WITHOUT_BATCH[name], np.float32)
    save_typed_model(path, outputs, sides=(HEIGHT, WIDTH), batch=1)
    model = onnx.load(str(path))
    shapes = {}
    for old in model.graph.output:
        value = outputs[old.name]
        new, shape = f"{old.name}_flat", value.shape
        target = np.array([-1, *shape[1:]])
        model.graph.node.append(helper.make_node("Reshape", [old.name, f"{new}_shape"], [new]))
        model.graph.initializer.append(numpy_helper.from_array(target, f"{new}_shape"))
        open_axis = free and shape != (1,)
        axes = ["objects" if open_axis else shape[0], *shape[1:]]
        old.CopyFrom(helper.make_tensor_value_info(new, old.type.tensor_type.elem_type, axes))
        shapes[new] = (-1 if open_axis else shape[0], *shape[1:])
    onnx.save_model(model, str(path))
    return shapes


@pytest.mark.parametrize("name", WITHOUT_BATCH)
@pytest.mark.parametrize("free", [False, True])
def test_outputs_without_a_batch_axis_are_of_the_only_frame(name: str, free: bool, tmp_path: Path) -> None:
    path, export = tmp_path / "tiny.onnx", WITHOUT_BATCH[name]
    save_without_batch(path, name, free=free)
    with closing(OnnxRuntimeDetector(path, spec_of(export), score=0.3, batches_in_flight=1, threads=1)) as detector:
        for _ in range(2):
            assert_found(detected(detector)[0], export)


# ------------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_input_format_comes_from_the_file(dtype: int, channels_last: bool, batch: int | str, tmp_path: Path) -> None:
    export = EXPORTS["yolov8"]
    path = tmp_path / "tiny.onnx"
    with closing(opened(path, export, dtype=dtype, channels_last=channels_last, batch=batch)) as detector:
        for found in detected(detector, *[frame()] * detector.spec.max_batch):
            assert_found(found, export)


CONSTANTS: Mapping[str, tuple[tuple[int, ...], str]] = {
    "orig_target_sizes": ((WIDTH, HEIGHT), "rt-detr, official"),
    "im_shape": ((HEIGHT, WIDTH), "yolo-nas, flat"),
    "scale_factor": ((1, 1), "yolo-nas, flat"),
    "frame_size": ((WIDTH, HEIGHT), "rt-detr, official"),
}


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT16])
@pytest.mark.parametrize("shape", [("batch", 2), (1, 2), ("batch", "values")])
def test_constant_input_is_filled(name: str, kind: int, shape: tuple[int | str, ...], tmp_path: Path) -> None:
    """The network multiplies its boxes by the values, as the post-processors of exporters do."""
    values, export = CONSTANTS[name][0], EXPORTS[CONSTANTS[name][1]]
    outputs = as_type(export, np.float32)
    key = "boxes" if "boxes" in outputs else "pred_bboxes"
    outputs = {("boxes" if each == key else each): value for each, value in outputs.items()}
    outputs["boxes"] = (outputs["boxes"] / [*values, *values]).astype(np.float32)
    sizes = {"width": WIDTH, "height": HEIGHT}
    spec = spec_of(export, input={**sizes, "constants": {"frame_size": values}} if name == "frame_size" else sizes)
    model = opened(tmp_path / "tiny.onnx", export, outputs, spec=spec, constants={name: (kind, shape)})
    with closing(model) as detector:
        assert_found(detected(detector)[0], export)


def test_several_constant_inputs_before_the_frame(tmp_path: Path) -> None:
    export = EXPORTS["yolo-nas, flat"]
    outputs = as_type(export, np.float32)
    constants = {"im_shape": (TensorProto.FLOAT, (1, 2)), "scale_factor": (TensorProto.FLOAT, ("batch", 2))}
    with closing(opened(tmp_path / "tiny.onnx", export, outputs, constants=constants)) as detector:
        assert_found(detected(detector)[0], export)


def test_uint8_input_receives_the_levels(tmp_path: Path) -> None:
    """A network that normalizes its own input must receive pixels that are not normalized."""
    export = EXPORTS["yolov8"]
    spec = spec_of(export, input={"width": WIDTH, "height": HEIGHT, "scale": 1 / 255})
    with pytest.raises(ModelError) as caught:
        opened(tmp_path / "tiny.onnx", export, spec=spec, dtype=TensorProto.UINT8)
    assert caught.value.code == "uint8-normalized"


# ------------------------------------------------------------------------------------------------ classes


def test_coco91_has_the_category_ids_of_coco() -> None:
    assert len(COCO91) == len(set(COCO91)) == 91
    assert [COCO91[index] for index in (0, 1, 3, 13, 44, 46, 90)] == [
        "background", "person", "car", "stop sign", "bottle", "wine glass", "toothbrush",
    ]  # fmt: skip
    assert tuple(name for name in COCO91 if name in COCO80) == COCO80


def test_unnamed_classes_are_counted_and_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export = EXPORTS["ids without a name"]
    with closing(opened(tmp_path / "tiny.onnx", export)) as detector:
        assert detector.counters() == {}
        for number in range(1, 4):
            assert_found(detected(detector)[0], export)
            assert detector.counters() == {"detector.unnamed_classes": number * export.unnamed}
    assert log_args(caplog, "vision.detect.classes") == [("tiny", export.unnamed, 3, 2)]


def test_unwanted_and_weak_objects_are_not_unnamed(tmp_path: Path) -> None:
    export = EXPORTS["ids without a name"]
    with closing(opened(tmp_path / "tiny.onnx", export, wanted=["truck"], score=0.7)) as detector:
        assert len(detected(detector)[0]) == 0
        assert detector.counters() == {}


@pytest.mark.parametrize("name", ["rf-detr, coco", "yolov8"])
def test_number_of_class_names_must_fit(name: str, tmp_path: Path) -> None:
    export = EXPORTS[name]
    with pytest.raises(ModelError) as caught:
        opened(tmp_path / "tiny.onnx", export, spec=spec_of(export, classes="coco80"))
    assert caught.value.code == "head-mismatch"


MANY_NAMED = ("yolov5", "yolov8", "yolox, raw", "yolo-nas, flat", "nanodet-plus", "picodet, pairs")


@pytest.mark.parametrize("name", MANY_NAMED)
@pytest.mark.parametrize("score", [0.05, 0.45])
def test_vehicle_that_is_a_car_and_a_truck_is_one_object(name: str, score: float, tmp_path: Path) -> None:
    """One box has scores for both classes, and a neighboring box has the same scores in exchanged order."""
    with closing(opened(tmp_path / "tiny.onnx", EXPORTS[name], score=score)) as detector:
        (found,) = detected(detector)
    vehicles = [each for each in found.class_ids.tolist() if each != 0]
    assert vehicles == [CAR]


@pytest.mark.parametrize("name", MANY_NAMED)
def test_class_that_is_not_reported_hides_no_object(name: str, tmp_path: Path) -> None:
    with closing(opened(tmp_path / "tiny.onnx", EXPORTS[name], wanted=["truck"])) as detector:
        (found,) = detected(detector)
    assert found.class_ids.tolist() == [2]
    assert found.scores.tolist() == pytest.approx([0.625])


@pytest.mark.parametrize(
    ("nms", "count"),
    [
        ({}, 2),
        ({"iou_across_classes": 0.99}, 3),
        ({"iou_across_classes": 1}, 3),
        ({"class_aware": False}, 2),
        ({"class_aware": False, "iou_threshold": 0.99}, 3),
    ],
)
def test_overlap_across_classes_is_configurable(nms: Mapping[str, Any], count: int, tmp_path: Path) -> None:
    export = EXPORTS["yolov8"]
    with closing(opened(tmp_path / "tiny.onnx", export, spec=spec_of(export, nms=nms))) as detector:
        assert len(detected(detector)[0]) == count


def test_rider_and_bicycle_are_two_objects(tmp_path: Path) -> None:
    """The rider and the bicycle overlap less than two boxes of the same object."""
    boxes, values = corners(20), scores(20)
    boxes[3], values[3] = (16, 8, 56, 88), (0.75, 0.1, 0.1)
    boxes[4], values[4] = (12, 24, 60, 92), (0.1, 0.7, 0.1)
    export = Export({"kind": "corners"}, {"boxes": boxes, "scores": values})
    with closing(opened(tmp_path / "tiny.onnx", export)) as detector:
        assert sorted(detected(detector)[0].class_ids.tolist()) == [0, 0, 1]


@pytest.mark.parametrize(
    ("shift", "count"), [(0, 1), (4, 1), (8, 1), (12, 2), (24, 2)]
)  # IoU of two boxes 64 wide: 1, 0.88, 0.78, 0.68, 0.45
@pytest.mark.parametrize("name", ["corners", "yolov8"])
def test_boxes_of_different_classes_are_one_object_if_they_overlap_nearly_completely(
    name: str, shift: int, count: int, tmp_path: Path
) -> None:
    boxes, values = np.tile([0.0, 0.0, 4.0, 4.0], (20, 1)), np.full((20, 3), 0.01)
    boxes[2], values[2] = (16, 24, 80, 72), (0.0, 0.75, 0.5)
    boxes[9], values[9] = (16 + shift, 24, 80 + shift, 72), (0.0, 0.5, 0.7)
    outputs = {"boxes": boxes, "scores": values}
    if name == "yolov8":
        outputs = {"output0": np.concatenate([centers(boxes), values], axis=1).T}
    with closing(opened(tmp_path / "tiny.onnx", Export({"kind": name}, outputs))) as detector:
        (found,) = detected(detector)
    assert found.class_ids.tolist() == [1, 2][:count]


@pytest.mark.parametrize("rows", [100, 300, 1000])
def test_suppressed_export_keeps_overlapping_objects(rows: int, tmp_path: Path) -> None:
    """The program does not apply NMS to an export that already includes NMS."""
    output = np.zeros((rows, 6))
    output[:2] = [(*ROWS[0][0], 0.9, 1), (*ROWS[1][0], 0.8, 1)]
    export = Export({"kind": "end-to-end"}, {"output": output})
    with closing(opened(tmp_path / "tiny.onnx", export)) as detector:
        assert len(detected(detector)[0]) == 2


@pytest.mark.parametrize("rows", [16 * 12 + 8 * 6 + 4 * 3, 3 * (16 * 12 + 8 * 6 + 4 * 3), 1001, 8400])
def test_export_that_stops_before_nms_is_suppressed(rows: int, tmp_path: Path) -> None:
    output = np.zeros((rows, 6))
    output[:3] = [(*ROWS[0][0], 0.9, 1), (*ROWS[1][0], 0.8, 1), (*ROWS[1][0], 0.7, 2)]
    export = Export({"kind": "end-to-end"}, {"output": output})
    with closing(opened(tmp_path / "tiny.onnx", export)) as detector:
        (found,) = detected(detector)
    assert found.class_ids.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.9])


def test_every_scene_has_the_objects_of_the_default() -> None:
    """An entry of the table of exports would test nothing if its scene contained no objects."""
    assert len(FOUND) == 2
    assert all(export.found for export in EXPORTS.values())
    assert NAMES[CAR] == "car"


@pytest.mark.parametrize("name", ["background", "__background__", "BACKGROUND"])
def test_background_is_not_reported(name: str, tmp_path: Path) -> None:
    export = EXPORTS["ssd with background"]
    spec = spec_of(export, classes=[name, *NAMES])
    with closing(opened(tmp_path / "tiny.onnx", export, spec=spec)) as detector:
        assert_found(detected(detector)[0], export)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
def test_network_with_any_input_format_is_measured(dtype: int, tmp_path: Path) -> None:
    export, path = EXPORTS["rt-detr, official"], tmp_path / "tiny.onnx"
    constants = {"orig_target_sizes": (TensorProto.INT64, ("batch", 2))}
    outputs = as_type(export, np.float32)
    save_typed_model(path, outputs, sides=(HEIGHT, WIDTH), dtype=dtype, channels_last=True, constants=constants)
    network = OnnxNetwork(path, spec_of(export), 3, threads=1)
    network.run()
    assert network.input_shapes == {"images": (3, HEIGHT, WIDTH, 3)}
