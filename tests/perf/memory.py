"""Memory of the program over several minutes. Even slow growth exhausts the memory of a small machine in a month."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.perf import deployment

_WARM_S = 10.0


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measure(quick: bool) -> Mapping[str, Any]:
    """Measure the memory of `vision run` with four cameras that play the clip in a loop."""
    seconds = 20.0 if quick else 300.0
    samples: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = deployment.write_config(Path(folder) / "camera.yaml", [str(deployment.CLIP)] * 4)
        with deployment.running(config) as process:
            began = time.monotonic()
            while (now := time.monotonic() - began) < seconds + _WARM_S:
                time.sleep(1)
                if process.poll() is not None:
                    raise RuntimeError(f"`vision run` ended with exit code {process.returncode} after {now:.0f} s")
                if now > _WARM_S:
                    samples.append((now, resident_mib(process.pid)))
    times, sizes = np.array(samples).T
    return {
        "seconds": seconds,
        "resident_mib_first": float(sizes[0]),
        "resident_mib_last": float(sizes[-1]),
        "resident_mib_max": float(sizes.max()),
        "slope_kib_per_minute": float(np.polyfit(times, sizes, 1)[0] * 60 * 1024),
    }
