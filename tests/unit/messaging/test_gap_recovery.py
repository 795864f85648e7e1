"""Tests that `GapRecovery` delivers all numbered events in order, and requests missing events in time."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.messages.samples import HEADER, crossed, result
from vision.errors import MessageError
from vision.messaging import codec, replay_schema, schema
from vision.messaging.gap_recovery import Gap, GapRecovery, InOrder, NewJournal

S = 1_000_000_000


def event(number: int | None, journal: str = "one") -> schema.EventMessage:
    return codec.event(HEADER, crossed(), result(), journal=None if number is None else journal, number=number)


def reply(newest: int, *, journal: str = "one", oldest: int = 1, more: bool = False) -> replay_schema.ReplayReply:
    return replay_schema.ReplayReply(node="n", journal=journal, oldest=oldest, newest=newest, more=more)


@dataclass
class Clock:
    now_ns: int = 5 * S

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class Server:
    """Server with the stored events of a publisher, which it sends in several replies."""

    journal: str = "one"
    stored: list[int] = field(default_factory=list)
    newest: int = 0
    page: int = 3

    def publish(self, count: int = 1) -> list[schema.EventMessage]:
        first = self.newest + 1
        self.newest += count
        self.stored += range(first, self.newest + 1)
        return [event(number, self.journal) for number in range(first, self.newest + 1)]

    def reply_to(
        self, request: replay_schema.ReplayRequest
    ) -> tuple[replay_schema.ReplayReply, list[schema.EventMessage]]:
        since = request.since if request.journal in (None, self.journal) else 0
        after = [number for number in self.stored if number > since]
        header = reply(self.newest, journal=self.journal, more=len(after) > self.page)
        return header, [event(number, self.journal) for number in after[: self.page]]


def summaries(items: Iterable[InOrder]) -> Iterator[object]:
    """Yield the number of each event, the missing numbers of each gap, and all other items unchanged."""
    for item in items:
        if isinstance(item, schema.EventMessage):
            yield item.number
        elif isinstance(item, Gap):
            yield range(item.expected_seq, item.got_seq)
        else:
            yield item


def request_all(recovery: GapRecovery, server: Server) -> list[object]:
    """Send requests and process replies until no request is due soon."""
    received: list[object] = []
    clock = recovery._clock
    assert isinstance(clock, Clock)
    while (wait_ns := recovery.wait_ns()) < S:
        clock.now_ns += wait_ns
        received += summaries(recovery.replied(*server.reply_to(recovery.request())))
    return received


def live(recovery: GapRecovery, events: Iterable[schema.EventMessage]) -> list[object]:
    return [item for event in events for item in summaries(recovery.live(event))]


def started(server: Server, since: int = 0, journal: str | None = None) -> GapRecovery:
    recovery = GapRecovery(since, journal, clock=Clock())
    request_all(recovery, server)
    return recovery


def test_first_request_is_due_at_once_and_reads_every_page() -> None:
    server = Server()
    server.publish(8)
    recovery = GapRecovery(0, clock=Clock())
    assert recovery.wait_ns() == 0
    assert request_all(recovery, server) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert recovery.wait_ns() == 5 * S


@pytest.mark.parametrize(("since", "expected"), [(0, [1, 2, 3, 4, 5]), (3, [4, 5]), (5, [])])
def test_recovery_starts_after_known_event(since: int, expected: list[int]) -> None:
    server = Server()
    server.publish(5)
    assert request_all(GapRecovery(since, clock=Clock()), server) == expected
    assert request_all(GapRecovery(since, "one", clock=Clock()), server) == expected


def test_live_events_are_returned_once() -> None:
    server = Server()
    server.publish(3)
    recovery = started(server)
    assert live(recovery, server.publish(2)) == [4, 5]
    assert live(recovery, [event(5), event(2)]) == []
    assert recovery.wait_ns() == 5 * S


def test_events_before_first_reply_are_returned_with_it() -> None:
    server = Server()
    server.publish(2)
    recovery = GapRecovery(0, clock=Clock())
    assert live(recovery, server.publish(1)) == []
    assert request_all(recovery, server) == [1, 2, 3]


def test_missing_event_is_requested_and_later_events_are_held() -> None:
    server = Server()
    recovery = started(server)
    events = server.publish(6)
    assert live(recovery, [events[0], events[3]]) == [1]
    assert recovery.wait_ns() < S / 10
    request = recovery.request()
    assert (request.since, request.journal) == (1, "one")
    assert live(recovery, [events[4]]) == []
    assert recovery.wait_ns() == 2 * S  # a reply is pending
    assert list(summaries(recovery.replied(*server.reply_to(request)))) == [2, 3, 4, 5]  # event 5 was held
    assert request_all(recovery, server) == [6]


def test_request_without_reply_is_repeated() -> None:
    clock = Clock()
    recovery = GapRecovery(0, clock=clock)
    recovery.request()
    recovery.hurry()
    assert recovery.wait_ns() == 2 * S
    clock.now_ns += 2 * S
    assert recovery.wait_ns() == 0


def test_request_is_due_after_quiet_period() -> None:
    server, clock = Server(), Clock()
    recovery = GapRecovery(0, clock=clock)
    request_all(recovery, server)
    server.publish(2)  # both get lost
    clock.now_ns += 5 * S
    assert request_all(recovery, server) == [1, 2]


def test_request_is_due_after_reconnection() -> None:
    server = Server()
    recovery = started(server)
    server.publish(1)
    recovery.hurry()
    assert request_all(recovery, server) == [1]


def test_deleted_events_are_reported_as_gap() -> None:
    server = Server()
    server.publish(20)
    server.stored = [*range(8, 12), *range(15, 21)]
    assert request_all(GapRecovery(4, clock=Clock()), server) == [
        range(5, 8),
        *range(8, 12),
        range(12, 15),
        *range(15, 21),
    ]
    assert request_all(GapRecovery(0, clock=Clock()), server)[:2] == [8, 9]  # deleted before the subscriber started


def test_skipped_numbers_at_end_are_reported_as_gap() -> None:
    server = Server()
    server.publish(3)
    recovery = started(server)
    server.newest = 1003  # after a power cut
    recovery.hurry()
    assert request_all(recovery, server) == [range(4, 1004)]
    assert live(recovery, server.publish(1)) == [1004]


def test_event_without_number_is_returned_at_once() -> None:
    recovery = started(Server())
    assert live(recovery, [event(None)]) == [None]
    assert live(GapRecovery(0, clock=Clock()), [event(None)]) == [None]


@pytest.mark.parametrize("journal", [None, "one"])
def test_new_journal_is_reported_and_read_from_start(journal: str | None) -> None:
    server = Server(journal="two")
    server.publish(4)
    recovery = GapRecovery(1000, journal, clock=Clock())
    assert request_all(recovery, server) == [NewJournal("n", journal or "", "two"), 1, 2, 3, 4]
    assert live(recovery, server.publish(1)) == [5]


def test_journal_change_is_detected_by_next_event() -> None:
    server = Server()
    server.publish(3)
    recovery = started(server)
    other = Server(journal="two")
    assert live(recovery, other.publish(4)) == []
    assert request_all(recovery, other) == [NewJournal("n", "one", "two"), 1, 2, 3, 4]


def test_reply_with_error_is_raised() -> None:
    recovery = GapRecovery(0, clock=Clock())
    recovery.request()
    refusal = replay_schema.ReplayReply(node="n", journal="one", oldest=0, newest=0, more=False, error="E-17")
    with pytest.raises(MessageError) as caught:
        list(recovery.replied(refusal, []))
    assert "E-17" in str(caught.value)


def test_request_after_an_error_is_repeated_later_and_later() -> None:
    clock = Clock()
    recovery = GapRecovery(0, clock=clock)
    refusal = replay_schema.ReplayReply(node="n", journal="one", oldest=0, newest=0, more=False, error="E-17")
    waits = []
    for _ in range(12):
        clock.now_ns += recovery.wait_ns()
        recovery.request()
        with pytest.raises(MessageError):
            list(recovery.replied(refusal, []))
        waits.append(recovery.wait_ns() / S)
    assert waits == sorted(waits)
    assert waits[-1] == 2.0


@pytest.mark.parametrize("journals", [["one"], ["one", "two"]])
def test_publisher_without_new_events_is_asked_rarely(journals: list[str]) -> None:
    """The replies announce more events but contain none. The journal can change with each reply."""
    clock = Clock()
    recovery = GapRecovery(0, clock=clock)
    asked = 0
    end_ns = clock.now_ns + 60 * S
    while clock.now_ns < end_ns:
        clock.now_ns += recovery.wait_ns()
        recovery.request()
        list(recovery.replied(reply(5, journal=journals[asked % len(journals)], more=True), []))
        asked += 1
    assert asked < 60


def test_requests_for_many_events_are_limited_per_second() -> None:
    clock = Clock()
    server, recovery = Server(page=1), GapRecovery(0, clock=clock)
    server.publish(100)
    began_ns = clock.now_ns
    assert request_all(recovery, server) == list(range(1, 101))
    assert clock.now_ns - began_ns >= 99 * 0.02 * S


@pytest.mark.integration
def test_held_events_are_limited() -> None:
    server = Server(page=100_000)
    recovery = started(server)
    events = server.publish(10_100)
    assert live(recovery, events[1:]) == []
    assert len(recovery._held) == 10_000
    assert request_all(recovery, server) == list(range(1, 10_101))


@pytest.mark.parametrize("seed", range(20))
def test_random_losses_do_not_affect_order_and_completeness(seed: int) -> None:
    """Events and replies may be lost, delayed, or repeated."""
    rng = random.Random(seed)
    server, clock = Server(page=rng.choice([1, 3, 50])), Clock()
    server.publish(rng.randrange(10))
    recovery = GapRecovery(0, clock=clock)
    received: list[object] = []
    in_flight: list[schema.EventMessage] = []
    for _ in range(400):
        if server.newest < 200:
            in_flight += server.publish(rng.randrange(3))
        while in_flight and rng.random() < 0.8:
            event = in_flight.pop(0)
            if rng.random() < 0.7:
                received += summaries(recovery.live(event))
            if rng.random() < 0.1:
                received += summaries(recovery.live(event))
        clock.now_ns += round(rng.expovariate(2.0) * S)
        if recovery.wait_ns() == 0:
            reply_and_events = server.reply_to(recovery.request())
            if rng.random() < 0.7:
                received += summaries(recovery.replied(*reply_and_events))
                if rng.random() < 0.1:
                    received += summaries(recovery.replied(*reply_and_events))
    for _ in range(3 * server.newest):
        clock.now_ns += 6 * S
        received += summaries(recovery.replied(*server.reply_to(recovery.request())))
    assert received == list(range(1, server.newest + 1))
