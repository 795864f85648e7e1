"""`ReceiveGuard`, which limits the memory that an endless message of a hostile publisher can use in a subscriber.

ZeroMQ keeps the parts of a message until its last part has arrived. No option limits the number of these parts: RCVHWM
counts complete messages, and MAXMSGSIZE limits the size of a part. However, Linux counts the bytes that each TCP
connection has received. If these bytes exceed a limit before a message is complete, the guard shuts down the
connection. After that, ZeroMQ frees the parts, and reconnects.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

CUT: Final = b"cut"
"""The only part of the message that a guard sends to the owner of a socket after it has shut down connections."""

_EVENTS: Final = zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED
_TICK_MS: Final = 250
_FAST_TICK_MS: Final = 5  # while many bytes arrive without a complete message
_FAST_PART: Final = 0.1  # fraction of the limit above which the fast ticks apply
_TCP_INFO_BYTES: Final = 136
_BYTES_RECEIVED: Final = 128  # offset of tcpi_bytes_received in struct tcp_info of Linux 4.1 and later
_SO_COOKIE: Final = 57  # identifies a connection, also if its descriptor is used again
_COOKIE_BYTES: Final = 8


@dataclass(slots=True)
class _Connection:
    cookie: bytes
    start: int = 0  # number of received bytes when the last message was read


@dataclass(slots=True, eq=False)
class Guarded:
    """A socket whose connections are watched. The owner increases `read` by 1 after each message that it has read.

    Attributes:
        socket: the socket. Only the owner uses it.
        events: socket with the events of the guarded socket, as `zmq.Socket.get_monitor_socket` returns them, and with
            messages `CUT`. Only the owner uses it.
        read: number of messages that were read.
    """

    socket: zmq.Socket[bytes]
    events: zmq.Socket[bytes]
    limit_bytes: int
    monitor: zmq.Socket[bytes]  # only for the thread, like all fields below except `read`
    forwarded: zmq.Socket[bytes]
    read: int = 0
    _read_before: int = 0
    _connections: dict[int, _Connection] = field(default_factory=dict)  # by descriptor

    def check(self) -> float:
        """If too many unread bytes have arrived, shut down the connections.

        Return the number of unread bytes divided by the limit.
        """
        read, self._read_before = self._read_before, self.read
        unread = 0
        for descriptor, connection in list(self._connections.items()):
            received = _received(descriptor)
            if received is None:
                del self._connections[descriptor]
            elif read != self.read:
                connection.start = received
            else:
                unread += received - connection.start
        if unread > self.limit_bytes:
            self.cut()
        return unread / self.limit_bytes

    def cut(self) -> None:
        """Shut down all connections, and notify the owner of the socket."""
        was_open = False
        for descriptor, connection in self._connections.items():
            with _opened(descriptor, connection.cookie) as sock:
                if sock is not None:
                    sock.shutdown(socket.SHUT_RDWR)
                    was_open = True
        self._connections.clear()
        if was_open:
            self._tell([CUT])

    def forward(self) -> bool:
        """Pass the ZeroMQ events of the guarded socket on to its owner, and follow its connections.

        Return False if the socket is no longer monitored.
        """
        while self.monitor.poll(0):
            parts = self.monitor.recv_multipart()
            event = parse_monitor_message(parts)
            if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                return False
            descriptor = int(event["value"])
            if event["event"] == zmq.EVENT_CONNECTED and (cookie := _cookie(descriptor)):
                self._connections[descriptor] = _Connection(cookie)
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._connections.pop(descriptor, None)
            self._tell(parts)
        return True

    def close(self) -> None:
        """Close the sockets with which the guard's thread receives ZeroMQ events and passes them on."""
        self.monitor.close(linger=0)
        self.forwarded.close(linger=0)

    def _tell(self, parts: list[bytes]) -> None:
        with contextlib.suppress(zmq.Again):  # the owner has not read for a long time
            self.forwarded.send_multipart(parts, zmq.NOBLOCK)


class ReceiveGuard:
    """A thread that shuts down the connections of a guarded socket if too many unread bytes arrive.

    Call all methods from the thread that owns the sockets.
    """

    def __init__(self, context: Context) -> None:
        """Prepare the guard for sockets of this context. `start` starts the thread."""
        self._context = context
        self._guarded: list[Guarded] = []
        self._thread = threading.Thread(target=self._run, name="receive-guard", daemon=True)

    def guard(self, sock: zmq.Socket[bytes], limit_bytes: int, events: int) -> Guarded:
        """Watch the TCP connections of a socket. Call this before the socket connects, and before `start`.

        Args:
            sock: the socket. Call its `disable_monitor` before `close`.
            limit_bytes: maximum number of bytes that can arrive while no message is read.
            events: mask of the ZeroMQ events that `Guarded.events` delivers, in addition to new and lost connections.
        """
        address = f"inproc://guard-{id(sock)}"
        monitor = sock.get_monitor_socket(events | _EVENTS)
        forward, received = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        forward.bind(address)
        received.connect(address)
        guarded = Guarded(sock, received, limit_bytes, monitor, forward)
        self._guarded.append(guarded)
        return guarded

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Wait until the thread ends, which happens when no socket is monitored any longer. Idempotent."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        poller, wait_ms = zmq.Poller(), _TICK_MS
        left = {guarded.monitor: guarded for guarded in self._guarded}
        for monitor in left:
            poller.register(monitor, zmq.POLLIN)
        while left:
            for monitor, _ in poller.poll(wait_ms):
                if not left[monitor].forward():
                    poller.unregister(monitor)
                    left.pop(monitor).close()
            parts = [guarded.check() for guarded in left.values()]
            wait_ms = _FAST_TICK_MS if max(parts, default=0.0) > _FAST_PART else _TICK_MS


@contextlib.contextmanager
def _opened(descriptor: int, cookie: bytes) -> Iterator[socket.socket | None]:
    """Yield a duplicate of a TCP connection's socket, or None if `descriptor` no longer belongs to the connection.

    ZeroMQ can close the descriptor at any time. After that, the program can use the same number for a different object.
    """
    try:
        sock = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        yield None
        return
    with sock:
        try:
            same = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE_BYTES) == cookie
        except OSError:
            same = False
        yield sock if same else None


def _cookie(descriptor: int) -> bytes:
    """Return the cookie that identifies a TCP connection in the kernel. Return b"" for other descriptors."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            if sock.family not in (socket.AF_INET, socket.AF_INET6):
                return b""
            return sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE_BYTES)
    except OSError:
        return b""


def _received(descriptor: int) -> int | None:
    """Return the number of bytes that a TCP connection has received.

    Return None if the connection is closed, or if the kernel is too old.

    In contrast to `socket.getsockopt`, the call needs no object that owns the descriptor, and takes only 3 µs.
    """
    info, size = ctypes.create_string_buffer(_TCP_INFO_BYTES), ctypes.c_uint(_TCP_INFO_BYTES)
    failed = _libc().getsockopt(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, info, ctypes.byref(size))
    if failed or size.value < _TCP_INFO_BYTES:
        return None
    (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
    return int(received)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
