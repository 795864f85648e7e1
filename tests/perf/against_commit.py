"""Comparison of the CPU performance of this tree and of another checkout, measured alternately on one machine.

python -m tests.perf.against_commit --base FOLDER [--rounds 5] [--only NAME,NAME] [--json FILE]

This command prints JSON: for each measurement, the medians of both trees, the ratio of each round, and the median
ratio. A ratio above 1 means that this tree is better: more frames/s, less time, or less memory. Each measurement runs
in its own process, which imports `vision` from its tree. This file works with the modules of this tree and of commit
8efa608.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[2]
_STEP_NS: Final = 100_000_000
_WIDTH, _HEIGHT = 1920, 1080
OWN_TESTS: Final = (
    "import sys, types; tests = sys.modules['tests'] = types.ModuleType('tests'); "
    "tests.__path__ = [sys.argv[1] + '/tests']; "
)
"""Program that imports `tests` from the tree `sys.argv[1]`, and all other modules from the tree that is measured."""

_WORKER: Final = "import runpy, sys; runpy.run_path(sys.argv[1])['work'](sys.argv[2])"


# ------------------------------------------------------------------------------------------------ in each tree


def find_any(*names: str) -> Any:
    """Import the first of the names (`module:attribute`) that exists in this tree. Return the attribute."""
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            continue
    raise ImportError(" or ".join(names))


class _Sink:
    """Sink that records the time at which each result is published."""

    def __init__(self) -> None:
        self.times_ns: list[int] = []

    def publish(self, _result: object) -> None:
        self.times_ns.append(time.monotonic_ns())

    def report(self, _report: object) -> None:
        """Ignore the report."""


def _run_offline(config: dict[str, Any]) -> _Sink:
    app = find_any("vision.config:AppConfig", "vision.config:SiteConfig").model_validate(config)
    sink, stop = _Sink(), threading.Event()
    options = find_any("vision.runtime.builder:RunOptions", "vision.assemble:RunOptions")(stop, offline=True, sink=sink)
    with ExitStack() as resources:
        pipeline = find_any("vision.pipelines:load_pipeline")(app.pipeline)
        pipeline(app, options, resources).run(stop)
    return sink


def _offline() -> float:
    """Return the throughput, in frames/s, of an offline run of the shipped clip with the model and the tracker."""
    clip = str(ROOT / "configs" / "vtest.mp4")
    times_ns = _run_offline({"pipeline": "track", "cameras": [{"id": "a", "source": clip}]}).times_ns[10:]
    return (len(times_ns) - 1) / (times_ns[-1] - times_ns[0]) * 1e9


def _synthetic(frames: int) -> dict[str, Any]:
    sources = [f"synthetic:64x48@1000?objects=1&seed={seed}&frames={frames}" for seed in range(4)]
    cameras = [{"id": f"c{number}", "source": source} for number, source in enumerate(sources)]
    return {"detect": {"backend": "fake"}, "cameras": cameras}


def _loop() -> float:
    """Return the CPU time per frame, in microseconds, of the whole program without a neural network."""
    frames = 2500
    _run_offline(_synthetic(100))
    begin_ns = time.process_time_ns()
    _run_offline(_synthetic(frames))
    return (time.process_time_ns() - begin_ns) / 1e3 / (4 * frames)


def _memory() -> float:
    """Process 20,000 frames. Return the resident memory, in MiB, at the end."""
    _run_offline(_synthetic(5000))
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _crowd(objects: int, unsure: int, frames: int) -> list[Any]:
    """Return the detections of `frames` frames: people who turn at the border, and `unsure` boxes with low scores."""
    detections = find_any("vision.types:Detections")
    rng = np.random.default_rng(0)
    place = rng.uniform((50, 200), (_WIDTH - 50, _HEIGHT - 50), (objects, 2))
    speed = rng.normal(0, 60, (objects, 2))
    height = rng.uniform(60, 160, objects)[:, None]
    result = []
    for _ in range(frames):
        place = place + speed * _STEP_NS * 1e-9
        speed = np.where((place < (50, 200)) | (place > (_WIDTH - 50, _HEIGHT - 50)), -speed, speed)
        seen = rng.random(objects) < 0.95
        foot = (place + rng.normal(0, 0.04, (objects, 2)) * height)[seen]
        half = 0.2 * height[seen]
        boxes = np.hstack([foot[:, :1] - half, foot[:, 1:] - height[seen], foot[:, :1] + half, foot[:, 1:]])
        strewn = rng.uniform((0, 0), (_WIDTH - 40, _HEIGHT - 90), (unsure, 2))
        boxes = np.concatenate([boxes, np.hstack([strewn, strewn + np.array([30, 80])])])
        scores = np.concatenate([rng.beta(8, 3, int(seen.sum())), rng.uniform(0.15, 0.35, unsure)])
        result.append(detections(boxes.astype(np.float32), scores.astype(np.float32), np.zeros(len(scores), np.int32)))
    return result


def _tracking(objects: int) -> float:
    """Return the median CPU time per frame, in microseconds, of the tracker for `objects` objects."""
    tracker = find_any("vision.analytics.tracker:Tracker", "vision.tracking:Tracker")()
    crowd = _crowd(objects, objects // 2, 400)
    return _median_us([partial(tracker.update, found, at * _STEP_NS) for at, found in enumerate(crowd)])


def _analytics() -> float:
    """Return the median CPU time per frame, in microseconds, of the analytics: 20 zones, 4 lines, and 100 objects."""
    analytics = find_any("vision.analytics.camera_analytics:Analytics", "vision.analytics:Analytics")
    settings = find_any("vision.config.analytics:CameraAnalytics")
    zone = find_any("vision.config.analytics:ZoneConfig").model_fields
    crowded = "crowd_threshold" if "crowd_threshold" in zone else "crowded_above"
    rng = np.random.default_rng(1)
    zones = []
    for number in range(20):
        (x, y), radius = rng.uniform((200, 250), (_WIDTH - 200, _HEIGHT - 250)), rng.uniform(80, 180)
        turns = np.arange(6) * np.pi / 3
        polygon = [(round(x + radius * np.cos(t), 1), round(y + radius * np.sin(t), 1)) for t in turns]
        zones.append({"name": f"zone{number}", "polygon": polygon, crowded: 3, "dwell_s": 10})
    lines = [{"name": f"line{n}", "points": [(100, 200 + 200 * n), (1800, 200 + 200 * n)]} for n in range(4)]
    stage = analytics(settings.model_validate({"lines": lines, "zones": zones}), "perf", ["person"], _WIDTH, _HEIGHT)
    tracks = find_any("vision.types:Tracks")
    steps = []
    for at, found in enumerate(_crowd(100, 0, 400)):
        zeros = np.zeros(len(found.scores), np.int64)
        one = tracks(found.boxes_xyxy, found.scores, found.class_ids, zeros + np.arange(1, len(zeros) + 1), zeros)
        steps.append(partial(stage.update, one, at * _STEP_NS))
    return _median_us(steps)


def _publishing() -> float:
    """Return the median CPU time, in microseconds, of a call of `publish` with ten objects and one subscriber."""
    import zmq

    publisher_of = find_any("vision.messaging.publisher:Publisher", "vision.publish:Publisher")
    detections, meta, result, timing = (
        find_any(f"vision.types:{name}") for name in ("Detections", "FrameMeta", "Result", "Timing")
    )
    boxes = np.linspace(10, 1000, 40, dtype=np.float32).reshape(10, 4)
    found = detections(boxes, np.linspace(0.9, 0.3, 10, dtype=np.float32), np.zeros(10, np.int32))
    with (
        publisher_of("tcp://127.0.0.1:*", node="bench", class_names=("person",)) as publisher,
        zmq.Context() as context,
        context.socket(zmq.SUB) as sock,
    ):
        sock.subscribe("")
        sock.connect(publisher.address)
        now_ns = time.monotonic_ns()
        metas = [meta("gate", number, 0, now_ns, time.time_ns(), _WIDTH, _HEIGHT) for number in range(3000)]
        results = [result(frame, found, timing(now_ns, now_ns, now_ns)) for frame in metas]
        while not sock.poll(10):  # until the subscription has arrived
            publisher.publish(results[0])
        return _median_us([partial(publisher.publish, result) for result in results])


def _median_us(steps: Sequence[Callable[[], object]]) -> float:
    times_ns = []
    for step in steps:
        begin_ns = time.thread_time_ns()
        step()
        times_ns.append(time.thread_time_ns() - begin_ns)
    return statistics.median(times_ns[len(times_ns) // 10 :]) / 1e3


# The function of each measurement, and True if a higher value is better.
MEASUREMENTS: Final[dict[str, tuple[Callable[[], float], bool]]] = {
    "offline_frames_per_s": (_offline, True),
    "tracking_10_objects_us": (lambda: _tracking(10), False),
    "tracking_100_objects_us": (lambda: _tracking(100), False),
    "analytics_20_zones_us": (_analytics, False),
    "publish_detections_us": (_publishing, False),
    "slot_batcher_loop_us": (_loop, False),
    "memory_20000_frames_mib": (_memory, False),
}


def work(name: str) -> None:
    """Run one measurement in this process, and print its value.

    The function removes the import hook of an editable installation, because this hook finds modules that this tree
    does not have.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
    print(json.dumps(MEASUREMENTS[name][0]()))


# ------------------------------------------------------------------------------------------------ in turn


def _measure(tree: Path, name: str) -> float:
    """Run one measurement in `tree`. Return its value.

    Raises:
        RuntimeError: the process failed. The message contains its standard error.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), *_extra_paths()])}
    command = [sys.executable, "-c", _WORKER, str(Path(__file__).resolve()), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tree, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{name} in {tree} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _extra_paths() -> list[str]:
    """Return all entries of PYTHONPATH except this tree."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]


def compare(base: Path, name: str, rounds: int) -> dict[str, Any]:
    """Run one measurement in both trees in each round, in alternating order, and compare the values."""
    values: dict[Path, list[float]] = {base: [], ROOT: []}
    for number in range(rounds):
        for tree in (base, ROOT) if number % 2 else (ROOT, base):
            values[tree].append(_measure(tree, name))
    more_is_better = MEASUREMENTS[name][1]
    ratios = [new / old if more_is_better else old / new for old, new in zip(values[base], values[ROOT], strict=True)]
    return {
        "base": statistics.median(values[base]),
        "this": statistics.median(values[ROOT]),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.against_commit", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="checkout to compare with, such as a git worktree")
    parser.add_argument("--rounds", type=int, default=5, help="number of measurements per tree. Default: %(default)s")
    parser.add_argument(
        "--only", default=",".join(MEASUREMENTS), help="measurements, separated by commas. Default: all"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    result = {}
    for name in arguments.only.split(","):
        print(f"measuring {name}", file=sys.stderr, flush=True)
        result[name] = compare(arguments.base.resolve(), name, arguments.rounds)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
