"""`ParallelLimit` decides how many requests a server gets at the same time.

A server that answers requests in parallel must get several, so that few questions wait. If a server answers one request
at a time, further requests only wait in the server, in their order of arrival. The newest questions then do not come
first, and the deadlines of all questions can pass. Therefore, the limit depends on the measured latencies.
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

_SERIAL: Final = 0.9  # cost of a further request beyond which the limit becomes 1
_TOO_COSTLY: Final = 0.6  # cost of a further request beyond which the limit halves
_CHEAP: Final = 0.5  # cost of a further request below which the limit grows
_LAST: Final = 3  # requests alone whose latencies are stored
_FEWEST: Final = 6  # answers before a change of the limit
_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0  # time after the limit has shrunk in which it does not grow
_TIMED_OUT: Final = 0.75  # cost of a request that timed out, whose latency is not known
_REMEASURE_S, _LONGEST_REMEASURE_S = 30.0, 600.0  # longest time at the limit without a request that was alone
_SIMILAR: Final = 1.5  # factor between two latencies that are similar
_MARGIN: Final = 1.2  # how much longer than the latency of a request alone a deadline must be


@dataclass(eq=False, slots=True)
class Request:
    """A request that was sent to the server, and has not ended."""

    check: str
    began_s: float
    number: int  # of requests at the same time when it began
    generation: int  # number of changes of the limit before it began. Only the current generation changes the limit
    is_alone: bool  # True if no other request overlaps it


class _Latency:
    """The latencies in seconds of the latest requests that were alone, for one entry of `verify:` or `describe:`."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_LAST)

    def add(self, seconds: float) -> bool:
        """Add a latency. Return True if this latency is similar to the median of the previous latencies."""
        is_similar = self.is_known and 1 / _SIMILAR < seconds / self.seconds < _SIMILAR
        self._last.append(seconds)
        return is_similar

    @property
    def is_known(self) -> bool:
        """True if at least two latencies were added.

        A single latency is not enough, because it can include the start of the model.
        """
        return len(self._last) > 1

    @property
    def seconds(self) -> float:
        """The median latency in seconds. If there are two latencies, this is the lower latency."""
        return max(median_low(self._last), 1e-3)


@dataclass(eq=False)
class ParallelLimit:
    """A limit that shrinks if further requests only wait in the server, and grows if they cost little time.

    The first requests are sent alone, to measure the latency of a single request. After that, the limit is `most`. If
    two simultaneous requests take twice as long as a single request, the cost of the further request is 1. If they take
    as long as a single request, the cost is 0. The limit depends on the cost that two thirds of the answers do not
    exceed, because a busy machine delays some answers. The latency of a single request is measured again at intervals.
    Several threads can call the methods.
    """

    fixed: int | None = None  # a limit that never changes; None means that the limit follows the latencies
    clock: Callable[[], float] = time.monotonic
    _asking: set[Request] = field(default_factory=set)
    _alone: dict[str, _Latency] = field(default_factory=dict)  # by check
    _alone_s: float = float("-inf")  # time of the last latency of a request alone
    _remeasure_s: float = _REMEASURE_S
    _costs: list[float] = field(default_factory=list)  # of requests that began at the limit since its last change
    _generation: int = 0
    _pause_s: float = _PAUSE_S
    _shrunk_s: float = float("-inf")
    _used: int = 0

    def __post_init__(self) -> None:
        self._limit = self.most
        self._is_measuring = self.fixed is None  # the server gets only one request at a time, to measure its latency
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
        """Wait until fewer than `limit` slots are in use, and occupy a slot during the `with` block."""
        with self._changed:
            self._changed.wait_for(lambda: self._used < (1 if self._is_measuring else self._limit))
            self._used += 1
        try:
            yield
        finally:
            with self._changed:
                self._used -= 1
                self._changed.notify_all()

    def begin(self, check: str) -> Request:
        """Record that a request begins. `check` is the name of its entry of `verify:` or `describe:`."""
        with self._changed:
            for other in self._asking:
                other.is_alone = False
            number = len(self._asking) + 1
            request = Request(check, self.clock(), number, self._generation, is_alone=number == 1)
            self._asking.add(request)
            return request

    def ended(self, request: Request, error: str = "", allowed_s: float = 0.0) -> None:
        """Record that a request has ended. `error` is the code of the error, or an empty string if there is an answer.

        If the request got no answer within `allowed_s` seconds, but a single request would have had enough time, count
        its cost as too high. If the server refused the request because it has too many requests, halve the limit.
        """
        with self._changed:
            now_s = self.clock()
            self._asking.remove(request)
            if self.fixed is not None:
                return
            alone = self._alone.setdefault(request.check, _Latency())
            latency_s = now_s - request.began_s
            if request.is_alone:
                if not error:
                    self._measured(alone.add(latency_s), now_s)
                self._is_measuring = not any(each.is_known for each in self._alone.values())
            elif request.number >= self._limit and now_s - self._alone_s > self._remeasure_s:
                self._is_measuring = True
            if request.generation != self._generation:
                return
            if error == "busy" and self._limit > 1:
                self._shrink(self._limit // 2)
            elif alone.is_known:
                self._learn(request, latency_s, alone.seconds, error, allowed_s)

    def _measured(self, is_similar: bool, now_s: float) -> None:
        """Schedule the next measurement of a single request. If `is_similar` is True, double the interval."""
        self._alone_s = now_s
        self._remeasure_s = min(2 * self._remeasure_s, _LONGEST_REMEASURE_S) if is_similar else _REMEASURE_S

    def _learn(self, request: Request, latency_s: float, alone_s: float, error: str, allowed_s: float) -> None:
        """Add the cost of a request, and change the limit if necessary.

        `alone_s` is the latency of a single request.
        """
        if self._limit == 1:
            if not error:
                self._grow()
        elif request.number >= self._limit:
            if not error:
                self._costs.append((latency_s / alone_s - 1) / (request.number - 1))
            elif error == "too-slow" and alone_s * _MARGIN < allowed_s:
                self._costs.append(_TIMED_OUT)
            self._end_round()

    def _end_round(self) -> None:
        """If enough costs were collected, evaluate them, and change the limit if necessary."""
        if len(self._costs) < max(self._limit, _FEWEST):
            return
        cost = sorted(self._costs)[len(self._costs) * 2 // 3]
        self._costs = []
        if cost > _TOO_COSTLY:
            self._shrink(1 if cost > _SERIAL else self._limit // 2)
            return
        self._pause_s = _PAUSE_S
        if cost < _CHEAP:
            self._grow()

    def _grow(self) -> None:
        if self._limit < self.most and self.clock() - self._shrunk_s >= self._pause_s:
            self._set(min(2 * self._limit, self.most))

    def _shrink(self, limit: int) -> None:
        now_s = self.clock()
        if now_s - self._shrunk_s <= 2 * _LONGEST_PAUSE_S:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._shrunk_s = now_s
        self._set(limit)

    def _set(self, limit: int) -> None:
        self._limit = limit
        self._generation += 1
        self._costs = []
        self._changed.notify_all()
