"""Throughput and p99 over batch size, as a frame. Needs matplotlib.

A colour is a case and a style of line a precision. The program has axes of its own, since its milliseconds are of a
frame and those of network and stage of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from vision.benchmark.document import Bench, Row, check_writable
from vision.benchmark.samples import FEWEST_FOR_P99
from vision.errors import ConfigError, VisionError
from vision.version import install_hint

SUFFIXES: Final = (".svg", ".png", ".pdf")

_STYLES: Final = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (1, 3)), "v"), ((0, (8, 2)), "P"))
"""Line and marker of each precision; a line of one point is none."""

_WIDTH_IN, _HEIGHT_IN = 13.0, 5.0  # of one line of axes, with its legend


def series(rows: Sequence[Row]) -> Mapping[tuple[str, str], tuple[Row, ...]]:
    """Rows that differ in their batch size alone, in its order, by case and precision."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        case = row.case
        if case.mode != "alone":
            # More cameras for greater batches: of the program, the number of lanes is no part of what stays.
            name = f"{case.mode} load" if case.part == "pipeline" else f"{case.part}: {case.setup()}"
            found.setdefault((name, case.precision), []).append(row)
    return {key: tuple(sorted(each, key=lambda row: row.case.batch)) for key, each in found.items()}


def check_plot_path(path: Path) -> None:
    """Before minutes are spent on measuring.

    Raises:
        ConfigError: not a frame's name, or it cannot be written.
        VisionError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"expected a file that ends in {', '.join(SUFFIXES)}, got {path}")
    check_writable(path)
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise VisionError(f"--plot needs matplotlib: {error}", hint=install_hint("eval")) from error
    mpl.use("Agg")


def draw(bench: Bench, path: Path) -> None:
    """Write the frame; its name's ending says in which format.

    Raises:
        VisionError: as of `check_plot_path`; or there is nothing to draw.
    """
    check_plot_path(path)
    from matplotlib.figure import Figure

    program = tuple(row for row in bench.rows if row.case.part == "pipeline")
    parts = [
        ("network and stage", "p99 of a batch", tuple(row for row in bench.rows if row not in program)),
        ("whole program", "p99 from capture to publish", program),
    ]
    parts = [part for part in parts if part[2]]
    if not parts:
        raise ConfigError("there are no rows to draw")
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN * len(parts)), layout="constrained")
    styles = dict(zip(bench.precisions, cycle(_STYLES), strict=False))
    for axes, (what, time, rows) in zip(figure.subplots(len(parts), 2, squeeze=False), parts, strict=True):
        axes[0].set_title(f"{what}: throughput, frames/s")
        axes[1].set_title(f"{what}: {time}, ms")
        _draw(axes[0], axes[1], series(rows), styles)
    figure.suptitle(f"{bench.model}, {bench.library}, {bench.machine.gpu or bench.machine.cpu}")
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _draw(rate: Any, tail: Any, lines: Mapping[tuple[str, str], tuple[Row, ...]], styles: Mapping[str, Any]) -> None:
    """Two axes of one part."""
    names = list(dict.fromkeys(name for name, _ in lines))
    for (name, precision), rows in lines.items():
        batches = [row.case.batch for row in rows]
        look = {
            "color": _colour(names.index(name), len(names)),
            "linestyle": styles[precision][0],
            "marker": styles[precision][1],
            "markersize": 5,
        }
        if rows[0].case.mode != "half":  # its rate only repeats that of full load
            rate.plot(batches, [row.frames_per_s for row in rows], **look)
        tail.plot(batches, [row.durations.p99_ms for row in rows], **look)
        few = [(row.case.batch, row.durations.p99_ms) for row in rows if not row.durations.has_p99]
        if few:
            tail.plot(*zip(*few, strict=True), **look | {"linestyle": "", "markerfacecolor": "white", "zorder": 3})
    sizes = sorted({row.case.batch for rows in lines.values() for row in rows})
    for axes in (rate, tail):
        axes.set_xlabel("batch")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    rate.set_ylim(bottom=0)
    _scale_tail(tail, [row.durations.p99_ms for rows in lines.values() for row in rows])
    tail.legend(handles=_handles(lines, styles), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _scale_tail(tail: Any, times_ms: Sequence[float]) -> None:
    """Logarithmic, with plain numbers at 1, 2 and 5, and wide enough for some of them."""
    from matplotlib.ticker import LogLocator, NullLocator

    measured = [time_ms for time_ms in times_ms if time_ms > 0]
    if measured:
        tail.set_yscale("log")
        tail.set_ylim(min(measured) / 1.5, max(measured) * 1.5)
        tail.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        tail.yaxis.set_minor_locator(NullLocator())
        tail.yaxis.set_major_formatter("{x:g}")


def _handles(lines: Mapping[tuple[str, str], tuple[Row, ...]], styles: Mapping[str, Any]) -> list[Any]:
    """Draw the legend: each colour, each style, and what a marker without filling is."""
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(name for name, _ in lines))
    handles = [
        Line2D([], [], color=_colour(index, len(names)), linewidth=4, label=name) for index, name in enumerate(names)
    ]
    for precision in dict.fromkeys(precision for _, precision in lines):
        line, marker = styles[precision]
        handles.append(Line2D([], [], color="black", linestyle=line, marker=marker, markersize=5, label=precision))
    if not all(row.durations.has_p99 for each in lines.values() for row in each):
        label = f"fewer than {FEWEST_FOR_P99} samples:\nabout the slowest of them"
        handles.append(Line2D([], [], color="black", linestyle="", marker="o", markerfacecolor="white", label=label))
    return handles


def _colour(index: int, count: int) -> Any:
    """One of `count` that can be told apart."""
    from matplotlib import colormaps

    return colormaps["tab10"](index) if count <= 10 else colormaps["turbo"](index / (count - 1))
