"""Tests that `vision check` reports machine-dependent faults with their positions in the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vision.cli.check import check_configuration
from vision.errors import VisionError


def test_reader_that_the_detector_of_this_machine_cannot_use_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text("cameras:\n  - id: gate\n    source: http://192.0.2.1/stream\n    reader: nvdec\n")
    with pytest.raises(VisionError) as caught:
        check_configuration(str(path))
    [fault] = caught.value.faults
    assert (fault.line, fault.key, fault.code) == (4, "cameras[0].reader", "nvdec-detector")


@pytest.mark.parametrize(
    ("text", "missing", "expected"),
    [
        ("pipeline: conut", "", (1, "pipeline", "unknown-pipeline")),
        ("model: nanodet", "", (1, "model", "model-unknown")),
        ("detect: {backend: fake}", "cv2", (1, "detect.backend", "opencv-missing")),
        ("model: nanodet-g-416", "cv2", (3, "cameras[0].source", "opencv-missing")),
    ],
)
def test_missing_parts_are_reported_with_line_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, missing: str, expected: tuple[int, str, str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    path = tmp_path / "camera.yaml"
    path.write_text(f"{text}\ncameras:\n  - {{id: gate, source: frame.png}}\n")
    with pytest.raises(VisionError) as caught:
        check_configuration(str(path))
    [fault] = caught.value.faults
    assert (fault.line, fault.key, fault.code) == expected
