"""Tests of the fake detector: it finds painted rectangles exactly, and its batches take time on the given clock."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from vision.detect.detector import Detector
from vision.detect.fake import FakeDetector
from vision.drawing.test_pattern import FAKE_CLASSES, FAKE_COLORS
from vision.types import Detections, Frame, FrameMeta


def grey(width_px: int = 128, height_px: int = 64) -> Frame:
    meta = FrameMeta("cam", 0, 0, 0, 0, width_px, height_px)
    return Frame.wrap(meta, np.full((height_px, width_px, 3), 90, np.uint8), "bgr")


def detected(detector: Detector, *frames: Frame) -> list[Detections]:
    detector.submit(0, frames)
    return detector.wait(0, 60)


def painted(*objects: tuple[int, tuple[int, int, int, int]]) -> Frame:
    frame = grey(200, 100)
    for class_id, (x1, y1, x2, y2) in objects:
        frame.pixels[y1:y2, x1:x2] = FAKE_COLORS[class_id]
    return frame


def test_fake_detector_finds_rectangles_to_the_pixel() -> None:
    objects = ((2, (0, 0, 1, 1)), (0, (10, 20, 40, 30)), (0, (150, 20, 200, 100)), (1, (41, 20, 60, 30)))
    with closing(FakeDetector()) as detector:
        (found,) = detected(detector, painted(*objects))
    assert {
        (int(class_id), tuple(box)) for class_id, box in zip(found.class_ids, found.boxes_xyxy.tolist(), strict=True)
    } == {(class_id, tuple(map(float, box))) for class_id, box in objects}
    assert found.scores.tolist() == [1.0] * 4


def test_fake_detector_scores_the_covered_fraction() -> None:
    frame = painted((0, (10, 10, 30, 30)), (1, (20, 10, 40, 20)))  # green covers a quarter of red
    with closing(FakeDetector(score=0.5)) as detector:
        (found,) = detected(detector, frame)
    assert found.class_ids.tolist() == [1, 0]
    assert found.scores.tolist() == [1.0, 0.75]
    with closing(FakeDetector(score=0.8, classes=[0, 2])) as detector:
        assert len(detected(detector, frame)[0]) == 0


@pytest.mark.parametrize(("parallel", "ready_ms"), [(1, [10, 20, 30]), (2, [10, 10, 20]), (3, [10, 10, 10])])
def test_fake_detector_uses_the_injected_clock(parallel: int, ready_ms: list[int]) -> None:
    now_ns = 0

    def sleep(seconds: float) -> None:
        nonlocal now_ns
        now_ns += round(seconds * 1e9)

    with closing(
        FakeDetector(batches_in_flight=3, parallel=parallel, service_ns=10_000_000, clock=lambda: now_ns, sleep=sleep)
    ) as detector:
        for slot in range(3):
            detector.submit(slot, [grey()])
        with pytest.raises(TimeoutError):
            detector.wait(0, 0.004)
        assert now_ns == 4_000_000
        finished = []
        for slot in range(3):
            detector.wait(slot, 1)
            finished.append(now_ns // 1_000_000)
        assert finished == ready_ms


def test_fake_classes_match_their_colors() -> None:
    assert len(FAKE_CLASSES) == len(FAKE_COLORS)
    assert [FAKE_CLASSES[color.index(255)] for color in FAKE_COLORS] == ["blue", "green", "red"]
