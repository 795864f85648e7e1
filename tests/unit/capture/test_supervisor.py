"""Tests of `CameraSupervisor`: states, back-off, timeouts, epochs, and the accounting of all frames."""

from __future__ import annotations

import gc
import logging
import random
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.log_records import log_args
from tests.unit.scripted_camera import (
    SECOND,
    AllUsed,
    Connection,
    Do,
    Fault,
    Frame,
    ManualClock,
    RecordingSink,
    ScriptedSource,
    Silence,
    Step,
)
from vision.capture.camera_status import CameraStatus
from vision.capture.source import FrameSink, Source
from vision.capture.supervisor import CameraSupervisor, SupervisorPolicy
from vision.capture.synthetic.source import SyntheticSource
from vision.capture.synthetic.spec import SyntheticSpec
from vision.errors import Closed, DeviceError, EndOfStream, OutOfMemory, SourceError
from vision.runtime.latest_slot import LatestSlot
from vision.types import DropReason, FrameBuffer, PixelFormat

LIVE = SupervisorPolicy()
FINITE = SupervisorPolicy(finite=True)
FRAMES = [Frame() for _ in range(10)]


@dataclass
class World:
    """Supervised camera with scripted connections. The end of the last connection stops the supervisor."""

    connections: Sequence[Connection]
    policy: SupervisorPolicy = LIVE
    sink: RecordingSink = field(default_factory=RecordingSink)
    clock: ManualClock = field(default_factory=ManualClock)
    waits: list[float] = field(default_factory=list)
    sources: list[ScriptedSource] = field(default_factory=list)
    seen: list[CameraStatus] = field(default_factory=list)
    jitter: random.Random = field(default_factory=lambda: random.Random(1))
    on_make: Callable[[], object] = lambda: None
    on_wait: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.supervisor = CameraSupervisor(
            "gate", self.make, self.sink, self.policy, clock=self.clock, wait=self.wait, jitter=self.jitter
        )

    def make(self) -> Source:
        self.on_make()
        if len(self.sources) == len(self.connections):
            self.supervisor.stop()
            raise AllUsed("the script is over")
        script = self.connections[len(self.sources)]
        last = len(self.sources) + 1 == len(self.connections)
        self.sources.append(ScriptedSource(script, self.clock, self.supervisor.stop if last else _fail))
        if script.make_error is not None:
            raise script.make_error
        return self.sources[-1]

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.look()
        self.on_wait()
        self.clock.advance(seconds)

    def look(self) -> None:
        self.seen.append(self.supervisor.status())

    def run(self) -> World:
        self.supervisor.run()
        return self

    @property
    def states(self) -> list[str]:
        return [status.state for status in self.seen]


def _fail() -> None:
    raise SourceError("the script of this connection is over")


def world(*connections: Connection, policy: SupervisorPolicy = LIVE, sink: RecordingSink | None = None) -> World:
    return World(connections, policy, sink or RecordingSink()).run()


# --- normal operation -------------------------------------------------------------------------------------------------


def test_frames_are_committed_with_index_times_and_size() -> None:
    camera = world(Connection([Frame(0.5, clock="rtcp"), Frame(0.25)]))
    first, second = camera.sink.metas
    assert (first.camera_id, first.index, first.epoch, first.width_px, first.height_px) == ("gate", 0, 0, 6, 4)
    assert (first.captured_ns, first.captured_utc_ns) == (
        1_000 * SECOND + SECOND // 4 * 2,
        1_000 * SECOND + SECOND // 2 + 5,
    )
    assert (first.clock, second.clock) == ("rtcp", "arrival")
    assert second.index == 1
    assert camera.sink.shades == [1, 2]
    assert camera.sink.layouts == [(4, 6, "bgr")]
    assert camera.sink.ended == 1


def test_status_reports_state_rate_and_age() -> None:
    camera = World([])
    script: list[Step] = [
        Do(camera.look),
        *[Frame(0.1) for _ in range(11)],
        Do(camera.look),
        Silence(0.05),
        Do(camera.look),
    ]
    camera.connections = [Connection(script)]
    before = camera.supervisor.status()
    camera.run()
    opened, streaming, later = camera.seen
    assert (before.state, before.width_px, before.last_frame_age_s, before.decoder) == ("connecting", 0, None, "")
    assert (opened.state, opened.width_px, opened.decoder, opened.clock) == ("connecting", 6, "scripted", None)
    assert streaming.state == "streaming"
    assert streaming.grabbed == 11
    assert streaming.fps == pytest.approx(10.0)
    assert streaming.last_frame_age_s == 0.0
    assert later.last_frame_age_s == pytest.approx(0.05)
    assert (later.reconnects, later.last_error, later.next_retry_in_s, later.clock) == (0, "", None, "arrival")
    assert camera.supervisor.status().state == "ended"


def test_since_is_the_time_of_the_state_change() -> None:
    camera = World([])
    camera.connections = [Connection([Frame(0.5), Frame(0.5), Do(camera.look)])]
    camera.run()
    assert camera.seen[0].since_ns == 1_000 * SECOND + SECOND // 2


# --- loss and back-off ------------------------------------------------------------------------------------------------


def test_reconnection_starts_an_epoch_at_index_0() -> None:
    camera = world(Connection([*FRAMES[:3], Fault(SourceError("cable"))]), Connection(FRAMES[:2]))
    assert [(meta.epoch, meta.index) for meta in camera.sink.metas] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert camera.sink.flushes == [DropReason.EPOCH]
    assert [source.closed for source in camera.sources] == [1, 1]
    status = camera.supervisor.status()
    assert (status.reconnects, status.epoch) == (1, 1)


def test_status_reports_the_time_to_the_next_retry() -> None:
    camera = world(Connection([Fault(SourceError("cable"))]), Connection(FRAMES[:1]))
    (status,) = camera.seen
    assert status.state == "backing-off"
    assert status.next_retry_in_s == pytest.approx(camera.waits[0])
    assert status.last_error == "cable"


def test_last_error_and_its_hint_are_one_line_each() -> None:
    error = SourceError("no\nroute", hint="check\ncable")
    camera = world(Connection(open_error=error), Connection(FRAMES[:1]))
    assert (camera.seen[0].last_error, camera.seen[0].last_hint) == ("no route", "check cable")


def test_first_delivered_frame_clears_the_last_error() -> None:
    camera = World([])
    recovered: list[Step] = [Do(camera.look), Frame(corrupt=True), Do(camera.look), Frame(), Do(camera.look)]
    camera.connections = [Connection([Fault(SourceError("cable", hint="pull"))]), Connection(recovered)]
    camera.run()
    assert [(status.last_error, status.last_hint) for status in camera.seen] == [("cable", "pull")] * 3 + [("", "")]


def test_failed_attempts_start_no_epoch() -> None:
    refused = Connection(open_error=SourceError("refused"))
    camera = world(refused, refused, Connection(FRAMES[:1]))
    assert [meta.epoch for meta in camera.sink.metas] == [0]
    assert camera.supervisor.status().reconnects == 0


def test_back_off_grows_between_its_limits() -> None:
    camera = world(*[Connection(open_error=SourceError("refused")) for _ in range(40)])
    assert len(camera.waits) == 40
    assert min(camera.waits) >= 0.1
    assert max(camera.waits) <= 30.0
    assert max(camera.waits) > 20.0
    assert max(camera.waits[:2]) <= 1.0
    assert len(set(camera.waits)) > 30, "jitter"


def test_retries_of_two_cameras_differ() -> None:
    def delays(seed: int) -> list[float]:
        refused = [Connection(open_error=SourceError("refused")) for _ in range(5)]
        return World(refused, jitter=random.Random(seed)).run().waits

    assert delays(1) == delays(1)
    assert delays(1) != delays(2)


class NoJitter(random.Random):
    """Random number generator that always returns the upper limit."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.mark.parametrize(
    ("streamed_s", "quick_again"),
    [(0.04, False), (5.0, False), (9.9, False), (10.5, True), (60.0, True)],
)
def test_back_off_is_reset_after_healthy_streaming(streamed_s: float, quick_again: bool) -> None:
    refused = [Connection(open_error=SourceError("refused")) for _ in range(8)]
    frames: list[Step] = [Frame(0.1) for _ in range(max(1, round(streamed_s / 0.1)))]
    connections = [*refused, Connection([*frames, Fault(SourceError("cable"))]), Connection(FRAMES)]
    camera = World(connections, jitter=NoJitter()).run()
    assert camera.waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert camera.waits[-1] == (0.5 if quick_again else 30.0)


def test_repeated_failures_are_logged_at_powers_of_two(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        world(*[Connection(open_error=SourceError("refused")) for _ in range(100)])
    assert len(caplog.records) == 7  # 1, 2, 4, 8, 16, 32, 64


def test_other_seconds_or_bytes_are_the_same_reason(caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"no frame for {number / 10} s, {number} MiB are free" for number in range(100)]
    with caplog.at_level(logging.WARNING):
        world(*[Connection(open_error=SourceError(text)) for text in texts])
    assert len(caplog.records) == 7


def test_new_reason_is_always_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        world(*[Connection(open_error=SourceError(text)) for text in ("refused", "refused", "refused", "no route")])
    logged = [(attempt, reason) for _, _, attempt, _, reason, *_ in log_args(caplog, "vision.capture.supervisor")]
    assert logged == [(1, "refused"), (2, "refused"), (4, "no route")]


def test_log_distinguishes_lost_from_refused_connections(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        world(Connection(open_error=SourceError("refused")), Connection([Fault(SourceError("cable"))]), Connection([]))
    (_, refused, first, *_), (_, lost, second, *_) = log_args(caplog, "vision.capture.supervisor")
    assert (first, second) == (1, 2)
    assert refused != lost


def test_log_announces_that_repeats_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        world(*[Connection(open_error=SourceError("refused")) for _ in range(5)])
    announcements = [str(args[-1]) for args in log_args(caplog, "vision.capture.supervisor")]
    assert [bool(text) for text in announcements] == [False, True, False]
    assert "4, 8" in announcements[1]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_end_of_a_finite_source_ends_the_camera() -> None:
    camera = world(Connection([*FRAMES, Fault(EndOfStream("over"))], live=False), Connection(FRAMES), policy=FINITE)
    assert len(camera.sources) == 1
    assert camera.sink.ended == 1
    assert camera.sink.flushes == [], "what waits can still be read"
    assert camera.supervisor.status().state == "ended"


def test_end_of_a_live_stream_is_a_lost_connection() -> None:
    camera = world(Connection([*FRAMES, Fault(EndOfStream("over"))]), Connection(FRAMES))
    assert len(camera.sources) == 2
    assert camera.states == ["backing-off"]
    assert "over" in camera.seen[0].last_error


@pytest.mark.parametrize("at", ["open", "grab", "sleep", "write"])
def test_stop_ends_the_supervisor_in_every_call(at: str) -> None:
    camera = World([])
    stop = camera.supervisor.stop
    camera.connections = [Connection([Frame(), Frame()])]
    if at == "open":
        camera.on_make = stop
    elif at == "grab":
        camera.connections = [Connection([Frame(), Do(stop), Frame()])]
    elif at == "sleep":
        camera.on_wait = stop
        camera.connections = [Connection(open_error=SourceError("refused")), Connection(FRAMES)]
    else:
        camera.sink.waits, camera.sink.on_wait = 3, stop
    camera.run()
    assert camera.supervisor.status().state == "ended"
    assert camera.sink.ended == 1
    assert len(camera.sink.metas) + len(camera.sink.drops) == camera.supervisor.status().grabbed
    assert camera.supervisor.status().last_error in ("", "refused"), "a stop is no fault"
    assert [source.opened for source in camera.sources] == ([0] if at == "open" else [1])


def test_closed_sink_ends_the_supervisor() -> None:
    camera = world(Connection(FRAMES), sink=RecordingSink(closed=True))
    assert camera.sink.drops == [DropReason.STOPPED]
    assert camera.sink.ended == 1


def test_stop_ends_the_back_off() -> None:
    asleep = threading.Event()

    def refuse() -> Source:
        asleep.set()
        raise SourceError("refused")

    policy = SupervisorPolicy(first_retry_s=1000.0, longest_retry_s=1000.0)
    supervisor = CameraSupervisor("gate", refuse, RecordingSink(), policy)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    assert asleep.wait(60)
    supervisor.stop()
    thread.join(60)
    assert not thread.is_alive()


def test_stop_interrupts_the_source() -> None:
    inside, interrupted = threading.Event(), threading.Event()

    class Waiting(ScriptedSource):
        def grab(self, timeout_s: float) -> None:
            inside.set()
            interrupted.wait(30)

        def interrupt(self) -> None:
            interrupted.set()

    supervisor = CameraSupervisor("gate", lambda: Waiting(Connection(), ManualClock(), _fail), RecordingSink())
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    assert inside.wait(60)
    supervisor.stop()
    thread.join(60)
    assert not thread.is_alive()


def test_hanging_call_is_reported() -> None:
    clock, release, inside = ManualClock(), threading.Event(), threading.Event()

    class Hanging(ScriptedSource):
        def grab(self, timeout_s: float) -> None:
            inside.set()
            release.wait(30)

        def interrupt(self) -> None:
            pass

    supervisor = CameraSupervisor("gate", lambda: Hanging(Connection(), clock, _fail), RecordingSink(), clock=clock)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    assert inside.wait(60)
    clock.advance(7)
    assert "grab" in supervisor.blocked_in()
    assert "7.0 s" in supervisor.blocked_in()
    supervisor.stop()
    release.set()
    thread.join(60)
    assert not thread.is_alive()
    assert supervisor.blocked_in() == ""


# --- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval_s", "read_timeout_s", "silence_s", "expected"),
    [
        (0.04, 5.0, 1.9, "streaming"),
        (0.04, 5.0, 2.1, "frozen"),
        (0.04, 5.0, 3.9, "frozen"),
        (0.04, 5.0, 4.3, "lost"),
        (0.2, 5.0, 1.9, "streaming"),  # 8 intervals are shorter than 2 s
        (0.5, 5.0, 3.9, "streaming"),
        (0.5, 5.0, 4.1, "frozen"),
        (0.5, 5.0, 5.3, "lost"),  # the configured timeout is the upper limit
        (1.0, 30.0, 7.9, "streaming"),
        (1.0, 30.0, 8.1, "frozen"),
        (1.0, 30.0, 16.3, "lost"),
        (10.0, 30.0, 29.0, "streaming"),  # a camera with one frame in 10 s does not count as lost
        (10.0, 30.0, 30.3, "lost"),
        (10.0, 120.0, 79.0, "streaming"),
        (10.0, 120.0, 81.0, "frozen"),
    ],
)
def test_silence_timeout_follows_the_frame_rate(
    interval_s: float, read_timeout_s: float, silence_s: float, expected: str
) -> None:
    camera = World([], SupervisorPolicy(read_timeout_s=read_timeout_s, frozen_after_s=None))
    frames = [Frame(interval_s) for _ in range(12)]
    camera.connections = [Connection([*frames, Silence(silence_s), Do(camera.look)])]
    camera.run()
    assert camera.states == ["backing-off" if expected == "lost" else expected]


def test_unknown_frame_rate_has_the_configured_timeout() -> None:
    camera = World([])
    camera.connections = [Connection([Silence(4.8), Do(camera.look), Frame(), Silence(4.8), Do(camera.look)])]
    camera.run()
    assert camera.states == ["connecting", "streaming"]
    assert camera.sink.shades == [1]


def test_new_connection_has_the_configured_timeout() -> None:
    """The settings of a camera can change between two connections."""
    camera = World([])
    quick: list[Step] = [*[Frame() for _ in range(40)], Fault(SourceError("cable"))]
    camera.connections = [Connection(quick), Connection([Silence(4.8), Frame(), Silence(4.8), Frame()])]
    camera.run()
    assert len(camera.sink.metas) == 42
    assert camera.supervisor.status().reconnects == 1


def test_silent_camera_is_reconnected() -> None:
    camera = world(Connection([Silence(60)]), Connection(FRAMES[:1]))
    assert "5.0 s" in camera.seen[0].last_error
    assert "read_timeout_s" in camera.seen[0].last_hint


def test_initial_burst_does_not_set_the_frame_rate() -> None:
    """The burst contains the frames that FFmpeg reads while it opens the stream, and then delivers without pauses."""
    burst = [Frame(0.0) for _ in range(4)]
    camera = World([], SupervisorPolicy(read_timeout_s=30.0, frozen_after_s=None))
    camera.connections = [Connection([*burst, *[Frame(10.0) for _ in range(5)]])]
    assert camera.run().supervisor.status().reconnects == 0
    assert len(camera.sink.metas) == 9


def test_blocked_camera_is_reported_as_frozen() -> None:
    camera = World([])

    def hang() -> None:
        camera.clock.advance(100)  # a call that ignores its timeout
        camera.look()

    camera.connections = [Connection([*[Frame(0.04) for _ in range(10)], Do(hang), Frame()])]
    camera.run()
    assert camera.states == ["frozen"]
    assert camera.seen[0].since_ns == 1_000 * SECOND + 10 * 40_000_000
    assert camera.seen[0].last_frame_age_s == pytest.approx(100)


def test_recording_may_be_silent() -> None:
    camera = World([], FINITE)
    script: list[Step] = [*FRAMES, Silence(1000), Do(camera.look), Frame(), Fault(EndOfStream("over"))]
    camera.connections = [Connection(script, live=False)]
    camera.run()
    assert camera.states == ["streaming"]
    assert len(camera.sink.metas) == 11


def test_camera_that_waits_for_its_sink_is_not_frozen() -> None:
    camera = World([])

    def read_slowly() -> None:
        camera.clock.advance(1.0)
        camera.look()

    camera.sink.on_wait = read_slowly

    def block() -> None:
        camera.sink.waits = 20

    camera.connections = [Connection([*FRAMES, Do(block), Frame()])]
    camera.run()
    assert camera.states == ["streaming"] * 20
    assert len(camera.sink.metas) == 11


# --- frozen frames --------------------------------------------------------------------------------------------------


def still(seconds: float, shade: int = 7, pts: bool = False) -> list[Step]:
    count = round(seconds / 0.1)
    return [Frame(0.1, shade=shade, pts_s=1.0 if pts else None) for _ in range(count)]


def test_repeated_frame_is_published_until_it_counts_as_frozen() -> None:
    camera = world(Connection([*still(30)]), Connection(FRAMES[:3]))
    # The first one counts as a change; 10 s later it is frozen.
    assert len(camera.sink.metas) == 100 + 3
    assert camera.sink.drops == [DropReason.STALE]
    assert camera.seen[0].state == "backing-off"
    assert "10.0 s" in camera.seen[0].last_error
    assert "frozen_after_s" in camera.seen[0].last_hint


def test_frozen_camera_stays_frozen_after_reconnection() -> None:
    camera = World([])
    camera.connections = [
        Connection(still(30)),
        Connection([*still(2), Do(camera.look), *still(30)]),
        Connection([*still(1), Frame(0.1, shade=8), Do(camera.look), Frame(0.1, shade=9)]),
    ]
    camera.run()
    backing_off, frozen, backing_off_again, streaming = camera.seen
    assert (backing_off.state, frozen.state) == ("backing-off", "frozen")
    assert (backing_off_again.state, streaming.state) == ("backing-off", "streaming")
    assert camera.sink.shades[100:] == [8, 9], "nothing that was frozen is published again"
    assert camera.waits[1] != camera.waits[0]


def test_frozen_camera_does_not_reset_the_back_off() -> None:
    policy = SupervisorPolicy(frozen_after_s=60.0)
    connections = [Connection(still(61)) for _ in range(7)]
    camera = World([*connections, Connection(FRAMES)], policy, jitter=NoJitter()).run()
    assert camera.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


@pytest.mark.parametrize(
    ("name", "steps", "live", "frozen_after_s", "reconnects"),
    [
        ("changes", [Frame(0.1) for _ in range(300)], True, 10.0, 0),
        ("changes just in time", [*still(9.9, 1), *still(9.9, 2), *still(9.9, 3)], True, 10.0, 0),
        ("repeats", still(11), True, 10.0, 1),
        ("repeats, which is allowed", still(100), True, None, 0),
        ("repeats, not live", still(100), False, 10.0, 0),
        ("repeats, longer limit", still(29), True, 30.0, 0),
        ("its time is constant", [Frame(0.1, pts_s=3.0) for _ in range(120)], True, 10.0, 1),
        ("its time moves", [Frame(0.1, pts_s=number) for number in range(120)], True, 10.0, 0),
        ("its time steps back", [Frame(0.1, pts_s=-number) for number in range(120)], True, 10.0, 0),
        ("has no time", [Frame(0.1) for _ in range(120)], True, 10.0, 0),
    ],
)
def test_frozen_frame_or_frozen_time_ends_the_connection(
    name: str, steps: list[Step], live: bool, frozen_after_s: float | None, reconnects: int
) -> None:
    policy = SupervisorPolicy(frozen_after_s=frozen_after_s)
    camera = World([Connection(steps, live=live), Connection(FRAMES[:1], live=live)][: 1 + reconnects], policy)
    camera.run()
    status = camera.supervisor.status()
    assert status.reconnects == reconnects


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_new_size_starts_an_epoch_over_the_same_connection() -> None:
    camera = world(Connection([*FRAMES[:2], Frame(size=(8, 10)), Frame(), Frame(size=(4, 6))]))
    assert len(camera.sources) == 1
    assert camera.sink.layouts == [(4, 6, "bgr"), (8, 10, "bgr"), (4, 6, "bgr")]
    assert [(meta.epoch, meta.index, meta.width_px, meta.height_px) for meta in camera.sink.metas] == [
        (0, 0, 6, 4),
        (0, 1, 6, 4),
        (1, 0, 10, 8),
        (1, 1, 10, 8),
        (2, 0, 6, 4),
    ]
    assert camera.sink.shades == [1, 2, 3, 4, 5], "the frame with the new size is not lost"
    assert camera.supervisor.status().reconnects == 0
    assert camera.supervisor.status().width_px == 6


def test_frame_meta_has_the_encoding_of_the_frame() -> None:
    """Only a new size starts an epoch. A frame without an encoding has the encoding of the stream."""
    script = [
        Frame(),
        Frame(yuv="bt601"),
        Frame(size=(8, 10), yuv="bt709"),
        Frame(yuv="bt709-full"),
        Frame(yuv="bt709"),
        Frame(),
    ]
    camera = world(Connection(script, yuv="bt601-full"))
    assert [(meta.epoch, meta.yuv) for meta in camera.sink.metas] == [
        (0, "bt601-full"),
        (0, "bt601"),
        (1, "bt709"),
        (1, "bt709-full"),
        (1, "bt709"),
        (1, "bt601-full"),
    ]
    assert camera.sink.layouts == [(4, 6, "bgr"), (8, 10, "bgr")]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 5), (4320, 7680), (16384, 2)])
def test_allowed_sizes_are_accepted(size: tuple[int, int]) -> None:
    camera = world(Connection([Frame(), Frame()], size=size))
    assert [(meta.height_px, meta.width_px) for meta in camera.sink.metas] == [size, size]


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (-1, 5), (16385, 4), (4, 1_000_000)])
def test_invalid_sizes_are_refused_before_allocation(size: tuple[int, int]) -> None:
    height_px, width_px = size
    camera = world(Connection(FRAMES, size=size), Connection(FRAMES[:1]))
    assert f"{width_px}x{height_px}" in camera.seen[0].last_error
    camera = world(Connection([Frame(), Frame(size=size)]), Connection(FRAMES[:1]))
    assert f"{width_px}x{height_px}" in camera.seen[0].last_error
    assert len(camera.sink.metas) + len(camera.sink.drops) == camera.supervisor.status().grabbed == 3


def test_size_that_the_format_does_not_allow_is_a_reconnection() -> None:
    camera = world(Connection([Frame(), Frame(size=(5, 7))], pixel_format="nv12"), Connection([Frame()], size=(5, 7)))
    assert "nv12" in camera.seen[0].last_error
    assert "7x5" in camera.seen[0].last_error
    assert camera.sink.layouts == [(4, 6, "nv12"), (5, 7, "bgr")]


def test_second_size_change_within_a_frame_is_an_error() -> None:
    class Fickle(ScriptedSource):
        def retrieve(self, out: FrameBuffer) -> None:
            self._size = (self._size[0] + 2, self._size[1])
            super().retrieve(out)

    clock, sink, made = ManualClock(), RecordingSink(), []

    def make() -> Source:
        made.append(Fickle(Connection([Frame()]), clock, _fail))
        return made[-1]

    supervisor = CameraSupervisor("gate", make, sink, clock=clock, wait=lambda _: supervisor.stop())
    supervisor.run()
    assert "6x8" in supervisor.status().last_error
    assert sink.drops == [DropReason.CORRUPT]


# --- memory -----------------------------------------------------------------------------------------------------------

LARGE = (80, 60)


@dataclass
class SmallMemory:
    """Allocator of at most two large frames, and of any number of small frames."""

    error: type[Exception]
    live: list[weakref.ref[np.ndarray]] = field(default_factory=list)

    def __call__(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        if (height_px, width_px) == LARGE and self.count(LARGE) == 2:
            raise self.error("a camera's frame: 14.1 MiB were asked for; 3.2 MiB are free")
        buffer = FrameBuffer.allocate(height_px, width_px, pixel_format)
        self.live.append(weakref.ref(buffer.require_host()))
        return buffer

    def count(self, size: tuple[int, int] | None = None) -> int:
        return sum(size in (None, array.shape[:2]) for reference in self.live if (array := reference()) is not None)


@pytest.mark.parametrize("error", [OutOfMemory, MemoryError])
@pytest.mark.parametrize("at", ["open", "in mid-stream"])
def test_camera_without_memory_backs_off_and_holds_none(at: str, error: type[Exception]) -> None:
    """When the frames become smaller, the camera resumes the delivery of frames."""
    memory = SmallMemory(error)
    large = [Frame(size=LARGE)] if at == "in mid-stream" else []
    size = LARGE if at == "open" else (4, 6)
    camera = World([Connection([Frame(), *large, Frame()], size=size) for _ in range(3)])
    camera.connections = [*camera.connections, Connection(FRAMES)]
    slot = LatestSlot("gate", memory, clock=camera.clock)
    held: list[int] = []
    camera.on_wait = lambda: held.append(memory.count())
    camera.supervisor = CameraSupervisor(
        "gate", camera.make, slot, camera.policy, clock=camera.clock, wait=camera.wait, jitter=camera.jitter
    )
    gc.disable()  # buffers are freed at once, and not by the next collection
    try:
        camera.run()
    finally:
        gc.enable()
    assert camera.states == ["backing-off"] * 3
    for status in camera.seen:
        assert "60x80" in status.last_error
        assert "14.1 MiB" in status.last_error
        assert status.last_hint
    assert held == [0] * 3
    counts = slot.counts()
    assert counts.grabbed == sum(counts.dropped.values()) + counts.waiting
    lease = slot.take()
    assert lease is not None
    assert lease.frame.meta.index == len(FRAMES) - 1
    assert camera.supervisor.status().state == "ended"


@pytest.mark.parametrize("where", ["constructor", "open", "grab", "retrieve"])
def test_source_without_memory_is_an_error_of_its_camera(where: str) -> None:
    error = OutOfMemory("a decoder: 80.0 MiB were asked for", hint="take a smaller model")
    camera = world(
        {
            "constructor": Connection(make_error=error),
            "open": Connection(open_error=error),
            "grab": Connection([Frame(), Fault(error)]),
            "retrieve": Connection([Frame(), Frame(error=error)]),
        }[where],
        Connection(FRAMES),
    )
    assert camera.states == ["backing-off"]
    assert "80.0 MiB" in camera.seen[0].last_error
    assert camera.seen[0].last_hint not in ("", error.hint)
    assert camera.sink.shades[-1] == len(FRAMES)


# --- damage and bugs --------------------------------------------------------------------------------------------------


def test_camera_whose_frames_are_all_damaged_is_reported_without_a_new_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    camera = World([])
    damaged: list[Step] = [Frame(0.5, corrupt=True) for _ in range(20)]
    camera.connections = [
        Connection([Frame(), *damaged, Do(camera.look), *damaged, Do(camera.look), Frame(), Do(camera.look)])
    ]
    camera.run()
    assert [status.last_code for status in camera.seen] == ["", "corrupt", ""]
    assert [status.state for status in camera.seen] == ["streaming"] * 3
    assert camera.seen[1].last_hint
    assert camera.supervisor.status().reconnects == 0
    assert sum("corrupt" in record.getMessage() for record in caplog.records) == 1


def test_corrupt_frames_are_dropped_and_not_retrieved() -> None:
    camera = world(Connection([Frame(), Frame(corrupt=True), Frame(corrupt=True), Frame()]))
    assert [meta.index for meta in camera.sink.metas] == [0, 3]
    assert camera.sink.drops == [DropReason.CORRUPT] * 2


@pytest.mark.parametrize("where", ["constructor", "open", "grab", "retrieve", "close"])
def test_unexpected_exception_is_an_error_of_its_camera(where: str, caplog: pytest.LogCaptureFixture) -> None:
    bug = KeyError("rtsp://admin:secret@10.0.0.4/stream")
    broken = {
        "constructor": Connection(make_error=bug),
        "open": Connection(open_error=bug),
        "grab": Connection([Frame(), Fault(bug)]),
        "retrieve": Connection([Frame(), Frame(error=bug)]),
        "close": Connection([Frame(), Fault(SourceError("cable"))], close_error=bug),
    }[where]
    camera = world(broken, Connection(FRAMES[:1]))
    assert camera.supervisor.status().state == "ended"
    assert camera.sink.shades[-1] == 1, "the next connection was made"
    assert "Traceback" in caplog.text
    ((camera_id, place, _),) = log_args(caplog, "vision.capture.session", logging.ERROR)
    assert camera_id == "gate"
    assert where in str(place)
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in camera.seen[0].last_error
    if where != "close":
        assert "KeyError" in camera.seen[0].last_error
    assert len(camera.sink.metas) + len(camera.sink.drops) == camera.supervisor.status().grabbed


def test_device_error_ends_the_program() -> None:
    class Broken(RecordingSink):
        def configure(self, height_px: int, width_px: int, pixel_format: str) -> None:
            raise DeviceError("the GPU does not answer")

    camera = World([Connection(FRAMES)], sink=Broken())
    with pytest.raises(DeviceError):
        camera.run()
    assert camera.sink.ended == 1
    assert camera.sources[0].closed == 1


# --- accounting -------------------------------------------------------------------------------------------------------

steps = st.one_of(
    st.builds(
        Frame,
        after_s=st.sampled_from([0.0, 0.04, 1.0, 3.0]),
        shade=st.sampled_from([None, None, 7]),
        corrupt=st.booleans(),
        pts_s=st.sampled_from([None, 1.0]),
        size=st.sampled_from([None, None, None, (4, 6), (8, 8), (5, 7), (0, 0)]),
        error=st.sampled_from([None, None, None, SourceError("decoder"), ValueError("bug"), DeviceError("gpu")]),
    ),
    st.builds(Silence, st.sampled_from([0.1, 3.0, 20.0])),
    st.builds(Fault, st.sampled_from([SourceError("cable"), EndOfStream("over"), RuntimeError("bug")])),
)
connections = st.builds(
    Connection,
    steps=st.lists(steps, max_size=12),
    live=st.booleans(),
    pixel_format=st.sampled_from(["bgr", "nv12"]),
    open_error=st.sampled_from([None, None, None, SourceError("refused")]),
)


@pytest.mark.integration
@settings(max_examples=200, deadline=None)
@given(st.lists(connections, min_size=1, max_size=5), st.booleans(), st.integers(0, 40), st.booleans())
def test_every_grabbed_frame_is_committed_or_dropped_with_a_reason(
    scripts: list[Connection], finite: bool, reads_until_closed: int, lossless: bool
) -> None:
    """The test runs all camera scripts with a reader that takes frames and closes the slot at any time."""
    clock = ManualClock()
    slot = LatestSlot("gate", FrameBuffer.allocate, lossless=lossless, clock=clock)

    class Reading(Shim):
        """Sink whose reader takes every second frame, and closes the slot after some frames."""

        calls = 0

        def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
            self.calls += 1
            if self.calls > reads_until_closed:
                slot.close()
            lease = slot.take() if lossless or self.calls % 2 else None
            if lease is not None:
                lease.release()
            return super().write_buffer(timeout_s)

    camera = World(scripts, SupervisorPolicy(finite=finite), clock=clock)
    camera.supervisor = CameraSupervisor(
        "gate", camera.make, Reading(slot), camera.policy, clock=clock, wait=camera.wait, jitter=random.Random(0)
    )
    with suppress(DeviceError):
        camera.run()
    counts, status = slot.counts(), camera.supervisor.status()
    assert status.grabbed == counts.grabbed
    assert counts.grabbed == counts.taken + sum(counts.dropped.values()) + counts.waiting
    assert status.state == "ended"
    assert all(source.closed == 1 for source in camera.sources)


class Shim:
    """Sink that forwards each call to another sink."""

    def __init__(self, sink: FrameSink) -> None:
        self.configure = sink.configure
        self.commit = sink.commit
        self.drop = sink.drop
        self.flush = sink.flush
        self.end = sink.end
        self._write_buffer = sink.write_buffer

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        return self._write_buffer(timeout_s)


def test_synthetic_faults_become_epochs_drops_and_the_end() -> None:
    """The test runs the synthetic camera in a real thread: freeze, size change, damage, failure, and end."""
    slot = LatestSlot("gate", FrameBuffer.allocate)
    spec = SyntheticSpec.parse("synthetic:64x48@200?frames=60&resize=20:32x64&corrupt=30:40&fail=50")
    policy = SupervisorPolicy(finite=True, first_retry_s=0.01, longest_retry_s=0.01)
    specs = iter([spec, SyntheticSpec.parse("synthetic:64x48@200?frames=10")])
    supervisor = CameraSupervisor("gate", lambda: SyntheticSource(next(specs)), slot, policy)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    counts, status = slot.counts(), supervisor.status()
    assert (status.state, status.grabbed, status.reconnects, status.epoch) == ("ended", 60, 1, 2)
    assert counts.dropped[DropReason.CORRUPT] == 10
    assert counts.grabbed == 60 == counts.taken + sum(counts.dropped.values()) + counts.waiting
    lease = slot.take()
    assert lease is None or (lease.frame.meta.epoch, lease.frame.meta.index) == (2, 9)


@pytest.mark.integration
def test_hanging_camera_does_not_delay_another() -> None:
    def run(source: str) -> tuple[CameraSupervisor, threading.Thread]:
        slot = LatestSlot("gate", FrameBuffer.allocate)
        spec = SyntheticSpec.parse(source)
        supervisor = CameraSupervisor("gate", lambda: SyntheticSource(spec), slot, FINITE)
        thread = threading.Thread(target=supervisor.run, daemon=True)
        thread.start()
        return supervisor, thread

    hanging, hanging_thread = run("synthetic:64x48@100?hang=0:1.5")
    _, well_thread = run("synthetic:64x48@100?frames=20")
    well_thread.join(1.2)
    assert not well_thread.is_alive()
    assert hanging.blocked_in().startswith("in grab")
    hanging.stop()
    hanging_thread.join(60)
    assert not hanging_thread.is_alive()


def test_closed_sink_is_not_a_camera_error() -> None:
    class ClosesLater(RecordingSink):
        def configure(self, height_px: int, width_px: int, pixel_format: str) -> None:
            raise Closed("the program is stopping")

    camera = World([Connection(FRAMES)], sink=ClosesLater()).run()
    assert camera.supervisor.status().last_error == ""
    assert camera.supervisor.status().state == "ended"


@pytest.mark.parametrize("abandoned", [False, True])
def test_abandoned_thread_counts_no_skipped_frames(abandoned: bool) -> None:
    def skip() -> None:
        run.sources[0].skipped.add(DropReason.SUPERSEDED, 70)
        if abandoned:
            run.supervisor.abandon()

    run = World([Connection([*FRAMES, Do(skip), *FRAMES])])
    run.run()
    assert run.sink.drops.count(DropReason.SUPERSEDED) == (0 if abandoned else 70)
