"""Tests that a publisher that never ends a message cannot fill the memory of a subscriber."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from tests.messages.raw_zmtp import GREETING, frame, read, ready
from tests.messages.samples import CLASSES, HEADER, found, result
from vision import client
from vision.client import DetectionsMessage, Problem, Subscription
from vision.messaging import codec, gap_recovery
from vision.messaging.publisher import Publisher
from vision.messaging.receive_guard import ReceiveGuard, _Connection

MEBIBYTE = 2**20
LIMIT = 4 * MEBIBYTE
END = 1 << 30  # more than any subscriber accepts in one message
MESSAGE = codec.encode(codec.detections(HEADER, result(found(1)), CLASSES, published_ns=1))


class HostilePublisher:
    """Publisher that never ends its first message. After this connection closes, it sends one valid message."""

    def __init__(self, kind: bytes) -> None:
        self.sent = 0
        self.was_closed = threading.Event()
        self._kind = kind
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _accept(self) -> socket.socket:
        near = self._listener.accept()[0]
        near.sendall(GREETING + ready(self._kind))
        read(near, len(GREETING))
        read(near, read(near, 2)[1])  # ZeroMQ refuses messages until it has completed the handshake
        return near

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            with self._accept() as near:
                near.sendall(frame(b"detections/gate", 1))
                parts = frame(b"x" * 4000, 1) * 50
                with contextlib.suppress(ConnectionError):
                    while self.sent < END:
                        near.sendall(parts)
                        self.sent += len(parts)
                        time.sleep(0.002)
            self.was_closed.set()
            with self._accept() as near:
                time.sleep(0.1)  # the subscription arrives
                near.sendall(frame(b"detections/gate", 1) + frame(MESSAGE))
                near.recv(1)
                while near.recv(4096):
                    pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_MESSAGE_BYTES", LIMIT // 2)
    monkeypatch.setattr(gap_recovery, "MAX_MESSAGE_BYTES", LIMIT // 2)


@contextlib.contextmanager
def hostile(kind: bytes) -> Iterator[HostilePublisher]:
    publisher = HostilePublisher(kind)
    try:
        yield publisher
    finally:
        publisher.close()


@pytest.mark.parametrize("reads", [True, False])
def test_message_without_end_is_cut_and_the_next_one_arrives(reads: bool) -> None:
    with hostile(b"PUB") as publisher, Subscription(publisher.address, queue=10, silence_s=1e6) as subscription:
        if not reads:  # the caller is busy with other work
            assert publisher.was_closed.wait(20)
        items = subscription.items(20)
        problem = next(item for item in items if isinstance(item, Problem))
        assert problem.code == "message-too-large"
        assert publisher.was_closed.wait(20)
        assert LIMIT / 2 < publisher.sent < END
        assert isinstance(next(item for item in items if not isinstance(item, Problem)), DetectionsMessage)


def test_reply_without_end_is_cut() -> None:
    with (
        Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES) as publisher,
        hostile(b"ROUTER") as replay,
        Subscription(publisher.address, kinds=("events",), since=0, replay=replay.address) as subscription,
    ):
        items = subscription.items(20)
        assert next(item.code for item in items if isinstance(item, Problem)) == "message-too-large"
        assert replay.was_closed.wait(20)


def test_slow_caller_of_a_good_publisher_stays_connected() -> None:
    with (
        Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES) as publisher,
        Subscription(publisher.address, queue=1000) as subscription,
    ):
        while subscription.receive(0.01) is None:
            publisher.publish(result(found(1)))
        for _ in range(900):
            publisher.publish(result(found(5)))
        time.sleep(0.6)  # the guard has checked twice
        seen = [subscription.receive(5) for _ in range(900)]
        assert [type(item) for item in seen] == [DetectionsMessage] * 900
        assert subscription.problems == 0


def test_descriptor_of_a_different_connection_is_not_shut_down() -> None:
    with zmq.Context() as context, socket.create_server(("127.0.0.1", 0)) as listener:
        guard, sock = ReceiveGuard(context), context.socket(zmq.SUB)
        guarded = guard.guard(sock, 1, 0)
        with socket.create_connection(listener.getsockname()) as near, listener.accept()[0] as far:
            guarded._connections[near.fileno()] = _Connection(b"of another")
            guarded.cut()
            far.sendall(b"alive")
            assert near.recv(5) == b"alive"
            assert not guarded.events.poll(0)
        guard.start()
        sock.disable_monitor()
        guard.close()
        context.destroy(linger=0)
