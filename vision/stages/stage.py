"""The protocols of what follows the detector: the stages that a pipeline applies to each result, and the sinks.

A stage is a function from `Result` to `Result`. A stage that also needs the frame is an object with the method
`with_frame` instead. The results thread calls both, in order per camera, and then `publish` of each sink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from vision.messaging.schema import CameraReport, CountsReport, NodeReport, StatusReport
from vision.types import Frame, Result


@runtime_checkable
class PixelStage(Protocol):
    """A stage that also looks at the frame."""

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Return the result with the stage's additions. `frame` is valid until then: copy what must last longer."""


Stage: TypeAlias = Callable[[Result], Result] | PixelStage


@dataclass(frozen=True, slots=True)
class Report:
    """The reports of one interval. Iterating yields one or two per camera, then the one about the program."""

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
    """Receiver of results and reports: `Publisher`, or one of a pipeline file (docs/pipelines.md)."""

    def publish(self, result: Result) -> None:
        """Take one result. The results thread calls this, in order per camera."""

    def report(self, report: Report) -> None:
        """Take the status of the program. The main thread calls this once an interval and at the end."""


@runtime_checkable
class HasCounters(Protocol):
    """A detector, stage or sink that counts something that an operator needs to see."""

    def counters(self) -> Mapping[str, int]:
        """Return counters since the start by name, such as ``cascade.skipped``. The main thread calls this."""
