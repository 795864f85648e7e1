"""What a subscriber makes of numbered events: order, completeness, and what it asks when."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.messages.samples import crossed, result
from vision.errors import MessageError
from vision.messaging import codec
from vision.messaging.gap_recovery import Gap, GapRecovery, InOrder, NewJournal

S = 1_000_000_000


def event(number: int | None, journal: str = "one") -> codec.EventMessage:
    made = codec.event(crossed(), result())
    return made if number is None else codec.with_number(made, journal, number)


def reply(newest: int, *, journal: str = "one", oldest: int = 1, more: bool = False) -> codec.ReplayReply:
    return codec.ReplayReply(node="n", journal=journal, oldest=oldest, newest=newest, more=more)


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

    def publish(self, count: int = 1) -> list[codec.EventMessage]:
        first = self.newest + 1
        self.newest += count
        self.kept += range(first, self.newest + 1)
        return [event(number, self.journal) for number in range(first, self.newest + 1)]

    def answer(self, request: codec.ReplayRequest) -> tuple[codec.ReplayReply, list[codec.EventMessage]]:
        since = request.since if request.journal in (None, self.journal) else 0
        after = [number for number in self.kept if number > since]
        header = reply(self.newest, journal=self.journal, more=len(after) > self.page)
        return header, [event(number, self.journal) for number in after[: self.page]]


def told(items: Iterable[InOrder]) -> Iterator[object]:
    """Numbers of events; of gaps what is missing."""
    for item in items:
        if isinstance(item, codec.EventMessage):
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


def live(one: GapRecovery, events: Iterable[codec.EventMessage]) -> list[object]:
    return [item for each in events for item in told(one.live(each))]


def started(server: Server, since: int = 0, journal: str | None = None) -> GapRecovery:
    one = GapRecovery(since, journal, clock=Clock())
    ask(one, server)
    return one


def test_it_asks_at_once_and_takes_every_page() -> None:
    server = Server()
    server.publish(8)
    one = GapRecovery(0, clock=Clock())
    assert one.wait_ns() == 0
    assert ask(one, server) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert one.wait_ns() == 5 * S


@pytest.mark.parametrize(("since", "expected"), [(0, [1, 2, 3, 4, 5]), (3, [4, 5]), (5, [])])
def test_it_begins_after_what_is_known(since: int, expected: list[int]) -> None:
    server = Server()
    server.publish(5)
    assert ask(GapRecovery(since, clock=Clock()), server) == expected
    assert ask(GapRecovery(since, "one", clock=Clock()), server) == expected


def test_live_events_follow_and_repeats_are_passed_over() -> None:
    server = Server()
    server.publish(3)
    one = started(server)
    assert live(one, server.publish(2)) == [4, 5]
    assert live(one, [event(5), event(2)]) == []
    assert one.wait_ns() == 5 * S


def test_what_comes_before_the_first_answer_comes_with_it() -> None:
    server = Server()
    server.publish(2)
    one = GapRecovery(0, clock=Clock())
    assert live(one, server.publish(1)) == []
    assert ask(one, server) == [1, 2, 3]


def test_a_missing_event_is_asked_for_and_later_ones_wait() -> None:
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


def test_an_answer_that_does_not_come_is_asked_for_again() -> None:
    clock = Clock()
    one = GapRecovery(0, clock=clock)
    one.request()
    one.hurry()
    assert one.wait_ns() == 2 * S
    clock.now_ns += 2 * S
    assert one.wait_ns() == 0


def test_silence_is_looked_into() -> None:
    server, clock = Server(), Clock()
    one = GapRecovery(0, clock=clock)
    ask(one, server)
    server.publish(2)  # and both get lost
    clock.now_ns += 5 * S
    assert ask(one, server) == [1, 2]


def test_a_new_connection_is_a_reason_to_ask() -> None:
    server = Server()
    one = started(server)
    server.publish(1)
    one.hurry()
    assert ask(one, server) == [1]


def test_what_is_not_kept_any_more_is_a_gap() -> None:
    server = Server()
    server.publish(20)
    server.kept = [*range(8, 12), *range(15, 21)]
    assert ask(GapRecovery(4, clock=Clock()), server) == [range(5, 8), *range(8, 12), range(12, 15), *range(15, 21)]
    assert ask(GapRecovery(0, clock=Clock()), server)[:2] == [8, 9]  # nobody had promised the first ones


def test_numbers_left_out_at_the_end_are_a_gap_at_once() -> None:
    server = Server()
    server.publish(3)
    one = started(server)
    server.newest = 1003  # after a power cut
    one.hurry()
    assert ask(one, server) == [range(4, 1004)]
    assert live(one, server.publish(1)) == [1004]


def test_an_event_that_nobody_keeps_is_given_at_once() -> None:
    one = started(Server())
    assert live(one, [event(None)]) == [None]
    assert live(GapRecovery(0, clock=Clock()), [event(None)]) == [None]


@pytest.mark.parametrize("journal", [None, "one"])
def test_another_journal_is_reported_and_read_from_its_beginning(journal: str | None) -> None:
    server = Server(journal="two")
    server.publish(4)
    one = GapRecovery(1000, journal, clock=Clock())
    assert ask(one, server) == [NewJournal("n", journal or "", "two"), 1, 2, 3, 4]
    assert live(one, server.publish(1)) == [5]


def test_a_journal_that_changes_meanwhile_is_noticed_by_its_first_event() -> None:
    server = Server()
    server.publish(3)
    one = started(server)
    other = Server(journal="two")
    assert live(one, other.publish(4)) == []
    assert ask(one, other) == [NewJournal("n", "one", "two"), 1, 2, 3, 4]


def test_a_refusal_is_an_error() -> None:
    one = GapRecovery(0, clock=Clock())
    one.request()
    refusal = codec.ReplayReply(
        node="n", journal="one", oldest=0, newest=0, more=False, error="cannot read the journal: no"
    )
    with pytest.raises(MessageError, match="n cannot send missed events: cannot read the journal: no"):
        list(one.replied(refusal, []))


@pytest.mark.integration
def test_what_is_held_is_limited() -> None:
    server = Server(page=100_000)
    one = started(server)
    events = server.publish(10_100)
    assert live(one, events[1:]) == []
    assert len(one._held) == 10_000
    assert ask(one, server) == list(range(1, 10_101))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_gets_lost_everything_comes_once_and_in_order(seed: int) -> None:
    """Events and answers get lost, come late and twice; the subscriber asks again in time."""
    chance = random.Random(seed)
    server, clock = Server(page=chance.choice([1, 3, 50])), Clock()
    server.publish(chance.randrange(10))
    one = GapRecovery(0, clock=clock)
    found: list[object] = []
    on_their_way: list[codec.EventMessage] = []
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
