"""`CircuitBreaker` keeps questions away from a server that fails, and probes it from time to time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final

_FAILURES: Final = 3  # number of failures in a row that open the breaker
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class CircuitBreaker:
    """Counts the failures of a server. After three in a row it opens, and then admits one question per pause.

    The pauses double up to a minute. Each is multiplied by a random factor from 0.5 to 1.5, so that several programs do
    not probe a server at the same time. The first success closes the breaker. The methods can be called by several
    threads.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, random_part: Callable[[], float] = random.random
    ) -> None:
        """Create a closed breaker. `clock` returns seconds, and `random_part` a number from 0 to 1."""
        self._clock, self._random_part = clock, random_part
        self._lock = threading.Lock()
        self._failures = 0
        self._pause_s = 0.0
        self._opened_s = 0.0
        self._probe_s = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= _FAILURES

    def admits(self) -> bool:
        """Return True if the server can be asked now. If the breaker is open, True permits one probe."""
        with self._lock:
            if not self.is_open:
                return True
            if self._clock() < self._probe_s:
                return False
            self._schedule()
            return True

    def succeeded(self) -> None:
        """Close the breaker."""
        with self._lock:
            self._failures = 0

    def failed(self, asked_s: float) -> None:
        """Count the failure of a question that was asked at `asked_s`. Ignore it if the breaker has opened since."""
        with self._lock:
            if self.is_open and asked_s < self._opened_s:
                return
            self._failures += 1
            if self._failures == _FAILURES:
                self._pause_s = 0.0
                self._opened_s = self._clock()
                self._schedule()

    def opened_after(self, moment_s: float) -> bool:
        """Return True if the breaker is open, and opened after `moment_s`."""
        with self._lock:
            return self.is_open and self._opened_s > moment_s

    def _schedule(self) -> None:
        """Schedule the next probe, which is due even if the current one gets no answer."""
        self._pause_s = min(2 * self._pause_s or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._probe_s = self._clock() + self._pause_s * (0.5 + self._random_part())
