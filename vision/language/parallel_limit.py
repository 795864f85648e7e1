"""`ParallelLimit` decides how many requests a server gets at the same time.

A server that answers several requests in parallel needs several, so that few questions wait. For a server that answers
one request at a time, more requests would only wait in the server, in their order of arrival. There, the newest
questions would not come first, and the deadlines of all could pass. Therefore, the limit follows the latencies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

MOST: Final = 8
"""Highest number of requests at the same time, if the configuration contains none."""

_TOO_COSTLY: Final = 0.6  # cost of a further request beyond which the limit shrinks
_CHEAP: Final = 0.5  # cost of a further request below which the limit grows
_NEW_PART: Final = 0.25  # weight of a new cost in the mean
_NEW_ALONE_PART: Final = 0.5  # weight of a new latency of a request alone in the mean
_FEWEST: Final = 4  # answers before a change of the limit
_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0  # time after the limit has shrunk in which it does not grow
_REMEASURE_S: Final = 30.0  # longest time at the limit without a request that was alone
_MARGIN: Final = 1.2  # how much longer than the latency of a request alone a deadline must be


@dataclass(eq=False, slots=True)
class Request:
    """A request that the server has."""

    check: str
    began_s: float
    number: int  # of requests at the same time when it began
    generation: int  # number of changes of the limit before it began
    is_alone: bool  # True if no other request overlaps it


@dataclass(slots=True)
class _Latency:
    """The mean latency in seconds of the requests of an entry of `verify:` or `describe:` that were alone."""

    seconds: float
    count: int = 1

    def add(self, seconds: float) -> None:
        """Add a latency. If the first was longer, discard it, because it can include the start of the model."""
        self.count += 1
        if self.count == 2:
            self.seconds = min(self.seconds, seconds)
        else:
            self.seconds += _NEW_ALONE_PART * (seconds - self.seconds)


@dataclass(slots=True)
class _Round:
    """The answers since the last change of the limit, of requests that began when the limit was reached."""

    answers: int = 0
    cost: float = 0.0  # mean increase of the latency by a further request, as a multiple of the latency alone

    def add(self, cost: float) -> None:
        self.answers += 1
        self.cost += max(_NEW_PART, 1 / self.answers) * (cost - self.cost)


@dataclass(eq=False)
class ParallelLimit:
    """A limit that doubles while further requests cost little time, and halves if they only wait in the server.

    If two requests at the same time take twice as long as one alone, the cost of the further request is 1. If they take
    as long as one alone, it is 0. Requests that time out or are refused because they are too many halve the limit too.
    From time to time, the server gets a single request, to measure its latency. Several threads can call the methods.
    """

    fixed: int | None = None  # a limit that never changes; None means that the limit follows the latencies
    clock: Callable[[], float] = time.monotonic
    _asking: set[Request] = field(default_factory=set)
    _alone: dict[str, _Latency] = field(default_factory=dict)  # by check
    _alone_s: float = 0.0  # time of the last latency of a request alone
    _is_remeasuring: bool = False
    _round: _Round = field(default_factory=_Round)
    _generation: int = 0
    _pause_s: float = _PAUSE_S
    _shrunk_s: float = float("-inf")
    _used: int = 0

    def __post_init__(self) -> None:
        self._limit = self.fixed or 1
        self._changed = threading.Condition()

    @property
    def most(self) -> int:
        """Highest possible limit, and therefore the number of threads that can send requests."""
        return self.fixed or MOST

    @property
    def limit(self) -> int:
        return self._limit

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait until fewer than `limit` slots are in use, and use one during the `with` block."""
        with self._changed:
            self._changed.wait_for(lambda: self._used < (1 if self._is_remeasuring else self._limit))
            self._used += 1
        try:
            yield
        finally:
            with self._changed:
                self._used -= 1
                self._changed.notify_all()

    def begin(self, check: str) -> Request:
        """Note that a request begins. `check` is the name of its entry of `verify:` or `describe:`."""
        with self._changed:
            for other in self._asking:
                other.is_alone = False
            number = len(self._asking) + 1
            request = Request(check, self.clock(), number, self._generation, is_alone=number == 1)
            self._asking.add(request)
            return request

    def ended(self, request: Request, error: str = "", allowed_s: float = 0.0) -> None:
        """Note that a request has ended. `error` is the code of the error. It is empty if there is an answer.

        If the request got no answer within `allowed_s` seconds, but a request alone would have had enough time, halve
        the limit. Also halve it if the server refused the request because it has too many.
        """
        with self._changed:
            now_s = self.clock()
            self._asking.remove(request)
            if request.is_alone:
                self._is_remeasuring = False
            if not error:
                self._learn(request, now_s)
                return
            alone = self._alone.get(request.check)
            is_over = error == "too-slow" and (alone is None or alone.seconds * _MARGIN < allowed_s)
            if (is_over or error == "busy") and self._counts(request) and request.number > 1:
                self._halve(now_s)

    def _learn(self, request: Request, now_s: float) -> None:
        latency_s = now_s - request.began_s
        if request.is_alone:
            self._alone_s = now_s
            self._add_alone(request.check, latency_s)
        alone = self._alone.get(request.check)
        if alone is None or not self._counts(request):
            return
        if self._limit == 1 and alone.count >= 2:
            self._grow(now_s)
        elif request.number >= self._limit > 1:
            self._round.add((latency_s / max(alone.seconds, 1e-3) - 1) / (request.number - 1))
            self._end_round(now_s)

    def _counts(self, request: Request) -> bool:
        """Return True if a request can change the limit. A request that began before the last change cannot."""
        return self.fixed is None and request.generation == self._generation

    def _add_alone(self, check: str, latency_s: float) -> None:
        if (alone := self._alone.get(check)) is None:
            self._alone[check] = _Latency(latency_s)
        else:
            alone.add(latency_s)

    def _end_round(self, now_s: float) -> None:
        """If there are enough answers since the last change, change the limit or measure a request alone."""
        if self._round.answers < max(self._limit, _FEWEST):
            return
        if self._round.cost > _TOO_COSTLY:
            self._halve(now_s)
        elif now_s - self._alone_s > _REMEASURE_S:
            self._is_remeasuring = True
            self._round = _Round()
        elif self._round.cost < _CHEAP:
            self._grow(now_s)

    def _grow(self, now_s: float) -> None:
        if self._limit < self.most and now_s - self._shrunk_s >= self._pause_s:
            self._set(min(2 * self._limit, self.most))

    def _halve(self, now_s: float) -> None:
        is_first = now_s - self._shrunk_s > 2 * _LONGEST_PAUSE_S
        self._pause_s = _PAUSE_S if is_first else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._shrunk_s = now_s
        self._set(max(1, self._limit // 2))

    def _set(self, limit: int) -> None:
        self._limit = limit
        self._generation += 1
        self._round = _Round()
        self._changed.notify_all()
