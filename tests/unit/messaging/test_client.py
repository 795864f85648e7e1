"""The subscriber's side against a live publisher: types, gaps, restarts, silence, and its certain end."""

from __future__ import annotations

import contextlib
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
from tests.messages.samples import CLASSES, camera_status, crossed, found, node_status, result, tracked
from vision.client import Gap, Item, Restart, Silence, Subscription, subscribe
from vision.errors import Closed, ConfigError, MessageError
from vision.messaging import client, codec
from vision.messaging.publisher import Publisher, Recorder

ALL: tuple[codec.Kind, ...] = ("detections", "status", "events")


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES) as one:
        yield one


def joined(publisher: Publisher, subscription: Subscription, topics: int = 1) -> Subscription:
    wait_until(lambda: publisher.joins >= topics, "the subscription has arrived")
    return subscription


class Relay:
    """A TCP connection in between that can be cut."""

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
        """Break every connection; new ones are accepted."""
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
    """Skip sequence numbers, as a loss does."""
    for _ in range(lost):
        publisher.numbering.stamp(codec.detections(result(), CLASSES))


def take(subscription: Subscription, n: int) -> list[Item]:
    items = [subscription.receive(20) for _ in range(n)]
    assert None not in items
    return [item for item in items if item is not None]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_every_kind_arrives_typed_in_either_encoding(encoding: codec.Encoding) -> None:
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
        client.DetectionsMessage,
        client.EventMessage,
        client.CameraStatusMessage,
        client.NodeStatusMessage,
    ]
    assert isinstance(items[0], client.DetectionsMessage)
    assert [(one.track_id, one.class_name) for one in items[0].objects] == [(40, "person"), (41, "car")]


def test_the_generator_gives_messages_and_closes_its_socket(publisher: Publisher) -> None:
    before = threading.active_count()
    items = subscribe(publisher.address, timeout_s=20)

    def publish_when_joined() -> None:
        wait_until(lambda: publisher.joins == 1, "the subscription has arrived")
        publisher.publish(result())

    thread = threading.Thread(target=publish_when_joined)
    thread.start()
    message = next(items)
    thread.join()
    assert isinstance(message, client.DetectionsMessage)
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_generator_that_was_never_started_holds_nothing(publisher: Publisher) -> None:
    items = subscribe(publisher.address)
    del items
    assert publisher.joins == 0


def test_only_the_cameras_asked_for_not_those_whose_names_begin_alike(publisher: Publisher) -> None:
    with Subscription(publisher.address, ["gate"], ["detections", "status"]) as subscription:
        joined(publisher, subscription, 3)
        for camera in ("gate2", "yard", "gate"):
            publisher.publish(result(camera=camera))
            publisher.publish_status(camera_status(camera))
        publisher.publish_status(node_status())
        items = take(subscription, 3)
        assert subscription.receive(0.1) is None
    assert [item.topic for item in items if isinstance(item, codec.Message)] == [
        "detections/gate",
        "status/gate",
        "status/node",
    ]


@pytest.mark.parametrize("lost", [1, 2, 70])
def test_a_gap_is_reported_before_the_message_after_it(publisher: Publisher, lost: int) -> None:
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
    assert (gap.lost, subscription.lost) == (lost, lost)
    assert str(gap) == f"detections/gate: lost {lost} messages (expected 2, got {2 + lost})"


def test_who_joins_late_has_lost_nothing(publisher: Publisher) -> None:
    for _ in range(5):
        publisher.publish(result())
    with Subscription(publisher.address) as subscription:
        joined(publisher, subscription)
        publisher.publish(result())
        (message,) = take(subscription, 1)
        assert isinstance(message, client.DetectionsMessage)
        assert (message.seq, subscription.lost) == (6, 0)


def test_a_repeated_status_is_seen_once(publisher: Publisher) -> None:
    with Subscription(publisher.address, kinds=["status"]) as first:
        joined(publisher, first)
        publisher.publish_status(camera_status())
        assert len(take(first, 1)) == 1
        with Subscription(publisher.address, kinds=["status"]) as second:
            assert len(take(second, 1)) == 1
        assert first.receive(0.2) is None
        publisher.publish_status(camera_status())
        (item,) = take(first, 1)
        assert isinstance(item, client.CameraStatusMessage)
        assert item.seq == 2


def test_a_restarted_publisher_is_found_again_and_is_no_gap() -> None:
    first = Publisher("tcp://127.0.0.1:*", node="n")
    with Subscription(first.address, silence_s=60) as subscription:
        joined(first, subscription)
        for _ in range(3):
            first.publish(result())
        items = take(subscription, 3)
        first.close()
        with Publisher(first.address, node="n") as second:
            wait_until(lambda: subscription.receive(0.01) is None and second.joins == 1, "subscribed again")
            second.publish(result())
            items += take(subscription, 2)
    assert [getattr(item, "seq", None) for item in items] == [1, 2, 3, None, 1]
    assert items[3] == Restart("n", first.numbering.instance, second.numbering.instance)
    assert str(items[3]) == "n: the publisher was restarted"
    assert subscription.lost == 0


def test_a_lost_connection_is_made_again_and_shows_as_a_gap() -> None:
    with (
        Publisher("tcp://127.0.0.1:*", node="n") as publisher,
        Relay(publisher.address) as relay,
        Subscription(relay.address, silence_s=60) as subscription,
    ):
        joined(publisher, subscription)
        publisher.publish(result())
        take(subscription, 1)
        relay.cut()
        wait_until(lambda: subscription.receive(0.01) is None and publisher.joins == 2, "subscribed again")
        skip(publisher, 3)
        publisher.publish(result())
        assert take(subscription, 1) == [Gap("detections/gate", 2, 5)]


def test_silence_is_reported_again_and_again_and_tells_whether_anybody_is_there(publisher: Publisher) -> None:
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
            return isinstance(report, Silence) and "is `vision run` running" in str(report)

        wait_until(disconnected, "a report says that the publisher is gone")


def test_silence_comes_when_its_time_is_over_and_not_before(publisher: Publisher) -> None:
    now = [0]
    with Subscription(publisher.address, silence_s=5, clock=lambda: now[0]) as subscription:
        joined(publisher, subscription)
        assert subscription.receive(0) is None
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


def test_nobody_there_ends_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no message from tcp://127.0.0.1:9 for 0.2 s"):
        next(
            item
            for item in subscribe("tcp://127.0.0.1:9", timeout_s=0.2, silence_s=0.05)
            if not isinstance(item, Silence)
        )
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:5555", "did you mean tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.1", "expected tcp://HOST:PORT"),
        ("tcp://127.0.0.1:0", "expected tcp://HOST:PORT"),
        ("tcp://127.0.0.1:65536", "expected tcp://HOST:PORT"),
        ("tcp://127.0.0.1:*", "expected tcp://HOST:PORT"),
        ("tcp://a b:5555", "expected tcp://HOST:PORT"),
        ("http://127.0.0.1:5555", "expected tcp://HOST:PORT"),
        ("ipc://", "expected tcp://HOST:PORT"),
        ("", "expected tcp://HOST:PORT"),
        ("tcp://*:5555", "on the same machine: tcp://127.0.0.1:5555"),
        ("tcp://0.0.0.0:5555", "on the same machine: tcp://127.0.0.1:5555"),
        (f"ipc:///tmp/{'x' * 200}", "cannot connect to ipc:///tmp/xxx"),
    ],
)
def test_a_bad_address_is_refused_at_once(address: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Subscription(address)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kinds": ["detection"]}, "kinds: expected some of detections, status, events, counts, got detection"),
        ({"kinds": []}, "got none"),
        ({"kinds": "status"}, "kinds: expected a list of names, got the text 'status'"),
        ({"cameras": "gate"}, "cameras: expected a list of names, got the text 'gate'"),
        ({"cameras": []}, "cameras: expected at least one name"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_opens(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        subscribe("tcp://127.0.0.1:9", **arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([b"detections/gate", b'{"schema": "vision.detections/2", "seq": 1}'], "got vision.detections/2"),
        ([b"detections/gate", b"\xff\xd8 a frame"], "expected a message of schema vision.detections/1"),
        ([b"detections/gate"], "expected messages of two parts, topic and payload, got 1"),
    ],
)
def test_a_publisher_of_another_kind_is_named(parts: Sequence[bytes], words: str) -> None:
    context = zmq.Context()
    with context.socket(zmq.XPUB) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.bind("tcp://127.0.0.1:*")
        with Subscription(stranger.getsockopt_string(zmq.LAST_ENDPOINT)) as subscription:
            assert stranger.poll(20_000)
            stranger.send_multipart(parts)
            with pytest.raises(MessageError) as caught:
                subscription.receive(20)
    context.term()
    assert words in str(caught.value)


def test_parts_after_the_second_are_ignored() -> None:
    context = zmq.Context()
    with context.socket(zmq.XPUB) as newer:
        newer.setsockopt(zmq.LINGER, 0)
        newer.bind("tcp://127.0.0.1:*")
        with Subscription(newer.getsockopt_string(zmq.LAST_ENDPOINT)) as subscription:
            assert newer.poll(20_000)
            message = codec.Numbering("n").stamp(codec.detections(result(), CLASSES))
            newer.send_multipart([b"detections/gate", codec.encode(message), b"\xff\xd8 a frame"])
            (read,) = take(subscription, 1)
    context.term()
    assert isinstance(read, client.DetectionsMessage)
    assert read.frame == 17


def test_messages_wait_in_bounded_queues_and_the_rest_is_a_gap() -> None:
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
        assert subscription.lost > 0


def _gap_found(publisher: Publisher, subscription: Subscription) -> bool:
    publisher.publish(result())
    return any(isinstance(item, Gap) for item in iter(lambda: subscription.receive(0), None))


def test_after_close_nothing_is_received(publisher: Publisher) -> None:
    subscription = Subscription(publisher.address)
    subscription.close()
    subscription.close()
    with pytest.raises(Closed):
        subscription.receive(0)


@pytest.mark.parametrize(
    ("boot", "ms", "clock"),
    [(codec.boot_id(), 40.0, "monotonic"), ("another", 25.0, "utc"), ("", 25.0, "utc")],
)
def test_latency_is_measured_by_the_clock_that_both_share(boot: str, ms: float, clock: str) -> None:
    message = msgspec.structs.replace(codec.detections(result(), CLASSES), boot=boot)
    utc_ns = message.captured_utc_ns + 25_000_000
    assert client.latency(message, 5_040_000_000, utc_ns) == client.Latency(ms, clock)  # type: ignore[arg-type]


def test_a_recording_reads_back_as_messages(tmp_path: Path, publisher: Publisher) -> None:
    path = tmp_path / "results.jsonl"
    with Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES, recorder=Recorder(path)) as recording:
        for index in range(3):
            recording.publish(result(index=index))
    read = list(client.read_recording(path))
    assert [(message.frame, message.seq, message.topic) for message in read] == [
        (0, 1, "detections/gate"),
        (1, 2, "detections/gate"),
        (2, 3, "detections/gate"),
    ]


@pytest.mark.parametrize(
    "last", [b'{"schema":"vision.detections/1","node"', b'{"schema":"vision.detections/2"}\n', b"\n"]
)
def test_a_damaged_recording_names_the_line(tmp_path: Path, last: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(codec.encode(codec.detections(result(), CLASSES)) + b"\n" + last)
    messages = client.read_recording(path)
    next(messages)
    with pytest.raises(MessageError, match=r"results\.jsonl, line 2: "):
        next(messages)
