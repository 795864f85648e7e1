"""Throughput, drops, latency of each step, memory, and CPU use of `vision run` with many synthetic cameras.

    python -m tests.perf.many_cameras CAMERAS SECONDS [--fps 30] [--backend tensorrt] [--format nv12]

The command prints one JSON object. It ignores the first 10 s, in which the program allocates buffers and the first
frames arrive together. It reads the memory every 5 s, starting at 30 s. GPU memory includes the memory of other
programs. `pauses` lists the times at which a sleeping thread of this command woke up late, because the whole machine
stalled.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tests.perf.deployment import write_config
from tests.perf.memory import resident_mib
from tests.perf.results import snake_case_keys

_WARM_NS = 10_000_000_000
_SETTLED_S = 30.0  # start of the memory samples
_EVERY_S = 5.0  # interval of the memory samples
_AT_THE_END = 1  # number of last samples to leave out, because the program can already have freed memory
_NAP_S = 0.002
_LATE_S = 0.010  # a longer delay counts as a pause
_FEW = 100  # maximum number of items of a list in the result
_STAGES = ("wait", "submit", "infer", "publish", "total")


def measure(cameras: int, seconds: float, fps: float, backend: str, pixel_format: str | None) -> dict[str, Any]:
    """Run `vision run` on `cameras` synthetic cameras of 768x576 pixels and `fps` frames/s. Return the measurements."""
    options = f"&format={pixel_format}" if pixel_format else ""
    sources = [f"synthetic:768x576@{fps:g}?seed={number}{options}" for number in range(cameras)]
    with tempfile.TemporaryDirectory() as folder:
        detect = {"backend": backend, "max_batch": 32}
        config = write_config(Path(folder) / "camera.yaml", sources, detect=detect)
        record = Path(folder) / "results.jsonl"
        began = time.monotonic()
        command = [sys.executable, "-m", "vision.cli.main", "--log-level", "warning", "run", str(config)]
        with (
            _Naps() as naps,
            subprocess.Popen([*command, "--for", f"{seconds:g}s", "--record", str(record)]) as process,
        ):
            memory = _watch_memory(process)
        if process.returncode:
            raise RuntimeError(f"`vision run` ended with exit code {process.returncode}")
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        measured = _evaluate(record, naps.pauses)
    return {
        "cameras": cameras,
        "fps": fps,
        "seconds": seconds,
        **measured,
        "cores_busy": (usage.ru_utime + usage.ru_stime) / (time.monotonic() - began),
        "memory_mib": memory,
    }


class _Naps:
    """Thread that sleeps repeatedly, and records when it wakes up late."""

    def __init__(self) -> None:
        self.pauses: list[tuple[int, int]] = []  # (monotonic time of a late wake-up, duration of the sleep), ns
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        before_ns = time.monotonic_ns()
        while not self._ended.wait(_NAP_S):
            now_ns = time.monotonic_ns()
            if now_ns - before_ns > (_NAP_S + _LATE_S) * 1e9:
                self.pauses.append((now_ns, now_ns - before_ns))
            before_ns = now_ns

    def __enter__(self) -> _Naps:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _watch_memory(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    began = time.monotonic()
    samples: dict[str, list[tuple[float, float]]] = {"resident": [], "device": []}
    next_s = _SETTLED_S
    while process.poll() is None:
        time.sleep(0.5)
        now_s = time.monotonic() - began
        if now_s < next_s:
            continue
        next_s += _EVERY_S
        try:
            samples["resident"].append((now_s, resident_mib(process.pid)))
        except (OSError, IndexError):  # the process has just ended
            break
        if (device := _device_mib()) is not None:
            samples["device"].append((now_s, device))
    return {name: _trend(*np.array(taken[:-_AT_THE_END]).T) for name, taken in samples.items() if len(taken) > 5}


def _device_mib() -> float | None:
    """Return the used GPU memory in MiB, or None if nvidia-smi is not installed."""
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
    """Fields of a recorded result that the measurement needs. Other fields are not decoded, which saves time."""

    captured_monotonic_ns: int
    dropped_before: dict[str, int]
    timing_ms: dict[str, float]


def _evaluate(record: Path, pauses: Sequence[tuple[int, int]]) -> dict[str, Any]:
    decoder = msgspec.json.Decoder(_Result)
    drops: Counter[str] = Counter()
    dropped_ns: list[int] = []
    times_ns, rows = [], []
    first_ns = None
    with record.open("rb") as lines:
        for result in map(decoder.decode, lines):
            first_ns = first_ns or result.captured_monotonic_ns  # results are almost in the order of their capture
            if result.captured_monotonic_ns - first_ns > _WARM_NS:
                drops.update(result.dropped_before)
                dropped_ns += [result.captured_monotonic_ns] * bool(result.dropped_before)
                times_ns.append(result.captured_monotonic_ns)
                rows.append(tuple(result.timing_ms[stage] for stage in _STAGES))
    table = np.array(rows)
    began_ns = min(times_ns)

    def since_s(moment_ns: int) -> float:
        return round((moment_ns - began_ns) / 1e9, 3)

    p50, p99, worst = np.quantile(table, 0.5, axis=0), np.quantile(table, 0.99, axis=0), table.max(axis=0)
    return {
        "results": len(rows),
        "results_per_s": len(rows) / ((max(times_ns) - min(times_ns)) / 1e9),
        "dropped": dict(drops),
        "dropped_before_s": [since_s(moment_ns) for moment_ns in dropped_ns[:_FEW]],
        "pauses": [
            {"until_s": since_s(moment_ns), "ms": round(long_ns / 1e6, 1)}
            for moment_ns, long_ns in pauses
            if began_ns <= moment_ns <= max(times_ns)
        ][:_FEW],
        "ms": {
            stage: {"p50": float(p50[at]), "p99": float(p99[at]), "max": float(worst[at])}
            for at, stage in enumerate(_STAGES)
        },
    }


def main() -> None:
    """Measure, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cameras", type=int, help="number of cameras")
    parser.add_argument("seconds", type=float, help="duration of the run")
    parser.add_argument("--fps", type=float, default=30.0, help="frames/s of each camera. Default: %(default)g")
    parser.add_argument("--backend", default="tensorrt", help="back-end of the detector. Default: %(default)s")
    parser.add_argument(
        "--format", dest="pixel_format", help="pixel format. Default: the one that the detector prefers"
    )
    print(json.dumps(snake_case_keys(measure(**vars(parser.parse_args()))), indent=2))


if __name__ == "__main__":
    main()
