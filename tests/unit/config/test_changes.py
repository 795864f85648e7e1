"""Tests of the comparison of two configurations, and of the changes that a running program can apply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vision.config import AppConfig, load_config
from vision.config.changes import (
    Plan,
    compare,
    required_score,
    restart_error,
    with_analytics,
    with_camera,
    with_privacy,
    without_camera,
)
from vision.errors import ConfigError

LINE = {"name": "door", "points": [[0, 0], [100, 100]]}
BASE: dict[str, Any] = {
    "detect": {"backend": "fake", "score_threshold": 0.4},
    "cameras": [
        {"id": "gate", "source": "rtsp://192.0.2.1/a", "max_fps": 10},
        {"id": "yard", "source": "/dev/video0"},
    ],
    "analytics": {"gate": {"lines": [LINE]}},
    "rules": [{"name": "crossed", "when": "line_crossed door"}],
}


def written(folder: Path, content: dict[str, Any]) -> AppConfig:
    (folder / "camera.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_config(folder / "camera.yaml", {"CODE": "a-long-password"})


def with_cameras(*changes: dict[str, Any]) -> dict[str, Any]:
    return {**BASE, "cameras": list(changes)}


GATE, YARD = BASE["cameras"]


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (BASE, Plan()),
        (with_cameras(YARD, GATE), Plan()),
        (with_cameras(GATE, YARD, {"id": "hall", "source": "csi:0"}), Plan(added=("hall",))),
        (with_cameras(GATE), Plan(removed=("yard",))),
        (with_cameras({**GATE, "source": "rtsp://192.0.2.1/b"}, YARD), Plan(reopened=("gate",))),
        (with_cameras({**GATE, "password": "${CODE}", "user": "u"}, YARD), Plan(reopened=("gate",))),
        (with_cameras({**GATE, "max_fps": 5}, YARD), Plan(adjusted=("gate",))),
        (with_cameras(GATE, {**YARD, "max_frame_age_s": 1}), Plan(adjusted=("yard",))),
        (with_cameras(GATE, {**YARD, "report_after_s": {"lost": None}}), Plan(adjusted=("yard",))),
        ({**BASE, "report_after_s": {"back": 5}}, Plan(stages=("report_after_s",))),
        ({**BASE, "analytics": {"gate": {"lines": [{**LINE, "direction": "in"}]}}}, Plan(stages=("analytics.gate",))),
        ({**BASE, "privacy": {"yard": {"blur": ["person"]}}}, Plan(stages=("privacy.yard",))),
        ({**BASE, "rules": []}, Plan(stages=("rules",))),
        ({**BASE, "track": {"lost_s": 3}}, Plan(stages=("track.lost_s",))),
        ({**BASE, "detect": {"backend": "fake"}}, Plan(stages=("detect.score_threshold",))),
        ({**BASE, "track": {"low_score": 0.05}}, Plan(stages=("track.low_score",), restart=(("track", "low_score"),))),
        ({**BASE, "model": "picodet-s-320"}, Plan(restart=(("model",),))),
        ({**BASE, "detect": {**BASE["detect"], "max_batch": 2}}, Plan(restart=(("detect", "max_batch"),))),
        ({**BASE, "publish": {"bind": "tcp://127.0.0.1:5556"}}, Plan(restart=(("publish", "bind"),))),
        ({**BASE, "http": {}}, Plan(restart=(("http",),))),
    ],
)
def test_plan_names_what_differs(tmp_path: Path, new: dict[str, Any], expected: Plan) -> None:
    running = written(tmp_path, BASE)
    assert compare(running, written(tmp_path, new), required_score(running)) == expected


RECORDED = {"state_dir": "state", "recording": {"folder": "clips", "cameras": ["gate"]}}
QUESTION = {"name": "real", "prompt": "Is it a person?", "cameras": ["gate", "hall"]}
MENTION_CAMERAS: dict[str, Any] = {
    "recording": {"folder": "clips", "cameras": ["gate", "hall"]},
    "sinks": [{"name": "broker", "address": "mqtt://127.0.0.1", "cameras": ["gate", "hall"]}],
    "verify": [QUESTION],
    "describe": [QUESTION | {"name": "scene"}],
    "privacy": {"porch": {"masks": [[[0, 0], [9, 0], [9, 9]]]}},
}
HALL = {"id": "hall", "source": "rtsp://192.0.2.1/c"}
PORCH = {"id": "porch", "source": "csi:0"}
MENTIONED = {
    **BASE,
    "pipeline": "count",
    "cameras": [GATE, HALL, PORCH],
    "state_dir": "state",
    "language": {"url": "http://127.0.0.1:1/v1"},
    **MENTION_CAMERAS,
}


@pytest.mark.parametrize(
    ("recording", "expected"),
    [
        ({"cameras": ["gate", "hall"]}, Plan(reopened=("hall",))),
        ({"cameras": ["hall"]}, Plan(reopened=("gate", "hall"))),
        ({"cameras": ["gate"], "pre_s": 1}, Plan(restart=(("recording", "pre_s"),))),
        (None, Plan(reopened=("gate",), restart=(("recording",),))),
    ],
)
def test_cameras_that_are_recorded_can_change(tmp_path: Path, recording: Any, expected: Plan) -> None:
    cameras = {"cameras": [GATE, HALL]}
    running = written(tmp_path, {**BASE, **RECORDED, **cameras})
    new = {**BASE, **RECORDED, **cameras, "recording": recording and {"folder": "clips", **recording}}
    assert compare(running, written(tmp_path, new), 0.0) == expected


@pytest.mark.parametrize("key", [key for key in MENTION_CAMERAS if key != "privacy"])
def test_sections_that_mention_cameras_need_a_restart(tmp_path: Path, key: str) -> None:
    without = {name: value for name, value in MENTIONED.items() if name != key}
    plan = compare(written(tmp_path, MENTIONED), written(tmp_path, without), 0.0)
    assert {loc[0] for loc in plan.restart} == {key}


@pytest.mark.parametrize("camera", ["hall", "porch"])
def test_removed_camera_is_no_longer_mentioned(tmp_path: Path, camera: str) -> None:
    running = written(tmp_path, MENTIONED)
    left = without_camera(running, camera)
    assert camera not in str(left)
    assert compare(running, left, 0.0) == Plan(removed=(camera,))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_key_is_live_or_needs_a_restart() -> None:
    """A reload must not silently ignore a section that a later version of the program adds."""
    running = AppConfig.model_validate(BASE)
    for key in AppConfig.model_fields:
        if key not in ("cameras", "report_after_s", "analytics", "rules", "track", "detect", *MENTION_CAMERAS):
            plan = compare(running, running.model_copy(update={key: "different"}), 0.0)
            assert plan.restart == ((key,),), key


@pytest.mark.parametrize(
    ("pipeline", "score", "needs_restart"), [("detect", 0.5, False), ("detect", 0.3, True), ("own.py", 0.5, True)]
)
def test_score_below_that_of_the_detector_needs_a_restart(pipeline: str, score: float, needs_restart: bool) -> None:
    content = {"pipeline": pipeline, "cameras": BASE["cameras"], "detect": {"score_threshold": 0.4}}
    running = AppConfig.model_validate(content)
    new = AppConfig.model_validate({**content, "detect": {"score_threshold": score}})
    assert bool(compare(running, new, required_score(running)).restart) is needs_restart


def test_restart_error_shows_the_lines(tmp_path: Path) -> None:
    running = written(tmp_path, BASE)
    new = written(tmp_path, {**BASE, "model": "picodet-s-320", "publish": {"bind": "tcp://127.0.0.1:5556"}})
    error = restart_error(compare(running, new, 0.0), tmp_path / "camera.yaml")
    lines = (tmp_path / "camera.yaml").read_text().splitlines()
    assert error.exit_code == 78 and error.code == "restart-needed"
    assert {fault.key for fault in error.faults} == {"model", "publish.bind"}
    for fault in error.faults:
        assert lines[fault.line - 1].strip().startswith(fault.key.rpartition(".")[2] + ":")


def test_camera_can_be_added_and_removed() -> None:
    running = AppConfig.model_validate(BASE)
    more = with_camera(
        running, {"id": "hall", "source": "rtsp://192.0.2.3/", "user": "u", "password": "${CODE}"}, {"CODE": "abcdefgh"}
    )
    assert [camera.id for camera in more.cameras] == ["gate", "yard", "hall"]
    assert more.cameras[2].password == "abcdefgh"
    assert without_camera(more, "hall").model_dump() == running.model_dump()
    less = without_camera(running, "gate")
    assert less.analytics == {} and less.rules == ()


@pytest.mark.parametrize(
    ("camera", "code", "key"),
    [
        ({"id": "gate", "source": "csi:0"}, "duplicate-id", "cameras[2].id"),
        ({"id": "hall", "source": "csi:0", "fbs": 3}, "unknown-key", "fbs"),
        (
            {"id": "hall", "source": "rtsp://192.0.2.3/", "user": "u", "password": "secret"},
            "written-password",
            "password",
        ),
        ({"id": "hall", "source": "rtsp://u:secret@192.0.2.3/"}, "written-password", "source"),
        ({"id": "hall", "source": "clip.mp4"}, "relative-path", ""),
        ({"id": "hall"}, "missing", "source"),
        ({}, "missing", "id"),
    ],
)
def test_invalid_camera_is_refused(camera: dict[str, Any], code: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_camera(AppConfig.model_validate(BASE), camera, {})
    assert caught.value.code == code
    assert [fault.key for fault in caught.value.faults][:1] == ([key] if key else [])
    assert all(fault.line == 0 for fault in caught.value.faults)


def test_unknown_and_last_camera_are_not_removed() -> None:
    running = AppConfig.model_validate(BASE)
    for config, camera, code in (
        (running, "hall", "unknown-camera"),
        (without_camera(running, "yard"), "gate", "last-camera"),
    ):
        with pytest.raises(ConfigError) as caught:
            without_camera(config, camera)
        assert caught.value.code == code


def test_masks_of_a_camera_can_be_replaced(tmp_path: Path) -> None:
    running = written(tmp_path, {**BASE, **RECORDED})
    masked = with_privacy(running, "yard", {"masks": [[[0, 0], [9, 0], [9, 9]]]})
    assert compare(running, masked, 0.4) == compare(masked, running, 0.4) == Plan(stages=("privacy.yard",))
    assert with_privacy(masked, "yard", None) == running
    for camera, section, code in (
        ("gate", {"blur": ["person"]}, "recorded-unmasked"),
        ("hall", {"blur": ["person"]}, "unknown-camera"),
        ("yard", {"masks": [[[0, 0], [9, 9]]]}, "too-short"),
    ):
        with pytest.raises(ConfigError) as caught:
            with_privacy(running, camera, section)
        assert caught.value.code == code, caught.value


def test_analytics_of_a_camera_can_be_replaced() -> None:
    running = AppConfig.model_validate(BASE)
    new = with_analytics(running, "gate", {"lines": [{**LINE, "points": [[0, 9], [100, 100]]}]})
    assert compare(running, new, 0.0) == Plan(stages=("analytics.gate",))
    for section, code in ((None, "unknown-name"), ({"lines": [{"name": "door"}]}, "missing")):
        with pytest.raises(ConfigError) as caught:
            with_analytics(running, "gate", section)
        assert caught.value.code == code
