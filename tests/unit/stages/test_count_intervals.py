"""Tests that messages contain intervals of totals, computed with the accuracy file that camera.yaml names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vision.analytics.count_accuracy import CountBlock
from vision.config import CameraAnalytics, load_config
from vision.errors import ConfigError
from vision.evaluation.count_errors import add_clip
from vision.messaging import codec
from vision.stages.analytics import AnalyticsStage
from vision.types import FrameMeta, Result, Timing, Tracks

SECTION = {
    "lines": [{"name": "door", "points": [[50, 0], [50, 100]], "anchor": "center"}],
    "zones": [{"name": "hall", "polygon": [[50, 0], [100, 0], [100, 100], [50, 100]], "anchor": "center"}],
}


def frame(index: int, x: float) -> Result:
    box = np.array([[x - 2, 40, x + 2, 48]], np.float32)
    one = np.zeros(1, np.int64)
    tracks = Tracks(box, np.ones(1, np.float32), np.zeros(1, np.int32), one + 7, one)
    meta = FrameMeta("gate", index, 0, index * 10**8, index * 10**8, 100, 100)
    return Result(meta, tracks, Timing(0, 0, 0))


def test_counts_contain_an_interval_for_each_measured_total(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    add_clip(
        path, "clip", {"door": {"out": [CountBlock(10, 1, 0)] * 8}, "hall": {"entered": [CountBlock(10, 0, 1)] * 8}}
    )
    stage = AnalyticsStage({"gate": CameraAnalytics.model_validate({**SECTION, "accuracy": str(path)})}, ["person"])
    results = [stage(frame(index, (20, 80)[index % 2])) for index in range(200)]
    counted = results[-1].counts
    assert counted is not None
    report = codec.counts("gate", counted, 0, 0)
    door, hall = report.lines["door"], report.zones["hall"]
    assert (door.out, hall.entered) == (100, 100)
    assert door.out_interval is not None and door.out_interval[0] <= 111 <= door.out_interval[1]
    assert hall.entered_interval is not None and hall.entered_interval[0] <= 91 <= hall.entered_interval[1]
    assert door.in_interval is None and hall.left_interval is None


def test_missing_accuracy_file_is_an_error(tmp_path: Path) -> None:
    section = CameraAnalytics.model_validate({**SECTION, "accuracy": str(tmp_path / "gate.json")})
    with pytest.raises(ConfigError) as caught:
        AnalyticsStage({"gate": section}, ["person"])
    assert caught.value.code == "not-readable"


def test_path_of_the_accuracy_file_starts_at_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "camera.yaml"
    file.write_text('cameras: [{id: gate, source: "test.mp4"}]\nanalytics: {gate: {accuracy: errors/gate.json}}\n')
    assert load_config(file, {}).analytics["gate"].accuracy == str(tmp_path / "errors" / "gate.json")
