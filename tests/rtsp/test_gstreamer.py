"""Tests of the GStreamer source: decoders, formats, clocks, and resources."""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.gpu.coded_video import FAST, video
from tests.log_records import log_args
from tests.paths import ROOT
from tests.rtsp.stage import (
    PATIENCE_S,
    Server,
    camera,
    codes_of_wrong_path,
    frame,
    open_files,
    opened,
    place_in_clip,
    source_of,
    wait_until,
)
from vision.capture.gstreamer.bindings import CLASSES, installed, library, mapped
from vision.capture.gstreamer.packets import DecodedFrames, PacketMonitor
from vision.capture.gstreamer.pipeline import Element, decode_chain, host_caps
from vision.capture.gstreamer.source import GStreamerSource, Player, available
from vision.capture.source import SkippedFrames
from vision.errors import SourceError
from vision.types import DropReason, PixelFormat, YuvEncoding

GOP = 20


def test_all_classes_that_the_threads_use_are_complete_at_the_start() -> None:
    texts = [path.read_text() for path in (ROOT / "vision" / "capture" / "gstreamer").glob("*.py")]
    used = {name for text in texts for name in re.findall(r"\b[gG]st\.([A-Z]\w+)\.", text)}
    assert len(used) > 10
    assert used - set(CLASSES) == set()


def test_gstreamer_is_available() -> None:
    assert available(camera("rtsp://127.0.0.1/clip", "gstreamer")) is None
    reason = available(camera("csi:0", "gstreamer"))
    assert reason is not None
    assert "nvidia-l4t-gstreamer" in reason
    assert "rtsp://" in str(available(camera("http://127.0.0.1/clip", "auto")))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_first_frame_of_a_connection_is_a_key_frame(server: Server, transport: str) -> None:
    """The client connects in the middle of a group of frames, that is, between two key frames."""
    with opened(camera(server.url("/clip"), "gstreamer")) as (before, info):
        for _ in range(2 * GOP):
            assert before.grab(PATIENCE_S) is not None
            place, _ = place_in_clip(frame(before, info)[0], info.pixel_format)
            if place % GOP == 5:
                break
        else:
            pytest.fail("no frame 5 of a group came by")
        with opened(camera(server.url("/clip"), "gstreamer", transport=transport)) as (source, _):
            grab = source.grab(PATIENCE_S)
            assert grab is not None
            assert not grab.corrupt
            place, error = place_in_clip(frame(source, info)[0], info.pixel_format)
            assert place % GOP == 0
            assert error == 0.0


def test_unset_camera_clock_is_not_trusted(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The source ignores the times of the camera, and logs one warning."""
    with (
        caplog.at_level(logging.WARNING),
        opened(camera(server.url("/unset"), "gstreamer")) as (source, _),
    ):
        last = source.grab(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while not caplog.records and time.monotonic() < deadline:
            last = source.grab(PATIENCE_S)
        for _ in range(5):
            last = source.grab(PATIENCE_S)
            assert last is not None
            assert last.clock == "arrival"
            assert 0 <= time.time_ns() - last.captured_utc_ns < 1e9
    ((_, camera_utc, _),) = log_args(caplog, "vision.capture.clock")
    assert str(camera_utc).startswith("1900-01-01")


@pytest.mark.parametrize(
    ("path", "decoder"), [("/h265", "avdec_h265"), ("/mjpeg", "jpegdec"), ("/other", "avdec_h264")]
)
def test_other_codecs_are_played_without_sound(server: Server, path: str, decoder: str) -> None:
    with opened(camera(server.url(path), "gstreamer", open_timeout_s=15)) as (source, info):
        assert (info.width_px, info.height_px, info.decoder) == (384, 288, decoder)
        for _ in range(3):
            assert source.grab(PATIENCE_S) is not None
            pixels, _, _ = frame(source, info)
            assert 20 < pixels.std() < 100


@pytest.mark.parametrize("formats", [("bgr",), ("bgrx", "bgr"), ("nv12",), ("bgr", "i420")])
def test_delivered_pixel_format_follows_the_detector(server: Server, formats: tuple[PixelFormat, ...]) -> None:
    """The source delivers the decoder's own I420 if the detector accepts it, or else the detector's first format."""
    source = GStreamerSource(camera(server.url("/clip"), "gstreamer"), formats)
    try:
        info = source.open()
        assert info.pixel_format == ("i420" if "i420" in formats else formats[0])
        assert source.grab(PATIENCE_S) is not None
        pixels, _, _ = frame(source, info)
        if info.pixel_format != "bgrx":
            assert place_in_clip(pixels, info.pixel_format)[1] < 4.0
        else:
            assert place_in_clip(np.ascontiguousarray(pixels[..., :3]), "bgr")[1] < 4.0
    finally:
        source.close()


def test_frames_with_equal_or_earlier_times_are_counted_in_order() -> None:
    """The times decrease after frame 4, so the decoder repeats the latest time. Frames 8 and 9 are never output."""
    gst, skipped = library().Gst, SkippedFrames()
    decoded = DecodedFrames(skipped)
    monitor = PacketMonitor(decoded.skip)
    monitor.started(time.monotonic_ns())

    def buffer(pts: int, *, key: bool = True) -> Any:
        made = gst.Buffer.new()
        made.pts = pts
        if not key:
            made.set_flags(gst.BufferFlags.DELTA_UNIT)
        return made

    def code(pts: int, *, key: bool = True) -> Any:
        pad = gst.Pad.new(None, gst.PadDirection.SRC)
        return monitor.on_coded_frame(pad, SimpleNamespace(get_buffer=lambda: buffer(pts, key=key)))

    def decode(pts: int) -> None:
        decoded.put(monitor.on_decoded_frame(gst.Sample.new(buffer(pts), None, None, None)))

    def counted() -> int:
        return sum(skipped.take().values())

    code(5, key=False)  # dropped before the decoder, because it is not a key frame
    code(10)
    decode(10)
    for pts in (20, 30, 40, 15, 16, 17):
        code(pts)
        decode(max(pts, 40))
    assert counted() == 0  # the frame before the first is counted with it
    first = decoded.get(0.0)
    assert first is not None and first.sample.get_buffer().pts == 40
    assert counted() == 1 + 5
    assert decoded.get(0.0) is not None
    for pts in (18, 19, 50):
        code(pts)
    decode(50)
    last = decoded.get(0.0)
    assert last is not None and last.sample.get_buffer().pts == 50
    assert skipped.take() == {DropReason.CORRUPT: 2}
    assert decoded.get(0.0) is None


@pytest.mark.parametrize(("width", "expected"), [(320, "I420"), (321, "BGR")])
def test_frames_with_odd_sides_are_converted(width: int, expected: str) -> None:
    gst = library().Gst
    names = ("videotestsrc", "capsfilter", "videoconvert", "appsink")
    chain = [gst.ElementFactory.make(name, None) for name in names]
    chain[1].set_property("caps", gst.Caps.from_string(f"video/x-raw,format=I420,width={width},height=240"))
    chain[3].set_property("caps", gst.Caps.from_string(host_caps(("i420", "bgr")).text))
    pipeline = gst.Pipeline.new(None)
    for element in chain:
        pipeline.add(element)
    for left, right in pairwise(chain):
        assert left.link(right)
    pipeline.set_state(gst.State.PLAYING)
    try:
        sample = chain[3].try_pull_sample(round(PATIENCE_S * 1e9))
        assert sample.get_caps().get_structure(0).get_string("format") == expected
    finally:
        pipeline.set_state(gst.State.NULL)


class FilePlayer(Player):
    """Pipeline that reads coded frames from a file, and decodes them in the same way as frames of a camera."""

    path: Path

    def start(self) -> None:
        _, *decoding = decode_chain("H264", ("i420",), installed)
        self._add_chain([Element("filesrc", {"location": str(self.path)}), *decoding])
        self._pipeline.set_state(library().Gst.State.PLAYING)


class Recorded(GStreamerSource):
    """Camera whose coded frames come from a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(camera("rtsp://127.0.0.1/recorded", "gstreamer"), ("i420",))
        self._path = path

    def _new_player(self) -> Player:
        player = FilePlayer(self._camera, self._pixel_formats, self._interrupted, self.skipped)
        player.path = self._path
        player._decoded = DecodedFrames(self.skipped, most=1000)
        return player


UNSAID: tuple[tuple[int, str, YuvEncoding], ...] = ((96, "bframes=0", "bt601"), (720, "bframes=0", "bt709"))
SAID: tuple[tuple[int, str, YuvEncoding], ...] = (
    (96, "colormatrix=smpte170m", "bt601"),
    (96, "colormatrix=bt709", "bt709"),
    (720, "colormatrix=smpte170m:fullrange=on", "bt601-full"),  # 1.22 does not report a change of the range alone
    (96, "colormatrix=smpte170m", "bt601"),
)


@pytest.mark.parametrize("parts", [UNSAID, SAID], ids=["unsaid", "said"])
def test_grab_has_the_encoding_of_the_frame(parts: tuple[tuple[int, str, YuvEncoding], ...], tmp_path: Path) -> None:
    path = tmp_path / "a.h264"
    each = [
        video("libx264", "h264", count=3, size=(height_px, 128), options=(*FAST.items(), ("x264-params", x264)))
        for height_px, x264, _ in parts
    ]
    path.write_bytes(b"".join(each))
    found = []
    with closing(Recorded(path)) as source:
        info = source.open()
        assert info.yuv == parts[0][2]
        with pytest.raises(SourceError) as raised:
            while (grab := source.grab(PATIENCE_S)) is not None:
                found.append((frame(source, info)[1], grab.yuv))
        assert raised.value.code == "stream-ended"
    assert found == [(height_px, yuv) for height_px, _, yuv in parts for _ in range(3)]


def test_buffer_is_mapped_in_place_or_by_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test covers both mapping and copying, because the version of PyGObject determines the method."""
    expected = bytes(range(200))
    buffer = library().Gst.Buffer.new_wrapped(expected)
    assert library().hash_is_address
    for in_place in (True, False):
        monkeypatch.setattr(library(), "hash_is_address", in_place)
        with mapped(buffer) as pixels:
            assert pixels.dtype == np.uint8
            assert pixels.tobytes() == expected


@pytest.mark.parametrize(("blank", "quote"), [("%20", "%22"), ("%20", ""), ("", "")])
def test_url_cannot_inject_pipeline_elements(server: Server, tmp_path: Path, blank: str, quote: str) -> None:
    """The URL reaches the camera unchanged, and has no stream there. (camera.yaml rejects blanks and quotes.)"""
    owned = tmp_path / "owned"
    location = f"location={quote}{owned}{quote}"
    hostile = blank.join([server.url("/clip") + quote, "!", "filesink", location, "!", "rtspsrc", f"location={quote}x"])
    source = source_of(camera(hostile, "gstreamer"))
    try:
        with pytest.raises(SourceError) as raised:
            source.open()
        assert raised.value.code in codes_of_wrong_path()
    finally:
        source.close()
    assert not owned.exists()


def test_connections_leave_no_resources(server: Server) -> None:
    """Open 50 connections. Some connections deliver frames, and most are interrupted before the first frame."""

    def once(cycle: int) -> None:
        source = source_of(camera(server.url("/clip"), "gstreamer", transport=("tcp", "udp")[cycle % 2]))
        timer = threading.Timer(0.01 * (cycle % 5), source.interrupt if cycle % 5 else lambda: None)
        timer.start()
        try:
            source.open()
            opened_cycles.append(cycle)
            source.grab(PATIENCE_S)
        except SourceError as error:
            # Either a frame or an error is right: it depends on which was faster. The server may still be closing.
            assert error.code in ("interrupted", "busy")
        timer.join()
        source.close()
        source.close()

    opened_cycles: list[int] = []
    for cycle in range(5):  # create the objects that exist only once: plugins, pools of threads
        once(cycle)
    files, threads = open_files(), task_names()
    for cycle in range(50):
        once(cycle)
    assert set(range(0, 50, 5)) <= set(opened_cycles)
    wait_until(lambda: len(open_files()) <= len(files), f"{open_files() - files} to be closed")
    wait_until(lambda: len(task_names()) <= len(threads) + 2, f"{task_names()} to become {threads}")


def task_names() -> list[str]:
    """Return the names of this process's threads, except the idle threads "pool-..." of GLib, which end later."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except FileNotFoundError:
            continue
    return names
