"""`ResultHandler`, which runs the stages on each result and passes it to the sinks, in the results thread.

A result whose frame is too old at its turn is dropped before any stage sees it. The queue needs no limit of its own: a
camera's next frame is not taken while too many of its results are unfinished (`vision.runtime.latest_slot`).
"""

from __future__ import annotations

import contextlib
import queue
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from vision.metrics import LatencyHistogram, Rate, span
from vision.runtime.inference_loop import InferredFrame
from vision.runtime.latest_slot import Clock, finish_together, hand_over
from vision.runtime.status import CameraMetrics
from vision.stages.stage import PixelStage, Sink, Stage
from vision.types import DropReason, Frame, Result


class ResultHandler:
    """Receives results from the inference thread, runs the stages on them, and passes the results to the sinks."""

    def __init__(self, stages: Sequence[Stage], sinks: Sequence[Sink], camera_ids: Sequence[str], clock: Clock) -> None:
        self.metrics = {camera_id: CameraMetrics(LatencyHistogram(), Rate(clock)) for camera_id in camera_ids}
        self.latency = {name: LatencyHistogram() for name in ("queue", "detect", "results")}
        self.truncated_candidates = 0
        self.stages: list[Stage] = []
        self.sinks = list(sinks)
        self._reads_pixels = False
        self._steps: list[tuple[str, Callable[[Result, Frame], Result]]] = []
        for stage in stages:
            self.add_stage(stage)
        self._clock = clock
        self._queue: queue.SimpleQueue[list[InferredFrame] | None] = queue.SimpleQueue()
        self._aborted = False
        self._handled = 0  # number of results, with those that were too old
        self._busy = False
        self._unreported: dict[str, Counter[str]] = {}  # drops since the last published result, by camera and reason

    def add_stage(self, stage: Stage) -> None:
        """Append a stage. Call this before `run`."""
        self.stages.append(stage)
        name = type(stage).__name__
        if isinstance(stage, PixelStage):
            self._reads_pixels = True
            self._steps.append((name, stage.with_frame))
        else:
            self._steps.append((name, lambda result, _frame: stage(result)))

    def progress(self) -> int | None:
        """Return the number of handled results; None if no result waits."""
        return self._handled if self._busy or not self._queue.empty() else None

    @property
    def handled(self) -> int:
        """Number of handled results, with those that were too old."""
        return self._handled

    def put(self, batch: list[InferredFrame]) -> None:
        """Queue a batch. If no stage reads pixels, release its leases first. After `abort`, discard the batch."""
        hand_over([inferred.lease for inferred in batch], keep=self._reads_pixels)
        if self._aborted:
            self._finish(batch, [DropReason.STOPPED] * len(batch))
        else:
            self._queue.put(batch)

    def end(self) -> None:
        """Make `run` return after the batches that are queued."""
        self._queue.put(None)

    def abort(self) -> None:
        """Make `run` return without handling the queued batches, and make `put` discard new batches."""
        self._aborted = True
        self._queue.put(None)

    def run(self) -> None:
        """Handle results until `end` or `abort` is called. The results thread calls this method."""
        while (batch := self._queue.get()) is not None and not self._aborted:
            self._handle_batch(batch)
        if batch is not None:
            self._finish(batch, [DropReason.STOPPED] * len(batch))

    def release_queued(self) -> None:
        """Discard the batches that are still queued, and release their leases. Call this after `run` has ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                batch = self._queue.get_nowait() or []
                self._finish(batch, [DropReason.STOPPED] * len(batch))
        self._queue.put(None)  # for a thread that was stuck in a stage

    def _handle_batch(self, batch: list[InferredFrame]) -> None:
        """Handle each result. If a stage or a sink fails, the frames without a result count as stopped."""
        reasons: list[DropReason | None] = [DropReason.STOPPED] * len(batch)
        self._busy = True
        try:
            with span("results"):
                for number, inferred in enumerate(batch):
                    if inferred.expires_ns is not None and self._clock() > inferred.expires_ns:
                        self._expire(inferred.result)
                        reasons[number] = DropReason.STALE
                    else:
                        self._handle(inferred)
                        reasons[number] = None
                    self._handled += 1
        finally:
            self._busy = False
            self._finish(batch, reasons)

    @staticmethod
    def _finish(batch: Sequence[InferredFrame], reasons: Sequence[DropReason | None]) -> None:
        finish_together([inferred.lease for inferred in batch], reasons)

    def _expire(self, result: Result) -> None:
        """Remember a result that is too old, and the drops before it. The camera's next result reports them."""
        unreported = self._unreported.setdefault(result.meta.camera_id, Counter())
        unreported.update(result.dropped_before)
        unreported[DropReason.STALE.value] += 1

    def _handle(self, inferred: InferredFrame) -> None:
        result = inferred.result
        if self._unreported and (unreported := self._unreported.pop(result.meta.camera_id, None)):
            unreported.update(result.dropped_before)
            result = replace(result, dropped_before=dict(unreported))
        self.truncated_candidates += result.objects.truncated_candidates
        for name, step in self._steps:
            with span(name):
                result = step(result, inferred.lease.frame)
        inferred.lease.release()
        published_ns = self._clock()
        with span("publish"):
            for sink in self.sinks:
                sink.publish(result)
        self._measure(result, published_ns)

    def _measure(self, result: Result, published_ns: int) -> None:
        timing, metrics = result.timing, self.metrics[result.meta.camera_id]
        metrics.published += 1
        metrics.objects = len(result.objects)
        metrics.counts = result.counts
        metrics.rate.tick()
        if result.meta.clock != "media":  # the timestamps of a recording are not times of this machine
            metrics.latency.observe(published_ns - result.meta.captured_ns)
            self.latency["queue"].observe(timing.submitted_ns - result.meta.captured_ns)
        self.latency["detect"].observe(timing.inferred_ns - timing.submitted_ns)
        self.latency["results"].observe(published_ns - timing.inferred_ns)
