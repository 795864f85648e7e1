"""Kill the brokers of sinks repeatedly. No event may be lost, out of order, or delay other messages.

python -m tests.soak.sinks [--minutes 10] [--kills 20]

The program has four synthetic cameras and four sinks, whose brokers are killed together. Periods with and without the
brokers alternate. The measurement compares the latency of the messages over ZeroMQ in both kinds of periods.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nats
import numpy as np
import redis
from paho.mqtt import client as paho

from tests.messages.processes import python
from tests.sinks.servers import Server, free_port, mosquitto, nats_server, redis_server, requests_of, webhook_server
from tests.sinks.test_delivery import mqtt_reader
from vision.client import DetectionsMessage, NodeStatusMessage, subscribe
from vision.messaging.schema import SinkStatus

_SECTION = {
    "units": "fraction",
    "lines": [{"name": "door", "points": [[0.5, 0.0], [0.5, 1.0]], "anchor": "center"}],
    "zones": [{"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]], "anchor": "center"}],
}
_SCHEMES = {"mqtt": "mqtt", "redis": "redis", "nats": "nats", "webhook": "http"}


class Observer:
    """Collector of the latency of each message over ZeroMQ, and of the latest status of the sinks."""

    def __init__(self, address: str) -> None:
        self.away = False  # True while the brokers are away
        self.settled = False  # True if the latency counts; False just after a kill or a start
        self.latency_ms: dict[bool, list[float]] = {False: [], True: []}
        self.sinks: dict[str, SinkStatus] = {}
        self._address = address
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for item in subscribe(self._address, kinds=["detections", "status"], queue=100_000):
            if isinstance(item, DetectionsMessage) and self.settled:
                self.latency_ms[self.away].append(item.timing_ms.total)
            elif isinstance(item, NodeStatusMessage):
                self.sinks = item.sinks


def run(folder: Path, minutes: float, kills: int) -> bool:
    """Run the program, kill the brokers, and print the results. Return True if no event was lost."""
    servers = {
        "mqtt": mosquitto(folder / "mqtt"),
        "redis": redis_server(folder / "redis"),
        "nats": nats_server(folder / "nats"),
        "webhook": webhook_server(folder / "webhook"),
    }
    received: list[paho.MQTTMessage] = []
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server)
        reader = mqtt_reader(servers["mqtt"].port, received)
        stack.callback(reader.loop_stop)
        path, address = _configuration(folder, servers)
        program = stack.enter_context(python("-m", "vision", "run", path))
        observer = Observer(address)
        time.sleep(10)
        period_s = minutes * 60 / (2 * kills)
        for _ in range(kills):
            _observe(observer, period_s, away=False)
            for server in servers.values():
                server.kill()
            _observe(observer, period_s, away=True)
            for server in servers.values():
                server.start()
        _wait_until_empty(observer)
        waiting = dict(observer.sinks)
        program.send(signal.SIGTERM)
        assert program.wait(60) == 0
        time.sleep(2)
        arrived = {
            "mqtt": _payloads(received),
            "redis": _redis(servers["redis"].port),
            "nats": asyncio.run(_nats(servers["nats"].port)),
            "webhook": [json.loads(body) for _, body in requests_of(servers["webhook"])],
        }
    return _report(observer, arrived, waiting)


def _configuration(folder: Path, servers: dict[str, Server]) -> tuple[Path, str]:
    address = f"tcp://127.0.0.1:{free_port()}"
    sinks = [
        {"name": name, "address": f"{_SCHEMES[name]}://127.0.0.1:{server.port}", "messages": ["events", "objects"]}
        for name, server in servers.items()
    ]
    ids = [f"c{number}" for number in range(4)]
    content = {
        "node": "station",
        "detect": {"backend": "fake"},
        "cameras": [{"id": name, "source": f"synthetic:160x120@15?objects=3&seed={name[1]}"} for name in ids],
        "track": {"lost_s": 0.5},
        "analytics": dict.fromkeys(ids, _SECTION),
        "objects": {"snapshots": False},
        "state_dir": "state",
        "publish": {"bind": address, "max_events": 1_000_000},
        "processes": 1,
        "sinks": sinks,
    }
    path = folder / "camera.yaml"
    path.write_text(json.dumps(content))
    return path, address


def _observe(observer: Observer, period_s: float, *, away: bool) -> None:
    observer.away = away
    time.sleep(period_s / 4)
    observer.settled = True
    time.sleep(period_s * 3 / 4)
    observer.settled = False


def _wait_until_empty(observer: Observer) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(1)
        if observer.sinks and all(sink.connected and sink.queued < 5 for sink in observer.sinks.values()):
            return


def _payloads(received: Sequence[paho.MQTTMessage]) -> list[dict[str, Any]]:
    return [json.loads(each.payload) for each in received if each.payload[:1] == b"{"]


def _redis(port: int) -> list[dict[str, Any]]:
    with redis.Redis(port=port) as client:
        streams = [client.xrange(f"vision:station:{kind}") for kind in ("events", "objects")]
        return [json.loads(fields[b"payload"]) for stream in streams for _, fields in stream]


async def _nats(port: int) -> list[dict[str, Any]]:
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    subscription = await client.jetstream().pull_subscribe("vision.station.>", "soak")
    found: list[dict[str, Any]] = []
    try:
        while True:
            for each in await subscription.fetch(200, timeout=5):
                found.append(json.loads(each.data))
                await each.ack()
    except (asyncio.TimeoutError, nats.errors.TimeoutError):
        return found
    finally:
        await client.close()


def _report(observer: Observer, arrived: dict[str, list[dict[str, Any]]], sinks: dict[str, SinkStatus]) -> bool:
    """Print the events that each sink received, and the latencies. Return True if no event was lost."""
    fine = True
    for name, messages in arrived.items():
        events = [each["number"] for each in messages if each["schema"] == "vision.events/1"]
        first = list(dict.fromkeys(events))  # without repetitions
        missing = len(set(range(1, max(first) + 1)) - set(first))
        disorder = sum(later < earlier for earlier, later in itertools.pairwise(first))
        topics: dict[str, list[int]] = {}
        for each in messages:
            if each["schema"] == "vision.objects/1":
                topics.setdefault(each["camera"], []).append(each["seq"])
        lost = sum(max(numbers) - min(numbers) + 1 - len(set(numbers)) for numbers in topics.values())
        objects = sum(len(set(numbers)) for numbers in topics.values())
        repeated = len(events) - len(first)
        print(
            f"{name}: {len(first)} events, {missing} missing, {disorder} out of order, {repeated} repeated; "
            f"{objects} objects, {lost} missing; status: sent {sinks[name].sent}, lost {sinks[name].lost}"
        )
        fine &= not missing and not disorder and not lost and not sinks[name].lost
    for away, values in observer.latency_ms.items():
        p50, p99 = np.percentile(values, [50, 99])
        print(f"brokers {'away' if away else 'there'}: p50 {p50:.2f} ms, p99 {p99:.2f} ms of {len(values)} messages")
    return fine


def main() -> None:
    """Run the program that the module docstring describes. Exit with code 1 if a message was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if run(Path(folder), arguments.minutes, arguments.kills) else 1)


if __name__ == "__main__":
    main()
