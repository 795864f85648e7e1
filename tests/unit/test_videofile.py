"""Video files: every picture once, in time; loops; and files that are damaged, empty, or no videos."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.unit.scripted_camera import SECOND, ManualClock
from vision.capture.source import Grab
from vision.capture.videofile import VideoFile
from vision.errors import EndOfStream, SourceError

CLIP = Path(__file__).parents[2] / "configs" / "vtest.mp4"


def write_video(path: Path, count: int = 12, fps: float = 10.0, size: tuple[int, int] = (64, 48)) -> Path:
    """Pictures whose shade is 10 times their number, so that they are told apart after compression."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.full((size[1], size[0], 3), 10 * (number % 25), np.uint8))
    writer.release()
    return path


def play(path: Path, *, loop: bool = False, offline: bool = True) -> VideoFile:
    clock = ManualClock()
    return VideoFile(path, loop=loop, offline=offline, clock=clock, utc=clock, wait=clock.advance)


def read(source: VideoFile, shape: tuple[int, ...] = (48, 64, 3)) -> tuple[Grab, int]:
    grab = source.grab(100.0)
    assert grab is not None
    pixels = np.zeros(shape, np.uint8)
    source.retrieve(pixels)
    return grab, round(float(pixels.mean()) / 10)


def read_all(source: VideoFile, shape: tuple[int, ...] = (48, 64, 3)) -> list[int]:
    seen = []
    while True:
        try:
            seen.append(read(source, shape)[1])
        except EndOfStream:
            return seen


@pytest.mark.parametrize("offline", [True, False])
def test_every_picture_once_and_in_time(tmp_path: Path, offline: bool) -> None:
    source = play(write_video(tmp_path / "a.avi"), offline=offline)
    info = source.open()
    assert (info.width_px, info.height_px, info.pixel_format, info.fps) == (64, 48, "bgr", 10.0)
    grabs, numbers = zip(*[read(source) for _ in range(12)], strict=True)
    assert numbers == tuple(range(12))
    assert [(grab.captured_ns - grabs[0].captured_ns) // 1_000_000 for grab in grabs] == [100 * n for n in range(12)]
    assert [grab.captured_utc_ns - grab.captured_ns for grab in grabs] == [0] * 12
    assert {grab.clock for grab in grabs} == {"media" if offline else "arrival"}
    for _ in range(2):
        with pytest.raises(EndOfStream, match="ended after 12 pictures"):
            source.grab(1.0)
    source.close()


def test_at_its_own_pace_a_picture_that_is_not_due_is_not_lost(tmp_path: Path) -> None:
    source = play(write_video(tmp_path / "a.avi"), offline=False)
    source.open()
    found = [grab for _ in range(110) if (grab := source.grab(0.01)) is not None]
    assert len(found) == 11
    source.close()


@pytest.mark.parametrize("offline", [True, False])
def test_a_loop_goes_on_without_a_seam(tmp_path: Path, offline: bool) -> None:
    source = play(write_video(tmp_path / "a.avi", 5), loop=True, offline=offline)
    source.open()
    grabs, numbers = zip(*[read(source) for _ in range(23)], strict=True)
    assert numbers == (0, 1, 2, 3, 4) * 4 + (0, 1, 2)
    assert [(grab.captured_ns - grabs[0].captured_ns) // 1_000_000 for grab in grabs] == [100 * n for n in range(23)]
    source.close()


def test_a_loop_of_one_picture(tmp_path: Path) -> None:
    source = play(write_video(tmp_path / "a.avi", 1), loop=True)
    source.open()
    assert [read(source)[1] for _ in range(5)] == [0] * 5
    source.close()


def test_a_loop_of_a_file_whose_start_cannot_be_sought(tmp_path: Path) -> None:
    """Two recordings in one MPEG transport stream, whose times begin again: seeking finds the second one."""
    path = tmp_path / "a.ts"
    parts = []
    for first in (0, 12):
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MPG2"), 25.0, (64, 48))
        for number in range(first, first + 12):
            writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
        writer.release()
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))
    source = play(path, loop=True)
    source.open()
    grabs, numbers = zip(*[read(source) for _ in range(72)], strict=True)
    first_pass = numbers[: numbers.index(0, 20)]
    assert set(first_pass) >= set(range(12))
    assert numbers == (first_pass * 4)[:72]
    times = [grab.captured_ns for grab in grabs]
    assert all(later > earlier for earlier, later in pairwise(times))
    source.close()


def test_a_loop_of_a_file_without_times(tmp_path: Path) -> None:
    """Bare motion JPEG has no index either."""
    path = tmp_path / "a.mjpeg"
    pictures = [cv2.imencode(".jpg", np.full((48, 64, 3), 10 * n, np.uint8))[1].tobytes() for n in range(4)]
    path.write_bytes(b"".join(pictures))
    source = play(path, loop=True)
    source.open()
    grabs, numbers = zip(*[read(source) for _ in range(10)], strict=True)
    assert numbers == (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)
    times = [grab.captured_ns for grab in grabs]
    assert all(later > earlier for earlier, later in pairwise(times))
    source.close()


@pytest.mark.parametrize("offline", [True, False])
def test_the_shipped_clip(offline: bool) -> None:
    source = play(CLIP, offline=offline)
    info = source.open()
    assert (info.width_px, info.height_px, info.fps) == (768, 576, 10.0)
    pixels = np.zeros((576, 768, 3), np.uint8)
    times = []
    for _ in range(200):
        grab = source.grab(1.0)
        assert grab is not None
        times.append(grab.captured_ns)
    source.retrieve(pixels)
    assert pixels.std() > 30
    assert (times[-1] - times[0]) / SECOND == pytest.approx(19.9)
    with pytest.raises(EndOfStream, match="after 200 pictures"):
        source.grab(1.0)
    source.close()


def cut(source: Path, to: Path, share: float) -> Path:
    content = source.read_bytes()
    to.write_bytes(content[: int(len(content) * share)])
    return to


def test_a_file_that_is_cut_short_gives_what_is_there_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = play(cut(write_video(tmp_path / "whole.avi", 100), tmp_path / "a.avi", 0.5))
    source.open()
    seen = read_all(source)
    assert 40 <= len(seen) <= 55
    assert f"ended after {len(seen)} of 100 pictures: it is cut short or damaged" in caplog.text
    source.close()


def test_an_mp4_that_is_cut_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = play(cut(CLIP, tmp_path / "a.mp4", 0.5))
    source.open()
    seen = read_all(source, (576, 768, 3))
    assert 30 < len(seen) < 150
    assert f"ended after {len(seen)} of 200 pictures" in caplog.text
    source.close()


def test_a_loop_says_once_that_its_file_is_cut_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = play(cut(write_video(tmp_path / "whole.avi", 100), tmp_path / "a.avi", 0.5), loop=True)
    source.open()
    for _ in range(160):
        read(source)
    assert caplog.text.count("cut short") == 1
    source.close()


def test_damage_in_the_middle_does_not_end_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    shutil.copy(CLIP, path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        file.write(os.urandom(20_000))
    source = play(path)
    source.open()
    assert len(read_all(source, (576, 768, 3))) > 180
    source.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"this is not a video\n" * 500, "not a video that FFmpeg can decode"),
        (bytes(range(256)) * 500, "not a video that FFmpeg can decode"),
        (b"\x00\x00\x00\x20ftypisom" + b"\x00" * 500, "not a video that FFmpeg can decode"),
    ],
)
def test_files_that_are_no_videos(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        play(path).open()


def test_an_mp4_without_its_index(tmp_path: Path) -> None:
    """As of a recording whose disk was full: without this part, none of it can be read."""
    video = CLIP.read_bytes()
    start = video.find(b"moov") - 4
    assert start > 0
    video = video[:start] + video[start + int.from_bytes(video[start : start + 4], "big") :]
    path = tmp_path / "a.mp4"
    path.write_bytes(video)
    with pytest.raises(SourceError, match=r"not a video that FFmpeg can decode(.|\n)*lack its index"):
        play(path).open()


def test_no_file_a_folder_and_a_forbidden_one(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file or directory"):
        play(tmp_path / "missing.mp4").open()
    with pytest.raises(SourceError, match="expected a video, this is a folder"):
        play(tmp_path).open()
    path = write_video(tmp_path / "a.avi")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(SourceError, match="Permission denied"):
        play(path).open()


def test_a_name_that_looks_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "concat:a%03d.avi", 3)
    monkeypatch.chdir(tmp_path)
    source = play(Path("concat:a%03d.avi"))
    source.open()
    assert len(read_all(source)) == 3
    source.close()


def test_interrupted_it_gives_nothing_more(tmp_path: Path) -> None:
    source = play(write_video(tmp_path / "a.avi"))
    source.open()
    source.interrupt()
    assert source.grab(1.0) is None
    source.close()
