"""Tests of keypoints, oriented boxes, and masks: each output layout in ONNX Runtime, with frames of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.shape_outputs import (
    BOXES,
    CELL_PX,
    CLASS_IDS,
    FRAMES,
    HEIGHT,
    NAMES,
    ROTATED,
    SCORES,
    SHAPED,
    WIDTH,
    Shaped,
    cells_of,
    to_source,
)
from tests.tiny_models import save_typed_model
from vision.config import ModelSpec
from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
from vision.detect.reference.extras import COCO_KEYPOINTS, FACE_KEYPOINTS
from vision.detect.reference.heads import make_head
from vision.detect.reference.layout import Shape
from vision.detect.reference.postprocess import Overlaps, kept_in_order
from vision.detect.reference.rotated import Gaussians, distance_limit
from vision.detect.reference.shapes import MaskCoefficients, RotatedBoxes, mask_crops
from vision.errors import ModelError
from vision.types import Detections, Frame, FrameMeta, Shapes, rotated_corners


def spec_of(head: Mapping[str, Any], classes: tuple[str, ...] = NAMES) -> ModelSpec:
    content = {"name": "tiny", "file": "tiny.onnx", "input": {"width": WIDTH, "height": HEIGHT}, "head": head}
    return ModelSpec.model_validate({**content, "classes": classes, "licence": "CC0-1.0"})


def frame(size: tuple[int, int]) -> Frame:
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    return Frame.wrap(FrameMeta("cam", 0, 0, 0, 0, *size), pixels, "bgr")


def assert_found(found: Detections, shaped: Shaped, size: tuple[int, int], atol: float = 1e-4) -> None:
    """Assert that the detector found the two objects of a layout in a frame, with the correct shapes."""
    assert found.class_ids.tolist() == CLASS_IDS
    np.testing.assert_allclose(found.scores, SCORES, rtol=1e-3)
    shapes = found.shapes
    assert shapes is not None
    if shaped.rotated is None:
        boxes = to_source(BOXES.reshape(2, 2, 2), size).reshape(2, 4)
        np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=atol)
    for value, wanted in ((shapes.keypoints, shaped.keypoints), (shapes.rotated_boxes, shaped.rotated)):
        assert (value is None) == (wanted is None)
    scale = min(WIDTH / size[0], HEIGHT / size[1])
    if shaped.keypoints is not None and shapes.keypoints is not None:
        np.testing.assert_allclose(shapes.keypoints[..., :2], to_source(shaped.keypoints[..., :2], size), atol=atol)
        np.testing.assert_allclose(shapes.keypoints[..., 2], shaped.keypoints[..., 2], atol=1e-4)
    if shaped.rotated is not None and shapes.rotated_boxes is not None:
        wanted = shaped.rotated.copy()
        wanted[:, :2], wanted[:, 2:4] = to_source(wanted[:, :2], size), wanted[:, 2:4] / scale
        wanted[:, 4] += np.pi * np.rint((shapes.rotated_boxes[:, 4] - wanted[:, 4]) / np.pi)  # 0 and pi are equal
        np.testing.assert_allclose(shapes.rotated_boxes, wanted, atol=atol)
        corners = rotated_corners(shapes.rotated_boxes)
        around = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        np.testing.assert_allclose(found.boxes_xyxy, around, atol=10 * atol)
    assert_masks(shapes, shaped, size)


def assert_masks(shapes: Shapes, shaped: Shaped, size: tuple[int, int]) -> None:
    assert (shapes.masks is None) == (shaped.masks is None)
    for mask, wanted, box in zip(shapes.masks or (), shaped.masks or (), BOXES, strict=False):
        rows, columns = np.nonzero(cells_of(box))
        crop = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        np.testing.assert_array_equal(mask.cells, wanted[crop])
        corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) * CELL_PX
        np.testing.assert_allclose(mask.region_xyxy, to_source(corners, size).ravel(), atol=1e-6)


@pytest.mark.parametrize("name", SHAPED)
def test_layout_finds_the_known_shapes(name: str, tmp_path: Path) -> None:
    shaped = SHAPED[name]
    spec = spec_of(shaped.head)
    save_typed_model(tmp_path / spec.file, shaped.outputs, sides=(HEIGHT, WIDTH))
    with closing(OnnxRuntimeDetector(tmp_path / spec.file, spec, score=0.3, batches_in_flight=1, threads=1)) as model:
        for size in FRAMES.values():
            model.submit(0, [frame(size)])
            (found,) = model.wait(0, 60)
            assert_found(found, shaped, size)


def bound(head: Mapping[str, Any], shapes: Mapping[str, Shape], classes: tuple[str, ...] = NAMES) -> Any:
    return make_head(spec_of(head, classes), len(classes), 0.3).bind(shapes)


# ------------------------------------------------------------------------------------------------ heads


def yunet_shapes(**values: int) -> dict[str, Shape]:
    cells = {8: 192, 16: 48, 32: 12}
    return {f"{name}_{stride}": (1, cells[stride], count) for name, count in values.items() for stride in cells}


@pytest.mark.parametrize(
    ("head", "shapes"),
    [
        ({"kind": "yolov8", "task": "segment"}, {"output0": (1, 38, 84)}),  # no prototypes
        ({"kind": "yolov8", "task": "segment"}, {"output0": (1, 6, 84), "output1": (1, 32, 24, 32)}),
        ({"kind": "yolov8", "task": "pose"}, {"output0": (1, 6 + 4, 84)}),  # not a multiple of 3
        ({"kind": "yolov8", "task": "pose", "keypoints": ["a", "b"]}, {"output0": (1, 6 + 9, 84)}),
        ({"kind": "yolov8", "task": "pose"}, {"output0": (1, 6, 84)}),
        ({"kind": "yolov8", "task": "obb"}, {"output0": (1, 6, 84)}),
        ({"kind": "end-to-end", "task": "obb"}, {"output0": (1, 300, 6)}),
        ({"kind": "end-to-end", "task": "segment"}, {"output0": (1, 300, 38)}),
        ({"kind": "end-to-end", "task": "pose"}, {"output0": (1, 300, 7)}),
        ({"kind": "end-to-end"}, {"output0": (1, 300, 57)}),
        ({"kind": "yunet", "task": "pose"}, yunet_shapes(cls=2, obj=1, bbox=4)),  # no landmarks
        ({"kind": "yunet", "task": "pose", "keypoints": ["a", "b"]}, yunet_shapes(cls=2, obj=1, bbox=4, kps=10)),
    ],
)
def test_outputs_that_do_not_fit_the_task_are_refused(head: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
    with pytest.raises(ModelError) as refused:
        bound(head, shapes)
    assert refused.value.code == "head-mismatch"


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "yolov5", "task": "pose"},
        {"kind": "yolox", "task": "segment"},
        {"kind": "rt-detr", "task": "obb"},
        {"kind": "yolov8", "keypoints": ["a"]},
        {"kind": "yolov8", "task": "obb", "keypoints": ["a"]},
    ],
)
def test_task_that_the_head_lacks_is_refused(head: Mapping[str, Any]) -> None:
    with pytest.raises(ModelError) as refused:
        bound(head, {"output0": (1, 7, 84)})
    assert refused.value.code == "head-task"


@pytest.mark.parametrize(
    ("kind", "classes", "shapes", "words"),
    [
        ("yolov8", 80, {"output0": (1, 116, 8400), "output1": (1, 32, 160, 160)}, ("yolov8", "task: segment")),
        ("yolov5", 80, {"output0": (1, 25200, 117), "output1": (1, 32, 160, 160)}, ("yolov5", "task: segment")),
        ("end-to-end", 80, {"output0": (1, 300, 38), "output1": (1, 32, 160, 160)}, ("end-to-end", "task: segment")),
        ("yolov8", 1, {"output0": (1, 56, 8400)}, ("yolov8", "task: pose")),
        ("end-to-end", 15, {"output0": (1, 300, 7)}, ("end-to-end", "task: obb")),
        ("end-to-end", 1, {"output0": (1, 300, 57)}, ("end-to-end", "task: pose")),
    ],
)
def test_hint_names_the_task_that_fits(
    kind: str, classes: int, shapes: Mapping[str, Shape], words: tuple[str, str]
) -> None:
    names = tuple(f"class {index}" for index in range(classes))
    with pytest.raises(ModelError) as refused:
        bound({"kind": kind}, shapes, names)
    assert all(f"`{word}`" in refused.value.hint for word in words)
    bound({"kind": kind, "task": words[1].removeprefix("task: ")}, shapes, names)  # the named task is correct


def test_hint_for_one_more_value_mentions_oriented_boxes() -> None:
    names = tuple(f"class {index}" for index in range(15))
    with pytest.raises(ModelError) as refused:
        bound({"kind": "yolov8"}, {"output0": (1, 20, 8400)}, names)
    assert "`task: obb`" in refused.value.hint
    assert "16 classes" in refused.value.hint


@pytest.mark.parametrize(
    ("head", "classes", "shapes", "word"),
    [
        ({"kind": "yolov8", "task": "pose"}, 80, {"output0": (1, 56, 8400)}, "1 classes"),
        ({"kind": "yolov8", "task": "pose", "keypoints": ["a", "b"]}, 1, {"output0": (1, 56, 8400)}, "`keypoints`"),
        ({"kind": "yolov8", "task": "obb"}, 80, {"output0": (1, 20, 21504)}, "15 classes"),
        ({"kind": "yolov8", "task": "segment"}, 3, {"output0": (1, 116, 8400), "p": (1, 32, 160, 160)}, "80 classes"),
    ],
)
def test_hint_for_another_number_of_classes_states_it(
    head: Mapping[str, Any], classes: int, shapes: Mapping[str, Shape], word: str
) -> None:
    with pytest.raises(ModelError) as refused:
        bound(head, shapes, tuple(f"class {index}" for index in range(classes)))
    assert word in refused.value.hint


def test_open_axes_are_accepted() -> None:
    pose = bound({"kind": "yolov8", "task": "pose"}, {"output0": (None, None, None)})
    assert pose.layout.extra_count == 3 * len(COCO_KEYPOINTS)
    masks = bound({"kind": "yolov8", "task": "segment"}, {"output0": (None, None, None), "p": (None, 32, None, None)})
    assert masks.outputs == ("output0", "p")


def test_seventeen_keypoints_have_the_names_of_coco() -> None:
    shaped = SHAPED["pose, yolov8"]
    decoder = bound(shaped.head, {name: (1, *value.shape) for name, value in shaped.outputs.items()})
    shapes = decoder.decode(list(shaped.outputs.values())).shapes
    assert shapes.names == COCO_KEYPOINTS
    five = SHAPED["pose, yolov8, five named keypoints"]
    decoder = bound(five.head, {name: (1, *value.shape) for name, value in five.outputs.items()})
    assert decoder.decode(list(five.outputs.values())).shapes.names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("task", ["detect", "pose"])
def test_landmarks_of_faces_are_named(task: str) -> None:
    decoder = bound({"kind": "yunet", "task": task}, yunet_shapes(cls=2, obj=1, bbox=4, kps=10))
    assert decoder.shapes(np.zeros((0, 10), np.float32)).names == FACE_KEYPOINTS
    shaped = SHAPED["faces, yunet, named keypoints"]
    decoder = bound(shaped.head, yunet_shapes(cls=2, obj=1, bbox=4, kps=10))
    assert decoder.shapes(np.zeros((0, 10), np.float32)).names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("missing", [(8, 16, 32), (16,)])
def test_faces_without_landmarks_are_boxes(missing: tuple[int, ...]) -> None:
    shapes = yunet_shapes(cls=2, obj=1, bbox=4, kps=10)
    decoder = bound(
        {"kind": "yunet"}, {name: shapes[name] for name in shapes if name not in {f"kps_{s}" for s in missing}}
    )
    assert not any(name.startswith("kps") for name in decoder.outputs)
    outputs = SHAPED["faces, yunet"].outputs
    found = decoder.decode([outputs[name].astype(np.float32) for name in decoder.outputs])
    assert found.shapes is None
    np.testing.assert_allclose(found.boxes_xyxy[:1], BOXES[:1], atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_face_whose_landmark_is_not_finite_is_dropped(bad: float) -> None:
    shaped = SHAPED["faces, yunet"]
    outputs = {key: value.copy() for key, value in shaped.outputs.items()}
    row = int(outputs["cls_32"].max(axis=1).argmax())
    outputs["kps_32"][row, 7] = bad  # 3e38 cells are too many pixels for float32
    decoder = bound(shaped.head, {key: (1, *value.shape) for key, value in outputs.items()})
    assert SCORES[0] not in decoder.decode([outputs[key] for key in decoder.outputs]).scores.tolist()
    decoder = bound(shaped.head, {key: (1, *value.shape) for key, value in shaped.outputs.items()})
    assert SCORES[0] in decoder.decode([shaped.outputs[key] for key in decoder.outputs]).scores.tolist()


@pytest.mark.parametrize("name", ["pose, yolov8", "obb, yolov8", "segment, yolov8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_object_whose_shape_is_not_finite_is_dropped(name: str, bad: float) -> None:
    shaped = SHAPED[name]
    outputs = {key: value.copy() for key, value in shaped.outputs.items()}
    outputs["output0"][-1, 7] = bad
    decoder = bound(shaped.head, {key: (1, *value.shape) for key, value in outputs.items()})
    found = decoder.decode([outputs[key] for key in decoder.outputs])
    assert found.scores.tolist() == [0.75, 0.5]


@pytest.mark.parametrize("kind", ["pose, yolov8", "obb, end-to-end", "segment, yolov5"])
def test_frame_without_objects_has_empty_shapes(kind: str, tmp_path: Path) -> None:
    shaped = SHAPED[kind]
    spec = spec_of(shaped.head)
    save_typed_model(tmp_path / spec.file, shaped.outputs, sides=(HEIGHT, WIDTH))
    with closing(OnnxRuntimeDetector(tmp_path / spec.file, spec, score=0.9, batches_in_flight=1, threads=1)) as model:
        model.submit(0, [frame((64, 48))])
        (found,) = model.wait(0, 60)
    assert len(found) == 0
    assert found.shapes is not None
    parts = (found.shapes.keypoints, found.shapes.rotated_boxes, found.shapes.masks)
    assert [len(part) for part in parts if part is not None] == [0]


def test_keypoints_outside_the_frame_are_moved_to_its_edge() -> None:
    shaped = SHAPED["pose, yolov8"]
    outputs = shaped.outputs["output0"].copy()
    outputs[6:8, 7] = (-50, 500)
    decoder = bound(shaped.head, {"output0": (1, *outputs.shape)})
    from vision.detect.reference.letterbox import Letterbox

    fit = Letterbox.fit(256, 96, WIDTH, HEIGHT, "center")
    shapes = decoder.decode([outputs]).shapes.to_source(fit, 256, 96)
    np.testing.assert_array_equal(shapes.keypoints[0, 0, :2], [0, 96])


# ------------------------------------------------------------------------------------------------ masks


def test_mask_covers_the_cells_that_its_box_touches() -> None:
    boxes = np.array(
        [[0, 0, 128, 96], [5, 5, 5.5, 5.5], [-40, -40, 3, 9], [126, 90, 400, 400], [8, 8, 16, 16]], np.float32
    )
    crops = mask_crops(boxes, (128, 96), (32, 24))
    assert crops.tolist() == [[0, 0, 32, 24], [1, 1, 2, 2], [0, 0, 1, 3], [31, 22, 32, 24], [2, 2, 4, 4]]


def test_masks_are_computed_only_for_survivors() -> None:
    values = np.zeros((3, 4), np.float32)
    masks = MaskCoefficients(values, np.zeros((3, 4), np.float32), np.zeros((4, 24, 32), np.float32), (128, 96))
    assert len(masks.take(np.array([2])).values) == 1


# ------------------------------------------------------------------------------------------------ rotated boxes


def probiou_by_covariance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the ProbIoU of oriented boxes, computed in float64 from covariance matrices as in the ProbIoU paper."""

    def matrix(box: NDArray[np.float64]) -> NDArray[np.float64]:
        turn = np.array([[np.cos(box[4]), -np.sin(box[4])], [np.sin(box[4]), np.cos(box[4])]])
        spread: NDArray[np.float64] = turn @ np.diag(box[2:4] ** 2 / 12) @ turn.T
        return spread

    first, second, apart = matrix(a), matrix(b), b[:2] - a[:2]
    mean = (first + second) / 2
    root = np.sqrt(np.linalg.det(first) * np.linalg.det(second))
    distance = apart @ np.linalg.inv(mean) @ apart / 8 + np.log(np.linalg.det(mean) / root) / 2
    return float(1 - np.sqrt(1 - np.exp(-max(distance, 0.0))))


SIDES = st.floats(2, 200)
BOX = st.tuples(st.floats(0, 300), st.floats(0, 300), SIDES, SIDES, st.floats(-2, 4))


@settings(max_examples=200, deadline=None)
@given(BOX, BOX)
def test_distance_equals_that_of_the_covariances(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    a, b = np.array([first, second])
    distance = Gaussians.of(np.array([a], np.float32)).distances(Gaussians.of(np.array([b], np.float32)))[0, 0]
    wanted = probiou_by_covariance(a, b)
    assert 1 - np.sqrt(1 - np.exp(-max(float(distance), 0.0))) == pytest.approx(wanted, abs=2e-3)
    for iou in (0.2, 0.5, 0.8):
        if abs(wanted - iou) > 0.01:
            assert (distance < distance_limit(iou)) == (wanted > iou)


@pytest.mark.parametrize(
    ("boxes", "iou", "kept"),
    [
        ([(50, 50, 40, 10, 0.0), (50, 50, 40, 10, 0.1)], 0.5, [0]),
        ([(50, 50, 40, 4, 0.0), (50, 50, 40, 4, np.pi / 2)], 0.5, [0, 1]),  # a cross
        ([(50, 50, 40, 10, 0.0), (50, 50, 40, 10, np.pi)], 0.5, [0]),  # half a turn
        ([(50, 50, 40, 10, 0.0), (50, 50, 10, 40, np.pi / 2)], 0.9, [0]),  # the same box, with exchanged sides
        ([(50, 50, 60, 6, 0.7), (58, 42, 60, 6, 0.7)], 0.5, [0, 1]),  # side by side, upright boxes overlap
        ([(50, 50, 40, 10, 0.0), (50, 50, 40, 0, 0.0)], 0.0, [0, 1]),  # without area
        ([(50, 50, 40, 10, 0.0), (50, 50, 40, 10, 0.0)], 1.0, [0, 1]),
        ([(50, 50, 4, 4, 0.0), (90, 90, 4, 4, 0.0)], 0.0, [0, 1]),  # far apart
    ],
)
def test_rotated_boxes_are_suppressed_by_their_rotated_overlap(
    boxes: list[tuple[float, ...]], iou: float, kept: list[int]
) -> None:
    rotated = RotatedBoxes(np.array(boxes, np.float32))
    ids = np.zeros(len(boxes), np.int32)
    found = kept_in_order(rotated.enclosing(), ids, Overlaps(iou, iou), rotated)
    assert np.flatnonzero(found).tolist() == kept


def test_rotated_box_of_another_class_is_kept_up_to_its_own_threshold() -> None:
    rotated = RotatedBoxes(np.array([(50, 50, 40, 10, 0.0), (52, 50, 40, 10, 0.0)], np.float32))
    ids = np.array([0, 1], np.int32)
    for across, kept in ((0.99, [True, True]), (0.5, [True, False])):
        found = kept_in_order(rotated.enclosing(), ids, Overlaps(0.5, across), rotated)
        assert found.tolist() == kept


def test_enclosing_box_contains_the_corners_exactly() -> None:
    rotated = RotatedBoxes(ROTATED.astype(np.float32))
    corners = rotated_corners(rotated.values)
    around = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    np.testing.assert_allclose(rotated.enclosing(), around, atol=1e-4)
