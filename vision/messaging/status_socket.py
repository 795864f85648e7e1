"""`StatusSocket`, which sends messages, and repeats the latest status of each topic for new subscribers."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import Final, Protocol

import zmq

from vision.errors import Closed

_REPEAT_INTERVAL_S: Final = 0.05  # subscribers that join at the same time share a repetition

_JOINS_PER_SEND: Final = 20
"""Maximum number of subscriptions that one call to `send` reads. The thread of the publisher reads the others."""

_JOIN_CHECK_S: Final = 0.01  # interval in which `send` checks for new subscriptions, because a check takes microseconds
_LONGEST_WAIT_MS: Final = (
    1000.0  # time until the thread checks for new subscriptions that `send` can have hidden from it
)

# Plain integers, because an operation on an enumeration takes a microsecond.
_FIRST_PART: Final = int(zmq.SNDMORE | zmq.NOBLOCK)
_LAST_PART: Final = int(zmq.NOBLOCK)
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)


class Endpoint(Protocol):
    """An XPUB socket that reports every subscription, and the public address to which subscribers connect."""

    zmq: zmq.Socket[bytes]
    address: str
    internal_address: str

    def close(self, linger_s: float) -> None:
        """Free the address, and wait up to `linger_s` seconds for messages to be sent."""

    def counters(self) -> dict[str, int]:
        """Return the counters of the port by name."""


class StatusSocket:
    """An XPUB socket that keeps the latest status of each topic, and sends this status to new subscribers.

    Callers of `send`, `send_status`, and `forget` must hold `lock`.
    """

    def __init__(self, endpoint: Endpoint, *, linger_s: float) -> None:
        """Start the thread. `linger_s` is the maximum time in seconds that `close` waits for messages to be sent."""
        self._bound = endpoint
        self._socket = self._bound.zmq
        self.address, self.internal_address = self._bound.address, self._bound.internal_address
        self.lock = threading.Lock()
        self.joins = 0  # number of subscriptions since the start
        self._linger_s = linger_s
        self._closed = False
        self._last_status: dict[str, bytes] = {}
        self._joined: set[bytes] = set()  # topic prefixes that were subscribed to since the last repetition
        self._repeat_at_s = 0.0
        self._check_at_s = 0.0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._serve_joiners, name="publisher", daemon=True)
        self._thread.start()

    def send(self, topic: str, payload: bytes) -> None:
        """Send a message without blocking. Raise `Closed` after `close`."""
        if self._closed:
            raise Closed("the publisher is closed")
        sock = self._socket
        sock.send(topic.encode(), _FIRST_PART)
        sock.send(payload, _LAST_PART)
        # Sending also reads new subscriptions from the mailbox of the socket, and can consume the thread's signal.
        # Without this check, 1 of 300 subscribers that joined while two threads published was never served. A
        # subscriber that `send` does not notice waits at most for the thread's next check.
        now_s = time.monotonic()
        if now_s >= self._check_at_s:
            self._check_at_s = now_s + _JOIN_CHECK_S
            if self._receive_joins():
                os.eventfd_write(self._wake, 1)

    def send_status(self, topic: str, payload: bytes) -> None:
        """Send a message, and repeat it for each new subscriber until a newer message of the topic is sent.

        Raise `Closed` after `close`.
        """
        self._last_status[topic] = payload
        self.send(topic, payload)

    def forget(self, topic: str) -> None:
        """Stop sending the latest status of a topic to new subscribers."""
        self._last_status.pop(topic, None)

    def close(self) -> None:
        """Free the address, and wait up to `linger_s` seconds for messages to be sent. Idempotent."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        self._bound.close(self._linger_s)

    def counters(self) -> dict[str, int]:
        """Return the counters of the port by name."""
        return self._bound.counters()

    def _receive_joins(self) -> bool:
        """Receive messages of subscribers, and remember which topics were subscribed to.

        Return True if a subscription arrived, or if more messages may be waiting.
        """
        joins = self.joins
        for _ in range(_JOINS_PER_SEND):
            if not int(self._socket.getsockopt(_EVENTS)) & _READABLE:
                break
            message = self._socket.recv(_LAST_PART)
            if message[:1] == b"\x01":
                self._joined.add(message[1:])
                self.joins += 1
        else:
            return True
        return self.joins > joins

    def _serve_joiners(self) -> None:
        """Send the latest status of each topic to the new subscribers of the topic.

        A thread can wait for the descriptor of a ZeroMQ socket without the lock. All other operations need the lock.
        """
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        wait_ms = _LONGEST_WAIT_MS
        while True:
            poll.poll(wait_ms)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            with self.lock:
                if self._closed:
                    return
                more = self._receive_joins()
                wait_ms = 1 if more else self._repeat_status()

    def _repeat_status(self) -> float:
        """Send the latest status of each topic to the topic's new subscribers, but only once per interval.

        Return the time in ms until the next check.
        """
        if not self._joined:
            return _LONGEST_WAIT_MS
        now_s = time.monotonic()
        if now_s < self._repeat_at_s:
            return (self._repeat_at_s - now_s) * 1000 + 1
        self._repeat_at_s = now_s + _REPEAT_INTERVAL_S
        prefixes, self._joined = tuple(self._joined), set()
        for topic, payload in self._last_status.items():
            if topic.encode().startswith(prefixes):
                self._socket.send_multipart([topic.encode(), payload], zmq.NOBLOCK)
        return _LONGEST_WAIT_MS
