"""Recorder of time spans, and functions that write the spans as a Chrome trace for chrome://tracing or ui.perfetto.dev.

The format is the JSON object form of the "Trace Event Format", with complete events (``ph: X``) in microseconds.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision.config.user_files import write_output
from vision.errors import from_os_error


@dataclass(frozen=True, slots=True)
class Span:
    """Named span of time, which a trace viewer draws in the row `lane` of its diagram."""

    name: str
    lane: str  # name of the row, such as a slot, a thread, or the copy engine
    start_ns: int
    end_ns: int
    details: Mapping[str, Any] = field(default_factory=dict)  # values that the viewer shows for the span


class SpanRecorder:
    """Recorder that keeps the newest `keep` spans. It is thread-safe. `clock` returns a monotonic time in ns."""

    def __init__(self, keep: int = 100_000, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._spans: deque[Span] = deque(maxlen=keep)
        self._clock = clock
        self._lock = threading.Lock()

    def add(self, span: Span) -> None:
        """Add a span that the caller has measured."""
        with self._lock:
            self._spans.append(span)

    @contextlib.contextmanager
    def span(self, name: str, lane: str, **details: Any) -> Iterator[None]:
        """Measure a `with` block with the clock of the recorder, and add a span called `name` to the row `lane`.

        The trace viewer shows `details` with the span.
        """
        start_ns = self._clock()
        try:
            yield
        finally:
            self.add(Span(name, lane, start_ns, self._clock(), details))

    def spans(self) -> tuple[Span, ...]:
        """Return the spans, in the order in which they were added."""
        with self._lock:
            return tuple(self._spans)


def layer_spans(layers: Iterable[tuple[str, float]], lane: str, start_ns: int) -> tuple[Span, ...]:
    """Return consecutive spans in the row `lane` from `start_ns` on, for `layers` (name, duration in ms) in order."""
    spans: list[Span] = []
    for name, ms in layers:
        end_ns = start_ns + round(ms * 1e6)
        spans.append(Span(name, lane, start_ns, end_ns))
        start_ns = end_ns
    return tuple(spans)


def chrome_trace(spans: Iterable[Span]) -> dict[str, Any]:
    """Convert spans to a Chrome trace. Time 0 is the start of the earliest span. Rows (lanes) are sorted by name."""
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))
    origin_ns = ordered[0].start_ns if ordered else 0
    lanes = {lane: number for number, lane in enumerate(sorted({span.lane for span in ordered}), start=1)}
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "vision"}}]
    for lane, number in lanes.items():
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": lane}})
        events.append({"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": number, "args": {"sort_index": number}})
    events += [
        {
            "name": span.name,
            "cat": span.lane,
            "ph": "X",
            "pid": 1,
            "tid": lanes[span.lane],
            "ts": (span.start_ns - origin_ns) / 1e3,
            "dur": max(0, span.end_ns - span.start_ns) / 1e3,
            "args": dict(span.details),
        }
        for span in ordered
    ]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def write_chrome_trace(path: Path, spans: Iterable[Span]) -> None:
    """Write spans to a Chrome trace file. Raise `ConfigError` or `Unavailable` if the file cannot be written."""
    try:
        write_output(path, json.dumps(chrome_trace(spans)))
    except OSError as error:
        raise from_os_error(f"{path} cannot be written", error) from error
