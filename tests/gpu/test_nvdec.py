"""Bitwise comparison of NVDEC with FFmpeg, for files, network streams, and frames for the detector."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime
from numpy.typing import NDArray

from tests.gpu.coded_video import FAST, FPS, coded, decoded, served, video
from tests.gpu.opening import EMULATED
from tests.log_records import log_args
from vision.capture.ffmpeg.file import VideoFile
from vision.capture.ffmpeg.source import FFmpegSource
from vision.capture.liveness import FrozenFrameDetector
from vision.capture.nvdec.decoder import NvdecDecoder
from vision.capture.nvdec.idle_sessions import idle_sessions
from vision.capture.open import open_source
from vision.capture.pacing import FramePacer
from vision.capture.source import Source
from vision.capture.supervisor import CameraSupervisor
from vision.config import CameraConfig
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.gpu.cuda import check, memory_info
from vision.gpu.memory import device_frame_buffer
from vision.runtime.latest_slot import LatestSlot
from vision.types import FrameBuffer, PixelFormat, YuvEncoding

CLIP = Path(__file__).parents[2] / "configs" / "vtest.mp4"
COUNT = 30
NV12: tuple[PixelFormat, ...] = ("nv12", "i420", "bgrx", "bgr")
B_FRAMES = (("preset", "medium"), ("g", "10"), ("bf", "3"), ("x264-params", "b-adapt=0:scenecut=0"))
NO_B_FRAMES = (*FAST.items(), ("bf", "0"))

Image = NDArray[np.uint8]


pytestmark = pytest.mark.usefixtures("nvdec")


def opened_file(path: Path, *, offline: bool = True, loop: bool = False) -> closing[VideoFile]:
    return closing(VideoFile(path, NV12, partial(NvdecDecoder, live=False), FramePacer(offline=offline), loop=loop))


def saved(folder: Path, data: bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def camera(source: str, **settings: Any) -> CameraConfig:
    """Return a camera that drops no frame if the machine stalls, unless `settings` contains `max_frame_age_s`."""
    settings = {"max_frame_age_s": 60, **settings}
    return CameraConfig.model_validate({"id": "gate", "source": source, "reader": "nvdec", **settings})


def opened_camera(address: str, **settings: Any) -> Source:
    return open_source(camera(address, **settings), offline=False, pixel_formats=NV12)


def on_gpu(source: Source, height_px: int, width_px: int) -> Image:
    """Return the most recently grabbed frame, read through GPU memory."""
    buffer = device_frame_buffer(height_px, width_px, "nv12")
    source.retrieve(buffer)
    return buffer.read()


def rest_of(source: Source, height_px: int, width_px: int) -> Iterator[tuple[int | None, Image]]:
    """Yield the times and frames of an open source until it ends."""
    try:
        while (grab := source.grab(10)) is not None:
            yield grab.pts_ns, on_gpu(source, height_px, width_px)
    except EndOfStream:
        return
    except SourceError as error:
        if error.code != "stream-ended":
            raise


def difference(one: Image, other: Image) -> int:
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())


# --- files ------------------------------------------------------------------------------------------------------------


def test_shipped_clip_matches_ffmpeg() -> None:
    compared = 40 if EMULATED else 200
    began = time.monotonic()
    with opened_file(CLIP) as source:
        info = source.open()
        print(f"\n{info}, open after {time.monotonic() - began:.3f} s\n{vars(source)}")
        assert (info.width_px, info.height_px, info.pixel_format, info.fps) == (768, 576, "nv12", 10)
        assert (info.decoder, info.yuv) == ("nvdec-h264", "bt601")
        on_host = FrameBuffer.allocate(576, 768, "nv12")
        worst, first_ns = 0, None
        for number, (pts_ns, reference) in enumerate(decoded(CLIP, compared)):
            grab = source.grab(1.0)
            assert grab is not None
            assert pts_ns is not None
            first_ns = pts_ns if first_ns is None else first_ns
            assert grab.pts_ns == pts_ns - first_ns
            actual = on_gpu(source, 576, 768)
            worst = max(worst, difference(actual, reference))
            if number % 20 == 0:
                source.retrieve(on_host)
                np.testing.assert_array_equal(on_host.read(), actual)
        print(f"greatest difference: {worst}")
        assert worst == 0
        for _ in range(200 - compared):
            assert source.grab(1.0) is not None
        with pytest.raises(EndOfStream) as caught:
            source.grab(1.0)
        assert "200" in caught.value.args[0]


@pytest.mark.parametrize(
    ("codec", "container", "options", "tolerance"),
    [
        ("libx264", "mp4", NO_B_FRAMES, 0),
        ("libx264", "matroska", B_FRAMES, 0),
        ("libx264", "mpegts", B_FRAMES, 0),
        ("libx264", "mp4", (*FAST.items(), ("x264-params", "fullrange=on:colormatrix=bt709")), 0),
        ("libx265", "mp4", (*FAST.items(), ("x265-params", "log-level=none:bframes=3:keyint=10")), 0),
        ("libx265", "mpegts", (*FAST.items(), ("x265-params", "log-level=none:keyint=10")), 0),
        ("libvpx-vp9", "webm", (("deadline", "realtime"), ("cpu-used", "8"), ("g", "10")), 0),
        ("libvpx", "webm", (("deadline", "realtime"), ("cpu-used", "8"), ("g", "10")), 0),
        ("libsvtav1", "mp4", (("preset", "12"), ("g", "10")), 0),
        ("mpeg2video", "mpegts", (("g", "10"), ("bf", "2")), 3),  # a codec without exact arithmetic
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_codec_matches_ffmpeg(
    codec: str, container: str, options: tuple[tuple[str, str], ...], tolerance: int, tmp_path: Path
) -> None:
    """The test compares the pixels and times of all frames in presentation order."""
    data = video(codec, container, count=COUNT, options=options)
    reference = list(decoded(data))
    assert len(reference) == COUNT
    with opened_file(saved(tmp_path, data, "a.video")) as source:
        try:
            info = source.open()
        except SourceError as error:
            if "Codec not supported on this GPU" not in str(error):
                raise
            pytest.skip(str(error))
        actual = list(rest_of(source, 192, 320))
    pairs = zip(actual, reference, strict=False)
    print(f"\n{info}, differences {[difference(one, other) for (_, one), (_, other) in pairs]}")
    assert len(actual) == COUNT
    begin_ns = reference[0][0] or 0
    assert [pts_ns for pts_ns, _ in actual] == [(pts_ns or 0) - begin_ns for pts_ns, _ in reference]
    assert all(difference(one, other) <= tolerance for (_, one), (_, other) in zip(actual, reference, strict=True))
    assert info.yuv == ("bt709-full" if "fullrange" in str(options) else "bt601")
    assert info.fps == pytest.approx(FPS)


# --- sessions that are used again -------------------------------------------------------------------------------------


def kept_sessions() -> list[object]:
    return [session for _, session in idle_sessions._idle]


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", NO_B_FRAMES),
        ("libx264", B_FRAMES),
        ("libx265", (*FAST.items(), ("x265-params", "log-level=none:bframes=3:keyint=10"))),
    ],
    ids=["h264", "h264 reordered", "h265 reordered"],
)
def test_stream_that_returns_uses_the_same_session(
    codec: str, options: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    """The first connection ends in the middle of the stream, while the NVDEC session still holds frames."""
    idle_sessions.close()
    path = saved(tmp_path, video(codec, "matroska", count=COUNT, options=options), "a.mkv")
    reference = list(decoded(path))
    with opened_file(path) as source:
        source.open()
        for _ in range(7):
            source.grab(1)
    (first,) = kept_sessions()
    for _ in range(3):
        with opened_file(path) as source:
            source.open()
            assert kept_sessions() == []
            actual = list(rest_of(source, 192, 320))
        assert len(actual) == COUNT
        assert all(difference(one, other) == 0 for (_, one), (_, other) in zip(actual, reference, strict=True))
        assert kept_sessions() == [first]


def test_session_is_not_used_for_a_different_stream(tmp_path: Path) -> None:
    idle_sessions.close()
    sizes = [(64 + 32 * n, 320) for n in range(6)]
    paths = [saved(tmp_path, video("libx264", "mp4", size=size, count=5), f"{n}.mp4") for n, size in enumerate(sizes)]
    for path, (height_px, width_px) in zip(paths, sizes, strict=True):
        with opened_file(path) as source:
            assert source.open().height_px == height_px
            assert len(list(rest_of(source, height_px, width_px))) == 5
    sessions = kept_sessions()
    assert len(set(map(id, sessions))) == 4
    with opened_file(paths[0]) as source:  # the session of this file was the oldest, and is closed
        source.open()
        assert kept_sessions() == sessions
    idle_sessions.close()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (partial(video, "libx265", "mp4", pixels="yuv420p10le", count=3), "yuv420p10le"),
        (partial(video, "libx264", "mp4", pixels="yuv444p", count=3), "yuv444p"),
        (partial(video, "mjpeg", "matroska", pixels="yuvj420p", count=3), "mjpeg"),
        (partial(video, "libx264", "mp4", size=(64, 4224), count=3), "H264"),
        (partial(bytes, b"no video"), "a.mp4"),
        (partial(bytes), "a.mp4"),
    ],
    ids=["10 bits", "4:4:4", "motion jpeg", "too wide", "no video", "empty"],
)
def test_unsupported_file_is_refused(data: Callable[[], bytes], part: str, tmp_path: Path) -> None:
    path = saved(tmp_path, data(), "a.mp4")
    with opened_file(path) as source, pytest.raises(SourceError) as raised:
        source.open()
    assert part in raised.value.args[0]


def test_missing_file_and_calls_out_of_order_are_refused(tmp_path: Path) -> None:
    with opened_file(tmp_path / "b.mp4") as source, pytest.raises(SourceError) as caught:
        source.open()
    assert caught.value.code == "file"
    with opened_file(CLIP) as source:
        with pytest.raises(SourceError):
            source.grab(1)
        source.open()
        with pytest.raises(SourceError):
            source.retrieve(FrameBuffer.allocate(576, 768, "nv12"))
        assert source.grab(1) is not None
        for _ in range(2):
            with pytest.raises(SizeChanged) as caught:
                source.retrieve(FrameBuffer.allocate(2, 2, "nv12"))
            assert "768x576" in caught.value.args[0]
        assert on_gpu(source, 576, 768).std() > 5
        source.close()
        source.close()
        with pytest.raises(SourceError):
            source.grab(1)


def test_truncated_file_ends_with_its_frame_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = video("libx264", "mp4", count=COUNT, options=NO_B_FRAMES)
    with opened_file(saved(tmp_path, data[: len(data) * 6 // 10], "a.mp4")) as source:
        source.open()
        actual = 0
        with pytest.raises(EndOfStream) as end:
            while source.grab(1):
                actual += 1
    assert COUNT // 4 < actual < COUNT
    assert re.search(rf"\b{actual}\b", end.value.args[0])
    assert re.search(rf"\b{actual}\b", caplog.text)


def test_loop_repeats_frames_with_increasing_times(tmp_path: Path) -> None:
    path = saved(tmp_path, video("libx264", "mp4", count=COUNT, options=B_FRAMES), "a.mp4")
    reference = [image for _, image in decoded(path)]
    with opened_file(path, loop=True) as source:
        source.open()
        times = []
        for number in range(2 * COUNT + 5):
            grab = source.grab(1)
            assert grab is not None
            times.append(grab.pts_ns)
            np.testing.assert_array_equal(on_gpu(source, 192, 320), reference[number % COUNT])
    assert times == [round(number * 1e9 / FPS) for number in range(len(times))]


ENCODINGS: tuple[tuple[str, YuvEncoding], ...] = (
    ("colormatrix=smpte170m", "bt601"),
    ("colormatrix=bt709:fullrange=on", "bt709-full"),
    ("colormatrix=bt709", "bt709"),
)


def encodings(count: int = 5) -> list[bytes]:
    """Return H.264 videos of the same size, one with each of the `ENCODINGS`."""
    return [
        video("libx264", "h264", count=count, options=(*NO_B_FRAMES, ("x264-params", x264))) for x264, _ in ENCODINGS
    ]


def test_every_frame_of_a_file_has_its_encoding(tmp_path: Path) -> None:
    """Frames inside the decoder during a change, and frames of the next repetition, also have the correct encoding."""
    with opened_file(saved(tmp_path, b"".join(encodings()), "a.h264"), loop=True) as source:
        assert source.open().yuv == "bt601"
        actual = [grab.yuv for _ in range(25) if (grab := source.grab(1)) is not None]
    expected = [encoding for _, encoding in ENCODINGS for _ in range(5)]
    assert actual == [*expected, *expected[:10]]


def test_file_is_read_in_real_time(tmp_path: Path) -> None:
    path = saved(tmp_path, video("libx264", "mp4", count=COUNT, options=NO_B_FRAMES), "a.mp4")
    with opened_file(path, offline=False) as source:
        source.open()
        began_ns = time.monotonic_ns()
        for number in range(10):
            while source.grab(1) is None:
                pass
            assert time.monotonic_ns() - began_ns >= (number - 1) * 1e9 / FPS
        assert not source.live


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "container", "name", "options"),
    [
        ("libx264", "h264", "live.h264", NO_B_FRAMES),
        ("libx264", "mpegts", "live.ts", NO_B_FRAMES),
        ("libx265", "mpegts", "live.ts", (*FAST.items(), ("x265-params", "log-level=none:bframes=0:keyint=10"))),
    ],
)
def test_network_stream_matches_ffmpeg(
    codec: str, container: str, name: str, options: tuple[tuple[str, str], ...]
) -> None:
    data = video(codec, container, count=COUNT, options=options)
    reference = list(decoded(data))
    with served(data, name=name) as address, closing(opened_camera(address)) as source:
        assert isinstance(source, FFmpegSource)
        assert source.live
        info = source.open()
        actual = list(rest_of(source, 192, 320))
    print(f"\n{info}")
    assert (info.width_px, info.height_px, info.pixel_format) == (320, 192, "nv12")
    assert info.decoder == ("nvdec-hevc" if codec == "libx265" else "nvdec-h264")
    assert len(actual) == COUNT
    for (_, one), (_, other) in zip(actual, reference, strict=True):
        np.testing.assert_array_equal(one, other)


def test_live_frames_are_returned_without_delay(tmp_path: Path) -> None:
    """For a file, the decoder would return each frame one or more calls later."""
    path = saved(tmp_path, video("libx264", "mp4", count=COUNT, options=NO_B_FRAMES), "a.mp4")
    print("\nlive: frames in the decoder after each packet")
    held = {live: held_back(path, live=live) for live in (True, False)}
    print(held)
    assert held[True] == [0] * COUNT
    assert max(held[False]) >= 1
    assert held[False][-1] >= 1


def held_back(path: Path, *, live: bool) -> list[int]:
    """Return the number of frames in the decoder after each packet. Check that the decoder returns all frames."""
    import av

    held, within = [], 0
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        with closing(NvdecDecoder(stream, NV12, live=live)) as decoder:
            for packet in file.demux(stream):
                last = not packet.size
                within += (not last) - len(decoder.decode(packet))
                if not last:
                    held.append(within)
    assert within == 0
    return held


def test_live_stream_with_reordered_frames_is_complete(caplog: pytest.LogCaptureFixture) -> None:
    """From the second key frame on, the decoder returns all frames in presentation order."""
    caplog.set_level(logging.INFO)
    data = video("libx264", "mpegts", count=COUNT, options=B_FRAMES)
    reference = dict(decoded(data))
    with served(data, name="live.ts") as address, closing(opened_camera(address)) as source:
        source.open()
        actual = list(rest_of(source, 192, 320))
    order = sorted(reference, key=lambda pts_ns: pts_ns or 0)
    print("\nplaces in the order of showing:", [order.index(pts_ns) for pts_ns, _ in actual])
    assert log_args(caplog, "vision.capture.nvdec.decoder", logging.INFO) == [()]
    assert sorted(order.index(pts_ns) for pts_ns, _ in actual) == list(range(COUNT))
    late = [order.index(pts_ns) for pts_ns, _ in actual if order.index(pts_ns) >= 12]
    assert late == sorted(late)
    for pts_ns, image in actual:
        np.testing.assert_array_equal(image, reference[pts_ns])


def two_sizes(count: int = 10) -> tuple[bytes, bytes]:
    """Return two H.264 videos: one of 320x192, and one of 208x160."""
    large = video("libx264", "h264", count=count, options=NO_B_FRAMES)
    return large, video("libx264", "h264", count=count, size=(160, 208), options=NO_B_FRAMES)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["smaller", "larger"])
def test_size_change_in_a_stream_is_reported(order: tuple[int, int]) -> None:
    parts = [two_sizes()[at] for at in order]
    sizes = [((192, 320), (160, 208))[at] for at in order]
    reference = [image for part in parts for _, image in decoded(part)]
    with served(*parts, name="live.h264") as address, closing(opened_camera(address)) as source:
        source.open()
        for number, expected in enumerate(reference):
            assert source.grab(10) is not None
            if number == 10:
                with pytest.raises(SizeChanged) as caught:
                    on_gpu(source, *sizes[0])
                assert f"{sizes[1][1]}x{sizes[1][0]}" in caught.value.args[0]
            np.testing.assert_array_equal(on_gpu(source, *sizes[number // 10]), expected)


def test_every_frame_of_a_stream_has_its_encoding() -> None:
    with served(*encodings(), name="live.h264") as address, closing(opened_camera(address)) as source:
        assert source.open().yuv == "bt601"
        actual = [grab.yuv for _ in range(15) if (grab := source.grab(10)) is not None]
    assert actual == [encoding for _, encoding in ENCODINGS for _ in range(5)]


def test_supervisor_with_gpu_buffers_delivers_frames_of_all_epochs() -> None:
    """A new frame size or a new connection starts a new epoch.

    If the machine stalls, frames up to a key frame can be dropped.
    """
    parts = two_sizes()
    reference = [image for part in parts for _, image in decoded(part)]
    with served(*parts, name="live.h264") as address:
        config = camera(address)
        slot = LatestSlot("gate", device_frame_buffer, lossless=True)
        factory = partial(open_source, config, offline=False, pixel_formats=NV12)
        supervisor = CameraSupervisor("gate", factory, slot)
        thread = threading.Thread(target=supervisor.run, daemon=True)
        thread.start()
        seen: list[tuple[int, int]] = []
        deadline = time.monotonic() + 60
        while (not seen or seen[-1] < (3, 5)) and time.monotonic() < deadline:
            lease = slot.take()
            if lease is None:
                time.sleep(0.002)
                continue
            assert lease.frame.buffer.host is None
            epoch, index = lease.frame.meta.epoch, lease.frame.meta.index
            np.testing.assert_array_equal(lease.frame.pixels, reference[epoch % 2 * 10 + index])
            seen.append((epoch, index))
            lease.release()
        supervisor.stop()
        slot.close()
        thread.join(60)
        assert not thread.is_alive()
    assert seen == sorted(set(seen))
    assert [epoch for epoch, index in seen if index == 0] == [0, 1, 2, 3]


def test_frames_after_a_missing_one_are_marked_until_a_key_frame() -> None:
    packets = coded(video("libx264", "h264", count=COUNT, options=NO_B_FRAMES))
    assert len(packets) == COUNT
    with (
        served(*packets[:13], *packets[14:], name="live.h264") as address,
        closing(opened_camera(address)) as source,
    ):
        source.open()
        corrupt = []
        with pytest.raises(SourceError) as caught:
            while grab := source.grab(10):
                corrupt.append(grab.corrupt)
        assert isinstance(caught.value, EndOfStream) or caught.value.code == "stream-ended", caught.value
    assert [number for number, bad in enumerate(corrupt) if bad] == list(range(13, 19))


def test_frames_after_damage_are_whole_from_the_next_key_frame() -> None:
    """NVDEC conceals errors. From the next key frame on, the frames of NVDEC must equal those of FFmpeg."""
    packets = coded(video("libx264", "h264", count=COUNT, options=NO_B_FRAMES))
    packets[15] = packets[15][: len(packets[15]) // 3] + packets[15][len(packets[15]) // 2 :]
    reference = list(decoded(video("libx264", "h264", count=COUNT, options=NO_B_FRAMES)))
    with served(*packets, name="live.h264") as address, closing(opened_camera(address)) as source:
        source.open()
        actual = [image for _, image in rest_of(source, 192, 320)]
    print(
        f"\n{len(actual)} of {COUNT} frames; differences",
        [difference(*pair) for pair in zip(actual[:15], [w for _, w in reference[:15]], strict=False)],
    )
    assert len(actual) >= COUNT - 2
    for one, (_, other) in zip(actual[-10:], reference[-10:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_interrupt_ends_a_blocking_read() -> None:
    data = video("libx264", "h264", count=COUNT, options=NO_B_FRAMES)
    # FFmpeg looks at 5 s of a stream before it opens.
    with served(*6 * [data], name="live.h264", pause_s=60) as address, closing(opened_camera(address)) as source:
        source.open()
        timer = threading.Timer(0.2, source.interrupt)
        timer.start()
        began = time.monotonic()
        while source.grab(60) is not None:
            pass
        assert time.monotonic() - began < 40
        timer.join()


def test_frozen_camera_is_detected_from_rows_copied_to_the_host() -> None:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 255, (864, 768), np.uint8)
    image = device_frame_buffer(576, 768, "nv12")
    write(image, pixels)
    np.testing.assert_array_equal(image.read_rows(6, 13), pixels[6::13])
    watch = FrozenFrameDetector(1.0)
    assert watch.check(image, 0, 0) == ""
    assert watch.check(image, 1, 2_000_000_000) != ""
    pixels[:] += 1
    write(image, pixels)
    assert watch.check(image, 2, 3_000_000_000) == ""


def write(image: FrameBuffer, pixels: Image) -> None:
    from vision.gpu.cuda import Stream
    from vision.gpu.memory import copy_to_device

    with Stream() as stream:
        copy_to_device(image.device_address, pixels.ctypes.data, pixels.nbytes, stream)
        stream.synchronize()


# --- many decoders, and long runs -------------------------------------------------------------------------------------


def play(path: Path, count: list[int]) -> None:
    with opened_file(path) as source:
        info = source.open()
        image = device_frame_buffer(info.height_px, info.width_px, "nv12")
        with pytest.raises(EndOfStream):
            while source.grab(1):
                source.retrieve(image)
                count.append(1)


@pytest.mark.parametrize("parallel", [1, 4, 8])
def test_decoders_run_in_parallel(parallel: int, tmp_path: Path) -> None:
    path = CLIP
    if EMULATED:
        path = saved(tmp_path, video("libx264", "mp4", count=10, options=NO_B_FRAMES), "a.mp4")
    each = sum(1 for _ in decoded(path)) if EMULATED else 200
    counts: list[list[int]] = [[] for _ in range(parallel)]
    threads = [threading.Thread(target=play, args=(path, count), daemon=True) for count in counts]
    before = memory_info()[0]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    least = before
    while any(thread.is_alive() for thread in threads):
        least = min(least, memory_info()[0])
        time.sleep(0.02)
    took_s = time.monotonic() - began
    total = sum(map(len, counts))
    print(f"\n{parallel} decoders: {total / took_s:.0f} frames/s with opening, {(before - least) / 2**20:.0f} MiB held")
    assert [len(count) for count in counts] == [each] * parallel


def test_closed_decoders_release_their_memory(tmp_path: Path) -> None:
    path = saved(tmp_path, video("libx264", "mp4", count=4, options=NO_B_FRAMES), "a.mp4")
    warm, opens = (2, 6) if EMULATED else (10, 50)
    threads = set(threading.enumerate())
    free: list[int] = []
    for _ in range(warm + opens):
        play(path, [])
        check(runtime.cudaDeviceSynchronize(), "waiting for the GPU")
        free.append(memory_info()[0])
    lost = free[warm - 1] - free[-1]
    print(f"\nfree MiB after each opening: {[size >> 20 for size in free]}; {lost / 2**20:.1f} MiB lost in {opens}")
    assert lost <= 16 << 20
    assert set(threading.enumerate()) <= threads
