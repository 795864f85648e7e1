"""Publisher of results, events, and status over ZeroMQ.

The results thread and the main thread send directly. A lock guards the socket, because two threads must not use a
ZeroMQ socket at the same time. A thread that holds the lock never blocks, because a PUB socket drops the messages for
which the queue of a slow subscriber has no room.

If a thread owned the socket and read messages from a queue, each message would need a thread switch (50 to 100 µs while
another thread holds the GIL), and the queue would need its own limit. The thread of the publisher therefore sends no
results. It sleeps until a subscriber joins.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol, cast

import msgspec
import zmq

from vision.config import AppConfig
from vision.messaging import codec
from vision.messaging.curve import KeyFolder
from vision.messaging.exposed_port import PortLimits
from vision.messaging.node_events import NodeEvents, NodeEventSettings
from vision.messaging.open_states import OpenStates, decoded, end_of
from vision.messaging.proxy import Proxy
from vision.messaging.recorder import Recorder
from vision.messaging.replay_server import ReplayServer
from vision.messaging.schema import (
    REMOVED,
    CameraReport,
    CountsReport,
    Encoding,
    EventMessage,
    MaskFormat,
    NodeReport,
    ObjectMessage,
    SinkStatus,
    StatusReport,
)
from vision.messaging.sockets import BoundSocket
from vision.messaging.status_socket import StatusSocket
from vision.state.events import EventLog, held_statements, state_statements
from vision.types import Result

if TYPE_CHECKING:
    from vision.state.database import Statement

log = logging.getLogger(__name__)

_SEND_BUFFER_BYTES: Final = 256 * 1024
"""Size of a connection's send buffer.

Without a limit, Linux extends the buffer to megabytes, which hold minutes of old messages.
"""

_LARGEST_SUBSCRIPTION_BYTES: Final = 4096
_QUEUED_SUBSCRIPTIONS: Final = 10
"""Maximum number of unread subscriptions of one subscriber. In each call that sends, ZeroMQ reads all subscriptions."""


class MessageSocket(Protocol):
    """A socket that sends messages. Callers of `send` must hold `lock`."""

    lock: threading.Lock

    def send(self, topic: str, payload: bytes) -> None:
        """Send a message without blocking. Subscribers that are too slow lose the message."""


class RecordsResults(Protocol):
    """An object that records every detections message, in JSON."""

    def write(self, payload: bytes) -> None:
        """Record a message."""


class DetectionsPublisher:
    """Publisher that numbers, encodes, sends, and records the detections message of each result."""

    def __init__(
        self,
        socket: MessageSocket,
        numbering: codec.Numbering,
        *,
        class_names: Sequence[str],
        encoding: Encoding,
        masks: MaskFormat,
        recorder: RecordsResults | None,
    ) -> None:
        """Create the publisher. `Publisher` describes the keyword arguments."""
        self._socket = socket
        self._numbering = numbering
        self.class_names = tuple(class_names)
        self._encoding: Encoding = encoding
        self.masks: MaskFormat = masks
        self._recorder = recorder

    def publish(self, result: Result) -> None:
        """Send the detections of a result without waiting for subscribers. If there is a recorder, record the message.

        Raise `Closed` if the socket or the recorder is closed.
        """
        topic = f"detections/{result.meta.camera_id}"
        with self._socket.lock:
            header = self._numbering.header(topic)
            message = codec.detections(header, result, self.class_names, time.monotonic_ns(), self.masks)
            payload = codec.encode(message, self._encoding)
            self._socket.send(topic, payload)
        if self._recorder is not None:
            self._recorder.write(payload if self._encoding == "json" else codec.encode(message))


class EventGate(Protocol):
    """An object that can delay events, for example until a language model has checked them. It must not block."""

    def admit(self, events: Sequence[EventMessage]) -> Sequence[EventMessage]:
        """Return the events to publish immediately. The gate holds or drops the other events."""

    def waiting(self, events: Sequence[EventMessage]) -> Sequence[EventMessage]:
        """Return those of `events` that the gate holds, and that must not be lost if the program is killed."""

    def dropped(self) -> Sequence[str]:
        """Return the ids of the events that the gate has dropped since the previous call.

        These events are never published.
        """

    def sent(self, events: Sequence[EventMessage]) -> None:
        """Record the sequence numbers of events that were sent, so that later amendments can refer to these events."""

    def worker_ended(self, cameras: Collection[str]) -> None:
        """Abandon the questions about events of these cameras that their result worker had not sent when it ended."""


class EventPublisher:
    """Publisher that numbers, stores, and sends events.

    It stores an event before it sends the event, so that subscribers can request the event if they miss it.
    """

    def __init__(
        self,
        socket: MessageSocket,
        numbering: codec.Numbering,
        encoding: Encoding,
        event_log: EventLog | None,
        gate: EventGate | None,
    ) -> None:
        """Create the publisher. `Publisher` describes the other arguments."""
        self._gate = gate
        self._socket = socket
        self._numbering = numbering
        self._encoding: Encoding = encoding
        self._event_log = event_log
        self._lock = threading.Lock()  # results and reports of the status come from different threads
        self._open = OpenStates()
        self._published = OpenStates()  # without those that the gate holds back
        self._former: list[EventMessage] = []
        self._held: set[str] = set()  # ids of the events that are stored because they wait
        self._gone: set[str] = set()  # those that wait no more, until they are deleted
        if event_log is not None:
            held = list(decoded(event_log.held()))
            self._held = {event.id for event in held if event.id is not None}
            self._former = [*map(end_of, decoded(event_log.open_states())), *_restored(held)]

    def publish_admitted(
        self, events: Sequence[EventMessage], also: Sequence[Statement], *, counters: bool = True
    ) -> bool:
        """Pass events to the gate. Store and send the events that the gate admits, as `publish` does.

        This method has the arguments, the result, and the errors of `publish`.
        """
        with self._lock:  # also while the gate admits, so that no thread publishes an event before it is stored as held
            self._open.follow(events)
            if self._gate is None:
                return self._publish(events, also, counters=counters)
            admitted = self._gate.admit(events)
            held = {each.id: codec.encode(each) for each in self._gate.waiting(events) if each.id is not None}
            if self._event_log is not None:
                self._held |= held.keys()
            return self._publish(admitted, [*also, *held_statements(held)], counters=counters)

    def view_fault(self, camera: str) -> str | None:
        """Return the reported fault of a camera's view, or None if no fault was reported or the fault has ended."""
        with self._lock:
            return self._open.view_fault(camera)

    def worker_ended(self, cameras: Collection[str]) -> None:
        """Publish an event for the end of each open state of these cameras, because their result worker has ended.

        Then inform the gate, which can still hold events that report the start of a state.
        """
        self.end_states(cameras)
        if self._gate is not None:
            self._gate.worker_ended(cameras)

    def end_states(self, cameras: Collection[str] | None) -> None:
        """Publish an end event for each open state, such as a crowded zone, of these cameras (None: all cameras)."""
        with self._lock:
            ends = self._open.ends(cameras)
        if ends:
            self.publish_admitted(ends, (), counters=False)

    def publish(self, events: Sequence[EventMessage], also: Sequence[Statement] = (), *, counters: bool = True) -> bool:
        """Store and send events that have no number yet. Run the statements in `also` in the same transaction.

        If `counters` is True, also store the counters that wait in memory for a transaction. Return True if the events
        were stored. Otherwise, the events are sent without a number in the journal, and the statements are not run.
        The method is thread-safe.

        Before its own work, the first call ends the states that a previous process left open, and publishes the events
        that the gate of that process held.

        Raises:
            Closed: the socket or the database of the event log is closed.
            TypeError: the `data` of an event has unsupported types.
        """
        with self._lock:
            return self._publish(events, also, counters=counters)

    def _publish(self, events: Sequence[EventMessage], also: Sequence[Statement], *, counters: bool) -> bool:
        events, self._former = [*self._former, *events], []
        with self._socket.lock:
            numbered = [msgspec.structs.replace(each, **self._numbering.header(each.topic)) for each in events]
        stored = self._store(numbered, also, counters=counters)  # without the lock, because disks are slow
        numbered = numbered if stored is None else stored
        payloads = [codec.encode(event, self._encoding) for event in numbered]
        with self._socket.lock:
            for event, payload in zip(numbered, payloads, strict=True):
                self._socket.send(event.topic, payload)
        if self._gate is not None:
            self._gate.sent(numbered)
        return stored is not None

    def _store(
        self, events: Sequence[EventMessage], also: Sequence[Statement], *, counters: bool
    ) -> list[EventMessage] | None:
        """Store events, and return them with their numbers in the journal. Return None if events are not stored."""
        dropped = [] if self._gate is None else self._gate.dropped()
        if self._event_log is None:
            return None
        first, journal = self._event_log.newest + 1, self._event_log.journal
        stored = [
            msgspec.structs.replace(event, journal=journal, number=number) for number, event in enumerate(events, first)
        ]
        payloads = [codec.encode(event) for event in stored]
        changed = {
            state: None if start is None else codec.encode(start)
            for state, start in self._published.follow(stored).items()
        }
        self._gone |= self._held.intersection([*dropped, *(event.id for event in stored if event.id is not None)])
        statements = [*also, *state_statements(changed), *held_statements(dict.fromkeys(self._gone))]
        if not self._event_log.append(payloads, statements, counters=counters):
            return None
        self._held -= self._gone
        self._gone.clear()
        return stored


def _restored(held: Sequence[EventMessage]) -> Iterator[EventMessage]:
    """Yield the events that the gate of a killed process held. After the start of a state, also yield its end."""
    for event in held:
        yield event
        if event.data.get("phase") == "begin":
            yield end_of(event)


class Publisher:
    """Publisher of results, events, and status. With a recorder or an event log, only one thread may publish results.

    Attributes:
        address: the bound address.
        internal_address: address for other processes of this user.
        replay_address: address to which subscribers send requests for missed events, or None if they cannot request
            events.
    """

    def __init__(
        self,
        bind: str,
        *,
        node: str,
        class_names: Sequence[str] = (),
        encoding: Encoding = "json",
        masks: MaskFormat = "polygon",
        queue: int = 1000,
        recorder: Recorder | None = None,
        event_log: EventLog | None = None,
        replay: str | None = None,
        has_sinks: bool = False,
        linger_s: float = 0.2,
        keepalive_s: int = 10,
        max_subscribers: int | None = None,
        keys: KeyFolder | None = None,
        proxy: bool = False,
        node_events: NodeEvents | None = None,
        gate: EventGate | None = None,
    ) -> None:
        """Bind the socket and serve subscribers.

        Args:
            bind: address such as ``tcp://127.0.0.1:5555`` or ``ipc:///run/vision/out``. Port ``*`` is any free port.
            node: name of this machine in messages.
            class_names: names of the classes by id. An id without a name is published as ``class ID``.
            encoding: encoding of the messages. Recordings and stored events are always JSON.
            masks: format of the masks of objects. Without OpenCV, the format is always `rle`.
            queue: maximum number of messages that wait for one slow subscriber, which loses further messages.
            recorder: recorder that also receives every detections message. The caller closes the recorder.
            event_log: log that stores each event before it is sent. The caller closes its database after the publisher.
            replay: address, in the form of `bind`, where subscribers request events of `event_log`. If `replay` or
                `event_log` is None, subscribers cannot request events.
            has_sinks: if True, processes of this user can request events even if `replay` is None.
            linger_s: maximum time in seconds that `close` waits for messages to be sent.
            keepalive_s: time in seconds after which an idle connection is probed. Three lost probes close the
                connection.
            max_subscribers: maximum number of connections. A separate process accepts these connections,
                and limits what clients send. If None, ZeroMQ accepts connections without limits.
            keys: keys for CURVE. If None, messages are not encrypted, and every subscriber can connect.
            proxy: if True, other processes can also send messages, through `self.proxy`.
            node_events: object that derives events of the program and its cameras from reports. None means no such
                events.
            gate: object that decides when the events of results are published. None means that they are published
                immediately.

        Raises:
            ConfigError: an address cannot be bound, for example because its folder does not exist, or the key of the
                publisher cannot be used.
            Unavailable: an address is in use, or not an address of this machine at present.
            Untrusted: other users can write to the folder of `keys` or to a folder above it.
        """
        self.numbering = codec.Numbering(node)
        self.replay_address, self.sinks = cast(str | None, None), cast(Callable[[], Mapping[str, SinkStatus]], dict)
        self._replay, self._more_counters = cast(ReplayServer | None, None), list[Callable[[], Mapping[str, int]]]()
        self._encoding, self._event_log, self._node_events = encoding, event_log, node_events
        with contextlib.ExitStack() as opened:
            if event_log is not None and (replay is not None or has_sinks):
                self._replay = ReplayServer(
                    replay,
                    event_log,
                    node=node,
                    encoding=encoding,
                    keepalive_s=keepalive_s,
                    max_clients=max_subscribers,
                    keys=keys,
                )
                opened.callback(self._replay.close)
                self.replay_address = self._replay.address if replay else None
            bound = _bind(bind, queue=queue, keepalive_s=keepalive_s, max_subscribers=max_subscribers, keys=keys)
            self.proxy = Proxy(bound, queue=queue) if proxy else None
            self.socket = StatusSocket(self.proxy or bound, linger_s=linger_s)
            opened.callback(self.socket.close)
            self.address, self.internal_address = self.socket.address, self.socket.internal_address
            self._opened = opened.pop_all()
        if event_log is not None:
            event_log.carry_counters()
        self._events = EventPublisher(self.socket, self.numbering, encoding, event_log, gate)
        self._detections = DetectionsPublisher(
            self.socket, self.numbering, class_names=class_names, encoding=encoding, masks=masks, recorder=recorder
        )

    def add_counters(self, counters: Callable[[], Mapping[str, int]]) -> None:
        """Make the method `counters` also return the result of a function, such as the counters of a helper process."""
        self._more_counters.append(counters)

    @property
    def internal_replay(self) -> str | None:
        """Address at which processes of this user can request missed events, or None if there is no such address."""
        return None if self._replay is None else self._replay.internal_address

    def counters(self) -> dict[str, int]:
        """Return the counters of the event log, of the ports, and of the functions added by `add_counters`, by name."""
        events = {} if self._event_log is None else self._event_log.counters()
        ports = [("publish", self.socket), ("replay", self._replay)]
        more = {name: value for counters in self._more_counters for name, value in counters().items()}
        return (
            events
            | more
            | {
                f"{name}.{key}": value
                for name, port in ports
                if port is not None
                for key, value in port.counters().items()
            }
        )

    def publish(self, result: Result) -> None:
        """Send a result, its events, and the summaries of the objects that left, without waiting for subscribers.

        If there is a recorder, also record the result.

        Raises:
            Closed: the publisher, the recorder, or the database of the event log is closed.
            TypeError: the `data` of an event has unsupported types.
        """
        self._detections.publish(result)
        if result.events:
            masks = self._detections.masks
            self.publish_events([codec.event(codec.UNNUMBERED, each, result, masks=masks) for each in result.events])
        if result.left:
            names = self._detections.class_names
            self.publish_objects([codec.object_summary(codec.UNNUMBERED, each, result, names) for each in result.left])

    def publish_events(self, events: Sequence[EventMessage], also: Sequence[Statement] = ()) -> bool:
        """Send events, as `EventPublisher.publish` does, except those that the `EventGate` holds back or drops."""
        return self._events.publish_admitted(events, also)

    def end_states(self, cameras: Collection[str] | None = None) -> None:
        """Publish the ends of these cameras' open states, such as a crowded zone, which no other part reports.

        If `cameras` is None, end the states of all cameras. Raise `Closed` after `close`.
        """
        self._events.end_states(cameras)

    def worker_ended(self, cameras: Collection[str]) -> None:
        """Publish the ends of the cameras' open states, such as a crowded zone, because their worker has ended."""
        self._events.worker_ended(cameras)

    def publish_late(self, events: Sequence[EventMessage]) -> None:
        """Send events that were held back, or amendments with later answers, as `EventPublisher.publish` does."""
        self._events.publish(events, counters=False)

    def publish_objects(self, objects: Sequence[ObjectMessage]) -> None:
        """Send summaries of objects that have no number yet. Raise `Closed` after `close`."""
        for each in objects:
            with self.socket.lock:
                numbered = msgspec.structs.replace(each, **self.numbering.header(each.topic))
                self.socket.send(each.topic, codec.encode(numbered, self._encoding))

    def publish_status(self, report: StatusReport) -> None:
        """Send a status or counts, and repeat the message for each new subscriber. Raise `Closed` after `close`.

        The final status of a removed camera, and counts without lines and zones, are not repeated.
        """
        topic, events = report.topic, self._node_events
        disks = events.disks() if events is not None and isinstance(report, NodeReport) else {}
        view_fault = self._events.view_fault(report.camera) if isinstance(report, CameraReport) else None
        with self.socket.lock:
            message = codec.status(
                self.numbering.header(topic), report, self.replay_address, self.sinks(), disks, view_fault=view_fault
            )
            self.socket.send_status(topic, codec.encode(message, self._encoding))
            if isinstance(report, CountsReport) and not (report.lines or report.zones):
                self.socket.forget(topic)
            if isinstance(report, CameraReport) and report.state == REMOVED:
                self.socket.forget(topic)
                self.socket.forget(f"counts/{report.camera}")

    def reconfigure(self, config: AppConfig) -> None:
        """Use a new configuration for program events, and forget the counts of cameras without lines and zones."""
        if self._node_events is not None:
            self._node_events.settings = NodeEventSettings.of(config)
        with self.socket.lock:
            for camera in config.cameras:
                if camera.id not in config.analytics:
                    self.socket.forget(f"counts/{camera.id}")

    def report(self, report: Iterable[StatusReport]) -> None:
        """Send each part of a report, such as the status of a camera, and the events that follow from the report."""
        parts = list(report)
        for part in parts:
            if isinstance(part, CameraReport) and part.state == REMOVED:
                self.end_states([part.camera])
            self.publish_status(part)
        if self._node_events is not None:
            events = [event for part in parts for event in self._node_events.of(part)]
            if events:
                self._events.publish(events, counters=False)

    def close(self) -> None:
        """Free the addresses, and wait up to `linger_s` seconds for messages to be sent. Idempotent."""
        self._opened.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bind(
    bind: str, *, queue: int, keepalive_s: int, max_subscribers: int | None, keys: KeyFolder | None
) -> BoundSocket:
    options = {
        zmq.XPUB_VERBOSE: 1,  # report every subscription, not only the first to a topic
        zmq.SNDHWM: queue,
        zmq.RCVHWM: _QUEUED_SUBSCRIPTIONS,
        zmq.SNDBUF: _SEND_BUFFER_BYTES,
        zmq.MAXMSGSIZE: _LARGEST_SUBSCRIPTION_BYTES,
    }
    limits = PortLimits(max_subscribers, subscribes=True) if max_subscribers else None
    return BoundSocket(
        zmq.XPUB, bind, key="publish.bind", keepalive_s=keepalive_s, options=options, limits=limits, keys=keys
    )
