"""Pass hours of events through the real program while the server of its language model fails. Memory must not grow.

python -m tests.soak.language_events [--minutes 25] [--without-questions] [--save]

32 stand-in cameras have small frames and a high frame rate. They report many more events than the cameras of
`tests.perf.language_model --only soak`, so that hours of events pass within minutes. The server changes its behavior
every second: it works normally, or has a random fault. At intervals, the program kills and restarts the server.

Memory is the memory that a process does not share (`program`: the process that receives frames and publishes events;
`language`: the process that asks the server). The slope is in MiB per 11,440 events, the number of events that the
cameras of `tests.perf.language_model` report in an hour, after the first quarter of the events.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from tests.messages.processes import Program, python
from tests.perf.__main__ import result
from tests.perf.language_server import FAULTS, WORKS, ServerProcess
from tests.perf.results import save, snake_case_keys
from vision.client import EventMessage, Gap, NodeStatusMessage, Problem, Restart, Subscription

_CAMERAS: Final = 32
_FPS: Final = 12
_EVENTS_PER_HOUR: Final = 11_440
_MAX_SLOPE: Final = 1.0  # MiB per hour
_WARM_PART: Final = 1 / 4
_SAMPLE_S: Final = 5.0
_FAULT_S, _WORKING_S = 1.0, 0.5
_OUTAGE_EVERY: Final = 40  # faults between two outages
_OUTAGE_S: Final = 8.0
_START_S: Final = 60.0
_ZONE: Final = {"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]], "anchor": "center"}


@dataclass(frozen=True, slots=True)
class Sample:
    """Number of events so far, and the unshared memory of one process in MiB."""

    at_s: float
    events: int
    pid: int
    mib: float


@dataclass
class Seen:
    """Received messages, and the memory of the processes by name."""

    kinds: Counter[str] = field(default_factory=Counter)  # with `amended` for second messages
    counters: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {"program": [], "language": []})


def configuration(folder: Path, url: str | None) -> dict[str, Any]:
    """Return the configuration of the measured program. If `url` is None, the program asks no questions."""
    names = [f"c{number}" for number in range(_CAMERAS)]
    config: dict[str, Any] = {
        "pipeline": "count",
        "processes": 1,
        "detect": {"backend": "fake", "max_batch": 32},
        "cameras": [
            {"id": name, "source": f"synthetic:64x48@{_FPS}?objects=3&seed={seed}"} for seed, name in enumerate(names)
        ],
        "analytics": {name: {"units": "fraction", "zones": [_ZONE]} for name in names},
        "rules": [{"name": "visited", "when": "zone_entered left"}],
        "state_dir": str(folder / "state"),
        "publish": {"bind": f"ipc://{folder}/out"},
    }
    if url is None:
        return config
    about = {"names": ["visited"], "prompt": "Is it red?"}
    waits = about | {"name": "waits", "cameras": names[::2], "wait_s": 1.0}
    drops = about | {"name": "drops", "cameras": names[1::4], "wait_s": 1.0, "keep": ["yes"], "on_timeout": "drop"}
    return config | {
        "language": {"url": url, "timeout_s": 2.0, "max_age_s": 10.0, "ledger": str(folder / "ledger")},
        "verify": [waits, drops, about | {"name": "later"}],
        "describe": [{"name": "describes", "names": ["visited"], "cameras": names[:8]}],
    }


def _receive(bind: str, seen: Seen, done: threading.Event) -> None:
    with closing(Subscription(bind, kinds=("status", "events"), queue=100_000, silence_s=60.0)) as subscription:
        while not done.is_set():
            item = subscription.receive(0.1)
            if isinstance(item, EventMessage):
                seen.kinds[item.kind if item.amends is None else "amended"] += 1
            elif isinstance(item, NodeStatusMessage):
                seen.counters = {k: v for k, v in item.counters.items() if k.startswith("language.")}
            elif isinstance(item, Gap | Problem | Restart):
                seen.problems.append(str(item))


def _sample(seen: Seen, program: Program) -> None:
    now_s = time.monotonic()
    main = psutil.Process(program.pid)
    language = [each for each in main.children() if any("vision.language" in part for part in each.cmdline())]
    for name, process in [("program", main), *(("language", each) for each in language)]:
        mib = process.memory_full_info().uss / 2**20
        seen.samples[name].append(Sample(now_s, seen.kinds["zone_entered"], process.pid, mib))
    print(f"{seen.kinds['zone_entered']:8} events, {seen.samples['program'][-1].mib:6.1f} MiB", file=sys.stderr)


def _disturb(server: ServerProcess, seconds: float, program: Program, seen: Seen) -> Counter[str]:
    """Change the behavior of the server until `seconds` have passed. Return the number of occurrences of each fault."""
    chance, faults = random.Random(11), Counter[str]()
    end_s = time.monotonic() + seconds
    sample_s = 0.0
    while (now_s := time.monotonic()) < end_s:
        if now_s >= sample_s:
            sample_s = now_s + _SAMPLE_S
            _sample(seen, program)
        fault = chance.choice(list(FAULTS))
        faults[fault] += 1
        server.behave(fault)
        time.sleep(_FAULT_S)
        server.behave(WORKS)
        time.sleep(_WORKING_S)
        if sum(faults.values()) % _OUTAGE_EVERY == 0:
            server.kill()
            time.sleep(_OUTAGE_S)
            server.start()
            faults["outage"] += 1
    return faults


def run(minutes: float, *, asks: bool) -> dict[str, Any]:
    """Run the program for `minutes`. Return the figures and all problems."""
    seen, done = Seen(), threading.Event()
    with tempfile.TemporaryDirectory() as name, ServerProcess() as server:
        folder = Path(name)
        config = configuration(folder, server.url if asks else None)
        (folder / "camera.yaml").write_text(json.dumps(config))
        receiver = threading.Thread(target=_receive, args=(config["publish"]["bind"], seen, done))
        with python("-m", "vision", "--log-level", "error", "run", folder / "camera.yaml") as program:
            receiver.start()
            try:
                deadline_s = time.monotonic() + _START_S
                while not seen.kinds["zone_entered"] and time.monotonic() < deadline_s:
                    time.sleep(0.1)
                faults = _disturb(server, minutes * 60, program, seen)
                program.send(signal.SIGTERM)
                code = program.wait()
            finally:
                done.set()
                receiver.join()
    seen.problems += [f"the program ended with exit code {code}"] if code else []
    return _figures(seen, faults, asks=asks)


def _figures(seen: Seen, faults: Counter[str], *, asks: bool) -> dict[str, Any]:
    events = seen.kinds["zone_entered"]
    memory = {name: growth(samples) for name, samples in seen.samples.items() if samples}
    for name, each in memory.items():
        if each["mib_per_11440_events"] >= _MAX_SLOPE:
            seen.problems.append(f"{name}: the memory grows by {each['mib_per_11440_events']} MiB per hour of events")
    first = seen.samples["program"]
    return {
        "asks": asks,
        "cameras": _CAMERAS,
        "seconds": round(first[-1].at_s - first[0].at_s),
        "events": events,
        "hours_of_events": round(events / _EVENTS_PER_HOUR, 2),
        "amended": seen.kinds["amended"],
        "faults": dict(faults),
        "memory": memory,
        "counters": seen.counters,
        "problems": seen.problems,
    }


def growth(samples: list[Sample]) -> dict[str, float]:
    """Return the memory of a process after the first quarter of its events and at the end, and the slope in between.

    If the process was replaced, only the samples of the latest process count.
    """
    own = [each for each in samples if each.pid == samples[-1].pid]
    warm = [each for each in own if each.events >= own[-1].events * _WARM_PART] or own
    mib = [each.mib for each in warm]
    by_events = np.polyfit([each.events / _EVENTS_PER_HOUR for each in warm], mib, 1)[0]
    by_time = np.polyfit([each.at_s / 3600 for each in warm], mib, 1)[0]
    return {
        "mib_after_start": round(own[0].mib, 1),
        "mib_after_first_quarter": round(mib[0], 1),
        "mib_at_end": round(mib[-1], 1),
        "mib_per_11440_events": round(float(by_events), 3),
        "mib_per_hour_of_the_run": round(float(by_time), 3),
    }


def main() -> int:
    """Print the result as JSON. Return 1 if there are problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--without-questions", action="store_true", help="run without `language`, as a comparison")
    parser.add_argument("--save", action="store_true", help="write the result to tests/perf/results")
    arguments = parser.parse_args()
    found = run(arguments.minutes, asks=not arguments.without_questions)
    print(json.dumps(found, indent=1))
    if arguments.save:
        name = "language_events_without_questions" if arguments.without_questions else "language_events"
        figures: dict[str, Any] = snake_case_keys(found)
        save(result(name, figures, "Memory while events are sent to a language model server that fails"))
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
