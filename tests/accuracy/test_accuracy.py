"""The shipped model and tracker are as right on real video, through the whole program, as is promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.accuracy.average_precision import average_precision
from tests.accuracy.following import clear_mot
from tests.unit.evaluation_tables import needs_trackeval

VIDEO = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
TRUTH = os.environ.get("VISION_PETS_GT", "")
FRAMES = range(1, 796)


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(1, -1, 0, 0, 10, 10, 0.9), (1, -1, 50, 0, 10, 10, 0.8)], 1.0),
        ([(1, -1, 0, 0, 10, 10, 0.9)], 0.5),
        ([(1, -1, 0, 0, 10, 10, 0.9), (1, -1, 1, 0, 10, 10, 0.8)], 0.5),  # the second finds the same object again
        ([(1, -1, 80, 0, 10, 10, 0.9), (1, -1, 0, 0, 10, 10, 0.8)], 0.25),
        ([(2, -1, 0, 0, 10, 10, 0.9)], 0.0),
    ],
)
def test_average_precision_matches_known_values(found: list[tuple[float, ...]], expected: float) -> None:
    truth = rows((1, 1, 0, 0, 10, 10, 1), (1, 2, 50, 0, 10, 10, 1), (1, 3, 90, 90, 5, 5, 0))
    assert average_precision(truth, rows(*found)) == pytest.approx(expected)


@pytest.mark.timeout(300)
@needs_trackeval
@pytest.mark.skipif(not VIDEO.exists(), reason=f"needs {VIDEO} (Debian package opencv-doc)")
@pytest.mark.skipif(not TRUTH, reason="needs VISION_PETS_GT=gt.txt, MOTChallenge 2015's ground truth of PETS09-S2L1")
def test_detection_and_tracking_accuracy_on_the_whole_video(tmp_path: Path) -> None:
    pytest.importorskip("motmetrics")
    config = tmp_path / "camera.yaml"
    site = {
        "pipeline": "track",
        "detect": {"backend": "onnxruntime", "classes": ["person"]},
        "cameras": [{"id": "pets", "source": str(VIDEO)}],
    }
    config.write_text(json.dumps(site))
    outputs = ["--json", str(tmp_path / "out.json"), "--result", str(tmp_path / "result.txt")]
    command = [sys.executable, "-m", "vision.cli.main", "eval", str(config), "--truth", TRUTH, *outputs]
    subprocess.run(command, check=True, timeout=280)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["video"]["frames"] == 795
    assert result["detection"]["ap50"] >= 0.90
    tracking = result["tracking"]
    assert tracking["mota"] >= 0.80 and tracking["idf1"] >= 0.75 and tracking["switches"] <= 25, tracking
    scores = clear_mot(np.loadtxt(TRUTH, delimiter=","), np.loadtxt(tmp_path / "result.txt", delimiter=","), FRAMES)
    assert tracking["mota"] == pytest.approx(scores["mota"], abs=5e-4)
    assert tracking["idf1"] == pytest.approx(scores["idf1"], abs=5e-4)
    assert tracking["switches"] == scores["num_switches"]
