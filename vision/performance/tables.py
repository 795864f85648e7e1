"""Figures for people: tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from vision.performance.compare import Comparability, Comparison
from vision.performance.conditions import Clocks
from vision.performance.document import Bench, Case, Row
from vision.performance.plan import Check, Plan

_TIMES: Final = ("mean", "std", "min", "p50", "p95", "p99", "max")
_VERDICTS: Final = {"faster": "green", "slower": "red", "same": "dim"}


def _table(words: Sequence[str], numbers: Sequence[str], title: str = "") -> Table:
    """Without frames: terminals are narrow."""
    table = Table(
        title=title or None, title_justify="left", header_style="bold", box=None, padding=(0, 1), pad_edge=False
    )
    for name in words:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def figure(value: float) -> str:
    """Three digits that count: 0.123, 1.23, 12.3, 123, 1234."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def print_bench(bench: Bench, console: Console) -> None:
    """Everything of a benchmark."""
    for line in heading(bench):
        console.print(line, highlight=False, markup=False)
    for part in ("engine", "stage", "pipeline"):
        rows = [row for row in bench.rows if row.case.part == part]
        if rows:
            console.print(times_table(part, rows))
    console.print(conditions_table(bench.rows))
    for note in bench.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def heading(bench: Bench) -> tuple[str, str]:
    """What was measured, and on what."""
    machine = bench.machine
    parts = (machine.jetson or machine.cpu, f"{machine.cores} cores", machine.gpu)
    mode = (
        f"pictures {bench.picture}",
        f"power mode {machine.power_mode}" if machine.power_mode else "",
        f"governor {machine.governor}" if machine.governor else "",
        f"{bench.host.cores:.1f} of {machine.cores} cores to be had",
    )
    return f"{bench.model}: {bench.backend}; {_joined(parts)}", _joined(mode)


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)


def times_table(part: str, rows: Iterable[Row]) -> Table:
    """Rates and times of one part."""
    what = "ms from capture to publish" if part == "pipeline" else "ms of a batch"
    table = _table(("case",), ("batch", "frames/s", *_TIMES), f"{part}: {what}")
    for row in rows:
        times = row.durations
        numbers = (times.mean_ms, times.std_ms, times.min_ms, times.p50_ms, times.p95_ms, times.p99_ms, times.max_ms)
        table.add_row(
            row.case.short(), str(row.case.batch), figure(row.frames_per_s), *(figure(number) for number in numbers)
        )
    return table


def conditions_table(rows: Iterable[Row]) -> Table:
    """What each measurement took of the machine, and how the machine was."""
    numbers = ("cores", "others", "RSS MiB", "GPU MiB", "offered/s", "dropped/s")
    table = _table(("case",), numbers, "conditions")
    table.add_column("clocks")
    for row in rows:
        pipeline = row.case.part == "pipeline"
        table.add_row(
            str(row.case),
            f"{row.cores_busy:.2f}",
            f"{row.cores_others:.2f}",
            f"{row.rss_mib:.0f}",
            "" if row.device_mib is None else f"{row.device_mib:.0f}",
            figure(row.offered_per_s) if pipeline else "",
            figure(row.dropped_per_s) if pipeline else "",
            clock_text(row.clocks),
        )
    return table


def clock_text(clocks: Clocks) -> str:
    """What is known of the clocks, in a few letters."""
    parts = (
        f"CPU {clocks.cpu_mhz:.0f} MHz" if clocks.cpu_mhz is not None else "",
        f"GPU {clocks.gpu_mhz:.0f} MHz" if clocks.gpu_mhz is not None else "",
        clocks.power_state,
        f"{clocks.gpu_power_w:.0f} W" if clocks.gpu_power_w is not None else "",
        f"{clocks.gpu_temperature_c:.0f} °C" if clocks.gpu_temperature_c is not None else "",
        f"held down: {clocks.throttled}" if clocks.throttled else "",
        f"load {clocks.load:.1f}" if clocks.load is not None else "",
    )
    return _joined(parts)


def print_comparison(
    able: Comparability,
    found: tuple[Sequence[Comparison], Sequence[Case], Sequence[Case]],
    names: tuple[str, str],
    console: Console,
) -> None:
    """Ratios of b over a, and what they mean."""
    comparisons, only_a, only_b = found
    title = f"{names[1]} over {names[0]}" + (" - NOT COMPARABLE" if able.faults else "")
    table = _table(("what",), ("a frames/s", "b frames/s", "ratio", "p50 ratio", "p99 ratio"), title)
    table.add_column("verdict")
    for one in comparisons:
        verdict = "not comparable" if able.faults else one.verdict
        style = "red" if able.faults else _VERDICTS.get(verdict.partition(",")[0], "")
        table.add_row(
            str(one.case),
            figure(one.a.frames_per_s),
            figure(one.b.frames_per_s),
            f"{one.rate_ratio:.3f}",
            f"{one.p50_ratio:.3f}",
            f"{one.p99_ratio:.3f}",
            f"[{style}]{verdict}[/]" if style else verdict,
        )
    console.print(table)
    for name, cases in zip(names, (only_a, only_b), strict=True):
        if cases:
            console.print(f"only in {name}: {'; '.join(map(str, cases))}", highlight=False, markup=False)
    for fault in able.faults:
        console.print(f"not comparable: {fault}", style="red", highlight=False, markup=False)
    for doubt in able.doubts:
        console.print(f"with care: {doubt}", style="yellow", highlight=False, markup=False)


def print_plan(plan: Plan, console: Console) -> None:
    """What will become of a site."""
    table = _table(("camera", "picture"), ("gives /s", "published /s", "dropped /s", "p50 ms", "p99 ms"))
    for demand, camera in zip(plan.demands, plan.forecast.cameras, strict=True):
        table.add_row(
            demand.camera_id,
            f"{demand.width_px}x{demand.height_px} {demand.pixel_format}",
            figure(demand.fps),
            f"{camera.published_per_s:.1f}",
            f"{camera.dropped_per_s:.1f}",
            f"{camera.latency.p50_ms:.1f}",
            f"{camera.latency.p99_ms:.1f}",
        )
    planned = plan.forecast
    table.add_section()
    table.add_row(
        "all",
        "",
        figure(sum(each.fps for each in plan.demands)),
        f"{planned.published_per_s:.1f}",
        f"{planned.dropped_per_s:.1f}",
    )
    console.print(table)
    shares = _table(("resource",), ("asked for",), "")
    shares.add_column("that is")
    for load in plan.loads:
        shares.add_row(load.resource, f"{load.share:.0%}", load.detail)
    console.print(shares)
    costs = plan.costs
    console.print(f"costs: {costs.source}; {costs.detector.name}", highlight=False, markup=False)
    for note in plan.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    console.print(plan.limit, style="bold", highlight=False, markup=False)
    for sentence in plan.advice:
        console.print(f"  {sentence}", highlight=False, markup=False)


def print_checks(found: Sequence[Check], console: Console) -> None:
    """Planned and measured."""
    table = _table(("figure",), ("planned", "with the cores of then", "measured", "error"))
    for check in found:
        error = "" if check.error == float("inf") else f"{check.error:+.0%}"
        table.add_row(check.what, figure(check.planned), figure(check.then), figure(check.measured), error)
    console.print(table)
