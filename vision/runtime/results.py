"""`ResultHandler`, which runs the stages on each result and passes the result to the sinks, in the results thread.

A result that is too old when its turn comes is dropped. Before the drop, at most one stage has processed the result: a
first stage that processes whole batches. The queue needs no limit of its own: a camera's next frame is not taken while
too many results of the camera are unfinished (`vision.runtime.latest_slot`).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final

from vision.config import AppConfig
from vision.metrics import span
from vision.runtime.inference_loop import InferredFrame
from vision.runtime.latest_slot import Clock, finish_together, hand_over
from vision.runtime.stage_runner import Observe, ResultMetrics, StageRunner
from vision.stages.stage import Reconfigurable, Sink, Stage
from vision.types import DropReason, Result

_MAX_TOGETHER: Final = 32
"""Queued batches are joined until they have at least this number of frames. The joined results finish together."""


class ResultHandler:
    """Handler that runs the stages on the results of the inference thread, and passes the results to the sinks."""

    def __init__(
        self,
        stages: Sequence[Stage],
        sinks: Sequence[Sink],
        camera_ids: Sequence[str],
        clock: Clock,
        observe: Observe | None = None,
    ) -> None:
        self.metrics = ResultMetrics(camera_ids, clock, observe)
        self._runner = StageRunner(stages, sinks, clock)
        self.sinks = self._runner.sinks
        self._queue: queue.SimpleQueue[list[InferredFrame] | None] = queue.SimpleQueue()
        self._changes: queue.SimpleQueue[tuple[AppConfig, threading.Event]] = queue.SimpleQueue()
        self._aborted = False
        self._handled = 0  # number of results, including those that were too old
        self._busy = False

    def add_stage(self, stage: Stage) -> None:
        """Append a stage. Call this before `run`."""
        self._runner.add_stage(stage)

    @property
    def parts(self) -> list[object]:
        """The stages that this handler runs, and the sinks to which it passes the results."""
        return [*self._runner.stages, *self._runner.sinks]

    def counters(self) -> dict[str, int]:
        """Return the counters of the stages and sinks by name."""
        return self._runner.counters()

    def new_epochs(self, _camera_id: str) -> int:
        """Return 0. Only the end of a result worker adds epochs to a camera, and this handler uses no workers."""
        return 0

    def progress(self) -> int | None:
        """Return the number of handled results. Return None if no result waits."""
        return self._handled if self._busy or not self._queue.empty() else None

    @property
    def handled(self) -> int:
        """Number of handled results, including those that were too old."""
        return self._handled

    def reconfigure(self, config: AppConfig, _added: Sequence[str]) -> Callable[[], bool]:
        """Make the stages use a new configuration from the next batch on.

        Return a function that returns True once all stages use the configuration.
        """
        done = threading.Event()
        self._changes.put((config, done))
        self._queue.put([])  # wakes the results thread
        return done.is_set

    def put(self, batch: list[InferredFrame]) -> None:
        """Queue a batch. If no stage reads pixels, first release the leases of the batch.

        After `abort`, discard the batch instead.
        """
        hand_over([inferred.lease for inferred in batch], keep=self._runner.reads_pixels)
        if self._aborted:
            self._finish(batch, [DropReason.STOPPED] * len(batch))
        else:
            self._queue.put(batch)

    def end(self) -> None:
        """Make `run` return after it has handled the batches that are queued."""
        self._queue.put(None)

    def abort(self) -> None:
        """Make `run` return without handling the queued batches, and make `put` discard new batches."""
        self._aborted = True
        self._queue.put(None)

    def run(self) -> None:
        """Handle results until `end` or `abort` is called. The results thread calls this method.

        Exceptions from stages and sinks are raised unchanged.
        """
        while (batch := self._next_batch()) is not None and not self._aborted:
            while not self._changes.empty():
                self._reconfigure(*self._changes.get())
            if batch:
                self._handle_batch(batch)
        if batch is not None:
            self._finish(batch, [DropReason.STOPPED] * len(batch))

    def _reconfigure(self, config: AppConfig, done: threading.Event) -> None:
        for stage in self._runner.stages:
            part: object = stage
            if isinstance(part, Reconfigurable):
                part.reconfigure(config)
        done.set()

    def _next_batch(self) -> list[InferredFrame] | None:
        """Wait for a batch, and join queued batches to it until it has `_MAX_TOGETHER` frames.

        Return None after `end` or `abort`.
        """
        batch = self._queue.get()
        while batch is not None and len(batch) < _MAX_TOGETHER and not self._queue.empty():
            following = self._queue.get()
            if following is None:
                self._queue.put(None)  # the end mark, for the next call
                break
            batch = batch + following
        return batch

    def release_queued(self) -> None:
        """Discard the queued batches, and release their leases. Call this once `run` has ended or hangs."""
        with contextlib.suppress(queue.Empty):
            while True:
                batch = self._queue.get_nowait() or []
                self._finish(batch, [DropReason.STOPPED] * len(batch))
        self._queue.put(None)  # for a thread that was stuck in a stage

    def _handle_batch(self, batch: list[InferredFrame]) -> None:
        """Handle each result. If a stage or a sink fails, count the unfinished frames as dropped because of a stop."""
        reasons: list[DropReason | None] = [DropReason.STOPPED] * len(batch)
        self._busy = True
        try:
            with span("results"):
                results = self._runner.begin([(inferred.result, inferred.expires_ns) for inferred in batch])
                for number, (inferred, result) in enumerate(zip(batch, results, strict=True)):
                    reasons[number] = self._handle(inferred, result)
                    self._handled += 1
            self._runner.wait_until_read()
        finally:
            self._busy = False
            self._finish(batch, reasons)

    @staticmethod
    def _finish(batch: Sequence[InferredFrame], reasons: Sequence[DropReason | None]) -> None:
        finish_together([inferred.lease for inferred in batch], reasons)

    def _handle(self, inferred: InferredFrame, begun: Result | None) -> DropReason | None:
        result = None
        if begun is not None:
            result = self._runner.run_stages(begun, inferred.lease.frame, inferred.expires_ns)
        if result is None:
            return DropReason.STALE
        if not self._runner.is_reading():  # otherwise, the lease is kept until the batch is published
            inferred.lease.release()
        published_ns = self._runner.publish(result)
        self.metrics.truncated_candidates += result.objects.truncated_candidates
        self.metrics.published(result.meta, result.timing, len(result.objects), published_ns)
        self.metrics.cameras[result.meta.camera_id].counts = result.counts
        return None
