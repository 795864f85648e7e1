"""Tests of streams that PyAV reads: formats, colors, key frames, damage, size changes, and errors.

The tests of RTSP are in ``tests/rtsp``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.frame_buffers import wrap
from vision.capture.ffmpeg.bindings import FrameWriter, choose_format, encoding_of
from vision.capture.ffmpeg.h264 import FrameGapFinder
from vision.capture.ffmpeg.source import FFmpegSource
from vision.capture.source import StreamInfo
from vision.capture.supervisor import CameraSupervisor
from vision.config import CameraConfig
from vision.detect.reference.yuv import FRACTION_BITS, yuv_coefficients
from vision.errors import SizeChanged, SourceError
from vision.runtime.batcher import Batcher
from vision.runtime.latest_slot import LatestSlot
from vision.types import FrameBuffer, FrameMeta, PixelFormat, YuvEncoding, frame_shape

GOP = 10
WIDTH_PX, HEIGHT_PX = 128, 96
ALL: tuple[PixelFormat, ...] = ("bgr", "i420", "nv12")


# --- formats and colors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoded", "size", "wanted", "expected"),
    [
        ("yuv420p", (48, 64), ("bgr", "nv12", "i420"), "i420"),
        ("yuvj420p", (48, 64), ("bgr", "nv12", "i420"), "i420"),
        ("nv12", (48, 64), ("bgr", "i420", "nv12"), "nv12"),
        ("yuv420p", (48, 64), ("bgr", "nv12"), "bgr"),
        ("yuvj422p", (48, 64), ("nv12", "i420", "bgr"), "bgr"),
        ("yuvj422p", (48, 64), ("nv12", "i420"), "nv12"),
        ("yuv420p", (48, 65), ("i420", "bgr"), "bgr"),
        ("yuv420p", (47, 64), ("i420", "bgrx"), "bgrx"),
    ],
)
def test_delivered_format_follows_the_detector(
    decoded: str, size: tuple[int, int], wanted: tuple[PixelFormat, ...], expected: PixelFormat
) -> None:
    assert choose_format(decoded, *size, wanted) == expected


def test_odd_sides_without_a_format_are_an_error() -> None:
    with pytest.raises(SourceError) as raised:
        choose_format("yuv420p", 48, 65, ("nv12", "i420"))
    assert raised.value.code == "pixel-format"
    assert "65x48" in str(raised.value)


def blocks(height_px: int, width_px: int, pixel_format: str) -> av.VideoFrame:
    """Return a frame of 16-pixel blocks with random colors. FFmpeg pads the rows of most frame widths."""
    random = np.random.default_rng(7)
    frame = av.VideoFrame(width_px, height_px, pixel_format)
    luma = random.integers(60, 180, (height_px, width_px), np.uint8)[::16, ::16].repeat(16, 0).repeat(16, 1)
    chroma = random.integers(90, 160, (height_px, width_px, 2), np.uint8)[::16, ::16].repeat(8, 0).repeat(8, 1)
    half = (height_px + 1) // 2, (width_px + 1) // 2
    separate = [chroma[: half[0], : half[1], plane] for plane in range(2)]
    together = [chroma[: half[0], : half[1]].reshape(half[0], -1)]
    planes = [luma[:height_px, :width_px], *(together if pixel_format == "nv12" else separate)]
    for plane, values in zip(frame.planes, planes, strict=True):
        memory = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
        memory[: values.shape[0], : values.shape[1]] = values
        plane.update(memory.tobytes())
    return frame


def written(frame: av.VideoFrame, pixel_format: PixelFormat) -> NDArray[np.uint8]:
    out = np.zeros(frame_shape(frame.height, frame.width, pixel_format), np.uint8)
    FrameWriter(pixel_format).write(frame, out)
    return out


def colour(y: int, u: int, v: int, encoding: YuvEncoding) -> tuple[float, float, float]:
    """Convert a YUV color to blue, green, and red, with the coefficients that detectors use."""
    black, *factors = yuv_coefficients(encoding)
    luma, u_blue, u_green, v_green, v_red = (factor / (1 << FRACTION_BITS) for factor in factors)
    light, u_off, v_off = luma * (y - black), u - 128, v - 128
    return light + u_blue * u_off, light + u_green * u_off + v_green * v_off, light + v_red * v_off


@pytest.mark.parametrize(
    ("decoded", "matrix", "numbers", "height_px", "expected"),
    [
        ("yuv420p", 1, 1, 96, "bt709"),
        ("yuv420p", 5, 1, 96, "bt601"),
        ("yuv420p", 6, 2, 96, "bt601-full"),
        ("yuv420p", 9, 1, 96, "bt709"),
        ("yuv420p", 2, 0, 96, "bt601"),
        ("yuv420p", 2, 0, 720, "bt709"),
        ("yuvj420p", 5, 0, 720, "bt601-full"),
        ("yuvj420p", 5, 1, 96, "bt601"),  # FFmpeg's format for a stream that has changed from the full range
        ("nv12", 1, 2, 96, "bt709-full"),
        ("nv12", 2, 1, 96, "bt601"),
    ],
)
def test_color_encoding_is_read_from_the_frame(
    decoded: str, matrix: int, numbers: int, height_px: int, expected: YuvEncoding
) -> None:
    """The conversion to bgr must yield the colors that a detector computes for this encoding."""
    frame = blocks(height_px, WIDTH_PX, decoded)
    frame.colorspace, frame.color_range = matrix, numbers
    assert encoding_of(frame) == expected
    raw = written(frame, "i420")
    bgr, bgrx = written(frame, "bgr"), written(frame, "bgrx")
    assert np.array_equal(bgr, bgrx[..., :3])
    chroma = raw[height_px:].reshape(2, height_px // 2, WIDTH_PX // 2)
    for y, x in ((8, 8), (8, 40), (40, 8), (72, 104)):  # in the middle of blocks, where nothing is interpolated
        wanted = colour(int(raw[y, x]), int(chroma[0, y // 2, x // 2]), int(chroma[1, y // 2, x // 2]), expected)
        assert np.abs(bgr[y, x] - np.clip(wanted, 0, 255)).max() <= 6


def test_planes_are_copied_without_padding() -> None:
    """The test compares the same frame in the chroma layouts of NV12 and I420."""
    frame = blocks(50, 70, "yuv420p")
    assert frame.planes[0].line_size > 70
    i420, nv12 = written(frame, "i420"), written(frame, "nv12")
    assert np.array_equal(i420[:50], nv12[:50])
    assert np.array_equal(i420[50:].reshape(2, 25 * 35), nv12[50:].reshape(25 * 35, 2).T)
    assert i420.min() >= 60


def test_odd_frames_are_delivered_in_bgr_only() -> None:
    frame = blocks(49, 71, "yuv420p")
    assert written(frame, "bgr").std() > 5
    with pytest.raises(SizeChanged) as changed:
        FrameWriter("i420").write(frame, np.zeros((75, 72), np.uint8))
    assert (changed.value.width_px, changed.value.height_px) == (71, 49)


# --- streams ----------------------------------------------------------------------------------------------------------


@cache
def coded(
    width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX, count: int = 4 * GOP, x264: str = "bframes=0"
) -> tuple[bytes, ...]:
    """Return H.264 packets in decoding order, with one frame each. Key frames contain their parameter sets."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width_px, height_px, "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "g": str(GOP),
        "x264-params": f"sliced-threads=0:scenecut=0:threads=1:{x264}",
    }
    random = np.random.default_rng(3)
    scene = random.integers(0, 255, (height_px, width_px + count, 3), np.uint8)
    images = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, number : number + width_px]), format="bgr24")
        frame.pts = number
        images += [bytes(packet) for packet in encoder.encode(frame)]
    images += [bytes(packet) for packet in encoder.encode(None)]
    assert len(images) == count
    return tuple(images)


def damaged(image: bytes) -> bytes:
    """Return a packet without a part of its middle."""
    return image[: len(image) // 3] + image[len(image) // 2 :]


@contextmanager
def served(*images: bytes, pause_s: float = 0.0, status: int = 200) -> Iterator[str]:
    """Serve the packets, and yield the address. The connection remains open for `pause_s` after the last packet."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Log nothing."""

        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()  # without a length, as a camera
            try:
                self.wfile.write(b"".join(images))
                self.wfile.flush()
            except OSError:
                return
            ended.wait(pause_s)

    ended = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}/live.h264"
        finally:
            ended.set()
            server.shutdown()
            thread.join()


def source_of(address: str, **settings: object) -> FFmpegSource:
    camera = CameraConfig.model_validate({"id": "gate", "source": f"http://{address}", "reader": "ffmpeg", **settings})
    return FFmpegSource(camera, ALL)


def every(source: FFmpegSource) -> list[bool]:
    """Read frames until the stream ends. Return, for each frame, whether it is corrupt."""
    source.open()
    observed: list[bool] = []
    with pytest.raises(SourceError) as raised:
        while True:
            grab = source.grab(20)
            assert grab is not None
            observed.append(grab.corrupt)
    assert raised.value.code in {"read", "stream-ended"}  # FFmpeg reports an end without a length as an error
    return observed


@pytest.mark.parametrize("at", [GOP + 3, 2 * GOP])
def test_frames_after_damage_are_marked_until_a_key_frame(at: int) -> None:
    images = list(coded())
    images[at] = damaged(images[at])
    with served(*images) as address, closing(source_of(address)) as source:
        corrupt = every(source)
    healed = (at // GOP + 1) * GOP
    assert len(corrupt) == len(images)
    assert [number for number, bad in enumerate(corrupt) if bad] == list(range(at, healed))


def test_frames_after_a_missing_one_are_marked_until_a_key_frame() -> None:
    """The decoder itself does not detect the missing frame."""
    at = GOP + 3
    with served(*coded()[:at], *coded()[at + 1 :]) as address, closing(source_of(address)) as source:
        corrupt = every(source)
    assert [number for number, bad in enumerate(corrupt) if bad] == list(range(at, 2 * GOP - 1))


@pytest.mark.parametrize(
    "x264",
    ["bframes=0", "bframes=2:b-pyramid=strict", "bframes=3", "cqm=jvt", "ref=4", "interlaced=1", "fake-interlaced=1"],
)
def test_missing_reference_frames_are_found(x264: str) -> None:
    """The source must find missing reference frames. In 40 frames, the frame numbers wrap at least twice."""
    images = coded(x264=x264)
    parameters = FrameGapFinder(None)
    assert not any(parameters.before(image) for image in images)
    for at in range(1, len(images) - 1):
        units = [unit[0] for unit in images[at].split(b"\x00\x00\x01")[1:]]
        key = any(unit & 31 == 5 for unit in units)
        reference = any(unit & 31 == 1 and unit >> 5 for unit in units)
        next_key = any(unit[0] & 31 == 5 for unit in images[at + 1].split(b"\x00\x00\x01")[1:])
        watch = FrameGapFinder(b"")
        observed = [watch.before(image) for image in (*images[:at], *images[at + 1 :])]
        if key:
            continue  # the next stream has no parameters that could differ
        assert observed[at] is (reference and not next_key), (at, units)
        assert not any(observed[:at])


@pytest.mark.parametrize("end", range(0, 60, 3))
def test_truncated_frames_are_no_gap(end: int) -> None:
    watch = FrameGapFinder(coded()[0])
    assert watch.before(coded()[1][:end]) is False


def test_first_frame_is_a_key_frame() -> None:
    with served(*coded()[GOP // 2 :]) as address, closing(source_of(address)) as source:
        assert every(source) == [False] * 3 * GOP


def retrieved(source: FFmpegSource, info: StreamInfo, height_px: int, width_px: int) -> NDArray[np.uint8]:
    out = np.zeros(frame_shape(height_px, width_px, info.pixel_format), np.uint8)
    source.retrieve(wrap(out))
    return out


def test_size_change_within_a_stream_is_reported() -> None:
    with (
        served(*coded()[:GOP], *coded(64, 48)[:GOP]) as address,
        closing(source_of(address)) as source,
    ):
        info = source.open()
        assert (info.width_px, info.height_px, info.pixel_format) == (WIDTH_PX, HEIGHT_PX, "i420")
        assert info.decoder == "pyav-h264"
        for _ in range(GOP):
            assert source.grab(20) is not None
            assert retrieved(source, info, HEIGHT_PX, WIDTH_PX).std() > 5
        for _ in range(GOP):
            assert source.grab(20) is not None
            with pytest.raises(SizeChanged):
                retrieved(source, info, HEIGHT_PX, WIDTH_PX)
            assert retrieved(source, info, 48, 64).std() > 5


Change: TypeAlias = tuple[int, str, YuvEncoding]
"""Frame height, options of x264, and the expected encoding."""

UNSAID: tuple[Change, ...] = ((96, "", "bt601"), (720, "", "bt709"), (96, "", "bt601"))
SAID: tuple[Change, ...] = (
    (96, ":colormatrix=smpte170m", "bt601"),
    (96, ":colormatrix=bt709", "bt709"),
    (96, ":colormatrix=bt709:fullrange=on", "bt709-full"),
    (720, ":colormatrix=smpte170m:fullrange=on", "bt601-full"),
    (720, ":colormatrix=smpte170m", "bt601"),
)


def changing(changes: Sequence[Change]) -> Iterator[bytes]:
    """Yield three packets of each encoding in `changes`."""
    for height_px, said, _ in changes:
        yield from coded(WIDTH_PX, height_px, 3, f"bframes=0{said}")


@pytest.mark.parametrize("changes", [UNSAID, SAID], ids=["unsaid", "said"])
def test_grab_has_the_encoding_of_the_frame(changes: Sequence[Change]) -> None:
    with served(*changing(changes)) as address, closing(source_of(address)) as source:
        assert source.open().yuv == "bt601"
        observed = [grab.yuv for _ in range(3 * len(changes)) if (grab := source.grab(20)) is not None]
    assert observed == [encoding for _, _, encoding in changes for _ in range(3)]


def test_slot_receives_each_frame_with_its_encoding() -> None:
    """A new frame size starts an epoch, but a new color encoding does not."""
    slot = LatestSlot("gate", FrameBuffer.allocate, lossless=True)
    batcher = Batcher([slot], 1)
    metas: list[FrameMeta] = []
    with served(*changing(SAID)) as address:
        supervisor = CameraSupervisor("gate", lambda: source_of(address), slot)
        thread = threading.Thread(target=supervisor.run, daemon=True)
        thread.start()
        while len(metas) < 14:  # the last frame can be dropped together with its connection
            assert batcher.wait_frame(20)
            for lease in batcher.form_batch():
                metas.append(lease.frame.meta)
                lease.release()
        supervisor.stop()
        slot.close()
        thread.join(60)
    assert [(meta.epoch, meta.index, meta.height_px, meta.yuv) for meta in metas] == [
        *[(0, index, 96, "bt601") for index in range(3)],
        *[(0, index, 96, "bt709") for index in range(3, 6)],
        *[(0, index, 96, "bt709-full") for index in range(6, 9)],
        *[(1, index, 720, "bt601-full") for index in range(3)],
        *[(1, index, 720, "bt601") for index in range(3, 5)],
    ]


@pytest.mark.integration
def test_silent_stream_is_an_error_after_the_read_timeout() -> None:
    with (
        served(*coded(), pause_s=30) as address,
        closing(source_of(address, open_timeout_s=1, read_timeout_s=0.5)) as source,
    ):
        source.open()
        with pytest.raises(SourceError) as raised:
            while True:
                source.grab(5)
        assert raised.value.code == "read"
        assert "read_timeout_s" in raised.value.hint


@pytest.mark.integration
def test_stream_without_a_key_frame_is_not_opened() -> None:
    with (
        served(*coded()[1:GOP], pause_s=30) as address,
        closing(source_of(address, open_timeout_s=0.5)) as source,
        pytest.raises(SourceError) as raised,
    ):
        source.open()
    assert raised.value.code in {"no-frame", "codec"}


@pytest.mark.parametrize(
    ("images", "status", "code"),
    [((b"",), 401, "unauthorized"), ((b"",), 404, "no-stream"), ((b"<html>no frames</html>",), 200, "codec")],
)
def test_open_error_names_the_cause_without_secrets(
    images: tuple[bytes, ...],
    status: int,
    code: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        served(*images, status=status) as address,
        closing(source_of(f"ann:hunter2@{address}?token=hunter3")) as source,
        pytest.raises(SourceError) as raised,
    ):
        source.open()
    assert raised.value.code == code
    printed = capfd.readouterr()
    for text in (str(raised.value), repr(raised.value), caplog.text, printed.out, printed.err):
        assert "hunter" not in text
        assert "ann:" not in text


@pytest.mark.integration
def test_interrupt_ends_open_permanently() -> None:
    with served(pause_s=30) as address, closing(source_of(address, open_timeout_s=60)) as source:
        timer = threading.Timer(0.2, source.interrupt)
        timer.start()
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(SourceError) as raised:
                source.open()
            assert raised.value.code == "interrupted"
        assert time.monotonic() - began < 20
        timer.join()
