"""The sink protocol: where results and reports leave the program, such as a socket, a file, or a test's list.

To add a sink, implement `Sink` and pass it to `vision.pipelines.pipeline_with` in a pipeline file:
``build = pipeline_with([], sinks=[MySink()])`` (docs/pipelines.md). `vision.runtime.builder.PublisherSink` publishes
over ZeroMQ. A sink that has counters also implements `vision.stages.stage.HasCounters`.
"""

from __future__ import annotations

from typing import Protocol

from vision.runtime.status import Report
from vision.types import Result


class Sink(Protocol):
    """Receiver of results and reports."""

    def publish(self, result: Result) -> None:
        """Take one result. The results thread calls this, in order per camera."""

    def report(self, report: Report) -> None:
        """Take the status of the program. The main thread calls this once an interval and at the end."""
