"""Tests of `tests.accuracy.following`, which measures tracking and counting. test_accuracy.py uses a real video."""

from __future__ import annotations

import numpy as np
import pytest

from tests.accuracy.following import Followed, clear_mot, crossings, follow, line_errors
from tests.accuracy.lines import HEIGHT, LEAST, WIDTH, grid, summary

LINE = ((500.0, 0.0), (500.0, 400.0))


def walk(*feet: tuple[float, float], track_id: int = 1) -> list[tuple[float, ...]]:
    return [(at + 1, track_id, x - 20, y - 100, 40, 100, 1) for at, (x, y) in enumerate(feet)]


@pytest.mark.parametrize(
    ("rows", "number"),
    [
        (walk((450, 300), (480, 300), (520, 300), (560, 300)), 1),
        (walk((450, 300), (502, 300), (450, 300)), 0),  # within the margin
        (walk((450, 300), (550, 300), (450, 300)), 2),
        (walk((450, 500), (550, 500)), 0),  # beyond the end
        (walk((450, 300), (550, 300)) + walk((550, 200), (450, 200), track_id=2), 2),
    ],
)
def test_labelled_crossings_are_counted(rows: list[tuple[float, ...]], number: int) -> None:
    assert crossings(np.array(rows, np.float64), LINE, 10.0) == number


def test_perfect_tracks_get_perfect_figures() -> None:
    pytest.importorskip("motmetrics")
    steps = [(100.0 + 10 * k, 300.0) for k in range(80)]
    truth = np.array(walk(*steps), np.float64)
    found = truth.copy()
    found[:, 1], found[:, 6] = -1, 0.9
    followed = follow(found, range(1, 81), 10.0, {"line": LINE})
    assert line_errors(truth, followed, 10.0, {"line": LINE}) == {"line": {"labelled": 1, "counted": 1, "error": 0.0}}
    scores = clear_mot(truth, followed.rows, range(1, 81))
    assert scores["num_switches"] == 0 and scores["precision"] == 1.0
    assert scores["recall"] == pytest.approx(79 / 80)  # an object is published when it is seen the second time
    missed = Followed(followed.rows, {"line": 0})
    assert line_errors(truth, missed, 10.0, {"line": LINE})["line"]["error"] == 1.0


def test_grid_of_lines_covers_the_frame() -> None:
    lines = grid()
    assert len(lines) == 40
    for start, end in lines.values():
        assert start != end
        for x, y in (start, end):
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
            assert x in {0, WIDTH} or y in {0, HEIGHT}, "a line ends at an edge"


def test_summary_of_lines_adds_up() -> None:
    def of(labelled: float, counted: float) -> dict[str, float]:
        return {"labelled": labelled, "counted": counted, "error": abs(counted - labelled) / labelled}

    errors = {"a": of(20, 24), "b": of(20, 19), "c": of(LEAST - 1, 1)}
    assert summary(errors) == {"labelled": 47, "error": 11 / 47, "judged": 2, "more than 10 % off": 1}
