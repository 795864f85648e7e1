"""Frame latency, events, and memory while the server of a language model misbehaves, and the time to a verdict.

    python -m tests.perf.language_model --soak-minutes 30 --save     # about 100 minutes; needs an idle machine
    python -m tests.perf.language_model --rounds 1 --faults 4 --seconds 10 --outage 5 5 --rest 5     # about 3 minutes

The server is a separate process. The measurement has three parts:

* `verdicts` runs 40 cameras with a server that takes 0.6 s for an answer, with 4, 8, and 32 requests at the same time.
* `faults` runs 32 stand-in cameras in pairs, without and with `verify`, in alternating order. In the runs with
  `verify`, it applies seeded faults to the server and to the process that sends the questions. Then it kills the
  server, starts it again after an outage, and waits for the program's next question to the server. It compares the
  frames and events of the runs of a pair.
* `soak` applies faults and outages of the server for a long time, and measures how fast the memory grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from tests.perf.__main__ import result
from tests.perf.language_server import FAULTS, WORKS, ServerProcess, answers_after
from tests.perf.results import save, snake_case_keys
from vision.client import DetectionsMessage, EventMessage, Subscription

_CAMERAS, _FPS = 32, 5
_FPS_STEP: Final = 0.02  # between cameras, so that the phases of their frames are mixed in each run
_VERDICT_CAMERAS, _ANSWER_S = 40, 0.6
_PARALLEL: Final = (4, 8, 32)  # requests at the same time in `verdicts`
_WAIT_S: Final = 1.0
_WARM_S: Final = 3.0
_FAULT_S, _WORKING_S = 1.0, 0.5
_SOAK_OUTAGE_EVERY: Final = 40  # faults of `soak` between two outages
_SOAK_WORK_S: Final = 20.0  # time without faults after an outage of `soak`
_RESAMPLES: Final = 10_000
_ZONE = {"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]], "anchor": "center"}
_RULE = {"name": "visited", "when": "zone_entered left"}


@dataclass
class Observed:
    """The messages that a subscriber received from one run."""

    latency_ms: list[float] = field(default_factory=list)  # from capture to publication, of each frame
    events: list[tuple[EventMessage, int]] = field(default_factory=list)  # with the time of arrival in ns
    since_ns: int = 0  # earlier events can be missing, because the subscriber had not joined
    numbers: list[int] = field(default_factory=list)  # in the journal
    resident_mib: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """Resident memory of each process in MiB, with the monotonic time in s."""

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


def _language_process(program: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.Error):
        return next((p for p in program.children() if any("vision.language" in part for part in p.cmdline())), None)
    return None


def _apply(fault: str, server: ServerProcess, program: psutil.Process, chance: random.Random) -> None:
    if fault in FAULTS or fault == WORKS:
        server.behave(fault)
        return
    process = _language_process(program)
    if process is None:
        return
    with suppress(psutil.Error):
        process.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        if fault == "stopped":
            time.sleep(chance.uniform(0.1, 1.0))
            process.send_signal(signal.SIGCONT)


def _apply_all(
    faults: Sequence[str], server: ServerProcess, program: psutil.Process, observed: Observed, chance: random.Random
) -> None:
    """Apply each fault for a second, and let the server work for half a second between two faults."""
    for fault in (part for each in faults for part in (each, WORKS)):
        _apply(fault, server, program, chance)
        time.sleep(_WORKING_S if fault == WORKS else _FAULT_S)
        _sample(observed, program)


def _outage(server: ServerProcess, seconds: float, longest_s: float) -> float | None:
    """Kill the server, and start it again after `seconds`.

    Return the time in seconds from the new start until the program asks the server a question; None if this takes
    longer than `longest_s`.
    """
    server.kill()
    time.sleep(seconds)
    before = server.met[WORKS]
    server.start()
    started_s = time.monotonic()
    while server.met[WORKS] == before:
        if time.monotonic() - started_s > longest_s:
            return None
        time.sleep(0.05)
    return round(time.monotonic() - started_s, 1)


@dataclass
class _Round:
    """A run with `verify`, faults, and an outage."""

    observed: Observed
    met: Counter[str]  # requests by the behavior of the server
    outage_s: float
    asked_again_s: float | None


def _with_faults(faults: Sequence[str], outage_s: float, rest_s: float, seed: int) -> _Round:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, ServerProcess() as server:
        folder = Path(name)
        with _running(_config(folder, _CAMERAS, server.url), folder) as (observed, program):
            _apply_all(faults, server, program, observed, chance)
            asked_again_s = _outage(server, outage_s, rest_s)
            _sample(observed, program)
        return _Round(observed, server.met, outage_s, asked_again_s)


def _sample(observed: Observed, program: psutil.Process) -> None:
    now_s = time.monotonic()
    with suppress(psutil.Error):
        observed.resident_mib["program"].append((now_s, program.memory_info().rss / 2**20))
        if (process := _language_process(program)) is not None:
            observed.resident_mib["language"].append((now_s, process.memory_info().rss / 2**20))


def _without(seconds: float) -> Observed:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _running(_config(folder, _CAMERAS, None), folder) as (observed, _):
            time.sleep(seconds)
        return observed


def _first_events(observed: Observed) -> list[tuple[EventMessage, int]]:
    """Return the events, without amendments, that happened after the subscriber had joined."""
    return [(e, at) for e, at in observed.events if e.at_monotonic_ns > observed.since_ns and e.amends is None]


def _plain_ms(observed: Observed) -> list[float]:
    """Return the time in ms from capture to arrival, for each event about which the server is not asked."""
    return [(at - e.at_monotonic_ns) / 1e6 for e, at in _first_events(observed) if e.kind == "zone_entered"]


def _event_faults(observed: Observed) -> dict[str, Any]:
    """Compare the zone entries with the events of the rule that must report them.

    Return the numbers of lost and repeated events, and the latencies of the events with and without a question.
    """
    first = [(e, at) for e, at in _first_events(observed) if e.kind == "rule"]
    entered = Counter(
        (e.camera, e.epoch, e.frame, e.track_id) for e, _ in _first_events(observed) if e.kind == "zone_entered"
    )
    reported = Counter((e.camera, e.epoch, e.frame, e.track_id) for e, _ in first)
    at_once_ms = [(at - e.at_monotonic_ns) / 1e6 for e, at in first if int(e.camera[1:]) % 2]
    waiting_ms = [(at - e.at_monotonic_ns) / 1e6 for e, at in first if not int(e.camera[1:]) % 2]
    return {
        "events": sum(entered.values()),
        "lost": sum((entered - reported).values()),
        "repeated": sum((reported - entered).values()),
        "gaps_in_journal": sum(b != a + 1 for a, b in pairwise(observed.numbers)),
        "amended": sum(e.amends is not None for e, _ in observed.of_rule()),
        "with_verdict": sum(e.verdict is not None for e, _ in first),
        "p99_ms_of_events_without_question": _quantile(_plain_ms(observed), 99),
        "p99_ms_of_events_with_question": _quantile(at_once_ms, 99),
        "p99_ms_of_events_that_wait_1_s": _quantile(waiting_ms, 99),
        "max_ms_of_events_that_wait_1_s": round(max(waiting_ms, default=0.0), 1),
    }


def _quantile(values: list[float], percent: float) -> float:
    return round(float(np.percentile(values, percent)), 2) if values else 0.0


def _ratio(with_: Sequence[float], without: Sequence[float]) -> dict[str, float]:
    """Return the geometric mean of the ratios of the pairs, and its 95 % interval from resampled pairs."""
    logs = np.log(np.array(with_) / np.array(without))
    means = np.random.default_rng(0).choice(logs, (_RESAMPLES, len(logs))).mean(axis=1)
    low, high = np.exp(np.percentile(means, [2.5, 97.5]))
    return {"mean": round(float(np.exp(logs.mean())), 3), "from": round(float(low), 3), "to": round(float(high), 3)}


def faults(rounds: int, number: int, outage_s: Sequence[float], rest_s: float) -> dict[str, Any]:
    """Run the cameras without and with questions in pairs. Return latencies, events, and memory.

    Args:
        rounds: number of pairs.
        number: number of faults in all rounds.
        outage_s: shortest and longest outage of the server in seconds. Each round has one.
        rest_s: time in seconds after which a round ends if the program does not ask the server again.
    """
    chance = random.Random(7)
    kinds = sorted([*FAULTS, "killed", "stopped"])
    plan = [chance.choice(kinds) for _ in range(number)]
    pairs: list[tuple[Observed, _Round]] = []
    for each in range(rounds):
        share = plan[each * number // rounds : (each + 1) * number // rounds]
        length_s = chance.uniform(*outage_s)
        plain_s = len(share) * (_FAULT_S + _WORKING_S) + length_s
        without = _without(plain_s) if each % 2 == 0 else None
        asked = _with_faults(share, length_s, rest_s, each)
        pairs.append((without or _without(plain_s), asked))
        print(json.dumps({"pair": each, **_pair(*pairs[-1])}), file=sys.stderr)
    figures = [_pair(*pair) for pair in pairs]
    return {
        "cameras": _CAMERAS,
        "frames_per_s_of_each": [_FPS, _FPS + (_CAMERAS - 1) * _FPS_STEP],
        "faults": dict(Counter(plan)),
        "requests_by_fault": dict(sum((asked.met for _, asked in pairs), Counter[str]())),
        "ratios_with_95_percent_interval": {
            name: _ratio([each["with"][name] for each in figures], [each["without"][name] for each in figures])
            for name in figures[0]["without"]
        },
        "pairs": figures,
    }


def _pair(without: Observed, asked: _Round) -> dict[str, Any]:
    runs = {"without": without, "with": asked.observed}
    latencies = {
        name: {
            "frame_p50_ms": _quantile(each.latency_ms, 50),
            "frame_p99_ms": _quantile(each.latency_ms, 99),
            "event_p50_ms": _quantile(_plain_ms(each), 50),
            "event_p99_ms": _quantile(_plain_ms(each), 99),
        }
        for name, each in runs.items()
    }
    outage = {"outage_s": round(asked.outage_s, 1), "asked_again_s": asked.asked_again_s}
    return latencies | outage | {"events": _event_faults(asked.observed), "memory": _growth(asked.observed)}


def _growth(observed: Observed) -> dict[str, float]:
    found = {}
    for name, samples in observed.resident_mib.items():
        sizes = [size for _, size in samples]
        third = max(1, len(sizes) // 3)
        found[f"{name}_resident_mib_first_third"] = round(max(sizes[:third]), 1)
        found[f"{name}_resident_mib_last_third"] = round(max(sizes[-third:]), 1)
    return found


# --- the growth of memory ---------------------------------------------------------------------------------------------


def soak(minutes: float, outage_s: Sequence[float], rest_s: float) -> dict[str, Any]:
    """Apply faults and outages of the server for some minutes. Return the growth of memory, and the events.

    The growth is the slope of a line through the samples after the first third, in MiB per hour.
    """
    chance, end_s, outages = random.Random(11), time.monotonic() + minutes * 60, 0
    with tempfile.TemporaryDirectory() as name, ServerProcess() as server:
        folder = Path(name)
        with _running(_config(folder, _CAMERAS, server.url), folder) as (observed, program):
            while time.monotonic() < end_s:
                plan = [chance.choice(list(FAULTS)) for _ in range(_SOAK_OUTAGE_EVERY)]
                _apply_all(plan, server, program, observed, chance)
                if time.monotonic() < end_s:
                    _outage(server, chance.uniform(*outage_s), rest_s)
                    outages += 1
                    time.sleep(_SOAK_WORK_S)
                    _sample(observed, program)
    slopes = {}
    for name, samples in observed.resident_mib.items():
        later = np.array(samples[len(samples) // 3 :])
        slopes[f"{name}_mib_per_hour"] = round(float(np.polyfit(later[:, 0] / 3600, later[:, 1], 1)[0]), 2)
    return {"minutes": minutes, "outages": outages, **slopes, **_growth(observed), "events": _event_faults(observed)}


# --- the time to a verdict --------------------------------------------------------------------------------------------


def verdicts(seconds: float, parallel: int) -> dict[str, Any]:
    """Run 40 cameras with a server that takes 0.6 s for an answer. Return the times from event to verdict."""
    with tempfile.TemporaryDirectory() as name, ServerProcess(answers_after(_ANSWER_S)) as server:
        folder = Path(name)
        config = _config(folder, _VERDICT_CAMERAS, server.url, wait=False, parallel=parallel)
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
        "parallel": parallel,
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
    parser.add_argument("--rounds", type=int, default=20, help="pairs of runs without and with questions")
    parser.add_argument("--faults", type=int, default=100, help="faults in all rounds")
    parser.add_argument("--outage", type=float, nargs=2, default=(30.0, 60.0), help="range of the outages, in s")
    parser.add_argument("--rest", type=float, default=60.0, help="longest wait for a question after an outage, in s")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of each run of `verdicts`")
    parser.add_argument("--soak-minutes", type=float, default=0.0, help="duration of `soak`; 0 leaves it out")
    parser.add_argument("--save", action="store_true", help="write the result to tests/perf/results")
    arguments = parser.parse_args()
    measured: dict[str, Any] = {
        "verdicts": [verdicts(arguments.seconds, parallel) for parallel in _PARALLEL],
        "faults": faults(arguments.rounds, arguments.faults, arguments.outage, arguments.rest),
    }
    if arguments.soak_minutes:
        measured["soak"] = soak(arguments.soak_minutes, arguments.outage, arguments.rest)
    measured["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps(snake_case_keys(measured), indent=1))
    if arguments.save:
        title = "Frame latency, events, and memory while the server of a language model misbehaves"
        print(save(result("language_model", measured, title)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
