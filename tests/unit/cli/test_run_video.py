"""Tests that run `vision run --video` and `vision run --show` in separate processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.paths import ROOT
from tests.short_video import save_beginning
from vision.drawing.overlay import LINE_COLOR, class_color

FRAMES = 30
COMMAND = [sys.executable, "-m", "vision.cli.main", "run"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=110, env=environment, check=False
    )


@pytest.mark.integration
def test_offline_run_writes_an_annotated_video_of_all_frames(tmp_path: Path) -> None:
    path, config = tmp_path / "out.mp4", tmp_path / "camera.yaml"
    save_beginning(ROOT / "configs" / "vtest.mp4", tmp_path / "vtest.mp4", FRAMES)
    config.write_text((ROOT / "configs" / "counting.yaml").read_text())
    done = run(str(config), "--offline", "--video", str(path), "--bind", f"ipc://{tmp_path}/out")
    assert done.returncode == 0, done.stderr
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    with_boxes = with_line = frames = 0
    while (read := capture.read())[0]:
        image = np.asarray(read[1], int)
        frames += 1
        with_boxes += int((np.abs(image - class_color(0)).max(axis=2) < 40).sum() > 300)
        with_line += int((np.abs(image[150:420, 425:436] - LINE_COLOR).max(axis=2) < 40).sum() > 100)
    assert frames == FRAMES
    assert with_boxes > 0.9 * FRAMES
    assert with_line == FRAMES


@pytest.mark.integration
def test_two_cameras_write_two_videos(tmp_path: Path) -> None:
    config = tmp_path / "camera.yaml"
    cameras = [
        {"id": name, "source": f"synthetic:160x120@20?frames={frames}"} for name, frames in (("a", 30), ("b", 40))
    ]
    config.write_text(
        json.dumps({"cameras": cameras, "detect": {"backend": "fake"}, "publish": {"bind": f"ipc://{tmp_path}/out"}})
    )
    done = run(str(config), "--offline", "--video", str(tmp_path / "out.mp4"))
    assert done.returncode == 0, done.stderr
    captures = [cv2.VideoCapture(str(tmp_path / f"out-{name}.mp4")) for name in ("a", "b")]
    assert [capture.get(cv2.CAP_PROP_FRAME_COUNT) for capture in captures] == [30, 40]
    assert [capture.get(cv2.CAP_PROP_FPS) for capture in captures] == [20, 20]


@pytest.mark.integration
def test_show_without_a_window_system_is_a_configuration_error(tmp_path: Path) -> None:
    done = run("counting", "--show", "--bind", f"ipc://{tmp_path}/out")
    assert done.returncode == 78
    assert "--video OUT.mp4" in done.stderr
    assert f"ipc://{tmp_path}/out" not in done.stderr, "the program ends before it publishes"
