"""Measure the latency of messages while each fsync is delayed by 2 s, and the time of a program stop under full load.

    python -m tests.perf.slow_disk [--periods 4] [--period-s 6] [--stops 10] [--slow-stops 2]
                                 [--save]

The first program stores events and counters of four synthetic cameras. Its disk is slow in every second period. The
second program runs the shipped model on four cameras at 30 frames/s, which is more than two cores can process. The
measurement also includes a few stops while each fsync is delayed by 2 s. Both programs are `vision run`. On an idle
machine, the measurement takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.messages.processes import REPOSITORY
from tests.perf.__main__ import result
from tests.perf.results import save
from vision.benchmark.chaos.disk import Disk
from vision.client import DetectionsMessage, EventMessage, Subscription

TITLE = "A disk whose fsync takes 2 s longer: latency of messages, and stops under full load"
CAMERAS = 4
SETTLE_S = 1.0  # time after a change of the disk that does not count
LINES = {"lines": [{"name": "door", "points": [[160, 0], [160, 240]], "anchor": "center"}]}
FAKE = {"detect": {"backend": "fake", "score_threshold": 0.2}, "track": {"low_score": 0.1, "high_score": 0.15,
        "new_score": 0.2}}  # fmt: skip
STOP_S = 60.0


def site(folder: Path, **more: Any) -> Path:
    """Write the configuration of a program with `CAMERAS` cameras, and return its path."""
    names = [f"camera-{number}" for number in range(CAMERAS)]
    source = "synthetic:320x240@30?objects=6&overlap=1&seed="
    content = {
        "pipeline": "count",
        "cameras": [{"id": name, "source": source + str(seed)} for seed, name in enumerate(names)],
        "analytics": dict.fromkeys(names, LINES),
        "state_dir": f"{folder}/data/state",
        "publish": {"bind": f"ipc://{folder}/out", "max_events": 1000},
        "status": {"interval_s": 0.2},
    }
    path = folder / "camera.yaml"
    path.write_text(yaml.safe_dump(content | more))
    return path


@contextmanager
def running(path: Path, disk: Disk) -> Iterator[tuple[subprocess.Popen[bytes], Subscription]]:
    """Run the program. Yield the program, and a subscription that has already received detections."""
    command = [sys.executable, "-m", "vision", "--log-level", "error", "run", str(path)]
    program = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | disk.environment, stderr=subprocess.DEVNULL)
    try:
        with Subscription(f"ipc://{path.parent}/out", kinds=("detections", "events"), silence_s=60) as messages:
            while not isinstance(messages.receive(60), DetectionsMessage):
                pass
            yield program, messages
    finally:
        program.kill()
        program.wait()


def latencies_ms(messages: Subscription, seconds: float) -> tuple[list[float], int]:
    """Return the latencies of the detections messages of the next `seconds`, in ms, and the number of events."""
    found, events, end_s = list[float](), 0, time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        item = messages.receive(left_s)
        if isinstance(item, DetectionsMessage):
            found.append(item.timing_ms.total)
        events += isinstance(item, EventMessage)
    return found, events


def slow_disk(path: Path, disk: Disk, periods: int, period_s: float) -> dict[str, Any]:
    """Measure the latency in alternating periods with a normal and a slow disk. Return percentiles in ms."""
    found: dict[bool, list[float]] = {False: [], True: []}
    events = 0
    with running(path, disk) as (_, messages):
        latencies_ms(messages, 3.0)
        for number in range(2 * periods):
            slow = number % 2 == 1
            disk.set_slow(slow)
            latencies_ms(messages, SETTLE_S)
            more, stored = latencies_ms(messages, period_s)
            found[slow] += more
            events += stored
        disk.set_slow(False)
    normal, slow_ms = (np.percentile(found[slow], [50, 99, 100]).round(2).tolist() for slow in (False, True))
    names = ("p50", "p99", "max")
    return {
        "periods": periods,
        "period_s": period_s,
        "messages": len(found[False]) + len(found[True]),
        "events": events,
        "normal_disk_ms": dict(zip(names, normal, strict=True)),
        "slow_disk_ms": dict(zip(names, slow_ms, strict=True)),
        "p99_slow_to_normal": round(slow_ms[1] / normal[1], 3),
    }


def stops(path: Path, disk: Disk, count: int, *, slow: bool) -> dict[str, Any]:
    """Stop a program under full load `count` times. Return the duration of each stop in seconds, and the exit codes."""
    seconds, codes = list[float](), list[int]()
    for _ in range(count):
        with running(path, disk) as (program, messages):
            latencies_ms(messages, 1.0)
            disk.set_slow(slow)
            latencies_ms(messages, 0.5)
            began_s = time.monotonic()
            program.send_signal(signal.SIGTERM)
            codes.append(program.wait(STOP_S))
            seconds.append(round(time.monotonic() - began_s, 3))
        disk.set_slow(False)
    return {"exit_codes": codes, "stops_s": seconds, "longest_s": max(seconds, default=None)}


def measure(options: argparse.Namespace) -> Mapping[str, Any]:
    """Measure the latency with a slow disk, and the duration of stops, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="slow-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "data").mkdir()
        with closing(Disk(folder / "data", folder)) as disk:
            slow = slow_disk(site(folder, **FAKE), disk, options.periods, options.period_s)
            loaded = site(folder, detect={"backend": "onnxruntime"})
            stopped = stops(loaded, disk, options.stops, slow=False)
            stopped_slowly = stops(loaded, disk, options.slow_stops, slow=True)
    return {"slow_disk": slow, "stops_under_full_load": stopped, "stops_with_a_slow_disk": stopped_slowly}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--periods", type=int, default=4, help="periods with a normal disk, and with a slow one")
    parser.add_argument("--period-s", type=float, default=6.0)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--slow-stops", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write the result to the folder of results")
    options = parser.parse_args()
    measured = measure(options)
    print(json.dumps(measured, indent=2))
    if options.save:
        print(save(result("slow_disk", measured, TITLE)))


if __name__ == "__main__":
    main()
