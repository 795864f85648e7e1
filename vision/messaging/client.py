"""Subscription to a publisher: typed messages, and reports of lost messages. Import it from `vision.client`.

ZeroMQ reconnects and drops messages without notice. `Subscription` detects this and returns reports between the
messages: `Gap`, `Restart`, `Silence`. With `since`, a subscription requests all events that it missed, and returns each
event once and in order.

>>> for message in subscribe("tcp://127.0.0.1:5555", cameras=["gate"]):
...     if isinstance(message, DetectionsMessage):
...         print(message.timing_line(), [detected.class_name for detected in message.objects])
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

from vision.errors import Closed, ConfigError, MessageError
from vision.messaging import codec
from vision.messaging.codec import (
    AnyMessage,
    CameraStatusMessage,
    CountsMessage,
    DetectedObject,
    DetectionsMessage,
    EventMessage,
    Kind,
    NodeStatusMessage,
)
from vision.messaging.gap_recovery import EVENTS, Gap, GapRecovery, NewJournal

__all__ = [
    "CameraStatusMessage",
    "CountsMessage",
    "DetectedObject",
    "DetectionsMessage",
    "EventMessage",
    "Gap",
    "Item",
    "Latency",
    "NewJournal",
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
_RETRY_NS = 50_000_000  # until a request that could not be sent is tried again
_NODE_STATUS = f"status/{codec.NODE}"


@dataclass(frozen=True, slots=True)
class Restart:
    """Report that the publisher restarted. Its numbers start at 1 again, which is not a loss."""

    node: str
    old_instance: str
    new_instance: str

    def __str__(self) -> str:
        return f"{self.node}: the publisher was restarted"


@dataclass(frozen=True, slots=True)
class Silence:
    """Report that no message arrived for `for_s` seconds. It is repeated at this interval."""

    address: str
    for_s: float
    connected: bool

    def __str__(self) -> str:
        text = f"no messages from {self.address} for {self.for_s:.0f} s"
        if self.connected:
            return f"{text}: connected, but no subscribed message is published"
        return f"{text}: is `vision run` running, and is its publish.bind reachable from here?"


Item: TypeAlias = AnyMessage | Gap | NewJournal | Restart | Silence

Since: TypeAlias = int | tuple[str, int]
"""Number of the last processed event, 0 for none, or better its (`journal`, `number`)."""


def subscribe(
    address: str,
    cameras: Sequence[str] | None = None,
    kinds: Sequence[Kind] = ("detections",),
    *,
    since: Since | None = None,
    replay: str | None = None,
    timeout_s: float | None = None,
    silence_s: float = 5.0,
    queue: int = 1000,
) -> Iterator[Item]:
    """Yield messages and reports until the caller stops. The socket is closed with the generator.

    Args:
        address: ``publish.bind`` of the publisher, with a host that this machine can reach.
        cameras: ids of cameras; None: all.
        kinds: some of ``detections``, ``status`` (of cameras and of the node), ``events`` and ``counts``.
        since: start after this event, request every missing event, and return each once and in order. None: events
                can get lost, like all other messages.
        replay: ``publish.replay`` of the publisher; None: the address in its status.
        timeout_s: longest time without a message; None: no limit.
        silence_s: time without a message after which a `Silence` is reported.
        queue: maximum number of messages that wait for the caller. Further ones are lost and reported as a `Gap`.

    Raises:
        ConfigError: the address or a kind is wrong; raised at once.
        TimeoutError: no message for `timeout_s`.
        MessageError: the publisher has another version, or is not `vision run`.
    """
    _check_arguments(address, cameras, kinds, since, replay)

    def items() -> Iterator[Item]:
        with Subscription(
            address, cameras, kinds, since=since, replay=replay, silence_s=silence_s, queue=queue
        ) as subscription:
            yield from subscription.items(timeout_s)

    return items()


class Subscription:
    """One connected SUB socket that checks sequence numbers. One thread at a time."""

    def __init__(
        self,
        address: str,
        cameras: Sequence[str] | None = None,
        kinds: Sequence[Kind] = ("detections",),
        *,
        since: Since | None = None,
        replay: str | None = None,
        silence_s: float = 5.0,
        queue: int = 1000,
        keepalive_s: int = 5,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Connect, as `subscribe` does. An idle connection is probed after `keepalive_s`, and replaced after three."""
        _check_arguments(address, cameras, kinds, since, replay)
        self.address = address
        self.lost = 0  # messages of all topics
        self.connected = False
        self._topics = _topics(cameras, kinds)
        self._event_cameras = None if cameras is None else frozenset(cameras)
        self._recovery = None if since is None else GapRecovery(*_number_and_journal(since), clock=clock)
        self._request_socket: zmq.Socket[bytes] | None = None
        self._replay = ""  # address of `_request_socket`
        self._learn_replay_address = replay is None
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
        if replay is not None:
            self._connect_replay(replay)

    def _connect(self, queue: int, keepalive_s: int) -> None:
        sock = self._socket
        self._keepalive_s = keepalive_s
        _prepare(sock, self.address, keepalive_s)
        sock.setsockopt(zmq.RCVHWM, queue)
        sock.setsockopt(zmq.RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._monitor = sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        for topic in self._topics if self._recovery is None else self._topics | {EVENTS, _NODE_STATUS}:
            sock.subscribe(topic)
        try:
            sock.connect(self.address)
        except zmq.ZMQError as error:
            self._close_monitor()
            raise ConfigError(f"address: cannot connect to {self.address}: {error}") from error

    def items(self, timeout_s: float | None = None) -> Iterator[Item]:
        """Yield the items of `receive` until the subscription is closed.

        Raises:
            TimeoutError: no message for `timeout_s`.
            MessageError: the publisher has another version, or is not `vision run`.
        """
        while True:
            left_s = None if timeout_s is None else timeout_s - (self._clock() - self._last_message_ns) / 1e9
            item = self.receive(None if left_s is None else max(0.0, left_s))
            if item is not None:
                yield item
            elif left_s is not None and left_s <= 0:
                raise TimeoutError(f"no message from {self.address} for {timeout_s:g} s")

    def receive(self, timeout_s: float | None = None) -> Item | None:
        """Return the next message or report; None: there was none within `timeout_s`.

        Raises:
            MessageError: the publisher has another version, or is not `vision run`.
            Closed: after `close`.
        """
        deadline_ns = None if timeout_s is None else self._clock() + int(timeout_s * 1e9)
        wait_ns = 0  # check at least once
        while True:
            self._poll(wait_ns)
            if self._items:
                return self._items.popleft()
            now_ns = self._clock()
            wait_ns = self._last_silence_ns + self._silence_ns - now_ns
            if self._recovery is not None:
                wait_ns = min(wait_ns, max(_RETRY_NS, self._recovery.wait_ns()))
            if self._last_silence_ns + self._silence_ns <= now_ns:
                self._last_silence_ns = now_ns
                return Silence(self.address, (now_ns - self._last_message_ns) / 1e9, self.connected)
            if deadline_ns is not None:
                if now_ns >= deadline_ns:
                    return None
                wait_ns = min(wait_ns, deadline_ns - now_ns)

    def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._context.closed:
            return
        self._close_monitor()
        self._close_request_socket()
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
        self._request_if_due()
        ready = dict(self._poller.poll(-(-wait_ns // 1_000_000)))  # rounded up: 0 would spin in the last ms
        if self._monitor in ready:
            event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self._recovery is not None and self.connected:
                self._recovery.hurry()
        if self._request_socket is not None and self._request_socket in ready:
            self._receive_reply(self._request_socket.recv_multipart())
        if self._socket in ready:
            self._take(self._socket.recv_multipart())

    def _take(self, parts: list[bytes]) -> None:
        if len(parts) < 2:
            raise MessageError(
                f"expected messages of two parts, topic and payload, got {len(parts)} from {self.address}",
                hint="is the publisher really `vision run`?",
            )
        topic = parts[0].decode(errors="replace")
        # ZeroMQ compares prefixes: a subscriber to detections/gate also receives detections/gate2.
        subscribed = bool({topic, f"{topic.partition('/')[0]}/"} & self._topics)
        if not subscribed and (self._recovery is None or not topic.startswith((EVENTS, _NODE_STATUS))):
            return
        message = codec.decode(topic, parts[1])
        self._last_silence_ns = self._clock()
        if self._recovery is not None and self._learn_replay_address and isinstance(message, NodeStatusMessage):
            self._learn_replay(message)
        if self._recovery is not None and isinstance(message, EventMessage):
            self._note_instance(message)
            self._offer(self._recovery.live(message))
        elif subscribed:
            self._last_message_ns = self._last_silence_ns
            if self._note(topic, message):
                self._items.append(message)
        else:
            self._note_instance(message)

    # --- missed events ------------------------------------------------------------------------------------------------

    def _learn_replay(self, status: NodeStatusMessage) -> None:
        if status.replay is not None:
            self._connect_replay(_reachable(status.replay, self.address))
        else:
            raise MessageError(
                f"{status.node} stores no events for requests",
                hint="configure `state_dir` and `publish: {replay: ...}` there, or subscribe without `since`",
                code="no-replay",
            )

    def _connect_replay(self, replay: str) -> None:
        if replay == self._replay:
            return
        self._close_request_socket()
        sock = self._context.socket(zmq.DEALER)
        _prepare(sock, replay, self._keepalive_s)
        sock.setsockopt(zmq.IMMEDIATE, 1)  # do not queue requests for a connection that does not exist
        sock.connect(replay)
        self._poller.register(sock, zmq.POLLIN)
        self._request_socket, self._replay = sock, replay

    def _close_request_socket(self) -> None:
        if self._request_socket is not None:
            self._poller.unregister(self._request_socket)
            self._request_socket.close(linger=0)
            self._request_socket = None

    def _request_if_due(self) -> None:
        if self._recovery is None or self._request_socket is None or self._recovery.wait_ns() > 0:
            return
        if self._request_socket.poll(0, zmq.POLLOUT):
            self._request_socket.send_multipart([b"", codec.encode(self._recovery.request())], zmq.NOBLOCK)

    def _receive_reply(self, parts: list[bytes]) -> None:
        header, *events = parts[1:] or [b""]
        assert self._recovery is not None
        self._last_silence_ns = self._clock()
        self._offer(self._recovery.replied(codec.decode_reply(header), [codec.decode_event(event) for event in events]))

    def _offer(self, items: Iterable[EventMessage | Gap | NewJournal]) -> None:
        for item in items:
            if isinstance(item, Gap):
                self.lost += item.lost
            if not isinstance(item, EventMessage) or self._event_cameras is None or item.camera in self._event_cameras:
                self._last_message_ns = self._clock()
                self._items.append(item)

    # --- sequence numbers ---------------------------------------------------------------------------------------------

    def _note(self, topic: str, message: AnyMessage) -> bool:
        """Report lost messages. Return False if the message is a repetition."""
        self._note_instance(message)
        last = self._sequences[message.node]
        expected = last.get(topic, message.seq - 1) + 1
        if message.seq < expected:
            return False
        if message.seq > expected:
            self._items.append(Gap(topic, expected, message.seq))
            self.lost += message.seq - expected
        last[topic] = message.seq
        return True

    def _note_instance(self, message: AnyMessage) -> None:
        old_instance = self._instances.get(message.node)
        if old_instance != message.instance:
            if old_instance is not None:
                self._items.append(Restart(message.node, old_instance, message.instance))
            self._instances[message.node] = message.instance
            self._sequences[message.node] = {}


def _prepare(sock: zmq.Socket[bytes], address: str, keepalive_s: int) -> None:
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    # Detects a publisher whose machine lost its power. Not ZeroMQ's heartbeats: see vision.messaging.sockets.
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
    sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, keepalive_s)
    sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, keepalive_s)
    sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    sock.setsockopt(zmq.IPV6, int("[" in address))


def _check_arguments(
    address: str, cameras: Sequence[str] | None, kinds: Sequence[Kind], since: Since | None, replay: str | None
) -> None:
    _check_address(address)
    _topics(cameras, kinds)
    if replay is not None:
        _check_address(replay)
        if since is None:
            raise ConfigError("replay: expected since beside it", hint="since=0 asks for all events that are kept")
    if since is not None:
        number, _ = _number_and_journal(since)
        if "events" not in kinds:
            raise ConfigError(f"since: expected events among the kinds, got {', '.join(kinds)}")
        if number < 0:
            raise ConfigError(f"since: expected the number of an event, or 0, got {number}")


def _number_and_journal(since: Since) -> tuple[int, str | None]:
    return (since, None) if isinstance(since, int) else (since[1], since[0])


def _reachable(replay: str, address: str) -> str:
    """Return the replay address with the host that the subscriber connects to."""
    match = _TCP.fullmatch(replay)
    if match is None or match["host"] not in ("*", "0.0.0.0", "[::]"):
        return replay
    publisher = _TCP.fullmatch(address)
    return f"tcp://{publisher['host'] if publisher is not None else '127.0.0.1'}:{match['port']}"


def _check_address(address: str) -> str:
    """Refuse addresses that ZeroMQ calls an "Invalid argument", or accepts without ever connecting."""
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
    """Return the topics to subscribe to. For all cameras this is the kind with a slash."""
    for name, values in (("cameras", cameras), ("kinds", kinds)):
        if isinstance(values, str):
            raise ConfigError(f"{name}: expected a list of names, got the text {values!r}", hint=f"write [{values!r}]")
    if not kinds or not set(kinds) <= set(codec.KINDS):
        raise ConfigError(f"kinds: expected some of {', '.join(codec.KINDS)}, got {', '.join(kinds) or 'none'}")
    if cameras is not None and not cameras:
        raise ConfigError("cameras: expected at least one name, got none", hint="leave it out to get all cameras")
    if cameras is None:
        return frozenset(f"{kind}/" for kind in kinds)
    topics = {f"{kind}/{camera}" for kind in kinds for camera in cameras}
    return frozenset(topics | {f"status/{codec.NODE}"} if "status" in kinds else topics)


@dataclass(frozen=True, slots=True)
class Latency:
    """Time from capture to now, and the clock that measured it."""

    ms: float
    clock: Literal["monotonic", "utc"]


def latency(message: DetectionsMessage, now_ns: int | None = None, now_utc_ns: int | None = None) -> Latency:
    """Return the age of a frame, by the monotonic clock on the publisher's machine, and by UTC elsewhere.

    By UTC it is only as exact as the synchronization of both clocks.
    """
    if message.boot and message.boot == codec.boot_id():
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        return Latency((now_ns - message.captured_monotonic_ns) / 1e6, "monotonic")
    now_utc_ns = time.time_ns() if now_utc_ns is None else now_utc_ns
    return Latency((now_utc_ns - message.captured_utc_ns) / 1e6, "utc")


def read_recording(path: Path | str) -> Iterator[DetectionsMessage]:
    """Yield the messages of a file that ``vision run --record`` wrote.

    Raises:
        MessageError: a line is not a message. The error has its number.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield codec.decode_recorded(line)
            except MessageError as error:
                raise MessageError(f"{path}, line {number}: {error.args[0]}", hint=error.hint) from error
