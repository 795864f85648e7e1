"""The stages of several batches in flight on one time line: which slot does what while the others do something else."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from vision.detect.detector import Detector
from vision.engine.trace import Span, SpanRecorder
from vision.metrics import send_spans
from vision.types import Frame

_WAIT_S: Final = 60.0


@contextlib.contextmanager
def recorded_spans(recorder: SpanRecorder) -> Iterator[None]:
    """Whatever `vision.metrics.span` marks goes to `recorder`, in the lane of its thread."""
    send_spans(lambda name: recorder.span(name, f"thread {threading.current_thread().name}"))
    try:
        yield
    finally:
        send_spans(None)


def trace_slots(
    detector: Detector,
    batches: Sequence[Sequence[Frame]],
    rounds: int,
    recorder: SpanRecorder,
    *,
    clock: Callable[[], int] = time.monotonic_ns,
    submit: Callable[[int, Sequence[Frame]], None] | None = None,
) -> None:
    """Run `rounds` batches in each slot as the program does: a lane for each slot, one for each thread that works.

    Args:
        submit: in place of the detector's, where more than that is to be noted.
    """
    give = submit or detector.submit
    submitted_ns = [0] * len(batches)

    def start(slot: int) -> None:
        submitted_ns[slot] = clock()
        give(slot, batches[slot])

    def finish(slot: int) -> None:
        found = detector.wait(slot, _WAIT_S)
        details = {"frames": len(batches[slot]), "objects": sum(map(len, found))}
        recorder.add(Span("in flight", f"slot {slot}", submitted_ns[slot], clock(), details))

    with recorded_spans(recorder):
        for slot in range(len(batches)):
            start(slot)
        for _ in range(rounds - 1):
            for slot in range(len(batches)):
                finish(slot)
                start(slot)
        for slot in range(len(batches)):
            finish(slot)
