"""Lines follow a camera that was moved, counts are held while the scene cannot be found, and views survive restarts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.paths import ROOT
from vision.analytics.camera_view import INTERVAL_S
from vision.config import AppConfig
from vision.config.analytics import CameraAnalytics
from vision.config.changes import compare
from vision.stages.analytics import AnalyticsStage
from vision.stages.camera_view import CameraViewStage, geometry_key, loaded, luma
from vision.state.private_files import read_checked
from vision.types import Counts, Event, Frame, FrameMeta, Result, Timing, Tracks, ViewNumbers

WIDTH, HEIGHT = 560, 420
Pixels = NDArray[np.uint8]
SECTION = {"lines": [{"name": "door", "points": [[280, 0], [280, 420]], "anchor": "center"}], "realign": True}


@pytest.fixture(scope="module")
def square() -> Pixels:
    frame = cv2.VideoCapture(str(ROOT / "configs" / "vtest.mp4")).read()[1]
    assert frame is not None
    return np.asarray(frame, np.uint8)


def seen(square: Pixels, x: int = 0, y: int = 0) -> Pixels:
    """Return the frame of a camera that was moved, so that the scene is shifted by (x, y) pixels."""
    left, top = 104 - x, 78 - y
    return np.ascontiguousarray(square[top : top + HEIGHT, left : left + WIDTH])


def person(at: float) -> Tracks:
    """Return a person with its center at (`at`, 200)."""
    return Tracks(
        boxes_xyxy=np.array([[at - 20, 150, at + 20, 250]], np.float32), scores=np.ones(1, np.float32),
        class_ids=np.zeros(1, np.int32), track_ids=np.array([7]), age_ms=np.array([1000]),
    )  # fmt: skip


class Program:
    """The two stages, and a camera with 10 frames/s."""

    def __init__(self, folder: Path | None) -> None:
        sections = {"gate": CameraAnalytics.model_validate(SECTION)}
        self.analytics = AnalyticsStage(sections, ["person"])
        self.views = CameraViewStage(sections, self.analytics, folder)
        self.index = 0
        self.counts: Counts | None = None

    def view(self) -> ViewNumbers | None:
        assert self.counts is not None
        return self.counts.view

    def show(self, pixels: Pixels, objects: Tracks, seconds: float) -> list[Event]:
        """Show a frame for some seconds. Wait for the thread where it has work."""
        events: list[Event] = []
        for _ in range(round(seconds * 10)):
            now_ns = 1 + self.index * 100_000_000
            meta = FrameMeta("gate", self.index, 0, now_ns, now_ns, WIDTH, HEIGHT)
            result = Result(meta, objects, Timing(now_ns, now_ns, now_ns))
            result = self.analytics(self.views.with_frame(result, Frame.wrap(meta, pixels, "bgr")))
            while self.views.progress()["views"] is not None:
                time.sleep(0.001)
            events += result.events
            self.counts = result.counts
            self.index += 1
        return events


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    started = Program(tmp_path / "views")
    with closing(started.views):
        yield started


def kinds(events: list[Event]) -> list[tuple[str, str | None]]:
    return [(event.kind, event.data.get("phase")) for event in events]


def test_line_follows_the_scene(square: Pixels, program: Program) -> None:
    events = program.show(seen(square), person(200), 15)
    assert events == []
    assert program.view() is None
    events = program.show(seen(square, 40), person(300), 10)  # the line is at 320 now, and the person before it
    assert ("camera_realigned", "instant") in kinds(events)
    realigned = next(event for event in events if event.kind == "camera_realigned")
    assert realigned.data["shift_x_px"] == pytest.approx(40, abs=1)
    section = program.analytics.section("gate", WIDTH, HEIGHT)
    assert section is not None
    assert section.lines[0].points[0] == pytest.approx((320, 0), abs=2)
    view = program.view()
    assert view is not None
    assert np.reshape(view, (2, 3)) @ (280, 0, 1) == pytest.approx(section.lines[0].points[0], abs=0.1)
    assert kinds(program.show(seen(square, 40), person(310), 2)) == []
    assert [event.kind for event in program.show(seen(square, 40), person(370), 2)] == ["line_crossed"]
    assert program.views.counters() == {"views.realigned": 1, "views.held": 0}


def test_nothing_is_counted_while_the_lens_is_covered(square: Pixels, program: Program) -> None:
    program.show(seen(square), person(200), 15)
    events = program.show(np.full((HEIGHT, WIDTH, 3), 90, np.uint8), person(200), 12)
    assert kinds(events) == [("camera_moved", "begin")]
    assert events[0].data["reason"] == "covered"
    assert program.views.counters()["views.held"] == 1
    assert program.show(np.full((HEIGHT, WIDTH, 3), 90, np.uint8), person(400), 2) == []
    assert ("camera_moved", "end") in kinds(program.show(seen(square), person(200), 4))


def test_view_continues_after_a_restart(square: Pixels, program: Program, tmp_path: Path) -> None:
    program.show(seen(square), person(200), 15)
    program.show(seen(square, 40), person(300), 10)
    program.views.close()
    again = Program(tmp_path / "views")
    with closing(again.views):
        events = again.show(seen(square, 40), person(300), 3)
        assert "camera_realigned" not in [event.kind for event in events]
        section = again.analytics.section("gate", WIDTH, HEIGHT)
        assert section is not None
        assert section.lines[0].points[0] == pytest.approx((320, 0), abs=2)


def test_unreadable_view_is_learned_again(square: Pixels, tmp_path: Path) -> None:
    folder = tmp_path / "views"
    folder.mkdir(mode=0o700)
    (folder / "gate.npz").write_bytes(b"PK\x03\x04 rubbish")
    program = Program(folder)
    with closing(program.views):
        program.show(seen(square), person(200), 15)
        assert program.show(seen(square, 40), person(300), 10)


def test_stored_view_of_different_lines_is_not_used(square: Pixels, program: Program, tmp_path: Path) -> None:
    program.show(seen(square), person(200), 15)
    contents = read_checked(tmp_path / "views" / "gate.npz")
    assert contents is not None
    assert len(loaded(contents, geometry_key(CameraAnalytics.model_validate(SECTION))).appearances) == 1
    assert loaded(contents, "other").appearances == []


@pytest.mark.parametrize(("pixel_format", "shape"), [("bgr", (8, 16, 3)), ("bgrx", (8, 16, 4)), ("nv12", (12, 16))])
def test_brightness_has_the_size_of_the_frame(pixel_format: str, shape: tuple[int, ...]) -> None:
    meta = FrameMeta("gate", 0, 0, 0, 0, 16, 8)
    assert luma(Frame.wrap(meta, np.zeros(shape, np.uint8), pixel_format)).shape == (8, 16)  # type: ignore[arg-type]


def test_first_use_needs_a_restart() -> None:
    camera = {"id": "gate", "source": "synthetic:160x120@20"}
    before = AppConfig.model_validate({"cameras": [camera], "analytics": {"gate": {**SECTION, "realign": False}}})
    after = AppConfig.model_validate({"cameras": [camera], "analytics": {"gate": SECTION}})
    assert compare(before, after, 0.0).restart == (("analytics", "gate", "realign"),)
    assert compare(after, before, 0.0).restart == ()


def test_interval_is_short_enough_for_ten_seconds() -> None:
    assert 4 * INTERVAL_S <= 10
