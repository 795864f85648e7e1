"""Tests of the curve of removed false alarms and lost true events, and of files of labeled events."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.errors import ConfigError
from vision.evaluation.language.judgments import Judgment, Judgments, Share
from vision.evaluation.language.labels import read_labels


def judgment(is_true: bool, probability: float | None, *, keeps: bool | None = None) -> Judgment:
    kept = (probability is None or probability >= 0.5) if keeps is None else keeps
    error = "too-slow" if probability is None else ""
    return Judgment(1, is_true, kept, probability, "" if error else "yes", error, None if error else 5.0)


def judgments(*each: Judgment) -> Judgments:
    return Judgments("gate", "Is it true?", "tiny", each)


TRUE = [judgment(True, p) for p in (0.9, 0.8, 0.6, 0.4)]
FALSE = [judgment(False, p) for p in (0.7, 0.3, 0.2, 0.1)]


def test_answers_remove_events() -> None:
    both = judgments(*TRUE, *FALSE)
    assert (both.removed.count, both.removed.total) == (3, 4)
    assert (both.lost.count, both.lost.total) == (1, 4)
    assert both.errors == {}


def test_curve_has_a_point_for_each_threshold() -> None:
    points = [(point.removed, point.lost) for point in judgments(*TRUE, *FALSE).curve()]
    assert points == [(0, 0), (0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (4, 2), (4, 3), (4, 4)]


@pytest.mark.parametrize(("most_lost", "removed"), [(0.0, 3), (0.24, 3), (0.5, 4), (1.0, 4)])
def test_best_threshold_within_a_limit(most_lost: float, removed: int) -> None:
    best = judgments(*TRUE, *FALSE).best(most_lost)
    assert best.removed == removed
    assert best.lost <= most_lost * 4


def test_event_without_an_answer_is_kept_or_removed_at_every_threshold() -> None:
    sent = judgments(*TRUE, *FALSE, judgment(False, None))
    assert sent.removed == Share(3, 5)
    assert max(point.removed for point in sent.curve()) == 4
    dropped = judgments(*TRUE, *FALSE, judgment(True, None, keeps=False))
    assert dropped.lost == Share(2, 5)
    assert min(point.lost for point in dropped.curve()) == 1
    assert dropped.best(0.0) == dropped.curve()[0]
    assert dropped.errors == {"too-slow": 1}


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (0, 0, 0.0, 1.0)],
)
def test_interval_is_that_of_wilson(count: int, total: int, low: float, high: float) -> None:
    assert Share(count, total).interval == pytest.approx((low, high), abs=1e-4)


outcomes = st.lists(st.tuples(st.booleans(), st.one_of(st.none(), st.floats(0, 1)), st.booleans()), min_size=1)


@given(outcomes)
def test_curve_is_monotonic_and_contains_its_best_points(rows: list[tuple[bool, float | None, bool]]) -> None:
    both = judgments(*(judgment(is_true, p, keeps=keeps) for is_true, p, keeps in rows))
    curve = both.curve()
    assert [point.threshold for point in curve] == sorted({point.threshold for point in curve})
    assert all(b.removed >= a.removed and b.lost >= a.lost for a, b in pairwise(curve))
    assert curve[-1].threshold == math.inf
    unanswered_kept = sum(each.probability is None and each.keeps for each in both.judgments)
    assert curve[-1].removed + curve[-1].lost == len(rows) - unanswered_kept
    assert both.best(1.0).removed == curve[-1].removed


# ------------------------------------------------------------------------------------------------ labels


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"an image, which is not opened")
    return tmp_path


def label(is_true: object = True, **keys: Any) -> str:
    return json.dumps({"true": is_true, "camera": "gate", "kind": "rule", "name": "fence", "snapshot": "a.jpg"} | keys)


def write(folder: Path, *lines: str) -> Path:
    path = folder / "labels.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_events_of_a_recording_are_read(images: Path) -> None:
    event = {
        "schema": "vision.events/1",
        "seq": 3,
        "data": {"class": "person"},
        "box": [1, 2, 3, 4],
        "at": "2026-11-29",
    }
    path = write(images, label(**event), "", label(False, frames=["a.jpg", "b.jpg"]))
    first, second = read_labels(path)
    assert (first.line, first.is_true, first.data, first.box) == (1, True, {"class": "person"}, (1, 2, 3, 4))
    assert (second.line, second.is_true) == (3, False)
    assert first.images == (images / "a.jpg",)
    assert second.images == (images / "a.jpg", images / "b.jpg")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        label("yes"),
        json.dumps({"camera": "gate", "kind": "rule", "name": "fence", "snapshot": "a.jpg"}),
        json.dumps({"true": True, "camera": "gate", "kind": "rule", "snapshot": "a.jpg"}),
        label(snapshot=None),
        label(snapshot="missing.jpg"),
        label(frames=[]),
        label(frames=["a.jpg", "missing.jpg"]),
        label(box=[1, 2, 3]),
        label(data=[1]),
        "[" * 100_000,
        '{"true": \xff}',
    ],
)
def test_every_invalid_line_is_reported(images: Path, line: str) -> None:
    path = images / "labels.jsonl"
    path.write_bytes("\n".join([label(), line, label(False), line]).encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_labels(path)
    assert caught.value.code == "labels"
    assert [fault.line for fault in caught.value.faults] == [2, 4]


@pytest.mark.parametrize("lines", [[], [label()], [label(False), label(False)]])
def test_labels_of_one_kind_are_refused(images: Path, lines: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_labels(write(images, *lines))
    assert caught.value.code == "labels-one-sided"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_labels(tmp_path / "labels.jsonl")
    assert caught.value.code == "labels-not-readable"
