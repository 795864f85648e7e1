"""Tests of delivery to real brokers and servers: all messages arrive in order, even if a server is killed."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nats
import pytest
import redis
from confluent_kafka import Consumer, TopicPartition
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from standardwebhooks import Webhook

from tests.sinks.servers import (
    KafkaCluster,
    Server,
    answer_with,
    mosquitto,
    nats_server,
    redis_server,
    requests_of,
    webhook_server,
)
from vision.config.sinks import parse_sink_address
from vision.outputs.sinks.delivery import Outgoing, SinkSettings, connect
from vision.outputs.sinks.sender import Sender
from vision.outputs.sinks.spool import Spool

SECRET = "0123456789abcdef0123"
_DEADLINE_S = 60.0


def settings(address: str, **changes: Any) -> SinkSettings:
    values: dict[str, Any] = {"user": None, "password": None, "secret": None, "tls": "verify"} | changes
    prefix = values.pop("prefix", ("vision", "station"))
    return SinkSettings("main", parse_sink_address(address), "station", prefix, **values)


def message(number: int, topic: str = "events/gate") -> Outgoing:
    return Outgoing(f"station-j1-{number}", topic, json.dumps({"number": number}).encode())


def spool(folder: Path, *, max_bytes: int = 10**8) -> Spool:
    return Spool(folder / "spool.sqlite", max_bytes=max_bytes, max_age_s=1e6)


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(poll(), _DEADLINE_S)


def deliver(folder: Path, chosen: SinkSettings, steps: Callable[[Sender, Spool], Any]) -> Sender:
    """Run a sender until the spool is empty. At the same time, `steps` adds messages and kills servers."""

    async def run() -> Sender:
        queue = spool(folder)
        sender = Sender(queue, chosen)
        task = asyncio.create_task(sender.run())
        try:
            await steps(sender, queue)
            await until(lambda: queue.count == 0)
        finally:
            sender.stop.set()
            sender.wake.set()
            await asyncio.wait_for(task, _DEADLINE_S)
            queue.close()
        return sender

    return asyncio.run(run())


def add(sender: Sender, queue: Spool, numbers: Sequence[int]) -> None:
    queue.add([message(number) for number in numbers])
    sender.wake.set()


def killing(server: Server) -> Callable[[Sender, Spool], Any]:
    """Return a function that adds messages 0 to 59, and that kills the server while messages 20 to 39 are added."""

    async def steps(sender: Sender, queue: Spool) -> None:
        add(sender, queue, range(20))
        await until(lambda: queue.count == 0)
        server.kill()
        add(sender, queue, range(20, 40))
        await until(lambda: not sender.connected)
        assert queue.count == 20
        server.start()
        add(sender, queue, range(40, 60))

    return steps


async def all_sixty(sender: Sender, queue: Spool) -> None:
    add(sender, queue, range(60))


# --- received messages ------------------------------------------------------------------------------------------------


def numbers_of(payloads: Sequence[bytes | bytearray | str]) -> list[int]:
    return [json.loads(payload)["number"] for payload in payloads]


def without_repetitions(numbers: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


def mqtt_reader(port: int, received: list[paho.MQTTMessage]) -> paho.Client:
    """Subscribe to all topics. The broker keeps the messages while the subscriber is disconnected."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="reader", clean_session=False)
    client.on_message = lambda _client, _data, each: received.append(each)
    client.on_connect = lambda each, *_: each.subscribe("#", 1)
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client


def test_mqtt_messages_survive_a_killed_broker(tmp_path: Path) -> None:
    received: list[paho.MQTTMessage] = []
    with mosquitto(tmp_path / "broker") as server:
        reader = mqtt_reader(server.port, received)
        steps = killing(server)
        sender = deliver(tmp_path, settings(f"mqtt://127.0.0.1:{server.port}"), steps)

        async def arrived() -> None:
            await until(lambda: len([each for each in received if each.topic.endswith("gate")]) >= 60)

        asyncio.run(arrived())
        reader.loop_stop()
        reader.disconnect()
    events = [each.payload for each in received if each.topic == "vision/station/events/gate"]
    assert without_repetitions(numbers_of(events)) == list(range(60))
    assert sender.sent == 60
    available = [each.payload for each in received if each.topic == "vision/station/available"]
    assert available[0] == b"online"


def redis_entries(port: int, stream: str = "vision:station:events") -> list[dict[bytes, bytes]]:
    with redis.Redis(port=port) as client:
        return [fields for _, fields in client.xrange(stream)]


def test_redis_messages_survive_a_killed_server(tmp_path: Path) -> None:
    with redis_server(tmp_path / "server") as server:
        deliver(tmp_path, settings(f"redis://127.0.0.1:{server.port}"), killing(server))
        entries = redis_entries(server.port)
    assert without_repetitions(numbers_of([each[b"payload"] for each in entries])) == list(range(60))
    assert entries[7][b"id"] == b"station-j1-7"
    assert entries[7][b"topic"] == b"events/gate"


async def nats_messages(port: int, subject: str) -> list[bytes]:
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    subscription = await client.jetstream().pull_subscribe(subject, "reader")
    try:
        return [each.data for each in await subscription.fetch(1000, timeout=2)]
    finally:
        await client.close()


def test_nats_messages_survive_a_killed_server_without_repetitions(tmp_path: Path) -> None:
    with nats_server(tmp_path / "server") as server:
        deliver(tmp_path, settings(f"nats://127.0.0.1:{server.port}"), killing(server))
        found = asyncio.run(nats_messages(server.port, "vision.station.events.gate"))
    assert numbers_of(found) == list(range(60))


def test_nats_recognizes_a_message_that_is_sent_again(tmp_path: Path) -> None:
    async def twice(chosen: SinkSettings) -> None:
        for _ in range(2):
            async with connect(chosen) as connection:
                assert await connection.send([message(1), message(2)]) == ["", ""]

    with nats_server(tmp_path / "server") as server:
        asyncio.run(twice(settings(f"nats://127.0.0.1:{server.port}")))
        assert numbers_of(asyncio.run(nats_messages(server.port, "vision.station.events.gate"))) == [1, 2]


def test_webhook_requests_are_signed_and_survive_a_killed_server(tmp_path: Path) -> None:
    with webhook_server(tmp_path / "server") as server:
        address = f"http://127.0.0.1:{server.port}/hook?site=1"
        deliver(tmp_path, settings(address, secret=SECRET, prefix=("vision",)), killing(server))
    found = requests_of(server)
    assert without_repetitions(numbers_of([body for _, body in found])) == list(range(60))
    verifier = Webhook(SECRET.encode())
    for headers, body in found:
        verifier.verify(body, headers)
        assert headers["webhook-id"] == f"station-j1-{json.loads(body)['number']}"
        assert headers["x-vision-topic"] == "events/gate"
    with pytest.raises(Exception, match="signature"):
        verifier.verify(found[0][1] + " ", found[0][0])


def kafka_messages(address: str, topic: str, count: int) -> list[Any]:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "reader", "enable.auto.commit": False})
    found = []
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    while (one := consumer.poll(5.0)) is not None and one.error() is None:
        found.append(one)
        if len(found) == count:
            break
    consumer.close()
    return found


def test_kafka_messages_have_the_camera_as_the_key(tmp_path: Path) -> None:
    with KafkaCluster() as cluster:
        deliver(tmp_path, settings(f"kafka://{cluster.address}"), all_sixty)
        found = kafka_messages(cluster.address, "vision.station.events", 60)
    assert numbers_of([each.value() for each in found]) == list(range(60))
    assert {each.key() for each in found} == {b"gate"}
    assert found[5].headers() == [("id", b"station-j1-5")]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 401, 503])
def test_webhook_keeps_messages_that_a_server_refuses_for_now(tmp_path: Path, status: int) -> None:
    with webhook_server(tmp_path / "server") as server:
        answer_with(server, status, f"http://127.0.0.1:{server.port}/elsewhere" if status == 302 else "")

        async def steps(sender: Sender, queue: Spool) -> None:
            add(sender, queue, range(3))
            await until(lambda: str(status) in sender.last_error)
            assert queue.count == 3
            answer_with(server, 200)

        sender = deliver(tmp_path, settings(f"http://127.0.0.1:{server.port}"), steps)
    assert (sender.sent, sender.refused) == (3, 0)
    assert numbers_of([body for _, body in requests_of(server)]) == [0, 1, 2]


def test_webhook_gives_up_a_message_that_a_server_never_accepts(tmp_path: Path) -> None:
    with webhook_server(tmp_path / "server") as server:
        answer_with(server, 422)

        async def steps(sender: Sender, queue: Spool) -> None:
            add(sender, queue, [1])
            await until(lambda: sender.refused == 1)
            answer_with(server, 200)
            add(sender, queue, [2])

        sender = deliver(tmp_path, settings(f"http://127.0.0.1:{server.port}"), steps)
    assert (sender.sent, sender.refused) == (1, 1)


async def create_stream(port: int, **options: Any) -> None:
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    await client.jetstream().add_stream(name="small", subjects=["vision.station.>"], **options)
    await client.close()


def test_message_that_a_server_never_accepts_does_not_block_the_others(tmp_path: Path) -> None:
    with nats_server(tmp_path / "server") as server:
        asyncio.run(create_stream(server.port, max_msg_size=1000))

        async def steps(sender: Sender, queue: Spool) -> None:
            queue.add([message(1), Outgoing("large", "events/gate", b"x" * 5000), message(2), message(3)])
            sender.wake.set()

        sender = deliver(tmp_path, settings(f"nats://127.0.0.1:{server.port}"), steps)
        found = asyncio.run(nats_messages(server.port, "vision.station.events.gate"))
    assert sorted(numbers_of(found)) == [1, 2, 3]
    assert sender.refused == 1
    assert "given up" in sender.last_error


def test_wrong_password_is_reported_without_showing_it(tmp_path: Path) -> None:
    with redis_server(tmp_path / "server", "--requirepass", "right-password") as server:
        address = f"redis://127.0.0.1:{server.port}"

        async def steps(sender: Sender, queue: Spool) -> None:
            add(sender, queue, [1])
            await until(lambda: bool(sender.last_error))
            assert not sender.connected
            queue.remove(queue.first(1))

        sender = deliver(tmp_path, settings(address, password="wrong-password"), steps)
        assert "wrong-password" not in sender.last_error
        assert deliver(tmp_path, settings(address, password="right-password"), all_sixty).sent == 60


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a self-signed certificate for this machine. Its key is in ``key.pem``."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    made_for = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1", "-nodes"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", path.with_name("key.pem"), "-out", path]
    subprocess.run([str(part) for part in [*command, *made_for]], check=True, capture_output=True)
    return path


def tls_server(scheme: str, folder: Path, certificate: Path) -> Server:
    key = certificate.with_name("key.pem")
    if scheme == "mqtts":
        return mosquitto(folder, options=f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}")
    if scheme == "natss":
        return nats_server(folder, "--tls", "--tlscert", certificate, "--tlskey", key)
    if scheme == "rediss":
        files = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no"]
        return redis_server(folder, *map(str, files), tls=True)
    return webhook_server(folder, certificate, key)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves refused sockets open
@pytest.mark.parametrize("scheme", ["mqtts", "rediss", "natss", "https"])
def test_only_a_server_with_a_trusted_certificate_gets_messages(tmp_path: Path, scheme: str, certificate: Path) -> None:
    with tls_server(scheme, tmp_path / "server", certificate) as server:
        address = f"{scheme}://127.0.0.1:{server.port}"

        async def refused(sender: Sender, queue: Spool) -> None:
            add(sender, queue, range(60))
            await until(lambda: "certificate" in sender.last_error.lower())
            queue.remove(queue.first(60))

        assert deliver(tmp_path, settings(address), refused).sent == 0
        trusting = settings(address, tls=str(certificate))
        assert deliver(tmp_path, trusting, all_sixty).sent == 60
