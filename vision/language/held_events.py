"""`HeldEvents` decides when to publish the events about which a language model is asked. It has no threads or sockets.

If the entry of `verify:` for an event has `wait_s`, the event is held until its verdict arrives, or until `wait_s`
seconds have passed. Every other event is published immediately. If an answer arrives after an event was published, the
event is published again with the answer, as an amendment.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec

from vision.config.language import DescribeConfig, VerifyConfig
from vision.errors import conceal
from vision.language.messages import Outcome, Purpose, questions_about, waiting_entry
from vision.messaging.schema import EventMessage

_MOST_HELD: Final = 4096  # events that wait for a verdict
_MOST_LEFT: Final = 4096  # published or dropped events with questions that have no outcome yet
_MOST_EARLY: Final = 1024  # answers to events that have not been published yet
_MOST_DROPPED: Final = 4096  # states whose start was not published
_MOST_UNANSWERED: Final = 4096  # dropped events that wait for the ledger

_State: TypeAlias = tuple[str, str, str, int | None]


@dataclass(slots=True)
class _Held:
    """An event that waits for its verdict.

    If the end of its state has already arrived, also the event about this end.
    """

    event: EventMessage
    entry: VerifyConfig
    until_s: float
    following: list[EventMessage] = field(default_factory=list)


@dataclass(slots=True)
class _Left:
    """An event that was published or dropped, and the questions about it that have no outcome yet."""

    event: EventMessage | None  # with the answers so far; None if it was dropped, so that its answers are ignored
    open: set[Purpose]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """An event that was dropped without a verdict, because `on_timeout` is `drop`."""

    event: EventMessage
    check: str  # name of the entry of `verify:`
    reason: str  # code of the reason


class HeldEvents:
    """The events that wait for a verdict, and the published events that later answers can amend. Thread-safe."""

    def __init__(
        self,
        verify: Sequence[VerifyConfig],
        describe: Sequence[DescribeConfig],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the object without held events. `clock` returns the time in seconds."""
        self._verify, self._describe, self._clock = tuple(verify), tuple(describe), clock
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}  # by id
        self._holder: dict[_State, str] = {}  # id of the held event of each state
        self._left: OrderedDict[str, _Left] = OrderedDict()
        self._early: OrderedDict[str, list[Outcome]] = OrderedDict()
        self._leaving: dict[_State, tuple[str, list[EventMessage]]] = {}
        """Released starts of states that `sent` has not received, by id, and the ends that must follow them."""
        self._gone: deque[str] = deque(maxlen=_MOST_DROPPED)  # ids for `dropped`
        self._due: list[EventMessage] = []  # ends whose starts were published
        self._dropped: OrderedDict[_State, None] = OrderedDict()
        self._unanswered: deque[Unanswered] = deque(maxlen=_MOST_UNANSWERED)
        self.forgotten = 0  # dropped events that `unanswered` did not return, because it was not called in time
        self.counters: Counter[str] = Counter(held=0, timed_out=0, dropped=0, amended=0, displaced=0)

    def admit(self, events: Sequence[EventMessage]) -> list[EventMessage]:
        """Return the events to publish immediately. Hold the events that must wait for a verdict.

        Discard the end of a state if the start of this state was discarded.
        """
        with self._lock:
            return [each for event in events for each in self._admitted(event)]

    def waiting_of(self, events: Sequence[EventMessage]) -> list[EventMessage]:
        """Return those of `events` that are held, and that are published if no verdict arrives."""
        with self._lock:
            held = [self._held[event.id] for event in events if event.id is not None and event.id in self._held]
            return [each.event for each in held if each.entry.on_timeout == "send"]

    def dropped(self) -> list[str]:
        """Return the ids of the held events that were dropped since the previous call to this method."""
        with self._lock:
            gone = list(self._gone)
            self._gone.clear()
            return gone

    def has_dropped(self) -> bool:
        """Return True if `dropped` would return at least one id."""
        return bool(self._gone)

    def sent(self, events: Sequence[EventMessage]) -> list[EventMessage]:
        """Keep published events for later amendments. Return the amendments for answers that have already arrived.

        The next call to `expired` returns the ends of states that were admitted while their starts were being
        published.
        """
        with self._lock:
            amendments = []
            for event in events:
                if event.id is None or event.amends is not None:
                    continue
                if self._leaving.get(_state(event), ("",))[0] == event.id:
                    self._due += self._leaving.pop(_state(event))[1]
                amendments += self._await(event.id, event)
            return amendments

    def answered(self, outcome: Outcome) -> list[EventMessage]:
        """Process the answer to a question, or its failure. Return the events to publish.

        If the event of the question was not published yet, store the outcome until `sent` is called with this event.
        """
        with self._lock:
            held = self._held.get(outcome.id)
            if held is not None and outcome.purpose == "verify":
                return self._leave(held, self._released(held, outcome))
            if outcome.id in self._left:
                return self._amended(outcome)
            self._add_early(outcome)
            return []

    def expired(self) -> list[EventMessage]:
        """Stop waiting for the events whose `wait_s` has passed. Return those with `on_timeout: send`.

        Also return the ends of states that had to wait until `sent` received the starts.
        """
        with self._lock:
            now_s = self._clock()
            due, self._due = self._due, []
            return due + [
                each
                for held in list(self._held.values())
                if held.until_s <= now_s
                for each in self._leave(held, self._released(held, None, "no-verdict-in-time"))
            ]

    def release(self) -> list[EventMessage]:
        """Stop waiting for the verdicts of all held events. Return the events whose `on_timeout` is `send`."""
        with self._lock:
            return [
                each
                for held in list(self._held.values())
                for each in self._leave(held, self._released(held, None, "stopped"))
            ]

    def unanswered(self) -> list[Unanswered]:
        """Return the events that were dropped without a verdict since the previous call to this method."""
        with self._lock:
            found = list(self._unanswered)
            self._unanswered.clear()
            return found

    def next_s(self) -> float | None:
        """Return the time, in seconds on `clock`, at which `expired` will return events.

        Return None if no event waits.
        """
        with self._lock:
            if self._due:
                return self._clock()
            return min((held.until_s for held in self._held.values()), default=None)

    def waiting(self) -> int:
        """Return the number of held events."""
        return len(self._held)

    def _admitted(self, event: EventMessage) -> list[EventMessage]:
        if event.data.get("phase") == "end":
            return self._admitted_end(event)
        self._dropped.pop(_state(event), None)
        entry = waiting_entry(self._verify, event)
        if entry is None or entry.wait_s is None:
            return [event]
        held = _Held(event, entry, self._clock() + entry.wait_s)
        outcomes = [] if event.id is None else self._early.pop(event.id, [])
        verdict = next((outcome for outcome in outcomes if outcome.purpose == "verify"), None)
        if event.id is not None and (others := [each for each in outcomes if each is not verdict]):
            _put(self._early, event.id, others, _MOST_EARLY)
        if event.id is None or verdict is not None:
            return self._released(held, verdict, "not-asked")
        self.counters["held"] += 1
        self._held[event.id] = held
        if event.data.get("phase") == "begin":
            self._holder[_state(event)] = event.id
        if len(self._held) <= _MOST_HELD:
            return []
        self.counters["displaced"] += 1
        return self._released(next(iter(self._held.values())), None, "too-many-held")

    def _admitted_end(self, event: EventMessage) -> list[EventMessage]:
        """Treat the end of a state like the start of this state: hold it, discard it, or return it for publication."""
        state = _state(event)
        if (held := self._held.get(self._holder.get(state, ""))) is not None:
            held.following.append(event)
            return []
        if (leaving := self._leaving.get(state)) is not None:
            leaving[1].append(event)
            return []
        if state in self._dropped:
            del self._dropped[state]
            self.counters["dropped"] += 1
            return []
        return [event]

    def _released(self, held: _Held, outcome: Outcome | None, reason: str = "") -> list[EventMessage]:
        """Stop holding an event. Return the events to publish: the event, and the end of its state if it has arrived.

        Return an empty list if `keep` of the entry does not contain the answer, or if there is no verdict and
        `on_timeout` is `drop`. If `outcome` is None, `reason` is the code of the reason why there is no verdict.
        """
        event, state = held.event, _state(held.event)
        if event.id is not None and self._held.pop(event.id, None) is not None and self._holder.get(state) == event.id:
            del self._holder[state]
        verdict = None if outcome is None else outcome.verdict
        if verdict is None:
            self.counters["timed_out"] += 1
            is_kept = held.entry.on_timeout == "send"
        else:
            is_kept = held.entry.keep is None or verdict.answer in held.entry.keep
            event = msgspec.structs.replace(event, verdict=verdict)
        if is_kept:
            if outcome is not None and event.id is not None:
                self._add_early(Outcome(id=event.id, purpose="verify", error="answered"))
            return [event, *held.following]
        self.counters["dropped"] += 1 + len(held.following)
        if event.id is not None:
            self._gone.append(event.id)
            if outcome is not None:
                self._add_early(outcome)
            self._await(event.id, event, is_dropped=True)
        if verdict is None:
            self.forgotten += len(self._unanswered) == _MOST_UNANSWERED
            self._unanswered.append(Unanswered(event, held.entry.name, reason if outcome is None else outcome.error))
        if event.data.get("phase") == "begin" and not held.following:
            _put(self._dropped, state, None, _MOST_DROPPED)
        return []

    def _leave(self, held: _Held, released: list[EventMessage]) -> list[EventMessage]:
        """Return `released`, the events to publish.

        If an event starts a state, hold the end of this state until the event is published. The thread that admits the
        end is not the thread that publishes the released events.
        """
        event = held.event
        if released and event.id is not None and event.data.get("phase") == "begin" and not held.following:
            self._leaving[_state(event)] = event.id, []
        return released

    def _add_early(self, outcome: Outcome) -> None:
        """Keep an outcome until its event is published or dropped."""
        _put(self._early, outcome.id, [*self._early.get(outcome.id, []), outcome], _MOST_EARLY)

    def _await(self, id_: str, event: EventMessage, *, is_dropped: bool = False) -> list[EventMessage]:
        """Wait for the outcomes of the questions about an event that was published or dropped.

        Return the amendments for the outcomes that have already arrived.
        """
        if questions := {*questions_about(self._verify, self._describe, event)}:
            _put(self._left, id_, _Left(None if is_dropped else event, questions), _MOST_LEFT)
        return [amendment for outcome in self._early.pop(id_, []) for amendment in self._amended(outcome)]

    def _amended(self, outcome: Outcome) -> list[EventMessage]:
        """Return the amendment of a published event. Forget the event if each question about it has an outcome."""
        if (left := self._left.get(outcome.id)) is None:
            return []
        left.open.discard(outcome.purpose)
        if not left.open:
            del self._left[outcome.id]
        if (event := left.event) is None or (outcome.verdict is None and outcome.description is None):
            return []
        self.counters["amended"] += 1
        changes: dict[str, Any] = {"verdict": outcome.verdict or event.verdict, "description": event.description}
        if (described := outcome.description) is not None:
            changes["description"] = msgspec.structs.replace(described, text=conceal(described.text))
        left.event = event = msgspec.structs.replace(event, **changes)
        return [msgspec.structs.replace(event, amends=event.seq, journal=None, number=None)]


def _state(event: EventMessage) -> _State:
    return event.camera, event.kind, event.name, event.track_id


def _put(entries: OrderedDict[Any, Any], key: object, value: object, most: int) -> None:
    """Store a value as the newest value. If `entries` then has more than `most` values, remove the oldest values."""
    entries[key] = value
    entries.move_to_end(key)
    while len(entries) > most:
        entries.popitem(last=False)
