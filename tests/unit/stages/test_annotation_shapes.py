"""Tests of masks, keypoints, and oriented boxes in annotated videos and snapshots."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from tests.unit.stages.test_annotation import META, has_color, is_untouched
from vision.drawing.overlay import class_color
from vision.stages.annotation import FrameAnnotator, draw_events
from vision.types import Detections, Event, Mask, Result, Shapes, Timing, Tracks

BOXES = np.array([[100, 150, 300, 350], [400, 150, 560, 310]], np.float32)
DETECTIONS = Detections(BOXES, np.array([0.9, 0.8], np.float32), np.array([0, 1], np.int32))
GRAY = 128


def annotated(shapes: Shapes, *, background: int = GRAY) -> NDArray[np.int64]:
    image = np.full((META.height_px, META.width_px, 3), background, np.uint8)
    result = Result(META, replace(DETECTIONS, shapes=shapes), Timing(0, 0, 0))
    FrameAnnotator({}, ("person", "car")).draw(image, result)
    return image.astype(np.int64)


def keypoints(score: float = 1.0) -> NDArray[np.float32]:
    """Return 17 keypoints for each of two objects, in three rows of the object's box."""
    steps = np.arange(17)
    both = [
        np.stack([x + 10.0 * (steps % 6), 180 + 40.0 * (steps // 6), steps * 0 + score], axis=1) for x in (120, 420)
    ]
    return np.stack(both).astype(np.float32)


def test_masks_tint_their_cells() -> None:
    cells = np.zeros((4, 4), np.bool_)
    cells[:2] = True
    whole = np.ones((2, 2), np.bool_)
    image = annotated(Shapes(masks=(Mask(cells, (100, 150, 300, 350)), Mask(whole, (400, 150, 560, 310)))))
    for class_id, (x, y) in ((0, (200, 200)), (1, (480, 230))):
        wanted = GRAY * 0.6 + np.array(class_color(class_id)) * 0.4
        np.testing.assert_allclose(image[y, x], wanted, atol=1)
    assert is_untouched(image, 110, 270, 290, 340)  # the cells below


@pytest.mark.parametrize(
    "region", [(-50, -60, 100, 120), (600, 400, 700, 520), (700, 10, 800, 60), (-90, -90, -10, -10), (5, 5, 5, 5)]
)
def test_mask_that_leaves_the_frame_is_cut_off(region: tuple[float, float, float, float]) -> None:
    mask = Mask(np.ones((3, 3), np.bool_), region)
    image = annotated(Shapes(masks=(mask, mask)))
    assert is_untouched(image, 130, 180, 270, 330)


def test_skeleton_connects_sure_keypoints() -> None:
    image = annotated(Shapes(keypoints=keypoints()))
    assert has_color(image, class_color(0), 120, 180)
    assert has_color(image, class_color(1), 420, 180)
    assert has_color(image, class_color(0), 170, 200)  # the limb from keypoint 5 to keypoint 11
    hidden = annotated(Shapes(keypoints=keypoints(0.1)))
    assert is_untouched(hidden, 105, 170, 290, 330)


def test_other_numbers_of_keypoints_are_drawn_without_limbs() -> None:
    image = annotated(Shapes(keypoints=keypoints()[:, :12]))
    assert has_color(image, class_color(0), 120, 180)
    assert is_untouched(image, 160, 190, 180, 212)


def test_oriented_box_replaces_the_upright_box() -> None:
    rotated = np.array([[200, 250, 200, 100, np.pi / 4], [480, 230, 160, 160, 0.0]], np.float32)
    image = annotated(Shapes(rotated_boxes=rotated))
    reach = 50 * np.sqrt(0.5)
    assert has_color(image, class_color(0), round(200 + reach), round(250 - reach))  # the middle of a long side
    assert is_untouched(image, 100, 345, 120, 355)  # the corner of the upright box


def test_snapshot_shows_the_shape_of_the_object_of_the_event() -> None:
    tracks = Tracks(
        BOXES, DETECTIONS.scores, DETECTIONS.class_ids, np.array([7, 8]), np.zeros(2, np.int64),
        shapes=Shapes(keypoints=keypoints()),
    )  # fmt: skip
    image = np.full((META.height_px, META.width_px, 3), GRAY, np.uint8)
    event = Event("line_crossed", "door", "yard", 8, 0, {"class": "car"})
    draw_events(image, Result(META, tracks, Timing(0, 0, 0), events=(event,)), {})
    drawn = image.astype(np.int64)
    assert has_color(drawn, class_color(1), 420, 180)
    assert is_untouched(drawn, 90, 140, 310, 360)
