"""Following and counting on real video: as right as promised at the clip's rate, and at half and a quarter of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.accuracy.following import Floats, Followed, clear_mot, crossings, follow, line_errors
from tests.accuracy.lines import HEIGHT, LEAST, WIDTH, errors_of, grid, summary
from tests.accuracy.to_mot import mot_rows

VIDEO = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
TRUTH = os.environ.get("VISION_PETS_GT", "")
FRAMES = range(1, 796)

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


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Floats:
    folder = tmp_path_factory.mktemp("pets")
    config = folder / "camera.yaml"
    config.write_text(
        json.dumps(
            {
                "detect": {"score_threshold": 0.15, "classes": ["person"], "backend": "onnxruntime"},
                "cameras": [{"id": "pets", "source": str(VIDEO)}],
                "publish": {"bind": f"ipc://{folder}/out"},
            }
        )
    )
    record = folder / "results.jsonl"
    command = [sys.executable, "-m", "vision.cli.main", "run", str(config), "--offline", "--record", str(record)]
    subprocess.run(command, check=True, timeout=110)
    return np.array(list(mot_rows(record)), np.float64)


@pytest.mark.skipif(not VIDEO.exists(), reason=f"needs {VIDEO} (Debian package opencv-doc)")
@pytest.mark.skipif(not TRUTH, reason="needs VISION_PETS_GT=gt.txt, MOTChallenge 2015's ground truth of PETS09-S2L1")
def test_counting_accuracy_on_the_whole_video(found: Floats) -> None:
    pytest.importorskip("motmetrics")
    truth = np.loadtxt(TRUTH, delimiter=",")
    followed = follow(found, FRAMES, 10.0)
    whole = clear_mot(truth, followed.rows, FRAMES)
    assert whole["mota"] >= 0.80 and whole["idf1"] >= 0.75 and whole["num_switches"] <= 25, whole
    errors = line_errors(truth, followed, 10.0)
    assert all(line["labelled"] >= 15 and line["error"] <= 0.10 for line in errors.values()), errors
    over_the_frame = summary(errors_of(truth, found, FRAMES, 10.0))
    assert over_the_frame["labelled"] > 800 and over_the_frame["error"] <= 0.045, over_the_frame
    for every, fall in ((2, 0.05), (4, 0.15)):
        for first in range(1, every + 1):
            frames = range(first, 796, every)
            scores = clear_mot(truth, follow(found, frames, 10.0).rows, frames)
            assert scores["mota"] > whole["mota"] - fall, (every, first, scores)
