"""Tests of events that are held, published, amended, or dropped, for every order in which answers can arrive."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import pytest

from vision.config.language import DescribeConfig, VerifyConfig
from vision.language.held_events import HeldEvents
from vision.language.messages import Outcome
from vision.messaging import codec
from vision.messaging.schema import Description, EventMessage, Verdict

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def event(name: str = "rule", id_: str | None = "1", phase: str = "instant", **changes: Any) -> EventMessage:
    made = EventMessage(
        **codec.UNNUMBERED, camera="gate", epoch=0, frame=7, at="2026-01-31T12:00:00.000000Z", at_monotonic_ns=1,
        kind="rule", name=name, data={"phase": phase, "class": "person"}, id=id_, track_id=4,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def verdict(answer: str) -> Verdict:
    return Verdict(check="real", answer=answer, confidence=0.5, model="m", latency_ms=1.0)


def answered(answer: str, id_: str = "1") -> Outcome:
    return Outcome(id=id_, purpose="verify", verdict=verdict(answer))


def failed(id_: str = "1") -> Outcome:
    return Outcome(id=id_, purpose="verify", error="too-slow")


def described(text: str, id_: str = "1") -> Outcome:
    return Outcome(id=id_, purpose="describe", description=Description(check="d", text=text, model="m", latency_ms=1.0))


def held_events(clock: Clock | None = None, **keys: Any) -> HeldEvents:
    entry = VerifyConfig(name="real", prompt="?", names=("rule",), **keys)
    return HeldEvents([entry], [DescribeConfig(name="d", names=("rule",))], clock or Clock())


WAITS: dict[str, Any] = {"wait_s": 2.0, "keep": ("yes",)}


def publish(events: HeldEvents, *messages: EventMessage, seq: int = 5) -> list[EventMessage]:
    """Publish events in the same way as the publisher. Return the events that `admit` accepts."""
    passed = events.admit(messages)
    assert not events.sent([msgspec.structs.replace(each, seq=seq) for each in passed])
    return passed


def test_an_event_that_does_not_wait_is_amended() -> None:
    events = held_events()
    assert publish(events, event()) == [event()]
    (amendment,) = events.answered(answered("no"))
    assert (amendment.amends, amendment.verdict, amendment.id) == (5, verdict("no"), "1")
    (second,) = events.answered(described("a cat"))
    assert (second.verdict, second.description and second.description.text) == (verdict("no"), "a cat")


def test_a_failure_amends_nothing() -> None:
    events = held_events()
    publish(events, event())
    assert events.answered(failed()) == []


def test_an_answer_before_the_publication_amends_after_it() -> None:
    events = held_events()
    assert events.answered(answered("yes")) == []
    (passed,) = events.admit([event()])
    (amendment,) = events.sent([msgspec.structs.replace(passed, seq=9)])
    assert (amendment.amends, amendment.verdict) == (9, verdict("yes"))
    assert events.sent([msgspec.structs.replace(amendment, seq=10)]) == []


@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("answer", ["yes", "no"])
def test_a_waiting_event_is_published_or_dropped_by_its_verdict(answer: str, is_early: bool) -> None:
    events = held_events(**WAITS)
    if is_early:
        assert events.answered(answered(answer)) == []
        published = events.admit([event()])
    else:
        assert events.admit([event()]) == []
        published = events.answered(answered(answer))
    assert [each.verdict for each in published] == ([verdict("yes")] if answer == "yes" else [])
    assert events.waiting() == 0


@pytest.mark.parametrize(("on_timeout", "number"), [("send", 1), ("drop", 0)])
@pytest.mark.parametrize("end", ["time", "failure", "skipped", "release"])
def test_a_waiting_event_without_a_verdict(on_timeout: str, number: int, end: str) -> None:
    clock = Clock()
    events = held_events(clock, wait_s=2.0, on_timeout=on_timeout)
    waiting = event(id_=None) if end == "skipped" else event()
    published = events.admit([waiting])
    if end == "time":
        clock.now_s = 1.99
        assert events.expired() == []
        assert events.next_s() == 2.0
        clock.now_s = 2.0
        published = events.expired()
    elif end == "failure":
        published = events.answered(failed())
    elif end == "release":
        published = events.release()
    assert published == [waiting] * number
    assert events.next_s() is None


def test_a_late_verdict_amends_an_event_that_was_sent_without_it() -> None:
    clock = Clock()
    events = held_events(clock, wait_s=2.0)
    events.admit([event()])
    clock.now_s = 3.0
    events.sent([msgspec.structs.replace(each, seq=3) for each in events.expired()])
    (amendment,) = events.answered(answered("yes"))
    assert amendment.amends == 3


def test_the_end_of_a_state_follows_its_start() -> None:
    events = held_events(**WAITS)
    begin, end, other = event(phase="begin"), event(phase="end", id_=None), event("other", None)
    assert events.admit([begin]) == []
    assert events.admit([end, other]) == [other]
    assert [each.data["phase"] for each in events.answered(answered("yes"))] == ["begin", "end"]


@pytest.mark.parametrize("way", ["answered", "expired", "release"])
def test_the_end_of_a_state_waits_while_its_start_is_published(way: str) -> None:
    clock = Clock()
    events = held_events(clock, wait_s=2.0)
    begin, end = event(phase="begin"), event(id_=None, phase="end")
    assert publish(events, begin) == []
    clock.now_s = 2.0
    released = {"answered": lambda: events.answered(answered("yes")), "expired": events.expired}
    (start,) = released.get(way, events.release)()
    assert publish(events, end) == []
    assert (events.next_s(), events.expired()) == (None, [])
    events.sent([msgspec.structs.replace(start, seq=5)])
    assert events.next_s() == 2.0
    assert events.expired() == [end]
    assert (events.next_s(), events.expired()) == (None, [])
    assert publish(events, end) == [end]  # the state has left


@pytest.mark.parametrize("is_late", [False, True])
def test_the_end_of_a_dropped_state_is_dropped_once(is_late: bool) -> None:
    events = held_events(**WAITS)
    begin, end = event(phase="begin"), event(phase="end", id_=None)
    events.admit([begin] if is_late else [begin, end])
    assert events.answered(answered("no")) == []
    if is_late:
        assert events.admit([end]) == []
    assert events.admit([end]) == [end]


def test_each_event_of_one_rule_waits_for_its_own_verdict() -> None:
    events = held_events(**WAITS)
    assert events.admit([event(), event(id_="2")]) == []
    assert [each.id for each in events.answered(answered("yes", "2"))] == ["2"]
    assert events.answered(answered("no", "1")) == []


def test_a_description_of_a_waiting_event_comes_after_it() -> None:
    events = held_events(**WAITS)
    events.admit([event()])
    assert events.answered(described("a cat")) == []
    (published,) = events.answered(answered("yes"))
    (amendment,) = events.sent([msgspec.structs.replace(published, seq=2)])
    assert amendment.description is not None
    assert (amendment.amends, amendment.verdict) == (2, verdict("yes"))


@pytest.mark.parametrize("on_timeout", ["send", "drop"])
def test_held_events_are_limited_and_the_oldest_is_released(on_timeout: str) -> None:
    events = held_events(wait_s=3600.0, on_timeout=on_timeout)
    released = [each for number in range(4100) for each in events.admit([event(id_=f"{number}")])]
    assert events.waiting() == 4096
    assert events.counters["displaced"] == 4
    assert [each.id for each in released] == (["0", "1", "2", "3"] if on_timeout == "send" else [])
    assert {each.reason for each in events.unanswered()} == (set() if on_timeout == "send" else {"too-many-held"})


def test_each_event_that_is_dropped_without_a_verdict_has_a_reason() -> None:
    clock = Clock()
    events = held_events(clock, wait_s=2.0, on_timeout="drop", keep=("yes",))
    events.admit([event(id_=None), event(id_="failed", phase="begin"), event(id_="answered"), event(id_="late")])
    assert events.answered(failed("failed")) == []
    assert events.answered(answered("no", "answered")) == []
    events.answered(Outcome(id="early", purpose="verify", error="queue-full"))
    events.admit([event(id_="early"), event(id_=None, phase="end")])
    clock.now_s = 2.0
    events.expired()
    events.admit([event(id_="held")])
    events.release()
    found = events.unanswered()
    assert [(each.event.id, each.check, each.reason) for each in found] == [
        (None, "real", "not-asked"),
        ("failed", "real", "too-slow"),
        ("early", "real", "queue-full"),
        ("late", "real", "no-verdict-in-time"),
        ("held", "real", "stopped"),
    ]
    assert events.unanswered() == []


def test_dropped_events_that_nobody_records_are_limited_and_counted() -> None:
    events = held_events(wait_s=2.0, on_timeout="drop")
    events.admit([event(id_=None)] * 5000)
    assert events.forgotten == 5000 - 4096
    assert len(events.unanswered()) == 4096


def test_memory_is_limited() -> None:
    events = held_events()
    for number in range(6000):
        events.answered(answered("yes", f"early {number}"))
        events.sent([event(id_=f"sent {number}")])
    assert events.answered(answered("yes", "sent 0")) == []
    assert len(events.answered(answered("yes", "sent 5999"))) == 1
    assert len(events._early) <= 1024


@pytest.mark.parametrize(
    "keys", [{}, {"wait_s": 2.0}, WAITS, WAITS | {"on_timeout": "drop"}], ids=["at-once", "waits", "keep", "drop"]
)
@pytest.mark.parametrize("outcome", ["answer", "failure", "late"])
def test_memory_does_not_grow_with_the_events_that_have_all_outcomes(keys: dict[str, Any], outcome: str) -> None:
    clock = Clock()
    events = held_events(clock, **keys)

    def run(number: int) -> None:
        id_ = str(number)
        passed = list(events.admit([event(id_=id_)]))
        if outcome == "late":
            clock.now_s += 3.0
            passed += events.expired()
        events.sent(passed)
        first = failed(id_) if outcome == "failure" else answered("no", id_)
        for each in (first, described("a cat", id_)):
            events.sent([left for left in events.answered(each) if left.amends is None])
        events.dropped()
        events.unanswered()

    tracemalloc.start()
    try:
        for number in range(10):
            run(number)
        before, _ = tracemalloc.get_traced_memory()
        for number in range(10, 510):
            run(number)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 500 * 100  # an event has more than 1000 bytes
