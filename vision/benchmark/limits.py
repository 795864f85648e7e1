"""Limits of a deployment: the part that is busiest, and the number of cameras that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from vision.benchmark.pipeline import DeploymentRun

Part: TypeAlias = Literal["detector", "camera thread", "results thread", "inference thread", "CPU"]

MAX_CAMERAS: Final = 256
MAX_STEPS: Final = 6

_FULL: Final = 0.9  # from here on frames wait for each other

_ADVICE: Final[dict[Part, str]] = {
    "detector": "Lower `max_fps`, use a smaller model, or, with TensorRT, precision fp16 and a larger `max_batch`.",
    "camera thread": "Use the camera's smaller stream, or set a lower rate in the camera.",
    "results thread": "Publish MessagePack, raise `score_threshold`, or run two programs with half the cameras each.",
    "inference thread": "Run two programs with half of the cameras each.",
    "CPU": "Use the cameras' smaller streams, set lower rates in the cameras, or decode on the GPU.",
}
_NO_PART: Final = "No single part is full: the threads wait for each other, because one runs Python at a time. "


@dataclass(frozen=True, slots=True)
class Load:
    """How busy one part was. `share`: 0 is idle, 1 is full."""

    part: Part
    share: float
    detail: str


def measure_loads(run: DeploymentRun, parallel: int, cores: int) -> tuple[Load, ...]:
    """Return the load of every part, the fullest first.

    Args:
        parallel: number of batches that the detector computes at the same time.
        cores: number of CPU cores that the process can use.
    """
    busy = sum(run.in_flight[:parallel]) / parallel
    in_use = run.cpu.own + run.cpu.others
    cameras = {name: share for name, share in run.threads.items() if name.startswith("camera-")}
    busiest = max(cameras, key=cameras.__getitem__, default="")
    loads = [
        Load("detector", busy, f"computing for {busy:.0%} of the time"),
        Load("camera thread", cameras.get(busiest, 0.0), f"{busiest.removeprefix('camera-')} is the busiest"),
        Load("results thread", run.threads.get("results", 0.0), "CPU time of tracking, counting and publishing"),
        Load("inference thread", run.threads.get("inference", 0.0), "CPU time of batching and submitting"),
        Load("CPU", in_use / cores, f"{run.cpu.own:.2f} cores used here, {run.cpu.others:.2f} by others, of {cores}"),
    ]
    return tuple(sorted(loads, key=lambda load: -load.share))


def busiest_part(loads: Sequence[Load]) -> Load:
    """Return the fullest part.

    A detector that computes on the CPU fills both, so the CPU comes first only if it is clearly fuller.
    """
    fullest = max(load.share for load in loads)
    detector = next(load for load in loads if load.part == "detector")
    return detector if detector.share >= _FULL * fullest else max(loads, key=lambda load: load.share)


def verdict(loads: Sequence[Load], *, fits: bool) -> str:
    """Return one or two sentences: which part limits, and what helps."""
    busiest = busiest_part(loads)
    if fits:
        return f"All cameras fit. The {busiest.part} is the busiest part, at {busiest.share:.0%}."
    if busiest.share < _FULL:
        return _NO_PART + _ADVICE["inference thread"]
    return f"The {busiest.part} is the bottleneck, at {busiest.share:.0%}. {_ADVICE[busiest.part]}"


@dataclass(frozen=True, slots=True)
class Capacity:
    """Result of a search."""

    fit: int  # largest number of cameras that was tried and fits; 0 if not even one fits
    too_many: int | None  # smallest number that was tried and does not fit; None if all fit

    def __str__(self) -> str:
        if self.too_many is None:
            return f"at least {self.fit}"
        return str(self.fit) if self.too_many == self.fit + 1 else f"{self.fit} to {self.too_many - 1}"


def find_capacity(
    fits: Callable[[int], bool],
    tried: int,
    *,
    tried_fits: bool,
    max_steps: int = MAX_STEPS,
    time_left: Callable[[], bool] = lambda: True,
) -> Capacity:
    """Double or halve the number of cameras until the limit lies between two numbers, then bisect.

    Args:
        fits: runs that number of cameras, and returns True if every camera gets what it asks for.
        tried: a number of cameras whose result is known.
        tried_fits: that result.
        max_steps: maximum number of calls of `fits`.
        time_left: returns False when no further step may start.
    """
    fit, too_many = (tried, None) if tried_fits else (0, tried)
    for _ in range(max_steps):
        count = _next(fit, too_many)
        if count is None or not time_left():
            break
        if fits(count):
            fit = count
        else:
            too_many = count
    return Capacity(fit, too_many)


def _next(fit: int, too_many: int | None) -> int | None:
    """Return the number of cameras to try next; None when the limit is exact."""
    if too_many is None:
        return min(2 * fit, MAX_CAMERAS) if fit < MAX_CAMERAS else None
    if too_many - fit < 2:
        return None
    return too_many // 2 if fit == 0 else (fit + too_many) // 2
