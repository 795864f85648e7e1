"""Tests of frame rates, stall timeouts, frozen frames, and back-off."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.frame_buffers import on_device, wrap
from vision.capture.liveness import Backoff, FrameRateEstimator, FrozenFrameDetector, StallTimeouts
from vision.types import FrameBuffer

SECOND = 1_000_000_000


def cadence(*arrivals_s: float) -> FrameRateEstimator:
    made = FrameRateEstimator()
    for arrival_s in arrivals_s:
        made.arrived(round(arrival_s * SECOND))
    return made


@pytest.mark.parametrize(
    ("arrivals_s", "interval_s"),
    [
        ([], None),
        ([1.0], None),
        ([1.0, 2.0, 3.0, 4.0, 5.0], None),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1.0),
        ([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0], 0.25),  # in bursts
        ([number * 10.0 for number in range(100)], 10.0),
        ([*[number * 10.0 for number in range(32)], *[310 + number * 0.1 for number in range(1, 33)]], 0.1),
    ],
)
def test_interval_is_the_mean_of_the_last_arrivals(arrivals_s: list[float], interval_s: float | None) -> None:
    found = cadence(*arrivals_s).interval_s()
    assert found == (None if interval_s is None else pytest.approx(interval_s))


@pytest.mark.parametrize(
    ("arrivals_s", "now_s", "fps"),
    [
        ([], 5.0, 0.0),
        ([1.0], 5.0, 0.0),
        ([1.0, 1.1, 1.2], 1.2, 10.0),
        ([1.0, 1.1, 1.2], 1.3, 10.0),  # the next frame is not late yet
        ([1.0, 1.1, 1.2], 3.3, 2 / 2.2),
        ([1.0, 1.0, 1.0], 1.0, 0.0),
    ],
)
def test_frame_rate_falls_without_arrivals(arrivals_s: list[float], now_s: float, fps: float) -> None:
    assert cadence(*arrivals_s).fps(round(now_s * SECOND)) == pytest.approx(fps)


def test_cleared_estimator_has_no_frame_rate() -> None:
    made = cadence(*range(10))
    made.clear()
    assert made.interval_s() is None
    assert made.fps(20 * SECOND) == 0.0


@pytest.mark.parametrize(
    ("interval_s", "read_timeout_s", "frozen_s", "lost_s"),
    [
        (None, 5.0, 5.0, 5.0),
        (0.0, 5.0, 2.0, 4.0),
        (0.04, 5.0, 2.0, 4.0),
        (0.04, 1.0, 1.0, 1.0),
        (0.5, 5.0, 4.0, 5.0),
        (1.0, 5.0, 5.0, 5.0),
        (1.0, 100.0, 8.0, 16.0),
        (10.0, 100.0, 80.0, 100.0),
    ],
)
def test_stall_timeouts_follow_the_interval(
    interval_s: float | None, read_timeout_s: float, frozen_s: float, lost_s: float
) -> None:
    assert StallTimeouts.from_interval(interval_s, read_timeout_s) == StallTimeouts(frozen_s, lost_s)


def frame(shade: int, height_px: int = 100, width_px: int = 80) -> FrameBuffer:
    return wrap(np.full((height_px, width_px, 3), shade, np.uint8))


def test_repeated_frame_is_frozen_until_another_frame_arrives() -> None:
    watch = FrozenFrameDetector(10.0)

    def see(shade: int, second: int) -> tuple[bool, bool]:
        return watch.check(frame(shade), None, second * SECOND) != "", watch.frozen

    assert [see(1, 0), see(1, 9), see(1, 10)] == [(False, False), (False, False), (True, True)]
    watch.connected()
    assert see(1, 11) == (False, True), "patience starts again with each connection"
    assert [see(1, 20), see(1, 21), see(2, 22)] == [(False, True), (True, True), (False, False)]


def test_constant_stream_time_is_reported_but_not_frozen() -> None:
    watch = FrozenFrameDetector(10.0)
    for second in range(10):
        assert watch.check(frame(second), 5, second * SECOND) == ""
    assert "10.0 s" in watch.check(frame(10), 5, 10 * SECOND)
    assert not watch.frozen, "its frames are new ones"


@pytest.mark.parametrize(("height_px", "text_px"), [(576, 10), (1080, 18), (2160, 36)])
def test_clock_drawn_into_the_frame_is_detected_in_every_position(height_px: int, text_px: int) -> None:
    """The gaps between the compared rows are smaller than the height of text that cameras draw."""
    for top in range(0, height_px - text_px, 7):
        watch = FrozenFrameDetector(1.0)
        watch.check(frame(50, height_px, 16), None, 0)
        changed = frame(50, height_px, 16)
        changed.require_host()[top : top + text_px, 4:12] = 255
        assert watch.check(changed, None, 5 * SECOND) == "", f"text at row {top}"


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 4), (3, 2), (864, 768)])
def test_all_shapes_are_compared(shape: tuple[int, ...]) -> None:
    watch = FrozenFrameDetector(1.0)
    buffer = wrap(np.zeros(shape, np.uint8))
    assert watch.check(buffer, None, 0) == ""
    assert watch.check(buffer, None, SECOND) != ""


def test_frames_in_gpu_memory_are_compared() -> None:
    watch = FrozenFrameDetector(1.0)
    assert watch.check(on_device(frame(1)), None, 0) == ""
    assert watch.check(on_device(frame(2)), None, 5 * SECOND) == ""
    assert watch.check(on_device(frame(2)), None, 6 * SECOND) != ""


def test_frame_of_another_size_is_a_new_frame() -> None:
    watch = FrozenFrameDetector(1.0)
    watch.check(frame(1), None, 0)
    assert watch.check(frame(1, 50), None, 5 * SECOND) == ""


def test_back_off_delays_are_random_below_the_ceiling() -> None:
    backoff = Backoff(0.5, 30.0, 0.1, random.Random(3))
    delays = [backoff.next_delay_s() for _ in range(1000)]
    assert min(delays) >= 0.1
    assert max(delays[:1]) <= 0.5
    assert 29 < max(delays) <= 30.0
    assert np.mean(delays[10:]) == pytest.approx(15.0, abs=1.0), "full jitter: uniform below the ceiling"
    backoff.reset()
    assert backoff.next_delay_s() <= 0.5
