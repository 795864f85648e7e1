"""Tests of the AP of the shipped detector in each precision, as measured by `tests.perf.precisions`."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.perf import precisions
from tests.perf.results import PerfResult
from vision.benchmark.frames import load_frames, shipped_clip
from vision.detect.classes import class_names
from vision.optimize.accuracy import Labels, detect_all
from vision.runtime.builder import find_model


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Return frames of the shipped clip as images. The labels are the detections of the shipped detector."""
    folder, spec = find_model("nanodet-g-416")
    frames = load_frames(shipped_clip(), 4)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        assert cv2.imwrite(str(tmp_path / "frames" / f"{number}.png"), frame)
    person = class_names(spec).index("person")
    rows = []
    for number, found in enumerate(detect_all(folder / spec.file, spec, frames, lambda _: None), 1):
        for index in np.flatnonzero((found.class_ids == person) & (found.scores >= 0.35)).tolist():
            x1, y1, x2, y2 = found.boxes_xyxy[index].tolist()
            rows.append(f"{number},{index + 1},{x1},{y1},{x2 - x1},{y2 - y1},1\n")
    (tmp_path / "gt.txt").write_text("".join(rows))
    return Labels(str(tmp_path / "frames"), tmp_path / "gt.txt")


@pytest.mark.integration
def test_each_precision_has_a_value_or_a_reason(
    labels: Labels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[PerfResult] = []
    monkeypatch.setattr(precisions, "save", saved.append)
    arguments = ["precisions", "--video", labels.video, "--truth", str(labels.truth)]
    monkeypatch.setattr("sys.argv", arguments)
    precisions.main()
    (found,) = saved
    assert json.loads(capsys.readouterr().out) == found.figures
    reference, *others = found.figures["rows"]
    assert reference["backend"] == "onnxruntime"
    assert reference["ap50"] > 0.9
    assert [row["precision"] for row in others] == ["fp32", "fp16", "bf16"]
    for row in others:
        assert row.get("ap50", 1.0) > 0.8
        assert ("ap50" in row) != bool(row.get("reason"))
