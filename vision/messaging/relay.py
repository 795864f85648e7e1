"""Program that stands between the network and a ZeroMQ socket, and limits what a connection can send.

ZeroMQ limits neither the size and number of a message's parts nor the number of subscriptions and connections
(docs/decisions/051-relay-for-tcp-sockets.md). This program accepts the connections to a TCP port or a public Unix
socket instead, and connects each one to the private Unix socket of the publisher. It forwards bytes without changes, at
a limited rate, and closes a connection that breaks a rule of ZMTP 3 (https://rfc.zeromq.org/spec/37/) or exceeds a
limit.

It runs as a file in its own interpreter, without the packages of the project, so that it starts in milliseconds and
does not compete with the program for the GIL. Its options are the first line of its standard input, and it ends when
its standard input closes. About once per second, it writes a line to standard output, which shows that it does not
hang: its counters as JSON, or an empty line if they have not changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import Counter
from typing import Any

_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
_MORE, _LONG, _COMMAND = 1, 2, 4
_SUBSCRIBE, _CANCEL = b"\x09SUBSCRIBE", b"\x06CANCEL"
_CHUNK = memoryview(bytearray(65_536))
"""Buffer for bytes that are forwarded to a client. Its size is the maximum number of bytes per read."""
_HANDSHAKE_S = 5.0
_DRAIN_S = 0.5
_MEMORY_BYTES = 512 << 20

_BURST_BYTES, _BYTES_PER_S = 32_768, 4096
"""Number of bytes that one connection can send in a burst, and the number per second after the burst."""
_ALL_BURST_BYTES, _ALL_BYTES_PER_S = 524_288, 65_536
"""Number of bytes that all connections together can send in a burst, and the number per second after the burst."""
_FREE_BYTES = 2048
"""Number of first bytes of a connection that the total limit ignores, so that a flood does not block new clients."""
_RESUME_BYTES = 256
_ACCEPT_BURST, _ACCEPTS_PER_S = 10, 100
"""Number of connections that are accepted in a burst, and the number per second after the burst.

The thread of ZeroMQ that sends all messages also needs 0.6 ms for each handshake with CURVE, so a burst of handshakes
delays the other subscribers.
"""
_FREE_DESCRIPTORS = 12
"""Number of descriptors that must remain free in the publisher, because libzmq aborts if it cannot accept a connection.

The number is higher than the burst that a second relay can accept at the same time. It is lower than the reserve of
`vision.runtime.descriptors`.
"""
_TOPIC_BYTES, _TOPICS, _ALL_TOPIC_BYTES = 16_384, 1000, 524_288
"""Limits of the subscriptions of one connection and of all connections. Each byte needs about 40 bytes in ZeroMQ."""
_FRAME_BYTES, _PARTS = 4608, 4
"""Limits of a frame, including the overhead of CURVE, and of the number of parts of a message."""


class Refused(Exception):
    """A connection breaks a rule or exceeds a limit.

    The argument of the exception is the name of the reason in the counters.
    """


class Bucket:
    """A rate limit: `burst` bytes or connections without delay, and `rate` per second after the burst."""

    def __init__(self, burst: int, rate: int, now_s: float) -> None:
        self._burst, self._rate = burst, rate
        self._left, self._at_s = float(burst), now_s

    def left(self, now_s: float) -> int:
        """Return the number of bytes or connections that are permitted at the time `now_s`."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        return int(self._left)

    def take(self, count: int) -> None:
        """Subtract `count` bytes or connections from the number that is permitted."""
        self._left -= count


class Inspector:
    """Inspector of the bytes that a client sends: a greeting and frames of ZMTP 3."""

    def __init__(self, *, subscribes: bool) -> None:
        self.topics: set[bytes] = set()
        self.topic_bytes = 0
        self.is_ready = False  # a frame has followed the greeting
        self._subscribes = subscribes
        self._buffer = bytearray()
        self._greeted = self._is_plain = False
        self._parts = 0

    def add(self, data: bytes) -> None:
        """Check the next bytes. Raise `Refused` if the bytes break a rule."""
        self._buffer += data
        if not self._greeted and not self._greet():
            return
        while (end := self._frame_end()) <= len(self._buffer):
            flags, size = self._buffer[0], end - (9 if self._buffer[0] & _LONG else 2)
            body = bytes(self._buffer[end - size : end])
            del self._buffer[:end]
            self.is_ready = True
            if self._is_plain:
                self._check(flags, body)

    def has_signature(self) -> bool:
        """Return True if enough bytes for the signature of a greeting have arrived."""
        return self._greeted or len(self._buffer) >= 10

    def _greet(self) -> bool:
        start = bytes(self._buffer[:11])
        if start[:1] not in (b"", b"\xff") or start[9:10] not in (b"", b"\x7f") or start[10:] not in (b"", b"\x03"):
            raise Refused("not_zmtp")
        if len(self._buffer) < _GREETING_BYTES:
            return False
        self._is_plain = bytes(self._buffer[_MECHANISM]).rstrip(b"\0") == b"NULL"
        del self._buffer[:_GREETING_BYTES]
        self._greeted = True
        return True

    def _frame_end(self) -> int:
        """Return the index after the first frame. The index exceeds the size of the buffer if the frame is incomplete.

        Raise `Refused` if the frame is too large.
        """
        if len(self._buffer) < 2:
            return 2
        if not self._buffer[0] & _LONG:
            return 2 + self._buffer[1]
        if len(self._buffer) < 9:
            return 9
        size = int.from_bytes(self._buffer[1:9], "big")
        if size > _FRAME_BYTES:
            raise Refused("large_frame")
        return 9 + size

    def _check(self, flags: int, body: bytes) -> None:
        if flags & _COMMAND:
            for name in (_SUBSCRIBE, _CANCEL):
                if body.startswith(name):
                    self._change(body[len(name) :], add=name == _SUBSCRIBE)
            return
        self._parts = self._parts + 1 if flags & _MORE else 0
        if self._parts >= (1 if self._subscribes else _PARTS):
            raise Refused("many_parts")
        if self._subscribes and body[:1] in (b"\0", b"\1"):
            self._change(body[1:], add=body[:1] == b"\1")

    def _change(self, topic: bytes, *, add: bool) -> None:
        if (topic in self.topics) == add:
            return
        (self.topics.add if add else self.topics.remove)(topic)
        self.topic_bytes += len(topic) + 1 if add else -len(topic) - 1
        if len(self.topics) > _TOPICS or self.topic_bytes > _TOPIC_BYTES:
            raise Refused("many_subscriptions")


class Link:
    """One connection of a client to the relay, and the corresponding connection of the relay to the publisher."""

    def __init__(self, client: socket.socket, now_s: float, *, subscribes: bool) -> None:
        self.client = client
        self.server: socket.socket | None = None
        self.inspector = Inspector(subscribes=subscribes)
        self.bucket = Bucket(_BURST_BYTES, _BYTES_PER_S, now_s)
        self.opened_s = now_s
        self.received = 0  # bytes from the client
        self.is_accepted = False  # by the publisher, which sends its greeting first
        self.up = b""  # bytes for the publisher
        self.down = memoryview(b"")  # bytes for the client


class Poller:
    """A poller that waits for the events that the relay has registered for each file descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._masks: dict[int, int] = {}
        self.poll = self._epoll.poll

    def watch(self, fd: int, mask: int) -> None:
        """Wait for the events `mask` of a descriptor. If `mask` is 0, ignore even the end of the connection."""
        if self._masks.get(fd, 0) == mask:
            return
        if fd not in self._masks:
            self._epoll.register(fd, mask)
        elif mask:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.unregister(fd)
        self._masks[fd] = mask
        if not mask:
            del self._masks[fd]


class Relay:
    """Relay that accepts connections on `listener`, and forwards their bytes to and from the Unix socket `target`."""

    def __init__(
        self, listener: socket.socket, target: str, *, connections: int, subscribes: bool, keepalive_s: int
    ) -> None:
        self._listener = listener
        self._target = target
        self._connections = connections
        self._subscribes = subscribes
        self._keepalive_s = keepalive_s
        self._poller = Poller()
        self._clients: dict[int, Link] = {}  # by the descriptor of the client
        self._servers: dict[int, Link] = {}  # by the descriptor of the connection to the publisher
        self._throttled: set[Link] = set()
        self._all = Bucket(_ALL_BURST_BYTES, _ALL_BYTES_PER_S, time.monotonic())
        self._accepts = Bucket(_ACCEPT_BURST, _ACCEPTS_PER_S, time.monotonic())
        self._is_accepting = True
        self._counters: Counter[str] = Counter()
        self._reported = ""
        self._is_ending = False

    def run(self) -> None:
        """Forward bytes until standard input closes. Then forward for up to 0.5 s, to deliver remaining messages."""
        self._poller.watch(0, select.EPOLLIN)
        self._poller.watch(self._listener.fileno(), select.EPOLLIN)
        swept_s, end_s = 0.0, float("inf")
        print(flush=True)
        while (now_s := time.monotonic()) < end_s and not (self._is_ending and not self._clients):
            is_limited = bool(self._throttled) or not self._is_accepting
            wait_s = 0.02 if is_limited else 1.0
            for fd, events in self._poller.poll(min(wait_s, end_s - now_s)):
                if fd in self._servers:
                    self._serve(self._servers[fd], events, is_client=False)
                elif fd in self._clients:
                    self._serve(self._clients[fd], events, is_client=True)
                elif fd == 0:
                    self._poller.watch(0, 0)
                    self._is_ending, end_s = True, now_s + _DRAIN_S
                elif fd == self._listener.fileno():
                    self._accept()
            if is_limited:
                self._resume(now_s)
            if now_s >= swept_s + 1.0:
                swept_s = now_s
                self._sweep(now_s)

    def _accept(self) -> None:
        now_s = time.monotonic()
        try:
            if self._accepts.left(now_s) < 1:
                raise BlockingIOError
            client, _ = self._listener.accept()
        except OSError:  # the client has gone, or there are too many descriptors
            self._pause_accepting()
            return
        self._accepts.take(1)
        client.setblocking(False)
        if client.family != socket.AF_UNIX:
            self._set_tcp_options(client)
        link = Link(client, now_s, subscribes=self._subscribes)
        self._clients[client.fileno()] = link
        self._poller.watch(client.fileno(), select.EPOLLIN)
        self._counters["accepted"] += 1
        if len(self._clients) >= self._connections:  # further clients wait in the queue of the kernel
            self._counters["full"] += 1
            self._pause_accepting()

    def _set_tcp_options(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            client.setsockopt(socket.IPPROTO_TCP, option, self._keepalive_s)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def _pause_accepting(self) -> None:
        self._is_accepting = False
        self._poller.watch(self._listener.fileno(), 0)

    def _serve(self, link: Link, events: int, *, is_client: bool) -> None:
        """Forward bytes in each direction that does not block. If the connection has ended, close both of its sockets.

        `events` are the events of the client if `is_client` is True. Otherwise, they are the events of the publisher.
        """
        try:
            if is_client:
                if events & select.EPOLLOUT:
                    self._send_down(link)
                if events & ~select.EPOLLOUT:
                    self._receive_up(link)
            elif events & select.EPOLLOUT:
                self._send_up(link)
            elif self._forward_down(link):
                return  # the usual case, after which the connection waits for the same events as before
            self._update(link)
        except Refused as refused:
            self._counters[f"refused.{refused}"] += 1
            self._close(link)
        except BlockingIOError:
            pass
        except OSError:
            self._close(link)

    def _receive_up(self, link: Link) -> None:
        now_s = time.monotonic()
        allowed = self._allowed(link, now_s)
        if allowed < 1:
            self._throttled.add(link)
            return
        data = link.client.recv(min(allowed, len(_CHUNK)))
        if not data:
            raise OSError("the client has ended")
        link.bucket.take(len(data))
        if link.received >= _FREE_BYTES:
            self._all.take(len(data))
        link.received += len(data)
        topic_bytes = link.inspector.topic_bytes
        link.inspector.add(data)
        grown = link.inspector.topic_bytes - topic_bytes
        if grown > 0 and sum(each.inspector.topic_bytes for each in self._clients.values()) > _ALL_TOPIC_BYTES:
            raise Refused("many_subscriptions")
        link.up += data
        if link.server is None and link.inspector.has_signature():
            self._connect(link)
        if link.server is not None:
            self._send_up(link)

    def _allowed(self, link: Link, now_s: float) -> int:
        """Return the number of bytes that a client may send at the time `now_s`."""
        own = link.bucket.left(now_s)
        return min(own, _FREE_BYTES if link.received < _FREE_BYTES else self._all.left(now_s))

    def _connect(self, link: Link) -> None:
        waiting = sum(not each.is_accepted for each in self._servers.values())
        if free_descriptors(os.getppid()) - waiting <= _FREE_DESCRIPTORS:
            raise Refused("no_descriptors")
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.setblocking(False)
        try:
            server.connect(self._target)
        except OSError as error:  # the publisher is closing, or does not accept connections quickly enough
            server.close()
            raise ConnectionError from error
        link.server = server
        self._servers[server.fileno()] = link

    @staticmethod
    def _send_up(link: Link) -> None:
        assert link.server is not None
        with contextlib.suppress(BlockingIOError):
            link.up = link.up[link.server.send(link.up) :]

    def _forward_down(self, link: Link) -> bool:
        """Forward bytes of the publisher. Return True if the client has accepted all bytes."""
        assert link.server is not None
        size = link.server.recv_into(_CHUNK)
        if not size:
            raise OSError("the publisher has ended")
        link.is_accepted = True
        try:
            sent = link.client.send(_CHUNK[:size])
        except BlockingIOError:
            sent = 0
        if sent < size:
            link.down = memoryview(bytes(_CHUNK[sent:size]))
        return sent == size

    @staticmethod
    def _send_down(link: Link) -> None:
        with contextlib.suppress(BlockingIOError):
            link.down = link.down[link.client.send(link.down) :]

    def _update(self, link: Link) -> None:
        """Register the events of both sockets after which `run` can continue to forward the bytes of the connection."""
        reads = select.EPOLLIN if not (link.up or link in self._throttled) else 0
        self._poller.watch(link.client.fileno(), reads | (select.EPOLLOUT if link.down else 0))
        if link.server is not None:
            reads = select.EPOLLIN if not link.down else 0
            self._poller.watch(link.server.fileno(), reads | (select.EPOLLOUT if link.up else 0))

    def _close(self, link: Link) -> None:
        self._throttled.discard(link)
        for ends, end in ((self._clients, link.client), (self._servers, link.server)):
            if end is not None:
                self._poller.watch(end.fileno(), 0)
                del ends[end.fileno()]
                end.close()

    def _resume(self, now_s: float) -> None:
        """Resume throttled connections and accept new connections, within the limits."""
        if not (self._is_accepting or self._is_ending) and len(self._clients) < self._connections:
            self._is_accepting = self._accepts.left(now_s) >= 1
            self._poller.watch(self._listener.fileno(), select.EPOLLIN if self._is_accepting else 0)
        for link in [link for link in self._throttled if self._allowed(link, now_s) >= _RESUME_BYTES]:
            self._throttled.remove(link)
            self._update(link)

    def _sweep(self, now_s: float) -> None:
        """Close connections that have sent no handshake within 5 s, and print the counters."""
        for link in list(self._clients.values()):
            if not link.inspector.is_ready and now_s - link.opened_s > _HANDSHAKE_S:
                self._counters["refused.no_handshake"] += 1
                self._close(link)
        report = json.dumps({**self._counters, "connected": len(self._clients)})
        if report != self._reported:
            self._reported = report
            print(report, flush=True)
        elif not self._is_ending:  # then, the publisher may not read any more
            print(flush=True)


def free_descriptors(pid: int) -> float:
    """Return how many more files a process of the same user can open. If this number is unknown, return infinity."""
    try:
        most, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = sum(1 for _ in os.scandir(f"/proc/{pid}/fd"))
    except OSError:
        return float("inf")
    return float("inf") if most == resource.RLIM_INFINITY else most - used


def main() -> None:
    """Run the relay with the options in the first line of standard input, until standard input closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the publisher ends this program
        signal.signal(number, signal.SIG_IGN)
    options: dict[str, Any] = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections = min(options["connections"], (most - 32) // 2 if most != resource.RLIM_INFINITY else sys.maxsize)
    with socket.socket(fileno=options["listener"]) as listener:
        listener.setblocking(False)
        Relay(
            listener,
            options["target"],
            connections=connections,
            subscribes=options["subscribes"],
            keepalive_s=options["keepalive_s"],
        ).run()


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the publisher was killed
        os._exit(1)
