"""The stage protocols: what a pipeline runs on each result between the detector and the sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

from vision.types import Frame, Result

PlainStage: TypeAlias = Callable[[Result], Result]


@runtime_checkable
class PixelStage(Protocol):
    """A stage that looks at the frame too."""

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Called by the results thread. `frame` is valid until this returns: what is to last is copied out of it."""


Stage: TypeAlias = PlainStage | PixelStage


@runtime_checkable
class Counting(Protocol):
    """A detector, stage or sink that counts something which an operator should see."""

    def counters(self) -> Mapping[str, int]:
        """By name, such as ``cascade.skipped``, since the start. Called by the main thread."""


def _ignore_frame(stage: PlainStage) -> Callable[[Result, Frame], Result]:
    return lambda result, _frame: stage(result)


def step_of(stage: Stage) -> Callable[[Result, Frame], Result]:
    """Return the function that applies `stage` to a result and its frame."""
    return stage.with_frame if isinstance(stage, PixelStage) else _ignore_frame(stage)
