"""Kill the program with SIGKILL at random moments. No acknowledged event may be lost, and counters must match events.

python -m tests.soak.kills [--kills 100] [--processes 1] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tests.messages.processes import Program, python
from vision.benchmark.chaos.stored import read_stored
from vision.client import EventMessage, Gap, NewJournal, Problem, Subscription

LONGEST_RUN_S: Final = 2.0  # of the program, after its first crossing
PATIENCE_S: Final = 60.0

CONFIG = """
pipeline: count
processes: PROCESSES
cameras:
  - {id: a, source: "synthetic:320x240@60?objects=12&seed=1&overlap=1"}
  - {id: b, source: "synthetic:320x240@60?objects=12&seed=2&overlap=1"}
detect: {backend: fake, score_threshold: 0.2}
track: {low_score: 0.1, high_score: 0.15, new_score: 0.2}
analytics:
  a: {lines: [{name: v, points: [[160, 0], [160, 240]]}]}
  b: {lines: [{name: v, points: [[160, 0], [160, 240]]}]}
state_dir: FOLDER/state
publish: {bind: "ipc://FOLDER/out", replay: "ipc://FOLDER/again", max_events: 1000000}
"""


class Received:
    """Events that a subscriber has received over all starts of the program."""

    def __init__(self, folder: Path) -> None:
        self.numbers: list[int] = []
        self.crossings = 0
        self.problems: list[str] = []
        self.subscription = Subscription(
            f"ipc://{folder}/out", kinds=("events",), since=0, replay=f"ipc://{folder}/again", silence_s=1e6
        )

    def receive(self, seconds: float) -> None:
        """Receive events for `seconds`, and record them."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            item = self.subscription.receive(min(left_s, 0.1))
            if isinstance(item, EventMessage):
                self.crossings += item.kind == "line_crossed"
                if item.number is not None:
                    self.numbers.append(item.number)
                else:
                    self.problems.append(f"an event of {item.camera} was not stored")
            elif isinstance(item, Gap | NewJournal | Problem):
                self.problems.append(str(item))

    def wait_for_more(self, program: Program) -> None:
        """Receive events until an object crosses the line. Raise `AssertionError` if none crosses within a minute.

        Other events do not count, because the program can report them before its workers have started.
        """
        count, deadline_s = self.crossings, time.monotonic() + PATIENCE_S
        while self.crossings == count:
            if time.monotonic() > deadline_s:
                raise AssertionError(f"no crossing for {PATIENCE_S:.0f} s: {program.pending()[-5:]}")
            self.receive(0.1)


def run(kills: int, processes: int, seed: int) -> dict[str, Any]:
    """Start the program and kill it, `kills` times. Return the counts and all problems."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "camera.yaml"
        config.write_text(CONFIG.replace("FOLDER", name).replace("PROCESSES", str(processes)))
        received = Received(folder)
        with closing(received.subscription):
            for kill in range(kills + 1):
                with python("-m", "vision", "--log-level", "warning", "run", config) as program:
                    received.wait_for_more(program)
                    received.receive(chance.uniform(0, LONGEST_RUN_S))
                    program.send(signal.SIGKILL if kill < kills else signal.SIGTERM)
                    program.wait()
                print(f"{kill + 1} starts, {len(received.numbers)} events", file=sys.stderr, flush=True)
            received.receive(2.0)
        stored = read_stored(folder / "state")
    numbers, newest = received.numbers, max(received.numbers)
    problems = received.problems
    problems += [f"event {n} was not received" for n in sorted(set(range(1, newest + 1)) - set(numbers))]
    problems += ["an event was received more than once"] if len(set(numbers)) < len(numbers) else []
    problems += [f"event {n} is not stored" for n in sorted(set(numbers) - set(stored.numbers))]
    problems += [
        f"the counter of {crossing} is {stored.counters.get(crossing)}, but {events} events are stored"
        for crossing, events in stored.crossings.items()
        if stored.counters.get(crossing) != events
    ]
    return {"kills": kills, "processes": processes, "seed": seed, "events": len(numbers), "problems": problems}


def main() -> int:
    """Print the result as JSON. Return 1 if there are problems."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found = run(arguments.kills, arguments.processes, arguments.seed)
    print(json.dumps(found, indent=1))
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
