"""Tests of the playback rate of recordings: due times, late readers, and times of frames."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.unit.scripted_camera import SECOND, ManualClock
from vision.capture.pacing import FramePacer

START = 1_000 * SECOND
UTC = 5_000_000 * SECOND


def playback(clock: ManualClock, *, offline: bool) -> FramePacer:
    return FramePacer(offline=offline, clock=clock, utc=lambda: clock() - START + UTC, wait=clock.advance)


def test_frame_is_released_when_due() -> None:
    clock = ManualClock()
    player = playback(clock, offline=False)
    assert player.due(5 * SECOND, 1.0), "the first frame is due at once, wherever its time begins"
    assert not player.due(7 * SECOND, 0.5)
    assert clock.now_ns == START + SECOND // 2
    assert player.due(7 * SECOND, 10.0)
    assert clock.now_ns == START + 2 * SECOND
    grab = player.stamp(7 * SECOND)
    assert (grab.captured_ns, grab.captured_utc_ns) == (START + 2 * SECOND, UTC + 2 * SECOND)
    assert (grab.clock, grab.pts_ns) == ("arrival", 7 * SECOND)


@pytest.mark.parametrize(
    ("late_s", "next_in_s"),
    [(0.0, 1.0), (0.4, 0.6), (0.6, 1.0), (100.0, 1.0)],
)
def test_late_reader_catches_up_without_a_burst(late_s: float, next_in_s: float) -> None:
    clock = ManualClock()
    player = playback(clock, offline=False)
    player.due(0, 1.0)
    clock.advance(1.0 + late_s)
    assert player.due(1 * SECOND, 1.0)
    before_ns = clock.now_ns
    assert player.due(2 * SECOND, 10.0)
    assert (clock.now_ns - before_ns) / SECOND == pytest.approx(next_in_s)


@pytest.mark.parametrize(
    ("late_s", "age_s"),
    [(0.0, 0.0), (0.3, 0.3), (0.5, 0.5), (0.6, 0.0), (100.0, 0.0)],
)
def test_age_of_a_frame_is_its_lateness(late_s: float, age_s: float) -> None:
    """A frame is late if the reader requests it late or wakes up late. After a schedule restart, no frame is late."""
    clock = ManualClock()
    player = playback(clock, offline=False)
    assert player.due(0, 1.0)
    times = [player.stamp(0).captured_ns]
    clock.advance(1.0 + late_s)
    assert player.due(1 * SECOND, 1.0)
    clock.advance(0.2)
    grab = player.stamp(1 * SECOND)
    assert (clock.now_ns - grab.captured_ns) / SECOND == pytest.approx(age_s + 0.2)
    assert grab.captured_utc_ns - grab.captured_ns == UTC - START
    times.append(grab.captured_ns)
    for number in range(2, 6):
        assert player.due(number * SECOND, 10.0)
        times.append(player.stamp(number * SECOND).captured_ns)
        assert times[-1] <= clock.now_ns
    assert [later - earlier for earlier, later in pairwise(times)][1:] == [SECOND] * 4, "even, as the recording is"
    assert times[0] < times[1]


def test_utc_follows_changes_of_the_system_clock() -> None:
    """The time of a frame is the new system time, less its age."""
    clock, wall = ManualClock(), ManualClock()
    player = FramePacer(offline=False, clock=clock, utc=wall, wait=clock.advance)
    player.due(0, 1.0)
    wall.advance(3600)
    clock.advance(1.25)
    assert player.due(1 * SECOND, 1.0)
    assert player.stamp(1 * SECOND).captured_utc_ns == wall() - SECOND // 4


def test_offline_times_are_those_of_the_recording() -> None:
    clock = ManualClock()
    player = playback(clock, offline=True)
    assert player.due(0, 1.0)
    assert player.stamp(0).captured_ns == START
    assert player.due(3600 * SECOND, 1.0)
    assert clock.now_ns == START
    grab = player.stamp(3600 * SECOND)
    assert (grab.captured_ns, grab.captured_utc_ns) == (START + 3600 * SECOND, UTC + 3600 * SECOND)
    assert (grab.clock, grab.pts_ns) == ("media", 3600 * SECOND)


def test_start_restarts_the_schedule() -> None:
    clock = ManualClock()
    player = playback(clock, offline=False)
    player.due(0, 1.0)
    clock.advance(50)
    player.start()
    assert player.due(0, 1.0)
    assert not player.due(1 * SECOND, 0.5)
