"""Report of a run of `vision chaos`, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from vision.benchmark.chaos.latency import split_latencies
from vision.benchmark.chaos.record import Record
from vision.benchmark.chaos.recovery import Recovery, measure_recoveries
from vision.benchmark.chaos.schedule import KINDS
from vision.benchmark.chaos.verdict import Verdict

SCHEMA: Final = "vision.chaos/1"
_SHOWN: Final = 10  # maximum number of problems that are listed per check
_STYLES: Final = {"held": "green", "broken": "red", "not judged": "yellow"}


def all_held(verdicts: Sequence[Verdict]) -> bool:
    """Return True if no check found a problem."""
    return all(verdict.result != "broken" for verdict in verdicts)


def print_report(record: Record, verdicts: Sequence[Verdict], console: Console) -> None:
    """Print the faults by kind, the skipped faults, and the verdicts with their problems."""
    console.print(_faults_table(record, measure_recoveries(record)))
    for kind, reasons in _left_out(record).items():
        for reason, count in reasons.items():
            console.print(f"left out {count} times: {kind}, because {reason}", markup=False, highlight=False)
    table = Table(header_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("check", "result", "evidence"):
        table.add_column(name)
    for verdict in verdicts:
        table.add_row(verdict.name, f"[{_STYLES[verdict.result]}]{verdict.result}", verdict.text)
    console.print(table)
    for verdict in verdicts:
        for problem in verdict.problems[:_SHOWN]:
            console.print(f"{verdict.name}: {problem}", markup=False, highlight=False)
        if len(verdict.problems) > _SHOWN:
            more = len(verdict.problems) - _SHOWN
            console.print(f"{verdict.name}: {more} more problems", markup=False, highlight=False)


def _faults_table(record: Record, recoveries: Sequence[Recovery]) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("fault")
    for name in ("count", "longest recovery", "late"):
        table.add_column(name, justify="right")
    for kind in KINDS:
        count = sum(each.fault.kind == kind and not each.left_out for each in record.faults)
        if count:
            own = [each for each in recoveries if each.fault.fault.kind == kind]
            longest_s = max((each.took_s for each in own if each.took_s is not None), default=0.0)
            table.add_row(kind, str(count), f"{longest_s:.1f} s", str(sum(each.is_late for each in own)))
    return table


def _left_out(record: Record) -> Mapping[str, Mapping[str, int]]:
    """Return the number of skipped faults, by kind and reason."""
    counts: dict[str, dict[str, int]] = {}
    for each in record.faults:
        if each.left_out:
            reasons = counts.setdefault(each.fault.kind, {})
            reasons[each.left_out] = reasons.get(each.left_out, 0) + 1
    return counts


def as_json(record: Record, verdicts: Sequence[Verdict], **arguments: Any) -> dict[str, Any]:
    """Return the report as data that JSON can represent. `arguments` are the options that repeat the run."""
    recoveries = measure_recoveries(record)
    quiet_ms, others_ms = split_latencies(record)
    return {
        "schema": SCHEMA,
        "arguments": arguments,
        "held": all_held(verdicts),
        "checks": [
            {"name": each.name, "result": each.result, "evidence": each.text, "problems": list(each.problems[:100])}
            for each in verdicts
        ],
        "frames": len(record.frames),
        "events": len(record.events),
        "starts": len(record.program_ends),
        "start_s": round(record.start_s, 2),
        "latency_ms": {"without_faults": _percentiles(quiet_ms), "others_during_faults": _percentiles(others_ms)},
        "left_out": _left_out(record),
        "faults": [
            {
                **msgspec.to_builtins(each.fault),
                "target": each.target,
                "left_out": each.left_out,
                "started_s": round((each.started_ns - record.began_ns) / 1e9, 2),
                "ended_s": None if not each.ended_ns else round((each.ended_ns - record.began_ns) / 1e9, 2),
                "recovered_s": _slowest(each.fault.number, recoveries),
            }
            for each in record.faults
        ],
    }


def _percentiles(values_ms: Any) -> dict[str, float] | None:
    if not len(values_ms):
        return None
    p50, p99 = np.percentile(values_ms, (50, 99))
    return {"count": len(values_ms), "p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def _slowest(number: int, recoveries: Sequence[Recovery]) -> float | None:
    """Return the time in seconds from the end of fault `number` until the last camera was back, or None if unknown."""
    taken = [each.took_s for each in recoveries if each.fault.fault.number == number]
    known = [took_s for took_s in taken if took_s is not None]
    return round(max(known), 2) if known and len(known) == len(taken) else None
