"""`CircuitBreaker` blocks questions to a server that fails, and permits one probe after each pause."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from typing import Final

_FAILURES: Final = 3  # number of failures in a row that open the breaker
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class CircuitBreaker:
    """Breaker that opens after three failures of a server in a row, and then admits one question per pause.

    A question without an answer before its deadline counts as a failure only if the server has been silent for
    `timeout_s`, because the deadline can be short. Otherwise, the question neither opens nor closes the breaker.

    The pauses double up to a minute. Each pause is multiplied by a random factor from 0.5 to 1.5, so that several
    programs do not probe a server at the same time. The first success closes the breaker. Several threads can call the
    methods.
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        random_part: Callable[[], float] = random.random,
    ) -> None:
        """Create a closed breaker.

        Args:
            timeout_s: time in seconds without an answer after which a server counts as failing.
            clock: function that returns the time in seconds. The arguments of the methods are times on this clock.
            random_part: function that returns a number from 0 to 1.
        """
        self._timeout_s, self._clock, self._random_part = timeout_s, clock, random_part
        self._lock = threading.Lock()
        self._failures = 0
        self._answered_s = -math.inf  # time of the last success
        self._silent_s = math.inf  # since when the server has answered no question; infinite if it has no such question
        self._pause_s = 0.0
        self._opened_s = 0.0
        self._probe_s = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= _FAILURES

    def admits(self) -> bool:
        """Return True if a question can be sent to the server. If the breaker is open, True permits one probe."""
        with self._lock:
            if not self.is_open:
                return True
            if self._clock() < self._probe_s:
                return False
            self._schedule()
            return True

    def succeeded(self) -> bool:
        """Close the breaker, because the server has answered. Return True if the breaker was open."""
        with self._lock:
            was_open, self._failures = self.is_open, 0
            self._answered_s, self._silent_s = self._clock(), math.inf
            return was_open

    def failed(self, asked_s: float) -> bool:
        """Count the failure of a question that was asked at `asked_s`. Return True if this failure opens the breaker.

        Ignore the failure if the breaker opened after the question was asked, and is still open.
        """
        with self._lock:
            return self._count(asked_s)

    def timed_out(self, asked_s: float) -> bool:
        """Process a question that was asked at `asked_s`, and that got no answer before its deadline.

        Count a failure if this question has waited for at least `timeout_s`, or if the server has answered no question
        for this time. Return True if the failure opens the breaker.
        """
        with self._lock:
            self._silent_s = min(self._silent_s, max(asked_s, self._answered_s))
            return self._clock() - min(asked_s, self._silent_s) >= self._timeout_s and self._count(asked_s)

    def opened_after(self, moment_s: float) -> bool:
        """Return True if the breaker is open, and opened after `moment_s`."""
        with self._lock:
            return self.is_open and self._opened_s > moment_s

    def _count(self, asked_s: float) -> bool:
        if self.is_open and asked_s < self._opened_s:
            return False
        self._failures += 1
        if self._failures != _FAILURES:
            return False
        self._pause_s = 0.0
        self._opened_s = self._clock()
        self._schedule()
        return True

    def _schedule(self) -> None:
        """Schedule the next probe. It becomes due even if the current probe gets no answer."""
        self._pause_s = min(2 * self._pause_s or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._probe_s = self._clock() + self._pause_s * (0.5 + self._random_part())
