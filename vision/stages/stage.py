"""Protocols of the stages that a pipeline applies to each result of the detector, and of the sinks.

A stage is a function from `Result` to `Result`, or, if it also needs the frame, an object with the method `with_frame`.
The results thread calls the stages, in order per camera, and then `publish` of each sink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from vision.messaging.schema import CameraReport, CountsReport, NodeReport, StatusReport
from vision.types import Frame, Result


@runtime_checkable
class PixelStage(Protocol):
    """A stage that also reads the pixels of the frame."""

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Return the extended result. `frame` is valid only during the call: copy everything that is needed later."""


Stage: TypeAlias = Callable[[Result], Result] | PixelStage


@dataclass(frozen=True, slots=True)
class Report:
    """The reports of one interval. Iteration yields one or two reports per camera, then that of the program."""

    node: NodeReport
    cameras: tuple[CameraReport, ...]
    counts: Mapping[str, CountsReport]  # by camera, for cameras with lines or zones

    def __iter__(self) -> Iterator[StatusReport]:
        for camera in self.cameras:
            yield camera
            if camera.camera in self.counts:
                yield self.counts[camera.camera]
        yield self.node


class Sink(Protocol):
    """Receiver of results and reports: the `Publisher`, or a sink from a pipeline file (docs/pipelines.md)."""

    def publish(self, result: Result) -> None:
        """Process one result. The results thread calls this, in order per camera."""

    def report(self, report: Report) -> None:
        """Process a status report. The main thread calls this once per interval and at the end."""


@runtime_checkable
class HasCounters(Protocol):
    """A detector, stage or sink with counters that operators need."""

    def counters(self) -> Mapping[str, int]:
        """Return counts since the start, by a name such as ``cascade.skipped``. The main thread calls this."""
