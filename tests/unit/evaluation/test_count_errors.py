"""Tests of count errors in blocks of a video, of accuracy files, and of intervals of totals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.accuracy.intervals import random_sites
from tests.unit.evaluation_tables import Row, boxes
from vision.analytics.count_accuracy import CountAccuracy, CountBlock, CountModel, load_clips
from vision.config import CameraAnalytics
from vision.errors import ConfigError
from vision.evaluation.count_errors import add_clip, check_accuracy_file, count_errors, match_times, true_passages
from vision.evaluation.passes import Video
from vision.types import Event

VIDEO = Video("", 400, 320, 240, 0.1)
SECTION = CameraAnalytics.model_validate(
    {
        "lines": [{"name": "door", "points": [[100, 0], [100, 240]], "anchor": "center"}],
        "zones": [{"name": "hall", "polygon": [[100, 0], [200, 0], [200, 240], [100, 240]], "anchor": "center"}],
    }
)


def walk(*xs: float | None, first: int = 1, object_id: int = 1) -> list[Row]:
    """Return boxes of 20x40 px whose centers have the x coordinates `xs`. None means that the object is absent."""
    return [(at, object_id, x - 10, 80.0, 20.0, 40.0) for at, x in enumerate(xs, first) if x is not None]


def crossed(frame: int, direction: str) -> tuple[int, Event]:
    return frame, Event("line_crossed", "door", "cam", 1, 0, {"direction": direction, "class": "person"})


def passed(frame: int, kind: str) -> tuple[int, Event]:
    return frame, Event(kind, "hall", "cam", 1, 0, {"class": "person"})


@pytest.mark.parametrize(
    ("true_s", "counted_s", "expected"),
    [
        ([], [], [(0, 0, 0), (0, 0, 0)]),
        ([1.0, 25.0], [1.5, 25.5], [(1, 0, 0), (1, 0, 0)]),
        ([1.0, 25.0], [25.5], [(1, 1, 0), (1, 0, 0)]),
        ([1.0], [1.5, 1.6, 30.0], [(1, 0, 1), (0, 0, 1)]),
        ([5.0, 5.1], [3.0, 4.0, 8.0], [(2, 1, 2), (0, 0, 0)]),
        ([19.9], [20.1], [(1, 0, 0), (0, 0, 0)]),
        ([], [50.0], [(0, 0, 0), (0, 0, 1)]),
    ],
)
def test_counted_times_are_matched_once(
    true_s: list[float], counted_s: list[float], expected: list[tuple[int, int, int]]
) -> None:
    assert match_times(true_s, counted_s, 40.0, window_s=1.0) == expected


@pytest.mark.parametrize(
    ("xs", "expected"),
    [
        ((50, 150, 250), ["entered", "left"]),
        ((50, 103, 50), []),  # within the margin of 4 px
        ((50, 105, 97, 103, 50), ["entered", "left"]),
        ((103, 150), ["entered", "left"]),  # appears inside, and is lost there
        ((150, *[None] * 20, 150), ["entered", "left"] * 2),
        ((150, *[None] * 10, 150), ["entered", "left"]),
        ((50, 250), []),
    ],
)
def test_passages_of_a_zone(xs: tuple[float | None, ...], expected: list[str]) -> None:
    passages = true_passages(SECTION.zones[0], "pixels", boxes(*walk(*xs)), VIDEO, 1.5)
    assert [key for _, key in passages] == expected


def test_object_in_a_zone_at_the_end_of_the_video_has_not_left() -> None:
    rows = walk(50, 150, first=390)
    assert [key for _, key in true_passages(SECTION.zones[0], "pixels", boxes(*rows), VIDEO, 1.5)] == ["entered"]


def test_errors_of_lines_and_zones_are_blocks() -> None:
    rows = [*walk(50, 150, 50), *walk(150, 50, first=300, object_id=2)]
    events = [crossed(2, "out"), crossed(350, "out"), passed(2, "zone_entered"), passed(301, "zone_left")]
    clip = count_errors(SECTION, boxes(*rows), events, "person", VIDEO, lost_s=1.5)
    assert clip["door"] == {"in": [(1, 1, 0), (1, 1, 0)], "out": [(1, 0, 0), (0, 0, 1)]}
    assert clip["hall"] == {"entered": [(1, 0, 0), (1, 1, 0)], "left": [(1, 1, 0), (1, 0, 0)]}


def test_file_keeps_clips_and_replaces_a_clip_of_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    assert add_clip(path, "monday", {"door": {"in": [CountBlock(3, 1, 0)]}}) == 1
    assert add_clip(path, "tuesday", {"door": {"in": [CountBlock(9, 0, 2)]}}) == 2
    assert add_clip(path, "monday", {"door": {"in": [CountBlock(4, 0, 0)]}}) == 2
    check_accuracy_file(path)
    assert load_clips(path) == {"monday": {"door": {"in": [(4, 0, 0)]}}, "tuesday": {"door": {"in": [(9, 0, 2)]}}}
    assert load_clips(path)["tuesday"]["door"]["in"][0].counted == 11


@pytest.mark.parametrize(
    "clips",
    [[], {"a": []}, {"a": {"door": []}}, {"a": {"door": {"in": [[1, 2]]}}}]
    + [{"a": {"door": {"in": [block]}}} for block in ([1, 2, 0], [1, 0, -1], [1, 0.5, 0], [1, 0, 0, 0], ["1", 0, 0])],
)
def test_invalid_accuracy_file_is_an_error(tmp_path: Path, clips: object) -> None:
    path = tmp_path / "gate.json"
    path.write_text(json.dumps({"schema": "vision.accuracy/1", "clips": clips}))
    with pytest.raises(ConfigError) as caught:
        load_clips(path)
    assert caught.value.code == "invalid-accuracy"


@pytest.mark.parametrize(
    ("contents", "code"),
    [(None, "not-readable"), ("{", "invalid-accuracy"), ("[]", "invalid-accuracy"), ("{}", "invalid-accuracy")],
)
def test_file_that_is_not_an_accuracy_file_is_an_error(tmp_path: Path, contents: str | None, code: str) -> None:
    path = tmp_path / "gate.json"
    if contents is not None:
        path.write_text(contents)
    with pytest.raises(ConfigError) as caught:
        load_clips(path)
    assert caught.value.code == code
    with pytest.raises(ConfigError):
        check_accuracy_file(tmp_path / "gate.yaml")


@pytest.mark.parametrize("blocks", [[CountBlock(5, 0, 0)] * 3, [CountBlock(0, 0, 0)] * 9, [CountBlock(1, 1, 0)] * 9])
def test_too_few_data_give_no_interval(blocks: list[CountBlock]) -> None:
    assert CountModel.fit(blocks) is None
    assert CountAccuracy.of_clips([{"door": {"in": blocks}}]).intervals({"door": {"in": 7}}) == {"door": {}}


def test_interval_corrects_the_bias_and_grows_with_errors_and_with_few_data() -> None:
    def interval(*blocks: CountBlock, count: int = 1000) -> tuple[int, int]:
        model = CountModel.fit(blocks)
        assert model is not None
        return model.interval(count)

    perfect = interval(*[CountBlock(10, 0, 0)] * 100)
    missing = interval(*[CountBlock(10, 1, 0)] * 100)
    false = interval(*[CountBlock(10, 0, 1)] * 100)
    uneven = interval(*[CountBlock(10, 5, 0), *[CountBlock(10, 0, 0)] * 4] * 20)
    few = interval(*[CountBlock(10, 1, 0)] * 5)
    assert perfect[0] <= 1000 <= perfect[1] and perfect[1] - perfect[0] < 20
    assert missing[0] < 1000 / 0.9 < missing[1] and missing[0] > perfect[1]
    assert false[0] < 1000 / 1.1 < false[1] and false[1] < perfect[0]
    assert uneven[1] - uneven[0] > missing[1] - missing[0]
    assert few[1] - few[0] > missing[1] - missing[0]
    low, high = interval(*[CountBlock(10, 2, 0)] * 9, count=0)
    assert low == 0 <= high


def test_intervals_of_thirty_sites_contain_the_true_counts() -> None:
    """The test uses the first 30 of the 300 sites of `python -m tests.accuracy.intervals`."""
    coverage = random_sites(30)
    assert coverage.intervals == 120 and coverage.without == 0
    assert 0.9 <= coverage.contained / coverage.intervals < 1.0
