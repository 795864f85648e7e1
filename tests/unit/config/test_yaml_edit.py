"""Tests that a change in the text of a configuration keeps comments, order, and format of all unchanged parts."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.config.yaml_edit import as_yaml, with_value
from vision.config.yaml_reader import parse_document
from vision.errors import ConfigError

FILE = """\
# of the shop
cameras:
  - {id: gate, source: "rtsp://192.0.2.1/1", user: viewer, password: "${GATE}"}   # at the door

analytics:
  gate:   # since May
    units: percent      # of the frame
    lines:
      - name: door       # main entrance
        points: [[20, 60], [70, 60]]   # from the left
      # the second
      - {name: back, points: [[1, 2], [3, 40]]}
    zones:
    - name: queue
      polygon: [[20, 30], [70, 30], [70, 55], [20, 55]]
      crowd_threshold: 5             # crowded

# rules follow
rules:
  - {name: long, when: crowded queue for 1m}
"""
DOOR: dict[str, Any] = {"name": "door", "points": [[20, 60], [70, 60]]}
BACK: dict[str, Any] = {"name": "back", "points": [[1, 2], [3, 40]]}
QUEUE: dict[str, Any] = {
    "name": "queue",
    "polygon": [[20, 30], [70, 30], [70, 55], [20, 55]],
    "crowd_threshold": 5,
}
GATE: dict[str, Any] = {"units": "percent", "lines": [DOOR, BACK], "zones": [QUEUE]}


def changed_lines(content: dict[str, Any], text: str = FILE) -> tuple[list[str], list[str]]:
    """Change `analytics.gate` to `content`. Return the removed lines and the added lines."""
    before, after = text.splitlines(), with_value(text, ("analytics", "gate"), content).splitlines()
    return [line for line in before if line not in after], [line for line in after if line not in before]


def test_equal_value_changes_nothing() -> None:
    assert with_value(FILE, ("analytics", "gate"), GATE) == FILE


def test_moved_point_changes_one_line_and_keeps_its_comment() -> None:
    removed, added = changed_lines({**GATE, "lines": [{**DOOR, "points": [[25, 60], [70, 60]]}, BACK]})
    assert removed == ["        points: [[20, 60], [70, 60]]   # from the left"]
    assert added == ["        points: [[25, 60], [70, 60]]   # from the left"]


def test_new_line_is_added_behind_the_others() -> None:
    removed, added = changed_lines({**GATE, "lines": [DOOR, BACK, {"name": "yard", "points": [[0, 0], [9, 9]]}]})
    assert (removed, added) == ([], ["      - {name: yard, points: [[0, 0], [9, 9]]}"])


def test_removed_line_leaves_the_others() -> None:
    removed, added = changed_lines({**GATE, "lines": [BACK]})
    assert len(removed) == 2 and all("door" in line or "from the left" in line or True for line in removed)
    assert removed == [
        "      - name: door       # main entrance",
        "        points: [[20, 60], [70, 60]]   # from the left",
    ]
    assert added == []


def test_last_entry_is_removed_and_a_new_one_added() -> None:
    text = with_value(FILE, ("analytics", "gate"), {**GATE, "lines": [DOOR, {"name": "a"}, {"name": "b"}]})
    assert "back" not in text and "- {name: a}\n      - {name: b}\n" in text


def test_new_keys_of_a_list_that_is_as_far_left_as_its_key() -> None:
    hole = {**QUEUE, "holes": [[[30, 40], [40, 40], [35, 45]]]}
    removed, added = changed_lines({**GATE, "zones": [hole], "ground": {"points": [[1, 2]], "metres": [[3, 4]]}})
    assert removed == []
    assert added == [
        "      holes: [[[30, 40], [40, 40], [35, 45]]]",
        "    ground:",
        "      points: [[1, 2]]",
        "      metres: [[3, 4]]",
    ]
    removed, added = changed_lines({**GATE, "zones": []})
    assert len(removed) == 4 and added == ["    zones: []"]


@pytest.mark.parametrize(
    "text",
    [
        "cameras: []\n",
        "cameras: []",
        "cameras: []\nanalytics:\n",
        "cameras: []\nanalytics: {}  # none\n",
        "cameras: []\nanalytics:\n  gate:\n",
        "cameras: []\nanalytics:\n  yard: {}\n",
        "{cameras: [], analytics: {}}",
        '{"cameras": []}',
        "cameras: []\r\nanalytics:\r\n  gate: {lines: [{name: no}]}\r\nrules: []\r\n",
        "---\ncameras: []\n...\n",
        "analytics:\n  gate:\n    lines:\n    - name: a\n      classes: |\n        text\n\n\nrules: []\n",
        "cameras: &all []\nother: *all\n",
    ],
)
def test_section_is_added_to_every_form(text: str) -> None:
    changed = with_value(text, ("analytics", "gate"), GATE)
    before, after = parse_document(text, "").plain(), parse_document(changed, "").plain()
    assert after["analytics"]["gate"] == parse_document(as_yaml(GATE), "").plain()  # type: ignore[index]
    assert {key: value for key, value in after.items() if key != "analytics"} == {
        key: value for key, value in before.items() if key != "analytics"
    }
    assert changed.count("\r\n") in {0, changed.count("\n")}


def test_alias_is_refused_if_a_second_camera_would_change_too() -> None:
    text = "analytics:\n  gate: &same\n    units: percent\n    lines: []\n  yard: *same\n"
    with pytest.raises(ConfigError) as caught:
        with_value(text, ("analytics", "gate"), {"units": "fraction", "lines": []})
    assert caught.value.code == "not-editable"
    with pytest.raises(ConfigError) as caught:
        with_value(text, ("analytics", "yard"), {"units": "fraction", "lines": []})
    assert caught.value.code == "not-editable"


@pytest.mark.parametrize("name", ["no", "NULL", "1e3", "12", "-", "a: b", "${NAME}", "#x", "é", "\u2028"])
def test_text_that_yaml_reads_otherwise_is_quoted(name: str) -> None:
    text = with_value("cameras: []\n", ("analytics", "gate"), {"lines": [{"name": name}]})
    assert yaml.safe_load(text)["analytics"]["gate"]["lines"] == [{"name": name}]


NAMES = st.sampled_from(["a", "b", "c", "d", "no"])
POINTS = st.lists(st.lists(st.sampled_from([0, 0.5, 1e-7, 20, 1.0]), min_size=2, max_size=2), max_size=3)
SHAPES = st.fixed_dictionaries(
    {"name": NAMES}, optional={"points": POINTS, "holes": st.lists(POINTS, max_size=2), "n": st.none() | st.integers()}
)
SECTIONS = st.dictionaries(
    st.sampled_from(["lines", "zones", "ground", "units"]),
    st.lists(SHAPES, max_size=4)
    | st.dictionaries(NAMES, POINTS, max_size=2)
    | st.sampled_from(["", "a", "b c", "no", "é # x", "1"])
    | st.none(),
    max_size=4,
)


@settings(max_examples=40)
@given(before=SECTIONS, after=SECTIONS, other=SECTIONS, flow=st.sampled_from([True, False, None]), tail=st.booleans())
def test_any_section_becomes_any_other_section(
    before: dict[str, Any], after: dict[str, Any], other: dict[str, Any], flow: bool | None, tail: bool
) -> None:
    content: dict[str, Any] = {"cameras": [], "analytics": {"gate": before, "yard": other}}
    if tail:
        content["rules"] = [{"name": "x"}]
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=flow)
    plain = parse_document(text, "").plain()
    changed = parse_document(with_value(text, ("analytics", "gate"), after), "").plain()
    assert changed == {**plain, "analytics": {**plain["analytics"], "gate": _tuples(after)}}  # type: ignore[dict-item]


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
