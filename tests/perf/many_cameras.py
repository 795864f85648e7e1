"""Many cameras at their own pace, as a program of its own: rates, drops, where the milliseconds go, memory and CPU.

    python -m tests.perf.many_cameras CAMERAS SECONDS [--fps 30] [--backend tensorrt] [--format nv12]

prints one JSON object. The first 10 s do not count: buffers are made and the first pictures arrive together. Memory is
looked at once a second from the 30th on; that of the GPU is all that is in use there, by whomever.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tests.perf.memory import resident_mib
from tests.perf.site import write_config

_WARM_NS = 10_000_000_000
_SETTLED_S = 30.0
_AT_THE_END = 3  # samples that may have seen the program give its memory back
_STAGES = ("wait", "submit", "infer", "publish", "total")


def measure(cameras: int, seconds: float, fps: float, backend: str, pixel_format: str | None) -> dict[str, Any]:
    """Run `vision run` on `cameras` synthetic cameras, 768x576 at `fps` frames/s, and read what it recorded."""
    options = f"&format={pixel_format}" if pixel_format else ""
    sources = [f"synthetic:768x576@{fps:g}?seed={number}{options}" for number in range(cameras)]
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
        figures = _figures(record)
    return {
        "cameras": cameras,
        "fps": fps,
        "seconds": seconds,
        **figures,
        "cores_busy": (usage.ru_utime + usage.ru_stime) / (time.monotonic() - began),
        "memory_mib": memory,
    }


def _watch_memory(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    began = time.monotonic()
    samples: dict[str, list[tuple[float, float]]] = {"resident": [], "device": []}
    while process.poll() is None:
        time.sleep(1)
        now_s = time.monotonic() - began
        if now_s < _SETTLED_S:
            continue
        try:
            samples["resident"].append((now_s, resident_mib(process.pid)))
        except (OSError, IndexError):  # it has just ended
            break
        if (device := _device_mib()) is not None:
            samples["device"].append((now_s, device))
    return {name: _trend(*np.array(taken[:-_AT_THE_END]).T) for name, taken in samples.items() if len(taken) > 5}


def _device_mib() -> float | None:
    """GPU memory in use; None where there is nobody to ask."""
    if not (tool := shutil.which("nvidia-smi")):
        return None
    command = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])


def _trend(times_s: NDArray[np.float64], sizes: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "seconds": float(times_s[-1] - times_s[0]),
        "every_minute": [float(sizes[np.searchsorted(times_s, at)]) for at in np.arange(times_s[0], times_s[-1], 60)],
        "first": float(sizes[0]),
        "last": float(sizes[-1]),
        "max": float(sizes.max()),
        "slope_kib_per_minute": float(np.polyfit(times_s, sizes, 1)[0] * 60 * 1024),
    }


class _Result(msgspec.Struct):
    """What is wanted of a recorded result: millions of them in ten minutes."""

    captured_monotonic_ns: int
    dropped_before: dict[str, int]
    timing_ms: dict[str, float]


def _figures(record: Path) -> dict[str, Any]:
    decoder = msgspec.json.Decoder(_Result)
    drops: Counter[str] = Counter()
    times_ns, rows = [], []
    first_ns = None
    with record.open("rb") as lines:
        for result in map(decoder.decode, lines):
            first_ns = first_ns or result.captured_monotonic_ns  # of all, but for milliseconds
            if result.captured_monotonic_ns - first_ns > _WARM_NS:
                drops.update(result.dropped_before)
                times_ns.append(result.captured_monotonic_ns)
                rows.append(tuple(result.timing_ms[stage] for stage in _STAGES))
    table = np.array(rows)
    p50, p99, worst = np.quantile(table, 0.5, axis=0), np.quantile(table, 0.99, axis=0), table.max(axis=0)
    return {
        "results": len(rows),
        "results_per_s": len(rows) / ((max(times_ns) - min(times_ns)) / 1e9),
        "dropped": dict(drops),
        "ms": {
            stage: {"p50": float(p50[at]), "p99": float(p99[at]), "max": float(worst[at])}
            for at, stage in enumerate(_STAGES)
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cameras", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--fps", type=float, default=30.0, help="default: %(default)g")
    parser.add_argument("--backend", default="tensorrt", help="default: %(default)s")
    parser.add_argument(
        "--format", dest="pixel_format", help="of the pictures; as the detector likes best where absent"
    )
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
