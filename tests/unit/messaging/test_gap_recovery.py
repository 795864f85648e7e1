"""What a subscriber makes of numbered events: order, completeness, and what it asks when."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.messages.samples import HEADER, crossed, result
from vision.errors import MessageError
from vision.messaging import codec, schema
from vision.messaging.gap_recovery import Gap, GapRecovery, InOrder, NewJournal

S = 1_000_000_000


def event(number: int | None, journal: str = "one") -> schema.EventMessage:
    return codec.event(HEADER, crossed(), result(), journal=None if number is None else journal, number=number)


def reply(newest: int, *, journal: str = "one", oldest: int = 1, more: bool = False) -> schema.ReplayReply:
    return schema.ReplayReply(node="n", journal=journal, oldest=oldest, newest=newest, more=more)


@dataclass
class Clock:
    now_ns: int = 5 * S

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class Server:
    """The publisher's side: what it has kept, a page at a time."""

    journal: str = "one"
    kept: list[int] = field(default_factory=list)
    newest: int = 0
    page: int = 3

    def publish(self, count: int = 1) -> list[schema.EventMessage]:
        first = self.newest + 1
        self.newest += count
        self.kept += range(first, self.newest + 1)
        return [event(number, self.journal) for number in range(first, self.newest + 1)]

    def answer(self, request: schema.ReplayRequest) -> tuple[schema.ReplayReply, list[schema.EventMessage]]:
        since = request.since if request.journal in (None, self.journal) else 0
        after = [number for number in self.kept if number > since]
        header = reply(self.newest, journal=self.journal, more=len(after) > self.page)
        return header, [event(number, self.journal) for number in after[: self.page]]


def told(items: Iterable[InOrder]) -> Iterator[object]:
    """Numbers of events; of gaps what is missing."""
    for item in items:
        if isinstance(item, schema.EventMessage):
            yield item.number
        elif isinstance(item, Gap):
            yield range(item.expected_seq, item.got_seq)
        else:
            yield item


def ask(one: GapRecovery, server: Server) -> list[object]:
    """Questions and answers as long as a question is due."""
    found: list[object] = []
    while one.wait_ns() == 0:
        found += told(one.replied(*server.answer(one.request())))
    return found


def live(one: GapRecovery, events: Iterable[schema.EventMessage]) -> list[object]:
    return [item for each in events for item in told(one.live(each))]


def started(server: Server, since: int = 0, journal: str | None = None) -> GapRecovery:
    one = GapRecovery(since, journal, clock=Clock())
    ask(one, server)
    return one


def test_first_request_is_due_at_once_and_reads_every_page() -> None:
    server = Server()
    server.publish(8)
    one = GapRecovery(0, clock=Clock())
    assert one.wait_ns() == 0
    assert ask(one, server) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert one.wait_ns() == 5 * S


@pytest.mark.parametrize(("since", "expected"), [(0, [1, 2, 3, 4, 5]), (3, [4, 5]), (5, [])])
def test_recovery_starts_after_known_event(since: int, expected: list[int]) -> None:
    server = Server()
    server.publish(5)
    assert ask(GapRecovery(since, clock=Clock()), server) == expected
    assert ask(GapRecovery(since, "one", clock=Clock()), server) == expected


def test_live_events_are_returned_once() -> None:
    server = Server()
    server.publish(3)
    one = started(server)
    assert live(one, server.publish(2)) == [4, 5]
    assert live(one, [event(5), event(2)]) == []
    assert one.wait_ns() == 5 * S


def test_events_before_first_reply_are_returned_with_it() -> None:
    server = Server()
    server.publish(2)
    one = GapRecovery(0, clock=Clock())
    assert live(one, server.publish(1)) == []
    assert ask(one, server) == [1, 2, 3]


def test_missing_event_is_requested_and_later_events_are_held() -> None:
    server = Server()
    one = started(server)
    events = server.publish(6)
    assert live(one, [events[0], events[3]]) == [1]
    assert one.wait_ns() == 0
    request = one.request()
    assert (request.since, request.journal) == (1, "one")
    assert live(one, [events[4]]) == []
    assert one.wait_ns() == 2 * S  # an answer is on its way
    assert list(told(one.replied(*server.answer(request)))) == [2, 3, 4, 5]  # the last one was held
    assert ask(one, server) == [6]


def test_request_without_reply_is_repeated() -> None:
    clock = Clock()
    one = GapRecovery(0, clock=clock)
    one.request()
    one.hurry()
    assert one.wait_ns() == 2 * S
    clock.now_ns += 2 * S
    assert one.wait_ns() == 0


def test_request_is_due_after_quiet_period() -> None:
    server, clock = Server(), Clock()
    one = GapRecovery(0, clock=clock)
    ask(one, server)
    server.publish(2)  # and both get lost
    clock.now_ns += 5 * S
    assert ask(one, server) == [1, 2]


def test_request_is_due_after_reconnection() -> None:
    server = Server()
    one = started(server)
    server.publish(1)
    one.hurry()
    assert ask(one, server) == [1]


def test_deleted_events_are_reported_as_gap() -> None:
    server = Server()
    server.publish(20)
    server.kept = [*range(8, 12), *range(15, 21)]
    assert ask(GapRecovery(4, clock=Clock()), server) == [range(5, 8), *range(8, 12), range(12, 15), *range(15, 21)]
    assert ask(GapRecovery(0, clock=Clock()), server)[:2] == [8, 9]  # nobody had promised the first ones


def test_skipped_numbers_at_end_are_reported_as_gap() -> None:
    server = Server()
    server.publish(3)
    one = started(server)
    server.newest = 1003  # after a power cut
    one.hurry()
    assert ask(one, server) == [range(4, 1004)]
    assert live(one, server.publish(1)) == [1004]


def test_event_without_number_is_returned_at_once() -> None:
    one = started(Server())
    assert live(one, [event(None)]) == [None]
    assert live(GapRecovery(0, clock=Clock()), [event(None)]) == [None]


@pytest.mark.parametrize("journal", [None, "one"])
def test_new_journal_is_reported_and_read_from_start(journal: str | None) -> None:
    server = Server(journal="two")
    server.publish(4)
    one = GapRecovery(1000, journal, clock=Clock())
    assert ask(one, server) == [NewJournal("n", journal or "", "two"), 1, 2, 3, 4]
    assert live(one, server.publish(1)) == [5]


def test_journal_change_is_detected_by_next_event() -> None:
    server = Server()
    server.publish(3)
    one = started(server)
    other = Server(journal="two")
    assert live(one, other.publish(4)) == []
    assert ask(one, other) == [NewJournal("n", "one", "two"), 1, 2, 3, 4]


def test_reply_with_error_is_raised() -> None:
    one = GapRecovery(0, clock=Clock())
    one.request()
    refusal = schema.ReplayReply(
        node="n", journal="one", oldest=0, newest=0, more=False, error="cannot read the journal: no"
    )
    with pytest.raises(MessageError, match="cannot read the journal: no"):
        list(one.replied(refusal, []))


@pytest.mark.integration
def test_held_events_are_limited() -> None:
    server = Server(page=100_000)
    one = started(server)
    events = server.publish(10_100)
    assert live(one, events[1:]) == []
    assert len(one._held) == 10_000
    assert ask(one, server) == list(range(1, 10_101))


@pytest.mark.parametrize("seed", range(20))
def test_random_losses_do_not_affect_order_and_completeness(seed: int) -> None:
    """Events and answers get lost, come late and twice; the subscriber asks again in time."""
    chance = random.Random(seed)
    server, clock = Server(page=chance.choice([1, 3, 50])), Clock()
    server.publish(chance.randrange(10))
    one = GapRecovery(0, clock=clock)
    found: list[object] = []
    on_their_way: list[schema.EventMessage] = []
    for _ in range(400):
        if server.newest < 200:
            on_their_way += server.publish(chance.randrange(3))
        while on_their_way and chance.random() < 0.8:
            each = on_their_way.pop(0)
            if chance.random() < 0.7:
                found += told(one.live(each))
            if chance.random() < 0.1:
                found += told(one.live(each))
        clock.now_ns += round(chance.expovariate(2.0) * S)
        if one.wait_ns() == 0:
            answer = server.answer(one.request())
            if chance.random() < 0.7:
                found += told(one.replied(*answer))
                if chance.random() < 0.1:
                    found += told(one.replied(*answer))
    for _ in range(3 * server.newest):
        clock.now_ns += 6 * S
        found += told(one.replied(*server.answer(one.request())))
    assert found == list(range(1, server.newest + 1))
