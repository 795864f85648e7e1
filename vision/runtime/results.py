"""`ResultHandler`, which runs the stages on each result and passes it to the sinks, in the results thread."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Sequence
from typing import Final

from vision.metrics import LatencyHistogram, Rate, span
from vision.runtime.inference_loop import IDLE_S, InferredFrame
from vision.runtime.latest_slot import Clock, release_together
from vision.runtime.status import CameraMetrics
from vision.stages.stage import PixelStage, Sink, Stage
from vision.types import Frame, Result

RESULT_QUEUE_SIZE: Final = 2048
"""Maximum number of results that wait for the results thread, not counting the last batch.

One interpreter publishes this number of results in two seconds. The limit counts frames, because many cameras can
produce many batches of one frame. In a pipeline with a stage that reads pixels, the leases are a far lower limit."""


class ResultQueue(queue.Queue[list[InferredFrame] | None]):
    """Queue of batches for the results thread. Its size is the number of frames. The item None marks the end."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._frames = 0

    def _qsize(self) -> int:
        return self._frames

    def _put(self, item: list[InferredFrame] | None) -> None:
        super()._put(item)
        self._frames += self._weight(item)

    def _get(self) -> list[InferredFrame] | None:
        item = super()._get()
        self._frames -= self._weight(item)
        return item

    @staticmethod
    def _weight(item: list[InferredFrame] | None) -> int:
        return max(1, len(item or ()))  # with an item of weight 0, the queue would appear empty


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
        self._queue = ResultQueue(RESULT_QUEUE_SIZE)
        self._aborted = False

    def add_stage(self, stage: Stage) -> None:
        """Append a stage. Call this before `run`."""
        self.stages.append(stage)
        name = type(stage).__name__
        if isinstance(stage, PixelStage):
            self._reads_pixels = True
            self._steps.append((name, stage.with_frame))
        else:
            self._steps.append((name, lambda result, _frame: stage(result)))

    @property
    def queued_frames(self) -> int:
        """Number of results that wait for the results thread."""
        return self._queue.qsize()

    def put(self, batch: list[InferredFrame] | None) -> bool:
        """Queue a batch; None marks the end. Return False if the queue stays full for `IDLE_S` seconds.

        If no stage reads pixels, release the batch's leases first. After `abort`, discard the batch, and return True.
        """
        if self._aborted or not self._reads_pixels:
            release_together([frame.lease for frame in batch or ()])
        if self._aborted:
            return True
        try:
            self._queue.put(batch, timeout=IDLE_S)
        except queue.Full:
            return False
        return True

    def abort(self) -> None:
        """Make `run` end without handling the queued batches, and make `put` discard new batches."""
        self._aborted = True

    def run(self) -> None:
        """Handle results until the end mark arrives or `abort` is called. The results thread calls this method."""
        while (batch := self._next_batch()) is not None:
            try:
                with span("results"):
                    for inferred in batch:
                        self._handle(inferred)
            finally:
                release_together([inferred.lease for inferred in batch])

    def release_queued(self) -> None:
        """Discard the batches that are still queued, and release their leases. Call this after `run` has ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                release_together([inferred.lease for inferred in self._queue.get_nowait() or ()])

    def _next_batch(self) -> list[InferredFrame] | None:
        while not self._aborted:
            try:
                return self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                continue
        return None

    def _handle(self, inferred: InferredFrame) -> None:
        result = inferred.result
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
