"""Attack the message sockets of a running program, and measure the effect of each attack on other subscribers.

python -m tests.soak.subscribers [--seconds 30] [--processes 1] [--only many_connections,...] [--save]

The program `vision run` has two synthetic cameras and at most 1024 descriptors per process. Each attack of `ATTACKS`
lasts `--seconds`, or longer if its work needs more time. An undisturbed period of `--seconds` precedes each attack. The
command measures these values, and prints them as JSON:

* at a good subscriber, which is a separate process: the longest time between two messages of a camera, less the
  interval of the camera, and the latency from capture to receipt, in each period and in the 10 s after the attack
* the resident memory of all processes of the program before the attack, at its peak, and 10 s after the attack
* the open descriptors of these processes before the attack and 10 s after it
* with the attack `mixed_subscribers`: the latency at 150 additional good subscribers in each period

The exit code is 1 if a goal is missed. `--save` writes the result to tests/perf/results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import psutil
import zmq

from tests.messages.processes import Program, wait_until
from tests.messages.raw_zmtp import GREETING, connect, frame, ready, send_until_closed
from tests.perf.__main__ import result
from tests.perf.results import save
from tests.sinks.servers import free_port
from vision.client import DetectionsMessage, Gap, NodeStatusMessage, Subscription

FPS: Final = 10
DESCRIPTORS: Final = 1024
SUBSCRIPTIONS: Final = 22_000_000
SENDERS: Final = 8
PER_CONNECTION: Final = 1000  # subscriptions that the program permits to one connection
GOOD, GOOD_PROCESSES, SLOW, RECONNECTING, GARBAGE = 150, 3, 20, 20, 10
AFTER_S: Final = 10.0

GAP_MS, GROWTH_MIB, KEPT_MIB, LATENCY_RATIO = 100.0, 64.0, 16.0, 1.5
"""Upper limits for an attack: the increase of the longest gap, the peak growth of the memory, the growth that remains
after the attack, and the p99 of the latency divided by that of the undisturbed period."""

CONFIG = f"""
pipeline: count
processes: PROCESSES
cameras:
  - {{id: a, source: "synthetic:320x240@{FPS}?objects=12&seed=1&overlap=1"}}
  - {{id: b, source: "synthetic:320x240@{FPS}?objects=12&seed=2&overlap=1"}}
detect: {{backend: fake, score_threshold: 0.2}}
track: {{low_score: 0.1, high_score: 0.15, new_score: 0.2}}
analytics:
  a: {{lines: [{{name: v, points: [[160, 0], [160, 240]]}}]}}
  b: {{lines: [{{name: v, points: [[160, 0], [160, 240]]}}]}}
state_dir: FOLDER/state
publish: {{bind: "PUBLISH", replay: "REPLAY", max_events: 1000000}}
"""


# --- good subscribers -------------------------------------------------------------------------------------------------


class _Captured(msgspec.Struct):
    captured_monotonic_ns: int


class Received:
    """Messages that one process has received since the previous call of `take`."""

    def __init__(self) -> None:
        self.counters: Mapping[str, int] = {}
        self.lost = 0
        self._latency_ms: list[float] = []
        self._gap_ms = 0.0
        self._last_ns: dict[str, int] = {}

    def add(self, camera: str, captured_ns: int) -> None:
        """Record a message that was received at the current time."""
        now_ns = time.monotonic_ns()
        self._latency_ms.append((now_ns - captured_ns) / 1e6)
        self._add_gap(camera, now_ns)
        self._last_ns[camera] = now_ns

    def take(self) -> dict[str, Any]:
        """Return the latencies in ms, the longest gap so far in ms, the number of lost messages, and the counters."""
        for camera in self._last_ns:
            self._add_gap(camera, time.monotonic_ns())
        taken = {"latency_ms": self._latency_ms, "gap_ms": self._gap_ms, "lost": self.lost, "counters": self.counters}
        self._latency_ms, self._gap_ms, self.lost = [], 0.0, 0
        return taken

    def _add_gap(self, camera: str, now_ns: int) -> None:
        gap_ms = (now_ns - self._last_ns.get(camera, now_ns)) / 1e6 - 1000 / FPS
        self._gap_ms = max(self._gap_ms, gap_ms)


def receive_as_client(pipe: Connection, address: str) -> None:
    """Receive with `vision.client`. Respond to each request on `pipe` with `Received.take`, until the pipe closes."""
    received = Received()
    with closing(Subscription(address, kinds=("detections", "status"))) as subscription, suppress(EOFError):
        while True:
            item = subscription.receive(0.01)
            if isinstance(item, DetectionsMessage):
                received.add(item.camera, item.captured_monotonic_ns)
            elif isinstance(item, Gap):
                received.lost += item.lost
            elif isinstance(item, NodeStatusMessage):
                received.counters = item.counters
            if pipe.poll():
                pipe.recv()
                pipe.send(received.take())


def receive_with_many(pipe: Connection, address: str) -> None:
    """Receive with some of the 150 good subscribers. Respond to requests as `receive_as_client` does."""
    received, poller, context = Received(), zmq.Poller(), zmq.Context()
    for _ in range(GOOD // GOOD_PROCESSES):
        sock = context.socket(zmq.SUB)
        sock.subscribe("detections/")
        sock.connect(address)
        poller.register(sock, zmq.POLLIN)
    poller.register(pipe.fileno(), zmq.POLLIN)
    decode = msgspec.json.Decoder(_Captured).decode
    with suppress(EOFError):
        while True:
            for ready_socket, _ in poller.poll():
                if ready_socket == pipe.fileno():
                    pipe.recv()
                    pipe.send(received.take())
                else:
                    topic, payload = ready_socket.recv_multipart()
                    received.add(topic.decode(), decode(payload).captured_monotonic_ns)


@contextmanager
def receiving(receive: Callable[[Connection, str], None], address: str, processes: int) -> Iterator[list[Connection]]:
    """Run `receive` in separate processes until the end of the `with` block. Yield a pipe to each process."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pipes = []
        for _ in range(processes):
            pipe, other = spawn.Pipe()
            process = spawn.Process(target=receive, args=(other, address), daemon=True)
            process.start()
            other.close()
            stack.callback(process.join)
            pipes.append(pipe)
        for pipe in pipes:
            stack.callback(pipe.close)
        yield pipes


def take(pipes: list[Connection]) -> dict[str, Any]:
    """Request figures of the messages since the previous request from all processes. Return the combined figures."""
    for pipe in pipes:
        pipe.send(None)
    parts = [pipe.recv() for pipe in pipes]
    latency_ms = [each for part in parts for each in part["latency_ms"]]
    p50, p99 = np.percentile(latency_ms, [50, 99]) if latency_ms else (float("inf"), float("inf"))
    return {
        "messages": len(latency_ms),
        "lost": sum(part["lost"] for part in parts),
        "gap_ms": round(max(part["gap_ms"] for part in parts), 1),
        "latency_p50_ms": round(float(p50), 2),
        "latency_p99_ms": round(float(p99), 2),
        "latency_max_ms": round(max(latency_ms, default=float("inf")), 2),
        "counters": dict(parts[0]["counters"]),
    }


# --- attacks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Addresses of the program, and the time on the monotonic clock before which an attack must not end."""

    publish: str
    replay: str
    until_s: float

    def is_over(self) -> bool:
        return time.monotonic() >= self.until_s


def in_threads(count: int, work: Callable[[int, Counter[str]], None]) -> dict[str, int]:
    """Run `work` in threads with the numbers from 0 to `count` - 1. Return the sum of their counts."""
    counts = [Counter[str]() for _ in range(count)]
    threads = [threading.Thread(target=work, args=each) for each in enumerate(counts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(sum(counts, Counter[str]()))


def many_connections(target: Target) -> dict[str, int]:
    """Hold 1000 TCP connections. Half of them subscribe to all topics and read nothing, and the others send nothing."""
    host, _, port = target.publish.removeprefix("tcp://").rpartition(":")
    counts: Counter[str] = Counter(connections=1000)
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for number in range(1000):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((host, int(port)))
            greeting = GREETING + ready(b"SUB") + frame(b"\x01") if number % 2 else b""
            selector.register(client, selectors.EVENT_WRITE, greeting)
        while not target.is_over():
            for key, _ in selector.select(0.1):
                selector.unregister(key.fileobj)
                assert isinstance(key.fileobj, socket.socket)
                with suppress(OSError):
                    key.fileobj.getpeername()
                    counts["established"] += 1
                    counts["greetings"] += bool(key.data and key.fileobj.send(key.data))
    return dict(counts)


def many_subscriptions(target: Target) -> dict[str, int]:
    """Send 22 million subscriptions. Over each connection, send as many as the program and the kernel accept."""
    size, space = len(frame(b"\x01" + bytes(4))), 1_000_000
    data = memoryview(b"".join(frame(b"\x01" + number.to_bytes(4, "big")) for number in range(space)))
    numbers = itertools.count()

    def send(_: int, counts: Counter[str]) -> None:
        while counts["sent"] < SUBSCRIPTIONS / SENDERS or not target.is_over():
            start, sent = next(numbers) * PER_CONNECTION % space * size, 0
            with suppress(OSError), connect(target.publish) as client:
                counts["connections"] += 1
                while start + sent < len(data):
                    sent += client.send(data[start + sent :])
            counts["sent"] += sent // size
            counts["accepted_at_most"] += min(sent // size, PER_CONNECTION)

    return in_threads(SENDERS, send)


def endless_messages(target: Target) -> dict[str, int]:
    """Send parts of an endless message to both sockets, in large and in small frames."""

    def send(number: int, counts: Counter[str]) -> None:
        address, kind = [(target.publish, b"SUB"), (target.replay, b"DEALER")][number % 2]
        part = frame(b"x" * (4000 if number < 2 else 1), 1)
        while not target.is_over():
            with suppress(OSError), connect(address, kind) as client:
                counts["connections"] += 1
                counts["sent_bytes"] += send_until_closed(client, part * (400_000 // len(part)), 1 << 30)

    return in_threads(4, send)


def many_requests(target: Target) -> dict[str, int]:
    """Request the stored events from 300 sockets at the same time. Repeat this when all replies have arrived."""
    counts: Counter[str] = Counter()
    with zmq.Context() as context:
        while not target.is_over():
            began_s = time.monotonic()
            sockets: list[zmq.Socket[bytes]] = [context.socket(zmq.REQ) for _ in range(300)]
            for sock in sockets:
                sock.setsockopt(zmq.LINGER, 0)
                sock.connect(target.replay)
                sock.send(b'{"schema": "vision.replay-request/1", "since": 0, "limit": 1000}')
            counts["requests"] += len(sockets)
            for sock in sockets:  # a socket that has its reply makes room for those that wait
                if sock.poll(30_000):
                    counts["replies"] += 1
                    counts["events"] += len(sock.recv_multipart()) - 1
                sock.close()
            counts["slowest_ms"] = max(counts["slowest_ms"], int((time.monotonic() - began_s) * 1000))
    return dict(counts)


def mixed_subscribers(target: Target) -> dict[str, int]:
    """Run 20 subscribers that read 1 message/s, 20 that reconnect each second, and 10 that send garbage."""

    def send_garbage(number: int, counts: Counter[str]) -> None:
        chance = random.Random(number)
        while not target.is_over():
            with suppress(OSError), connect(target.publish) as client:
                counts["garbage_connections"] += 1
                counts["garbage_bytes"] += send_until_closed(client, chance.randbytes(10_000), 1_000_000)
            time.sleep(0.1)

    def read_slowly_and_reconnect(counts: Counter[str]) -> None:
        with zmq.Context() as context, ExitStack() as stack:
            slow = [stack.enter_context(_subscriber(context, target.publish)) for _ in range(SLOW)]
            while not target.is_over():
                with ExitStack() as second:
                    for _ in range(RECONNECTING):
                        second.enter_context(_subscriber(context, target.publish))
                    counts["reconnections"] += RECONNECTING
                    time.sleep(1)
                for sock in slow:
                    if sock.poll(0):
                        counts["slow_messages"] += bool(sock.recv_multipart())

    return in_threads(
        GARBAGE + 1,
        lambda number, counts: send_garbage(number, counts) if number else read_slowly_and_reconnect(counts),
    )


def _subscriber(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    sock = context.socket(zmq.SUB)
    sock.setsockopt(zmq.RCVHWM, 1)
    sock.subscribe("")
    sock.connect(address)
    return sock


ATTACKS: Final = {
    attack.__name__: attack
    for attack in (many_connections, many_subscriptions, endless_messages, many_requests, mixed_subscribers)
}


# --- measurement ------------------------------------------------------------------------------------------------------


class ProcessTree:
    """Processes of a program."""

    def __init__(self, pid: int) -> None:
        program = psutil.Process(pid)
        self._processes = [program, *program.children(recursive=True)]

    def memory_mib(self) -> float:
        """Return the resident memory of all processes in MiB."""
        return round(sum(each.memory_info().rss for each in self._processes) / 2**20, 1)

    def descriptors(self) -> int:
        """Return the number of open descriptors of all processes."""
        return sum(each.num_fds() for each in self._processes)

    @contextmanager
    def peak_mib(self) -> Iterator[list[float]]:
        """Read the memory 10 times per second during the `with` block. Yield a list whose only item is the peak."""
        peak, ended = [self.memory_mib()], threading.Event()

        def watch() -> None:
            while not ended.wait(0.1):
                peak[0] = max(peak[0], self.memory_mib())

        thread = threading.Thread(target=watch)
        thread.start()
        yield peak
        ended.set()
        thread.join()


def measure(
    tree: ProcessTree, attack: Callable[[Target], dict[str, int]], target: Callable[[], Target], good: list[Connection]
) -> dict[str, Any]:
    """Measure an undisturbed period, the attack, and the period after it. `target` returns the target of the attack."""
    with ExitStack() as stack:
        address, many = target().publish, None
        if attack is mixed_subscribers:
            many = stack.enter_context(receiving(receive_with_many, address, GOOD_PROCESSES))
            time.sleep(AFTER_S)  # until all have connected
            take(many)
        take(good)
        time.sleep(max(0.0, target().until_s - time.monotonic()))
        periods: dict[str, Any] = {"undisturbed": take(good)}
        others = {"undisturbed": take(many)} if many else {}
        before_mib, descriptors, began_s = tree.memory_mib(), tree.descriptors(), time.monotonic()
        with tree.peak_mib() as peak:
            done = attack(target())
        seconds = round(time.monotonic() - began_s, 1)
        periods["attacked"] = take(good)
        others |= {"attacked": take(many)} if many else {}
        time.sleep(AFTER_S)
        periods["after"] = take(good)
        after_mib, descriptors_after = tree.memory_mib(), tree.descriptors()
    before, after = (periods[name].pop("counters") for name in ("undisturbed", "after"))
    del periods["attacked"]["counters"]
    for period in others.values():
        del period["counters"]
    return {
        "seconds": seconds,
        "attack": done,
        "counters": {name: grown for name in after if (grown := after[name] - before.get(name, 0)) and "." in name},
        "good": periods,
        "others": others,
        "memory_mib": {"before": before_mib, "peak": peak[0], "after": after_mib},
        "descriptors": {"before": descriptors, "after": descriptors_after},
    }


def missed_goals(name: str, measured: Mapping[str, Any]) -> list[str]:
    """Return a text for each goal that one attack missed."""
    good, memory, descriptors = measured["good"], measured["memory_mib"], measured["descriptors"]
    missed = []
    for period in ("attacked", "after"):
        longer_ms = good[period]["gap_ms"] - good["undisturbed"]["gap_ms"]
        if longer_ms > GAP_MS or good[period]["lost"]:
            missed.append(f"the gap is {longer_ms:.0f} ms longer ({period}), {good[period]['lost']} messages lost")
    if (growth_mib := memory["peak"] - memory["before"]) > GROWTH_MIB:
        missed.append(f"the memory grew by {growth_mib:.0f} MiB")
    if (kept_mib := memory["after"] - memory["before"]) > KEPT_MIB:
        missed.append(f"{kept_mib:.0f} MiB of memory were not given back")
    if descriptors["after"] > descriptors["before"]:
        missed.append(f"{descriptors['after'] - descriptors['before']} descriptors were not closed")
    if measured["others"]:
        ratio = measured["others"]["attacked"]["latency_p99_ms"] / measured["others"]["undisturbed"]["latency_p99_ms"]
        if ratio > LATENCY_RATIO:
            missed.append(f"the p99 of the latency is {ratio:.2f} times that without the attack")
    missed += [f"{key} rose" for key in ("publish.restarts", "replay.restarts") if measured["counters"].get(key)]
    return [f"{name}: {text}" for text in missed]


def run(seconds: float, processes: int, names: list[str]) -> dict[str, Any]:
    """Start the program, attack it, and stop it. Return the measurements and the missed goals."""
    publish, replay = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    attacks = {}
    with tempfile.TemporaryDirectory() as folder:
        text = CONFIG.replace("FOLDER", folder).replace("PROCESSES", str(processes))
        config = Path(folder) / "camera.yaml"
        config.write_text(text.replace("PUBLISH", publish).replace("REPLAY", replay))
        limited = ["prlimit", f"--nofile={DESCRIPTORS}", sys.executable, "-m", "vision", "run", str(config)]
        with Program(limited) as program, receiving(receive_as_client, publish, 1) as good:
            wait_until(lambda: take(good)["messages"] > 0, "the first message")
            time.sleep(AFTER_S)
            tree = ProcessTree(program.pid)
            for name in names:
                attacks[name] = measure(
                    tree, ATTACKS[name], lambda: Target(publish, replay, time.monotonic() + seconds), good
                )
                print(json.dumps({name: attacks[name]}), file=sys.stderr, flush=True)
            program.send(signal.SIGTERM)
            code = program.wait()
            log = program.pending()
    missed = [text for name, measured in attacks.items() for text in missed_goals(name, measured)]
    missed += [f"the exit code of the program is {code}"] if code else []
    command = f"python -m tests.soak.subscribers --seconds {seconds:g} --processes {processes}"
    return {"command": command, "attacks": attacks, "exit_code": code, "log": log, "missed": missed}


def main() -> int:
    """Print the result as JSON. Return 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", default=",".join(ATTACKS))
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    found = run(arguments.seconds, arguments.processes, arguments.only.split(","))
    print(json.dumps(found, indent=1))
    if arguments.save:
        del found["log"]
        title = "subscribers that attack the message sockets of a running program"
        print(save(result("hostile_subscribers", found, title)), file=sys.stderr)
    return int(bool(found["missed"]))


if __name__ == "__main__":
    sys.exit(main())
