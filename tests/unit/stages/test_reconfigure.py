"""Tests of stages that continue with a new configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unit.stages.test_stages import CLASSES, result, tracks, walker
from vision.config import AppConfig
from vision.stages.analytics import AnalyticsStage, TrackStage
from vision.stages.rules import RuleStage
from vision.stages.score_filter import ScoreFilter
from vision.types import Event, Result

LINE = {"name": "door", "points": [[0, 300], [640, 300]]}
ZONE = {"name": "hall", "polygon": [[0, 0], [640, 0], [640, 480], [0, 480]]}
RULE = {"name": "someone", "when": "crowded hall"}


def config(*cameras: str, **top: Any) -> AppConfig:
    entries = [{"id": camera, "source": f"synthetic:64x48@5?seed={at}"} for at, camera in enumerate(cameras)]
    return AppConfig.model_validate({"pipeline": "count", "cameras": entries, **top})


class Stages:
    """Stages of the pipeline `count`, and changes of their configuration."""

    def __init__(self, first: AppConfig) -> None:
        ids = [camera.id for camera in first.cameras]
        self.track = TrackStage(first.track, score=first.detect.score_threshold, class_names=CLASSES, camera_ids=ids)
        self.analytics = AnalyticsStage(first.analytics, CLASSES)
        self.rules = RuleStage(first.rules, first.analytics)

    def reconfigure(self, new: AppConfig) -> None:
        for stage in (self.track, self.analytics, self.rules):
            stage.reconfigure(new)

    def __call__(self, one: Result) -> Result:
        return self.rules(self.analytics(self.track(one)))


def ids_of(stages: Stages, camera: str, frames: range) -> set[int]:
    return {
        track_id
        for index in frames
        for track_id in tracks(stages(result(walker(index), index=index, camera=camera))).track_ids.tolist()
    }


def test_tracks_continue_and_cameras_never_share_an_id() -> None:
    stages = Stages(config("gate", "yard"))
    before = {camera: ids_of(stages, camera, range(5)) for camera in ("gate", "yard")}
    stages.reconfigure(config("new", "yard", "gate"))
    assert ids_of(stages, "gate", range(5, 10)) == before["gate"]
    assert ids_of(stages, "yard", range(5, 10)) == before["yard"]
    new = ids_of(stages, "new", range(5))
    assert len(new) == 1 and min(new) > max(before["gate"] | before["yard"])
    stages.reconfigure(config("yard", "new"))
    after = [ids_of(stages, camera, range(100, 105)) for camera in ("yard", "new")]
    assert after[0].isdisjoint(after[1]) and ids_of(stages, "new", range(105, 110)) == after[1]


@pytest.mark.parametrize("others", [["yard"], []], ids=["one-camera-stays", "none-stays"])
def test_camera_that_returns_gets_no_id_a_second_time(others: list[str]) -> None:
    stages = Stages(config("gate", *others))
    first = set[int]()
    for start in range(0, 300, 60):  # each gap ends the tracks, so that many ids are used
        first |= ids_of(stages, "gate", range(start, start + 20))
    for _ in range(2):
        stages.track.reconfigure(config(*(others or ["hall"])))
        stages.track.reconfigure(config("gate", *others))
    again = ids_of(stages, "gate", range(600, 620))
    assert len(first) >= 5
    assert again and not again & first


def test_new_scores_apply_to_the_next_frame() -> None:
    stages = Stages(config("gate", detect={"score_threshold": 0.95}))
    assert ids_of(stages, "gate", range(5)) == set()
    stages.reconfigure(config("gate", detect={"score_threshold": 0.5}))
    found = ids_of(stages, "gate", range(5, 10))
    assert len(found) == 1
    stages.reconfigure(config("gate", track={"max_objects": 1}))
    assert ids_of(stages, "gate", range(10, 15)) == found


def test_fewer_objects_than_tracks_end_no_track() -> None:
    stages = Stages(config("gate"))
    boxes = [(50 + 150 * column, 100, 90 + 150 * column, 200) for column in range(3)]
    for index in range(3):
        stages(result(*boxes, index=index))
    stages.reconfigure(config("gate", track={"max_objects": 1}))
    for index in range(3, 6):
        assert len(tracks(stages(result(*boxes, (250, 300, 290, 400), index=index)))) == 3


def events(stages: Stages, frames: range, camera: str = "gate") -> list[Event]:
    return [
        event
        for index in frames
        for event in stages(result(walker(index, step=0.0), index=index, camera=camera)).events
    ]


def names(happened: list[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.data["phase"]) for event in happened]


def test_section_can_be_added_and_removed() -> None:
    stages = Stages(config("gate"))
    assert events(stages, range(5)) == []
    stages.reconfigure(config("gate", analytics={"gate": {"zones": [ZONE]}}))
    assert names(events(stages, range(5, 10))) == [("zone_entered", "instant")]
    stages.reconfigure(config("gate", analytics={}))
    assert names(events(stages, range(10, 15))) == [("zone_left", "instant")]
    after = stages(result(walker(15, step=0.0), index=15))
    assert after.counts is None


def test_section_that_returns_counts_from_zero_without_a_database() -> None:
    section = {"analytics": {"gate": {"zones": [ZONE]}}}
    stages = Stages(config("gate", **section))
    events(stages, range(5))
    stages.reconfigure(config("gate"))
    events(stages, range(5, 7))
    stages.reconfigure(config("gate", **section))
    events(stages, range(7, 10))
    counts = stages(result(walker(10, step=0.0), index=10)).counts
    assert counts is not None and counts.zones["hall"]["entered"] == 1


@pytest.mark.parametrize("new_rules", [[], [{**RULE, "when": "crowded hall for 10s"}]], ids=["removed", "changed"])
def test_rule_ends_what_it_has_reported_when_it_changes(new_rules: list[dict[str, Any]]) -> None:
    section = {"analytics": {"gate": {"zones": [{**ZONE, "crowd_threshold": 0}]}}}
    stages = Stages(config("gate", rules=[RULE], **section))
    assert ("rule", "begin") in names(events(stages, range(5)))
    stages.reconfigure(config("gate", rules=[RULE, {**RULE, "name": "second"}], **section))
    assert events(stages, range(5, 8)) == []  # the first rule continues, and the second waits for the next crowd
    stages.reconfigure(config("gate", rules=new_rules, **section))
    ended = events(stages, range(8, 12))
    assert names(ended) == [("rule", "end")] and ended[0].name == "someone"


def test_raised_threshold_removes_detections() -> None:
    stage = ScoreFilter(0.35)
    frame = result(walker(0), walker(1), score=0.5)
    assert stage(frame) is frame
    stage.reconfigure(config("gate", detect={"score_threshold": 0.6}))
    assert len(stage(frame).objects) == 0
    stage.reconfigure(config("gate", detect={"score_threshold": 0.5}))
    assert np.array_equal(stage(frame).objects.scores, frame.objects.scores)
