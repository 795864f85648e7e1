"""Tests of the stages for tracking and analytics, which have a separate state for each camera and epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from vision.config import RuleConfig, TrackConfig
from vision.config.analytics import CameraAnalytics
from vision.stages.analytics import AnalyticsStage, TrackStage, shapes_outside
from vision.stages.rules import RuleStage
from vision.state.database import StateDatabase
from vision.types import Counts, Detections, Event, FrameMeta, Result, Timing, Tracks

STEP_NS = 100_000_000
CLASSES = ("person", "car")


def result(
    *boxes: tuple[float, float, float, float],
    index: int = 0,
    camera: str = "gate",
    epoch: int = 0,
    score: float = 0.9,
    size: tuple[int, int] = (640, 480),
) -> Result:
    at_ns = (1 + index) * STEP_NS
    objects = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(len(boxes), score, np.float32),
        np.zeros(len(boxes), np.int32),
    )
    return Result(FrameMeta(camera, index, epoch, at_ns, at_ns, *size), objects, Timing(at_ns, at_ns, at_ns))


def walker(index: int, *, y: float = 100.0, step: float = 20.0) -> tuple[float, float, float, float]:
    """Return the box of a person who walks down the frame. The feet are at y = ``y + 100 + step * index``."""
    return (200, y + step * index, 240, y + 100 + step * index)


def tracks(one: Result) -> Tracks:
    assert isinstance(one.objects, Tracks)
    return one.objects


# --- tracks -----------------------------------------------------------------------------------------------------------


def test_each_camera_has_its_own_tracker() -> None:
    stage = TrackStage()
    ids: dict[str, set[int]] = {"gate": set(), "yard": set()}
    for index in range(5):
        for camera in ids:
            found = tracks(stage(result(walker(index), index=index, camera=camera)))
            ids[camera] |= set(found.track_ids.tolist())
    assert [len(of_camera) for of_camera in ids.values()] == [1, 1]
    assert not ids["gate"] & ids["yard"]


def test_ids_continue_when_a_process_is_replaced_twice() -> None:
    """The ids must continue even if the first replacement ends before it assigns an id."""
    stage = TrackStage(camera_ids=["gate", "yard"])
    stage.continue_after({"gate": 7, "yard": 12})
    reported = stage.last_ids()
    stage = TrackStage(camera_ids=["gate", "yard"])
    stage.continue_after(reported)
    for index in range(3):
        found = tracks(stage(result(walker(index), index=index)))
    assert min(found.track_ids.tolist()) > 7


def test_results_of_several_cameras_are_tracked_together() -> None:
    """The results equal those of separate calls, even if a crowd requires several groups of cameras."""
    alone, together = TrackStage(), TrackStage()
    for index in range(6):
        batch = [
            result(
                *(walker(index + at) for at in range(0, 4 * number, 4)),
                index=index,
                camera=f"camera-{number}",
                epoch=index // 4,
            )
            for number in range(1, 60, 6)
        ]
        expected = [alone(one) for one in batch]
        for one, other in zip(expected, together.process_together(batch), strict=True):
            assert replace(one, objects=other.objects) == other
            np.testing.assert_array_equal(tracks(one).boxes_xyxy, tracks(other).boxes_xyxy)
            np.testing.assert_array_equal(tracks(one).age_ms, tracks(other).age_ms)
    assert [len(tracks(one)) for one in expected] == list(range(1, 60, 6))


def test_new_epoch_starts_new_tracks() -> None:
    stage = TrackStage()
    seen = [tracks(stage(result(walker(index), index=index, epoch=index // 4))) for index in range(12)]
    of_epoch = [{int(i) for found in seen[4 * e : 4 * e + 4] for i in found.track_ids} for e in range(3)]
    assert [len(ids) for ids in of_epoch] == [1, 1, 1]
    assert len(set.union(*of_epoch)) == 3


def test_track_stage_keeps_all_other_fields() -> None:
    before = result(walker(0))
    before = replace(before, objects=replace(before.objects, truncated_candidates=7))
    after = TrackStage()(before)
    assert (after.meta, after.timing, after.events) == (before.meta, before.timing, before.events)
    assert after.objects.truncated_candidates == 7


@pytest.mark.parametrize(("score", "detector_score"), [(0.35, 0.15), (0.1, 0.1), (0.7, 0.15)])
def test_detector_score_is_the_lower_of_score_and_low_score(score: float, detector_score: float) -> None:
    assert TrackStage(TrackConfig(), score=score).detector_score == detector_score


def found_with(stage: TrackStage, scores: Iterable[float]) -> list[int]:
    """Return the number of published objects per frame, for a walker that is detected with these scores."""
    return [len(tracks(stage(result(walker(at), index=at, score=score)))) for at, score in enumerate(scores)]


def test_object_is_published_while_tracked_once_it_had_the_score() -> None:
    sure, unsure = 0.9, 0.2
    assert found_with(TrackStage(score=0.35), [unsure, unsure, sure, sure, unsure, sure]) == [0, 0, 0, 1, 1, 1]
    assert found_with(TrackStage(score=0.8), [0.7] * 4 + [0.85] * 3) == [0] * 5 + [1] * 2
    assert found_with(TrackStage(score=0.35), [0.7] * 4) == [0, 1, 1, 1]


def test_track_stage_refuses_tracks() -> None:
    once = TrackStage()(result(walker(0)))
    with pytest.raises(TypeError):
        TrackStage()(once)


# --- analytics --------------------------------------------------------------------------------------------------------

DOOR = {"name": "door", "points": [[100, 300], [400, 300]]}
YARD = {"name": "yard", "polygon": [[100, 300], [400, 300], [400, 479], [100, 479]]}


def section(**content: object) -> CameraAnalytics:
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    return CameraAnalytics.model_validate(content | lists)


SECTIONS = {"gate": section(lines=[DOOR], zones=[YARD])}


def walk(
    stage: AnalyticsStage, *, epoch: int = 0, camera: str = "gate", track: TrackStage | None = None
) -> list[Result]:
    """Return the results of a walker that crosses the line, and enters the zone a few frames later."""
    track = track or TrackStage()
    return [stage(track(result(walker(at), index=at, epoch=epoch, camera=camera))) for at in range(10)]


def kinds(results: list[Result]) -> list[str]:
    return [event.kind for one in results for event in one.events]


def test_crossings_and_zones_become_events_and_counts() -> None:
    results = walk(AnalyticsStage(SECTIONS, CLASSES))
    assert kinds(results) == ["line_crossed", "zone_entered"]
    assert results[0].counts == Counts({"door": {"in": 0, "out": 0}}, {"yard": {"entered": 0, "left": 0}}, {"yard": 0})
    last = results[-1].counts
    assert last is not None
    assert last.lines == {"door": {"in": 1, "out": 0, "in:person": 1}}
    assert last.zones == {"yard": {"entered": 1, "left": 0, "entered:person": 1}}
    assert last.occupancy == {"yard": 1}
    (event,) = [event for one in results for event in one.events if event.kind == "line_crossed"]
    assert event.track_id in tracks(results[-1]).track_ids


def test_counts_are_rebuilt_only_after_events() -> None:
    results = walk(AnalyticsStage(SECTIONS, CLASSES))
    assert len({id(one.counts) for one in results}) == 1 + sum(bool(one.events) for one in results)


def test_camera_without_lines_and_zones_is_unchanged() -> None:
    results = walk(AnalyticsStage(SECTIONS, CLASSES), camera="yard")
    assert kinds(results) == []
    assert all(one.counts is None for one in results)


def test_events_of_earlier_stages_are_kept() -> None:
    before = Event("mine", "x", "gate", None, 0)
    one = replace(TrackStage()(result(walker(0))), events=(before,))
    assert AnalyticsStage(SECTIONS, CLASSES)(one).events == (before,)


def test_new_epoch_ends_states_and_keeps_counters() -> None:
    stage = AnalyticsStage(SECTIONS, CLASSES)
    first, second = walk(stage), walk(stage, epoch=1)
    assert kinds(first) == ["line_crossed", "zone_entered"]
    assert kinds(second) == ["zone_left", "line_crossed", "zone_entered"]
    assert second[0].events[0].data["how"] == "lost"
    assert second[-1].counts is not None
    assert second[-1].counts.lines["door"]["in"] == 2
    assert second[-1].counts.occupancy == {"yard": 1}


def test_fractions_follow_the_size_of_the_frame() -> None:
    half = section(units="fraction", lines=[{"name": "middle", "points": [[0.0, 0.5], [1.0, 0.5]]}])
    stage, track = AnalyticsStage({"gate": half}, CLASSES), TrackStage()
    heights = [480, 400]  # the line lies at 240, then at 200
    crossed = []
    for epoch, height in enumerate(heights):
        for at in range(8):
            one = stage(track(result(walker(at, y=60, step=10), index=at, epoch=epoch, size=(640, height))))
            crossed += [(epoch, 160 + 10 * at) for _ in one.events]
    ((epoch, feet),) = crossed
    assert epoch == 1
    assert 200 < feet <= 230


def test_shapes_outside_the_frame_are_logged_once_per_size(caplog: pytest.LogCaptureFixture) -> None:
    stage, track = AnalyticsStage(SECTIONS, CLASSES), TrackStage()
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            stage(track(result(epoch=epoch, size=(320, 240))))
    (record,) = caplog.records
    assert "door, yard" in (record.args or ())


def test_shapes_outside_the_frame_are_listed() -> None:
    shapes = section(lines=[{"name": "door", "points": [[700, 0], [700, 400]]}], zones=[YARD])
    assert shapes_outside(shapes, 640, 480) == ["door"]
    assert shapes_outside(shapes, 1280, 960) == []


def test_counters_continue_after_a_restart(tmp_path: Path) -> None:
    for times in (1, 2):
        with closing(StateDatabase(tmp_path)) as state:
            last = walk(AnalyticsStage(SECTIONS, CLASSES, state=state))[-1].counts
        assert last is not None
        assert last.lines["door"]["in"] == times
        assert last.occupancy == {"yard": 1}


def test_rule_event_carries_the_occupancy_of_its_own_instant() -> None:
    """The occupancy of the zone increases between the start of the crowd and the due time of the rule."""
    zone = {"name": "square", "polygon": ((0, 0), (640, 0), (640, 480), (0, 480)), "crowd_threshold": 0}
    sections = {"gate": section(zones=[zone])}
    watch = AnalyticsStage(sections, CLASSES)
    rules = RuleStage([RuleConfig(name="too-full", when="crowded square for 1s", cooldown="0s")], sections)
    track = TrackStage()
    events: list[Event] = []
    for index in range(14):
        boxes = [(100 * n, 100, 100 * n + 40, 200) for n in range(1 + index // 4)]
        events += rules(watch(track(result(*boxes, index=index)))).events
    (report,) = (event for event in events if event.kind == "rule")
    entered = [event for event in events if event.kind == "zone_entered" and event.at_ns <= report.at_ns]
    assert report.data["occupancy"] == entered[-1].data["occupancy"] == 3


def test_rule_event_of_a_stay_carries_the_duration_of_its_own_instant() -> None:
    """The report does not contain the speed and the direction at the beginning of the stay."""
    sections = {"gate": section(zones=[{**YARD, "dwell_s": 1.0}])}
    rules = RuleStage([RuleConfig(name="waits", when="dwelling yard for 2s", cooldown="0s")], sections)
    data = {"phase": "begin", "class": "person", "stayed_s": 1.0, "heading_deg": 90}
    begin = Event("dwelling", "yard", "gate", 7, STEP_NS, data)
    assert rules(replace(result(), events=(begin,))).events == (begin,)
    (report,) = rules(result(index=10)).events
    assert report.data["stayed_s"] == report.data["lasted_s"] == 2.0
    assert "heading_deg" not in report.data


def test_analytics_stage_refuses_detections() -> None:
    with pytest.raises(TypeError):
        AnalyticsStage(SECTIONS, CLASSES)(result(walker(0)))
