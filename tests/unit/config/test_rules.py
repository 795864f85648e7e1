"""Rules, cascade, snapshots and state: their grammar, and what about them does not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.unit.config.fault_lines import fault_lines
from vision.config import AppConfig, RuleConfig, check_classes, load_classifier_spec, load_config, load_config_text
from vision.config.addresses import check_folder
from vision.config.rules import Condition, duration_s, parse_when
from vision.config.wording import InvalidValue
from vision.errors import ConfigError, ModelError

SITE = """\
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


def faults(text: str) -> list[str]:
    """Return the faults of a document, without file and line."""
    try:
        load_config_text(text, {})
    except ConfigError as error:
        return [line.split(": ", 1)[1] for line in fault_lines(str(error))]
    return []


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
    ("text", "words"),
    [
        ("", "expected KIND NAME, or KIND NAME for DURATION, such as crowded queue for 10s"),
        ("crowded", "a line or zone follows the kind"),
        (
            "crwded queue",
            "KIND is line_crossed, zone_entered, zone_left, crowded or dwelling (did you mean 'crowded'?)",
        ),
        ("crwded", "did you mean 'crowded'?"),
        ("full queue", "KIND is line_crossed, zone_entered, zone_left, crowded or dwelling"),
        ("crowded queue 10s", "'for' stands before"),
        ("crowded queue for", "a duration follows 'for'"),
        ("crowded queue for 10 s", "did you mean '10s'?"),
        ("crowded road for 10 seconds", "did you mean '10s'?"),
        ("crowded road for 2 Min", "did you mean '2m'?"),
        ("crowded road for 3 weeks", "the units are ms, s, m, h and d"),
        ("crowded queue in 10s", "expected KIND NAME, or"),
        ("crowded que/ue", "NAME is a name of at most 64 letters"),
        ("crowded queue for ten", "a duration such as 500ms, 10s, 5m, 2h or 1d"),
        ("crowded queue for 10", "did you mean '10s'?"),
        ("crowded queue for -1s", "a duration such as"),
        ("crowded queue for 31d", "at most 30d"),
        ("line_crossed door for 10s", "line_crossed NAME alone (it has no duration; crowded and dwelling last)"),
    ],
)
def test_invalid_condition_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_when(text)
    assert words in str(caught.value)


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


# --- together ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("[{name: r, when: crowded queue for 10s, cooldown: 60s}]", []),
        ("[{name: r, when: line_crossed door, cameras: [gate]}]", []),
        ("[{name: r, when: zone_left lawn}]", []),
        ("[{name: r, when: dwelling queue for 30s, cameras: [gate]}]", []),
        (
            "[{name: r, when: crowded queu for 10s}]",
            ["rules[0].when: no line or zone is called 'queu'; expected door, lawn or queue (did you mean 'queue'?)"],
        ),
        (
            "[{name: r, when: line_crossed door, cameras: [gate, yard]}]",
            ["rules[0].when: no line or zone of camera yard is called 'door'; expected door, lawn or queue"],
        ),
        (
            "[{name: r, when: line_crossed door, cameras: [gate, bare]}]",
            ["rules[0].cameras[1]: expected a camera that has lines or zones under analytics"],
        ),
        (
            "[{name: r, when: crowded door}]",
            ["rules[0].when: door in analytics.gate is a line; expected line_crossed, got 'crowded'"],
        ),
        (
            "[{name: r, when: line_crossed lawn}]",
            ["rules[0].when: lawn in analytics.gate is a zone; expected zone_entered, zone_left, crowded or dwelling"],
        ),
        (
            "[{name: r, when: crowded lawn}]",
            ["rules[0].when: lawn in analytics.gate has no crowd_threshold, so it is never crowded"],
        ),
        (
            "[{name: r, when: dwelling queue}]",
            ["rules[0].when: queue in analytics.yard has no dwell_s, so it is never dwelling"],
        ),
        (
            "[{name: r, when: dwelling queue for 29s, cameras: [gate]}]",
            ["rules[0].when: expected at least the 30s that dwell_s of queue in analytics.gate has"],
        ),
        (
            "[{name: r, when: crowded queue for 4s}]",
            ["rules[0].when: expected at least the 5s that crowded_for_s of queue in analytics.gate has"],
        ),
        (
            "[{name: r, when: zone_left lawn}, {name: r, when: line_crossed door}]",
            ["rules[1].name: duplicate name 'r', first on line 11"],
        ),
        ("[{name: r, when: crowded}]", ["rules[0].when: expected KIND NAME, or KIND NAME for DURATION, such as"]),
        (
            "[{name: r, when: zone_left lawn, cooldown: 60}]",
            ["rules[0].cooldown: expected a duration such as 500ms, 10s, 5m, 2h or 1d, got 60"],
        ),
    ],
)
def test_rule_must_fit_its_line_or_zone(rules: str, expected: list[str]) -> None:
    found = faults(f"{SITE}rules: {rules}\n")
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_rules_built_in_python_are_checked() -> None:
    rule = {"name": "r", "when": "crowded queue"}
    cameras = ({"id": "a", "source": "a.mp4"},)
    with pytest.raises(ValidationError, match="no line or zone is called 'queue'; expected some under analytics"):
        AppConfig.model_validate({"pipeline": "count", "cameras": cameras, "rules": (rule,)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pipeline: detect\ncascade: {model: ./m}", ["cascade: the pipeline detect does not track objects; expected"]),
        ("pipeline: track\ncascade: {model: ./m}", []),
        ("pipeline: track\nsnapshots: {folder: x}", ["snapshots: the pipeline track has no events; expected"]),
        ("pipeline: mine.py\nsnapshots: {folder: x, kinds: [fell]}", []),
        ("pipeline: count\nsnapshots: {folder: x, kinds: [rule, crowded]}", []),
        (
            "pipeline: count\nsnapshots: {folder: x, kinds: [rule, crowd]}",
            ["snapshots.kinds[1]: expected line_crossed, zone_entered, zone_left, crowded, dwelling or rule, got"],
        ),
        ("pipeline: count\nsnapshots: {folder: ~/x}", ["snapshots.folder: expected the whole path, got '~/x'"]),
        ("state_dir: ''", ["state_dir: expected the path of a folder, got ''"]),
        ("publish: {replay: 'tcp://*:5556'}", ["publish.replay: needs state_dir: the folder in which events are kept"]),
        ("state_dir: s\npublish: {replay: 'tcp://*:5556'}", []),
        ("state_dir: s\npublish: {replay: 'tcp://*:*', bind: 'tcp://*:*'}", []),
        ("state_dir: s\npublish: {replay: 'tcp://*:5555'}", ["publish.replay: expected another address and port than"]),
        (
            "state_dir: s\npublish: {replay: 'ipc:///a', bind: 'ipc:///a'}",
            ["publish.replay: expected another address and port than publish.bind has"],
        ),
    ],
)
def test_sections_must_fit_the_pipeline(text: str, expected: list[str]) -> None:
    found = faults(f"cameras: [{{id: a, source: a.mp4}}]\n{text}\n")
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("name", ["", "a\nb", "http://host/x", "~/x"])
def test_invalid_folder_is_refused(name: str) -> None:
    assert check_folder("../a b/") == "../a b/"
    with pytest.raises(InvalidValue):
        check_folder(name)


def test_folders_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    text = "pipeline: count\ncameras: [{id: a, source: a.mp4}]\n"
    path.write_text(text + "state_dir: s\nsnapshots: {folder: shots}\ncascade: {model: ./m}\n")
    site = load_config(path, {})
    assert site.snapshots is not None and site.cascade is not None
    assert (site.state_dir, site.snapshots.folder, site.cascade.model) == (
        f"{tmp_path}/s",
        f"{tmp_path}/shots",
        f"{tmp_path}/m",
    )
    path.write_text(text + "state_dir: /var/lib/vision/x\ncascade: {model: clothes}\n")
    site = load_config(path, {})
    assert site.cascade is not None
    assert (site.state_dir, site.cascade.model) == ("/var/lib/vision/x", "clothes")


def test_unknown_class_of_the_cascade_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text("pipeline: track\ncameras: [{id: a, source: a.mp4}]\ncascade:\n  {model: m, classes: [persn]}\n")
    with pytest.raises(ConfigError) as caught:
        check_classes(load_config(path, {}), ("person", "car"), path)
    assert "camera.yaml:4:24: cascade.classes[0]:" in str(caught.value)
    assert "no class 'persn' (did you mean 'person'?)" in str(caught.value)


# --- the card of a classifier -----------------------------------------------------------------------------------------

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
        ("kind: classifier", "kind: yolov8", "head.kind: expected 'classifier', got 'yolov8'"),
        ("kind: classifier", "kind: classifier, labels: two", "head.labels: expected 'one' or 'many', got 'two'"),
        ("classes: [red, green]", "classes: [red, red]", "classes: expected a list of at least 1 name"),
        ("classes: [red, green]", "classes: coco80", "classes: expected a list of names, got 'coco80'"),
        ("clothes.onnx", "../clothes.onnx", "file: expected the name of an .onnx file"),
        ("width: 64", "width: 4", "input.width: expected a whole number from 8 to 4096, got 4"),
        ("width: 64, ", "", "input.width: missing"),
    ],
)
def test_invalid_classifier_spec_is_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in SPEC
    (tmp_path / "model.yaml").write_text(SPEC.replace(old, new))
    with pytest.raises(ModelError) as caught:
        load_classifier_spec(tmp_path)
    assert fault in str(caught.value)
