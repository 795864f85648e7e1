"""The part of a deployment that limits it: how busy each part was during a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from vision.benchmark.pipeline import DeploymentRun

Part: TypeAlias = Literal["detector", "camera thread", "results thread", "inference thread", "CPU"]

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
