"""Throughput and p99 over batch size, as a picture. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from vision.errors import ConfigError, VisionError
from vision.performance.document import Bench, Row

SUFFIXES: Final = (".svg", ".png", ".pdf")


def series(rows: Sequence[Row]) -> Mapping[str, tuple[Row, ...]]:
    """Rows that differ in their batch size alone, by what they have in common; in the order of the batch."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        case = row.case
        if case.mode == "alone":
            continue
        # More cameras for greater batches: of the program, the number of lanes is no part of what stays.
        name = f"{case.mode} load, {case.precision}" if case.part == "pipeline" else case.short()
        found.setdefault(f"{case.part} {name}", []).append(row)
    return {name: tuple(sorted(each, key=lambda row: row.case.batch)) for name, each in found.items()}


def check_plot_path(path: Path) -> None:
    """Before minutes are spent on measuring.

    Raises:
        ConfigError: not a picture's name, or a folder that is not there.
        VisionError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot: expected a file that ends in {', '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot: there is no folder {path.parent}")
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise VisionError(f"--plot needs matplotlib: {error}", hint="pip install 'vision[plot]'") from error
    mpl.use("Agg")


def draw(bench: Bench, path: Path) -> None:
    """Write the picture; its name's ending says in which format.

    Raises:
        VisionError: as of `check_plot_path`; or the file cannot be written.
    """
    check_plot_path(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    rate, tail = figure.subplots(1, 2)
    for name, rows in series(bench.rows).items():
        batches = [row.case.batch for row in rows]
        rate.plot(batches, [row.frames_per_s for row in rows], marker="o", label=name)
        tail.plot(batches, [row.durations.p99_ms for row in rows], marker="o", label=name)
    sizes = sorted({row.case.batch for row in bench.rows})
    for axes, title, unit in ((rate, "throughput", "frames/s"), (tail, "p99 of a batch; pipeline: of a frame", "ms")):
        axes.set_title(title)
        axes.set_xlabel("batch")
        axes.set_ylabel(unit)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    rate.legend(fontsize="small")
    figure.suptitle(f"{bench.model}, {bench.backend}, {bench.machine.gpu or bench.machine.cpu}")
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"--plot: {path} cannot be written: {error.strerror}") from error
