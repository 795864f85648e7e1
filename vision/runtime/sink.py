"""The sink protocol: where results and reports leave the program."""

from __future__ import annotations

from typing import Protocol

from vision.runtime.status import Report
from vision.types import Result


class Sink(Protocol):
    """Where results and reports end: sockets, files, a test's list."""

    def publish(self, result: Result) -> None:
        """Called by the results thread, in order per camera."""

    def report(self, report: Report) -> None:
        """Called by the main thread, once an interval and at the end."""
