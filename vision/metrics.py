"""Latency histograms, rates, and marks for profilers.

Averages hide slow frames. Therefore, a histogram counts the latency of every frame. From 1 µs to 200 s, the error of
its percentiles is at most 5 %.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

_EDGES_NS = tuple(
    itertools.takewhile(lambda edge: edge < 200e9, (int(1_000 * 1.05**step) for step in itertools.count()))
)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Number of observations in one histogram, and their percentiles and maximum in milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class LatencyHistogram:
    """Thread-safe histogram of durations, with a constant size. From 1 µs to 200 s, the buckets are 5 % wide."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_EDGES_NS) + 1)
        self._max_ns = 0
        self._lock = threading.Lock()

    def observe(self, duration_ns: int) -> None:
        """Count one duration in nanoseconds."""
        with self._lock:
            self._counts[bisect.bisect_left(_EDGES_NS, duration_ns)] += 1
            self._max_ns = max(self._max_ns, duration_ns)

    def snapshot(self, *, reset: bool = False) -> Percentiles:
        """Return the percentiles of the observations since the last reset. Without observations, return zeros.

        If `reset` is True, remove these observations from the histogram.
        """
        with self._lock:
            counts, max_ns = list(self._counts), self._max_ns
            if reset:
                self._counts = [0] * len(self._counts)
                self._max_ns = 0
        up_to = list(itertools.accumulate(counts))
        return Percentiles(up_to[-1], _quantile_ms(up_to, 0.5, max_ns), _quantile_ms(up_to, 0.99, max_ns), max_ns / 1e6)


def _quantile_ms(up_to: Sequence[int], q: float, max_ns: int) -> float:
    """Return the quantile `q` (0 to 1) of the durations in milliseconds, at most `max_ns`.

    `up_to` contains, for each bucket, the number of observations in this bucket and all lower buckets.
    """
    total = up_to[-1]
    if not total:
        return 0.0
    bucket = bisect.bisect_left(up_to, q * total)
    return min(_EDGES_NS[bucket] if bucket < len(_EDGES_NS) else max_ns, max_ns) / 1e6


class Rate:
    """Number of events per second over the last `window_s` seconds.

    Only the last 10,000 events are stored, so the result is at most 10,000 / `window_s` after the first window.
    """

    def __init__(self, clock: Callable[[], int], window_s: float = 5.0) -> None:
        self._clock = clock
        self._window_ns = int(window_s * 1e9)
        self._times_ns: deque[int] = deque(maxlen=10_000)
        self._started_ns = clock()

    def tick(self) -> None:
        """Count one event at the current time."""
        self._times_ns.append(self._clock())

    def per_s(self) -> float:
        """Return the number of events per second in the window.

        During the first window, the rate covers the time since the start.
        """
        now_ns = self._clock()
        while self._times_ns and now_ns - self._times_ns[0] > self._window_ns:
            self._times_ns.popleft()
        span_ns = min(self._window_ns, max(1, now_ns - self._started_ns))
        return len(self._times_ns) / (span_ns / 1e9)


Spans: TypeAlias = Callable[[str], contextlib.AbstractContextManager[object]]
"""Function from the name of a mark to a context manager that emits the mark."""

_OFF: Final = contextlib.nullcontext()
_spans: Spans | None = None


def enable_nvtx() -> bool:
    """Make `span` emit NVTX ranges in the domain ``vision``. Return False if the package `nvtx` is not installed."""
    try:
        import nvtx  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return False
    # nvtx stores every name permanently, so the number of different names must be small.
    send_spans(lambda name: nvtx.annotate(name, domain="vision"))
    return True


def send_spans(to: Spans | None) -> None:
    """Make `span(name)` return the context manager `to(name)`, which marks a block of code for a profiler.

    If `to` is None, `span` no longer marks blocks.
    """
    global _spans  # noqa: PLW0603 - one switch for the process, set before the threads start
    _spans = to


def span(name: str) -> contextlib.AbstractContextManager[object]:
    """Return a context manager that marks its block as `name` in a profiler.

    If marks are disabled, the context manager does nothing.
    """
    return _spans(name) if _spans is not None else _OFF
