"""Tests of requests for missed events, by the client and by bare ZeroMQ sockets, after losses and restarts."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.messages.processes import wait_until
from tests.messages.samples import CLASSES, crossed, node_status, result
from tests.unit.state.faults import full_disk
from vision.client import EventMessage, Gap, Item, NewJournal, Silence, Subscription, subscribe
from vision.errors import ConfigError, MessageError, Unavailable
from vision.messaging import codec, schema
from vision.messaging.publisher import Publisher
from vision.state.database import StateDatabase

ANY_PORT = "tcp://127.0.0.1:*"


@contextmanager
def open_publisher(folder: Path, bind: str = ANY_PORT, replay: str = ANY_PORT, **options: Any) -> Iterator[Publisher]:
    state = StateDatabase(folder, boot="boot", max_events=options.pop("max_events", 1000))
    with (
        closing(state),
        Publisher(bind, node="n", class_names=CLASSES, event_log=state.events, replay=replay, **options) as publisher,
    ):
        publisher.publish_status(node_status())
        yield publisher


def publish(publisher: Publisher, count: int = 1, camera: str = "gate") -> None:
    for _ in range(count):
        publisher.publish(result(camera=camera, events=(crossed(camera),)))


def lose(publisher: Publisher, count: int = 1) -> None:
    """Store events without sending them, so that a subscriber detects them as lost."""
    assert publisher._event_log is not None
    for _ in range(count):
        number = publisher._event_log.newest + 1
        header = publisher.numbering.header("events/gate")
        event = codec.event(header, crossed(), result(), journal=publisher._event_log.journal, number=number)
        assert publisher._event_log.append([codec.encode(event)])


def take(subscription: Subscription, count: int) -> list[Item]:
    items = [subscription.receive(20) for _ in range(count)]
    assert None not in items
    return [item for item in items if item is not None]


def numbers(items: list[Item]) -> list[object]:
    return [item.number if isinstance(item, EventMessage) else item for item in items]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_subscription_starts_with_stored_events(tmp_path: Path, encoding: schema.Encoding) -> None:
    with open_publisher(tmp_path, encoding=encoding) as publisher:
        publish(publisher, 5)
        with Subscription(publisher.address, kinds=("events",), since=2) as subscription:
            items = take(subscription, 3)
            publish(publisher, 2)
            items += take(subscription, 2)
    assert numbers(items) == [3, 4, 5, 6, 7]
    assert {type(item) for item in items} == {EventMessage}
    (first, *_) = items
    assert isinstance(first, EventMessage)
    assert first.data == {"direction": "in", "count": 3}


def test_replayed_events_equal_live_events(tmp_path: Path) -> None:
    with open_publisher(tmp_path) as publisher, Subscription(publisher.address, kinds=("events",), since=0) as early:
        publish(publisher, 3)
        live = take(early, 3)
        with Subscription(publisher.address, kinds=("events",), since=0) as late:
            assert take(late, 3) == live


def test_lost_events_are_filled_in_order(tmp_path: Path) -> None:
    with (
        open_publisher(tmp_path) as publisher,
        Subscription(publisher.address, kinds=("events",), since=0) as subscription,
    ):
        publish(publisher)
        assert numbers(take(subscription, 1)) == [1]
        lose(publisher, 600)  # more than one reply holds
        publish(publisher, 2)
        assert numbers(take(subscription, 602)) == list(range(2, 604))


def test_lost_last_event_is_recovered(tmp_path: Path) -> None:
    now_ns = [time.monotonic_ns()]
    with (
        open_publisher(tmp_path) as publisher,
        Subscription(
            publisher.address, kinds=("events",), since=0, clock=lambda: now_ns[0], silence_s=1e6
        ) as subscription,
    ):
        publish(publisher)
        deadline = time.monotonic() + 60
        while (item := subscription.receive(0)) is None:
            now_ns[0] += 10_000_000
            assert time.monotonic() < deadline
        assert numbers([item]) == [1]
        lose(publisher)
        while (item := subscription.receive(0)) is None:
            now_ns[0] += 100_000_000  # no message shows the loss
            assert time.monotonic() < deadline
        assert numbers([item]) == [2]


def test_events_of_other_cameras_are_left_out(tmp_path: Path) -> None:
    with open_publisher(tmp_path) as publisher:
        for camera in ("gate", "yard", "gate2", "gate"):
            publish(publisher, camera=camera)
        with Subscription(publisher.address, cameras=["gate"], kinds=("events",), since=0) as subscription:
            items = take(subscription, 2)
            publish(publisher, camera="yard")
            publish(publisher)
            items += take(subscription, 1)
        assert numbers(items) == [1, 4, 6]
        assert {item.camera for item in items if isinstance(item, EventMessage)} == {"gate"}


def test_other_kinds_are_received_with_since(tmp_path: Path) -> None:
    kinds: tuple[schema.Kind, ...] = ("detections", "events", "status")
    with open_publisher(tmp_path) as publisher, Subscription(publisher.address, kinds=kinds, since=0) as subscription:
        (first,) = take(subscription, 1)
        assert isinstance(first, schema.NodeStatusMessage)
        assert first.replay == publisher.replay_address
        wait_until(lambda: publisher.socket.joins >= 3, "the subscriptions have arrived")
        publish(publisher)
        items = take(subscription, 2)
        assert {type(item) for item in items} == {schema.DetectionsMessage, EventMessage}


def test_unsubscribed_status_is_not_returned(tmp_path: Path) -> None:
    with (
        open_publisher(tmp_path) as publisher,
        Subscription(publisher.address, kinds=("events",), since=0) as subscription,
    ):
        publish(publisher)
        take(subscription, 1)
        publisher.publish_status(node_status())
        assert subscription.receive(0.2) is None


@pytest.mark.integration
def test_status_prevents_silence_report(tmp_path: Path) -> None:
    stop = threading.Event()

    def report(publisher: Publisher) -> None:
        while not stop.wait(0.05):
            publisher.publish_status(node_status())

    with open_publisher(tmp_path) as publisher:
        thread = threading.Thread(target=report, args=(publisher,))
        thread.start()
        try:
            with Subscription(publisher.address, kinds=("events",), since=0, silence_s=1.5) as subscription:
                assert subscription.receive(3.0) is None
                stop.set()
                assert isinstance(subscription.receive(20), Silence)
        finally:
            stop.set()
            thread.join()


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_publisher_restart_loses_no_event(tmp_path: Path) -> None:
    bind, replay = f"ipc://{tmp_path}/out", f"ipc://{tmp_path}/again"
    with Subscription(bind, kinds=("events",), since=0) as subscription:
        items: list[Item] = []
        for run in range(3):
            with open_publisher(tmp_path / "journal", bind, replay) as publisher:
                lose(publisher)  # before the subscriber has connected again
                publish(publisher)
                while len(numbers([item for item in items if isinstance(item, EventMessage)])) < 2 * run + 2:
                    items += take(subscription, 1)
                lose(publisher)  # just before it ends
    events = [item for item in items if isinstance(item, EventMessage)]
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert not [item for item in items if isinstance(item, Gap | NewJournal)]


def test_removed_journal_is_reported(tmp_path: Path) -> None:
    with open_publisher(tmp_path / "a") as publisher:
        publish(publisher, 4)
        with Subscription(publisher.address, kinds=("events",), since=0) as subscription:
            last = take(subscription, 4)[-1]
    assert isinstance(last, EventMessage)
    assert last.journal is not None and last.number is not None
    with open_publisher(tmp_path / "b") as publisher:
        publish(publisher, 6)
        with Subscription(publisher.address, kinds=("events",), since=(last.journal, last.number)) as subscription:
            first, *others = take(subscription, 7)
    assert isinstance(first, NewJournal)
    assert (first.node, first.old) == ("n", last.journal)
    assert numbers(others) == [1, 2, 3, 4, 5, 6]


def test_deleted_events_are_reported_as_gap(tmp_path: Path) -> None:
    with open_publisher(tmp_path, max_events=80) as publisher:
        publish(publisher, 300)
        with Subscription(publisher.address, kinds=("events",), since=1) as subscription:
            gap, *rest = take(subscription, 81)
            assert isinstance(gap, Gap)
            assert (gap.topic, gap.expected_seq) == ("events/", 2)
            assert numbers(rest) == list(range(gap.got_seq, gap.got_seq + 80))


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bind", "reached"), [("tcp://*:*", "tcp://127.0.0.1"), ("tcp://127.0.0.1:*", "")])
def test_replay_address_is_read_from_status(tmp_path: Path, bind: str, reached: str) -> None:
    with open_publisher(tmp_path, bind, bind) as publisher:
        publish(publisher)
        address = f"tcp://127.0.0.1:{publisher.address.rpartition(':')[2]}"
        with Subscription(address, kinds=("events",), since=0) as subscription:
            assert numbers(take(subscription, 1)) == [1]
            assert subscription._replay is not None and subscription._replay._address.startswith(reached)


def test_given_replay_address_overrides_status(tmp_path: Path) -> None:
    """Through a tunnel, a subscriber cannot reach the replay address that the status contains."""
    with open_publisher(tmp_path, replay=f"ipc://{tmp_path}/again") as publisher:
        publish(publisher, 2)
        with Subscription(publisher.address, kinds=("events",), since=0, replay="tcp://127.0.0.1:9") as subscription:
            assert subscription.receive(0.3) is None
        replay = f"ipc://{tmp_path}/again"
        with Subscription(publisher.address, kinds=("events",), since=0, replay=replay) as subscription:
            assert numbers(take(subscription, 2)) == [1, 2]


def test_publisher_without_event_log_raises_error() -> None:
    with Publisher(ANY_PORT, node="n") as publisher:
        publisher.publish_status(node_status())
        with (
            Subscription(publisher.address, kinds=("events",), since=0) as subscription,
            pytest.raises(MessageError) as refused,
        ):
            take(subscription, 1)
    assert refused.value.code == "no-replay"


def test_subscribe_accepts_since(tmp_path: Path) -> None:
    with open_publisher(tmp_path) as publisher:
        publish(publisher, 2)
        items = subscribe(publisher.address, kinds=("events",), since=0, timeout_s=60)
        assert [next(items), next(items)]
        items.close()  # type: ignore[attr-defined]
        with pytest.raises(TimeoutError):
            list(subscribe(publisher.address, kinds=("events",), since=2, timeout_s=0.3))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"since": 0}, "since"),
        ({"since": -1, "kinds": ["events"]}, "since"),
        ({"replay": "tcp://127.0.0.1:1"}, "since"),
        ({"replay": "127.0.0.1:1", "since": 0, "kinds": ["events"]}, "address-form"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], code: str) -> None:
    for begin in (subscribe, Subscription):
        with pytest.raises(ConfigError) as caught:
            begin("tcp://127.0.0.1:9", **arguments)
        assert caught.value.code == code


@pytest.mark.parametrize("which", ["bind", "replay"])
def test_address_in_use_is_refused_and_everything_closed(tmp_path: Path, which: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with (
            pytest.raises(Unavailable) as caught,
            open_publisher(tmp_path, **{which: taken}),
        ):
            pass
        assert f"publish.{which}" in str(caught.value)
    with open_publisher(tmp_path):  # the folder is no longer locked
        pass


def test_socket_file_is_removed(tmp_path: Path) -> None:
    with open_publisher(tmp_path / "journal", replay=f"ipc://{tmp_path}/again"):
        assert (tmp_path / "again").exists()
    assert not (tmp_path / "again").exists()


# --- the protocol, without the client ---------------------------------------------------------------------------------


def send_request(address: str, request_payload: bytes) -> tuple[Any, list[bytes]]:
    with zmq.Context() as context, context.socket(zmq.REQ) as sock:
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.RCVTIMEO, 20_000)
        sock.connect(address)
        sock.send(request_payload)
        header, *events = sock.recv_multipart()
        return json.loads(header), events


def test_reply_has_header_and_events(tmp_path: Path) -> None:
    with open_publisher(tmp_path) as publisher:
        publish(publisher, 3)
        assert publisher.replay_address is not None and publisher._event_log is not None
        request_payload = {"schema": "vision.replay-request/1", "since": 1, "limit": 1}
        header, events = send_request(publisher.replay_address, json.dumps(request_payload).encode())
        journal = publisher._event_log.journal
    assert header == {
        "schema": "vision.replay-reply/1", "node": "n", "journal": journal, "oldest": 1, "newest": 3, "more": True
    }  # fmt: skip
    (event,) = [json.loads(event) for event in events]
    assert (event["schema"], event["number"], event["journal"], event["seq"]) == ("vision.events/1", 2, journal, 2)


@pytest.mark.parametrize(
    "request_payload",
    [
        b"",
        b"what did I miss?",
        b'{"schema": "vision.ask/2"}',
        b'{"schema": "vision.replay-request/1", "since": "all"}',
    ],
)
def test_wrong_request_is_answered_with_error(tmp_path: Path, request_payload: bytes) -> None:
    with open_publisher(tmp_path) as publisher:
        publish(publisher)
        assert publisher.replay_address is not None
        header, events = send_request(publisher.replay_address, request_payload)
        assert "vision.replay-request/1" in header["error"]
        assert events == []
        _, events = send_request(publisher.replay_address, b'{"schema": "vision.replay-request/1"}')
        assert len(events) == 1, "the next request is answered"


@pytest.mark.parametrize("limit", [-5, 0, 10**9])
def test_reply_is_limited(tmp_path: Path, limit: int) -> None:
    with open_publisher(tmp_path, max_events=2000) as publisher:
        publish(publisher, 3)
        lose(publisher, 1500)
        assert publisher.replay_address is not None
        _, events = send_request(
            publisher.replay_address, json.dumps({"schema": "vision.replay-request/1", "limit": limit}).encode()
        )
        assert len(events) == 1 if limit < 1 else 100 < len(events) < 1000
        assert sum(map(len, events)) <= 65_536


def test_client_that_does_not_read_replies_does_not_affect_others(tmp_path: Path) -> None:
    with open_publisher(tmp_path) as publisher, zmq.Context() as context, context.socket(zmq.DEALER) as client:
        lose(publisher, 800)
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.RCVHWM, 1)
        assert publisher.replay_address is not None
        client.connect(publisher.replay_address)
        for _ in range(300):
            client.send_multipart([b"", b'{"schema": "vision.replay-request/1"}'])
        header, events = send_request(publisher.replay_address, b'{"schema": "vision.replay-request/1", "since": 790}')
        assert (header["newest"], len(events)) == (800, 10)


def test_events_on_full_disk_are_sent_without_number(tmp_path: Path) -> None:
    with (
        open_publisher(tmp_path) as publisher,
        Subscription(publisher.address, kinds=("events",), since=0) as subscription,
    ):
        publish(publisher)
        take(subscription, 1)
        with full_disk(tmp_path):
            publish(publisher)
        (unstored,) = take(subscription, 1)
        publish(publisher)
        (stored,) = take(subscription, 1)
        assert publisher.counters() == {"journal.kept": 2, "journal.lost": 1, "journal.stopped": 0}
    assert isinstance(unstored, EventMessage) and isinstance(stored, EventMessage)
    assert (unstored.number, unstored.journal, stored.number) == (None, None, 2)
