"""The shipped model finds people in real video as well through the whole program as its authors' figures promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.accuracy.average_precision import average_precision
from tests.accuracy.to_mot import mot_rows

VIDEO = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
TRUTH = os.environ.get("VISION_PETS_GT", "")


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
def test_average_precision(found: list[tuple[float, ...]], expected: float) -> None:
    truth = rows((1, 1, 0, 0, 10, 10, 1), (1, 2, 50, 0, 10, 10, 1), (1, 3, 90, 90, 5, 5, 0))
    assert average_precision(truth, rows(*found)) == pytest.approx(expected)


@pytest.mark.skipif(not VIDEO.exists(), reason=f"needs {VIDEO} (Debian package opencv-doc)")
@pytest.mark.skipif(not TRUTH, reason="needs VISION_PETS_GT=gt.txt, MOTChallenge 2015's ground truth of PETS09-S2L1")
def test_people_are_found_on_the_whole_video(tmp_path: Path) -> None:
    config = tmp_path / "camera.yaml"
    config.write_text(
        json.dumps(
            {
                "detect": {"score": 0.05, "classes": ["person"], "backend": "onnxruntime"},
                "cameras": [{"id": "pets", "source": str(VIDEO)}],
                "publish": {"bind": f"ipc://{tmp_path}/out"},
            }
        )
    )
    record = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "vision.cli", "run", str(config), "--offline", "--record", str(record)]
    subprocess.run(command, check=True, timeout=110)
    found = np.array(list(mot_rows(record)))
    assert len(np.unique(found[:, 0])) == 795
    assert average_precision(np.loadtxt(TRUTH, delimiter=","), found) >= 0.90
