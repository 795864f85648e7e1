"""Functions and classes that receive the messages of a publisher, report lost messages, and read recordings.

ZeroMQ reconnects and drops messages silently. `Subscription` detects both, and returns the reports `Gap`, `Restart`,
`Silence`, and `Problem` between the messages. With `since`, a subscription requests all events that it missed, and
returns each event once and in order.

>>> for message in subscribe("tcp://127.0.0.1:5555", cameras=["gate"]):
...     if isinstance(message, DetectionsMessage):
...         print([detected.class_name for detected in message.objects])
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

from vision.errors import Closed, ConfigError, MessageError
from vision.messaging import codec
from vision.messaging.client_reports import Problem, Restart, Silence
from vision.messaging.curve import KeyPair, read_key
from vision.messaging.gap_recovery import EVENTS, MAX_MESSAGE_BYTES, Gap, GapRecovery, NewJournal, ReplayClient
from vision.messaging.receive_guard import CUT, ReceiveGuard
from vision.messaging.schema import (
    KINDS,
    NODE,
    AnyMessage,
    CameraStatusMessage,
    CountsMessage,
    DetectedObject,
    DetectionsMessage,
    EventMessage,
    Kind,
    NodeStatusMessage,
    ObjectMessage,
)
from vision.messaging.sockets import check_address, set_common_options

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
    "ObjectMessage",
    "Problem",
    "Restart",
    "Silence",
    "Subscription",
    "latency",
    "read_recording",
    "subscribe",
]

_RECEIVE_BUFFER_BYTES: Final = 256 * 1024
_WAITING_BYTES: Final = 16 * 1024  # unread data that a connection can receive, per message of the queue
_RETRY_NS: Final = 50_000_000  # time after which a request that could not be sent is repeated
_NODE_STATUS: Final = f"status/{NODE}"
_MAX_TOPICS: Final = 10_000  # maximum number of topics per node, and of nodes; the oldest are forgotten
_PROBLEM_INTERVAL_NS: Final = 1_000_000_000  # minimum time between two reports of problems
_FATAL: Final = "no-replay"  # code of the `MessageError` that ends a subscription


Item: TypeAlias = AnyMessage | Gap | NewJournal | Problem | Restart | Silence
"""A message, or a report about the subscription."""

Since: TypeAlias = int | tuple[str, int]
"""The last processed event: preferably its (`journal`, `number`), or only its number. 0 means that there is none."""


def subscribe(
    address: str,
    cameras: Sequence[str] | None = None,
    kinds: Sequence[Kind] = ("detections",),
    *,
    since: Since | None = None,
    replay: str | None = None,
    key: Path | str | KeyPair | None = None,
    timeout_s: float | None = None,
    silence_s: float = 5.0,
    queue: int = 1000,
) -> Iterator[Item]:
    """Yield messages and reports until the caller stops the iteration, which closes the socket.

    Args:
        address: ``publish.bind`` of the publisher, with a host that this machine can reach.
        cameras: ids of cameras. None means all cameras.
        kinds: one or more of ``detections``, ``status``, ``events``, ``counts``, and ``objects``.
        since: last processed event. All events after it are returned once and in order. `kinds` must contain
            ``events``. If None, events can be lost, like all other messages.
        replay: ``publish.replay`` of the publisher, only with `since`. None means the address in the status messages.
        key: key file of this subscriber, which `vision keys new FILE --server KEY` creates, or the keys themselves.
            Required if the publisher has `publish.curve`. Otherwise, it must be None.
        timeout_s: maximum time in seconds without a message. None means no limit.
        silence_s: time in seconds without a message after which a `Silence` is reported.
        queue: maximum number of messages that wait for the caller. Further messages are lost and reported as a `Gap`.

    Raises:
        ConfigError: an argument is invalid. The call itself raises this error, with two exceptions: if the key cannot
            be used, or connecting to the address fails, the first step of the iteration raises it.
        TimeoutError: no message arrived for `timeout_s` seconds.
        MessageError: `since` is given, but the publisher does not store events for requests.
    """
    _check_arguments(address, cameras, kinds, since, replay)

    def items() -> Iterator[Item]:
        with Subscription(
            address, cameras, kinds, since=since, replay=replay, key=key, silence_s=silence_s, queue=queue
        ) as subscription:
            yield from subscription.items(timeout_s)

    return items()


class Subscription:
    """Connection to a publisher, which returns messages, and reports about lost messages and other problems.

    Use the subscription as a context manager, or call `close`. A subscription is not thread-safe.
    """

    def __init__(
        self,
        address: str,
        cameras: Sequence[str] | None = None,
        kinds: Sequence[Kind] = ("detections",),
        *,
        since: Since | None = None,
        replay: str | None = None,
        key: Path | str | KeyPair | None = None,
        silence_s: float = 5.0,
        queue: int = 1000,
        keepalive_s: int = 5,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Connect to a publisher. `subscribe` describes the other arguments.

        Args:
            keepalive_s: interval in seconds of the probes on an idle connection.
            clock: function that returns the monotonic time in ns.

        Raises:
            ConfigError: an argument is invalid, the key cannot be used, or connecting to the address fails.
        """
        _check_arguments(address, cameras, kinds, since, replay)
        keys = key if key is None or isinstance(key, KeyPair) else read_key(Path(key), client=True)
        self.address = address
        self._topics = _topics(cameras, kinds)
        self._event_cameras = None if cameras is None else frozenset(cameras)
        self._silence_ns = int(silence_s * 1e9)
        self._clock = clock
        self._connected = False
        self._sequences = _Sequences()
        self._problems = _Problems(address, clock)
        self._items: deque[Item] = deque()
        self._times = _Times(clock(), clock())
        self._context = zmq.Context()
        sock = _socket(self._context, address, keepalive_s, queue, keys)
        self._guard = ReceiveGuard(self._context)
        limit_bytes = 2 * MAX_MESSAGE_BYTES + queue * _WAITING_BYTES
        self._guarded = self._guard.guard(sock, limit_bytes, zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._poller = zmq.Poller()
        self._poller.register(sock, zmq.POLLIN)
        self._poller.register(self._guarded.events, zmq.POLLIN)
        self._replay: ReplayClient | None = None
        if since is not None:
            recovery = GapRecovery(*_number_and_journal(since), clock=clock)
            self._replay = ReplayClient(recovery, self._context, keepalive_s, replay, guard=self._guard, keys=keys)
            self._poller.register(self._replay.socket, zmq.POLLIN)
            self._poller.register(self._replay.guarded.events, zmq.POLLIN)
        self._guard.start()
        for topic in self._topics if since is None else self._topics | {EVENTS, _NODE_STATUS}:
            sock.subscribe(topic)
        try:
            sock.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"address: cannot connect to {address}: {error}", code="address-form") from error

    def items(self, timeout_s: float | None = None) -> Iterator[Item]:
        """Yield messages and reports without end.

        Raises:
            TimeoutError: no message arrived for `timeout_s` seconds. If `timeout_s` is None, there is no limit.
            MessageError: `since` is given, but the publisher does not store events for requests.
            Closed: `close` was called.
        """
        while True:
            left_s = None if timeout_s is None else timeout_s - (self._clock() - self._times.message_ns) / 1e9
            item = self.receive(None if left_s is None else max(0.0, left_s))
            if item is not None:
                yield item
            elif left_s is not None and left_s <= 0:
                raise TimeoutError(f"no message from {self.address} for {timeout_s:g} s")

    def receive(self, timeout_s: float | None = None) -> Item | None:
        """Return the next message or report. Return None if nothing arrives within `timeout_s` seconds.

        If `timeout_s` is None, wait until a message or report arrives.

        Raises:
            MessageError: `since` is given, but the publisher does not store events for requests.
            Closed: `close` was called.
        """
        deadline_ns = None if timeout_s is None else self._clock() + int(timeout_s * 1e9)
        wait_ns = 0  # check at least once
        while True:
            self._poll(wait_ns)
            if self._items:
                return self._items.popleft()
            now_ns = self._clock()
            wait_ns = self._times.silence_ns + self._silence_ns - now_ns
            if wait_ns <= 0:
                self._times.silence_ns = now_ns
                return Silence(self.address, (now_ns - self._times.message_ns) / 1e9, self._connected)
            if self._replay is not None:
                wait_ns = min(wait_ns, max(_RETRY_NS, self._replay.recovery.wait_ns()))
            if deadline_ns is not None:
                if now_ns >= deadline_ns:
                    return None
                wait_ns = min(wait_ns, deadline_ns - now_ns)

    @property
    def problems(self) -> int:
        """Number of unusable messages and failed requests since the start."""
        return self._problems.count

    def close(self) -> None:
        """Disconnect. Idempotent."""
        if not self._context.closed:
            self._guarded.socket.disable_monitor()
            if self._replay is not None:
                self._replay.socket.disable_monitor()
            self._guard.close()
            self._context.destroy(linger=0)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _poll(self, wait_ns: int) -> None:
        if self._context.closed:
            raise Closed("the subscription is closed")
        if self._items:
            return
        if self._replay is not None:
            self._replay.request_if_due()
        ready = dict(self._poller.poll(-(-wait_ns // 1_000_000)))  # rounded up, because 0 would not wait
        if self._guarded.events in ready:
            event = self._event_of(self._guarded.events)
            self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self._replay is not None and self._connected:
                self._replay.recovery.hurry()
        if self._replay is not None and self._replay.guarded.events in ready:
            self._event_of(self._replay.guarded.events)
        if self._replay is not None and self._replay.socket in ready:
            self._times.silence_ns = self._clock()
            with self._surviving():
                self._take_events(self._replay.receive())
        if self._guarded.socket in ready:
            self._guarded.read += 1
            with self._surviving():
                self._take(self._guarded.socket.recv_multipart())

    def _event_of(self, events: zmq.Socket[bytes]) -> int:
        """Return the next ZeroMQ event of a connection to the publisher.

        If the `ReceiveGuard` has closed the connection, because too much data waited, queue a `Problem`, and return a
        disconnection event.
        """
        parts = events.recv_multipart()
        if parts != [CUT]:
            return int(parse_monitor_message(parts)["event"])
        hint = "check that the publisher is `vision run`, and that `queue` is not too large for its messages"
        text = "a message was too large, or too many messages waited; the connection was closed, and is opened again"
        self._items.extend(self._problems.add(MessageError(text, hint=hint, code="message-too-large")))
        return int(zmq.EVENT_DISCONNECTED)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Return a context manager that queues a `Problem` instead of raising a `MessageError` from its block.

        If the publisher does not store events for requests, the context manager raises the error.
        """
        try:
            yield
        except MessageError as error:
            if error.code == _FATAL:
                raise
            self._items.extend(self._problems.add(error))

    def _take(self, parts: list[bytes]) -> None:
        if len(parts) < 2:
            text = f"expected messages of two parts, topic and payload, got {len(parts)} from {self.address}"
            raise MessageError(text, hint="check that the publisher is `vision run`", code="message-parts")
        topic = parts[0].decode(errors="replace")
        # ZeroMQ compares prefixes: a subscriber to detections/gate also receives detections/gate2.
        subscribed = bool({topic, f"{topic.partition('/')[0]}/"} & self._topics)
        if not subscribed and (self._replay is None or not topic.startswith((EVENTS, _NODE_STATUS))):
            return
        message = codec.decode(topic, parts[1])
        codec.check_values(topic, message)
        self._times.silence_ns = self._clock()
        if self._replay is not None and isinstance(message, NodeStatusMessage):
            self._replay.learn_address(message, self.address)
        if self._replay is not None and isinstance(message, EventMessage):
            self._items.extend(self._sequences.check_instance(message))
            self._take_events(self._replay.recovery.live(message))
        elif subscribed:
            self._times.message_ns = self._times.silence_ns
            self._items.extend(self._sequences.check(topic, message))
        else:
            self._items.extend(self._sequences.check_instance(message))

    def _take_events(self, items: Iterable[EventMessage | Gap | NewJournal]) -> None:
        """Queue the events of the subscribed cameras, and all reports."""
        for item in items:
            if not isinstance(item, EventMessage) or self._event_cameras is None or item.camera in self._event_cameras:
                self._times.message_ns = self._clock()
                self._items.append(item)


@dataclass(slots=True)
class _Times:
    message_ns: int  # time of the last message
    silence_ns: int  # time of the last message or report of silence


class _Problems:
    """Counter of unusable messages and failed requests. It limits how often a `Problem` is reported."""

    def __init__(self, address: str, clock: Callable[[], int]) -> None:
        self.count = 0
        self._address = address
        self._clock = clock
        self._reported = 0  # number of problems up to the last report
        self._report_at_ns = clock()

    def add(self, error: MessageError) -> Iterator[Problem]:
        """Count a problem. Yield a `Problem`, unless the previous one was yielded less than a second ago."""
        self.count += 1
        now_ns = self._clock()
        if now_ns >= self._report_at_ns:
            yield Problem(self._address, str(error.args[0]), error.code, self.count - self._reported)
            self._reported, self._report_at_ns = self.count, now_ns + _PROBLEM_INTERVAL_NS


class _Sequences:
    """Received sequence numbers: the instance of each node, and the newest number of each of its topics."""

    def __init__(self) -> None:
        self._instances: dict[str, str] = {}  # instance by node
        self._last: dict[str, dict[str, int]] = {}  # last number by node and topic

    def check(self, topic: str, message: AnyMessage) -> Iterator[AnyMessage | Gap | Restart]:
        """Yield reports of a restart and of lost messages, followed by the message. Do not yield a repeated message."""
        yield from self.check_instance(message)
        last = self._last[message.node]
        expected = last.get(topic, message.seq - 1) + 1
        if message.seq < expected:
            return
        if message.seq > expected:
            yield Gap(topic, expected, message.seq)
        last[topic] = message.seq
        _forget_oldest(last)
        yield message

    def check_instance(self, message: AnyMessage) -> Iterator[Restart]:
        """Yield a report if the publisher of the message has restarted."""
        old_instance = self._instances.get(message.node)
        if old_instance != message.instance:
            if old_instance is not None:
                yield Restart(message.node, old_instance, message.instance)
            self._instances[message.node] = message.instance
            self._last[message.node] = {}
            _forget_oldest(self._instances)
            _forget_oldest(self._last)


def _forget_oldest(known: dict[str, Any]) -> None:
    if len(known) > _MAX_TOPICS:
        del known[next(iter(known))]


def _socket(
    context: zmq.Context[zmq.Socket[bytes]], address: str, keepalive_s: int, queue: int, keys: KeyPair | None
) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.SUB)
    set_common_options(socket, address, keepalive_s)
    if keys is not None:
        keys.use_as_client(socket)
    socket.setsockopt(zmq.RCVHWM, queue)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.RCVBUF, _RECEIVE_BUFFER_BYTES)
    return socket


def _check_arguments(
    address: str, cameras: Sequence[str] | None, kinds: Sequence[Kind], since: Since | None, replay: str | None
) -> None:
    check_address(address)
    _topics(cameras, kinds)
    if replay is not None:
        check_address(replay)
        if since is None:
            raise ConfigError("replay: expected `since` too", hint="since=0 requests all stored events", code="since")
    if since is not None:
        number, _ = _number_and_journal(since)
        if "events" not in kinds:
            raise ConfigError(f"since: expected events among the kinds, got {', '.join(kinds)}", code="since")
        if number < 0:
            raise ConfigError(f"since: expected the number of an event, or 0, got {number}", code="since")


def _number_and_journal(since: Since) -> tuple[int, str | None]:
    return (since, None) if isinstance(since, int) else (since[1], since[0])


def _topics(cameras: Sequence[str] | None, kinds: Sequence[Kind]) -> frozenset[str]:
    """Return the topics to subscribe to. If `cameras` is None, each topic is a kind followed by a slash.

    If `cameras` is not None and `kinds` contains ``status``, the topics include the status of the node.

    Raises:
        ConfigError: an argument is not a list of names, is empty, or contains an unknown kind.
    """
    for name, values in (("cameras", cameras), ("kinds", kinds)):
        if isinstance(values, str):
            text = f"{name}: expected a list of names, got the text {values!r}"
            raise ConfigError(text, hint=f"write [{values!r}]", code=name)
    if not kinds or not set(kinds) <= set(KINDS):
        raise ConfigError(
            f"kinds: expected one or more of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}", code="kinds"
        )
    if cameras is None:
        return frozenset(f"{kind}/" for kind in kinds)
    if not cameras:
        text = "cameras: expected at least one name, got none"
        raise ConfigError(text, hint="omit `cameras` to receive all cameras", code="cameras")
    topics = {f"{kind}/{camera}" for kind in kinds for camera in cameras}
    return frozenset(topics | {_NODE_STATUS} if "status" in kinds else topics)


@dataclass(frozen=True, slots=True)
class Latency:
    """The age of a frame in milliseconds, and the clock that measured the age."""

    ms: float
    clock: Literal["monotonic", "utc"]


def latency(message: DetectionsMessage, now_ns: int | None = None, now_utc_ns: int | None = None) -> Latency:
    """Return the age of a frame: the time in milliseconds from its capture to the current time.

    On the publisher's machine, the monotonic clock measures the age. On other machines, the age is a difference of UTC
    times, so its accuracy depends on the synchronization of the clocks of both machines.

    Args:
        message: message about the frame.
        now_ns: current monotonic time in nanoseconds. If None, read the clock.
        now_utc_ns: current UTC time in nanoseconds since 1970. If None, read the clock.
    """
    if message.boot and message.boot == codec.boot_id():
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        return Latency((now_ns - message.captured_monotonic_ns) / 1e6, "monotonic")
    now_utc_ns = time.time_ns() if now_utc_ns is None else now_utc_ns
    return Latency((now_utc_ns - message.captured_utc_ns) / 1e6, "utc")


def read_recording(path: Path | str) -> Iterator[DetectionsMessage]:
    """Yield the messages of a file that ``vision run --record`` wrote.

    Raises:
        MessageError: a line is not a valid message. The error contains the line number.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield codec.decode_as(DetectionsMessage, line, f"{path}, line {number}")
