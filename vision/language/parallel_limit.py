"""`ParallelLimit` decides how many requests a server gets at the same time.

A server that answers several requests in parallel needs several, so that few questions wait. For a server that answers
one request at a time, more requests would only wait in the server, in their order of arrival. There, the newest
questions would not come first, and the deadlines of all could pass. Therefore, the limit follows the latencies.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median_low
from typing import Final

MOST: Final = 8
"""Highest number of requests at the same time, if the configuration contains none."""

_TOO_COSTLY: Final = 0.6  # cost of a further request beyond which the limit shrinks
_CHEAP: Final = 0.5  # cost of a further request below which the limit grows
_LAST: Final = 5  # requests alone whose latencies are stored
_FEWEST: Final = 6  # answers before a change of the limit
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


class _Latency:
    """The latencies in seconds of the last requests of an entry of `verify:` or `describe:` that were alone."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_LAST)

    def add(self, seconds: float) -> None:
        self._last.append(seconds)

    @property
    def is_known(self) -> bool:
        """True if there are two latencies, because the first can include the start of the model."""
        return len(self._last) > 1

    @property
    def seconds(self) -> float:
        """The median. Of two latencies, the lower one."""
        return max(median_low(self._last), 1e-3)


@dataclass(eq=False)
class ParallelLimit:
    """A limit that doubles while further requests cost little time, and halves if they only wait in the server.

    If two requests at the same time take twice as long as one alone, the cost of the further request is 1. If they take
    as long as one alone, it is 0. The limit depends on the cost of two thirds of the answers, because a busy machine
    delays some of them. From time to time, the server gets a single request, to measure its latency. Several threads
    can call the methods.
    """

    fixed: int | None = None  # a limit that never changes; None means that the limit follows the latencies
    clock: Callable[[], float] = time.monotonic
    _asking: set[Request] = field(default_factory=set)
    _alone: dict[str, _Latency] = field(default_factory=dict)  # by check
    _alone_s: float = 0.0  # time of the last latency of a request alone
    _is_remeasuring: bool = False
    _costs: list[float] = field(default_factory=list)  # of requests that began at the limit since its last change
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

        A request that got no answer within `allowed_s` seconds counts as one that cost too much, if a request alone
        would have had enough time. If the server refused the request because it has too many, halve the limit.
        """
        with self._changed:
            now_s = self.clock()
            self._asking.remove(request)
            if request.is_alone:
                self._is_remeasuring = False
            alone = self._alone.setdefault(request.check, _Latency())
            if request.is_alone and not error:
                self._alone_s = now_s
                alone.add(now_s - request.began_s)
            if self._counts(request) and alone.is_known:
                self._learn(request, now_s - request.began_s, alone.seconds, error, allowed_s)

    def _learn(self, request: Request, latency_s: float, alone_s: float, error: str, allowed_s: float) -> None:
        if self._limit == 1:
            if not error:
                self._grow()
        elif error == "busy":
            self._halve()
        elif request.number >= self._limit:
            if not error:
                self._costs.append((latency_s / alone_s - 1) / (request.number - 1))
            elif error == "too-slow" and alone_s * _MARGIN < allowed_s:
                self._costs.append(1.0)
            self._end_round()

    def _counts(self, request: Request) -> bool:
        """Return True if a request can change the limit. A request that began before the last change cannot."""
        return self.fixed is None and request.generation == self._generation

    def _end_round(self) -> None:
        """If there are enough costs, change the limit, or measure a request alone."""
        if len(self._costs) < max(self._limit, _FEWEST):
            return
        cost = sorted(self._costs)[len(self._costs) * 2 // 3]
        self._costs = []
        if cost > _TOO_COSTLY:
            self._halve()
            return
        self._pause_s = _PAUSE_S
        if self.clock() - self._alone_s > _REMEASURE_S:
            self._is_remeasuring = True
        elif cost < _CHEAP:
            self._grow()

    def _grow(self) -> None:
        if self._limit < self.most and self.clock() - self._shrunk_s >= self._pause_s:
            self._set(min(2 * self._limit, self.most))

    def _halve(self) -> None:
        now_s = self.clock()
        if now_s - self._shrunk_s <= 2 * _LONGEST_PAUSE_S:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._shrunk_s = now_s
        self._set(max(1, self._limit // 2))

    def _set(self, limit: int) -> None:
        self._limit = limit
        self._generation += 1
        self._costs = []
        self._changed.notify_all()
