"""Protocols of stages, which process each result of the detector, and of sinks, which receive the processed results.

A stage is a function from `Result` to `Result`. A stage that also needs the frame is an object with the method
`with_frame`. The results thread calls the stages, and then `publish` of each sink, for each result, in order per
camera. If the first stage has the method `process_together`, the results of a batch pass through it together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from vision.config import AppConfig
from vision.messaging.schema import CameraReport, CountsReport, NodeReport, StatusReport
from vision.types import Frame, Result


@runtime_checkable
class PixelStage(Protocol):
    """A stage that reads the pixels of the frame."""

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Return the extended result.

        `frame` is valid only during the call, so copy the pixels that you need later, or implement `ReadsLater`.
        """


Stage: TypeAlias = Callable[[Result], Result] | PixelStage
"""A stage of either kind: a function without access to the frame, or an object with access to the frame."""


@runtime_checkable
class ReadsLater(Protocol):
    """A `PixelStage` that lets the GPU read a frame after `with_frame` has returned."""

    def is_reading(self) -> bool:
        """Return True if the GPU may still read a frame that was passed to `with_frame`.

        While this is True, the results thread holds the frames, so that their memory is not reused.
        """

    def wait_until_read(self) -> None:
        """Wait until the GPU has finished reading all frames that were passed to `with_frame`."""


@runtime_checkable
class BatchStage(Protocol):
    """A stage that can process the results of several cameras in one call, to save time."""

    def process_together(self, results: Sequence[Result]) -> list[Result]:
        """Return the extended results, in the same order."""


@dataclass(frozen=True, slots=True)
class Report:
    """The status reports of one interval. Iteration yields the cameras' reports, followed by the program's report."""

    node: NodeReport
    cameras: tuple[CameraReport, ...]
    counts: Mapping[str, CountsReport]  # by camera id, for cameras that have lines or zones

    def __iter__(self) -> Iterator[StatusReport]:
        for camera in self.cameras:
            yield camera
            if camera.camera in self.counts:
                yield self.counts[camera.camera]
        yield self.node


class Sink(Protocol):
    """A receiver of results and reports: the `Publisher`, or a sink from a pipeline file (docs/pipelines.md)."""

    def publish(self, result: Result) -> None:
        """Process one result. The results thread calls this method, in order per camera."""

    def report(self, report: Report) -> None:
        """Process a status report. The main thread calls this method once per interval and at the end."""


@runtime_checkable
class Reconfigurable(Protocol):
    """A stage that can continue with a new configuration while the program runs."""

    def reconfigure(self, config: AppConfig) -> None:
        """Use `config` from the next result on. The thread that runs the stages calls this between two results.

        The configuration is valid, and differs from the previous one only in keys that need no restart.
        """


@runtime_checkable
class HasProgress(Protocol):
    """A stage or sink that has its own threads, which the watchdog observes."""

    def progress(self) -> Mapping[str, object]:
        """Return, by the name of each thread, a value that changes when the thread makes progress, or None.

        None means that the thread has no work.

        The watchdog calls this method at most once per second. The method must not wait for a lock.
        """


@runtime_checkable
class HasCounters(Protocol):
    """A detector, stage, or sink that provides counters for operators."""

    def counters(self) -> Mapping[str, int]:
        """Return the values of the counters by name, such as ``cascade.skipped``. The main thread calls this method."""
