"""Tests that all files of a program contain the masks: snapshots, the annotated video, and the `vision draw` image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from vision.cli.main import main
from vision.errors import EXIT_OK

pytestmark = pytest.mark.integration

DARK = 40  # lossy codecs leave a little brightness, and the middle line is drawn
CONFIG = """
detect: {backend: fake}
cameras: [{id: gate, source: "synthetic:160x120@30?objects=3&seed=1&frames=90"}]
analytics:
  gate:
    units: fraction
    lines: [{name: middle, points: [[0.5, 0.0], [0.5, 1.0]], anchor: center}]
privacy:
  gate:
    units: fraction
    masks: [[[0, 0.5], [0.4, 0.5], [0.4, 1], [0, 1]]]
snapshots: {folder: shots, annotate: false}
publish: {bind: "ipc://FOLDER/out"}
"""


def masked(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the part of an image of 160x120 pixels that must be black."""
    return pixels[64:116, :60]


def test_files_do_not_show_masked_areas(tmp_path: Path) -> None:
    config = tmp_path / "camera.yaml"
    config.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    video = tmp_path / "out.mp4"
    assert main(["run", str(config), "--offline", "--video", str(video)]) == EXIT_OK
    shots = [cv2.imread(str(path)) for path in sorted((tmp_path / "shots").glob("*.jpg"))]
    assert shots
    assert all(shot is not None and masked(shot).max() < DARK < shot.max() for shot in shots)
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(frames) == 90
    # The annotated video draws boxes also there, so only the background is compared.
    assert all(np.median(masked(frame)) < DARK < np.median(frame) for frame in frames)


def test_draw_does_not_show_masked_areas(tmp_path: Path) -> None:
    config = tmp_path / "camera.yaml"
    config.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    assert main(["draw", str(config), "--out", str(tmp_path / "drawn")]) == EXIT_OK
    drawn = cv2.imread(str(tmp_path / "drawn" / "gate.png"))
    assert drawn is not None
    assert masked(drawn).max() < DARK
