"""Frame latency, events, and memory while the server of a language model misbehaves, and the time to a verdict.

    python -m tests.perf.language_model --soak-minutes 30 --save     # about 100 minutes
    python -m tests.perf.language_model --rounds 3 --seconds 10 --outage 5 5 --rest 5 --json FILE      # about 8 minutes
    python -m tests.perf.language_model --rounds 8 --together --seconds 10 --outage 5 5 --rest 5     # about 6 minutes

The machine must be idle. `--json` writes the figures after each part and each pair, so an aborted run keeps its
measurements so far. The measurement needs the packages that `vision run` imports, and the packages of the extras
`language` and `opencv`.

The server is a separate process. The measurement has three parts, and its figures begin with a summary (`goals`):

* `verdicts` runs 40 cameras with a server that takes 0.6 s for an answer. The number of simultaneous requests is the
  default, 4, 8, and 32.
* `faults` runs 32 stand-in cameras in pairs, without and with `verify`, in alternating order. In the runs with
  `verify`, it applies seeded faults to the server and to the process that sends the questions. Then it kills the
  server, restarts the server after an outage, and waits for the program's next question. Finally, it compares the
  frames and events of both runs. With `--together`, both runs execute at the same time on separate CPU cores.
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from tests.perf.__main__ import result
from tests.perf.language_figures import WAIT_S, Observed, event_faults, goals, growth, plain_ms, quantile, ratio
from tests.perf.language_server import FAULTS, WORKS, ServerProcess, answers_after
from tests.perf.results import save, snake_case_keys
from vision.client import DetectionsMessage, EventMessage, Subscription

_CAMERAS, _FPS = 32, 5
_FPS_STEP: Final = 0.02  # between cameras, so that the phases of their frames are mixed in each run
_VERDICT_CAMERAS, _ANSWER_S = 40, 0.6
_PARALLEL: Final = ("default", "4", "8", "32")  # requests at the same time in `verdicts`
_WARM_S: Final = 3.0
_FAULT_S, _WORKING_S = 1.0, 0.5
_SOAK_OUTAGE_EVERY: Final = 40  # faults of `soak` between two outages
_SOAK_WORK_S: Final = 20.0  # time without faults after an outage of `soak`
_BURST_S: Final = 10.0  # time after the start in which events do not count, because all cameras report objects at once
_TAIL_S: Final = 3.0  # time for the answers to the last events of `verdicts`
_ZONE = {"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]], "anchor": "center"}
_RULE = {"name": "visited", "when": "zone_entered left"}


def _config(
    folder: Path, cameras: int, url: str | None, *, wait: bool = True, parallel: str = "default"
) -> dict[str, Any]:
    ids = [f"c{number}" for number in range(cameras)]
    asking: dict[str, Any] = {}
    if url is not None:
        about = {"names": ["visited"], "prompt": "Is it red?"}
        waiting = [about | {"name": "waits", "cameras": ids[::2], "wait_s": WAIT_S}] if wait else []
        language = {"url": url, "timeout_s": 2.0, "max_age_s": 10.0}
        language |= {} if parallel == "default" else {"parallel": int(parallel)}
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
    """Run `vision run`, and receive its messages until the end of the `with` block. Do not count the first seconds."""
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
    """Apply each fault for one second, and let the server work normally for half a second between faults."""
    for fault in (part for each in faults for part in (each, WORKS)):
        _apply(fault, server, program, chance)
        time.sleep(_WORKING_S if fault == WORKS else _FAULT_S)
        _sample(observed, program)


def _outage(server: ServerProcess, seconds: float, longest_s: float) -> float | None:
    """Kill the server, and restart it after `seconds`.

    Return the time, in seconds, from the restart until the program asks the server a question. Return None if this
    takes longer than `longest_s`.
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


@dataclass(frozen=True)
class FaultPlan:
    """Settings of the measurement `faults`."""

    rounds: int  # number of pairs
    number: int  # faults in all rounds
    outage_s: Sequence[float]  # shortest and longest outage of the server in seconds. Each round has one
    rest_s: float  # time in seconds after which a round ends if the program does not ask the server again
    together: bool  # run both runs of a pair at the same time


@dataclass
class _Round:
    """One run with `verify`, faults, and an outage."""

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
        observed.resident_mib["program"].append((now_s, program.memory_info().rss / 2**20, program.pid))
        if (process := _language_process(program)) is not None:
            observed.resident_mib["language"].append((now_s, process.memory_info().rss / 2**20, process.pid))


def _without(seconds: float) -> Observed:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _running(_config(folder, _CAMERAS, None), folder) as (observed, _):
            time.sleep(seconds)
        return observed


def faults(plan: FaultPlan, keep: Callable[[dict[str, Any]], None]) -> None:
    """Run the cameras in pairs of runs, without and with questions. After each pair, pass the figures to `keep`."""
    chance = random.Random(7)
    kinds = sorted([*FAULTS, "killed", "stopped"])
    chosen = [chance.choice(kinds) for _ in range(plan.number)]
    figures: list[dict[str, Any]] = []
    met: Counter[str] = Counter()
    for each in range(plan.rounds):
        share = chosen[each * plan.number // plan.rounds : (each + 1) * plan.number // plan.rounds]
        length_s = chance.uniform(*plan.outage_s)
        runs = (
            partial(_without, len(share) * (_FAULT_S + _WORKING_S) + length_s),
            partial(_with_faults, share, length_s, plan.rest_s, each),
        )
        without, asked = _both(runs, each, together=plan.together)
        met += asked.met
        figures.append(_pair(without, asked))
        print(json.dumps({"pair": each, **figures[-1]}), file=sys.stderr, flush=True)
        keep(
            {
                "cameras": _CAMERAS,
                "frames_per_s_of_each": [_FPS, _FPS + (_CAMERAS - 1) * _FPS_STEP],
                "together": plan.together,
                "faults": dict(Counter(chosen[: (each + 1) * plan.number // plan.rounds])),
                "requests_by_fault": dict(met),
                "ratios_with_95_percent_interval": {
                    name: ratio([pair["with"][name] for pair in figures], [pair["without"][name] for pair in figures])
                    for name in figures[0]["without"]
                },
                "pairs": figures,
            }
        )


def _both(runs: Sequence[Callable[[], Any]], turn: int, *, together: bool) -> list[Any]:
    """Call both functions, and return their results.

    If `together` is True, the functions run at the same time on separate CPU cores. Otherwise, they run one after the
    other. The order and the cores of the functions change with each `turn`.
    """
    if not together:
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        done = {each: runs[each]() for each in order}
        return [done[0], done[1]]
    cores = sorted(os.sched_getaffinity(0))
    halves = [cores[: len(cores) // 2], cores[len(cores) // 2 :]]

    def on(half: Sequence[int], run: Callable[[], Any]) -> Any:
        os.sched_setaffinity(0, half)  # of this thread, and of the threads and processes that it starts
        return run()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(on, halves if turn % 2 == 0 else halves[::-1], runs))


def _pair(without: Observed, asked: _Round) -> dict[str, Any]:
    runs = {"without": without, "with": asked.observed}
    latencies = {
        name: {
            "frame_p50_ms": quantile(each.latency_ms, 50),
            "frame_p99_ms": quantile(each.latency_ms, 99),
            "event_p50_ms": quantile(plain_ms(each), 50),
            "event_p99_ms": quantile(plain_ms(each), 99),
        }
        for name, each in runs.items()
    }
    outage = {"outage_s": round(asked.outage_s, 1), "asked_again_s": asked.asked_again_s}
    return latencies | outage | {"events": event_faults(asked.observed), "memory": growth(asked.observed)}


# --- the growth of memory ---------------------------------------------------------------------------------------------


def soak(minutes: float, outage_s: Sequence[float], rest_s: float) -> dict[str, Any]:
    """Apply faults and outages of the server for `minutes`. Return figures of the memory growth and the events."""
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
    return {"minutes": minutes, "outages": outages, **growth(observed), "events": event_faults(observed)}


# --- the time to a verdict --------------------------------------------------------------------------------------------


def verdicts(seconds: float, parallel: str) -> dict[str, Any]:
    """Run 40 cameras with a server that takes 0.6 s for an answer. Return the times from event to verdict."""
    with tempfile.TemporaryDirectory() as name, ServerProcess(answers_after(_ANSWER_S)) as server:
        folder = Path(name)
        config = _config(folder, _VERDICT_CAMERAS, server.url, wait=False, parallel=parallel)
        with _running(config, folder) as (observed, _):
            time.sleep(_BURST_S)
            from_ns = time.monotonic_ns()
            time.sleep(seconds)
            to_ns = time.monotonic_ns()
            time.sleep(_TAIL_S)
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
        "events_per_s": round(len(first) / seconds, 1),
        "events": len(first),
        "verdicts": len(answered),
        "event_to_verdict_p50_ms": quantile(from_event, 50),
        "event_to_verdict_p95_ms": quantile(from_event, 95),
        "capture_to_verdict_p95_ms": quantile(from_capture, 95),
        "least_answered_share_of_a_camera": round(min(by_camera.values(), default=0.0), 3),
        "cameras_with_events": len(by_camera),
    }


# --- the command --------------------------------------------------------------------------------------------------


@dataclass
class _Report:
    """Figures so far, which are also stored in a file."""

    path: Path | None
    measured: dict[str, Any] = field(default_factory=dict)

    def keep(self, part: str, figures: Any) -> None:
        """Store the figures of a part, which may be incomplete, and rewrite the file."""
        self.measured[part] = figures
        if self.path is not None:
            beside = self.path.with_suffix(".part")
            beside.write_text(json.dumps(self.figures(), indent=1) + "\n")
            beside.replace(self.path)

    def figures(self) -> dict[str, Any]:
        figures = {"goals": goals(self.measured), **self.measured, "load_average": round(os.getloadavg()[0], 1)}
        converted: dict[str, Any] = snake_case_keys(figures)
        return converted


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.language_model")
    parts = ("verdicts", "faults", "soak")
    parser.add_argument(
        "--only", nargs="+", choices=parts, default=[], help="parts. Default: all, but no `soak` of 0 min"
    )
    parser.add_argument("--rounds", type=int, default=20, help="pairs of runs without and with questions")
    parser.add_argument("--faults", type=int, default=100, help="faults in all rounds")
    parser.add_argument("--outage", type=float, nargs=2, default=(30.0, 60.0), help="range of the outages, in s")
    parser.add_argument("--rest", type=float, default=60.0, help="longest wait for a question after an outage, in s")
    parser.add_argument(
        "--together", action="store_true", help="run both runs of a pair at once, on separate CPU cores"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of each run of `verdicts`")
    parser.add_argument("--parallel", nargs="+", choices=_PARALLEL, default=_PARALLEL, help="runs of `verdicts`")
    parser.add_argument("--soak-minutes", type=float, default=0.0, help="duration of `soak`")
    parser.add_argument("--json", type=Path, help="file for the figures, also for those of a run that is cut off")
    parser.add_argument("--save", action="store_true", help="write the result to tests/perf/results")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the programs, too
    report, chosen = _Report(arguments.json), arguments.only or parts
    if "verdicts" in chosen:
        found: list[dict[str, Any]] = []
        for parallel in arguments.parallel:
            found.append(verdicts(arguments.seconds, parallel))
            report.keep("verdicts", found)
    if "faults" in chosen:
        plan = FaultPlan(arguments.rounds, arguments.faults, arguments.outage, arguments.rest, arguments.together)
        faults(plan, lambda figures: report.keep("faults", figures))
    if "soak" in chosen and arguments.soak_minutes:
        report.keep("soak", soak(arguments.soak_minutes, arguments.outage, arguments.rest))
    figures = report.figures()
    print(json.dumps(figures, indent=1))
    if arguments.save:
        title = "Frame latency, events, and memory while the server of a language model misbehaves"
        print(save(result("language_model", figures, title)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
