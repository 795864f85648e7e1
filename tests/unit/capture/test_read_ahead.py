"""Tests of coded frames that wait for the decoder: their age, the maximum age, and the number of skipped frames."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scripted_camera import SECOND, ManualClock
from vision.capture.packet_info import BACKLOG_NS
from vision.capture.read_ahead import Arrived, Backlog, ReadAhead
from vision.capture.source import SkippedFrames
from vision.errors import SourceError
from vision.types import DropReason

MS = SECOND // 1000
MAX_AGE_NS = 500 * MS


class Desk:
    """Backlog with a clock that the test advances."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.skipped = SkippedFrames()
        self.backlog: Backlog[int] = Backlog(MAX_AGE_NS, self.skipped, self.clock)

    def put(self, frames: str, first: int = 0, interval_ms: int = 100) -> None:
        """Add a frame for each character of `frames`: K is a key frame. The number of the first frame is `first`."""
        for number, symbol in enumerate(frames, first):
            self.clock.now_ns += interval_ms * MS
            self.backlog.put(number, key=symbol == "K")

    def take(self) -> Arrived[int] | None:
        return self.backlog.take(0.0)

    def rest(self) -> list[int]:
        """Take all waiting frames, and return their numbers."""
        return [frame.frame for frame in iter(self.take, None)]

    def stale(self) -> int:
        return self.skipped.take().get(DropReason.STALE, 0)


@pytest.mark.parametrize("interval_ms", [1, 40, 100, 1000, 10_000])
def test_decoder_that_keeps_pace_gets_every_frame(interval_ms: int) -> None:
    """The backlog uses no presentation times, so a wrong frame rate has no effect."""
    desk = Desk()
    for number in range(50):
        desk.put("K" if number % 10 == 0 else "p", number, interval_ms)
        frame = desk.take()
        assert frame is not None
        assert (frame.frame, frame.at_ns, frame.after_skip) == (number, desk.clock.now_ns, False)
    assert desk.stale() == 0


def test_burst_after_a_stall_is_kept() -> None:
    desk = Desk()
    desk.clock.now_ns += 60 * SECOND
    desk.put("Kppp" * 25, interval_ms=0)
    assert desk.rest() == list(range(100))


def test_late_decoder_continues_with_the_newest_key_frame() -> None:
    desk = Desk()
    desk.put("KpppKpppKp")  # the first is 0.9 s old
    frame = desk.take()
    assert frame is not None
    assert (frame.frame, frame.key, frame.after_skip) == (8, True, True)
    assert desk.stale() == 8
    assert desk.rest() == [9]


def test_late_decoder_without_a_newer_key_frame_skips_nothing_at_first() -> None:
    """If frames were skipped, the decoder would only wait longer for a frame that it can decode."""
    desk = Desk()
    desk.put("Kpppppppp")
    assert desk.rest() == list(range(9))
    assert desk.stale() == 0


def test_backlog_is_bounded_and_continues_at_a_key_frame() -> None:
    desk = Desk()
    limit = BACKLOG_NS // (100 * MS)
    desk.put("K" + "p" * 40)
    assert desk.rest() == []
    assert desk.stale() == 41
    desk.put("pKp", first=41)
    assert desk.rest() == [42, 43]
    assert desk.stale() == 1
    desk.put("K" + "p" * limit, first=44)
    assert desk.rest() == list(range(44, 45 + limit))


def test_end_is_reported_after_the_frames_and_stays() -> None:
    desk = Desk()
    desk.put("Kp")
    desk.backlog.end(SourceError("gone", code="stream-ended"))
    assert [frame.frame for frame in (desk.take(), desk.take()) if frame is not None] == [0, 1]
    for _ in range(2):
        with pytest.raises(SourceError):
            desk.take()


def test_interrupt_is_final() -> None:
    desk = Desk()
    desk.put("Kp")
    desk.backlog.interrupt()
    assert desk.take() is None
    desk.put("K")
    assert desk.take() is None


@given(st.lists(st.tuples(st.sampled_from(["K", "p", "take"]), st.integers(0, 900)), max_size=120))
def test_every_frame_is_taken_skipped_or_waiting(steps: list[tuple[str, int]]) -> None:
    """Frames arrive in order, only a key frame follows a skip, and no waiting frame is older than the limit."""
    desk, put, taken = Desk(), 0, []
    for step, wait_ms in steps:
        if step == "take":
            desk.clock.now_ns += wait_ms * MS
            if (frame := desk.take()) is not None:
                assert frame.key or not frame.after_skip
                taken.append(frame.frame)
        else:
            desk.put(step, put, wait_ms)
            put += 1
    waiting = desk.rest()
    assert taken + waiting == sorted(set(taken + waiting))
    assert len(taken) + len(waiting) + desk.stale() == put


class Connection:
    """Connection that sends numbers until it is closed, or until it fails."""

    def __init__(self, count: int = 1_000_000, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.closed = threading.Event()

    def packets(self, closing: threading.Event) -> Iterator[tuple[int, bool]]:
        for number in range(self.count):
            yield number, True
            if closing.wait(0.001):
                return
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed.set()


def test_frames_are_read_until_close() -> None:
    connection = Connection()
    reader: ReadAhead[Connection, int] = ReadAhead(
        "camera", lambda: connection, max_age_ns=MAX_AGE_NS, skipped=SkippedFrames()
    )
    assert reader.open(5.0, lambda: "") is connection
    numbers = [arrived.frame for _ in range(20) if (arrived := reader.take(5.0)) is not None]
    assert numbers == sorted(numbers)
    assert len(numbers) == 20
    reader.close()
    assert connection.closed.wait(60)
    assert reader.take(0.1) is None


def test_error_of_a_connection_follows_its_frames() -> None:
    """The connection stays open until `close`, because the decoder can still use the connection."""
    connection = Connection(3, SourceError("lost", code="read"))
    reader: ReadAhead[Connection, int] = ReadAhead(
        "camera", lambda: connection, max_age_ns=MAX_AGE_NS, skipped=SkippedFrames()
    )
    reader.open(5.0, lambda: "")
    assert [arrived.frame for _ in range(3) if (arrived := reader.take(5.0)) is not None] == [0, 1, 2]
    with pytest.raises(SourceError) as raised:
        reader.take(5.0)
    assert raised.value.code == "read"
    assert not connection.closed.is_set()
    reader.close()
    assert connection.closed.wait(60)


def test_connection_that_takes_too_long_is_an_error_with_the_hint_of_its_step() -> None:
    release = threading.Event()

    def connect() -> Connection:
        release.wait(30)
        return Connection()

    reader: ReadAhead[Connection, int] = ReadAhead("camera", connect, max_age_ns=1, skipped=SkippedFrames())
    with pytest.raises(SourceError) as raised:
        reader.open(0.05, lambda: "the step")
    assert (raised.value.code, raised.value.hint) == ("open-timeout", "the step")
    release.set()
    reader.close()
