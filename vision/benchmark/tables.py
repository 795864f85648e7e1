"""Tables of benchmarks, comparisons, and plans for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar, get_args

from rich.console import Console
from rich.table import Table

from vision.benchmark.compare import Comparability, Comparison
from vision.benchmark.document import BUSY_PART, Bench, Case, Part, Row
from vision.benchmark.loops import PAUSE_S
from vision.benchmark.plan import CameraPlan, Plan

_UNKNOWN: Final = "-"
_VERDICTS: Final = {"faster": "green", "slower": "red", "same": "dim"}
_Row = TypeVar("_Row", Row, Comparison)

PARTS: Final[Mapping[Part, str]] = {
    "engine": "network alone",
    "stage": "detection stage",
    "pipeline": "whole program",
}
_LEGENDS: Final[Mapping[Part, str]] = {
    "engine": "streams: batches computed in parallel; graph: as a CUDA graph",
    "stage": f"in flight: batches submitted together; paused: one at a time, {PAUSE_S * 1e3:.0f} ms apart",
    "pipeline": "full: the highest throughput; half: half of that rate",
}


def format_number(value: float) -> str:
    """Return a number as text with about three significant digits, without an exponent: 0.123, 12.3, 1234."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return an empty table without borders: text columns with the headings `words`, and number columns `numbers`."""
    table = Table(header_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in words:
        table.add_column(name, no_wrap=name == "case")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print_table(console: Console, title: str, table: Table, legend: str = "") -> None:
    _print_plain(console, f"\n{title}", style="italic")
    console.print(table)
    if legend:
        _print_plain(console, legend, style="dim")


def _print_plain(console: Console, *lines: str, style: str = "") -> None:
    for line in lines:
        console.print(line, style=style, highlight=False, markup=False)


def _by_part(rows: Iterable[_Row]) -> Mapping[tuple[Part, str], Sequence[_Row]]:
    """Group the rows by part and precision. Sort the groups in the order of `Part`."""
    groups: dict[tuple[Part, str], list[_Row]] = {}
    for row in rows:
        groups.setdefault((row.case.part, row.case.precision), []).append(row)
    parts = get_args(Part)
    return {key: groups[key] for key in sorted(groups, key=lambda key: parts.index(key[0]))}


def print_bench(bench: Bench, console: Console) -> None:
    """Print the tables and notes of a benchmark and, if there are rows, `result_text` as the last line."""
    _print_plain(console, *heading(bench))
    groups = _by_part(bench.rows)
    for (part, precision), group in groups.items():
        unit = "from capture to publication" if part == "pipeline" else "per batch"
        title = f"{PARTS[part]}, {precision}: throughput, and times in ms {unit}"
        _print_table(console, title, _rows_table(bench, group, _TIMES), _LEGENDS[part])
    for (part, precision), group in groups.items():
        title = f"{PARTS[part]}, {precision}: CPU cores in use, and memory"
        _print_table(console, title, _rows_table(bench, group, _conditions(group)))
    if any(map(bench.busy, bench.rows)):
        _print_plain(console, f"\n* in this row, other programs used more than {BUSY_PART:.0%} of the machine's cores")
    _print_plain(console, *(f"note: {note}" for note in bench.notes))
    if bench.rows:
        _print_plain(console, f"\n{result_text(bench)}", style="bold")


def result_text(bench: Bench) -> str:
    """Return the throughput of the stage as one line. `bench` must have rows.

    If the stage was not measured, use the throughput of the program. If the program was not measured either, use the
    throughput of the network.
    """
    rows = next(rows for part in ("stage", "pipeline", "engine") if (rows := bench.rows_of(part)))
    rows = tuple(row for row in rows if row.case.mode not in ("alone", "half")) or rows
    slowest, best = (end(rows, key=lambda row: row.frames_per_s) for end in (min, max))
    rates = " to ".join(dict.fromkeys(format_number(row.frames_per_s) for row in (slowest, best)))
    case = best.case
    return f"this machine: {rates} frames/s ({PARTS[case.part]}; best: {case.short()}, batch {case.batch})"


def heading(bench: Bench) -> tuple[str, ...]:
    """Return the lines above the tables, which describe the model, the machine, the frames, and the clocks."""
    machine = bench.machine
    parts = (machine.jetson or machine.cpu, f"{machine.cores} cores", machine.gpu)
    mode = (
        f"frames {bench.frame} of {bench.source}",
        f"power mode {machine.power_mode}" if machine.power_mode else "",
        f"governor {machine.governor}" if machine.governor else "",
        f"{bench.cores_available:.1f} of {machine.cores} cores available",
    )
    detector = bench.backend if len(bench.precisions) == 1 else bench.library
    lines = (f"{bench.model}: {detector}; {_joined(parts)}", _joined(mode), clock_text(bench.rows))
    return tuple(line for line in lines if line)


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)


def _case(case: Case, busy: bool) -> tuple[str, str]:
    return case.setup() + "*" * busy, str(case.batch)


_Cells: TypeAlias = Mapping[str, Callable[[Row], str]]
"""For each column heading, a function that returns the text of a row in that column."""

_TIMES: Final[_Cells] = {
    "n": lambda row: str(row.durations.count),
    "frames/s": lambda row: format_number(row.frames_per_s),
    "mean": lambda row: format_number(row.durations.mean_ms),
    "std": lambda row: format_number(row.durations.std_ms),
    "min": lambda row: format_number(row.durations.min_ms),
    "p50": lambda row: format_number(row.durations.p50_ms),
    "p95": lambda row: format_number(row.durations.p95_ms),
    "p99": lambda row: format_number(row.durations.p99_ms) if row.durations.has_p99 else _UNKNOWN,
    "max": lambda row: format_number(row.durations.max_ms),
}


def _rows_table(bench: Bench, rows: Sequence[Row], cells: _Cells) -> Table:
    table = _table(("case",), ("batch", *cells))
    for row in rows:
        table.add_row(*_case(row.case, bench.busy(row)), *(cell(row) for cell in cells.values()))
    return table


def _conditions(rows: Sequence[Row]) -> _Cells:
    """Return the columns for the CPU use, the memory, and the objects of one part. `rows` must not be empty."""
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
        cells["offered/s"] = lambda row: format_number(row.offered_per_s)
        cells["dropped/s"] = lambda row: format_number(row.dropped_per_s)
    return cells


def clock_text(rows: Sequence[Row]) -> str:
    """Return the clocks of the rows as one line, with a range for each changed value, or "" if they are unknown."""
    clocks = [row.clocks for row in rows]
    reasons = [clock.throttled for clock in clocks if clock.throttled]
    parts = (
        _range("CPU {} MHz", (clock.cpu_mhz for clock in clocks)),
        _range("GPU {} MHz", (clock.gpu_mhz for clock in clocks)),
        "/".join(dict.fromkeys(clock.power_state for clock in clocks if clock.power_state)),
        _range("{} W", (clock.gpu_power_w for clock in clocks)),
        _range("{} °C", (clock.gpu_temperature_c for clock in clocks)),
        f"throttled in {len(reasons)} of {len(rows)} rows: {'; '.join(dict.fromkeys(reasons))}" if reasons else "",
        _range("load {}", (clock.load for clock in clocks), digits=1),
    )
    return f"clocks: {text}" if (text := _joined(parts)) else ""


def _range(unit: str, values: Iterable[float | None], digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    ends = [f"{end:.{digits}f}" for end in (min(known), max(known))] if known else []
    return unit.format(" to ".join(dict.fromkeys(ends))) if ends else ""


def print_comparison(
    comparability: Comparability,
    compared: tuple[Sequence[Comparison], Sequence[Case], Sequence[Case]],
    names: tuple[str, str],
    console: Console,
) -> None:
    """Print the ratios (b divided by a), the verdicts, and the reasons that prevent or limit a comparison.

    `compared` is the result of `compare`. `names` are the names of the files a and b.
    """
    comparisons, only_a, only_b = compared
    title = f"{names[1]} compared with {names[0]}" + (" - NOT COMPARABLE" if comparability.faults else "")
    _print_plain(console, title, style="bold")
    for (part, precision), group in _by_part(comparisons).items():
        title = f"{PARTS[part]}, {precision}: ratios of throughput and times"
        _print_table(console, title, _comparison_table(group, comparability))
    if any(comparison.busy for comparison in comparisons):
        _print_plain(console, "\n* in this row, other programs used the CPU in at least one of the files")
    for name, missing in zip(names, (only_a, only_b), strict=True):
        if missing:
            _print_plain(console, f"only in {name}: {'; '.join(map(str, missing))}")
    _print_plain(console, *(f"not comparable: {fault}" for fault in comparability.faults), style="red")
    _print_plain(console, *(f"compare with care: {doubt}" for doubt in comparability.doubts), style="yellow")


def _comparison_table(comparisons: Iterable[Comparison], comparability: Comparability) -> Table:
    table = _table(("case",), ("batch", "n", "a /s", "b /s", "ratio", "p50", "p99"))
    table.add_column("verdict")
    for row in comparisons:
        verdict = "not comparable" if comparability.faults else row.verdict or _UNKNOWN
        style = "red" if comparability.faults else _VERDICTS.get(verdict.partition(",")[0], "")
        rates = format_number(row.a.frames_per_s), format_number(row.b.frames_per_s), _ratio(row.rate_ratio, 3)
        times = _ratio(row.p50_ratio, 2), _ratio(row.p99_ratio, 2)
        styled = f"[{style}]{verdict}[/]" if style else verdict
        table.add_row(*_case(row.case, row.busy), str(row.count), *rates, *times, styled)
    return table


def _ratio(value: float | None, digits: int) -> str:
    return _UNKNOWN if value is None else f"{value:.{digits}f}"


_OWNERS: Final = {"GPU": " of the GPU", "CPU and GPU": ", shared by CPU and GPU", "CPU": ""}


def print_plan(plan: Plan, console: Console) -> None:
    """Print the rates and latencies of each camera, the load of each part, the verdict, and the capacity."""
    table = _table(("camera", "frames"), ("requested", "published", "dropped", "p50 ms", "p99 ms"))
    for camera in plan.cameras:
        table.add_row(camera.camera, f"{camera.width_px}x{camera.height_px}", *_rates(camera))
    table.add_section()
    table.add_row("all", "", *_rates(plan))
    memory = f"memory {plan.rss_mib:.0f} MiB" + (f", GPU {plan.device_mib:.0f} MiB" if plan.device_mib else "")
    _print_plain(console, f"detector: {plan.detector}; {memory}; {plan.objects_per_frame:.1f} objects per frame")
    if plan.memory is not None:
        left = f"{plan.memory.free_mib:.0f} of {plan.memory.total_mib:.0f} MiB{_OWNERS[plan.memory.owner]}"
        _print_plain(console, f"memory left for a language model: {left}")
    if plan.language is not None and plan.language.durations.count:
        times = plan.language.durations
        text = f"{times.count} answers during the runs, p50 {times.p50_ms:.0f} ms, p95 {times.p95_ms:.0f} ms"
        _print_plain(console, f"language model, always busy: {text}")
    _print_table(console, "frames/s by camera", table)
    shares = _table(("part",), ("busy",))
    shares.add_column("")
    for load in plan.loads:
        shares.add_row(load.part, f"{load.share:.0%}", load.detail)
    _print_table(console, "load by part", shares)
    cameras: dict[str, list[str]] = {}  # ids of the cameras with the same stand-in, by its description
    for camera in plan.cameras:
        cameras.setdefault(camera.stand_in, []).append(camera.camera)
    console.print()
    _print_plain(console, *(f"{', '.join(names)}: {stand_in}" for stand_in, names in cameras.items()))
    _print_plain(console, *(f"note: {note}" for note in plan.notes))
    _print_plain(
        console, plan.verdict, f"Cameras of this kind that fit on this machine: {plan.capacity}.", style="bold"
    )


def _rates(of: CameraPlan | Plan) -> tuple[str, ...]:
    dropped = ", ".join(f"{format_number(rate)} {reason}" for reason, rate in of.dropped_fps.items()) or "0"
    rates = format_number(of.asked_fps), format_number(of.published_fps), dropped
    return *rates, format_number(of.latency.p50_ms), format_number(of.latency.p99_ms)
