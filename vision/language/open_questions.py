"""`OpenQuestions` stores which unanswered questions the stages and the language process have.

It has no threads or sockets. A process that ends unexpectedly cannot report its unanswered questions. The program then
abandons these questions, so that their events do not wait for answers that cannot come.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, TypeAlias

from vision.config.language import DescribeConfig, VerifyConfig
from vision.language.messages import Purpose, Subject, questions_about
from vision.messaging.schema import EventMessage

_MOST: Final = 4096  # questions of each kind; beyond this limit, the oldest are forgotten
_SETTLE_S: Final = 0.5  # time in which the language process can report a question that a worker sent before it ended

_Key: TypeAlias = tuple[str, Purpose]


class OpenQuestions:
    """The unanswered questions about events and, for each question, the process that has the question. Thread-safe."""

    def __init__(
        self,
        verify: Sequence[VerifyConfig],
        describe: Sequence[DescribeConfig],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the object without questions. `clock` returns the time in seconds."""
        self._verify, self._describe, self._clock = tuple(verify), tuple(describe), clock
        self.lost = 0
        """Number of questions that ended with a process."""
        self._asked: dict[_Key, Subject] = {}  # questions that the language process must answer
        self._ended: deque[tuple[float, list[Subject]]] = deque()  # to give up at a time in seconds
        self._lock = threading.Lock()
        self._open: OrderedDict[_Key, Subject] = OrderedDict()
        self._early: OrderedDict[_Key, None] = OrderedDict()  # left their stage before their event was added

    def add(self, events: Sequence[EventMessage]) -> None:
        """Add the questions that a stage has about new events."""
        with self._lock:
            for subject in (subject for event in events for subject in self._questions(event)):
                key = subject.id, subject.purpose
                if key in self._early:
                    del self._early[key]
                    continue
                self._open[key] = subject
                if len(self._open) > _MOST:
                    self._open.popitem(last=False)

    def remove(self, subject: Subject) -> None:
        """Remove a question that its stage has abandoned.

        If `add` receives the event of the question later, it ignores the question.
        """
        with self._lock:
            self._leave(subject)

    def received(self, subject: Subject) -> None:
        """Record that the language process has received a question."""
        with self._lock:
            self._leave(subject)
            self._asked[subject.id, subject.purpose] = subject

    def answered(self, id_: str, purpose: Purpose) -> None:
        """Remove a question that the language process has answered or abandoned."""
        with self._lock:
            self._asked.pop((id_, purpose), None)

    def process_ended(self) -> list[Subject]:
        """Remove and return the questions that the language process had when it ended."""
        with self._lock:
            asked, self._asked = self._asked, {}
            self.lost += len(asked)
            return list(asked.values())

    def worker_ended(self, cameras: Collection[str]) -> None:
        """Make `given_up` return the open questions about these cameras after a short delay.

        During the delay, `remove` and `received` can still remove questions.
        """
        with self._lock:
            subjects = [subject for subject in self._open.values() if subject.camera in cameras]
            self._ended.append((self._clock() + _SETTLE_S, subjects))

    def given_up(self) -> list[Subject]:
        """Remove and return the questions that ended with a result worker."""
        with self._lock:
            found: list[Subject] = []
            while self._ended and self._ended[0][0] <= self._clock():
                subjects = self._ended.popleft()[1]
                found += [each for each in subjects if self._open.pop((each.id, each.purpose), None) is not None]
            self.lost += len(found)
            return found

    def next_s(self) -> float | None:
        """Return the time, in seconds on `clock`, at which `given_up` must be called next.

        Return None if no call is needed.
        """
        with self._lock:
            return self._ended[0][0] if self._ended else None

    def _leave(self, subject: Subject) -> None:
        key = subject.id, subject.purpose
        if subject.id and self._open.pop(key, None) is None:
            self._early[key] = None
            if len(self._early) > _MOST:
                self._early.popitem(last=False)

    def _questions(self, event: EventMessage) -> Iterator[Subject]:
        about = {"camera": event.camera, "at": event.at, "kind": event.kind, "name": event.name}
        for purpose, entry in questions_about(self._verify, self._describe, event).items():
            yield Subject(id=event.id or "", purpose=purpose, check=entry.name, **about)
