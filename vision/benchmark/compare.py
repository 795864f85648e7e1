"""Two benchmarks beside each other: whether they can be compared at all, and what is faster.

A ratio of figures from two machines, two clocks or two models says nothing about the code, so that is asked first, and
the answer is part of the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from vision.benchmark.document import Bench, Case, Row
from vision.benchmark.samples import Durations

_SAME_RATE: Final = 0.03  # throughput that differs by less is the same, however often it was measured
_SAME_TAIL: Final = 0.15  # p99 that differs by less
_SURE: Final = 3.0  # standard errors: of a table of 50 rows, two would leave two to chance
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
    rate_ratio: float | None  # None: not of half load, whose rate only repeats that of full load
    p50_ratio: float
    p99_ratio: float | None  # None: too few samples to have a p99
    verdict: str  # empty: nothing can be said
    busy: bool = False  # others used the CPU meanwhile, in either file

    @property
    def count(self) -> int:
        """Samples of the file that has fewer."""
        return min(self.a.durations.count, self.b.durations.count)


def comparability(a: Bench, b: Bench) -> Comparability:
    """Whether figures of `a` and `b` may be put beside each other."""
    faults = [
        f"{name}: {one!r} and {other!r}"
        for name, one, other in (
            ("model", a.model, b.model),
            ("model file (sha256)", a.model_sha256[:12], b.model_sha256[:12]),
            ("input", a.input, b.input),
            ("back-end", a.library, b.library),
            ("frame", a.frame, b.frame),
            ("source", a.source or b.source, b.source or a.source),  # older files do not know theirs
        )
        if one != other
    ]
    faults += differences("machine", asdict(a.machine), asdict(b.machine))
    faults += differences("version", a.versions, b.versions)
    return Comparability(tuple(faults), tuple(_doubts(a, b)))


def differences(what: str, a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    """Return the differences of two descriptions, in words."""
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
        busy = [row for row in bench.rows if bench.busy(row)]
        if busy:
            most = max(row.cores_others for row in busy)
            doubts.append(f"{name}: others used up to {most:.1f} cores during {len(busy)} of {len(bench.rows)} rows")
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
    both = tuple(
        _comparison(row, theirs[case], busy=a.busy(row) or b.busy(theirs[case]))
        for case, row in mine.items()
        if case in theirs
    )
    return both, tuple(case for case in mine if case not in theirs), tuple(case for case in theirs if case not in mine)


def _comparison(a: Row, b: Row, *, busy: bool) -> Comparison:
    rate = None if a.case.mode == "half" else _ratio(b.frames_per_s, a.frames_per_s)
    p50 = _ratio(b.durations.p50_ms, a.durations.p50_ms)
    known = a.durations.has_p99 and b.durations.has_p99
    p99 = _ratio(b.durations.p99_ms, a.durations.p99_ms) if known else None
    said = verdict(rate, noise(a, b), p99, by_chance=_overlap(a.durations, b.durations))
    return Comparison(a.case, a, b, rate, p50, p99, said, busy)


def _ratio(b: float, a: float) -> float:
    return b / a if a else math.inf if b else 1.0


def noise(a: Row, b: Row) -> float:
    """How far the ratio of two throughputs may be from 1 by chance: `_SURE` standard errors, at least `_SAME_RATE`."""
    return max(_SAME_RATE, _SURE * math.hypot(_rate_error(a), _rate_error(b)))


def _rate_error(row: Row) -> float:
    """Relative. Older files do not know it: there it is that of the mean duration."""
    times = row.durations
    if row.rate_error is not None:
        return row.rate_error
    return times.std_ms / times.mean_ms / math.sqrt(times.count) if times.count and times.mean_ms else 0.0


def _overlap(a: Durations, b: Durations) -> bool:
    """Whether both may well have the same p99."""
    (low, high), (other_low, other_high) = _p99_range(a), _p99_range(b)
    return low <= other_high and other_low <= high


def _p99_range(of: Durations) -> tuple[float, float]:
    """Older files do not know it: there it is no narrower than this."""
    low = of.p95_ms if of.p99_low_ms is None else of.p99_low_ms
    return low, of.max_ms if of.p99_high_ms is None else of.p99_high_ms


def verdict(rate_ratio: float | None, tolerance: float, p99_ratio: float | None, *, by_chance: bool) -> str:
    """In words. A tail that grew is said even where the throughput is the same, and the other way round.

    Args:
        by_chance: p99 may well be the same.
    """
    said = []
    if rate_ratio is not None:
        said.append({1: "faster", 0: "same", -1: "slower"}[_side(rate_ratio, tolerance)])
    if p99_ratio is not None and not by_chance and (side := _side(p99_ratio, _SAME_TAIL)):
        said.append("p99 worse" if side > 0 else "p99 better")
    return ", ".join(said)


def _side(ratio: float, tolerance: float) -> int:
    """1 and -1: above and below what chance explains."""
    return (ratio > 1 + tolerance) - (ratio < 1 / (1 + tolerance))
