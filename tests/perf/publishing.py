"""Latency and message loss of one publisher with many subscribers, and effect of a stopped subscriber on the others.

To start a process with N subscribers, the measurement runs `python -m tests.perf.publishing ADDRESS N TOPIC`.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from tests.messages.processes import REPOSITORY, wait_until
from vision.messaging import codec, schema
from vision.messaging.publisher import Publisher
from vision.types import Detections, FrameMeta, Result, Timing

SUBSCRIBERS = (1, 10, 100)
OBJECTS = 10
RATE_HZ = 200.0  # eight cameras at 25 frames/s
FLOOD = 3000
_WARM, _PACED, _FLOOD = 0, 1, 2  # sent as the epoch of each message


@dataclass
class Samples:
    """Measurements of several runs under the same conditions.

    The summary contains the medians of the percentiles of the runs, so that one disturbed run has no effect.
    """

    latencies_ms: list[list[float]] = field(default_factory=list)
    publish_us: list[Sequence[float]] = field(default_factory=list)
    expected: int = 0
    received: int = 0
    flood_s: float = 0.0
    flood_sent: int = 0
    flood_expected: int = 0
    flood_received: int = 0
    grown_bytes: int = 0

    def summary(self) -> Mapping[str, Any]:
        """Return the latencies, the losses, and the memory growth of all runs together."""
        return {
            "latency_p50_ms": _quantile(self.latencies_ms, 0.5),
            "latency_p99_ms": _quantile(self.latencies_ms, 0.99),
            "publish_call_p50_us": _quantile(self.publish_us, 0.5),
            "publish_call_p99_us": _quantile(self.publish_us, 0.99),
            "lost_when_paced": self.expected - self.received,
            "flood_messages_per_s": self.flood_sent / self.flood_s,
            "flood_delivered": self.flood_received / self.flood_expected,
            "memory_grown_mb": self.grown_bytes / 1e6,
        }


def _quantile(runs: Sequence[Sequence[float]], q: float) -> float:
    return float(np.median([np.quantile(run, q) for run in runs]))


def measure(quick: bool) -> Mapping[str, Any]:
    """Measure the latency, the message loss, and the memory of a publisher with 1, 10, and 100 subscribers.

    "Paced" messages are sent at `RATE_HZ`. A "flood" is sent as fast as `publish` returns, even if messages are lost.
    The results apply to the running subscribers. `stopped_costs` is the p99 latency of these subscribers with an
    additional, stopped subscriber, divided by the p99 latency without the stopped subscriber.
    """
    seconds, rounds = (1.0, 1) if quick else (2.0, 3)
    table: dict[str, Any] = {}
    for n in SUBSCRIBERS:
        without, with_stopped = Samples(), Samples()
        for _ in range(rounds):  # in turn, so that other programs disturb both equally
            _run(n, False, seconds, without)
            _run(n, True, seconds, with_stopped)
        table[f"{n} subscribers"] = without.summary()
        table[f"{n} subscribers and a stopped one"] = with_stopped.summary()
        pairs = zip(with_stopped.latencies_ms, without.latencies_ms, strict=True)
        ratios = [np.quantile(one, 0.99) / np.quantile(other, 0.99) for one, other in pairs]
        table[f"{n} subscribers: stopped_costs"] = float(np.median(ratios))
    return table


def _run(n: int, stopped: bool, seconds: float, samples: Samples) -> None:
    with Publisher("tcp://127.0.0.1:*", node="bench", class_names=("person",)) as publisher, ExitStack() as stack:
        halves = [part for part in (n // 2, n - n // 2) if part]
        workers = [stack.enter_context(_subscribers(publisher.address, part, "detections/gate")) for part in halves]
        idle = [stack.enter_context(_subscribers(publisher.address, 1, "detections/"))] if stopped else []
        wait_until(lambda: publisher.socket.joins == n + len(idle), "all have subscribed")
        for process in idle:
            process.send_signal(signal.SIGSTOP)
        before = _resident_bytes()
        for _ in range(FLOOD):
            publisher.publish(_result(_WARM, camera="elsewhere"))  # fill the queue of the stopped subscriber
        _send_paced(publisher, 0.5, _WARM)
        durations = _send_paced(publisher, seconds, _PACED)
        samples.publish_us.append(durations)
        samples.expected += len(durations) * n
        started = time.monotonic()
        for _ in range(FLOOD):
            publisher.publish(_result(_FLOOD))
        samples.flood_s += time.monotonic() - started
        samples.flood_sent += FLOOD
        samples.flood_expected += FLOOD * n
        samples.grown_bytes = max(samples.grown_bytes, _resident_bytes() - before)
        samples.latencies_ms.append([])
        for process in workers:
            report = _finish(process)
            samples.latencies_ms[-1] += report["latencies_ms"]
            samples.received += report["paced"]
            samples.flood_received += report["flood"]


def _send_paced(publisher: Publisher, seconds: float, epoch: int) -> Sequence[float]:
    durations_us = []
    next_s = time.monotonic()
    end_s = next_s + seconds
    while next_s < end_s:
        time.sleep(max(0.0, next_s - time.monotonic()))
        next_s += 1 / RATE_HZ
        one = _result(epoch)
        started_ns = time.monotonic_ns()
        publisher.publish(one)
        durations_us.append((time.monotonic_ns() - started_ns) / 1e3)
    return durations_us


_BOXES = np.linspace(10, 1000, 4 * OBJECTS, dtype=np.float32).reshape(OBJECTS, 4)
_FOUND = Detections(_BOXES, np.linspace(0.9, 0.3, OBJECTS, dtype=np.float32), np.zeros(OBJECTS, np.int32))


def _result(epoch: int, camera: str = "gate") -> Result:
    now_ns = time.monotonic_ns()
    return Result(
        FrameMeta(camera, 0, epoch, now_ns, time.time_ns(), 1920, 1080), _FOUND, Timing(now_ns, now_ns, now_ns)
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def _subscribers(address: str, n: int, topic: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.perf.publishing", address, str(n), topic]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _finish(process: subprocess.Popen[str]) -> Any:
    """Let a process of subscribers receive the messages that are still in the queues. Return its report."""
    output, _ = process.communicate(timeout=60)
    return json.loads(output)


def _subscribe(address: str, n: int, topic: str) -> None:
    """Receive messages until standard input ends and no more messages arrive. Print a report as JSON."""
    context = zmq.Context()
    poller = zmq.Poller()
    for _ in range(n):
        sock = context.socket(zmq.SUB)
        sock.setsockopt(zmq.LINGER, 0)
        sock.subscribe(topic)
        sock.connect(address)
        poller.register(sock, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    latencies_ms: list[float] = []
    counts = [0, 0, 0]
    ended = False
    while ready := poller.poll(200 if ended else None):
        for sock, _ in ready:
            if not isinstance(sock, zmq.Socket):
                ended = True
                poller.unregister(sock)
                continue
            message = codec.decode("detections/", sock.recv_multipart()[1])
            now_ns = time.monotonic_ns()
            assert isinstance(message, schema.DetectionsMessage)
            counts[message.epoch] += 1
            if message.epoch == _PACED:
                latencies_ms.append((now_ns - message.captured_monotonic_ns) / 1e6)
    context.destroy(linger=0)
    print(json.dumps({"latencies_ms": latencies_ms, "paced": counts[_PACED], "flood": counts[_FLOOD]}))


if __name__ == "__main__":
    _subscribe(sys.argv[1], int(sys.argv[2]), sys.argv[3])
