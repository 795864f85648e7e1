"""`StageRunner`, which runs the stages on results, and `ResultMetrics`, which counts the published results.

`StageRunner` also passes the results to the sinks. The results thread of a small site and the result workers of a large
site use the same `StageRunner`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from vision.metrics import LatencyHistogram, Rate, span
from vision.runtime.latest_slot import Clock
from vision.runtime.status import CameraMetrics
from vision.stages.stage import BatchStage, HasCounters, PixelStage, ReadsLater, Sink, Stage
from vision.types import DropReason, Frame, FrameMeta, Result, Timing

Observe: TypeAlias = Callable[[FrameMeta, Timing, int, int], None]
"""Type of functions that observe published results. The arguments are the description of the frame, its times, the
number of objects, and the monotonic time of publication in ns."""


class StageRunner:
    """Runner of the stages, which passes the results to the sinks. Stages and sinks run in the caller's thread."""

    def __init__(self, stages: Sequence[Stage], sinks: Sequence[Sink], clock: Clock) -> None:
        self.stages: list[Stage] = []
        self.sinks = list(sinks)
        self.reads_pixels = False
        self._clock = clock
        self._read_later: list[ReadsLater] = []
        self._together: BatchStage | None = None  # the first stage, if it can process a batch
        self._steps: list[tuple[str, Callable[[Result, Frame | None], Result]]] = []  # the other stages
        self._unreported: dict[str, Counter[str]] = {}  # drops since the last published result, by camera and reason
        for stage in stages:
            self.add_stage(stage)

    def add_stage(self, stage: Stage) -> None:
        """Append a stage. Call this before the first result."""
        self.stages.append(stage)
        name = type(stage).__name__
        part: object = stage
        if isinstance(part, ReadsLater):
            self._read_later.append(part)
        if len(self.stages) == 1 and isinstance(part, BatchStage):
            self._together = part
        elif isinstance(stage, PixelStage):
            self.reads_pixels = True
            self._steps.append((name, _with_frame(stage)))
        else:
            self._steps.append((name, lambda result, _frame: stage(result)))

    def begin(self, batch: Sequence[tuple[Result, int | None]]) -> list[Result | None]:
        """Run the first stage on all results of a batch, if the stage can process batches.

        `run_stages` runs the other stages.

        Args:
            batch: results, in order per camera, each with the monotonic time in ns after which it is too old. A time of
                None means never.

        Returns:
            The results in the same order. A result that is too old is None.
        """
        results = [None if self._is_too_old(result, expires_ns) else result for result, expires_ns in batch]
        if self._together is None:
            return results
        with span(type(self._together).__name__):
            done = iter(self._together.process_together([result for result in results if result is not None]))
        return [None if result is None else next(done) for result in results]

    def run_stages(self, result: Result, frame: Frame | None, expires_ns: int | None) -> Result | None:
        """Run the stages on a result of `begin`, and return the result. Return None if the result is too old.

        Args:
            result: a result from `begin`.
            frame: the frame of the result. It can be None if no stage reads pixels.
            expires_ns: monotonic time in ns after which the result is too old. None means never.

        Raises:
            ValueError: a stage reads pixels, but `frame` is None.
        """
        if self._is_too_old(result, expires_ns):
            return None
        if self._unreported and (unreported := self._unreported.pop(result.meta.camera_id, None)):
            unreported.update(result.dropped_before)
            result = replace(result, dropped_before=dict(unreported))
        for name, step in self._steps:
            with span(name):
                result = step(result, frame)
        return result

    def is_reading(self) -> bool:
        """Return True if a stage may still use the GPU to read a frame that was passed to `run_stages`."""
        return any(stage.is_reading() for stage in self._read_later)

    def wait_until_read(self) -> None:
        """Wait until the GPU has finished reading all frames that were passed to `run_stages`."""
        for stage in self._read_later:
            stage.wait_until_read()

    def publish(self, result: Result) -> int:
        """Pass a result to the sinks. Return the monotonic time of publication in ns."""
        published_ns = self._clock()
        with span("publish"):
            for sink in self.sinks:
                sink.publish(result)
        return published_ns

    def counters(self) -> dict[str, int]:
        """Return the counters of the stages and sinks by name."""
        counters: dict[str, int] = {}
        parts: list[object] = [*self.stages, *self.sinks]
        for part in parts:
            if isinstance(part, HasCounters):
                counters.update(part.counters())
        return counters

    def _is_too_old(self, result: Result, expires_ns: int | None) -> bool:
        """Return True if a result is too old, which is the case after the monotonic time `expires_ns`.

        In this case, count it as dropped. The camera's next result will report this drop and the drops before it.
        """
        if expires_ns is None or self._clock() <= expires_ns:
            return False
        unreported = self._unreported.setdefault(result.meta.camera_id, Counter())
        unreported.update(result.dropped_before)
        unreported[DropReason.STALE.value] += 1
        return True


def _with_frame(stage: PixelStage) -> Callable[[Result, Frame | None], Result]:
    def step(result: Result, frame: Frame | None) -> Result:
        if frame is None:
            raise ValueError(f"{type(stage).__name__} reads pixels, but got a result without its frame")
        return stage.with_frame(result, frame)

    return step


class ResultMetrics:
    """Counters and latencies of the published results."""

    def __init__(self, camera_ids: Sequence[str], clock: Clock, observe: Observe | None = None) -> None:
        """Create the counters. `observe` is called for each published result, wherever the stages run."""
        self._observe = observe
        self._clock = clock
        self.cameras: dict[str, CameraMetrics] = {}
        for camera_id in camera_ids:
            self.add(camera_id)
        self.latency = {name: LatencyHistogram() for name in ("queue", "detect", "results")}
        self.truncated_candidates = 0

    def add(self, camera_id: str) -> None:
        """Create the counters of one more camera."""
        self.cameras[camera_id] = CameraMetrics(LatencyHistogram(), Rate(self._clock))

    def published(self, meta: FrameMeta, timing: Timing, objects: int, published_ns: int) -> None:
        """Count a result with `objects` objects that was published at `published_ns`. Pass this data to `observe`."""
        metrics = self.cameras[meta.camera_id]
        metrics.published += 1
        metrics.objects = objects
        metrics.rate.tick()
        if self._observe is not None:
            self._observe(meta, timing, objects, published_ns)
        if meta.clock != "media":  # the timestamps of a recording are not times of this machine
            metrics.latency.observe(published_ns - meta.captured_ns)
            self.latency["queue"].observe(timing.submitted_ns - meta.captured_ns)
        self.latency["detect"].observe(timing.inferred_ns - timing.submitted_ns)
        self.latency["results"].observe(published_ns - timing.inferred_ns)
