"""Tests of `vision run` with sinks: every event arrives, even if the process of a sink is killed."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import yaml

from tests.messages.processes import Program, python, wait_until
from tests.paths import ROOT
from tests.sinks.servers import (
    KafkaCluster,
    free_port,
    mosquitto,
    nats_server,
    redis_server,
    requests_of,
    webhook_server,
)
from tests.sinks.test_delivery import SECRET, kafka_messages, mqtt_reader, nats_messages
from vision.client import NodeStatusMessage, subscribe
from vision.config.sinks import SinkConfig
from vision.errors import ConfigError
from vision.messaging.schema import SinkStatus
from vision.outputs.sinks.process import check_sink

_DEADLINE_S = 60.0


def site(folder: Path, *sinks: dict[str, Any], **top: Any) -> Path:
    """Write a camera.yaml with a synthetic camera, a line, and a zone. Return the path of the file."""
    content = {
        "node": "station",
        "detect": {"backend": "fake"},
        "cameras": [{"id": "gate", "source": "synthetic:160x120@30?objects=4"}],
        "track": {"lost_s": 0.2},
        "analytics": {
            "gate": {
                "units": "fraction",
                "lines": [{"name": "door", "points": [[0.5, 0.0], [0.5, 1.0]], "anchor": "center"}],
                "zones": [{"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]], "anchor": "center"}],
            }
        },
        "objects": {},
        "state_dir": "state",
        "publish": {"bind": f"tcp://127.0.0.1:{free_port()}"},
        "status": {"interval_s": 0.2},
        "sinks": list(sinks),
    }
    path = folder / "camera.yaml"
    path.write_text(yaml.safe_dump(content | top))
    return path


@contextmanager
def running(path: Path) -> Iterator[Program]:
    with python("-m", "vision", "run", path) as program:
        yield program
        program.send(signal.SIGTERM)
        assert program.wait(_DEADLINE_S) == 0, program.pending()


def status_of(path: Path, wanted: Callable[[dict[str, SinkStatus]], bool]) -> dict[str, SinkStatus]:
    """Return the first statuses of the sinks for which `wanted` is true."""
    address = yaml.safe_load(path.read_text())["publish"]["bind"]
    for item in subscribe(address, kinds=["status"], timeout_s=_DEADLINE_S):
        if isinstance(item, NodeStatusMessage) and item.sinks and wanted(item.sinks):
            return item.sinks
    raise AssertionError


def numbers(port: int) -> list[int]:
    """Return the unique journal numbers of the events in Redis."""
    with redis.Redis(port=port) as client:
        found = [json.loads(fields[b"payload"]) for _, fields in client.xrange("vision:station:events")]
    return list(dict.fromkeys(each["number"] for each in found))


def sink_process(program: Program) -> psutil.Process:
    (found,) = (
        each
        for each in psutil.Process(program.pid).children(recursive=True)
        if any("outputs.sinks.program" in part for part in each.cmdline())
    )
    return found


def test_killed_sink_process_and_a_restart_lose_no_event(tmp_path: Path) -> None:
    with redis_server(tmp_path / "server") as server:
        sink = {"name": "main", "address": f"redis://127.0.0.1:{server.port}", "messages": ["events", "objects"]}
        path = site(tmp_path, sink)
        with running(path) as program:
            wait_until(lambda: len(numbers(server.port)) > 5, "events", _DEADLINE_S)
            killed = sink_process(program)
            killed.kill()
            before = len(numbers(server.port))
            wait_until(lambda: len(numbers(server.port)) > before + 5, "more events", _DEADLINE_S)
            assert sink_process(program).pid != killed.pid
            server.kill()
            waiting = status_of(path, lambda sinks: bool(sinks["main"].last_error) and sinks["main"].queued > 3)["main"]
            assert not waiting.connected
            assert waiting.protocol == "redis"
        server.start()
        with running(path) as program:
            before = len(numbers(server.port))
            wait_until(lambda: len(numbers(server.port)) > before + 5, "events after the restart", _DEADLINE_S)
            found = status_of(path, lambda sinks: sinks["main"].connected and sinks["main"].sent > 0)["main"]
            assert found.lost == 0
        arrived = numbers(server.port)
        assert arrived == list(range(1, len(arrived) + 1))
        with redis.Redis(port=server.port) as client:
            left = [json.loads(fields[b"payload"]) for _, fields in client.xrange("vision:station:objects")]
    assert {each["schema"] for each in left} == {"vision.objects/1"}
    assert any(each.get("snapshot", "").startswith("/9j/") for each in left)


def documented() -> list[dict[str, Any]]:
    """Return the sink configurations of the examples in docs/sinks.md."""
    blocks = re.findall(r"<!-- example -->\n```yaml\n(.*?)```", (ROOT / "docs" / "sinks.md").read_text(), re.DOTALL)
    return [sink for block in blocks for sink in yaml.safe_load(block)["sinks"]]


def test_documented_examples_work_and_home_assistant_finds_the_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    received: list[Any] = []
    with ExitStack() as stack:
        broker = stack.enter_context(mosquitto(tmp_path / "broker"))
        database = stack.enter_context(redis_server(tmp_path / "redis"))
        stream = stack.enter_context(nats_server(tmp_path / "nats"))
        hook = stack.enter_context(webhook_server(tmp_path / "hook"))
        cluster = stack.enter_context(KafkaCluster())
        ports = {"mqtt": broker.port, "redis": database.port, "nats": stream.port, "http": hook.port}
        hosts = {scheme: f"127.0.0.1:{port}" for scheme, port in ports.items()} | {"kafka": cluster.address}
        sinks = documented()
        for sink in sinks:
            scheme = sink["address"].partition("://")[0]
            sink["address"] = re.sub("://[0-9.]+:[0-9]+", f"://{hosts[scheme]}", sink["address"])
        assert sorted(sink["address"].partition("://")[0] for sink in sinks) == sorted(hosts)
        reader = mqtt_reader(broker.port, received)
        path = site(tmp_path, *sinks)

        def latest() -> dict[str, Any]:
            return {each.topic: json.loads(each.payload) for each in list(received) if each.payload[:1] == b"{"}

        with running(path):
            found = status_of(path, lambda sinks: len(sinks) == 5 and all(sink.sent > 3 for sink in sinks.values()))
            assert {sink.protocol for sink in found.values()} == {"mqtt", "kafka", "redis", "nats", "webhook"}
            assert not any(sink.lost or sink.last_error for sink in found.values())
            announced = "homeassistant/sensor/vision_station_gate_door-in/config"
            wait_until(lambda: announced in latest(), "the announcements", _DEADLINE_S)
        wait_until(lambda: received[-1].payload == b"offline", "the end", _DEADLINE_S)
        reader.loop_stop()
        reader.disconnect()
        assert numbers(database.port)[0] == 1
        assert {headers["x-vision-topic"].partition("/")[0] for headers, _ in requests_of(hook)} <= {
            "events",
            "objects",
        }
        assert kafka_messages(cluster.address, "vision.station.events", 1)
        assert numbers_of_events(asyncio.run(nats_messages(stream.port, "vision.station.events.*")))[0] == 1
    check_announcements(latest())


def numbers_of_events(payloads: Sequence[bytes]) -> list[int]:
    return [json.loads(payload)["number"] for payload in payloads]


def check_announcements(found: dict[str, Any]) -> None:
    """Check the announcements for Home Assistant: one for each value, with a state that the sink publishes."""
    announced = {topic: content for topic, content in found.items() if topic.startswith("homeassistant/")}
    names = {content["name"] for content in announced.values()}
    assert names == {"connection", "objects", "events", "left occupancy", "door in", "door out"}
    assert {content["device"]["identifiers"][0] for content in announced.values()} == {"vision_station_gate"}
    for topic, content in announced.items():
        assert topic.split("/")[2:] == [content["unique_id"], "config"]
        assert content["state_topic"] in {*found, "vision/station/events/gate"}
        assert content["availability_topic"] == "vision/station/available"


@pytest.mark.parametrize(("address", "package"), [("mqtt://h", "aiomqtt"), ("kafka://h", "confluent_kafka")])
def test_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch, address: str, package: str) -> None:
    sink = SinkConfig(name="home", address=address)
    check_sink(sink)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as raised:
        check_sink(sink)
    assert raised.value.code == "package-missing"
    assert f"[{sink.target.protocol}]" in raised.value.hint
    assert raised.value.exit_code == 78


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_unusable_file_of_certificates_is_reported(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        check_sink(SinkConfig(name="home", address="mqtts://h", tls=str(path)))
    assert raised.value.code == "tls-file"
