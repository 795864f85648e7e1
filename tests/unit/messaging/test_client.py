"""Tests of subscriptions to a running publisher: types, gaps, restarts, silence, and timeouts."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tests.messages.processes import wait_until
from tests.messages.samples import (
    CLASSES,
    HEADER,
    PUBLISHED_NS,
    camera_status,
    crossed,
    found,
    node_status,
    result,
    tracked,
)
from vision import client
from vision.client import (
    Gap,
    Item,
    Latency,
    Problem,
    Restart,
    Silence,
    Subscription,
    latency,
    read_recording,
    subscribe,
)
from vision.errors import Closed, ConfigError, MessageError
from vision.messaging import codec, schema
from vision.messaging.publisher import Publisher
from vision.messaging.recorder import Recorder

ALL: tuple[schema.Kind, ...] = ("detections", "status", "events")


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES) as publisher:
        yield publisher


def joined(publisher: Publisher, subscription: Subscription, topics: int = 1) -> Subscription:
    wait_until(lambda: publisher.socket.joins >= topics, "the subscription has arrived")
    return subscription


class Relay:
    """TCP relay whose connections can be cut."""

    def __init__(self, address: str) -> None:
        self._target = ("127.0.0.1", int(address.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            pair = (near, socket.create_connection(self._target))
            self._pairs.append(pair)
            for source, sink in (pair, pair[::-1]):
                self._threads.append(threading.Thread(target=self._pump, args=(source, sink)))
                self._threads[-1].start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def cut(self) -> None:
        """Close every connection. The relay still accepts new connections."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for pair in self._pairs:
            for end in pair:
                end.close()


def skip(publisher: Publisher, lost: int) -> None:
    """Skip `lost` sequence numbers of a topic, so that a subscriber detects this number of lost messages."""
    for _ in range(lost):
        publisher.numbering.header("detections/gate")


def take(subscription: Subscription, n: int) -> list[Item]:
    items = [subscription.receive(20) for _ in range(n)]
    assert None not in items
    return [item for item in items if item is not None]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_each_kind_is_decoded_to_its_type(encoding: schema.Encoding) -> None:
    with (
        Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES, encoding=encoding) as publisher,
        Subscription(publisher.address, kinds=ALL) as subscription,
    ):
        joined(publisher, subscription, 3)
        publisher.publish(result(tracked(), events=(crossed(),)))
        publisher.publish_status(camera_status())
        publisher.publish_status(node_status())
        items = take(subscription, 4)
    assert [type(item) for item in items] == [
        schema.DetectionsMessage,
        schema.EventMessage,
        schema.CameraStatusMessage,
        schema.NodeStatusMessage,
    ]
    assert isinstance(items[0], schema.DetectionsMessage)
    assert [(one.track_id, one.class_name) for one in items[0].objects] == [(40, "person"), (41, "car")]


def test_subscribe_yields_messages_and_closes_its_socket(publisher: Publisher) -> None:
    before = threading.active_count()
    items = subscribe(publisher.address, timeout_s=60)

    def publish_when_joined() -> None:
        wait_until(lambda: publisher.socket.joins == 1, "the subscription has arrived")
        publisher.publish(result())

    thread = threading.Thread(target=publish_when_joined)
    thread.start()
    message = next(items)
    thread.join()
    assert isinstance(message, schema.DetectionsMessage)
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_unstarted_subscription_opens_no_socket(publisher: Publisher) -> None:
    items = subscribe(publisher.address)
    del items
    assert publisher.socket.joins == 0


def test_cameras_with_a_common_prefix_are_filtered(publisher: Publisher) -> None:
    with Subscription(publisher.address, ["gate"], ["detections", "status"]) as subscription:
        joined(publisher, subscription, 3)
        for camera in ("gate2", "yard", "gate"):
            publisher.publish(result(camera=camera))
            publisher.publish_status(camera_status(camera))
        publisher.publish_status(node_status())
        items = take(subscription, 3)
        assert subscription.receive(0.1) is None
    assert [item.topic for item in items if isinstance(item, schema.AnyMessage)] == [
        "detections/gate",
        "status/gate",
        "status/node",
    ]


@pytest.mark.parametrize("lost", [1, 2, 70])
def test_gap_is_reported_before_the_next_message(publisher: Publisher, lost: int) -> None:
    with Subscription(publisher.address) as subscription:
        joined(publisher, subscription)
        publisher.publish(result())
        publisher.publish(result(camera="yard"))
        skip(publisher, lost)
        publisher.publish(result(camera="yard"))
        publisher.publish(result())
        items = take(subscription, 5)
    assert [getattr(item, "seq", None) for item in items] == [1, 1, 2, None, 2 + lost]
    gap = items[3]
    assert gap == Gap("detections/gate", 2, 2 + lost)
    assert isinstance(gap, Gap)
    assert gap.lost == lost


def test_late_subscriber_reports_no_gap(publisher: Publisher) -> None:
    for _ in range(5):
        publisher.publish(result())
    with Subscription(publisher.address) as subscription:
        joined(publisher, subscription)
        publisher.publish(result())
        (message,) = take(subscription, 1)
        assert isinstance(message, schema.DetectionsMessage)
        assert message.seq == 6


def test_repeated_status_is_returned_once(publisher: Publisher) -> None:
    with Subscription(publisher.address, kinds=["status"]) as first:
        joined(publisher, first)
        publisher.publish_status(camera_status())
        assert len(take(first, 1)) == 1
        with Subscription(publisher.address, kinds=["status"]) as second:
            assert len(take(second, 1)) == 1
        assert first.receive(0.2) is None
        publisher.publish_status(camera_status())
        (item,) = take(first, 1)
        assert isinstance(item, schema.CameraStatusMessage)
        assert item.seq == 2


def test_publisher_restart_is_reported_without_gap() -> None:
    first = Publisher("tcp://127.0.0.1:*", node="n")
    with Subscription(first.address, silence_s=60) as subscription:
        joined(first, subscription)
        for _ in range(3):
            first.publish(result())
        items = take(subscription, 3)
        first.close()
        with Publisher(first.address, node="n") as second:
            wait_until(lambda: subscription.receive(0.01) is None and second.socket.joins == 1, "subscribed again")
            second.publish(result())
            items += take(subscription, 2)
    assert [getattr(item, "seq", None) for item in items] == [1, 2, 3, None, 1]
    assert items[3] == Restart("n", first.numbering.instance, second.numbering.instance)


def test_lost_connection_is_reopened_and_reported_as_gap() -> None:
    with (
        Publisher("tcp://127.0.0.1:*", node="n") as publisher,
        Relay(publisher.address) as relay,
        Subscription(relay.address, silence_s=60) as subscription,
    ):
        joined(publisher, subscription)
        publisher.publish(result())
        take(subscription, 1)
        relay.cut()
        wait_until(lambda: subscription.receive(0.01) is None and publisher.socket.joins == 2, "subscribed again")
        skip(publisher, 3)
        publisher.publish(result())
        assert take(subscription, 1) == [Gap("detections/gate", 2, 5)]


def test_silence_is_reported_repeatedly_with_connection_state(publisher: Publisher) -> None:
    with Subscription(publisher.address, silence_s=0.05) as subscription:
        reports: list[Item] = []

        def connected() -> bool:
            reports.append(take(subscription, 1)[0])
            return isinstance(reports[-1], Silence) and reports[-1].connected

        wait_until(connected, "a report says that the publisher is there")
        last = take(subscription, 1)[0]
        assert isinstance(last, Silence)
        assert last.for_s >= 0.05 * 2
        assert last.connected
        publisher.close()

        def disconnected() -> bool:
            report = take(subscription, 1)[0]
            return isinstance(report, Silence) and not report.connected

        wait_until(disconnected, "a report says that the publisher is gone")


def test_silence_is_reported_after_its_interval(publisher: Publisher) -> None:
    now = [0]
    with Subscription(publisher.address, silence_s=5, clock=lambda: now[0]) as subscription:
        joined(publisher, subscription)
        wait_until(lambda: subscription.receive(0) is None and subscription._connected, "the connection")
        now[0] = 4_999_999_999
        assert subscription.receive(0) is None
        now[0] = 5_000_000_000
        assert subscription.receive(0) == Silence(publisher.address, 5.0, True)
        assert subscription.receive(0) is None
        now[0] = 9_000_000_000
        publisher.publish(result())
        wait_until(lambda: subscription.receive(0) is not None, "the message")
        now[0] = 13_900_000_000
        assert subscription.receive(0) is None


def test_missing_publisher_raises_timeout() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        next(
            item
            for item in subscribe("tcp://127.0.0.1:9", timeout_s=0.2, silence_s=0.05)
            if not isinstance(item, Silence)
        )
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(
    ("address", "suggestion"),
    [
        ("127.0.0.1:5555", "tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.1", ""),
        ("tcp://127.0.0.1:0", ""),
        ("tcp://127.0.0.1:65536", ""),
        ("tcp://127.0.0.1:*", ""),
        ("tcp://a b:5555", ""),
        ("http://127.0.0.1:5555", ""),
        ("ipc://", ""),
        ("", ""),
        ("tcp://*:5555", "tcp://127.0.0.1:5555"),
        ("tcp://0.0.0.0:5555", "tcp://127.0.0.1:5555"),
        (f"ipc:///tmp/{'x' * 200}", ""),
    ],
)
def test_wrong_address_is_refused(address: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Subscription(address)
    assert caught.value.code == "address-form"
    assert suggestion in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"kinds": ["detection"]}, "kinds"),
        ({"kinds": []}, "kinds"),
        ({"kinds": "status"}, "kinds"),
        ({"cameras": "gate"}, "cameras"),
        ({"cameras": []}, "cameras"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        subscribe("tcp://127.0.0.1:9", **arguments)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([b"detections/gate", b'{"schema": "vision.detections/2", "seq": 1}'], "message-schema"),
        ([b"detections/gate", b"\xff\xd8 a frame"], "message-unreadable"),
        ([b"detections/gate"], "message-parts"),
    ],
)
def test_unusable_messages_are_reported_and_the_subscription_continues(parts: Sequence[bytes], code: str) -> None:
    good = codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS)
    context = zmq.Context()
    with context.socket(zmq.XPUB) as foreign:
        foreign.setsockopt(zmq.LINGER, 0)
        foreign.bind("tcp://127.0.0.1:*")
        with Subscription(foreign.getsockopt_string(zmq.LAST_ENDPOINT)) as subscription:
            assert foreign.poll(20_000)
            for _ in range(5):
                foreign.send_multipart(parts)
            foreign.send_multipart([b"detections/gate", codec.encode(good)])
            problem, message = subscription.receive(20), subscription.receive(20)
            problems = subscription.problems
    context.term()
    assert isinstance(problem, Problem)
    assert problem.code == code
    assert problem.count == 1  # the others belong to the next report
    assert isinstance(message, schema.DetectionsMessage)
    assert message.seq == good.seq
    assert problems == 5


@pytest.mark.parametrize(
    "change",
    [
        {"camera": "yard"},
        {"captured_at": "yesterday"},
        {"captured_at": "2026-13-01T00:00:00.000000Z"},
        {"seq": -1},
        {"seq": 1 << 63},
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any]) -> None:
    message = codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS)
    codec.check_values("detections/gate", message)
    with pytest.raises(MessageError) as caught:
        codec.check_values("detections/gate", msgspec.structs.replace(message, **change))
    assert caught.value.code == "message-invalid"


@pytest.mark.parametrize(
    "change",
    [
        {"score": math.nan},
        {"score": 7.0},
        {"score": -0.1},
        {"box": (0.0, 0.0, math.inf, 1.0)},
        {"box": (math.nan, 0.0, 1.0, 1.0)},
        {"box": (5.0, 0.0, 1.0, 1.0)},
    ],
)
def test_impossible_objects_are_refused(change: dict[str, Any]) -> None:
    message = codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS)
    objects = [msgspec.structs.replace(message.objects[0], **change)]
    decoded = codec.decode(
        "detections/gate", codec.encode(msgspec.structs.replace(message, objects=objects), "msgpack")
    )
    with pytest.raises(MessageError) as caught:
        codec.check_values("detections/gate", decoded)
    assert caught.value.code == "message-invalid"


def test_memory_for_nodes_and_topics_of_a_hostile_publisher_is_limited() -> None:
    sequences = client._Sequences()
    message = codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS)
    for number in range(10_050):
        list(sequences.check(f"detections/{number}", message))
        list(sequences.check("x", msgspec.structs.replace(message, node=f"n{number}")))
    assert len(sequences._instances) <= 10_000
    assert max(map(len, sequences._last.values())) <= 10_000


def test_additional_message_parts_are_ignored() -> None:
    context = zmq.Context()
    with context.socket(zmq.XPUB) as newer:
        newer.setsockopt(zmq.LINGER, 0)
        newer.bind("tcp://127.0.0.1:*")
        with Subscription(newer.getsockopt_string(zmq.LAST_ENDPOINT)) as subscription:
            assert newer.poll(20_000)
            message = codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS)
            newer.send_multipart([b"detections/gate", codec.encode(message), b"\xff\xd8 a frame"])
            (read,) = take(subscription, 1)
    context.term()
    assert isinstance(read, schema.DetectionsMessage)
    assert read.frame == 17


def test_messages_above_queue_limit_are_reported_as_gap() -> None:
    with (
        Publisher("tcp://127.0.0.1:*", node="n", queue=10) as publisher,
        Subscription(publisher.address, queue=10) as subscription,
    ):
        joined(publisher, subscription)
        publisher.publish(result())
        take(subscription, 1)
        for _ in range(500):
            publisher.publish(result(found(100)))  # 9 kB each: more than both queues and the kernel hold
        wait_until(lambda: _gap_found(publisher, subscription), "a gap is reported")


def _gap_found(publisher: Publisher, subscription: Subscription) -> bool:
    publisher.publish(result())
    return any(isinstance(item, Gap) for item in iter(lambda: subscription.receive(0), None))


def test_receive_after_close_is_refused(publisher: Publisher) -> None:
    subscription = Subscription(publisher.address)
    subscription.close()
    subscription.close()
    with pytest.raises(Closed):
        subscription.receive(0)


@pytest.mark.parametrize(
    ("boot", "ms", "clock"),
    [(codec.boot_id(), 40.0, "monotonic"), ("another", 25.0, "utc"), ("", 25.0, "utc")],
)
def test_latency_uses_shared_clock(boot: str, ms: float, clock: str) -> None:
    message = msgspec.structs.replace(codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS), boot=boot)
    utc_ns = message.captured_utc_ns + 25_000_000
    assert latency(message, 5_040_000_000, utc_ns) == Latency(ms, clock)  # type: ignore[arg-type]


def test_recording_is_read_as_messages(tmp_path: Path, publisher: Publisher) -> None:
    path = tmp_path / "results.jsonl"
    with (
        contextlib.closing(Recorder(path)) as recorder,
        Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES, recorder=recorder) as recording,
    ):
        for index in range(3):
            recording.publish(result(index=index))
    read = list(read_recording(path))
    assert [(message.frame, message.seq, message.topic) for message in read] == [
        (0, 1, "detections/gate"),
        (1, 2, "detections/gate"),
        (2, 3, "detections/gate"),
    ]


def test_recording_of_an_earlier_version_can_be_read(tmp_path: Path) -> None:
    """The recording contains only fields of the first version. Fields added in later versions need a default."""
    path = tmp_path / "results.jsonl"
    path.write_text(
        '{"schema":"vision.detections/1","node":"n","instance":"i","boot":"b","seq":1,"camera":"gate","epoch":1,'
        '"frame":17,"captured_at":"2026-11-01T08:00:00.000000Z","captured_monotonic_ns":1,"clock":"arrival",'
        '"timing_ms":{"wait":1.0,"submit":1.0,"infer":1.0,"publish":1.0,"total":4.0},"dropped_before":{},'
        '"width":640,"height":480,"objects":[{"class":"person","class_id":0,"score":0.9,"box":[1.0,2.0,3.0,4.0]}]}\n'
    )
    (message,) = read_recording(path)
    assert (message.camera, message.frame, message.objects[0].class_name) == ("gate", 17, "person")


@pytest.mark.parametrize(
    "last", [b'{"schema":"vision.detections/1","node"', b'{"schema":"vision.detections/2"}\n', b"\n"]
)
def test_damaged_recording_error_has_line_number(tmp_path: Path, last: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(codec.encode(codec.detections(HEADER, result(), CLASSES, PUBLISHED_NS)) + b"\n" + last)
    messages = read_recording(path)
    next(messages)
    with pytest.raises(MessageError) as caught:
        next(messages)
    assert re.search(r"results\.jsonl\D+2\b", caught.value.args[0]), "the file and the line"
