"""Tests of `rules`, `cascade`, `snapshots`, and `state_dir`: the grammar of rules, and conflicts in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.unit.config.faults import config_faults, fault_keys
from vision.config import AppConfig, RuleConfig, check_classes, load_classifier_spec, load_config
from vision.config.fields import check_folder
from vision.config.rules import Condition, duration_s, parse_when
from vision.config.wording import InvalidValue
from vision.errors import ConfigError, ModelError

CONFIG = """\
pipeline: count
cameras: [{id: gate, source: a.mp4}, {id: yard, source: b.mp4}, {id: bare, source: c.mp4}]
analytics:
  gate:
    lines: [{name: door, points: [[1, 1], [9, 9]]}]
    zones:
      - {name: queue, polygon: [[0, 0], [9, 0], [0, 9]], crowd_threshold: 5, crowded_for_s: 5, dwell_s: 30}
      - {name: lawn, polygon: [[0, 0], [9, 0], [0, 9]]}
  yard:
    zones: [{name: queue, polygon: [[0, 0], [9, 0], [0, 9]], crowd_threshold: 5}]
"""


def faults(text: str) -> list[tuple[str, str]]:
    """Return the key and the code of each fault of a document."""
    return [(key, code) for _, key, code in config_faults(text)]


# --- the grammar ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("crowded queue for 10s", Condition("crowded", "queue", 10.0)),
        ("crowded queue", Condition("crowded", "queue", 0.0)),
        ("  dwelling  gate-7   for  1.5m ", Condition("dwelling", "gate-7", 90.0)),
        ("line_crossed for", Condition("line_crossed", "for", 0.0)),
        ("zone_entered yard", Condition("zone_entered", "yard", 0.0)),
        ("zone_left yard", Condition("zone_left", "yard", 0.0)),
    ],
)
def test_condition_is_parsed(text: str, condition: Condition) -> None:
    assert parse_when(text) == condition


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "when-form"),
        ("crowded", "when-form"),
        ("crwded queue", "kind"),
        ("crwded", "when-form"),
        ("full queue", "kind"),
        ("crowded queue 10s", "when-form"),
        ("crowded queue for", "when-form"),
        ("crowded queue for 10 s", "duration"),
        ("crowded road for 10 seconds", "duration"),
        ("crowded road for 2 Min", "duration"),
        ("crowded road for 3 weeks", "duration"),
        ("crowded queue in 10s", "when-form"),
        ("crowded que/ue", "name"),
        ("crowded queue for ten", "duration"),
        ("crowded queue for 10", "duration"),
        ("crowded queue for -1s", "duration"),
        ("crowded queue for 31d", "long-duration"),
        ("line_crossed door for 10s", "no-duration"),
    ],
)
def test_invalid_condition_is_refused(text: str, code: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_when(text)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("crwded queue", "'crowded'"),
        ("crwded", "'crowded'"),
        ("crowded queue for 10 s", "'10s'"),
        ("crowded road for 10 seconds", "'10s'"),
        ("crowded road for 2 Min", "'2m'"),
        ("crowded queue for 10", "'10s'"),
        ("crowded road for 3 weeks", "'weeks'"),
    ],
)
def test_refused_condition_has_a_suggestion(text: str, suggestion: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_when(text)
    assert suggestion in caught.value.advice


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10), ("2.5s", 2.5), ("5m", 300), ("2h", 7200), ("30d", 2_592_000)]
)
def test_duration_is_parsed(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


def test_rule_built_in_python_is_checked() -> None:
    rule = RuleConfig(name="r", when="crowded queue for 10s", cooldown="1m")
    assert (rule.condition, rule.cooldown_s) == (Condition("crowded", "queue", 10.0), 60.0)
    with pytest.raises(ValidationError):
        RuleConfig(name="r", when="crowded")
    with pytest.raises(ValidationError):
        RuleConfig(name="r", when="crowded queue", cooldown="soon")


# --- conflicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("[{name: r, when: crowded queue for 10s, cooldown: 60s}]", []),
        ("[{name: r, when: line_crossed door, cameras: [gate]}]", []),
        ("[{name: r, when: zone_left lawn}]", []),
        ("[{name: r, when: dwelling queue for 30s, cameras: [gate]}]", []),
        ("[{name: r, when: crowded queu for 10s}]", [("rules[0].when", "unknown-name")]),
        ("[{name: r, when: line_crossed door, cameras: [gate, yard]}]", [("rules[0].when", "unknown-name")]),
        ("[{name: r, when: line_crossed door, cameras: [gate, bare]}]", [("rules[0].cameras[1]", "unknown-camera")]),
        ("[{name: r, when: crowded door}]", [("rules[0].when", "wrong-kind")]),
        ("[{name: r, when: line_crossed lawn}]", [("rules[0].when", "wrong-kind")]),
        ("[{name: r, when: crowded lawn}]", [("rules[0].when", "never-begins")]),
        ("[{name: r, when: dwelling queue}]", [("rules[0].when", "never-begins")]),
        ("[{name: r, when: dwelling queue for 29s, cameras: [gate]}]", [("rules[0].when", "short-duration")]),
        ("[{name: r, when: crowded queue for 4s}]", [("rules[0].when", "short-duration")]),
        (
            "[{name: r, when: zone_left lawn}, {name: r, when: line_crossed door}]",
            [("rules[1].name", "duplicate-name")],
        ),
        ("[{name: r, when: crowded}]", [("rules[0].when", "when-form")]),
        ("[{name: r, when: zone_left lawn, cooldown: 60}]", [("rules[0].cooldown", "string-type")]),
    ],
)
def test_rule_that_does_not_fit_its_line_or_zone_is_refused(rules: str, expected: list[tuple[str, str]]) -> None:
    assert faults(f"{CONFIG}rules: {rules}\n") == expected


def test_rules_built_in_python_are_checked() -> None:
    rule = {"name": "r", "when": "crowded queue"}
    cameras = ({"id": "a", "source": "a.mp4"},)
    with pytest.raises(ValidationError) as caught:
        AppConfig.model_validate({"pipeline": "count", "cameras": cameras, "rules": (rule,)})
    assert "rules[0].when" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pipeline: detect\ncascade: {model: ./m}", [("cascade", "wrong-pipeline")]),
        ("pipeline: track\ncascade: {model: ./m}", []),
        ("pipeline: track\nsnapshots: {folder: x}", [("snapshots", "wrong-pipeline")]),
        ("pipeline: mine.py\nsnapshots: {folder: x, kinds: [fell]}", []),
        ("pipeline: count\nsnapshots: {folder: x, kinds: [rule, crowded]}", []),
        ("pipeline: count\nsnapshots: {folder: x, kinds: [rule, crowd]}", [("snapshots.kinds[1]", "unknown-kind")]),
        ("pipeline: count\nsnapshots: {folder: ~/x}", [("snapshots.folder", "home")]),
        ("state_dir: ''", [("state_dir", "folder")]),
        ("publish: {replay: 'tcp://lo:5556'}", [("publish.replay", "needs-state-dir")]),
        ("state_dir: s\npublish: {replay: 'tcp://[::1]:5556'}", []),
        ("state_dir: s\npublish: {replay: 'tcp://127.0.0.1:*', bind: 'tcp://127.0.0.1:*'}", []),
        ("state_dir: s\npublish: {replay: 'tcp://*:*', bind: 'tcp://*:*', curve: keys}", []),
        ("publish: {bind: 'tcp://eth0:*', insecure: true}", []),
        ("publish: {bind: 'tcp://*:5555'}", [("publish.bind", "insecure-address")]),
        (
            "state_dir: s\npublish: {bind: 'tcp://192.0.2.1:1', replay: 'tcp://[::]:2', insecure: false}",
            [("publish.bind", "insecure-address"), ("publish.replay", "insecure-address")],
        ),
        ("state_dir: s\npublish: {replay: 'tcp://127.0.0.1:5555'}", [("publish.replay", "same-address")]),
        ("state_dir: s\npublish: {replay: 'ipc:///a', bind: 'ipc:///a'}", [("publish.replay", "same-address")]),
    ],
)
def test_section_that_does_not_fit_the_pipeline_is_refused(text: str, expected: list[tuple[str, str]]) -> None:
    assert faults(f"cameras: [{{id: a, source: a.mp4}}]\n{text}\n") == expected


@pytest.mark.parametrize("name", ["", "a\nb", "http://host/x", "~/x"])
def test_invalid_folder_is_refused(name: str) -> None:
    assert check_folder("../a b/") == "../a b/"
    with pytest.raises(InvalidValue):
        check_folder(name)


def test_folders_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    text = "pipeline: count\ncameras: [{id: a, source: a.mp4}]\n"
    path.write_text(text + "state_dir: s\nsnapshots: {folder: shots}\ncascade: {model: ./m}\n")
    config = load_config(path, {})
    assert config.snapshots is not None and config.cascade is not None
    assert (config.state_dir, config.snapshots.folder, config.cascade.model) == (
        f"{tmp_path}/s",
        f"{tmp_path}/shots",
        f"{tmp_path}/m",
    )
    path.write_text(text + "state_dir: /var/lib/vision/x\ncascade: {model: clothes}\n")
    config = load_config(path, {})
    assert config.cascade is not None
    assert (config.state_dir, config.cascade.model) == ("/var/lib/vision/x", "clothes")


def test_unknown_class_of_the_cascade_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text("pipeline: track\ncameras: [{id: a, source: a.mp4}]\ncascade:\n  {model: m, classes: [persn]}\n")
    with pytest.raises(ConfigError) as caught:
        check_classes(load_config(path, {}), ("person", "car"), path)
    assert fault_keys(caught.value) == [(4, "cascade.classes[0]", "unknown-class")]
    assert "'person'" in caught.value.faults[0].message


# --- model.yaml of a classifier ---------------------------------------------------------------------------------------

SPEC = """\
name: clothes
file: clothes.onnx
input: {width: 64, height: 128}
head: {kind: classifier}
classes: [red, green]
licence: MIT
"""


def test_classifier_spec_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(SPEC)
    spec = load_classifier_spec(tmp_path)
    assert (spec.head.labels, spec.head.activation, spec.input.fit) == ("one", "softmax", "stretch")
    assert spec.classes == ("red", "green")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("kind: classifier", "kind: yolov8", ("head.kind", "literal-error")),
        ("kind: classifier", "kind: classifier, labels: two", ("head.labels", "literal-error")),
        ("classes: [red, green]", "classes: [red, red]", ("classes", "names")),
        ("classes: [red, green]", "classes: coco80", ("classes", "tuple-type")),
        ("clothes.onnx", "../clothes.onnx", ("file", "string-pattern-mismatch")),
        ("width: 64", "width: 4", ("input.width", "greater-than-equal")),
        ("width: 64, ", "", ("input.width", "missing")),
    ],
)
def test_invalid_classifier_spec_is_refused(tmp_path: Path, old: str, new: str, fault: tuple[str, str]) -> None:
    assert old in SPEC
    (tmp_path / "model.yaml").write_text(SPEC.replace(old, new))
    with pytest.raises(ModelError) as caught:
        load_classifier_spec(tmp_path)
    assert fault_keys(caught.value)[0][1:] == fault
