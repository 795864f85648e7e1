"""Throughput of the pipeline `count` with a stand-in detector, for machines without a GPU.

python -m tests.perf.throughput [--base FOLDER] [--cameras 64] [--fps 30] [--seconds 8] [--rounds 3] [--json FILE]

The detector takes a fixed time per batch, and reports moving objects. The cameras paint small frames. All other parts
are real: threads or processes, batches, the tracker, the publisher, a subscriber in a separate process, and a line, a
zone, and a rule per camera. The cameras send more frames than the program can process.

With --base, the program alternates between this tree and a second checkout, for example of commit 8efa608. The ratio is
the number of frames of this tree divided by the number of frames of the second checkout. The age of a frame is the time
from its capture to the receipt of its message.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import psutil
import zmq

from tests.perf.against_commit import OWN_TESTS, find_any
from tests.perf.frame_cost import make_crowd

ROOT: Final = Path(__file__).resolve().parents[2]
_SERVICE_NS: Final = 5_000_000  # duration of a batch in the detector
_MAX_BATCH: Final = 32
_OBJECTS: Final = 6
_CYCLE: Final = 300  # number of frames after which the scene of a camera repeats
_SETTLE_S: Final = 5.0  # warm-up after the first message
_START_S: Final = 60.0  # timeout of the first message
_SHAPES: Final = {
    "units": "fraction",
    "lines": [{"name": "middle", "points": [[0.5, 0.1], [0.5, 0.9]]}],
    "zones": [{"name": "center", "polygon": [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]}],
}
_RULE: Final = {"name": "crossed", "when": "line_crossed middle", "cooldown": "1s"}
_WORKER: Final = OWN_TESTS + "from tests.perf.throughput import work; work(sys.argv[2])"


def work(config: str) -> None:
    """Run the program with the stand-in detector until SIGTERM. Each of the compared trees executes this function."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
    fake = find_any("vision.detect.fake:FakeDetector")
    scenes = [make_crowd(_OBJECTS, _CYCLE, seed, size=(64, 48)) for seed in range(8)]

    class StandIn(fake):  # type: ignore[misc,valid-type] # a class of the tree that is measured
        """Detector that reports the objects of a scene without reading the frames."""

        def _detect(self, frame: Any) -> Any:
            scene = scenes[hash(frame.meta.camera_id) % len(scenes)]
            return scene[frame.meta.index % _CYCLE]

    app = find_any("vision.config:AppConfig", "vision.config:SiteConfig").model_validate(json.loads(config))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    options = find_any("vision.runtime.builder:RunOptions", "vision.assemble:RunOptions")(
        stop, open_detector=lambda *_: StandIn(service_ns=_SERVICE_NS, max_batch=_MAX_BATCH)
    )
    with ExitStack() as resources:
        find_any("vision.pipelines:load_pipeline")(app.pipeline)(app, options, resources).run(stop)


class _Message(msgspec.Struct):
    """Fields of a detections message that the measurement uses."""

    captured_monotonic_ns: int
    dropped_before: dict[str, int]


def _config(folder: str, cameras: int, fps: float, processes: int | None) -> dict[str, Any]:
    names = [f"camera-{number}" for number in range(cameras)]
    return {
        "pipeline": "count",
        "cameras": [
            {"id": name, "source": f"synthetic:64x48@{fps:g}?objects=0", "frozen_after_s": None} for name in names
        ],
        "analytics": dict.fromkeys(names, _SHAPES),
        "rules": [_RULE],
        "publish": {"bind": f"ipc://{folder}/socket"},
    } | ({} if processes is None else {"processes": processes})


@contextmanager
def _program(tree: Path, config: Mapping[str, Any]) -> Any:
    paths = [str(tree), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(path) != ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", _WORKER, str(ROOT), json.dumps(config)]
    with subprocess.Popen(command, cwd=tree, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


def measure_once(tree: Path, cameras: int, fps: float, seconds: float, processes: int | None) -> dict[str, float]:
    """Run the program once, and receive its messages in this process. Return frame rates, ages, and CPU times."""
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.RCVHWM, 100_000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.subscribe("detections/")
        socket.connect(f"ipc://{folder}/socket")
        with _program(tree, _config(folder, cameras, fps, processes)) as process:
            if not socket.poll(int(_START_S * 1e3)):
                raise RuntimeError(f"no message within {_START_S:g} s from {tree}")
            begin_s = time.monotonic() + _SETTLE_S
            ages_ms: list[float] = []
            cpu_s = 0.0
            while (now_s := time.monotonic()) < begin_s + seconds:
                if not socket.poll(100):
                    continue
                _, payload = socket.recv_multipart()
                if now_s < begin_s:
                    continue
                if not ages_ms:
                    cpu_s = _cpu_s(process.pid)
                message = msgspec.json.decode(payload, type=_Message)
                ages_ms.append((time.monotonic_ns() - message.captured_monotonic_ns) / 1e6)
            cpu_s = _cpu_s(process.pid) - cpu_s
    p50, p99, most = np.percentile(ages_ms, (50, 99, 100)).tolist()
    return {
        "frames_per_s": len(ages_ms) / seconds,
        "age_p50_ms": p50,
        "age_p99_ms": p99,
        "age_max_ms": most,
        "cpu_us_per_frame": 1e6 * cpu_s / len(ages_ms),
    }


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process and its children, in seconds."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def compare(
    base: Path | None, *, cameras: int, fps: float, seconds: float, rounds: int, processes: Sequence[int]
) -> dict[str, Any]:
    """Measure this tree with each number of processes, and `base`, alternately. Return medians over all rounds."""
    cases: dict[str, tuple[Path, int | None]] = {} if base is None else {"base": (base, None)}
    cases |= {f"processes_{number}": (ROOT, number) for number in processes}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (tree, number) in cases.items():
            found[name].append(measure_once(tree, cameras, fps, seconds, number))
            print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    result: dict[str, Any] = {"asked_per_s": cameras * fps, "cameras": cameras}
    for name, runs in found.items():
        result[name] = {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]}
        if base is not None and name != "base":
            ratios = [new["frames_per_s"] / old["frames_per_s"] for old, new in zip(found["base"], runs, strict=True)]
            result[name]["ratio"] = round(statistics.median(ratios), 2)
            result[name]["ratios"] = [round(ratio, 2) for ratio in ratios]
    return result


def measure(quick: bool = False) -> Mapping[str, Any]:
    """Measure this tree without comparison, for `python -m tests.perf`."""
    return compare(None, cameras=64, fps=30.0, seconds=2 if quick else 8, rounds=1 if quick else 3, processes=(1, 2))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.perf.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", type=Path, help="checkout to compare with, such as a git worktree")
    parser.add_argument("--cameras", type=int, default=64, help="number of cameras. Default: %(default)s")
    parser.add_argument("--fps", type=float, default=30.0, help="frames/s of each camera. Default: %(default)g")
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each run. Default: %(default)g")
    parser.add_argument("--rounds", type=int, default=3, help="number of runs per case. Default: %(default)s")
    parser.add_argument("--processes", default="1,2", help="values of the key `processes`. Default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    found = compare(
        arguments.base.resolve() if arguments.base is not None else None,
        cameras=arguments.cameras,
        fps=arguments.fps,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        processes=[int(number) for number in arguments.processes.split(",")],
    )
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
