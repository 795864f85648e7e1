"""The stage protocols: the functions and objects that a pipeline applies to each result, between detector and sinks.

A stage is a function from `Result` to `Result`. A stage that also needs the frame is an object with the method
`with_frame` instead. The results thread calls both, in order per camera.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

from vision.types import Frame, Result


@runtime_checkable
class PixelStage(Protocol):
    """A stage that also looks at the frame."""

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Return the result with the stage's additions. `frame` is valid until then: copy what must last longer."""


Stage: TypeAlias = Callable[[Result], Result] | PixelStage


@runtime_checkable
class HasCounters(Protocol):
    """A detector, stage or sink that counts something that an operator needs to see."""

    def counters(self) -> Mapping[str, int]:
        """Return counters since the start by name, such as ``cascade.skipped``. The main thread calls this."""
