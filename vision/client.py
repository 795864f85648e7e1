"""The subscriber's side: typed messages, and what got lost said aloud.

ZeroMQ reconnects by itself and drops in silence, so a subscriber that only receives cannot tell a quiet street from a
dead camera, or 24 frames from 25. `Subscription` reports all of it between the messages: `Gap`, `Restart`, `Silence`.

>>> for message in subscribe("tcp://127.0.0.1:5555", cameras=["gate"]):
...     if isinstance(message, DetectionsMessage):
...         print(message.timing_line(), [found.class_name for found in message.objects])
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

from vision import wire
from vision.errors import Closed, ConfigError, MessageError
from vision.wire import (
    AnyMessage,
    CameraStatusMessage,
    DetectedObject,
    DetectionsMessage,
    EventMessage,
    Kind,
    NodeStatusMessage,
)

__all__ = [
    "CameraStatusMessage",
    "DetectedObject",
    "DetectionsMessage",
    "EventMessage",
    "Gap",
    "Item",
    "Latency",
    "NodeStatusMessage",
    "Restart",
    "Silence",
    "Subscription",
    "latency",
    "read_recording",
    "subscribe",
]

_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\[\]:/\s]+):(?P<port>\d{1,5})")
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 2000
_RECEIVE_BUFFER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Gap:
    """`lost` messages of a topic never came: this subscriber or the network was too slow, or the connection broke."""

    topic: str
    expected_seq: int
    got_seq: int

    @property
    def lost(self) -> int:
        return self.got_seq - self.expected_seq

    def __str__(self) -> str:
        return f"{self.topic}: lost {self.lost} messages (expected {self.expected_seq}, got {self.got_seq})"


@dataclass(frozen=True, slots=True)
class Restart:
    """The publisher was started anew: its numbers begin at 1 again, which is no loss."""

    node: str
    old_instance: str
    new_instance: str

    def __str__(self) -> str:
        return f"{self.node}: the publisher was restarted"


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing came for `for_s` seconds; reported again each time as much has passed once more."""

    address: str
    for_s: float
    connected: bool

    def __str__(self) -> str:
        told = f"no messages from {self.address} for {self.for_s:.0f} s"
        if self.connected:
            return f"{told}: connected, but nothing of what was subscribed to is published"
        return f"{told}: is `vision run` running, and is its publish.bind reachable from here?"


Item: TypeAlias = AnyMessage | Gap | Restart | Silence


def subscribe(
    address: str,
    cameras: Sequence[str] | None = None,
    kinds: Sequence[Kind] = ("detections",),
    *,
    timeout_s: float | None = None,
    silence_s: float = 5.0,
    queue: int = 1000,
) -> Iterator[Item]:
    """Messages and reports, until the caller stops iterating. The socket is closed with the generator.

    Args:
        address: the publisher's ``publish.bind``, with a host that can be reached from here.
        cameras: names; all where None.
        kinds: of ``detections``, ``status`` (of cameras and of the node) and ``events``.
        timeout_s: give up when no message came for so long; never where None.
        silence_s: report a `Silence` when no message came for so long.
        queue: messages kept here while the caller is busy; what comes after them is lost, and reported as a `Gap`.

    Raises:
        ConfigError: the address or a kind is wrong; raised at once.
        TimeoutError: no message for `timeout_s`.
        MessageError: the publisher is of another version, or none of ours.
    """
    _check_address(address)
    _topics(cameras, kinds)

    def items() -> Iterator[Item]:
        with Subscription(address, cameras, kinds, silence_s=silence_s, queue=queue) as subscription:
            yield from subscription.items(timeout_s)

    return items()


class Subscription:
    """One connected SUB socket with its bookkeeping. One thread at a time."""

    def __init__(
        self,
        address: str,
        cameras: Sequence[str] | None = None,
        kinds: Sequence[Kind] = ("detections",),
        *,
        silence_s: float = 5.0,
        queue: int = 1000,
        keepalive_s: int = 5,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """See `subscribe`. A connection that is idle for `keepalive_s` is probed three times, then made again."""
        self.address = _check_address(address)
        self.lost = 0  # messages, over all topics
        self.connected = False
        self._topics = _topics(cameras, kinds)
        self._silence_ns = int(silence_s * 1e9)
        self._clock = clock
        self._sequences: dict[str, dict[str, int]] = {}  # node -> topic -> last seq
        self._instances: dict[str, str] = {}  # node -> instance
        self._items: deque[Item] = deque()
        self._last_message_ns = self._last_silence_ns = clock()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        try:
            self._connect(queue, keepalive_s)
        except BaseException:
            self._socket.close(linger=0)
            self._context.term()
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def _connect(self, queue: int, keepalive_s: int) -> None:
        sock = self._socket
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.RCVHWM, queue)
        sock.setsockopt(zmq.RCVBUF, _RECEIVE_BUFFER_BYTES)
        sock.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        # A publisher whose machine died says no goodbye. Not with ZeroMQ's heartbeats: see vision.publish.
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, keepalive_s)
        sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, keepalive_s)
        sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        sock.setsockopt(zmq.IPV6, int("[" in self.address))
        self._monitor = sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        for topic in self._topics:
            sock.subscribe(topic)
        try:
            sock.connect(self.address)
        except zmq.ZMQError as error:
            self._close_monitor()
            raise ConfigError(f"address: cannot connect to {self.address}: {error}") from error

    def items(self, timeout_s: float | None = None) -> Iterator[Item]:
        """What `receive` gives, until closed.

        Raises:
            TimeoutError: no message for `timeout_s`.
            MessageError: the publisher is of another version, or none of ours.
        """
        while True:
            left_s = None if timeout_s is None else timeout_s - (self._clock() - self._last_message_ns) / 1e9
            item = self.receive(None if left_s is None else max(0.0, left_s))
            if item is not None:
                yield item
            elif left_s is not None and left_s <= 0:
                raise TimeoutError(f"no message from {self.address} for {timeout_s:g} s")

    def receive(self, timeout_s: float | None = None) -> Item | None:
        """The next message or report; None if `timeout_s` passed without one.

        Raises:
            MessageError: the publisher is of another version, or none of ours.
            Closed: after `close`.
        """
        deadline_ns = None if timeout_s is None else self._clock() + int(timeout_s * 1e9)
        wait_ns = 0  # look once, however short the time
        while True:
            self._poll(wait_ns)
            if self._items:
                return self._items.popleft()
            now_ns = self._clock()
            wait_ns = self._last_silence_ns + self._silence_ns - now_ns
            if wait_ns <= 0:
                self._last_silence_ns = now_ns
                return Silence(self.address, (now_ns - self._last_message_ns) / 1e9, self.connected)
            if deadline_ns is not None:
                if now_ns >= deadline_ns:
                    return None
                wait_ns = min(wait_ns, deadline_ns - now_ns)

    def close(self) -> None:
        """Disconnect. May be called twice."""
        if self._context.closed:
            return
        self._close_monitor()
        self._socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close_monitor(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)

    def _poll(self, wait_ns: int) -> None:
        if self._context.closed:
            raise Closed("the subscription is closed")
        if self._items:
            return
        ready = dict(self._poller.poll(-(-wait_ns // 1_000_000)))  # rounded up, or the last millisecond would spin
        if self._monitor in ready:
            event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if self._socket in ready:
            self._take(self._socket.recv_multipart())

    def _take(self, parts: list[bytes]) -> None:
        if len(parts) < 2:
            raise MessageError(
                f"expected messages of two parts, topic and payload, got {len(parts)} from {self.address}",
                hint="is the publisher really `vision run`?",
            )
        topic = parts[0].decode(errors="replace")
        if not {topic, f"{topic.partition('/')[0]}/"} & self._topics:
            return  # ZeroMQ compares beginnings: who asks for detections/gate is sent detections/gate2 too
        message = wire.decode(topic, parts[1])
        self._last_message_ns = self._last_silence_ns = self._clock()
        if self._note(topic, message):
            self._items.append(message)

    def _note(self, topic: str, message: AnyMessage) -> bool:
        """Report what the message's number tells; False if the message is a repeat."""
        old_instance = self._instances.get(message.node)
        if old_instance != message.instance:
            if old_instance is not None:
                self._items.append(Restart(message.node, old_instance, message.instance))
            self._instances[message.node] = message.instance
            self._sequences[message.node] = {}
        last = self._sequences[message.node]
        expected = last.get(topic, message.seq - 1) + 1
        if message.seq < expected:
            return False
        if message.seq > expected:
            self._items.append(Gap(topic, expected, message.seq))
            self.lost += message.seq - expected
        last[topic] = message.seq
        return True


def _check_address(address: str) -> str:
    """Refuse what ZeroMQ would call an "Invalid argument", or accept and never connect."""
    if address.startswith("ipc://") and len(address) > len("ipc://"):
        return address
    match = _TCP.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        hint = f"did you mean tcp://{address}" if _TCP.fullmatch(f"tcp://{address}") else ""
        raise ConfigError(f"address: expected tcp://HOST:PORT or ipc:///PATH/OF/SOCKET, got {address!r}", hint=hint)
    if match["host"] in ("*", "0.0.0.0", "[::]"):
        raise ConfigError(
            f"address: expected one host to connect to, got {match['host']!r}, every interface of a publisher",
            hint=f"on the same machine: tcp://127.0.0.1:{match['port']}",
        )
    return address


def _topics(cameras: Sequence[str] | None, kinds: Sequence[Kind]) -> frozenset[str]:
    """What to subscribe to; a kind alone, with its slash, where all cameras are wanted."""
    for name, values in (("cameras", cameras), ("kinds", kinds)):
        if isinstance(values, str):
            raise ConfigError(f"{name}: expected a list of names, got the text {values!r}", hint=f"write [{values!r}]")
    if not kinds or not set(kinds) <= set(wire.KINDS):
        raise ConfigError(f"kinds: expected some of {', '.join(wire.KINDS)}, got {', '.join(kinds) or 'none'}")
    if cameras is not None and not cameras:
        raise ConfigError("cameras: expected at least one name, got none", hint="leave it out to get all cameras")
    if cameras is None:
        return frozenset(f"{kind}/" for kind in kinds)
    topics = {f"{kind}/{camera}" for kind in kinds for camera in cameras}
    return frozenset(topics | {f"status/{wire.NODE}"} if "status" in kinds else topics)


@dataclass(frozen=True, slots=True)
class Latency:
    """Capture to now, and by which clock that was measured."""

    ms: float
    clock: Literal["monotonic", "utc"]


def latency(message: DetectionsMessage, now_ns: int | None = None, now_utc_ns: int | None = None) -> Latency:
    """Age of a picture: by the monotonic clock on the publisher's machine; elsewhere by UTC, so no better than both
    machines' time synchronisation."""
    if message.boot and message.boot == wire.boot_id():
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        return Latency((now_ns - message.captured_monotonic_ns) / 1e6, "monotonic")
    now_utc_ns = time.time_ns() if now_utc_ns is None else now_utc_ns
    return Latency((now_utc_ns - message.captured_utc_ns) / 1e6, "utc")


def read_recording(path: Path | str) -> Iterator[DetectionsMessage]:
    """Messages of a file that ``vision run --record`` wrote.

    Raises:
        MessageError: a line that is none, with its number.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield wire.decode_recorded(line)
            except MessageError as error:
                raise MessageError(f"{path}, line {number}: {error.args[0]}", hint=error.hint) from error
