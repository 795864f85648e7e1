"""Tests of the pixels of annotated snapshots, which show the object's box, the line or zone, and the time."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.config.analytics import CameraAnalytics
from vision.config.app import SnapshotConfig
from vision.detect.reference.crops import JpegEncoder
from vision.drawing.overlay import LINE_COLOR, class_color
from vision.stages.annotation import draw_events
from vision.stages.snapshots import SnapshotStage
from vision.types import Counts, Event, Frame, FrameMeta, Result, Timing, Tracks

WIDTH_PX, HEIGHT_PX = 640, 480
SECTION = CameraAnalytics.model_validate(
    {
        "lines": (
            {"name": "door", "points": ((100, 400), (300, 400))},
            {"name": "gate", "points": ((400, 400), (600, 400))},
        ),
        "zones": (
            {"name": "queue", "polygon": ((400, 100), (600, 100), (600, 200), (400, 200)), "crowd_threshold": 1},
        ),
    }
)
BOXES = np.array([[50, 150, 110, 300], [420, 120, 460, 190]], np.float32)
TRACKS = Tracks(BOXES, np.ones(2, np.float32), np.zeros(2, np.int32), np.array([7, 8]), np.zeros(2, np.int64))
COUNTS = Counts({"door": {"in": 1, "out": 0}}, {"queue": {"entered": 2, "left": 0}}, {"queue": 2})
META = FrameMeta("yard", 0, 0, 0, 1_700_000_000_000_000_000, WIDTH_PX, HEIGHT_PX)
CROSSED = Event("line_crossed", "door", "yard", 7, 0, {"class": "person", "direction": "in", "phase": "instant"})


def drawn(*events: Event) -> NDArray[np.int64]:
    image = np.full((HEIGHT_PX, WIDTH_PX, 3), 128, np.uint8)
    result = Result(META, TRACKS, Timing(0, 0, 0), events=events, counts=COUNTS)
    draw_events(image, result, {"yard": SECTION})
    return image.astype(np.int64)


def has_color(image: NDArray[np.int64], color: tuple[int, int, int], x: int, y: int, within_px: int = 3) -> bool:
    part = image[y - within_px : y + within_px + 1, x - within_px : x + within_px + 1]
    return bool((np.abs(part - color).max(axis=2) < 40).any())


def is_untouched(image: NDArray[np.int64], left: int, top: int, right: int, bottom: int) -> bool:
    return bool((image[top:bottom, left:right] == 128).all())


def test_crossing_shows_its_line_and_its_object() -> None:
    image = drawn(CROSSED)
    assert has_color(image, LINE_COLOR, 250, 400)
    assert has_color(image, class_color(0), 50, 250)
    assert is_untouched(image, 400, 380, 620, 420)  # the other line
    assert is_untouched(image, 400, 100, 620, 210)  # the zone and the other object


def test_crowd_shows_its_zone_and_all_objects() -> None:
    image = drawn(Event("crowded", "queue", "yard", None, 0, {"phase": "begin"}))
    assert not is_untouched(image, 590, 140, 604, 160)  # the border of the zone
    assert has_color(image, class_color(0), 50, 250)
    assert has_color(image, class_color(0), 420, 160)
    assert is_untouched(image, 100, 380, 320, 420)


def test_rule_shows_the_zone_that_it_is_about() -> None:
    data = {"phase": "begin", "place": "queue", "event": "crowded", "when": "crowded queue"}
    assert not is_untouched(drawn(Event("rule", "too-full", "yard", None, 0, data)), 590, 140, 604, 160)


def test_time_is_written_along_the_upper_edge() -> None:
    banner = drawn(CROSSED)[:20]
    assert (banner > 200).any()
    assert (banner < 80).any()


def test_camera_without_lines_and_zones_shows_the_time() -> None:
    image = np.full((HEIGHT_PX, WIDTH_PX, 3), 128, np.uint8)
    draw_events(image, Result(META, TRACKS, Timing(0, 0, 0), events=(Event("light", "all", "yard", None, 0),)), {})
    assert not (image[:20] == 128).all()


def test_snapshot_file_is_annotated_and_the_frame_is_not(tmp_path: Path) -> None:
    encoder = JpegEncoder()

    def encode(frame: Frame, result: Result) -> bytes:
        return encoder.encode(frame, lambda image: draw_events(image, result, {"yard": SECTION}))

    frame = Frame.wrap(META, np.full((HEIGHT_PX, WIDTH_PX, 3), 128, np.uint8), "bgr")
    stage = SnapshotStage(SnapshotConfig(folder=str(tmp_path)), encode, lossless=True)
    after = stage.with_frame(Result(META, TRACKS, Timing(0, 0, 0), events=(CROSSED,)), frame)
    stage.close()
    image = cv2.imread(after.events[0].snapshot)
    assert image is not None
    assert has_color(image.astype(np.int64), LINE_COLOR, 250, 400)
    assert (frame.pixels == 128).all()
