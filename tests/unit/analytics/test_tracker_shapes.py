"""Tests that each track has the shapes (mask, keypoints, rotated box) of its matched detection."""

from __future__ import annotations

import numpy as np
import pytest

from vision.analytics.tracker import Tracker
from vision.config import TrackConfig
from vision.types import Detections, Mask, Shapes

STEP_NS = 100_000_000


def marked(rows: list[tuple[float, float, int]], *, usable: bool = True) -> Detections:
    """Return a detection for each row (x, score, mark). All shapes of a detection contain its mark."""
    boxes = np.array([[x, 100, x + 40, 200] for x, _, _ in rows], np.float32)
    marks = np.array([mark for _, _, mark in rows], np.float32)
    if not usable:
        boxes[0, 2] = np.nan
    shapes = Shapes(
        masks=tuple(Mask(np.ones((1, 1), np.bool_), (mark, 0, mark + 1, 1)) for mark in marks.tolist()),
        keypoints=np.tile(marks[:, None, None], (1, 2, 3)),
        keypoint_names=("a", "b"),
        rotated_boxes=np.tile(marks[:, None], (1, 5)),
    )
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Detections(boxes, scores, np.zeros(len(rows), np.int32), shapes=shapes)


def marks_of(shapes: Shapes | None) -> list[float]:
    """Return the marks of the objects. All shapes of an object must contain the same mark."""
    assert shapes is not None
    assert shapes.keypoints is not None
    assert shapes.rotated_boxes is not None
    assert shapes.masks is not None
    marks: list[float] = shapes.keypoints[:, 0, 0].tolist()
    assert [mask.region_xyxy[0] for mask in shapes.masks] == marks == shapes.rotated_boxes[:, 0].tolist()
    assert shapes.keypoint_names == ("a", "b")
    return marks


@pytest.mark.parametrize("first_is_usable", [True, False])
def test_each_track_has_the_shapes_of_its_detection(first_is_usable: bool) -> None:
    tracker = Tracker(TrackConfig(), (640, 480))
    xs = (50.0, 250.0, 450.0)
    by_id: dict[int, set[int]] = {}
    for step in range(6):
        order = [0, 1, 2] if step % 2 else [2, 0, 1]
        rows = [(xs[k] + step, 0.9 - 0.1 * at, k) for at, k in enumerate(order)]
        frame = marked([(0.0, 0.95, 9), *rows], usable=first_is_usable)
        if first_is_usable:
            frame = marked(rows)
        tracks = tracker.update(frame, step * STEP_NS)
        for track_id, mark in zip(tracks.track_ids.tolist(), marks_of(tracks.shapes), strict=True):
            by_id.setdefault(track_id, set()).add(int(mark))
    assert sorted(map(tuple, by_id.values())) == [(0,), (1,), (2,)]


def test_weak_detections_that_are_ignored_do_not_shift_shapes() -> None:
    tracker = Tracker(TrackConfig(), (640, 480))
    for step in range(4):
        tracks = tracker.update(marked([(50.0, 0.001, 1), (250.0, 0.9, 2)]), step * STEP_NS)
    assert marks_of(tracks.shapes) == [2]


def test_tracks_of_boxes_have_no_shapes() -> None:
    tracker = Tracker(TrackConfig(), (640, 480))
    boxes = np.array([[50, 100, 90, 200]], np.float32)
    for step in range(3):
        plain = Detections(boxes, np.array([0.9], np.float32), np.zeros(1, np.int32))
        assert tracker.update(plain, step * STEP_NS).shapes is None
