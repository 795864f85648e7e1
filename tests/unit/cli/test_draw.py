"""Tests that `vision draw` writes an image for each camera that delivers a frame, and otherwise prints a reason."""

from __future__ import annotations

import errno
import io
import os
import re
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from tests.unit.cli.test_main import run, write_config
from vision.capture.frame_reader import read_frames
from vision.cli.draw import draw_cameras, outside_words, print_drawings
from vision.config import AppConfig
from vision.drawing.overlay import LINE_COLOR
from vision.errors import VisionError

LINE = {"name": "door", "points": ((20.0, 60.0), (140.0, 60.0))}
ZONE = {"name": "queue", "polygon": ((10.0, 70.0), (100.0, 70.0), (100.0, 110.0))}


def site(*sources: str, **sections: object) -> AppConfig:
    cameras = tuple({"id": f"c{at}", "source": source} for at, source in enumerate(sources))
    pipeline = {"pipeline": "count"} if sections else {}
    return AppConfig.model_validate({"cameras": cameras, "analytics": sections, **pipeline})


def read(path: Path) -> NDArray[np.uint8]:
    frame = cv2.imread(str(path))
    assert frame is not None
    return np.asarray(frame, np.uint8)


def has_lines(frame: NDArray[np.uint8]) -> bool:
    return int(np.all(frame == np.array(LINE_COLOR, np.uint8), axis=2).sum()) > 100


def test_each_camera_is_drawn_with_its_lines_and_zones(tmp_path: Path) -> None:
    source = "synthetic:160x120@20?frames=5&objects=1&seed=3"
    drawings = draw_cameras(site(source, source, c1={"lines": (LINE,), "zones": (ZONE,)}), tmp_path, threading.Event())
    assert [drawing.error for drawing in drawings] == ["", ""]
    assert [re.findall(r"\d+", drawing.words) for drawing in drawings] == [["0", "0"], ["1", "1"]]
    plain, drawn = (read(tmp_path / f"c{at}.png") for at in (0, 1))
    assert plain.shape == drawn.shape == (120, 160, 3)
    assert has_lines(drawn)
    assert not has_lines(plain)
    bottom = plain[100:]  # below the banner, the image is the camera's frame
    assert np.array_equal(bottom, next(read_frames(site(source).cameras[0], offline=True)).pixels[100:])


def test_camera_without_a_frame_does_not_affect_the_others(tmp_path: Path) -> None:
    missing = str(tmp_path / "gone.mp4")
    drawings = draw_cameras(site(missing, "synthetic:160x120@20?frames=1"), tmp_path / "a" / "b", threading.Event())
    assert [drawing.path for drawing in drawings] == [None, tmp_path / "a" / "b" / "c1.png"]
    assert os.strerror(errno.ENOENT) in drawings[0].error
    out = io.StringIO()
    assert print_drawings(drawings, Console(file=out, width=200)) == 1
    assert f"c0: {missing}: " in out.getvalue()
    assert print_drawings(drawings[1:], Console(file=out)) == 0


@pytest.mark.parametrize("options", ["frames=0", "frames=3&corrupt=0:3", "fail=0"])
def test_camera_without_a_frame_has_a_reason(options: str, tmp_path: Path) -> None:
    (drawing,) = draw_cameras(site(f"synthetic:160x120@20?{options}"), tmp_path, threading.Event())
    assert drawing.path is None
    assert drawing.error


def test_damaged_frame_is_skipped(tmp_path: Path) -> None:
    (drawing,) = draw_cameras(site("synthetic:160x120@20?frames=3&corrupt=0:2"), tmp_path, threading.Event())
    assert drawing.path is not None


@pytest.mark.integration
def test_hanging_camera_is_given_up_after_its_time_outs(tmp_path: Path) -> None:
    camera = {"id": "c0", "source": "synthetic:160x120@20?hang=0:20", "open_timeout_s": 0.1, "read_timeout_s": 0.1}
    (drawing,) = draw_cameras(AppConfig.model_validate({"cameras": (camera,)}), tmp_path, threading.Event())
    assert drawing.path is None
    assert drawing.error


def test_frame_of_another_size_than_announced_is_drawn(tmp_path: Path) -> None:
    (drawing,) = draw_cameras(site("synthetic:160x120@20?frames=5&resize=0:200x100"), tmp_path, threading.Event())
    assert drawing.path is not None
    assert read(drawing.path).shape == (100, 200, 3)


def test_points_outside_of_the_frame_are_listed() -> None:
    sections = site("synthetic:", c0={"lines": (LINE,), "zones": (ZONE,)}).analytics["c0"]
    assert list(outside_words(sections, 120, 160)) == []
    line_text, zone_text = outside_words(sections, 100, 90)
    assert [part for part in ("door", "[140, 60]", "90x100") if part not in line_text] == []
    assert [part for part in ("queue", "[100, 70]", "[100, 110]") if part not in zone_text] == []
    for units, whole in (("fraction", 1.0), ("percent", 100.0)):
        line = {"name": "a", "points": ((0.0, 0.0), (whole, whole))}
        of_the_whole = site("synthetic:", c0={"units": units, "lines": (line,)})
        assert list(outside_words(of_the_whole.analytics["c0"], 1, 1)) == []


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VisionError) as caught:
        draw_cameras(site("synthetic:"), tmp_path / "file" / "sub", threading.Event())
    assert str(tmp_path / "file" / "sub") in str(caught.value)


def test_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "c0.png").mkdir()
    (drawing,) = draw_cameras(site("synthetic:160x120?frames=1"), tmp_path, threading.Event())
    assert str(tmp_path / "c0.png") in drawing.error


@pytest.mark.integration
def test_draw_command_exits_with_1_if_a_camera_gives_no_frame(tmp_path: Path) -> None:
    done = run("draw", str(write_config(tmp_path)), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.png").exists()
    broken = run("draw", str(write_config(tmp_path, source=str(tmp_path / "gone.mp4"))), "--out", str(tmp_path))
    assert broken.returncode == 1
    assert "gone.mp4" in broken.stdout
    assert run("draw", str(tmp_path / "none.yaml")).returncode == 78
