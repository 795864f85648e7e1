"""Tests of the relay, which serves public addresses: forwarded data, rejected data, and the end of the relay."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.messages.processes import python, wait_until
from tests.messages.raw_zmtp import GREETING, SIGNATURE, connect, connect_only, frame, ready, send_until_closed
from tests.messages.samples import camera_status, result
from tests.unit.messaging.test_publisher import Subscriber, joined, names
from vision.errors import Unavailable
from vision.messaging import exposed_port
from vision.messaging.publisher import Publisher
from vision.messaging.relay import Bucket, Inspector, Refused
from vision.messaging.replay_server import ReplayServer
from vision.state.database import StateDatabase

ANY_PORT = "tcp://127.0.0.1:*"


@pytest.fixture(params=["tcp", "ipc", "abstract"])
def bind(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an address of each form."""
    return {"tcp": ANY_PORT, "ipc": f"ipc://{tmp_path}/out", "abstract": f"ipc://@{tmp_path}"}[request.param]


@contextmanager
def limited(most: int = 8, bind: str = ANY_PORT) -> Iterator[Publisher]:
    with Publisher(bind, node="n", max_subscribers=most) as publisher:
        yield publisher


def counted(publisher: Publisher, name: str) -> int:
    return publisher.counters().get(f"publish.{name}", 0)


# --- the rules, without a process -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "not_zmtp"),
        (b"\xff\0\0\0\0\0\0\0\1\x7e", "not_zmtp"),
        (SIGNATURE + b"\x01", "not_zmtp"),
        (GREETING + b"\x02" + b"\xff" * 8, "large_frame"),
        (GREETING + ready(b"SUB") + frame(b"\x01x", 1), "many_parts"),
        (GREETING + ready(b"SUB") + b"".join(frame(b"\x01%d" % n) for n in range(1001)), "many_subscriptions"),
        (
            GREETING + ready(b"SUB") + b"".join(frame(b"\x01%d" % n + b"x" * 4000) for n in range(5)),
            "many_subscriptions",
        ),
        (GREETING + frame(b"\x09SUBSCRIBE" + b"x" * 4000, 4) * 2 + frame(b"\x09SUBSCRIBE", 4) * 2000, ""),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_bytes_that_break_a_rule_are_refused(data: bytes, reason: str, step: int) -> None:
    inspector = Inspector(subscribes=True)
    refused = ""
    try:
        for start in range(0, len(data), step):
            inspector.add(data[start : start + step])
    except Refused as error:
        refused = str(error)
    assert refused == reason


def test_canceled_subscriptions_do_not_count() -> None:
    inspector = Inspector(subscribes=True)
    inspector.add(GREETING + ready(b"SUB"))
    for number in range(5000):
        inspector.add(frame(b"\x01%d" % number) + frame(b"\x00%d" % number))
    assert inspector.topics == set()
    assert inspector.topic_bytes == 0


def test_requests_have_a_limited_number_of_parts() -> None:
    inspector = Inspector(subscribes=False)
    inspector.add(GREETING + ready(b"DEALER") + (frame(b"", 1) + frame(b"{}")) * 50)
    with pytest.raises(Refused):
        inspector.add(frame(b"x", 1) * 4)


def test_bucket_permits_a_burst_and_then_a_rate() -> None:
    bucket = Bucket(1000, 100, 0.0)
    assert bucket.left(0.0) == 1000
    bucket.take(1000)
    assert bucket.left(0.0) == 0
    assert bucket.left(2.0) == 200
    assert bucket.left(60.0) == 1000


# --- attacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("flags", [0, 1])
def test_unlimited_messages_are_throttled_or_refused(bind: str, flags: int) -> None:
    """A flood of subscriptions must wait in the sender's kernel. An unfinished message ends the sender's connection."""
    with limited(bind=bind) as publisher, joined(publisher, "detections/") as subscriber:
        joins = publisher.socket.joins
        with connect(publisher.address) as attacker:
            attacker.settimeout(0.5)
            sent = send_until_closed(attacker, frame(b"\x01x", flags) * 10_000, 40_000_000)
            assert sent < 20_000_000
            publisher.publish(result())
            assert names([subscriber.receive()]) == [("detections/gate", 1)]
            if flags:
                wait_until(lambda: counted(publisher, "refused.many_parts") == 1, "the connection is refused")
            assert publisher.socket.joins - joins < 100_000


@pytest.mark.integration
def test_endless_request_ends_its_connection(tmp_path: Path) -> None:
    with closing(StateDatabase(tmp_path, boot="b", max_events=100)) as database:
        server = ReplayServer(ANY_PORT, database.events, node="n", encoding="json", keepalive_s=10, max_clients=4)
        with connect(server.address, b"DEALER") as attacker:
            assert send_until_closed(attacker, frame(b"x" * 4000, 1) * 100, 40_000_000) < 20_000_000
            wait_until(lambda: server.counters().get("refused.many_parts") == 1, "the connection is refused")
        server.close()


@pytest.mark.integration
def test_further_connections_wait_until_one_leaves(bind: str) -> None:
    with limited(3, bind) as publisher:
        first = [Subscriber(publisher.address, "status/") for _ in range(3)]
        wait_until(lambda: publisher.socket.joins == 3, "three have subscribed")
        publisher.publish_status(camera_status())
        with Subscriber(publisher.address, "status/") as waiting:
            assert waiting.pending(300) == []
            first[0].__exit__()
            assert names([waiting.receive()]) == [("status/gate", 1)]
        for subscriber in first[1:]:
            assert names(subscriber.pending(100))[0] == ("status/gate", 1)
            subscriber.__exit__()


@pytest.mark.integration
def test_connection_without_handshake_is_closed(bind: str) -> None:
    with limited(bind=bind) as publisher:
        with connect_only(publisher.address) as silent:
            silent.settimeout(20)
            silent.sendall(GREETING)
            while silent.recv(4096):
                pass
        wait_until(lambda: counted(publisher, "refused.no_handshake") == 1, "the connection is counted")


# --- the process ------------------------------------------------------------------------------------------------------


def relay_of(pid: int) -> psutil.Process:
    return next(each for each in psutil.Process(pid).children() if "relay.py" in " ".join(each.cmdline()))


@pytest.mark.integration
def test_messages_and_status_arrive_and_pending_ones_are_sent_at_the_end() -> None:
    with Publisher(ANY_PORT, node="n", max_subscribers=8, linger_s=5) as publisher:
        publisher.publish_status(camera_status())
        with Subscriber(publisher.address, "") as subscriber:
            assert names([subscriber.receive()]) == [("status/gate", 1)]
            for _ in range(300):
                publisher.publish(result())
            publisher.close()
            assert names([subscriber.receive() for _ in range(300)])[-1] == ("detections/gate", 300)


@pytest.mark.integration
def test_killed_process_is_replaced() -> None:
    with limited() as publisher, Subscriber(publisher.address, "status/") as subscriber:
        publisher.publish_status(camera_status())
        subscriber.receive()
        relay_of(os.getpid()).kill()
        assert names([subscriber.receive()]) == [("status/gate", 1)]
        wait_until(lambda: counted(publisher, "restarts") == 1, "the restart is counted")


@pytest.mark.integration
def test_stopped_process_is_replaced_and_an_idle_one_is_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as shorter:
        shorter.setattr(exposed_port, "_SILENT_S", 6.0)
        idle_publisher = Publisher(ANY_PORT, node="n", max_subscribers=8)
    with idle_publisher as idle:
        children = {child.pid for child in psutil.Process().children()}
        with limited() as publisher, Subscriber(publisher.address, "status/") as subscriber:
            publisher.publish_status(camera_status())
            subscriber.receive()
            wait_until(lambda: counted(publisher, "accepted") == 1, "the relay reports its counters")
            relay = next(child for child in psutil.Process().children() if child.pid not in children)
            relay.suspend()
            assert names([subscriber.receive()]) == [("status/gate", 1)]
            assert not relay.is_running()
            wait_until(lambda: counted(publisher, "restarts") == 1, "the restart is counted")
        assert counted(idle, "restarts") == 0
    assert "the process relay has printed nothing for 10 s, and is killed" in caplog.text


_SCRIPT_OF_A_PUBLISHER = """
import time
from tests.unit.messaging.test_relay import limited

with limited() as publisher:
    print(publisher.address, flush=True)
    time.sleep(60)
"""


@pytest.mark.integration
def test_process_ends_with_a_killed_publisher() -> None:
    with python("-c", _SCRIPT_OF_A_PUBLISHER) as program:
        program.line()
        relay = relay_of(program.pid)
        program.send(signal.SIGKILL)
        relay.wait(60)


@pytest.mark.integration
def test_port_in_use_is_refused_and_free_after_close() -> None:
    with limited() as first:
        with pytest.raises(Unavailable) as caught:
            Publisher(first.address, node="n", max_subscribers=1)
        assert caught.value.code == "address-in-use"
        address = first.address
    Publisher(address, node="n", max_subscribers=1).close()
    for bind, code in (("tcp://203.0.113.7:5555", "address-not-local"), ("tcp://eth99:5555", "address-not-local")):
        with pytest.raises(Unavailable) as caught:
            Publisher(bind, node="n", max_subscribers=1)
        assert caught.value.code == code


@pytest.mark.integration
@pytest.mark.parametrize("bind", ["tcp://*:*", "tcp://lo:*", "tcp://[::1]:*"])
def test_address_contains_the_actual_port(bind: str) -> None:
    with Publisher(bind, node="n", max_subscribers=2) as publisher:
        port = publisher.address.rpartition(":")[2]
        host = "[::1]" if "::1" in bind else "127.0.0.1"
        with connect_any(host, int(port)):
            pass


def connect_any(host: str, port: int) -> socket.socket:
    return socket.create_connection((host.strip("[]"), port), timeout=5)


@pytest.mark.integration
def test_slow_subscriber_loses_only_its_own_messages() -> None:
    with limited() as publisher, joined(publisher, "detections/") as healthy, connect(publisher.address) as slow:
        joins = publisher.socket.joins
        slow.sendall(frame(b"\x01"))
        wait_until(lambda: publisher.socket.joins == joins + 1, "the slow subscriber has joined")
        for seq in range(1, 2000):
            publisher.publish(result())
            assert names([healthy.receive()]) == [("detections/gate", seq)]
