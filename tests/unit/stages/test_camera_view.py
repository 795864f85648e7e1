"""Tests that lines follow a moved camera, counting pauses without a known view, and views survive restarts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.messages.samples import result as sample_result
from tests.paths import ROOT
from vision.analytics.camera_view import INTERVAL_S
from vision.config import AppConfig
from vision.config.analytics import CameraAnalytics
from vision.config.changes import compare
from vision.config.reporting import ReportAfter
from vision.messaging import codec
from vision.messaging.open_states import OpenStates
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
    """Return the frame of a moved camera, in which the scene is shifted by (x, y) pixels."""
    left, top = 104 - x, 78 - y
    return np.ascontiguousarray(square[top : top + HEIGHT, left : left + WIDTH])


def person(at: float) -> Tracks:
    """Return a person whose center is at (`at`, 200)."""
    return Tracks(
        boxes_xyxy=np.array([[at - 20, 150, at + 20, 250]], np.float32), scores=np.ones(1, np.float32),
        class_ids=np.zeros(1, np.int32), track_ids=np.array([7]), age_ms=np.array([1000]),
    )  # fmt: skip


def config_of(section: dict[str, Any] | None = SECTION, **report_after_s: float | None) -> AppConfig:
    camera = {"id": "gate", "source": "synthetic:160x120@20"}
    analytics = {} if section is None else {"gate": section}
    return AppConfig.model_validate(
        {"pipeline": "count", "cameras": [camera], "analytics": analytics, "report_after_s": report_after_s}
    )


class Program:
    """Stages for analytics and for the view of the camera, with one camera at 10 frames/s."""

    def __init__(self, folder: Path | None, config: AppConfig | None = None) -> None:
        config = config or config_of()
        self.analytics = AnalyticsStage(config.analytics, ["person"])
        self.views = CameraViewStage(config, self.analytics, folder)
        self.index = 0
        self.counts: Counts | None = None

    def view(self) -> ViewNumbers | None:
        assert self.counts is not None
        return self.counts.view

    def show(self, pixels: Pixels, objects: Tracks, seconds: float) -> list[Event]:
        """Show a frame for `seconds`, and wait until the thread has no work. Return the events."""
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
    events = program.show(seen(square, 40), person(300), 10)  # the line is now at 320, the person still before it
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


GRAY = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)


def test_nothing_is_counted_while_the_lens_is_covered(square: Pixels, program: Program) -> None:
    program.show(seen(square), person(200), 15)
    assert program.show(GRAY, person(200), 6) == []
    assert program.views.counters()["views.held"] == 1  # the event is published when the waiting time is over
    assert kinds(program.show(GRAY, person(200), 8)) == [("camera_covered", "begin")]
    assert program.show(GRAY, person(400), 2) == []
    assert ("camera_covered", "end") in kinds(program.show(seen(square), person(200), 4))


UNALIGNED: dict[str, Any] = {**SECTION, "realign": False}


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Program]:
    """Yield a program that reports moved and covered cameras, but does not move the lines."""
    started = Program(tmp_path / "views", config_of(UNALIGNED, moved=15, covered=30))
    with closing(started.views):
        yield started


def other_way(square: Pixels) -> Pixels:
    return np.ascontiguousarray(np.rot90(square, 2)[78 : 78 + HEIGHT, 104 : 104 + WIDTH])


def test_movement_is_reported_without_realignment(square: Pixels, watching: Program) -> None:
    watching.show(seen(square), person(200), 15)
    assert watching.show(seen(square, 40), person(200), 12) == []
    (event,) = watching.show(seen(square, 40), person(200), 8)
    assert (event.kind, event.data["phase"]) == ("camera_moved", "begin")
    assert event.data["shift_x_px"] == pytest.approx(40, abs=1)
    assert watching.view() is None
    assert kinds(watching.show(seen(square, 40), person(300), 1)) == [("line_crossed", "instant")]  # still at 280
    assert kinds(watching.show(seen(square), person(300), 10)) == [("camera_moved", "end")]
    assert watching.views.counters() == {"views.realigned": 0, "views.held": 0}


def test_a_different_scene_and_a_cover_have_their_own_patience(square: Pixels, watching: Program) -> None:
    watching.show(seen(square), person(200), 15)
    assert watching.show(other_way(square), person(200), 12) == []
    assert kinds(watching.show(other_way(square), person(200), 8)) == [("camera_moved", "begin")]
    assert kinds(watching.show(seen(square), person(200), 5)) == [("camera_moved", "end")]
    assert watching.show(GRAY, person(200), 27) == []
    assert kinds(watching.show(GRAY, person(200), 8)) == [("camera_covered", "begin")]
    assert kinds(watching.show(seen(square), person(200), 5)) == [("camera_covered", "end")]


def test_open_states_know_the_fault_of_the_view(square: Pixels, watching: Program) -> None:
    states, faults = OpenStates(), []
    for pixels, seconds in (
        (seen(square), 15),
        (other_way(square), 20),
        (seen(square), 5),
        (GRAY, 35),
        (seen(square), 5),
    ):
        events = watching.show(pixels, person(200), seconds)
        states.follow([codec.event(codec.UNNUMBERED, event, sample_result()) for event in events])
        faults.append(states.view_fault("gate"))
    assert faults == [None, "moved", None, "covered", None]
    assert states.view_fault("other") is None


def test_small_drift_and_a_short_cover_are_not_reported(square: Pixels, watching: Program) -> None:
    watching.show(seen(square), person(200), 15)
    assert watching.show(seen(square, 4), person(200), 40) == []  # 0.7 % of the width
    assert watching.show(GRAY, person(200), 20) == []
    assert watching.show(seen(square), person(200), 20) == []


def test_time_without_frames_is_no_fault(square: Pixels, watching: Program) -> None:
    watching.show(seen(square), person(200), 15)
    watching.show(other_way(square), person(200), 5)
    watching.index += 36_000
    assert watching.show(other_way(square), person(200), 10) == []
    assert kinds(watching.show(other_way(square), person(200), 10)) == [("camera_moved", "begin")]


def test_movement_while_the_program_was_stopped_is_reported(square: Pixels, watching: Program, tmp_path: Path) -> None:
    watching.show(seen(square), person(200), 15)
    watching.views.close()
    again = Program(tmp_path / "views", config_of(UNALIGNED, moved=15))
    with closing(again.views):
        assert kinds(again.show(seen(square, 40), person(200), 25)) == [("camera_moved", "begin")]


def test_only_the_configured_faults_are_reported(square: Pixels) -> None:
    program = Program(None, config_of(None, covered=10))
    with closing(program.views):
        program.show(seen(square), person(200), 15)
        assert program.show(seen(square, 40), person(200), 30) == []
        assert kinds(program.show(GRAY, person(200), 20)) == [("camera_covered", "begin")]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(config_of(UNALIGNED), id="no longer watched"),
        pytest.param(config_of({**UNALIGNED, "units": "percent", "lines": []}, moved=15), id="new reference"),
        pytest.param(config_of(SECTION, moved=15), id="realigned"),
    ],
)
def test_reported_movement_ends_if_the_configuration_changes(
    square: Pixels, watching: Program, change: AppConfig
) -> None:
    watching.show(seen(square), person(200), 15)
    assert kinds(watching.show(seen(square, 40), person(200), 20)) == [("camera_moved", "begin")]
    watching.views.reconfigure(change)
    watching.analytics.reconfigure(change)
    assert kinds(watching.show(seen(square, 40), person(200), 30)) == [("camera_moved", "end")]
    section = watching.analytics.section("gate", WIDTH, HEIGHT)
    assert section is not None
    if change.analytics["gate"].realign:
        assert section.lines[0].points[0] == pytest.approx((320, 0), abs=2)


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
    without, realigned = config_of(UNALIGNED), config_of(SECTION)
    assert compare(without, realigned, 0.0).restart == (("analytics", "gate", "realign"),)
    assert compare(without, config_of(UNALIGNED, covered=5), 0.0).restart == (("report_after_s", "covered"),)
    own = without.cameras[0].model_copy(update={"report_after_s": ReportAfter(moved=5)})
    of_camera = without.model_copy(update={"cameras": (own,)})
    assert compare(without, of_camera, 0.0).restart == (("cameras", 0, "report_after_s", "moved"),)
    assert compare(realigned, without, 0.0).restart == ()
    assert compare(realigned, of_camera, 0.0).restart == ()


def test_interval_is_short_enough_for_ten_seconds() -> None:
    assert 4 * INTERVAL_S <= 10
