"""Events asked for again, over real sockets: by the client, by bare sockets, after losses and restarts."""

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
from vision.client import EventMessage, Gap, Item, NewJournal, Restart, Silence, Subscription, subscribe
from vision.errors import ConfigError, MessageError
from vision.messaging import codec, schema
from vision.messaging.publisher import Publisher
from vision.state.database import StateDatabase

ANY_PORT = "tcp://127.0.0.1:*"


@contextmanager
def publisher(folder: Path, bind: str = ANY_PORT, replay: str = ANY_PORT, **options: Any) -> Iterator[Publisher]:
    state = StateDatabase(folder, boot="boot", max_events=options.pop("max_events", 1000))
    with (
        closing(state),
        Publisher(bind, node="n", class_names=CLASSES, event_log=state.events, replay=replay, **options) as one,
    ):
        one.publish_status(node_status())
        yield one


def publish(one: Publisher, count: int = 1, camera: str = "gate") -> None:
    for _ in range(count):
        one.publish(result(camera=camera, events=(crossed(camera),)))


def lose(one: Publisher, count: int = 1) -> None:
    """Events that are kept and never sent: what a subscriber sees of a loss."""
    assert one._event_log is not None
    for _ in range(count):
        number = one._event_log.newest + 1
        header = one.numbering.header("events/gate")
        event = codec.event(header, crossed(), result(), journal=one._event_log.journal, number=number)
        assert one._event_log.append([codec.encode(event)])


def take(subscription: Subscription, count: int) -> list[Item]:
    items = [subscription.receive(20) for _ in range(count)]
    assert None not in items
    return [item for item in items if item is not None]


def numbers(items: list[Item]) -> list[object]:
    return [item.number if isinstance(item, EventMessage) else item for item in items]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_subscription_starts_with_stored_events(tmp_path: Path, encoding: schema.Encoding) -> None:
    with publisher(tmp_path, encoding=encoding) as one:
        publish(one, 5)
        with Subscription(one.address, kinds=("events",), since=2) as subscription:
            items = take(subscription, 3)
            publish(one, 2)
            items += take(subscription, 2)
    assert numbers(items) == [3, 4, 5, 6, 7]
    assert {type(item) for item in items} == {EventMessage}
    (first, *_) = items
    assert isinstance(first, EventMessage)
    assert first.data == {"direction": "in", "count": 3}


def test_replayed_events_equal_live_events(tmp_path: Path) -> None:
    with publisher(tmp_path) as one, Subscription(one.address, kinds=("events",), since=0) as early:
        publish(one, 3)
        live = take(early, 3)
        with Subscription(one.address, kinds=("events",), since=0) as late:
            assert take(late, 3) == live


def test_lost_events_are_filled_in_order(tmp_path: Path) -> None:
    with publisher(tmp_path) as one, Subscription(one.address, kinds=("events",), since=0) as subscription:
        publish(one)
        assert numbers(take(subscription, 1)) == [1]
        lose(one, 600)  # more than one answer holds
        publish(one, 2)
        assert numbers(take(subscription, 602)) == list(range(2, 604))


def test_lost_last_event_is_recovered(tmp_path: Path) -> None:
    now_ns = [time.monotonic_ns()]
    with (
        publisher(tmp_path) as one,
        Subscription(one.address, kinds=("events",), since=0, clock=lambda: now_ns[0], silence_s=1e6) as subscription,
    ):
        publish(one)
        deadline = time.monotonic() + 20
        while (item := subscription.receive(0)) is None:
            now_ns[0] += 10_000_000
            assert time.monotonic() < deadline
        assert numbers([item]) == [1]
        lose(one)
        while (item := subscription.receive(0)) is None:
            now_ns[0] += 100_000_000  # of the client's time; no message tells of the loss
            assert time.monotonic() < deadline
        assert numbers([item]) == [2]


def test_events_of_other_cameras_are_left_out(tmp_path: Path) -> None:
    with publisher(tmp_path) as one:
        for camera in ("gate", "yard", "gate2", "gate"):
            publish(one, camera=camera)
        with Subscription(one.address, cameras=["gate"], kinds=("events",), since=0) as subscription:
            items = take(subscription, 2)
            publish(one, camera="yard")
            publish(one)
            items += take(subscription, 1)
        assert numbers(items) == [1, 4, 6]
        assert {item.camera for item in items if isinstance(item, EventMessage)} == {"gate"}


def test_other_kinds_are_received_with_since(tmp_path: Path) -> None:
    kinds: tuple[schema.Kind, ...] = ("detections", "events", "status")
    with publisher(tmp_path) as one, Subscription(one.address, kinds=kinds, since=0) as subscription:
        (first,) = take(subscription, 1)
        assert isinstance(first, schema.NodeStatusMessage)
        assert first.replay == one.replay_address
        wait_until(lambda: one.socket.joins >= 3, "the subscriptions have arrived")
        publish(one)
        items = take(subscription, 2)
        assert {type(item) for item in items} == {schema.DetectionsMessage, EventMessage}


def test_unsubscribed_status_is_not_returned(tmp_path: Path) -> None:
    with publisher(tmp_path) as one, Subscription(one.address, kinds=("events",), since=0) as subscription:
        publish(one)
        take(subscription, 1)
        one.publish_status(node_status())
        assert subscription.receive(0.2) is None


@pytest.mark.integration
def test_status_prevents_silence_report(tmp_path: Path) -> None:
    stop = threading.Event()

    def report(one: Publisher) -> None:
        while not stop.wait(0.05):
            one.publish_status(node_status())

    with publisher(tmp_path) as one:
        thread = threading.Thread(target=report, args=(one,))
        thread.start()
        try:
            with Subscription(one.address, kinds=("events",), since=0, silence_s=0.4) as subscription:
                assert subscription.receive(1.5) is None
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
            with publisher(tmp_path / "journal", bind, replay) as one:
                lose(one)  # before the subscriber is back
                publish(one)
                while len(numbers([item for item in items if isinstance(item, EventMessage)])) < 2 * run + 2:
                    items += take(subscription, 1)
                lose(one)  # just before it ends
    events = [item for item in items if isinstance(item, EventMessage)]
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert sum(isinstance(item, Restart) for item in items) >= 1
    assert not [item for item in items if isinstance(item, Gap | NewJournal)]


def test_removed_journal_is_reported(tmp_path: Path) -> None:
    with publisher(tmp_path / "a") as one:
        publish(one, 4)
        with Subscription(one.address, kinds=("events",), since=0) as subscription:
            last = take(subscription, 4)[-1]
    assert isinstance(last, EventMessage)
    assert last.journal is not None and last.number is not None
    with publisher(tmp_path / "b") as one:
        publish(one, 6)
        with Subscription(one.address, kinds=("events",), since=(last.journal, last.number)) as subscription:
            first, *others = take(subscription, 7)
    assert isinstance(first, NewJournal)
    assert (first.node, first.old) == ("n", last.journal)
    assert numbers(others) == [1, 2, 3, 4, 5, 6]


def test_deleted_events_are_reported_as_gap(tmp_path: Path) -> None:
    with publisher(tmp_path, max_events=80) as one:
        publish(one, 300)
        with Subscription(one.address, kinds=("events",), since=1) as subscription:
            gap, *rest = take(subscription, 81)
            assert isinstance(gap, Gap)
            assert (gap.topic, gap.expected_seq) == ("events/", 2)
            assert numbers(rest) == list(range(gap.got_seq, gap.got_seq + 80))


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bind", "reached"), [("tcp://*:*", "tcp://127.0.0.1"), ("tcp://127.0.0.1:*", "")])
def test_replay_address_is_read_from_status(tmp_path: Path, bind: str, reached: str) -> None:
    with publisher(tmp_path, bind, bind) as one:
        publish(one)
        address = f"tcp://127.0.0.1:{one.address.rpartition(':')[2]}"
        with Subscription(address, kinds=("events",), since=0) as subscription:
            assert numbers(take(subscription, 1)) == [1]
            assert subscription._replay is not None and subscription._replay._address.startswith(reached)


def test_given_replay_address_overrides_status(tmp_path: Path) -> None:
    """As through a tunnel, where the publisher's own words for its address mean nothing."""
    with publisher(tmp_path, replay=f"ipc://{tmp_path}/again") as one:
        publish(one, 2)
        with Subscription(one.address, kinds=("events",), since=0, replay="tcp://127.0.0.1:9") as subscription:
            assert subscription.receive(0.3) is None
        replay = f"ipc://{tmp_path}/again"
        with Subscription(one.address, kinds=("events",), since=0, replay=replay) as subscription:
            assert numbers(take(subscription, 2)) == [1, 2]


def test_publisher_without_event_log_raises_error() -> None:
    with Publisher(ANY_PORT, node="n") as one:
        one.publish_status(node_status())
        with (
            Subscription(one.address, kinds=("events",), since=0) as subscription,
            pytest.raises(MessageError) as refused,
        ):
            take(subscription, 1)
    assert refused.value.code == "no-replay"


def test_subscribe_accepts_since(tmp_path: Path) -> None:
    with publisher(tmp_path) as one:
        publish(one, 2)
        items = subscribe(one.address, kinds=("events",), since=0, timeout_s=20)
        assert [next(items), next(items)]
        items.close()  # type: ignore[attr-defined]
        with pytest.raises(TimeoutError):
            list(subscribe(one.address, kinds=("events",), since=2, timeout_s=0.3))


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
            pytest.raises(ConfigError, match=f"publish.{which}"),
            publisher(tmp_path, **{which: taken}),
        ):
            pass
    with publisher(tmp_path):  # its folder was let go
        pass


def test_socket_file_is_removed(tmp_path: Path) -> None:
    with publisher(tmp_path / "journal", replay=f"ipc://{tmp_path}/again"):
        assert (tmp_path / "again").exists()
    assert not (tmp_path / "again").exists()


# --- the protocol, bare -----------------------------------------------------------------------------------------------


def ask(address: str, question: bytes) -> tuple[Any, list[bytes]]:
    with zmq.Context() as context, context.socket(zmq.REQ) as sock:
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.RCVTIMEO, 20_000)
        sock.connect(address)
        sock.send(question)
        header, *events = sock.recv_multipart()
        return json.loads(header), events


def test_reply_has_header_and_events(tmp_path: Path) -> None:
    with publisher(tmp_path) as one:
        publish(one, 3)
        assert one.replay_address is not None and one._event_log is not None
        question = {"schema": "vision.replay-request/1", "since": 1, "limit": 1}
        header, events = ask(one.replay_address, json.dumps(question).encode())
        journal = one._event_log.journal
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
    with publisher(tmp_path) as one:
        publish(one)
        assert one.replay_address is not None
        header, events = ask(one.replay_address, request_payload)
        assert "vision.replay-request/1" in header["error"]
        assert events == []
        assert ask(one.replay_address, b'{"schema": "vision.replay-request/1"}')[1]  # and the next one is answered


@pytest.mark.parametrize("limit", [-5, 0, 10**9])
def test_reply_is_limited(tmp_path: Path, limit: int) -> None:
    with publisher(tmp_path, max_events=2000) as one:
        publish(one, 3)
        lose(one, 1500)
        assert one.replay_address is not None
        _, events = ask(one.replay_address, json.dumps({"schema": "vision.replay-request/1", "limit": limit}).encode())
        assert len(events) == (1000 if limit > 0 else 1)


def test_client_that_does_not_read_replies_does_not_affect_others(tmp_path: Path) -> None:
    with publisher(tmp_path) as one, zmq.Context() as context, context.socket(zmq.DEALER) as rude:
        lose(one, 800)
        rude.setsockopt(zmq.LINGER, 0)
        rude.setsockopt(zmq.RCVHWM, 1)
        assert one.replay_address is not None
        rude.connect(one.replay_address)
        for _ in range(300):
            rude.send_multipart([b"", b'{"schema": "vision.replay-request/1"}'])
        header, events = ask(one.replay_address, b'{"schema": "vision.replay-request/1", "since": 790}')
        assert (header["newest"], len(events)) == (800, 10)


def test_events_on_full_disk_are_sent_without_number(tmp_path: Path) -> None:
    with publisher(tmp_path) as one, Subscription(one.address, kinds=("events",), since=0) as subscription:
        publish(one)
        take(subscription, 1)
        with full_disk(tmp_path):
            publish(one)
        (unkept,) = take(subscription, 1)
        publish(one)
        (kept,) = take(subscription, 1)
        assert one.counters() == {"journal.kept": 2, "journal.lost": 1}
    assert isinstance(unkept, EventMessage) and isinstance(kept, EventMessage)
    assert (unkept.number, unkept.journal, kept.number) == (None, None, 2)
