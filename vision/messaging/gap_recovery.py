"""Events in order, each once, and none left out that the publisher still has: what a subscriber must do for that.

Messages over PUB and SUB get lost when a subscriber is slow, away, or connecting. Events are numbered over all cameras
and restarts, so a subscriber that receives all of them sees at once that one is missing. It holds back what came after
it, asks the publisher's journal, and goes on when the answer is there. It also asks at the start, when the connection
was made anew, and now and then: of the last event before a silence there is no other sign that it is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from vision.errors import MessageError
from vision.messaging.codec import EventMessage, ReplayReply, ReplayRequest

EVENTS: Final = "events/"

_MOST_HELD: Final = 10_000
_ANSWER_S: Final = 2.0  # then the question is asked again
_QUIET_S: Final = 5.0  # between two questions when nothing seems to be missing


@dataclass(frozen=True, slots=True)
class Gap:
    """`lost` messages of a topic never came: this subscriber or the network was too slow, or the connection broke.

    Of the topic ``events/`` (all cameras) with `since`: the publisher does not have them any more. After its machine
    has lost its power it cannot know how many there were; then they are at most as many.
    """

    topic: str
    expected_seq: int
    got_seq: int

    @property
    def lost(self) -> int:
        return self.got_seq - self.expected_seq

    def __str__(self) -> str:
        return f"{self.topic}: lost {self.lost} messages (expected {self.expected_seq}, got {self.got_seq})"


@dataclass(frozen=True, slots=True)
class NewJournal:
    """The publisher keeps its events in another journal than before: the old one was damaged or removed.

    What the old one had and this subscriber had not yet received is lost. Numbers begin at 1 again.
    """

    node: str
    old: str  # empty where it was not known
    new: str

    def __str__(self) -> str:
        return f"{self.node}: events are kept in a new journal; what only the old one had is lost"


InOrder: TypeAlias = EventMessage | Gap | NewJournal


class GapRecovery:
    """Knows neither sockets nor cameras. One thread at a time."""

    def __init__(self, since: int, journal: str | None = None, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """
        Args:
            since: number of the last event that is known; 0: none, so everything that is kept is wanted.
            journal: of that event, where it is known.
        """
        self._last = since
        self._journal = journal
        self._confirmed = False  # that the publisher has this journal
        self._held: dict[int, EventMessage] = {}
        self._clock = clock
        self._asked = False  # and not yet answered
        self._ask_at_ns = clock()

    def live(self, event: EventMessage) -> Iterator[InOrder]:
        """An event has come; yields what can be given out now."""
        if event.number is None:
            yield event  # the publisher's disk had no room for it: nobody can ask for it
            return
        if not self._confirmed or event.journal != self._journal:
            self.hurry()
            return
        if event.number <= self._last:
            return
        if len(self._held) < _MOST_HELD:
            self._held[event.number] = event
        yield from self._release()

    def replied(self, reply: ReplayReply, events: Sequence[EventMessage]) -> Iterator[InOrder]:
        """An answer has come; yields what can be given out now.

        Raises:
            MessageError: the publisher says that it cannot answer.
        """
        self._asked = False
        if reply.error is not None:
            raise MessageError(f"{reply.node} cannot send missed events: {reply.error}")
        if not self._confirmed and self._journal is None and self._last <= reply.newest:
            self._journal = reply.journal
        if self._journal != reply.journal:
            yield NewJournal(reply.node, self._journal or "", reply.journal)
            self._journal, self._last = reply.journal, 0
            self._held.clear()
            self.hurry()
            return
        self._confirmed = True
        for event in events:
            if event.number is not None and event.number > self._last:
                yield from self._skip_to(event.number)
                yield event
                self._last = event.number
        if not reply.more and reply.newest > self._last:
            yield from self._skip_to(reply.newest + 1)
            self._last = reply.newest
        self._held = {number: event for number, event in self._held.items() if number > self._last}
        yield from self._release(more=reply.more)

    def _skip_to(self, number: int) -> Iterator[Gap]:
        """From the start everything that is kept was wanted: what is not kept any more is no loss."""
        if number > self._last + 1 and self._last > 0:
            yield Gap(EVENTS, self._last + 1, number)

    def _release(self, *, more: bool = False) -> Iterator[EventMessage]:
        while (event := self._held.pop(self._last + 1, None)) is not None:
            yield event
            self._last += 1
        if self._held or more:
            self.hurry()
        elif not self._asked:
            self._ask_at_ns = self._clock() + round(_QUIET_S * 1e9)

    # --- asking -------------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Ask at once, unless an answer is on its way: the connection is new, or something is missing."""
        if not self._asked:
            self._ask_at_ns = min(self._ask_at_ns, self._clock())

    def wait_ns(self) -> int:
        """Until the next question is due; 0: now."""
        return max(0, self._ask_at_ns - self._clock())

    def request(self) -> ReplayRequest:
        """The question, to be sent now. Asked again where no answer comes."""
        self._asked = True
        self._ask_at_ns = self._clock() + round(_ANSWER_S * 1e9)
        return ReplayRequest(since=self._last, journal=self._journal)
