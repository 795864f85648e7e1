"""Figures for people: tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, get_args

from rich.console import Console
from rich.table import Table

from vision.benchmark.compare import Comparability, Comparison
from vision.benchmark.document import BUSY_PART, Bench, Case, Part, Row
from vision.benchmark.plan import Plan

_TIMES: Final = ("mean", "std", "min", "p50", "p95", "p99", "max")
_UNKNOWN: Final = "-"
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


def _case_table(numbers: Sequence[str], title: str) -> Table:
    """Make a table of the cases of one part and precision that fits 80 columns."""
    table = Table(
        title=title, title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("case", no_wrap=True)
    for name in ("batch", *numbers):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _by_part(cases: Iterable[Case]) -> Mapping[tuple[Part, str], tuple[Case, ...]]:
    """Cases by part and precision, in the order of the parts."""
    found: dict[tuple[Part, str], list[Case]] = {}
    for case in cases:
        found.setdefault((case.part, case.precision), []).append(case)
    parts = get_args(Part)
    return {key: tuple(found[key]) for key in sorted(found, key=lambda key: parts.index(key[0]))}


def print_bench(bench: Bench, console: Console) -> None:
    """Everything of a benchmark."""
    for line in heading(bench):
        console.print(line, highlight=False, markup=False)
    rows = {row.case: row for row in bench.rows}
    for what in (times_table, conditions_table):
        for (part, precision), cases in _by_part(rows).items():
            console.print()
            console.print(what(f"{part}, {precision}", bench, [rows[case] for case in cases]))
    if any(map(bench.busy, bench.rows)):
        console.print(f"\n* others used more than {BUSY_PART:.0%} of the machine's cores meanwhile", highlight=False)
    for note in bench.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(f"\n{result_text(bench)}", style="bold", highlight=False, markup=False)


def result_text(bench: Bench) -> str:
    """Return the result in one line: the highest throughput of the stage, or else of the program or the network."""
    rows = next(rows for part in ("stage", "pipeline", "engine") if (rows := bench.rows_of(part)))
    best = max(rows, key=lambda row: row.frames_per_s)
    what = {"stage": "detection stage", "pipeline": "whole program", "engine": "network alone"}[best.case.part]
    return f"this machine: {figure(best.frames_per_s)} frames/s ({what}, {best.case.short()}, batch {best.case.batch})"


def heading(bench: Bench) -> tuple[str, ...]:
    """Return the lines above the tables: model, machine, frames and clocks."""
    machine = bench.machine
    parts = (machine.jetson or machine.cpu, f"{machine.cores} cores", machine.gpu)
    frames = f"frames {bench.frame}" + (f" of {bench.source}" if bench.source else "")
    mode = (
        frames,
        f"power mode {machine.power_mode}" if machine.power_mode else "",
        f"governor {machine.governor}" if machine.governor else "",
        f"{bench.host.cores:.1f} of {machine.cores} cores to be had",
    )
    detector = bench.backend if len(bench.precisions) == 1 else bench.library
    lines = (f"{bench.model}: {detector}; {_joined(parts)}", _joined(mode), clock_text(bench.rows))
    return tuple(line for line in lines if line)


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)


def _setup(bench: Bench, row: Row) -> str:
    return row.case.setup() + "*" * bench.busy(row)


def times_table(name: str, bench: Bench, rows: Sequence[Row]) -> Table:
    """Rates and times of one part."""
    what = "ms from capture to publish" if rows[0].case.part == "pipeline" else "ms of a batch"
    table = _case_table(("n", "frames/s", *_TIMES), f"{name}: {what}")
    for row in rows:
        times = row.durations
        p99 = figure(times.p99_ms) if times.has_p99 else _UNKNOWN
        most = (times.mean_ms, times.std_ms, times.min_ms, times.p50_ms, times.p95_ms)
        table.add_row(
            _setup(bench, row),
            str(row.case.batch),
            str(times.count),
            figure(row.frames_per_s),
            *map(figure, most),
            p99,
            figure(times.max_ms),
        )
    return table


def conditions_table(name: str, bench: Bench, rows: Sequence[Row]) -> Table:
    """Make the table of CPU, memory and objects of one part."""
    cells: dict[str, Callable[[Row], str]] = {
        "cores": lambda row: f"{row.cores_busy:.2f}",
        "others": lambda row: f"{row.cores_others:.2f}",
        "RSS MiB": lambda row: f"{row.rss_mib:.0f}",
    }
    if any(row.device_mib is not None for row in rows):
        cells["GPU MiB"] = lambda row: _UNKNOWN if row.device_mib is None else f"{row.device_mib:.0f}"
    if rows[0].case.part != "engine":
        cells["objects"] = lambda row: f"{row.objects_per_frame:.1f}"
    if rows[0].case.part == "pipeline":
        cells["offered/s"] = lambda row: figure(row.offered_per_s)
        cells["dropped/s"] = lambda row: figure(row.dropped_per_s)
    table = _case_table(tuple(cells), f"{name}: conditions")
    for row in rows:
        table.add_row(_setup(bench, row), str(row.case.batch), *(cell(row) for cell in cells.values()))
    return table


def clock_text(rows: Sequence[Row]) -> str:
    """Return the clocks as one line; a range for values that changed."""
    clocks = [row.clocks for row in rows]
    held = [each.throttled for each in clocks if each.throttled]
    parts = (
        _range("CPU {} MHz", (each.cpu_mhz for each in clocks)),
        _range("GPU {} MHz", (each.gpu_mhz for each in clocks)),
        "/".join(dict.fromkeys(each.power_state for each in clocks if each.power_state)),
        _range("{} W", (each.gpu_power_w for each in clocks)),
        _range("{} °C", (each.gpu_temperature_c for each in clocks)),
        f"held down in {len(held)} of {len(rows)} rows: {'; '.join(dict.fromkeys(held))}" if held else "",
        _range("load {}", (each.load for each in clocks), digits=1),
    )
    return f"clocks: {known}" if (known := _joined(parts)) else ""


def _range(unit: str, values: Iterable[float | None], digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    ends = [f"{end:.{digits}f}" for end in (min(known), max(known))] if known else []
    return unit.format(" to ".join(dict.fromkeys(ends))) if ends else ""


def print_comparison(
    able: Comparability,
    found: tuple[Sequence[Comparison], Sequence[Case], Sequence[Case]],
    names: tuple[str, str],
    console: Console,
) -> None:
    """Ratios of b over a, and what they mean."""
    comparisons, only_a, only_b = found
    title = f"{names[1]} over {names[0]}" + (" - NOT COMPARABLE" if able.faults else "")
    console.print(title, style="bold", highlight=False, markup=False)
    by_case = {one.case: one for one in comparisons}
    for (part, precision), cases in _by_part(by_case).items():
        console.print()
        console.print(_comparison_table(f"{part}, {precision}", [by_case[case] for case in cases], able))
    if any(one.busy for one in comparisons):
        console.print("\n* others used the CPU meanwhile", highlight=False)
    for name, missing in zip(names, (only_a, only_b), strict=True):
        if missing:
            console.print(f"only in {name}: {'; '.join(map(str, missing))}", highlight=False, markup=False)
    for fault in able.faults:
        console.print(f"not comparable: {fault}", style="red", highlight=False, markup=False)
    for doubt in able.doubts:
        console.print(f"with care: {doubt}", style="yellow", highlight=False, markup=False)


def _comparison_table(title: str, comparisons: Iterable[Comparison], able: Comparability) -> Table:
    table = _case_table(("n", "a /s", "b /s", "ratio", "p50", "p99"), f"{title}: ratios of rate and times")
    table.add_column("verdict")
    for one in comparisons:
        verdict = "not comparable" if able.faults else one.verdict or _UNKNOWN
        style = "red" if able.faults else _VERDICTS.get(verdict.partition(",")[0], "")
        table.add_row(
            one.case.setup() + "*" * one.busy,
            str(one.case.batch),
            str(one.count),
            figure(one.a.frames_per_s),
            figure(one.b.frames_per_s),
            _ratio(one.rate_ratio, 3),
            _ratio(one.p50_ratio, 2),
            _ratio(one.p99_ratio, 2),
            f"[{style}]{verdict}[/]" if style else verdict,
        )
    return table


def _ratio(value: float | None, digits: int) -> str:
    return _UNKNOWN if value is None else f"{value:.{digits}f}"


def print_plan(plan: Plan, console: Console) -> None:
    """Print the figures of each camera, the load of each part, and how many cameras fit."""
    table = _table(("camera", "frames"), ("asked", "published", "dropped", "p50 ms", "p99 ms"), "frames/s by camera")
    for camera in plan.cameras:
        table.add_row(
            camera.camera,
            f"{camera.width_px}x{camera.height_px}",
            figure(camera.asked_fps),
            figure(camera.published_fps),
            _dropped(camera.dropped_fps),
            figure(camera.latency.p50_ms),
            figure(camera.latency.p99_ms),
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        figure(plan.asked_fps),
        figure(plan.published_fps),
        _dropped(plan.dropped_fps),
        figure(plan.latency.p50_ms),
        figure(plan.latency.p99_ms),
    )
    console.print(table)
    console.print()
    shares = _table(("part",), ("busy",))
    shares.add_column("")
    for load in plan.loads:
        shares.add_row(load.part, f"{load.share:.0%}", load.detail)
    console.print(shares)
    memory = f"memory {plan.rss_mib:.0f} MiB" + (f", GPU {plan.device_mib:.0f} MiB" if plan.device_mib else "")
    lines = [
        f"\ndetector: {plan.detector}; {memory}; {plan.objects_per_frame:.1f} objects per frame",
        *(f"{camera}: {text}" for text, camera in _stand_in_text(plan).items()),
        *(f"note: {note}" for note in plan.notes),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    for sentence in (plan.verdict, f"Cameras of this kind that fit on this machine: {plan.capacity}."):
        console.print(sentence, style="bold", highlight=False, markup=False)


def _dropped(by_reason: Mapping[str, float]) -> str:
    """Return rates by reason, such as ``3.2 superseded``."""
    return ", ".join(f"{figure(rate)} {reason}" for reason, rate in by_reason.items()) or "0"


def _stand_in_text(plan: Plan) -> Mapping[str, str]:
    """Return the cameras of each kind of stand-in."""
    cameras: dict[str, list[str]] = {}
    for camera in plan.cameras:
        cameras.setdefault(camera.stand_in, []).append(camera.camera)
    return {kind: ", ".join(names) for kind, names in cameras.items()}
