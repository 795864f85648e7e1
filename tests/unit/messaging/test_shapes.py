"""Tests of masks, keypoints, and oriented boxes in messages."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from tests.messages.samples import CLASSES, HEADER, PUBLISHED_NS, found, result, tracked
from vision.messaging import codec, schema, shapes
from vision.types import Detections, Event, Mask, Shapes, Tracks

WIDTH, HEIGHT = 640, 480


def with_shapes(given: Shapes, objects: Detections | Tracks | None = None) -> schema.DetectionsMessage:
    return codec.detections(HEADER, result(replace(objects or found(2), shapes=given)), CLASSES, PUBLISHED_NS)


def objects_in(message: schema.DetectionsMessage) -> list[dict[str, Any]]:
    objects = json.loads(codec.encode(message))["objects"]
    assert isinstance(objects, list)
    return objects


def box_mask(x1: float, y1: float, x2: float, y2: float, *, cells: tuple[int, int] = (5, 4)) -> Mask:
    return Mask(np.ones(cells, np.bool_), (x1, y1, x2, y2))


def from_run_lengths(counts: list[int]) -> NDArray[np.bool_]:
    """Decode run lengths in the format of COCO."""
    assert sum(counts) == WIDTH * HEIGHT
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    decoded: NDArray[np.bool_] = flat.reshape(WIDTH, HEIGHT).T
    return decoded


@pytest.mark.parametrize("objects", [found(2), tracked(2)], ids=["detections", "tracks"])
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_keypoints_have_names_once_and_scores(objects: Detections | Tracks, encoding: schema.Encoding) -> None:
    points = np.array([[[1.26, 2, 0.91234], [3, 4, 0]], [[5, 6, 1], [7, 8, 0.5]]], np.float32)
    message = with_shapes(Shapes(keypoints=points, keypoint_names=("nose", "tail")), objects)
    assert message.keypoint_names == ["nose", "tail"]
    assert [each["keypoints"] for each in objects_in(message)] == [
        [[1.3, 2, 0.9123], [3, 4, 0]],
        [[5, 6, 1], [7, 8, 0.5]],
    ]
    read = codec.decode("detections/gate", codec.encode(message, encoding))
    assert codec.encode(read) == codec.encode(message)
    unnamed = with_shapes(Shapes(keypoints=points), objects)
    assert b"keypoint_names" not in codec.encode(unnamed)


def test_objects_without_shapes_have_no_further_fields() -> None:
    content = json.loads(codec.encode(codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS)))
    assert "keypoint_names" not in content
    for detected in content["objects"]:
        assert not {"mask", "keypoints", "angle_deg", "corners"} & set(detected)


def shapes_of(rows: int) -> dict[str, Shapes]:
    """Return each kind of shape for `rows` objects with different shapes."""
    points = np.linspace(0, 1, rows * 6, dtype=np.float32).reshape(rows, 2, 3)
    rotated = np.array([[100 + 10 * row, 50, 40, 20, 0.1 + row / 4] for row in range(rows)], np.float32)
    return {
        "keypoints": Shapes(keypoints=points, keypoint_names=("nose", "tail")),
        "unnamed keypoints": Shapes(keypoints=points),
        "oriented boxes": Shapes(rotated_boxes=rotated),
        "masks": Shapes(masks=tuple(box_mask(10 + 40 * row, 50, 40 + 40 * row, 90) for row in range(rows))),
    }


@pytest.mark.parametrize("form", ["polygon", "rle"])
@pytest.mark.parametrize("kind", shapes_of(1))
def test_event_has_the_shape_of_its_object(kind: str, form: schema.MaskFormat) -> None:
    seen = result(replace(tracked(3), shapes=shapes_of(3)[kind]))
    detections = codec.detections(HEADER, seen, CLASSES, PUBLISHED_NS, form)
    for detected in detections.objects:
        crossed = Event("line_crossed", "door", "gate", detected.track_id, 0)
        event = codec.event(HEADER, crossed, seen, masks=form)
        for field in ("box", "mask", "keypoints", "angle_deg", "corners"):
            assert getattr(event, field) == getattr(detected, field), field
        assert event.keypoint_names == detections.keypoint_names
        assert codec.decode("events/gate", codec.encode(event)) == event


@pytest.mark.parametrize("kind", shapes_of(1))
def test_event_about_no_object_of_the_frame_has_no_shape(kind: str) -> None:
    seen = result(replace(tracked(3), shapes=shapes_of(3)[kind]))
    for track_id in (None, 99):
        content = json.loads(codec.encode(codec.event(HEADER, Event("crowded", "queue", "gate", track_id, 0), seen)))
        assert not {"box", "mask", "keypoints", "keypoint_names", "angle_deg", "corners"} & set(content)


@pytest.mark.parametrize(
    ("box", "angle_deg", "corners"),
    [
        ((100, 50, 40, 20, 0.0), 0, [[80, 40], [120, 40], [120, 60], [80, 60]]),
        ((100, 50, 40, 20, np.pi / 2), 90, [[110, 30], [110, 70], [90, 70], [90, 30]]),
        ((100, 50, 40, 20, np.pi / 6), 30, [[87.7, 31.3], [122.3, 51.3], [112.3, 68.7], [77.7, 48.7]]),
        ((100, 50, 40, 20, np.pi - 1e-5), 0, [[120, 60], [80, 60], [80, 40], [120, 40]]),
        ((0, 0, 40, 20, 0.0), 0, [[-20, -10], [20, -10], [20, 10], [-20, 10]]),
    ],
)
def test_oriented_box_has_angle_and_corners(
    box: tuple[float, ...], angle_deg: float, corners: list[list[float]]
) -> None:
    (detected,) = objects_in(with_shapes(Shapes(rotated_boxes=np.array([box], np.float32)), found(1)))
    assert detected["angle_deg"] == angle_deg
    np.testing.assert_allclose(detected["corners"], corners, atol=0.11)


def test_polygon_follows_the_outline_of_a_mask() -> None:
    mask = box_mask(100, 50, 180, 150)
    (outline,) = shapes.polygons(mask, WIDTH, HEIGHT)
    low, high = np.min(outline, axis=0), np.max(outline, axis=0)
    np.testing.assert_allclose([*low, *high], mask.region_xyxy, atol=5)  # a quarter of a cell
    assert len(outline) <= 8


def test_polygons_describe_each_part() -> None:
    cells = np.zeros((6, 12), np.bool_)
    cells[:, :3] = cells[:, 9:] = True
    outlines = shapes.polygons(Mask(cells, (0, 0, 120, 60)), WIDTH, HEIGHT)
    spans = sorted((min(x for x, _ in outline), max(x for x, _ in outline)) for outline in outlines)
    np.testing.assert_allclose(spans, [(0, 30), (90, 120)], atol=3)


def test_polygon_of_one_cell_has_an_area_and_an_empty_mask_has_none() -> None:
    assert len(shapes.polygons(box_mask(10, 10, 14, 14, cells=(1, 1)), WIDTH, HEIGHT)[0]) >= 3
    assert shapes.polygons(Mask(np.zeros((3, 3), np.bool_), (0, 0, 9, 9)), WIDTH, HEIGHT) == []


def test_polygon_stays_in_the_frame() -> None:
    (outline,) = shapes.polygons(box_mask(-30, -20, 700, 500), WIDTH, HEIGHT)
    assert np.min(outline, axis=0).tolist() == [0, 0]
    assert np.max(outline, axis=0).tolist() == [WIDTH, HEIGHT]


@pytest.mark.parametrize(
    ("region", "area"),
    [
        ((100, 50, 180, 150), (100, 50, 180, 150)),
        ((-20, -10, 60, 90), (0, 0, 60, 90)),
        ((600, 400, 700, 500), (600, 400, 640, 480)),
        ((0, 0, 640, 480), (0, 0, 640, 480)),
        ((100.4, 0, 180.6, 480), (100, 0, 181, 480)),  # runs continue in the next column
    ],
)
def test_run_lengths_decode_to_the_region(
    region: tuple[float, float, float, float], area: tuple[int, int, int, int]
) -> None:
    counts = shapes.run_lengths(box_mask(*region), WIDTH, HEIGHT)
    decoded = from_run_lengths(counts)
    assert all(counts[1:]), "only the first run can be empty"
    wanted = np.zeros((HEIGHT, WIDTH), np.bool_)
    wanted[area[1] : area[3], area[0] : area[2]] = True
    np.testing.assert_array_equal(decoded, wanted)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**30), st.integers(1, 9), st.integers(1, 9))
def test_run_lengths_decode_to_the_cells(seed: int, rows: int, columns: int) -> None:
    random = np.random.default_rng(seed)
    cells = random.random((rows, columns)) < 0.5
    x1, y1 = int(random.integers(0, 300)), int(random.integers(0, 2)) * (HEIGHT - 10 * rows)
    counts = shapes.run_lengths(Mask(cells, (x1, y1, x1 + 8 * columns, y1 + 10 * rows)), WIDTH, HEIGHT)
    decoded = from_run_lengths(counts)[y1 : y1 + 10 * rows, x1 : x1 + 8 * columns]
    np.testing.assert_array_equal(decoded, np.kron(cells, np.ones((10, 8), np.bool_)).astype(np.bool_))
    assert all(counts[1:]), "only the first run can be empty"


def test_key_chooses_the_format_of_masks() -> None:
    objects = replace(found(1), shapes=Shapes(masks=(box_mask(10, 10, 50, 60),)))
    outlines, runs = (
        codec.detections(HEADER, result(objects), CLASSES, PUBLISHED_NS, form).objects[0].mask
        for form in ("polygon", "rle")
    )
    assert outlines is not None
    assert runs is not None
    assert (outlines.size, outlines.counts) == (None, None)
    assert runs.polygons is None
    assert runs.size == (HEIGHT, WIDTH)
    assert sum(runs.counts or ()) == WIDTH * HEIGHT


def test_masks_without_opencv_are_run_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    shapes.has_opencv.cache_clear()
    described = shapes.describe_mask(box_mask(10, 10, 50, 60), WIDTH, HEIGHT, "polygon")
    shapes.has_opencv.cache_clear()
    assert described.counts is not None
    assert described.polygons is None


def test_objects_with_infinite_boxes_are_left_out_with_their_shapes() -> None:
    objects = found(3)
    objects.boxes_xyxy[1, 0] = np.nan
    points = np.arange(9, dtype=np.float32).reshape(3, 1, 3) / np.float32(10)
    message = with_shapes(Shapes(keypoints=points), objects)
    assert [detected.keypoints for detected in message.objects] == [[(0.0, 0.1, 0.2)], [(0.6, 0.7, 0.8)]]
    assert message.invalid == 1
