"""Throughput and latency of `vision run` with real video streams, from the file to a subscriber in another process.

python -m tests.perf.real_streams CLIP --cameras 2 4 --seconds 20 --reader nvdec

Each camera plays the clip in a loop at the rate of the clip, and has a line and a zone. The command prints one line of
JSON per number of cameras. Latencies are in ms, from the capture of a frame to the receipt of its message. The first
6 s after the first message and the last second of the program are not measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import psutil

from tests.perf.deployment import running, write_config
from vision.client import Gap, Item, Subscription
from vision.messaging.schema import DetectionsMessage

_SETTLE_S: Final = 6.0  # warm-up: connections, first batches, and the batcher's measurements of batch times
_LAST_S: Final = 1.0  # not measured, before the program is stopped
_START_S: Final = 600.0  # timeout of the first message, because an engine may have to be built
_QUEUE: Final = 100_000  # maximum number of messages that wait for this process

_ANALYTICS: Final = {
    "units": "fraction",
    "lines": [{"name": "middle", "points": [[0.5, 0.1], [0.5, 0.9]]}],
    "zones": [{"name": "center", "polygon": [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]}],
}


def measure(clip: Path, cameras: int, seconds: float, reader: str, detect: dict[str, Any]) -> dict[str, Any]:
    """Run `vision run` on `cameras` copies of the clip. Return the measurements."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "camera.yaml"
        analytics = {f"camera-{number}": _ANALYTICS for number in range(cameras)}
        write_config(path, [str(clip)] * cameras, reader=reader, pipeline="count", detect=detect, analytics=analytics)
        with running(path) as process, Subscription(f"ipc://{path}.ipc", queue=_QUEUE) as subscription:
            measured = _receive(subscription.items(_START_S), psutil.Process(process.pid), seconds)
    requested_per_s = round(cameras * _frames_per_s(clip), 1)
    return {"cameras": cameras, "reader": reader, "seconds": seconds, "asked_per_s": requested_per_s} | measured


def _receive(items: Iterator[Item], program: psutil.Process, seconds: float) -> dict[str, Any]:
    """Receive messages for `seconds` after the warm-up. Return rates, drops, latencies and CPU use."""
    next(items)
    begin_s = time.monotonic() + _SETTLE_S
    cpu_s = [0.0]
    latencies_ms: list[float] = []
    dropped: Counter[str] = Counter()
    lost = 0
    for item in items:
        now_s = time.monotonic()
        if now_s >= begin_s + seconds:
            break
        if now_s < begin_s:
            cpu_s = [_cpu_s(program)]
        elif isinstance(item, DetectionsMessage):
            latencies_ms.append(now_s * 1e3 - item.captured_monotonic_ns / 1e6)
            dropped.update(item.dropped_before)
        elif isinstance(item, Gap):
            lost += item.lost
    cores = (_cpu_s(program) - cpu_s[0]) / seconds
    time.sleep(_LAST_S)
    p50, p95, p99, most = np.percentile(latencies_ms, [50, 95, 99, 100]).round(2).tolist()
    return {
        "published_per_s": round(len(latencies_ms) / seconds, 1),
        "dropped": dict(dropped),
        "lost_messages": lost,
        "latency_ms": {"p50": p50, "p95": p95, "p99": p99, "max": most},
        "cores": round(cores, 2),
    }


def _cpu_s(program: psutil.Process) -> float:
    times = program.cpu_times()
    return float(times.user + times.system)


def _frames_per_s(clip: Path) -> float:
    with av.open(str(clip)) as container:
        rate = container.streams.video[0].average_rate
        assert rate is not None
        return float(rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backends = ("auto", "tensorrt", "onnxruntime", "fake")
    parser.add_argument("clip", type=Path, help="video file that each camera plays")
    parser.add_argument("--cameras", type=int, nargs="+", default=[2], help="numbers of cameras, one run for each")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="duration of each measurement. Default: %(default)g"
    )
    parser.add_argument("--reader", choices=("nvdec", "ffmpeg"), default="nvdec", help="decoder. Default: %(default)s")
    parser.add_argument("--backend", choices=backends, default="auto", help="back-end. Default: %(default)s")
    parser.add_argument("--max-batch", type=int, default=32, help="largest batch. Default: %(default)s")
    options = parser.parse_args()
    detect = {"backend": options.backend, "max_batch": options.max_batch}
    for cameras in options.cameras:
        measured = measure(options.clip.absolute(), cameras, options.seconds, options.reader, detect)
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
