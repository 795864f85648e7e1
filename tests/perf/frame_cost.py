"""CPU time per frame of the stages of the pipeline `count` on one core: each stage alone, and all stages together.

python -m tests.perf.frame_cost [--base FOLDER] [--rounds 20] [--objects 1,6,20,50] [--json FILE]

Each camera has a line, a zone, and two rules. A subscriber in another process receives the messages. With one camera,
the stages process one frame at a time. With eight cameras, they process one frame of each camera as a batch. With
--base, the program alternates between this tree and a second checkout, for example of commit 8efa608. Other programs on
the machine can only make a frame slower, so the value of a frame is the minimum of its times over all rounds. A result
is the mean of the values of all frames, because events make some frames slower. The ratio is the time of the second
checkout divided by the time of this tree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import zmq

from tests.perf.against_commit import OWN_TESTS, find_any

ROOT: Final = Path(__file__).resolve().parents[2]
OBJECTS: Final = (1, 6, 20, 50)
CAMERAS: Final = (1, 8)
Round: TypeAlias = Callable[[int, int], dict[str, float]]
_FRAMES: Final = 150
_WARM_UP: Final = 30  # first frames, which are not measured
_STEP_NS: Final = 33_333_333
_WIDTH, _HEIGHT = 1920, 1080
_NAMES: Final = ("person",)
_STAGES: Final = ("track", "line_and_zone", "rules", "encode_and_publish")
_SHAPES: Final = {
    "units": "fraction",
    "lines": [{"name": "middle", "points": [[0.5, 0.1], [0.5, 0.9]]}],
    "zones": [{"name": "center", "polygon": [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]], "dwell_s": 2}],
}
_RULES: Final = (
    {"name": "crossed", "when": "line_crossed middle", "cooldown": "1s"},
    {"name": "waits", "when": "dwelling center for 3s"},
)
_SUBSCRIBER: Final = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe("")
socket.connect(sys.argv[1])
socket.recv_multipart()
print(flush=True)
while True:
    socket.recv_multipart()
"""
_WORKER: Final = OWN_TESTS + "from tests.perf.frame_cost import work; work()"


# ------------------------------------------------------------------------------------------------ in each tree


def make_crowd(objects: int, frames: int, seed: int = 0, size: tuple[int, int] = (_WIDTH, _HEIGHT)) -> list[Any]:
    """Return the detections of each frame: people who turn at the border, and half as many boxes with low scores.

    The function scales the boxes to frames of the size `size` (width, height).
    """
    scale = np.tile(np.array(size) / (_WIDTH, _HEIGHT), 2)
    detections = find_any("vision.types:Detections")
    rng = np.random.default_rng(seed)
    place = rng.uniform((50, 200), (_WIDTH - 50, _HEIGHT - 50), (objects, 2))
    speed = rng.normal(0, 60, (objects, 2))
    height = rng.uniform(60, 160, objects)[:, None]
    result = []
    for _ in range(frames):
        place = place + speed * _STEP_NS * 1e-9
        speed = np.where((place < (50, 200)) | (place > (_WIDTH - 50, _HEIGHT - 50)), -speed, speed)
        seen = rng.random(objects) < 0.95
        foot = (place + rng.normal(0, 0.03, (objects, 2)) * height)[seen]
        half = 0.2 * height[seen]
        boxes = np.hstack([foot[:, :1] - half, foot[:, 1:] - height[seen], foot[:, :1] + half, foot[:, 1:]])
        strewn = rng.uniform((0, 0), (_WIDTH - 40, _HEIGHT - 90), (objects // 2, 2))
        boxes = np.concatenate([boxes, np.hstack([strewn, strewn + np.array([30, 80])])])
        scores = np.concatenate([rng.beta(8, 3, int(seen.sum())), rng.uniform(0.15, 0.35, objects // 2)])
        result.append(
            detections((boxes * scale).astype(np.float32), scores.astype(np.float32), np.zeros(len(scores), np.int32))
        )
    return result


def make_batches(objects: int, cameras: int) -> list[list[Any]]:
    """Return one batch for each frame time. A batch contains the detections of one frame of each camera."""
    meta, result, timing = (find_any(f"vision.types:{name}") for name in ("FrameMeta", "Result", "Timing"))
    now_ns, now_utc_ns = time.monotonic_ns(), time.time_ns()
    crowds = [make_crowd(objects, _FRAMES, camera) for camera in range(cameras)]
    batches = []
    for at, found in enumerate(zip(*crowds, strict=True)):
        captured_ns = now_ns + at * _STEP_NS
        about = [
            meta(f"camera-{camera}", at, 0, captured_ns, now_utc_ns + at * _STEP_NS, _WIDTH, _HEIGHT)
            for camera in range(cameras)
        ]
        times = timing(captured_ns, captured_ns, captured_ns)
        batches.append([result(one, objects, times) for one, objects in zip(about, found, strict=True)])
    return batches


def make_stages(cameras: int) -> list[Any]:
    """Return new stages of the pipeline `count`, without the publisher."""
    section = find_any("vision.config.analytics:CameraAnalytics").model_validate(_SHAPES)
    rules = [find_any("vision.config.rules:RuleConfig").model_validate(rule) for rule in _RULES]
    sections = {f"camera-{camera}": section for camera in range(cameras)}
    return [
        find_any("vision.stages.analytics:TrackStage", "vision.stages:TrackStage")(),
        find_any("vision.stages.analytics:AnalyticsStage", "vision.stages:AnalyticsStage")(sections, _NAMES),
        find_any("vision.stages.rules:RuleStage", "vision.rules:RuleStage")(rules, sections),
    ]


def _one_by_one(stage: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda batch: [stage(result) for result in batch]


class Costs:
    """Minimum time, in ns, of each batch over all rounds, for each stage alone and for all stages together."""

    def __init__(self, objects: int, cameras: int, publish: Callable[[Any], None]) -> None:
        self._batches = make_batches(objects, cameras)
        self._cameras = cameras
        self._publish = _one_by_one(publish)
        self._least = {name: np.full(len(self._batches), np.inf) for name in (*_STAGES, "together")}

    def round(self) -> None:
        """Process all frames twice, with new stages. Measure each stage alone, and then all stages together."""
        clock, steps = time.thread_time_ns, self._steps()
        times = np.empty((len(self._batches), len(steps) + 1))
        for at, batch in enumerate(self._batches):
            times[at, 0] = clock()
            for number, step in enumerate(steps, 1):
                batch = step(batch)  # noqa: PLW2901 - the result of one stage is the input of the next
                times[at, number] = clock()
        for name, column in zip(_STAGES, np.diff(times, axis=1).T, strict=True):
            np.minimum(self._least[name], column, out=self._least[name])
        track, analytics, rules, publish = self._steps()
        together = self._least["together"]
        for at, batch in enumerate(self._batches):
            begin_ns = clock()
            publish(rules(analytics(track(batch))))
            together[at] = min(together[at], clock() - begin_ns)

    def us(self) -> dict[str, float]:
        """Return the mean time per frame in us, over all frames."""
        per_us = 1e3 * self._cameras
        return {name: round(float(least[_WARM_UP:].mean()) / per_us, 1) for name, least in self._least.items()}

    def _steps(self) -> list[Callable[[Sequence[Any]], list[Any]]]:
        track, analytics, rules = make_stages(self._cameras)
        together = getattr(track, "process_together", None) or _one_by_one(track)
        return [together, _one_by_one(analytics), _one_by_one(rules), self._publish]


@contextmanager
def publishing() -> Iterator[Callable[[Any], None]]:
    """Open a publisher with a subscriber in another process. Yield its method `publish`."""
    publisher_of = find_any("vision.messaging.publisher:Publisher", "vision.publish:Publisher")
    with ExitStack() as stack:
        publisher = stack.enter_context(publisher_of("tcp://127.0.0.1:*", node="bench", class_names=_NAMES))
        command = [sys.executable, "-c", _SUBSCRIBER, publisher.address]
        subscriber = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(subscriber.kill)
        assert subscriber.stdout is not None
        poller = zmq.Poller()
        poller.register(subscriber.stdout.fileno(), zmq.POLLIN)
        first = make_batches(1, 1)[0][0]
        while not poller.poll(10):  # until the subscription has arrived
            publisher.publish(first)
        yield publisher.publish


def work() -> None:
    """Run a round for each line "OBJECTS CAMERAS" of standard input. After each round, print the minima so far."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
    costs: dict[str, Costs] = {}
    with publishing() as publish:
        for line in sys.stdin:
            if line not in costs:
                objects, cameras = map(int, line.split())
                costs[line] = Costs(objects, cameras, publish)
            costs[line].round()
            print(json.dumps(costs[line].us()), flush=True)


# ------------------------------------------------------------------------------------------------ in turn


@contextmanager
def _worker(tree: Path) -> Iterator[Round]:
    """Start a process that imports `vision` from `tree`. Yield a function that runs a round and returns the minima."""
    paths = [str(tree), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(path) != ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", _WORKER, str(ROOT)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree
    ) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def run(objects: int, cameras: int) -> dict[str, float]:
            requests.write(f"{objects} {cameras}\n")
            requests.flush()
            return dict(json.loads(answers.readline()))

        yield run
        requests.close()


def compare(base: Path | None, objects: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure this tree with one camera and with several. If `base` is not None, alternate between both trees."""
    trees = {"this": ROOT} if base is None else {"base": base, "this": ROOT}
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(tree)) for name, tree in trees.items()}
        for number in objects:
            for cameras in CAMERAS:
                label = f"objects_{number}_cameras_{cameras}"
                found[label] = _turns(workers, number, cameras, max(2, rounds // cameras**0.5))
                print(label, json.dumps(found[label]), file=sys.stderr, flush=True)
    return found


def _turns(workers: Mapping[str, Round], objects: int, cameras: int, rounds: float) -> dict[str, Any]:
    least: dict[str, Any] = {}
    for _ in range(int(rounds)):
        for name, run in workers.items():
            least[f"{name}_us"] = run(objects, cameras)
    if "base_us" in least:
        least["ratio"] = {name: round(us / least["this_us"][name], 2) for name, us in least["base_us"].items()}
    return least


def measure(quick: bool = False) -> Mapping[str, Any]:
    """Measure this tree without comparison, for `python -m tests.perf`."""
    return compare(None, OBJECTS, 2 if quick else 20)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.frame_cost", description=__doc__)
    parser.add_argument("--base", type=Path, help="checkout to compare with, such as a git worktree")
    parser.add_argument("--rounds", type=int, default=20, help="number of rounds per tree. Default: %(default)s")
    parser.add_argument(
        "--objects", default=",".join(map(str, OBJECTS)), help="numbers of objects. Default: %(default)s"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    base = arguments.base.resolve() if arguments.base is not None else None
    found = compare(base, [int(number) for number in arguments.objects.split(",")], arguments.rounds)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
