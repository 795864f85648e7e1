"""Tests of image folders: order, rate, sizes, and files that are not images."""

from __future__ import annotations

import random
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.frame_buffers import wrap
from tests.unit.scripted_camera import SECOND, ManualClock
from vision.capture.opencv.file import ImageFolder, natural_key
from vision.capture.pacing import FramePacer
from vision.capture.source import IMAGE_SUFFIXES
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import DropReason


def write(path: Path, shade: int, height_px: int = 20, width_px: int = 30) -> Path:
    assert cv2.imwrite(str(path), np.full((height_px, width_px, 3), shade, np.uint8))
    return path


def folder(path: Path, *, fps: float | None = None, loop: bool = False, offline: bool = True) -> ImageFolder:
    clock = ManualClock()
    pacer = FramePacer(offline=offline, clock=clock, utc=clock, wait=clock.advance)
    return ImageFolder(path, pacer, fps=fps, loop=loop)


def shades(source: ImageFolder, count: int) -> list[int]:
    seen = []
    for _ in range(count):
        assert source.grab(10.0) is not None
        pixels = np.zeros((20, 30, 3), np.uint8)
        source.retrieve(wrap(pixels))
        seen.append(int(pixels[0, 0, 0]))
    return seen


def test_images_are_read_in_natural_order(tmp_path: Path) -> None:
    for name, shade in (("img10", 10), ("img2", 2), ("IMG1", 1), ("img02", 3), ("a", 0), ("img", 20)):
        write(tmp_path / f"{name}.png", shade)
    source = folder(tmp_path)
    source.open()
    assert shades(source, 6) == [0, 1, 3, 2, 10, 20]
    for _ in range(2):
        with pytest.raises(EndOfStream) as raised:
            source.grab(1)
        assert re.findall(r"\d+", raised.value.args[0].rpartition(": ")[2]) == ["6", "0"]


@pytest.mark.parametrize(
    "names",
    [["1", "2", "10"], ["a1b2", "a1b10", "a2b1"], ["9.png", "10.png"], ["x", "x1"], ["2024-9-1", "2024-10-1"]],
)
def test_natural_key_orders_numbers_by_value(names: list[str]) -> None:
    shuffled = random.Random(1).sample(names, len(names))
    assert sorted(shuffled, key=natural_key) == names


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_all_suffixes_can_be_read(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"one{suffix}", 100)
    source = folder(tmp_path)
    assert (source.open().width_px, source.open().height_px) == (30, 20)
    assert shades(source, 1)[0] == pytest.approx(100, abs=2)


def test_other_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "one.PNG", 7)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    source = folder(tmp_path)
    source.open()
    assert shades(source, 1) == [7]
    assert not source.skipped.take()


def test_unreadable_images_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "0.jpg").write_bytes(b"")
    write(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_bytes(b"not an image at all")
    write(tmp_path / "3.png", 3)
    source = folder(tmp_path, loop=True)
    source.open()
    assert shades(source, 5) == [1, 3, 1, 3, 1]
    assert source.skipped.take() == {DropReason.CORRUPT: 2}
    assert [record.message.split(":")[0].rpartition("/")[2] for record in caplog.records] == ["0.jpg", "2.png"]


@pytest.mark.parametrize("files", [{}, {"a.txt": b"text"}, {"a.jpg": b"", "b.png": b"?"}])
def test_folder_without_images_is_an_error(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as raised:
        folder(tmp_path).open()
    assert raised.value.code == "no-images"


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as raised:
        folder(tmp_path / "missing").open()
    assert raised.value.code == "file"


def test_looped_folder_whose_images_vanish_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "1.png", 1)
    source = folder(tmp_path, loop=True)
    source.open()
    assert shades(source, 2) == [1, 1]
    file.unlink()
    with pytest.raises(SourceError) as raised:
        source.grab(1)
    assert raised.value.code == "no-images"


def test_image_of_another_size_is_a_size_change(tmp_path: Path) -> None:
    write(tmp_path / "1.png", 1)
    write(tmp_path / "2.png", 2, 11, 7)
    source = folder(tmp_path)
    source.open()
    shades(source, 1)
    source.grab(1)
    with pytest.raises(SizeChanged) as change:
        source.retrieve(wrap(np.zeros((20, 30, 3), np.uint8)))
    assert (change.value.height_px, change.value.width_px) == (11, 7)
    pixels = np.zeros((11, 7, 3), np.uint8)
    source.retrieve(wrap(pixels))
    assert np.all(pixels == 2)


@pytest.mark.parametrize(("fps", "interval_s"), [(None, 1.0), (4.0, 0.25), (0.1, 10.0)])
def test_images_follow_the_configured_rate(tmp_path: Path, fps: float | None, interval_s: float) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png", number)
    live = folder(tmp_path, fps=fps, offline=False)
    assert live.open().fps == pytest.approx(1 / interval_s)
    times = [grab.captured_ns for _ in range(3) if (grab := live.grab(100)) is not None]
    assert [round((time_ns - times[0]) / SECOND, 2) for time_ns in times] == [0.0, interval_s, 2 * interval_s]
    offline = folder(tmp_path, fps=fps)
    offline.open()
    times = [grab.captured_ns for _ in range(3) if (grab := offline.grab(100)) is not None]
    assert [round((time_ns - times[0]) / SECOND, 2) for time_ns in times] == [0.0, interval_s, 2 * interval_s]


def test_all_color_depths_are_converted_to_bgr(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.full((20, 30, 4), (10, 20, 30, 40), np.uint8))
    cv2.imwrite(str(tmp_path / "2.png"), np.full((20, 30), 50, np.uint8))
    cv2.imwrite(str(tmp_path / "3.tif"), np.full((20, 30, 3), 60 * 257, np.uint16))
    source = folder(tmp_path)
    source.open()
    for expected in ((10, 20, 30), (50, 50, 50), (60, 60, 60)):
        assert source.grab(1) is not None
        pixels = np.zeros((20, 30, 3), np.uint8)
        source.retrieve(wrap(pixels))
        assert tuple(pixels[0, 0]) == expected
