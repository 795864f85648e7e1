"""Comparison of two benchmarks, and a check whether they are comparable.

A ratio of measurements from different machines, clocks, or models does not show the effect of a code change. Therefore,
the comparison reports all such differences together with the ratios.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from vision.benchmark.document import Bench, Case, Row

_SAME_RATE: Final = 0.03  # throughputs that differ by less count as equal, even with many samples
_SAME_TAIL: Final = 0.15  # p99 times that differ by less count as equal
_SURE: Final = 3.0  # tolerated number of standard errors; with 2, chance would change the verdict of 2 rows in 50
_OTHER_CLOCK: Final = 0.05  # relative difference from which clocks are reported as different
_BUSY: Final = 0.85  # if a smaller part of the cores was available, other programs used the CPU
_NOT_COMPARED: Final = frozenset({"vision"})  # versions that may differ, because a comparison is about them


@dataclass(frozen=True, slots=True)
class Comparability:
    """Reasons that prevent a comparison (`faults`), or that limit its validity (`doubts`)."""

    faults: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of one setup (`case`) that both benchmark files contain, such as one part, precision, and batch size.

    Ratios are the value in file b divided by the value in file a.
    """

    case: Case
    a: Row
    b: Row
    rate_ratio: float | None  # None for half load, because its rate is half of the rate at full load
    p50_ratio: float
    p99_ratio: float | None  # None if either file has too few samples for a p99
    verdict: str  # empty if no verdict is possible
    busy: bool = False  # True if other programs used the CPU during this case in either file

    @property
    def count(self) -> int:
        """Number of samples of this case in the file with fewer samples."""
        return min(self.a.durations.count, self.b.durations.count)


def comparability(a: Bench, b: Bench) -> Comparability:
    """Return all reasons that prevent a comparison of two benchmarks, and all reasons that limit its validity."""
    faults = [
        f"{name}: {first!r} and {second!r}"
        for name, first, second in (
            ("model", a.model, b.model),
            ("model file (sha256)", a.model_sha256[:12], b.model_sha256[:12]),
            ("input", a.input, b.input),
            ("back-end", a.library, b.library),
            ("frame", a.frame, b.frame),
            ("source", a.source, b.source),
        )
        if first != second
    ]
    faults += _differences("machine", asdict(a.machine), asdict(b.machine))
    faults += _differences("version", a.versions, b.versions)
    return Comparability(tuple(faults), tuple(_doubts(a, b)))


def _differences(kind: str, a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    return [
        f"{kind}, {name}: {a.get(name, 'none')} and {b.get(name, 'none')}"
        for name in dict.fromkeys((*a, *b))
        if name not in _NOT_COMPARED and a.get(name) != b.get(name)
    ]


def _doubts(a: Bench, b: Bench) -> Iterator[str]:
    for name, bench in (("first file", a), ("second file", b)):
        cores, available = bench.machine.cores, bench.cores_available
        if available < _BUSY * cores:
            yield f"{name}: other programs used the CPU, so only {available:.1f} of {cores} cores were available"
        busy = [row.cores_others for row in bench.rows if bench.busy(row)]
        if busy:
            rows = f"{len(busy)} of {len(bench.rows)} rows"
            yield f"{name}: other programs used up to {max(busy):.1f} cores during {rows}"
        reasons = sorted({row.clocks.throttled for row in bench.rows if row.clocks.throttled})
        if reasons:
            yield f"{name}: the GPU was throttled ({'; '.join(reasons)})"
    for field, device in (("gpu_mhz", "GPU"), ("gpu_memory_mhz", "GPU memory"), ("cpu_mhz", "CPU")):
        first, second = (max((getattr(row.clocks, field) or 0.0 for row in of.rows), default=0.0) for of in (a, b))
        if first and second and abs(first / second - 1) > _OTHER_CLOCK:
            yield f"{device} clock: {first:.0f} and {second:.0f} MHz"


def compare(a: Bench, b: Bench) -> tuple[tuple[Comparison, ...], tuple[Case, ...], tuple[Case, ...]]:
    """Compare two files. Return the comparisons in the order of `a`, the cases only in `a`, and the cases only in `b`.

    A comparison pairs the rows with the same case.
    """
    a_rows, b_rows = ({row.case: row for row in bench.rows} for bench in (a, b))
    both = tuple(
        _comparison(row, b_rows[case], busy=a.busy(row) or b.busy(b_rows[case]))
        for case, row in a_rows.items()
        if case in b_rows
    )
    return both, tuple(case for case in a_rows if case not in b_rows), tuple(c for c in b_rows if c not in a_rows)


def _comparison(a: Row, b: Row, *, busy: bool) -> Comparison:
    rate = None if a.case.mode == "half" else _ratio(b.frames_per_s, a.frames_per_s)
    p50 = _ratio(b.durations.p50_ms, a.durations.p50_ms)
    known = a.durations.has_p99 and b.durations.has_p99
    p99 = _ratio(b.durations.p99_ms, a.durations.p99_ms) if known else None
    by_chance = a.durations.p99_low_ms <= b.durations.p99_high_ms and b.durations.p99_low_ms <= a.durations.p99_high_ms
    return Comparison(a.case, a, b, rate, p50, p99, verdict(rate, noise(a, b), p99, by_chance=by_chance), busy)


def _ratio(b: float, a: float) -> float:
    return b / a if a else math.inf if b else 1.0


def noise(a: Row, b: Row) -> float:
    """Return the deviation from 1 that the ratio of two throughputs can have by chance, but at least `_SAME_RATE`."""
    return max(_SAME_RATE, _SURE * math.hypot(a.rate_error or 0.0, b.rate_error or 0.0))


def verdict(rate_ratio: float | None, tolerance: float, p99_ratio: float | None, *, by_chance: bool) -> str:
    """Return the verdict in words, such as "slower, p99 worse", or an empty string if there is none.

    Args:
        rate_ratio: ratio of the throughputs, or None if the throughputs are not compared.
        tolerance: the largest deviation from 1 at which the throughputs count as equal.
        p99_ratio: ratio of the p99 times, or None if they are not compared.
        by_chance: True if the p99 times can differ by chance, so that `p99_ratio` is ignored.
    """
    words = []
    if rate_ratio is not None:
        words.append({1: "faster", 0: "same", -1: "slower"}[_side(rate_ratio, tolerance)])
    if p99_ratio is not None and not by_chance and (side := _side(p99_ratio, _SAME_TAIL)):
        words.append("p99 worse" if side > 0 else "p99 better")
    return ", ".join(words)


def _side(ratio: float, tolerance: float) -> int:
    """Return 1 if a ratio is above 1 + `tolerance`, -1 if it is below 1 / (1 + `tolerance`), and otherwise 0."""
    return (ratio > 1 + tolerance) - (ratio < 1 / (1 + tolerance))
