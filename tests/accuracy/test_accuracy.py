"""Test that the shipped model and the tracker are as accurate on real video as the documentation states."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.accuracy.average_precision import average_precision
from tests.accuracy.following import Floats, clear_mot, follow, line_errors
from tests.accuracy.lines import errors_of, summary
from tests.unit.evaluation_tables import needs_trackeval
from vision.evaluation.evaluate import Request, evaluate, open_subject
from vision.evaluation.mot import write_boxes
from vision.evaluation.passes import boxes_of_class, run_pipeline
from vision.evaluation.report import write_json

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


@dataclass(frozen=True)
class Measured:
    """Results of one run of the pipeline on the whole video. The rows have the format of `mot_rows`."""

    metrics: Mapping[str, Any]
    tracks: Floats
    detections: Floats  # of score 0.15 and more, which the tracker reads


def measure(folder: Path) -> Measured:
    """Run `vision eval` on the video in this process. Return the results with the tracks and detections."""
    config = folder / "camera.yaml"
    site = {
        "pipeline": "track",
        "detect": {"backend": "onnxruntime", "classes": ["person"]},
        "cameras": [{"id": "pets", "source": str(VIDEO)}],
    }
    config.write_text(json.dumps(site))
    stop = threading.Event()
    subject = open_subject(Request(str(config), Path(TRUTH)), stop)
    findings = run_pipeline(subject.build, subject.config, lambda _: None, stop)
    evaluation, _ = evaluate(subject, findings, str(config), 1.0)
    write_json(evaluation, folder / "out.json")
    tables = []
    for found in (findings.objects, findings.detections):
        write_boxes(folder / "result.txt", boxes_of_class(found, subject.class_id))
        tables.append(np.loadtxt(folder / "result.txt", delimiter=",")[:, :7])
    tracks, detections = tables
    metrics = json.loads((folder / "out.json").read_text())
    return Measured(metrics, tracks, detections[detections[:, 6] >= 0.15])


def check_tracking(measured: Measured, truth: Floats) -> None:
    """Check the tracking metrics against the limits of the test, and against the values that motmetrics computes."""
    result = measured.metrics
    assert result["video"]["frames"] == 795
    assert result["detection"]["ap50"] >= 0.90
    tracking = result["tracking"]
    assert tracking["mota"] >= 0.80 and tracking["idf1"] >= 0.75 and tracking["switches"] <= 25, tracking
    scores = clear_mot(truth, measured.tracks, FRAMES)
    assert tracking["mota"] == pytest.approx(scores["mota"], abs=5e-4)
    assert tracking["idf1"] == pytest.approx(scores["idf1"], abs=5e-4)
    assert tracking["switches"] == scores["num_switches"]


def check_counting(found: Floats, truth: Floats) -> None:
    """Track and count the detections at the full, half, and quarter frame rate of the video. Check the counts."""
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


@pytest.mark.timeout(900)
@needs_trackeval
@pytest.mark.skipif(not VIDEO.exists(), reason=f"needs {VIDEO} (Debian package opencv-doc)")
@pytest.mark.skipif(not TRUTH, reason="needs VISION_PETS_GT=gt.txt, MOTChallenge 2015's ground truth of PETS09-S2L1")
def test_accuracy_on_the_whole_video(tmp_path: Path) -> None:
    """Detect, track, and count. This is one test, because the detection takes 30 seconds."""
    pytest.importorskip("motmetrics")
    measured, truth = measure(tmp_path), np.loadtxt(TRUTH, delimiter=",")
    check_tracking(measured, truth)
    check_counting(measured.detections, truth)
