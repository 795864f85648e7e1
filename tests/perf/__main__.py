"""`make bench`: CPU performance measurements in several parts. Each part writes one file of results.

python -m tests.perf [--quick] [--only pipeline,latency,...]
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.perf import (
    capture_workers,
    frame_cost,
    latency,
    memory,
    pipeline,
    publishing,
    throughput,
    tracking,
)
from tests.perf.results import PerfResult, save, snake_case_keys

PACKAGES = ("numpy", "opencv-python-headless", "onnxruntime", "pyzmq", "msgspec")

Measure = Callable[[bool], Mapping[str, Any]]
PARTS: dict[str, Measure] = {
    "pipeline": pipeline.measure,
    "latency": latency.measure,
    "publishing": publishing.measure,
    "memory": memory.measure,
    "tracking": tracking.measure,
    "frame_cost": frame_cost.measure,
    "throughput": throughput.measure,
    "capture_workers": capture_workers.measure,
}


def machine_name() -> str:
    """Return the name of the processor and its number of cores, in a form that is valid in a file name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1] for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    return re.sub(r"[^a-z0-9]+", "-", f"{model.lower()}-{cores}-cores").strip("-")


def result(part: str, measured: Mapping[str, Any], title: str | None = None) -> PerfResult:
    """Return the measurements of one part, together with the conditions of the measurements."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return PerfResult(
        name=part,
        title=title or part,
        measured_on=f"{machine_name()}, {date}",
        date=date,
        machine=machine_name(),
        versions={"python": platform.python_version(), **_package_versions()},
        commit=commit.stdout.strip() or None,
        figures=snake_case_keys(measured),
    )


def _package_versions() -> dict[str, str]:
    """Return the versions of the installed packages, and omit packages that are not installed."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def rows(prefix: str, value: Any) -> list[tuple[str, str]]:
    """Return nested results as rows (name, value) of a table. Names of nested values are joined with dots."""
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in rows(f"{prefix}.{key}" if prefix else key, inner)]
    return [(prefix, f"{value:.4g}" if isinstance(value, float) else str(value))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.perf")
    parser.add_argument(
        "--quick", action="store_true", help="use short runs, to try the benchmark itself. Nothing is written"
    )
    parser.add_argument(
        "--only", default=",".join(PARTS), help="measure only these parts, separated by commas. Default: %(default)s"
    )
    arguments = parser.parse_args()
    console = Console()
    for part in arguments.only.split(","):
        console.print(f"measuring {part} …")
        measured = PARTS[part](arguments.quick)
        table = Table("measurement", "value", title=part)
        for row in rows("", measured):
            table.add_row(*row)
        console.print(table)
        if not arguments.quick:
            console.print(f"written: {save(result(part, measured))}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
