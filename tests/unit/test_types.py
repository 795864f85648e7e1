"""Tests that each object keeps its shapes if rows of detections or tracks are selected."""

from __future__ import annotations

import numpy as np

from vision.types import Detections, Mask, Shapes


def test_selected_objects_keep_their_shapes() -> None:
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    masks = tuple(Mask(np.ones((1, 1), np.bool_), (float(row), 0, row + 1, 1)) for row in range(3))
    points = np.arange(9, dtype=np.float32).reshape(3, 1, 3)
    rotated = np.arange(15, dtype=np.float32).reshape(3, 5)
    shapes = Shapes(masks, points, ("nose",), rotated)
    found = Detections(boxes, boxes[:, 0], np.arange(3, dtype=np.int32), 7, shapes).take(np.array([2, 0]))
    assert found.class_ids.tolist() == [2, 0]
    assert found.truncated_candidates == 7
    assert found.shapes is not None
    assert found.shapes.masks == (masks[2], masks[0])
    assert found.shapes.keypoint_names == ("nose",)
    np.testing.assert_array_equal(found.shapes.keypoints, points[[2, 0]])
    np.testing.assert_array_equal(found.shapes.rotated_boxes, rotated[[2, 0]])
