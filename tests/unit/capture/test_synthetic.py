"""Tests of the synthetic camera: the objects that it draws in all pixel formats, and the faults that it simulates."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.frame_buffers import wrap
from tests.unit.scripted_camera import SECOND, ManualClock
from vision.capture.pacing import FramePacer
from vision.capture.source import Grab
from vision.capture.synthetic.frames import Scene
from vision.capture.synthetic.source import SyntheticSource
from vision.capture.synthetic.spec import SyntheticSpec
from vision.drawing.test_pattern import FAKE_CLASSES, FAKE_COLORS
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import PixelFormat, frame_shape

EVERYTHING = "synthetic:64x48@5?objects=2&seed=7&frames=9&format=i420&overlap=1&freeze=1&freeze_pts=2"
FORMATS: tuple[PixelFormat, ...] = ("bgr", "bgrx", "nv12", "i420")
TO_BGR: dict[PixelFormat, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "bgr": lambda pixels: pixels,
    "bgrx": lambda pixels: pixels[:, :, :3],
    "nv12": lambda pixels: np.asarray(cv2.cvtColor(pixels, cv2.COLOR_YUV2BGR_NV12), np.uint8),
    "i420": lambda pixels: np.asarray(cv2.cvtColor(pixels, cv2.COLOR_YUV2BGR_I420), np.uint8),
}


def camera(
    source: str, formats: tuple[PixelFormat, ...] = ("bgr",), offline: bool = True, clock: ManualClock | None = None
) -> SyntheticSource:
    clock = clock or ManualClock()
    pacer = FramePacer(offline=offline, clock=clock, utc=clock, wait=clock.advance)
    return SyntheticSource(SyntheticSpec.parse(source), formats, pacer)


def read(source: SyntheticSource, shape: tuple[int, ...]) -> tuple[Grab, NDArray[np.uint8]]:
    grab = source.grab(1.0)
    assert grab is not None
    pixels = np.full(shape, 99, np.uint8)
    source.retrieve(wrap(pixels))
    return grab, pixels


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_drawn_objects_equal_the_truth(pixel_format: PixelFormat) -> None:
    source = camera(f"synthetic:320x240?objects=5&seed=3&format={pixel_format}", FORMATS)
    info = source.open()
    assert (info.width_px, info.height_px, info.pixel_format, info.yuv) == (320, 240, pixel_format, "bt601")
    for index in range(20):
        _, pixels = read(source, frame_shape(240, 320, pixel_format))
        seen = TO_BGR[pixel_format](pixels)
        expected = np.full((240, 320, 3), 114, np.int16)
        for (x1, y1, x2, y2), class_id in zip(*source.truth(index), strict=True):
            expected[int(y1) : int(y2), int(x1) : int(x2)] = FAKE_COLORS[class_id]
        assert np.abs(seen - expected).max() <= (0 if "bgr" in pixel_format else 4)


def test_boxes_are_equal_in_all_formats() -> None:
    boxes = [camera(f"synthetic:320x240?seed=3&format={name}", FORMATS).truth(7)[0] for name in FORMATS]
    assert all(np.array_equal(boxes[0], other) for other in boxes)
    assert boxes[0].dtype == np.float32
    assert boxes[0].shape == (3, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 400), st.integers(8, 400), st.integers(0, 50), st.integers(0, 99), st.integers(0, 10_000))
def test_objects_stay_inside_and_do_not_touch(
    height_px: int, width_px: int, objects: int, seed: int, index: int
) -> None:
    objects = min(objects, Scene.most_objects(height_px, width_px))
    boxes, class_ids = Scene(height_px, width_px, objects, seed).truth(index)
    assert len(boxes) == len(class_ids) == objects
    assert np.all(boxes % 2 == 0)
    assert np.all(boxes >= 0)
    assert np.all(boxes[:, 2] <= width_px)
    assert np.all(boxes[:, 3] <= height_px)
    assert np.all(boxes[:, 2:] > boxes[:, :2])
    assert np.all((class_ids >= 0) & (class_ids < len(FAKE_CLASSES)))
    for one in range(objects):
        for other in range(one):
            (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = boxes[one], boxes[other]
            assert ax2 < bx1 or bx2 < ax1 or ay2 < by1 or by2 < ay1


def test_all_classes_occur() -> None:
    assert set(Scene(240, 320, 20, seed=1).truth(0)[1].tolist()) == set(range(len(FAKE_CLASSES)))


def test_objects_overlap_if_configured() -> None:
    scene = Scene(240, 320, 12, seed=1, overlap=True)

    def overlaps(index: int) -> bool:
        boxes, _ = scene.truth(index)
        first, second = boxes[:, None], boxes[None, :]
        size = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
        return bool((np.all(size > 0, axis=2).sum() - len(boxes)) > 0)

    assert any(overlaps(index) for index in range(100))


def test_frames_and_seeds_differ() -> None:
    source = camera("synthetic:320x240?seed=1")
    source.open()
    frames = [read(source, (240, 320, 3))[1] for _ in range(100)]
    assert all(not np.array_equal(one, other) for one, other in pairwise(frames))
    other = camera("synthetic:320x240?seed=2")
    other.open()
    assert not np.array_equal(read(other, (240, 320, 3))[1], frames[0])


@pytest.mark.parametrize(
    ("size", "formats", "chosen"),
    [
        ("320x240", ("nv12", "bgr"), "nv12"),
        ("320x240", ("bgr", "nv12"), "bgr"),
        ("321x240", ("nv12", "bgr"), "bgr"),
        ("320x241", ("nv12", "i420", "bgrx"), "bgrx"),
        ("1x1", ("nv12", "bgr"), "bgr"),
        ("7680x4320", ("nv12", "bgr"), "nv12"),
    ],
)
def test_first_format_that_the_size_allows_is_chosen(
    size: str, formats: tuple[PixelFormat, ...], chosen: PixelFormat
) -> None:
    source = camera(f"synthetic:{size}", formats)
    info = source.open()
    assert info.pixel_format == chosen
    read(source, frame_shape(info.height_px, info.width_px, info.pixel_format))


def test_odd_size_without_a_format_is_an_error() -> None:
    with pytest.raises(SourceError) as raised:
        camera("synthetic:321x240", ("nv12",)).open()
    assert raised.value.code == "pixel-format"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("synthetic:", SyntheticSpec()),
        ("synthetic:640x480", SyntheticSpec(640, 480)),
        ("synthetic:@12.5", SyntheticSpec(fps=12.5)),
        ("synthetic:?seed=4", SyntheticSpec(seed=4)),
        (
            f"{EVERYTHING}&resize=3:32x16&stall=4:1.5&hang=5:2&fail=6&corrupt=7:8",
            SyntheticSpec(64, 48, 5.0, 2, 7, 9, "i420", True, 1, 2, (3, 32, 16), (4, 1.5), (5, 2.0), 6, (7, 8)),
        ),
    ],
)
def test_address_is_parsed(source: str, expected: SyntheticSpec) -> None:
    assert SyntheticSpec.parse(source) == expected


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("synthetic:640", "synthetic:640"),
        ("synthetic:640x480x3", "synthetic:640x480x3"),
        ("synthetic:640x480?object=3", "objects"),
        ("synthetic:640x480?zzz=3", "objects"),
        ("synthetic:?objects=many", "objects"),
        ("synthetic:?objects=-1", "objects"),
        ("synthetic:@0", "fps"),
        ("synthetic:@1001", "fps"),
        ("synthetic:@1.2.3", "fps"),
        ("synthetic:?format=rgb", "format"),
        ("synthetic:?overlap=yes", "overlap"),
        ("synthetic:?resize=5", "resize"),
        ("synthetic:?stall=5", "stall"),
        ("synthetic:?corrupt=5", "corrupt"),
    ],
)
def test_invalid_address_is_an_error(source: str, name: str) -> None:
    with pytest.raises(SourceError) as raised:
        SyntheticSpec.parse(source)
    assert raised.value.code == "synthetic-address"
    assert name in str(raised.value)


@pytest.mark.parametrize("source", ["synthetic:320x24?objects=4", "synthetic:1x1?objects=1"])
def test_too_many_objects_are_an_error(source: str) -> None:
    with pytest.raises(SourceError) as raised:
        camera(source).open()
    assert raised.value.code == "synthetic-address"


# --- faults -----------------------------------------------------------------------------------------------------------


def test_freeze_repeats_the_frame_and_the_time() -> None:
    source = camera("synthetic:64x48@10?freeze=3&freeze_pts=5")
    source.open()
    grabs, frames = zip(*[read(source, (48, 64, 3)) for _ in range(9)], strict=True)
    assert [bool(np.array_equal(frame, frames[3])) for frame in frames] == [False] * 3 + [True] * 6
    assert [grab.pts_ns for grab in grabs] == [number * SECOND // 10 for number in (0, 1, 2, 3, 4, 5, 5, 5, 5)]
    assert np.array_equal(source.truth(8)[0], source.truth(3)[0])
    assert not np.array_equal(source.truth(2)[0], source.truth(3)[0])


def test_resize_changes_the_size() -> None:
    source = camera("synthetic:64x48?resize=2:32x80")
    assert source.open().width_px == 64
    for _ in range(2):
        read(source, (48, 64, 3))
    assert source.grab(1) is not None
    with pytest.raises(SizeChanged) as change:
        source.retrieve(wrap(np.zeros((48, 64, 3), np.uint8)))
    assert (change.value.height_px, change.value.width_px) == (80, 32)
    pixels = np.zeros((80, 32, 3), np.uint8)
    source.retrieve(wrap(pixels))
    x1, y1, x2, y2 = source.truth(2)[0][0].astype(int)
    assert np.all(pixels[y1:y2, x1:x2] == FAKE_COLORS[source.truth(2)[1][0]])


def test_resize_to_an_odd_size_is_reported() -> None:
    source = camera("synthetic:64x48?resize=0:33x21", ("nv12", "bgr"))
    assert source.open().pixel_format == "nv12"
    assert source.grab(1) is not None
    for shape in ((72, 64), (21, 33, 3)):
        with pytest.raises(SizeChanged):
            source.retrieve(wrap(np.zeros(shape, np.uint8)))


def test_corrupt_fail_and_frames_options_take_effect_at_their_frames() -> None:
    source = camera("synthetic:64x48?corrupt=1:3&frames=4")
    source.open()
    assert [grab.corrupt for _ in range(4) if (grab := source.grab(1)) is not None] == [False, True, True, False]
    for _ in range(2):
        with pytest.raises(EndOfStream) as raised:
            source.grab(1)
        assert re.findall(r"\d+", raised.value.args[0].rpartition(": ")[2]) == ["4"]
    failing = camera("synthetic:64x48?fail=1")
    failing.open()
    assert failing.grab(1) is not None
    with pytest.raises(SourceError) as failed:
        failing.grab(1)
    assert failed.value.code == "synthetic-failure"


def test_stall_delays_the_following_frames() -> None:
    clock = ManualClock()
    source = camera("synthetic:64x48@10?stall=2:3", offline=False, clock=clock)
    source.open()
    arrivals = (clock.now_ns for _ in range(400) if source.grab(0.01) is not None)
    times = [round((arrival_ns - 1_000 * SECOND) / SECOND, 1) for arrival_ns in arrivals]
    assert times[:5] == [0.0, 0.1, 3.2, 3.3, 3.4]


def test_capture_time_is_the_due_time() -> None:
    clock = ManualClock()
    source = camera("synthetic:64x48@10", offline=False, clock=clock)
    source.open()
    began_ns = clock.now_ns
    ages = []
    for number in range(5):
        clock.advance(0.03)  # delay of a busy machine
        grab = source.grab(1.0)
        assert grab is not None
        assert grab.captured_ns == began_ns + SECOND // 10 * number + (3 * SECOND // 100)
        ages.append((clock.now_ns - grab.captured_ns) / SECOND)
        clock.advance(0.1)
    assert ages == pytest.approx([0.0, 0.03, 0.06, 0.09, 0.12])


@pytest.mark.integration
def test_frame_after_a_hang_is_not_late() -> None:
    source = SyntheticSource(SyntheticSpec.parse("synthetic:64x48@1000?hang=1:0.6"))
    source.open()
    before, after = source.grab(10), source.grab(10)
    assert before is not None
    assert after is not None
    assert after.captured_ns - before.captured_ns >= 0.6e9


def test_grab_after_an_interrupt_returns_none() -> None:
    source = camera("synthetic:64x48")
    source.open()
    source.interrupt()
    assert source.grab(1) is None
