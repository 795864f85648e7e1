"""Many cameras at their own pace, as a program of its own: rates, drops, where the milliseconds go, memory and CPU.

    python -m tests.perf.many_cameras CAMERAS SECONDS [BACKEND [PIXEL_FORMAT]]

prints one JSON object. The first 10 s do not count: buffers are made and the first pictures arrive together.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.perf.memory import resident_mib
from tests.perf.site import write_config

_WARM_NS = 10_000_000_000
_STAGES = ("wait", "submit", "infer", "publish", "total")


def measure(cameras: int, seconds: float, backend: str = "tensorrt", pixel_format: str = "") -> dict[str, Any]:
    """Run `vision run` on `cameras` synthetic cameras, 768x576 at 30 frames/s, and read what it recorded."""
    options = f"&format={pixel_format}" if pixel_format else ""
    sources = [f"synthetic:768x576@30?seed={number}{options}" for number in range(cameras)]
    with tempfile.TemporaryDirectory() as folder:
        detect = {"backend": backend, "max_batch": 32}
        config = write_config(Path(folder) / "camera.yaml", sources, detect=detect)
        record = Path(folder) / "results.jsonl"
        began = time.monotonic()
        command = [sys.executable, "-m", "vision.cli", "--log-level", "warning", "run", str(config)]
        with subprocess.Popen([*command, "--for", f"{seconds:g}s", "--record", str(record)]) as process:
            memory = _watch_memory(process)
        if process.returncode:
            raise RuntimeError(f"the program ended with {process.returncode}")
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        results = [json.loads(line) for line in record.read_text().splitlines()]
    return {
        "cameras": cameras,
        "seconds": seconds,
        **_figures(results),
        "cores_busy": (usage.ru_utime + usage.ru_stime) / (time.monotonic() - began),
        "memory_mib": memory,
    }


def _watch_memory(process: subprocess.Popen[bytes]) -> dict[str, float]:
    samples: list[float] = []
    while process.poll() is None:
        time.sleep(1)
        try:
            samples.append(resident_mib(process.pid))
        except (OSError, IndexError):
            break
    settled = samples[30:] or samples
    return {"after_30_s": settled[0], "last": settled[-1], "max": max(samples)}


def _figures(results: list[dict[str, Any]]) -> dict[str, Any]:
    first_ns = min(result["captured_monotonic_ns"] for result in results)
    counted = [result for result in results if result["captured_monotonic_ns"] - first_ns > _WARM_NS]
    times_ns = [result["captured_monotonic_ns"] for result in counted]
    drops: Counter[str] = Counter()
    for result in counted:
        drops.update(result["dropped_before"])
    table = np.array([[result["timing_ms"][stage] for stage in _STAGES] for result in counted])
    p50, p99, worst = np.quantile(table, 0.5, axis=0), np.quantile(table, 0.99, axis=0), table.max(axis=0)
    return {
        "results": len(counted),
        "results_per_s": len(counted) / ((max(times_ns) - min(times_ns)) / 1e9),
        "dropped": dict(drops),
        "ms": {
            stage: {"p50": float(p50[at]), "p99": float(p99[at]), "max": float(worst[at])}
            for at, stage in enumerate(_STAGES)
        },
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]), indent=2))
