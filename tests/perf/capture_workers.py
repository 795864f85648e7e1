"""Cost of capture workers compared with camera threads in one process, and time until a killed worker is replaced.

The cameras are synthetic and have small frames, so the measurement shows the cost of passing frames, not of decoding.
The program measures the arrangements alternately. Each value is the best of all rounds, because other programs can only
make a value worse.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import psutil

from tests.messages.processes import wait_until
from vision.config import AppConfig
from vision.detect.fake import FakeDetector
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.stages.stage import Report
from vision.types import Detections, Frame, Result

CAMERAS = 16
FPS = 30
ARRANGEMENTS = {"threads": 0, "one_worker": 1, "two_workers": 2}


class NullDetector(FakeDetector):
    """Detector that finds no objects, and takes 1 ms per batch."""

    def __init__(self) -> None:
        super().__init__(max_batch=32, batches_in_flight=4, service_ns=1_000_000)

    def _detect(self, frame: Frame) -> Detections:
        return Detections.empty()


@dataclass
class Arrivals:
    """Sink that records, for each camera, the time from capture to batch and the epochs."""

    waits_ms: list[float] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)

    def publish(self, result: Result) -> None:
        self.waits_ms.append((result.timing.batched_ns - result.meta.captured_ns) / 1e6)
        self.epochs[result.meta.camera_id] = result.meta.epoch

    def report(self, report: Report) -> None:
        """Ignore the report."""


@contextmanager
def running(workers: int) -> Iterator[Arrivals]:
    """Run a program with `workers` capture workers during a `with` block. Yield when all cameras deliver frames."""
    cameras = [{"id": f"c{n}", "source": f"synthetic:64x48@{FPS}?seed={n}"} for n in range(CAMERAS)]
    config = AppConfig.model_validate({"detect": {"backend": "fake"}, "cameras": cameras})
    arrivals, stop = Arrivals(), threading.Event()
    options = RunOptions(stop, sink=arrivals, capture_workers=workers, open_detector=lambda *_: NullDetector())
    with ExitStack() as resources:
        runtime = load_pipeline("detect")(config, options, resources)
        thread = threading.Thread(target=runtime.run, args=(stop,))
        thread.start()
        try:
            wait_until(lambda: len(arrivals.epochs) == CAMERAS, "frames of all cameras", 60)
            yield arrivals
        finally:
            stop.set()
            thread.join()


def _cpu_s() -> tuple[float, float]:
    """Return the CPU time, in seconds, of this process and its children."""
    process = psutil.Process()
    own, children = process.cpu_times(), [child.cpu_times() for child in process.children()]
    return own.user + own.system, sum(times.user + times.system for times in children)


def _measure_one(workers: int, seconds: float) -> dict[str, float]:
    with running(workers) as arrivals:
        time.sleep(1.0)
        first, before = len(arrivals.waits_ms), _cpu_s()
        time.sleep(seconds)
        waits, after = arrivals.waits_ms[first:], _cpu_s()
    frames = len(waits)
    return {
        "main_cpu_us_per_frame": (after[0] - before[0]) / frames * 1e6,
        "all_cpu_us_per_frame": (sum(after) - sum(before)) / frames * 1e6,
        "capture_to_batch_p50_ms": float(np.percentile(waits, 50)),
        "capture_to_batch_p99_ms": float(np.percentile(waits, 99)),
    }


def _replacement_s(kills: int) -> list[float]:
    """Kill a worker `kills` times. Return, for each kill, the seconds until all its cameras deliver frames again."""
    away = []
    with running(2) as arrivals:
        for kill in range(kills):
            time.sleep(4.0)  # a worker that ran for less than 3 s is replaced later
            worker = next(child for child in psutil.Process().children() if "capture worker 1" in child.cmdline())
            os.kill(worker.pid, signal.SIGKILL)
            began = time.monotonic()
            back = dict.fromkeys((f"c{n}" for n in range(0, CAMERAS, 2)), kill + 1)
            wait_until(partial(_have_epochs, arrivals, back), "the cameras return", 60)
            away.append(time.monotonic() - began)
    return away


def _have_epochs(arrivals: Arrivals, epochs: Mapping[str, int]) -> bool:
    return epochs.items() <= dict(arrivals.epochs).items()


def measure(quick: bool) -> Mapping[str, Any]:
    """Measure each arrangement of threads and workers, and the time until a killed worker is replaced."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ARRANGEMENTS}
    for _ in range(1 if quick else 5):
        for name, workers in ARRANGEMENTS.items():
            rounds[name].append(_measure_one(workers, 1.0 if quick else 5.0))
    best = {name: {key: min(one[key] for one in runs) for key in runs[0]} for name, runs in rounds.items()}
    away = _replacement_s(1 if quick else 5)
    return {**best, "replacement_s": {"best": min(away), "median": float(np.median(away)), "worst": max(away)}}
