"""Two benchmarks beside each other: whether they can be compared at all, and what is faster.

A ratio of figures from two machines, two clocks or two models says nothing about the code, so that is asked first, and
the answer is part of the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from vision.performance.document import Bench, Case, Row

_SAME_RATE: Final = 0.03  # throughput that differs by less is the same, however often it was measured
_SAME_TAIL: Final = 0.15  # p99 that differs by less
_OTHER_CLOCK: Final = 0.05
_BUSY: Final = 0.85  # of its cores; with less, others worked on the machine too
_NOT_COMPARED: Final = frozenset({"vision"})  # versions that may differ: what a comparison is about


@dataclass(frozen=True, slots=True)
class Comparability:
    """`faults`: not comparable, because. `doubts`: comparable, but."""

    faults: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case in both files. Ratios are b over a: throughput above 1 is better, times below 1 are."""

    case: Case
    a: Row
    b: Row
    rate_ratio: float
    p50_ratio: float
    p99_ratio: float
    verdict: str


def comparability(a: Bench, b: Bench) -> Comparability:
    """Whether figures of `a` and `b` may be put beside each other."""
    faults = [
        f"{name}: {one!r} and {other!r}"
        for name, one, other in (
            ("model", a.model, b.model),
            ("model file (sha256)", a.model_sha256[:12], b.model_sha256[:12]),
            ("input", a.input, b.input),
            ("back-end", _without_precision(a.backend), _without_precision(b.backend)),
            ("picture", a.picture, b.picture),
        )
        if one != other
    ]
    faults += differences("machine", asdict(a.machine), asdict(b.machine))
    faults += differences("version", a.versions, b.versions)
    return Comparability(tuple(faults), tuple(_doubts(a, b)))


def _without_precision(backend: str) -> str:
    """The rows say their precision themselves, and the name is that of the detector that was opened last."""
    return ", ".join(
        part for part in backend.split(", ") if part not in ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")
    )


def differences(what: str, a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    """What two descriptions have otherwise, in words."""
    return [
        f"{what}, {name}: {a.get(name, 'none')} and {b.get(name, 'none')}"
        for name in dict.fromkeys((*a, *b))
        if name not in _NOT_COMPARED and a.get(name) != b.get(name)
    ]


def _doubts(a: Bench, b: Bench) -> list[str]:
    doubts = []
    for name, bench in (("the first", a), ("the second", b)):
        cores = bench.machine.cores
        if bench.host.cores < _BUSY * cores:
            doubts.append(f"{name}: others used the CPU: {bench.host.cores:.1f} of {cores} cores could be had")
        reasons = sorted({row.clocks.throttled for row in bench.rows if row.clocks.throttled})
        if reasons:
            doubts.append(f"{name}: the GPU's clock was held down by {'; '.join(reasons)}")
    for field, what in (("gpu_mhz", "GPU"), ("gpu_memory_mhz", "GPU memory"), ("cpu_mhz", "CPU")):
        one, other = _greatest(a, field), _greatest(b, field)
        if one and other and abs(one / other - 1) > _OTHER_CLOCK:
            doubts.append(f"{what} clock: {one:.0f} and {other:.0f} MHz")
    return doubts


def _greatest(bench: Bench, field: str) -> float:
    return max((getattr(row.clocks, field) or 0.0 for row in bench.rows), default=0.0)


def compare(a: Bench, b: Bench) -> tuple[tuple[Comparison, ...], tuple[Case, ...], tuple[Case, ...]]:
    """Every case of both files, in the order of `a`; the cases that only `a` has, and those that only `b` has."""
    mine = {row.case: row for row in a.rows}
    theirs = {row.case: row for row in b.rows}
    both = tuple(_comparison(row, theirs[case]) for case, row in mine.items() if case in theirs)
    return both, tuple(case for case in mine if case not in theirs), tuple(case for case in theirs if case not in mine)


def _comparison(a: Row, b: Row) -> Comparison:
    rate = _ratio(b.frames_per_s, a.frames_per_s)
    p50 = _ratio(b.durations.p50_ms, a.durations.p50_ms)
    p99 = _ratio(b.durations.p99_ms, a.durations.p99_ms)
    return Comparison(a.case, a, b, rate, p50, p99, verdict(rate, p99, noise(a, b)))


def _ratio(b: float, a: float) -> float:
    return b / a if a else math.inf if b else 1.0


def noise(a: Row, b: Row) -> float:
    """How far the ratio of two throughputs may be from 1 by chance: twice the standard error, at least `_SAME_RATE`."""
    parts = [
        (row.durations.std_ms / row.durations.mean_ms) ** 2 / row.durations.count
        for row in (a, b)
        if row.durations.count and row.durations.mean_ms
    ]
    return max(_SAME_RATE, 2 * math.sqrt(sum(parts)))


def verdict(rate_ratio: float, p99_ratio: float, tolerance: float) -> str:
    """In words. A tail that grew is said even where the throughput is the same, and the other way round."""
    if rate_ratio > 1 + tolerance:
        said = "faster"
    elif rate_ratio < 1 / (1 + tolerance):
        said = "slower"
    else:
        said = "same"
    if p99_ratio > 1 + _SAME_TAIL:
        return f"{said}, p99 worse"
    if p99_ratio < 1 / (1 + _SAME_TAIL):
        return f"{said}, p99 better"
    return said
