"""When each step of a batch begins and ends on the GPU, by events between the steps. Needs a GPU.

A graph runs as a whole, with nothing between its steps to be noted. So a detector is traced twice: as it runs, where a
graph is one span, and step by step, where the steps show and the time between them is the launches'.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from vision.detect.tensorrt.detector import TensorRTDetector
from vision.detect.tensorrt.slot import BatchGraph, Slot
from vision.engine.trace import Span, SpanRecorder
from vision.gpu.cuda import Event, Stream
from vision.types import Frame


class DeviceTimeline:
    """Wraps the chains of a detector until `close`. Nothing else may use the detector meanwhile."""

    def __init__(self, detector: TensorRTDetector, *, steps: bool) -> None:
        """Wrap a detector. `steps`: run every step by itself instead of the graph."""
        self._detector = detector
        self._made = contextlib.ExitStack()
        self._marks: list[tuple[str, str, Event, Event]] = []
        self._copying: Event | None = None  # where the copies of a batch begin
        slots, self._copies = detector.parts()
        self._slots = [slot for slot in slots if isinstance(slot, Slot)]
        self._chains = [dict(slot.graphs) for slot in self._slots]
        for number, slot in enumerate(self._slots):
            for batch, chain in self._chains[number].items():
                wrapped: Any = _TracedBatchGraph(chain, self, f"slot {number}", slot.stream, steps)
                slot.graphs[batch] = wrapped
        self._origin = self._made.enter_context(Event(timing=True))
        self._origin.record(self._copies)
        self._origin.synchronize()
        self._origin_ns = time.monotonic_ns()

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        """As the detector's, noting the copies too."""
        self._copying = self._made.enter_context(Event(timing=True))
        self._copying.record(self._copies)
        self._detector.submit(slot, frames)

    def copied(self, lane: str) -> None:
        """Mark the end of the queued copies of the current batch."""
        begin, self._copying = self._copying, None
        if begin is not None:
            end = self._made.enter_context(Event(timing=True))
            end.record(self._copies)
            self._marks.append((lane, "copy", begin, end))

    @contextlib.contextmanager
    def marked(self, lane: str, name: str, stream: Stream) -> Any:
        """Note when the GPU begins and ends what is queued on `stream` inside."""
        begin, end = (self._made.enter_context(Event(timing=True)) for _ in range(2))
        begin.record(stream)
        yield
        end.record(stream)
        self._marks.append((lane, name, begin, end))

    def write_to(self, recorder: SpanRecorder) -> None:
        """Put what was noted on the host's time line. Every batch must be done."""
        for lane, name, begin, end in self._marks:
            start_ms, end_ms = begin.ms_since(self._origin), end.ms_since(self._origin)
            start_ns, end_ns = (self._origin_ns + round(ms * 1e6) for ms in (start_ms, end_ms))
            recorder.add(Span(name, lane, start_ns, end_ns))

    def close(self) -> None:
        """Give the detector its chains back."""
        for slot, chains in zip(self._slots, self._chains, strict=False):
            slot.graphs.update(chains)
        self._chains.clear()  # an engine cannot go before its contexts
        self._made.close()


class _TracedBatchGraph:
    """Stands in the place of a `BatchGraph`."""

    def __init__(self, chain: BatchGraph, timeline: DeviceTimeline, lane: str, stream: Stream, steps: bool) -> None:
        self._timeline = timeline
        self._lane = lane
        self._stream = stream
        whole: tuple[tuple[str, Callable[[], object]], ...] = ((f"batch of {chain.batch}", chain.run),)
        self._steps = chain.steps if steps else whole

    def run(self) -> None:
        """Queue all of it. The slot calls this once it has queued the copies."""
        self._timeline.copied(f"{self._lane} copies")
        for name, step in self._steps:
            with self._timeline.marked(f"{self._lane} on the GPU", name, self._stream):
                step()
