"""Plot of the throughput and the p99 time against the batch size. Requires matplotlib.

Each case has a color, and each precision has a line style. The whole program has separate axes, because its times are
per frame, whereas the times of the network and of the stage are per batch. Bars show parts with a single batch size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final, TypeAlias

from vision.benchmark.document import Bench, Row, check_writable
from vision.benchmark.loops import FEWEST_FOR_P99
from vision.errors import ConfigError
from vision.evaluation.figure_file import write_figure
from vision.version import install_hint, require_package

SUFFIXES: Final = (".svg", ".png", ".pdf")

_STYLES: Final = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (1, 3)), "v"), ((0, (8, 2)), "P"))
"""Line style and marker of each precision. A curve of one point consists only of its marker."""

_WIDTH_IN, _LINES_IN, _BAR_IN, _BARS_IN = 13.0, 5.0, 0.35, 1.2
_WIDE: Final = 20.0  # the axis is logarithmic if the ratio of the largest time to the smallest exceeds this value

Lines: TypeAlias = Mapping[tuple[str, str], tuple[Row, ...]]
"""Rows of each curve, by the name of the case and the precision."""


def series(rows: Sequence[Row]) -> Lines:
    """Group the rows by case and precision, and sort each group by batch size. Omit rows with the mode "alone"."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        case = row.case
        if case.mode != "alone":
            # The name leaves out the number of cameras, because larger batches have more cameras.
            name = f"{case.mode} load" if case.part == "pipeline" else f"{case.part}: {case.setup()}"
            lines.setdefault((name, case.precision), []).append(row)
    return {key: tuple(sorted(line, key=lambda row: row.case.batch)) for key, line in lines.items()}


def check_plot_path(path: Path) -> None:
    """Check that a plot can be written. Call this before a measurement, which can take minutes.

    Raises:
        ConfigError: the name does not end in any of `SUFFIXES`, the file cannot be written, or matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"expected a file that ends in {', '.join(SUFFIXES)}, got {path}", code="plot-format")
    check_writable(path)
    require_package("matplotlib.figure", "--plot needs matplotlib", install_hint("eval"))


def draw(bench: Bench, path: Path) -> None:
    """Draw a benchmark, and write the plot to `path`. The extension of `path` selects the format.

    Raises:
        ConfigError: there is nothing to draw, or the file cannot be written.
        Unavailable: the file cannot currently be written, for example because the disk is full.
    """
    from matplotlib.figure import Figure

    program = bench.rows_of("pipeline")
    parts = [
        ("network and stage", "p99 of a batch", series([row for row in bench.rows if row not in program])),
        ("whole program", "p99 from capture to publication", series(program)),
    ]
    parts = [part for part in parts if part[2]]
    if not parts:
        raise ConfigError("there are no rows to draw", code="nothing-to-draw")
    heights_in = [_LINES_IN if _sizes(lines)[1:] else _BARS_IN + _BAR_IN * len(lines) for *_, lines in parts]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights_in)), layout="constrained")
    styles = dict(zip(bench.precisions, cycle(_STYLES), strict=False))
    grid = figure.subplots(len(parts), 2, squeeze=False, height_ratios=heights_in)
    for (rate_axes, tail_axes), (part, time, lines) in zip(grid, parts, strict=True):
        rate_axes.set_title(f"{part}: throughput, frames/s")
        tail_axes.set_title(f"{part}: {time}, ms")
        if _sizes(lines)[1:]:
            _draw_lines(rate_axes, tail_axes, lines, styles)
        else:
            _draw_bars(rate_axes, tail_axes, lines)
        for axes in (rate_axes, tail_axes):
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
    figure.suptitle(f"{bench.model}, {bench.library}, {bench.machine.gpu or bench.machine.cpu}")
    write_figure(figure, path, "--plot")


def _sizes(lines: Lines) -> list[int]:
    return sorted({row.case.batch for rows in lines.values() for row in rows})


def _draw_bars(rate_axes: Any, tail_axes: Any, lines: Lines) -> None:
    names = [f"{name}, {precision}" for name, precision in lines]
    colors = _colors(names)
    rows = dict(zip(names, (row for (row,) in lines.values()), strict=True))
    rates = {name: row.frames_per_s for name, row in rows.items() if row.case.mode != "half"}
    times = {name: row.durations.p99_ms for name, row in rows.items()}
    for axes, values in ((rate_axes, rates), (tail_axes, times)):
        bars = axes.barh(list(values), list(values.values()), height=0.6, color=[colors[name] for name in values])
        few = {name for name in values if axes is tail_axes and not rows[name].durations.has_p99}
        labels = [
            f"{value:.3g}" + f" ({rows[name].durations.count} samples)" * (name in few)
            for name, value in values.items()
        ]
        axes.bar_label(bars, labels, padding=4)
        axes.set_xlim(0, (1.5 if few else 1.2) * max(values.values()) or 1.0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"batches of {next(iter(rows.values())).case.batch}")


def _draw_lines(rate_axes: Any, tail_axes: Any, lines: Lines, styles: Mapping[str, Any]) -> None:
    colors = _colors(name for name, _ in lines)
    for (name, precision), rows in lines.items():
        batches = [row.case.batch for row in rows]
        line, marker = styles[precision]
        look = {"color": colors[name], "linestyle": line, "marker": marker, "markersize": 5}
        if rows[0].case.mode != "half":  # the rate at half load follows from that at full load
            rate_axes.plot(batches, [row.frames_per_s for row in rows], **look)
        tail_axes.plot(batches, [row.durations.p99_ms for row in rows], **look)
        few = [(row.case.batch, row.durations.p99_ms) for row in rows if not row.durations.has_p99]
        if few:
            tail_axes.plot(*zip(*few, strict=True), **look | {"linestyle": "", "markerfacecolor": "white", "zorder": 3})
    sizes = _sizes(lines)
    for axes in (rate_axes, tail_axes):
        axes.set_xlabel("batch")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
    _scale_tail(tail_axes, [row.durations.p99_ms for rows in lines.values() for row in rows])
    tail_axes.legend(handles=list(_handles(lines, styles)), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _scale_tail(tail_axes: Any, times_ms: Sequence[float]) -> None:
    """Make the time axis logarithmic if the times vary widely, with labels at 1, 2, and 5 times each power of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    measured = [time_ms for time_ms in times_ms if time_ms > 0]
    if measured and max(measured) > _WIDE * min(measured):
        tail_axes.set_yscale("log")
        tail_axes.set_ylim(min(measured) / 1.5, max(measured) * 1.5)
        tail_axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        tail_axes.yaxis.set_minor_locator(NullLocator())
        tail_axes.yaxis.set_major_formatter("{x:g}")


def _handles(lines: Lines, styles: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the entries of the legend: one for the color of each case, and one for the line style of each precision.

    If a case has too few samples for a p99, add an entry that explains its hollow markers.
    """
    from matplotlib.lines import Line2D

    for name, color in _colors(name for name, _ in lines).items():
        yield Line2D([], [], color=color, linewidth=4, label=name)
    for precision in dict.fromkeys(precision for _, precision in lines):
        line, marker = styles[precision]
        yield Line2D([], [], color="black", linestyle=line, marker=marker, markersize=5, label=precision)
    if not all(row.durations.has_p99 for rows in lines.values() for row in rows):
        label = f"fewer than {FEWEST_FOR_P99} samples:\np99 is close to the slowest"
        yield Line2D([], [], color="black", linestyle="", marker="o", markerfacecolor="white", label=label)


def _colors(names: Iterable[str]) -> Mapping[str, Any]:
    """Return a distinct color for each name."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(names))
    few = colormaps["tab10" if len(names) <= 10 else "turbo"].resampled(max(10, len(names)))
    return {name: few(index) for index, name in enumerate(names)}
