"""Contract that every `Source` fulfills. ``tests/rtsp`` contains the tests of RTSP sources."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.contract.streams import (
    COUNT,
    HEIGHT_PX,
    NAMES,
    SLOW_NAMES,
    WIDTH_PX,
    Stream,
    motion_jpeg_server,
    streams,
    wait_until,
)
from tests.frame_buffers import wrap
from vision.capture.ffmpeg.decoder import FFmpegDecoder
from vision.capture.ffmpeg.file import VideoFile
from vision.capture.ffmpeg.source import FFmpegSource
from vision.capture.opencv.source import V4L2Source
from vision.capture.source import Grab, Source, StreamInfo
from vision.config import CameraConfig
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import frame_shape

MB = 1 << 20


@pytest.fixture(scope="module")
def all_streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stream]]:
    folder = tmp_path_factory.mktemp("streams")
    with motion_jpeg_server() as web_camera:
        all_kinds = streams(folder, web_camera)
        assert tuple(all_kinds) == NAMES
        assert {name for name, stream in all_kinds.items() if stream.make_slow} == set(SLOW_NAMES)
        yield all_kinds


@pytest.fixture(params=NAMES)
def stream(request: pytest.FixtureRequest, all_streams: dict[str, Stream]) -> Stream:
    return all_streams[request.param]


def buffer_for(info: StreamInfo) -> NDArray[np.uint8]:
    return np.zeros(frame_shape(info.height_px, info.width_px, info.pixel_format), np.uint8)


def grab_one(source: Source) -> Grab:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        grab = source.grab(0.5)
        if grab is not None:
            return grab
    raise AssertionError("no frame in 20 s")


def read(source: Source, info: StreamInfo) -> NDArray[np.uint8]:
    grab_one(source)
    pixels = buffer_for(info)
    source.retrieve(wrap(pixels))
    return pixels


def near(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    return bool(np.abs(one.astype(int) - other.astype(int)).max() <= 3)


# --- frames ---------------------------------------------------------------------------------------------------------


def test_open_returns_the_properties_of_the_frames(stream: Stream) -> None:
    with closing(stream.make()) as source:
        info = source.open()
        assert (info.height_px, info.width_px) == (HEIGHT_PX, WIDTH_PX)
        assert info.decoder
        assert info.fps is None or info.fps > 0
        pixels = read(source, info)  # without SizeChanged
        assert pixels.dtype == np.uint8


def test_retrieve_writes_into_the_passed_buffer_only(stream: Stream) -> None:
    """The rest of the memory must not change, because detectors pass slices of a larger page-locked buffer."""
    with closing(stream.make()) as source:
        info = source.open()
        expected = read(source, info)
        shape = expected.shape
        arena = np.full(expected.size + 128, 0xA5, np.uint8)
        buffer = arena[64:-64].reshape(shape)
        assert buffer.flags.c_contiguous
        source.retrieve(wrap(buffer))
        assert np.array_equal(buffer, expected)
        assert np.all(arena[:64] == 0xA5)
        assert np.all(arena[-64:] == 0xA5)


def test_retrieved_frame_is_not_changed_by_the_next(stream: Stream) -> None:
    with closing(stream.make()) as source:
        info = source.open()
        frames = [read(source, info) for _ in range(5)]
        copies = [frame.copy() for frame in frames]
        read(source, info)
        assert all(np.array_equal(one, other) for one, other in zip(frames, copies, strict=True))
        assert all(not near(one, other) for one, other in pairwise(frames))


def test_frames_that_are_not_retrieved_are_skipped(stream: Stream) -> None:
    with closing(stream.make()) as source:
        info = source.open()
        every = [read(source, info) for _ in range(6)]
    with closing(stream.make()) as source:
        info = source.open()
        for _ in range(4):
            grab_one(source)
        assert near(read(source, info), every[4])


def test_buffer_of_another_size_is_refused_and_the_frame_kept(stream: Stream) -> None:
    with closing(stream.make()) as source:
        info = source.open()
        expected = read(source, info)
        for _ in range(2):
            other = np.zeros(frame_shape(32, 40, info.pixel_format), np.uint8)
            with pytest.raises(SizeChanged) as change:
                source.retrieve(wrap(other))
            assert (change.value.height_px, change.value.width_px) == (HEIGHT_PX, WIDTH_PX)
            assert not other.any()
        pixels = buffer_for(info)
        source.retrieve(wrap(pixels))
        assert np.array_equal(pixels, expected)


def test_end_is_final(stream: Stream) -> None:
    with closing(stream.make()) as source:
        source.open()
        if stream.endless:
            for _ in range(3 * COUNT):
                grab_one(source)
            return
        for _ in range(COUNT):
            grab_one(source)
        for _ in range(2):
            with pytest.raises(EndOfStream):
                grab_one(source)


# --- times ------------------------------------------------------------------------------------------------------------


def test_times_increase_on_both_clocks(stream: Stream) -> None:
    with closing(stream.make()) as source:
        source.open()
        before_ns, offset_ns = time.monotonic_ns(), time.time_ns() - time.monotonic_ns()
        grabs = [grab_one(source) for _ in range(2 * COUNT if stream.endless else COUNT)]
        after_ns = time.monotonic_ns()
    times = [grab.captured_ns for grab in grabs]
    assert all(earlier < later for earlier, later in pairwise(times))
    assert all(abs(grab.captured_utc_ns - grab.captured_ns - offset_ns) < 1e9 for grab in grabs)
    assert {grab.clock for grab in grabs} <= {"arrival", "rtcp", "media"}
    assert len({grab.clock for grab in grabs}) == 1
    assert times[0] >= before_ns - 5e9
    if grabs[0].clock != "media":
        assert times[-1] <= after_ns


def test_media_time_is_used_offline_only(all_streams: dict[str, Stream]) -> None:
    for name, one in all_streams.items():
        with closing(one.make()) as source:
            source.open()
            offline = "offline" in name or name in ("synthetic nv12", "synthetic i420")
            assert grab_one(source).clock == ("media" if offline else "arrival"), name
            assert not (source.live and offline), name


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=SLOW_NAMES)
def slow(request: pytest.FixtureRequest, all_streams: dict[str, Stream]) -> Source:
    make = all_streams[request.param].make_slow
    assert make is not None
    return make()


def grab_until_none(source: Source) -> None:
    """Grab until no frame is waiting. The function fails if `grab` blocks instead of returning None."""
    assert any(source.grab(0.05) is None for _ in range(COUNT))


def test_grab_that_times_out_loses_no_frame(request: pytest.FixtureRequest, slow: Source) -> None:
    with closing(slow) as source:
        info, waits, waited_for = source.open(), 0, 0
        seen: list[NDArray[np.uint8]] = []
        while waits < 3 or waited_for < 1:
            if source.grab(0.05) is None:
                waits += 1
            else:
                seen.append(buffer_for(info))
                source.retrieve(wrap(seen[-1]))
                waited_for += waits > 0
    all_streams = request.getfixturevalue("all_streams")
    with closing(all_streams[request.node.callspec.params["slow"]].make()) as source:
        info = source.open()
        assert all(near(frame, read(source, info)) for frame in seen)


def test_interrupt_ends_a_grab(slow: Source) -> None:
    with closing(slow) as source:
        source.open()
        grab_until_none(source)
        timer = threading.Timer(0.02, source.interrupt)  # before the next frame, and likely within the grab
        timer.start()
        assert source.grab(30) is None
        timer.join()
        assert source.grab(30) is None, "an interrupt is final"


# --- order ------------------------------------------------------------------------------------------------------------


def test_close_is_allowed_at_any_time(stream: Stream) -> None:
    source = stream.make()
    source.close()
    source.close()
    source.open()
    source.close()
    source.close()
    source.open()
    grab_one(source)
    source.close()
    source.close()


def test_use_before_open_and_after_close_is_an_error(stream: Stream) -> None:
    source = stream.make()
    with pytest.raises(SourceError) as raised:
        source.grab(0.1)
    assert raised.value.code == "not-open"
    info = source.open()
    with pytest.raises(SourceError) as raised:
        source.retrieve(wrap(buffer_for(info)))
    assert raised.value.code == "not-open"
    source.close()
    with pytest.raises(SourceError) as raised:
        source.grab(0.1)
    assert raised.value.code == "not-open"
    with pytest.raises(SourceError) as raised:
        source.retrieve(wrap(buffer_for(info)))
    assert raised.value.code == "not-open"


def test_reopened_source_starts_with_its_first_frame(stream: Stream) -> None:
    with closing(stream.make()) as source:
        first = read(source, source.open())
        read(source, source.open())
        source.close()
        assert near(read(source, source.open()), first)


# --- leaks ------------------------------------------------------------------------------------------------------------


def resources() -> tuple[int, int]:
    """Return the number of open file descriptors, and the number of threads, of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def memory_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def returns_to(before: tuple[int, int]) -> bool:
    def settled() -> bool:
        now = resources()
        return now[0] <= before[0] and now[1] <= before[1]

    return wait_until(settled)


def test_50_opens_leave_no_resources(stream: Stream) -> None:
    with closing(stream.make()) as source:  # objects that exist only once per process are created here
        read(source, source.open())
    assert wait_until(lambda: threading.active_count() <= 2)
    before = resources()
    for number in range(50):
        with closing(stream.make()) as source:
            info = source.open()
            if number % 5 == 0:
                read(source, info)
    assert returns_to(before), (before, resources())


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def failing(kind: str, folder: Path) -> Callable[[], Source]:
    if kind == "file":
        return lambda: VideoFile(folder / "missing.mp4", ("i420",), FFmpegDecoder)
    if kind == "usb":
        return lambda: V4L2Source(CameraConfig(id="away", source="/dev/video987"))
    camera = CameraConfig(id="away", source=f"{kind}://127.0.0.1:{closed_port()}/a", reader="ffmpeg")
    return lambda: FFmpegSource(camera, ("bgr",))


@pytest.mark.parametrize("kind", ["rtsp", "http", "file", "usb"])
def test_1000_failed_opens_leave_no_memory(kind: str, tmp_path: Path) -> None:
    make = failing(kind, tmp_path)

    def fail() -> None:
        with closing(make()) as source, suppress(SourceError):
            source.open()
            raise AssertionError("it opened")

    for _ in range(100):
        fail()
    gc.collect()
    before, memory_before_bytes = resources(), memory_bytes()
    for _ in range(1000):
        fail()
    gc.collect()
    assert returns_to(before), (before, resources())
    assert memory_bytes() - memory_before_bytes < 8 * MB
