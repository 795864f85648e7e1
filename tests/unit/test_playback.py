"""The pace of recordings."""

from __future__ import annotations

import pytest

from tests.unit.scripted_camera import SECOND, ManualClock
from vision.capture.playback import Playback

START = 1_000 * SECOND
UTC = 5_000_000 * SECOND


def playback(clock: ManualClock, *, offline: bool) -> Playback:
    return Playback(offline=offline, clock=clock, utc=lambda: clock() - START + UTC, wait=clock.advance)


def test_a_picture_is_released_when_it_is_due() -> None:
    clock = ManualClock()
    player = playback(clock, offline=False)
    assert player.due(5 * SECOND, 1.0), "the first picture is due at once, wherever its time begins"
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
def test_a_late_reader_catches_up_a_little_and_never_gets_a_burst(late_s: float, next_in_s: float) -> None:
    clock = ManualClock()
    player = playback(clock, offline=False)
    player.due(0, 1.0)
    clock.advance(1.0 + late_s)
    assert player.due(1 * SECOND, 1.0)
    before_ns = clock.now_ns
    assert player.due(2 * SECOND, 10.0)
    assert (clock.now_ns - before_ns) / SECOND == pytest.approx(next_in_s)


def test_offline_nothing_waits_and_times_are_those_of_the_recording() -> None:
    clock = ManualClock()
    player = playback(clock, offline=True)
    assert player.due(0, 1.0)
    assert player.stamp(0).captured_ns == START
    assert player.due(3600 * SECOND, 1.0)
    assert clock.now_ns == START
    grab = player.stamp(3600 * SECOND)
    assert (grab.captured_ns, grab.captured_utc_ns) == (START + 3600 * SECOND, UTC + 3600 * SECOND)
    assert (grab.clock, grab.pts_ns) == ("media", 3600 * SECOND)


def test_a_new_start_is_a_new_schedule() -> None:
    clock = ManualClock()
    player = playback(clock, offline=False)
    player.due(0, 1.0)
    clock.advance(50)
    player.start()
    assert player.due(0, 1.0)
    assert not player.due(1 * SECOND, 0.5)
