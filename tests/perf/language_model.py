"""Frame latency, events, and memory while the server of a language model misbehaves, and the time to a verdict.

    python -m tests.perf.language_model [--rounds 8] [--seconds 30] [--faults 100]

`faults` runs 32 stand-in cameras without and with `verify` in turn, and applies seeded faults to the server and to the
process that asks it. `verdicts` runs 40 cameras with a server that takes 0.6 s for an answer.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from tests.chat_server import ChatHttpServer, Handler, chat_server, completion, json_answer
from tests.perf.__main__ import result
from tests.perf.results import save, snake_case_keys
from vision.client import DetectionsMessage, EventMessage, Subscription

_CAMERAS, _FPS = 32, 5
_FPS_STEP: Final = 0.02  # between cameras, so that the phases of their frames are mixed in each run
_VERDICT_CAMERAS, _ANSWER_S = 40, 0.6
_WAIT_S: Final = 1.0
_WARM_S: Final = 3.0
_FAULT_S, _WORKING_S = 1.0, 0.5
_ZONE = {"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]], "anchor": "center"}
_RULE = {"name": "visited", "when": "zone_entered left"}


@dataclass
class Observed:
    """The messages that a subscriber received from one run."""

    latency_ms: list[float] = field(default_factory=list)  # from capture to publication, of each frame
    events: list[tuple[EventMessage, int]] = field(default_factory=list)  # with the time of arrival in ns
    since_ns: int = 0  # earlier events can be missing, because the subscriber had not joined
    numbers: list[int] = field(default_factory=list)  # in the journal
    resident_mib: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def of_rule(self) -> list[tuple[EventMessage, int]]:
        return [(event, at_ns) for event, at_ns in self.events if event.kind == "rule"]


def _config(folder: Path, cameras: int, url: str | None, *, wait: bool = True, parallel: int = 4) -> dict[str, Any]:
    ids = [f"c{number}" for number in range(cameras)]
    asking: dict[str, Any] = {}
    if url is not None:
        about = {"names": ["visited"], "prompt": "Is it red?"}
        waiting = [about | {"name": "waits", "cameras": ids[::2], "wait_s": _WAIT_S}] if wait else []
        language = {"url": url, "parallel": parallel, "timeout_s": 2.0, "max_age_s": 10.0}
        asking = {"language": language, "verify": [*waiting, about | {"name": "later"}]}
    return {
        "pipeline": "count",
        "processes": 1,
        "detect": {"backend": "fake", "max_batch": 32},
        "cameras": [
            {"id": name, "source": f"synthetic:320x240@{_FPS + number * _FPS_STEP:g}?objects=2&seed={number}"}
            for number, name in enumerate(ids)
        ],
        "analytics": {name: {"units": "fraction", "zones": [_ZONE]} for name in ids},
        "rules": [_RULE],
        "state_dir": str(folder / "state"),
        "publish": {"bind": f"ipc://{folder}/out", "queue": 100_000},
    } | asking


@contextmanager
def _running(config: dict[str, Any], folder: Path) -> Iterator[tuple[Observed, psutil.Process]]:
    """Run `vision run`, and receive its messages until the end of the block. Do not count the first seconds."""
    path = folder / "camera.yaml"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "vision.cli.main", "--log-level", "error", "run", str(path)]
    observed, done = Observed(), threading.Event()

    def receive() -> None:
        bind = config["publish"]["bind"]
        with Subscription(bind, kinds=("detections", "events"), queue=1_000_000, silence_s=60) as subscription:
            while not done.is_set():
                item = subscription.receive(0.1)
                if isinstance(item, EventMessage):
                    observed.events.append((item, time.monotonic_ns()))
                    observed.numbers.append(item.number or 0)
                elif isinstance(item, DetectionsMessage):
                    observed.since_ns = observed.since_ns or time.monotonic_ns()
                    observed.latency_ms.append(item.timing_ms.total)

    with subprocess.Popen(command) as process:
        receiver = threading.Thread(target=receive)
        receiver.start()
        try:
            while not observed.latency_ms:
                if process.poll() is not None:
                    raise RuntimeError(f"`vision run` ended with exit code {process.returncode}")
                time.sleep(0.05)
            time.sleep(_WARM_S)
            observed.latency_ms.clear()
            yield observed, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(20)
            time.sleep(0.5)
            done.set()
            receiver.join()


# --- faults -----------------------------------------------------------------------------------------------------------


def _break_connection(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def _trickle(handler: Handler) -> None:
    handler.trickle(b" ", 0.05)


def _send_without_end(handler: Handler) -> None:
    handler.trickle(b"data: {}\n" * 10_000, 0.05)


def _answer_late(handler: Handler) -> None:
    time.sleep(random.uniform(0.3, 3.0))
    handler.send(json_answer("no"))


_WORKS: Final = "works"
_SERVER_FAULTS: Final[Mapping[str, Callable[[Handler], None]]] = {
    _WORKS: lambda handler: handler.send(json_answer("yes")),
    "hangs": lambda handler: handler.hang(),
    "slow": _answer_late,
    "wrong key": lambda handler: handler.send({"error": {"message": "invalid key"}}, 401),
    "no model": lambda handler: handler.send({"error": {"message": "model not found"}}, 404),
    "image too large": lambda handler: handler.send("", 413),
    "busy": lambda handler: handler.send("", 429),
    "server error": lambda handler: handler.send({"error": "out of memory"}, 500),
    "wrong answer": lambda handler: handler.send(json_answer("perhaps")),
    "rubbish": lambda handler: handler.send("\x00\x01{[" * 1000),
    "no answer": lambda handler: handler.send(completion(None)),
    "broken connection": _break_connection,
    "byte by byte": _trickle,
    "without end": _send_without_end,
}


def _language_process(program: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.Error):
        return next((p for p in program.children() if any("vision.language" in part for part in p.cmdline())), None)
    return None


def _apply(fault: str, server: ChatHttpServer, program: psutil.Process, chance: random.Random) -> None:
    if fault in _SERVER_FAULTS:
        server.script.chat = _SERVER_FAULTS[fault]
        return
    process = _language_process(program)
    if process is None:
        return
    with suppress(psutil.Error):
        process.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        if fault == "stopped":
            time.sleep(chance.uniform(0.1, 1.0))
            process.send_signal(signal.SIGCONT)


def _with_faults(faults: list[str], seed: int) -> tuple[Observed, Counter[str]]:
    """Apply each fault for a second, and let the server work for half a second between two faults.

    Return what a subscriber received, and the number of requests that met each fault.
    """
    chance, applied = random.Random(seed), [(0.0, _WORKS)]
    with tempfile.TemporaryDirectory() as name, chat_server() as server:
        folder = Path(name)
        with _running(_config(folder, _CAMERAS, server.url), folder) as (observed, program):
            for fault in (part for each in faults for part in (each, _WORKS)):
                applied.append((time.monotonic(), fault))
                _apply(fault, server, program, chance)
                time.sleep(_WORKING_S if fault == _WORKS else _FAULT_S)
                _sample(observed, program)
        times = [at_s for at_s, _ in applied]
        met = Counter(applied[bisect.bisect(times, request.at_s) - 1][1] for request in server.requests)
    return observed, met


def _sample(observed: Observed, program: psutil.Process) -> None:
    with suppress(psutil.Error):
        observed.resident_mib["program"].append(program.memory_info().rss / 2**20)
        if (process := _language_process(program)) is not None:
            observed.resident_mib["language"].append(process.memory_info().rss / 2**20)


def _without(seconds: float) -> Observed:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _running(_config(folder, _CAMERAS, None), folder) as (observed, _):
            time.sleep(seconds)
        return observed


def _event_faults(observed: Observed) -> dict[str, Any]:
    """Compare the events of the rule with the events that it reports: each has one, and none is late."""
    events = [(e, at) for e, at in observed.events if e.at_monotonic_ns > observed.since_ns]
    entered = Counter((e.camera, e.epoch, e.frame, e.track_id) for e, _ in events if e.kind == "zone_entered")
    first = [(e, at) for e, at in events if e.kind == "rule" and e.amends is None]
    reported = Counter((e.camera, e.epoch, e.frame, e.track_id) for e, _ in first)
    plain_ms = [(at - e.at_monotonic_ns) / 1e6 for e, at in events if e.kind == "zone_entered"]
    at_once_ms = [(at - e.at_monotonic_ns) / 1e6 for e, at in first if int(e.camera[1:]) % 2]
    waiting_ms = [(at - e.at_monotonic_ns) / 1e6 for e, at in first if not int(e.camera[1:]) % 2]
    numbers = observed.numbers
    return {
        "events": sum(entered.values()),
        "lost": sum((entered - reported).values()),
        "repeated": sum((reported - entered).values()),
        "gaps_in_journal": sum(b != a + 1 for a, b in pairwise(numbers)),
        "amended": sum(e.amends is not None for e, _ in observed.of_rule()),
        "with_verdict": sum(e.verdict is not None for e, _ in first),
        "p99_ms_of_events_without_question": _quantile(plain_ms, 99),
        "p99_ms_of_events_with_question": _quantile(at_once_ms, 99),
        "p99_ms_of_events_that_wait_1_s": _quantile(waiting_ms, 99),
        "max_ms_of_events_that_wait_1_s": round(max(waiting_ms, default=0.0), 1),
    }


def _quantile(values: list[float], percent: float) -> float:
    return round(float(np.percentile(values, percent)), 2) if values else 0.0


def faults(rounds: int, number: int) -> dict[str, Any]:
    """Run the cameras without and with questions in turn. Return latencies, events, and memory."""
    chance = random.Random(7)
    kinds = [*_SERVER_FAULTS.keys() - {_WORKS}, "killed", "stopped"]
    kinds.sort()
    plan = [chance.choice(kinds) for _ in range(number)]
    p99: dict[str, list[float]] = {"without": [], "with": []}
    p50: dict[str, list[float]] = {"without": [], "with": []}
    events, memory, met = [], [], Counter[str]()
    for each in range(rounds):
        share = plan[each * number // rounds : (each + 1) * number // rounds]
        runs = {"without": _without(len(share) * (_FAULT_S + _WORKING_S))}
        runs["with"], met_now = _with_faults(share, each)
        met += met_now
        for name, observed in runs.items():
            p99[name].append(_quantile(observed.latency_ms, 99))
            p50[name].append(_quantile(observed.latency_ms, 50))
        events.append(_event_faults(runs["with"]))
        memory.append(_growth(runs["with"]))
        print(json.dumps({"p99": p99, "p50": p50, "events": events[-1], "memory": memory[-1]}), file=sys.stderr)
    return {
        "cameras": _CAMERAS,
        "frames_per_s_of_each": [_FPS, _FPS + (_CAMERAS - 1) * _FPS_STEP],
        "faults": dict(Counter(plan)),
        "requests_by_fault": dict(met),
        "p99_ms_without": p99["without"],
        "p99_ms_with": p99["with"],
        "ratio_of_least_p99": round(min(p99["with"]) / min(p99["without"]), 3),
        "ratio_of_median_p99": round(statistics.median(p99["with"]) / statistics.median(p99["without"]), 3),
        "ratio_of_least_p50": round(min(p50["with"]) / min(p50["without"]), 3),
        "events_of_each_round": events,
        "memory_of_each_round": memory,
    }


def _growth(observed: Observed) -> dict[str, float]:
    found = {}
    for name, samples in observed.resident_mib.items():
        third = max(1, len(samples) // 3)
        found[f"{name}_resident_mib_first_third"] = round(max(samples[:third]), 1)
        found[f"{name}_resident_mib_last_third"] = round(max(samples[-third:]), 1)
    return found


# --- the time to a verdict --------------------------------------------------------------------------------------------


def verdicts(seconds: float) -> dict[str, Any]:
    """Run 40 cameras with a server that takes 0.6 s for an answer. Return the times from event to verdict."""

    def answer(handler: Handler) -> None:
        time.sleep(_ANSWER_S)
        handler.send(json_answer("yes"))

    with tempfile.TemporaryDirectory() as name, chat_server(answer) as server:
        folder = Path(name)
        config = _config(folder, _VERDICT_CAMERAS, server.url, wait=False, parallel=32)
        with _running(config, folder) as (observed, _):
            from_ns = time.monotonic_ns()
            time.sleep(seconds)
            to_ns = time.monotonic_ns() - 5_000_000_000  # later events can be without an answer at the end
    first = {e.id: (e, at) for e, at in observed.of_rule() if e.amends is None and from_ns < at < to_ns}
    answered = [(e, at) for e, at in observed.of_rule() if e.amends is not None and e.id in first]
    from_capture = [(at - e.at_monotonic_ns) / 1e6 for e, at in answered]
    from_event = [(at - first[e.id][1]) / 1e6 for e, at in answered]
    by_camera = {
        camera: sum(e.camera == camera for e, _ in answered)
        / max(1, sum(e.camera == camera for e, _ in first.values()))
        for camera in {e.camera for e, _ in first.values()}
    }
    return {
        "cameras": _VERDICT_CAMERAS,
        "answer_s": _ANSWER_S,
        "events_per_s": round(len(first) / (seconds - 5), 1),
        "events": len(first),
        "verdicts": len(answered),
        "event_to_verdict_p50_ms": _quantile(from_event, 50),
        "event_to_verdict_p95_ms": _quantile(from_event, 95),
        "capture_to_verdict_p95_ms": _quantile(from_capture, 95),
        "least_answered_share_of_a_camera": round(min(by_camera.values(), default=0.0), 3),
        "cameras_with_events": len(by_camera),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.language_model")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of the run of `verdicts`")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--save", action="store_true", help="write the result to tests/perf/results")
    arguments = parser.parse_args()
    measured = {
        "verdicts": verdicts(arguments.seconds),
        "faults": faults(arguments.rounds, arguments.faults),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(snake_case_keys(measured), indent=1))
    if arguments.save:
        title = "Frame latency, events, and memory while the server of a language model misbehaves"
        print(save(result("language_model", measured, title)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
