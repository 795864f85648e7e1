"""Tests of video files: frames, times, loops, and damaged, empty, and invalid files."""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.frame_buffers import wrap
from tests.log_records import log_args
from tests.paths import ROOT
from tests.unit.scripted_camera import SECOND, ManualClock
from vision.capture.ffmpeg.decoder import CodedStream, FFmpegDecoder
from vision.capture.ffmpeg.file import VideoFile
from vision.capture.pacing import FramePacer
from vision.capture.source import Grab, Source, StreamInfo
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import DropReason, PixelFormat, frame_shape

Image = NDArray[np.uint8]

CLIP = ROOT / "configs" / "vtest.mp4"


def write_video(path: Path, count: int = 12, fps: float = 10.0, size: tuple[int, int] = (64, 48)) -> Path:
    """Write frames whose gray level is 10 times their number, so that tests can identify them after compression."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.full((size[1], size[0], 3), 10 * (number % 25), np.uint8))
    writer.release()
    return path


class Player(Protocol):
    """Function that opens a file as a source with a manual clock."""

    def __call__(self, path: Path, *, loop: bool = False, offline: bool = True) -> Source: ...


def player(*pixel_formats: PixelFormat) -> Player:
    def play(path: Path, *, loop: bool = False, offline: bool = True) -> VideoFile:
        clock, decoder = ManualClock(), partial(FFmpegDecoder, reading="offline" if offline else "recorded")
        pacer = FramePacer(offline=offline, clock=clock, utc=clock, wait=clock.advance)
        return VideoFile(path, pixel_formats, decoder, pacer, loop=loop)

    return play


PLAYERS: dict[str, Player] = {
    "bgr": player("bgr"),
    "i420": player("nv12", "i420", "bgrx", "bgr"),
}


@pytest.fixture(params=PLAYERS)
def play(request: pytest.FixtureRequest) -> Player:
    return PLAYERS[request.param]


def buffer_for(info: StreamInfo) -> Image:
    return np.zeros(frame_shape(info.height_px, info.width_px, info.pixel_format), np.uint8)


def in_bgr(pixels: Image, info: StreamInfo) -> Image:
    if info.pixel_format in {"bgr", "bgrx"}:
        return pixels[..., :3]
    code = cv2.COLOR_YUV2BGR_I420 if info.pixel_format == "i420" else cv2.COLOR_YUV2BGR_NV12
    if info.yuv.endswith("-full"):  # OpenCV converts only the limited range
        pixels = pixels.astype(np.float32)
        pixels[: info.height_px] = pixels[: info.height_px] * 219 / 255 + 16
        pixels[info.height_px :] = (pixels[info.height_px :] - 128) * 224 / 255 + 128
    return np.asarray(cv2.cvtColor(np.round(pixels).astype(np.uint8), code), np.uint8)


def read(source: Source, info: StreamInfo) -> tuple[Grab, int]:
    grab = source.grab(100.0)
    assert grab is not None
    pixels = buffer_for(info)
    source.retrieve(wrap(pixels))
    return grab, round(float(in_bgr(pixels, info).mean()) / 10)


def read_all(source: Source, info: StreamInfo) -> list[int]:
    seen = []
    while True:
        try:
            seen.append(read(source, info)[1])
        except EndOfStream:
            return seen


@pytest.mark.parametrize("offline", [True, False])
def test_frames_are_read_once_with_their_times(play: Player, tmp_path: Path, offline: bool) -> None:
    source = play(write_video(tmp_path / "a.avi"), offline=offline)
    info = source.open()
    assert (info.width_px, info.height_px, info.fps) == (64, 48, 10.0)
    grabs, numbers = zip(*[read(source, info) for _ in range(12)], strict=True)
    assert numbers == tuple(range(12))
    assert [(grab.captured_ns - grabs[0].captured_ns) // 1_000_000 for grab in grabs] == [100 * n for n in range(12)]
    assert [grab.captured_utc_ns - grab.captured_ns for grab in grabs] == [0] * 12
    assert {grab.clock for grab in grabs} == {"media" if offline else "arrival"}
    for _ in range(2):
        with pytest.raises(EndOfStream) as raised:
            source.grab(1.0)
        assert re.findall(r"\d+", raised.value.args[0].rpartition(": ")[2]) == ["12"]
    source.close()


def test_frame_that_is_not_due_is_kept(play: Player, tmp_path: Path) -> None:
    source = play(write_video(tmp_path / "a.avi"), offline=False)
    source.open()
    found = [grab for _ in range(110) if (grab := source.grab(0.01)) is not None]
    assert len(found) == 11
    source.close()


@pytest.mark.parametrize("offline", [True, False])
def test_loop_continues_times_and_frames(play: Player, tmp_path: Path, offline: bool) -> None:
    source = play(write_video(tmp_path / "a.avi", 5), loop=True, offline=offline)
    info = source.open()
    grabs, numbers = zip(*[read(source, info) for _ in range(23)], strict=True)
    assert numbers == (0, 1, 2, 3, 4) * 4 + (0, 1, 2)
    assert [(grab.captured_ns - grabs[0].captured_ns) // 1_000_000 for grab in grabs] == [100 * n for n in range(23)]
    source.close()


def test_looped_file_of_one_frame_repeats_it(play: Player, tmp_path: Path) -> None:
    source = play(write_video(tmp_path / "a.avi", 1), loop=True)
    info = source.open()
    assert [read(source, info)[1] for _ in range(5)] == [0] * 5
    source.close()


def test_looped_file_that_cannot_be_sought_is_reopened(play: Player, tmp_path: Path) -> None:
    """The file contains two recordings with overlapping times, so seeking to the start finds the second recording."""
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
    info = source.open()
    grabs, numbers = zip(*[read(source, info) for _ in range(72)], strict=True)
    first_pass = numbers[: numbers.index(0, 20)]
    assert set(first_pass) >= set(range(12))
    assert numbers == (first_pass * 4)[:72]
    times = [grab.captured_ns for grab in grabs]
    assert all(later > earlier for earlier, later in pairwise(times))
    source.close()


def test_looped_file_without_times_has_increasing_times(play: Player, tmp_path: Path) -> None:
    """Bare motion JPEG has neither times nor an index."""
    path = tmp_path / "a.mjpeg"
    frames = [cv2.imencode(".jpg", np.full((48, 64, 3), 10 * n, np.uint8))[1].tobytes() for n in range(4)]
    path.write_bytes(b"".join(frames))
    source = play(path, loop=True)
    info = source.open()
    grabs, numbers = zip(*[read(source, info) for _ in range(10)], strict=True)
    assert numbers == (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)
    times = [grab.captured_ns for grab in grabs]
    assert all(later > earlier for earlier, later in pairwise(times))
    source.close()


@pytest.mark.integration
@pytest.mark.parametrize("offline", [True, False])
def test_shipped_clip_is_read_completely(play: Player, offline: bool) -> None:
    source = play(CLIP, offline=offline)
    info = source.open()
    assert (info.width_px, info.height_px, info.fps) == (768, 576, 10.0)
    pixels = buffer_for(info)
    times = []
    for _ in range(200):
        grab = source.grab(1.0)
        assert grab is not None
        times.append(grab.captured_ns)
    source.retrieve(wrap(pixels))
    assert in_bgr(pixels, info).std() > 30
    assert (times[-1] - times[0]) / SECOND == pytest.approx(19.9)
    with pytest.raises(EndOfStream) as raised:
        source.grab(1.0)
    assert re.findall(r"\d+", raised.value.args[0].rpartition(": ")[2]) == ["200"]
    source.close()


def cut(source: Path, to: Path, share: float) -> Path:
    content = source.read_bytes()
    to.write_bytes(content[: int(len(content) * share)])
    return to


def test_truncated_file_is_read_and_logged(play: Player, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = play(cut(write_video(tmp_path / "whole.avi", 100), tmp_path / "a.avi", 0.5))
    info = source.open()
    seen = read_all(source, info)
    assert 40 <= len(seen) <= 55
    ((logged,),) = log_args(caplog, "vision.capture.ffmpeg.file")
    assert re.findall(r"\d+", str(logged).replace(str(tmp_path), "")) == [str(len(seen)), "1"]
    assert source.skipped.take() == {DropReason.CORRUPT: 1}
    source.close()


def test_truncated_mp4_is_read_and_logged(play: Player, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = play(cut(CLIP, tmp_path / "a.mp4", 0.5))
    info = source.open()
    seen = read_all(source, info)
    assert 30 < len(seen) < 150
    ((logged,),) = log_args(caplog, "vision.capture.ffmpeg.file")
    assert re.findall(r"\d+", str(logged).replace(str(tmp_path / "a.mp4"), "")) == [str(len(seen)), "1"]
    source.close()


def test_looped_truncated_file_is_logged_once(play: Player, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = play(cut(write_video(tmp_path / "whole.avi", 100), tmp_path / "a.avi", 0.5), loop=True)
    info = source.open()
    for _ in range(160):
        read(source, info)
    assert len(log_args(caplog, "vision.capture.ffmpeg.file")) == 1
    source.close()


@pytest.mark.integration
def test_damage_does_not_end_a_file(play: Player, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    shutil.copy(CLIP, path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        file.write(np.random.default_rng(1).bytes(20_000))
    source = play(path)
    info = source.open()
    assert len(read_all(source, info)) > 180
    source.close()


def test_frame_that_cannot_be_decoded_is_skipped(play: Player, tmp_path: Path) -> None:
    """The file contains a frame for which FFmpeg reports "not yet implemented"."""
    path = write_video(tmp_path / "a.avi")
    data, at = bytearray(path.read_bytes()), -1
    for _ in range(5):
        at = data.index(b"\xff\xc0", at + 1)  # SOF0 of ITU-T T.81, whose sampling factors no camera has
    data[at + 11], data[at + 14] = 0x31, 0x41
    path.write_bytes(data)
    source = play(path)
    assert read_all(source, source.open()) == [*range(4), *range(5, 12)]
    source.close()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "file"),
        (b"this is not a video\n" * 500, "not-a-video"),
        (bytes(range(256)) * 500, "not-a-video"),
        (b"\x00\x00\x00\x20ftypisom" + b"\x00" * 500, "not-a-video"),
    ],
)
def test_file_that_is_not_a_video_is_an_error(play: Player, tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError) as raised:
        play(path).open()
    assert raised.value.code == code


def test_mp4_without_an_index_is_an_error(play: Player, tmp_path: Path) -> None:
    """A recorder writes no index if its disk is full. Without an index, no frame can be read."""
    video = CLIP.read_bytes()
    start = video.find(b"moov") - 4
    assert start > 0
    video = video[:start] + video[start + int.from_bytes(video[start : start + 4], "big") :]
    path = tmp_path / "a.mp4"
    path.write_bytes(video)
    with pytest.raises(SourceError) as raised:
        play(path).open()
    assert raised.value.code == "not-a-video"
    assert "index" in raised.value.hint


def test_missing_file_folder_and_unreadable_file_are_errors(play: Player, tmp_path: Path) -> None:
    unreadable = write_video(tmp_path / "a.avi")
    unreadable.chmod(0)
    for path, code in ((tmp_path / "missing.mp4", "file"), (tmp_path, "file-kind"), (unreadable, "file")):
        if path == unreadable and os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(SourceError) as raised:
            play(path).open()
        assert raised.value.code == code
        assert path.name in str(raised.value)


def test_file_name_that_looks_like_an_address_is_opened(
    play: Player, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "concat:a%03d.avi", 3)
    monkeypatch.chdir(tmp_path)
    source = play(Path("concat:a%03d.avi"))
    info = source.open()
    assert len(read_all(source, info)) == 3
    source.close()


def test_grab_after_an_interrupt_returns_none(play: Player, tmp_path: Path) -> None:
    source = play(write_video(tmp_path / "a.avi"))
    source.open()
    source.interrupt()
    assert source.grab(1.0) is None
    source.close()


# --- formats and sizes ------------------------------------------------------------------------------------------------


def test_decoder_format_is_delivered_unchanged() -> None:
    """Frames in the format of the decoder keep their color encoding."""
    source = PLAYERS["i420"](CLIP)
    assert source.open() == StreamInfo(768, 576, "i420", 10.0, "pyav-h264", "bt601")
    grab = source.grab(1.0)
    assert grab is not None
    assert grab.yuv == "bt601"
    source.close()


def test_later_passes_deliver_the_format_of_the_first(tmp_path: Path) -> None:
    """The reader has buffers for the format of the first pass, but a later pass can prefer a different format."""
    asked: list[tuple[PixelFormat, ...]] = []

    def opened(stream: CodedStream, pixel_formats: tuple[PixelFormat, ...]) -> FFmpegDecoder:
        asked.append(pixel_formats)
        return FFmpegDecoder(stream, pixel_formats[::-1], reading="offline")

    path = write_video(tmp_path / "a.avi", 3)
    with closing(VideoFile(path, ("i420", "nv12"), opened, FramePacer(offline=True), loop=True)) as source:
        info = source.open()
        assert [read(source, info)[1] for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert asked == [("i420", "nv12"), ("i420",), ("i420",)]


def test_size_change_within_a_file_is_reported(tmp_path: Path) -> None:
    sizes = [(48, 64), (48, 64), (96, 128), (96, 128)]
    path = tmp_path / "a.mjpeg"
    path.write_bytes(b"".join(cv2.imencode(".jpg", np.full((*size, 3), 50, np.uint8))[1].tobytes() for size in sizes))
    source = PLAYERS["i420"](path)
    info = source.open()
    for _ in range(2):
        assert read(source, info)[1] == 5
    assert source.grab(1.0) is not None
    with pytest.raises(SizeChanged) as changed:
        source.retrieve(wrap(buffer_for(info)))
    assert (changed.value.width_px, changed.value.height_px) == (128, 96)
    larger = np.zeros(frame_shape(96, 128, info.pixel_format), np.uint8)
    source.retrieve(wrap(larger))
    assert larger.any()
    source.close()


# --- properties that files state --------------------------------------------------------------------------------------


def encoded(path: Path, images: Sequence[Image], codec: str, pixels: str, times: Sequence[int] = ()) -> Path:
    """Write BGR frames (H, W, 3) at `times` in tenths of a second. By default, the times are 0, 1, 2, and so on."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=10)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        for at, image in zip(times or range(len(images)), images, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = at, Fraction(1, 10)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def quarters(height_px: int, width_px: int) -> Image:
    """Return a frame whose quarters are red, green, blue, and white, in row order."""
    image = np.empty((height_px, width_px, 3), np.uint8)
    image[: height_px // 2] = np.where(np.arange(width_px)[:, None] < width_px // 2, (0, 0, 200), (0, 200, 0))
    image[height_px // 2 :] = np.where(np.arange(width_px)[:, None] < width_px // 2, (200, 0, 0), (200, 200, 200))
    return image


def turned(path: Path, quarter_turns: int) -> Path:
    """Write the display matrix that rotates the file's only video track to the left by `quarter_turns` quarter turns.

    ISO/IEC 14496-12, section 8.3.2, defines the matrix.
    """
    a, b = [(1, 0), (0, -1), (-1, 0), (0, 1)][quarter_turns]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data[at : at + 36] = matrix
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_frames_are_rotated_by_the_display_matrix(play: Player, quarter_turns: int, tmp_path: Path) -> None:
    path = turned(encoded(tmp_path / "a.mp4", [quarters(64, 96)] * 3, "libx264", "yuv420p"), quarter_turns)
    wanted = np.rot90(quarters(64, 96), quarter_turns)
    source = play(path)
    info = source.open()
    assert (info.height_px, info.width_px) == wanted.shape[:2]
    assert source.grab(1.0) is not None
    with pytest.raises(SizeChanged) as changed:
        source.retrieve(wrap(np.zeros(frame_shape(64, 64, info.pixel_format), np.uint8)))
    assert (changed.value.width_px, changed.value.height_px) == (info.width_px, info.height_px)
    pixels = buffer_for(info)
    source.retrieve(wrap(pixels))
    middles = np.ix_(*[[side // 4, 3 * side // 4] for side in wanted.shape[:2]])
    assert np.abs(in_bgr(pixels, info)[middles].astype(int) - wanted[middles]).max() < 12
    source.close()


def test_odd_sides_are_delivered_in_bgr(play: Player, tmp_path: Path) -> None:
    """YUV formats need even sides, so the source delivers the frames in bgr."""
    random = np.random.default_rng(1)
    image = random.integers(0, 255, (49, 71, 3), np.uint8)
    source = play(encoded(tmp_path / "a.mkv", [image], "ffv1", "bgr0"))
    info = source.open()
    assert (info.height_px, info.width_px) == (49, 71)
    assert info.pixel_format in {"bgr", "bgrx"}
    assert source.grab(1.0) is not None
    pixels = buffer_for(info)
    source.retrieve(wrap(pixels))
    np.testing.assert_array_equal(pixels[..., :3], image)
    source.close()


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_variable_frame_rate_keeps_the_times(play: Player, container: str, tmp_path: Path) -> None:
    times = (0, 1, 5, 6, 20, 21, 22)
    images = [np.full((48, 64, 3), 20 * number, np.uint8) for number in range(len(times))]
    source = play(encoded(tmp_path / f"a.{container}", images, "libx264", "yuv420p", times))
    info = source.open()
    grabs, numbers = zip(*[read(source, info) for _ in times], strict=True)
    assert numbers == tuple(range(0, 14, 2))
    assert [(grab.captured_ns - grabs[0].captured_ns) // 1_000_000 for grab in grabs] == [100 * at for at in times]
    source.close()


def test_reordered_frames_are_delivered_in_display_order(play: Player, tmp_path: Path) -> None:
    """B-frames are stored after later frames to which they refer."""
    images = [np.full((48, 64, 3), 10 * number, np.uint8) for number in range(24)]
    source = play(encoded(tmp_path / "a.mp4", images, "libx264", "yuv420p"))
    assert read_all(source, source.open()) == list(range(24))
    source.close()


def test_unknown_codec_is_an_error(play: Player, tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.mp4", [quarters(48, 64)], "libx264", "yuv420p")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1").replace(b"avcC", b"zzzC"))
    with pytest.raises(SourceError) as raised:
        play(path).open()
    assert raised.value.code == "not-a-video"


def test_file_without_video_is_an_error(play: Player, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as file:
        stream: Any = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
    with pytest.raises(SourceError) as raised:
        play(tmp_path / "a.wav").open()
    assert raised.value.code == "not-a-video"
    assert "a.wav" in str(raised.value)
