"""Report of a simulation, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from vision.config.user_files import write_output
from vision.errors import VisionError
from vision.evaluation.simulation.projection import FloatArray
from vision.evaluation.simulation.simulate import SceneScores, Timing
from vision.version import version

SCHEMA: Final = "vision.simulation/1"
_COLUMNS: Final = (
    "frames\nper s",
    "cross-\nings",
    "\nwrong",
    "\nstays",
    "\nwrong",
    "inside\nerror",
    "km/h\nerror",
    "swit-\nches",
    "\nIDF1",
    "\nHOTA",
    "box\nIoU",
)


@dataclass(frozen=True, slots=True)
class Simulation:
    """Results of all runs of `vision eval --simulate`."""

    detector: str  # name of the error model
    timing: Timing
    runs: tuple[SceneScores, ...]


def print_simulation(simulation: Simulation, console: Console) -> None:
    """Print a table with a row for each scene and frame rate, and a row with the totals if there are several rows."""
    seeds = len({run.seed for run in simulation.runs})
    about = f"simulated detector {simulation.detector}, timing {simulation.timing}, seeds per scene: {seeds}"
    console.print(about, highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("\nscene", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    groups: dict[tuple[str, float], list[SceneScores]] = {}
    for run in simulation.runs:
        groups.setdefault((run.scene, run.frames_per_s), []).append(run)
    for (scene, rate), runs in groups.items():
        table.add_row(scene, f"{rate:g}", *_cells(runs))
    if len(groups) > 1:
        table.add_row()
        table.add_row("all", "", *_cells(simulation.runs))
    console.print()
    console.print(table)


def _cells(runs: Sequence[SceneScores]) -> Iterator[str]:
    """Yield the texts of the metrics in one row of the table, which summarizes `runs`.

    The metrics are sums of counts, and means, medians, or percentiles of other values.
    """
    zones = [zone for run in runs for zone in run.zones]
    speeds, best = _joined(runs)
    yield str(sum(run.true_crossings for run in runs))
    yield str(sum(run.wrong_crossings for run in runs))
    yield str(sum(zone.true_stays for zone in zones))
    yield str(sum(zone.wrong_stays for zone in zones))
    yield f"{np.mean([zone.wrong_occupancy for zone in zones]):.2f}"
    yield f"{np.median(np.abs(speeds[:, 0] - speeds[:, 1])):.1f}" if len(speeds) else "-"
    yield str(sum(run.tracking.switches for run in runs))
    yield f"{np.mean([run.tracking.idf1 for run in runs]):.3f}"
    yield f"{np.mean([run.tracking.hota for run in runs]):.3f}"
    yield f"{np.quantile(best, 0.01):.2f}" if len(best) else "-"


def _joined(runs: Sequence[SceneScores]) -> tuple[FloatArray, FloatArray]:
    """Return two arrays that join the values of all runs: measured and true speeds (K, 2), and IoUs of boxes (B,)."""
    return np.concatenate([run.speeds_kmh for run in runs]), np.concatenate([run.box_overlaps for run in runs])


def write_json(simulation: Simulation, path: Path) -> None:
    """Write the report as JSON.

    Raises:
        VisionError: the file cannot be written.
    """
    try:
        write_output(path, json.dumps(as_json(simulation), indent=2) + "\n")
    except OSError as error:
        raise VisionError(f"--json: cannot write {path}: {error.strerror}") from error


def as_json(simulation: Simulation) -> dict[str, Any]:
    """Return the report as data that JSON can represent. Ratios are fractions of 1, and speeds are in km/h."""
    runs = simulation.runs
    speeds, best = _joined(runs)
    total = {
        "true_crossings": sum(run.true_crossings for run in runs),
        "wrong_crossings": sum(run.wrong_crossings for run in runs),
        "true_stays": sum(zone.true_stays for run in runs for zone in run.zones),
        "wrong_stays": sum(zone.wrong_stays for run in runs for zone in run.zones),
        "switches": sum(run.tracking.switches for run in runs),
        "idf1": float(np.mean([run.tracking.idf1 for run in runs])),
        "hota": float(np.mean([run.tracking.hota for run in runs])),
        "speed": _speed(speeds),
        "box_overlap": _overlap(best),
    }
    head = {"schema": SCHEMA, "version": version(), "detector": simulation.detector, "timing": simulation.timing}
    return {**head, "runs": [_run(run) for run in runs], "total": total}


def _run(run: SceneScores) -> dict[str, Any]:
    return {
        "scene": run.scene,
        "frames_per_s": run.frames_per_s,
        "seed": run.seed,
        "true_crossings": run.true_crossings,
        "wrong_crossings": run.wrong_crossings,
        "lines": [asdict(line) for line in run.lines],
        "zones": [asdict(zone) for zone in run.zones],
        "tracking": asdict(run.tracking),
        "speed": _speed(run.speeds_kmh),
        "box_overlap": _overlap(run.box_overlaps),
    }


def _speed(speeds_kmh: FloatArray) -> dict[str, float | int | None]:
    """Return the number of speeds, and the median and 90th percentile of their errors, or None without speeds."""
    errors = np.abs(speeds_kmh[:, 0] - speeds_kmh[:, 1])
    median, p90 = np.quantile(errors, (0.5, 0.9)).tolist() if len(errors) else (None, None)
    return {"events": len(errors), "median_error_kmh": median, "p90_error_kmh": p90}


def _overlap(best: FloatArray) -> dict[str, float | None]:
    median, p1 = np.quantile(best, (0.5, 0.01)).tolist() if len(best) else (None, None)
    return {"median": median, "p1": p1}
