"""Publisher of results, events, and status over ZeroMQ, and recorder of results in a file.

A lock guards the socket: ZeroMQ sockets may move between threads, but two threads must not use one at the same time. A
thread that owns the socket and reads from a queue would add a thread switch to each message (50 to 100 µs while another
thread holds the GIL) and a second queue with its own limit. A send under the lock never blocks, because a PUB socket
drops messages for which a slow subscriber has no room. So the results thread and the main thread send directly. The
thread of the publisher sleeps until a subscriber joins.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import zmq

from vision.errors import Closed, from_os_error
from vision.messaging import codec
from vision.messaging.curve import KeyFolder
from vision.messaging.exposed_port import PortLimits
from vision.messaging.replay_server import ReplayServer
from vision.messaging.schema import Encoding, EventMessage, Header, MaskFormat, StatusReport
from vision.messaging.sockets import BoundSocket
from vision.state.events import EventLog
from vision.types import Result

log = logging.getLogger(__name__)

_REPEAT_INTERVAL_S: Final = 0.05  # subscribers that join at the same time share a repetition
_SEND_BUFFER_BYTES: Final = 256 * 1024
"""Without a limit, Linux extends the buffer to megabytes, which hold minutes of outdated messages."""

_LARGEST_SUBSCRIPTION_BYTES: Final = 4096
_FILE_MODE: Final = 0o640  # results describe people, so only the user and the group of the program can read them
_QUEUED_SUBSCRIPTIONS: Final = 10
"""Maximum number of unread subscriptions of one subscriber. ZeroMQ reads all of them in each call that sends."""

_JOINS_PER_SEND: Final = 20
"""Maximum number of subscriptions that a call which sends reads. The thread of the publisher reads the others."""

# Plain integers, because an operation on an enumeration takes a microsecond.
_FIRST_PART: Final = int(zmq.SNDMORE | zmq.NOBLOCK)
_LAST_PART: Final = int(zmq.NOBLOCK)
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)


class Publisher:
    """Sends results, events, and status. With a recorder or an event log, only one thread may publish results.

    `address` is the bound address. `replay_address` is the address for requests of missed events, or None.
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
        linger_s: float = 0.2,
        keepalive_s: int = 10,
        max_subscribers: int | None = None,
        keys: KeyFolder | None = None,
    ) -> None:
        """Bind the socket and serve subscribers.

        Args:
            bind: address such as ``tcp://127.0.0.1:5555`` or ``ipc:///run/vision/out``. Port ``*`` is any free port.
            node: name of this machine in messages.
            class_names: names of the classes by id. An id without a name is published as ``class ID``.
            encoding: encoding of the messages. Recordings and stored events are always JSON.
            masks: format of the masks of objects. Without OpenCV, it is always `rle`.
            queue: maximum number of messages that wait for one slow subscriber, which loses further messages.
            recorder: recorder that also receives every detections message. The caller closes the recorder.
            event_log: log that stores each event before it is sent. The caller closes its database after the publisher.
            replay: address, in the form of `bind`, where subscribers request events of `event_log`. If `replay` or
                `event_log` is None, subscribers cannot request events.
            linger_s: maximum time in seconds that `close` waits for messages to be sent.
            keepalive_s: time in seconds after which an idle connection is probed; three lost probes close it.
            max_subscribers: maximum number of connections to a TCP port. A separate process accepts them, and limits
                what they send. If None, ZeroMQ accepts connections without limits.
            keys: keys for CURVE. If None, messages are not encrypted, and every subscriber can connect.

        Raises:
            ConfigError: an address cannot be bound, for example because its folder does not exist.
            Unavailable: an address is in use, or not an address of this machine at present.
        """
        self.numbering = codec.Numbering(node)
        self.replay_address: str | None = None
        self._replay: ReplayServer | None = None
        self._class_names = tuple(class_names)
        self._encoding = encoding
        self._masks = masks
        self._recorder = recorder
        self._event_log = event_log
        with contextlib.ExitStack() as opened:
            if event_log is not None and replay is not None:
                server = ReplayServer(
                    replay,
                    event_log,
                    node=node,
                    encoding=encoding,
                    keepalive_s=keepalive_s,
                    max_clients=max_subscribers,
                    keys=keys,
                )
                opened.callback(server.close)
                self.replay_address = server.address
                self._replay = server
            self.socket = StatusSocket(
                bind,
                queue=queue,
                linger_s=linger_s,
                keepalive_s=keepalive_s,
                max_subscribers=max_subscribers,
                keys=keys,
            )
            opened.callback(self.socket.close)
            self.address = self.socket.address
            self._opened = opened.pop_all()

    def counters(self) -> dict[str, int]:
        """Return the counters of the event log and of the ports by name."""
        events = {} if self._event_log is None else self._event_log.counters()
        ports = [("publish", self.socket), ("replay", self._replay)]
        return events | {
            f"{name}.{key}": value for name, port in ports if port is not None for key, value in port.counters().items()
        }

    def publish(self, result: Result) -> None:
        """Send a result and its events without waiting for subscribers. Then record the result, if there is a recorder.

        Raises:
            Closed: the publisher or the recorder is closed.
        """
        topic = f"detections/{result.meta.camera_id}"
        with self.socket.lock:
            header = self.numbering.header(topic)
            message = codec.detections(header, result, self._class_names, time.monotonic_ns(), self._masks)
            payload = codec.encode(message, self._encoding)
            self.socket.send(topic, payload)
        if result.events:
            self._publish_events(result)
        if self._recorder is not None:
            self._recorder.write(payload if self._encoding == "json" else codec.encode(message))

    def _publish_events(self, result: Result) -> None:
        """Store the events of a result, then send them, so that every sent event can be requested again."""
        with self.socket.lock:
            headers = [self.numbering.header(f"events/{event.camera_id}") for event in result.events]
        events = self._store_events(headers, result) or [  # without the lock, because disks are slow
            codec.event(header, event, result) for header, event in zip(headers, result.events, strict=True)
        ]
        payloads = [codec.encode(event, self._encoding) for event in events]
        with self.socket.lock:
            for event, payload in zip(events, payloads, strict=True):
                self.socket.send(event.topic, payload)

    def _store_events(self, headers: list[Header], result: Result) -> list[EventMessage]:
        """Store the events of a result, and return their numbered messages; empty if events are not stored."""
        if self._event_log is None:
            return []
        first, journal = self._event_log.newest + 1, self._event_log.journal
        events = [
            codec.event(header, event, result, journal=journal, number=number)
            for number, (header, event) in enumerate(zip(headers, result.events, strict=True), first)
        ]
        return events if self._event_log.append([codec.encode(event) for event in events]) else []

    def publish_status(self, report: StatusReport) -> None:
        """Send a status or counts now, and again to each later subscriber. Raise `Closed` after `close`."""
        topic = report.topic
        with self.socket.lock:
            message = codec.status(self.numbering.header(topic), report, self.replay_address)
            self.socket.send_status(topic, codec.encode(message, self._encoding))

    def report(self, report: Iterable[StatusReport]) -> None:
        """Send each part of a report as `publish_status` does."""
        for part in report:
            self.publish_status(part)

    def close(self) -> None:
        """Free the address, and wait up to `linger_s` for messages to be sent. Idempotent."""
        self._opened.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StatusSocket:
    """A bound XPUB socket that keeps the last status of each topic and sends it to new subscribers.

    Callers of `send` and `send_status` must hold `lock`.
    """

    def __init__(
        self,
        bind: str,
        *,
        queue: int,
        linger_s: float,
        keepalive_s: int,
        max_subscribers: int | None,
        keys: KeyFolder | None,
    ) -> None:
        """Bind the socket and start the thread. See `Publisher` for arguments and errors."""
        options = {
            zmq.XPUB_VERBOSE: 1,  # report every subscription, not only the first to a topic
            zmq.SNDHWM: queue,
            zmq.RCVHWM: _QUEUED_SUBSCRIPTIONS,
            zmq.SNDBUF: _SEND_BUFFER_BYTES,
            zmq.MAXMSGSIZE: _LARGEST_SUBSCRIPTION_BYTES,
        }
        limits = PortLimits(max_subscribers, subscribes=True) if max_subscribers else None
        self._bound = BoundSocket(
            zmq.XPUB, bind, key="publish.bind", keepalive_s=keepalive_s, options=options, limits=limits, keys=keys
        )
        self._socket = self._bound.zmq
        self.address = self._bound.address
        self.lock = threading.Lock()
        self.joins = 0  # number of subscriptions since the start
        self._linger_s = linger_s
        self._closed = False
        self._last_status: dict[str, bytes] = {}
        self._joined: set[bytes] = set()  # topic prefixes that were subscribed to since the last repetition
        self._repeat_at_s = 0.0
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
        # Without this check, 1 of 300 subscribers that joined while two threads published was never served.
        if self._receive_joins():
            os.eventfd_write(self._wake, 1)

    def send_status(self, topic: str, payload: bytes) -> None:
        """Send a message now, and again to each later subscriber until a newer message of the topic is sent."""
        self._last_status[topic] = payload
        self.send(topic, payload)

    def close(self) -> None:
        """Free the address, and wait up to `linger_s` for messages to be sent. Idempotent."""
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
        """Receive messages of subscribers. Return True if one is a subscription, or if there are more messages."""
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
        """Send the last status of each topic to its new subscribers.

        Waiting for the descriptor of a ZeroMQ socket needs no lock; everything else does.
        """
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        wait_ms: float | None = None
        while True:
            poll.poll(wait_ms)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            with self.lock:
                if self._closed:
                    return
                more = self._receive_joins()
                wait_ms = 1 if more else self._repeat_status()

    def _repeat_status(self) -> float | None:
        """Send the last status of each topic to new subscribers, if due.

        Return the time in ms until the repetition is due; None if no subscriber waits for one.
        """
        if not self._joined:
            return None
        now_s = time.monotonic()
        if now_s < self._repeat_at_s:
            return (self._repeat_at_s - now_s) * 1000 + 1
        self._repeat_at_s = now_s + _REPEAT_INTERVAL_S
        prefixes, self._joined = tuple(self._joined), set()
        for topic, payload in self._last_status.items():
            if topic.encode().startswith(prefixes):
                self._socket.send_multipart([topic.encode(), payload], zmq.NOBLOCK)
        return None


class Recorder:
    """Writes messages to a file, each as one line of JSON. It is not thread-safe.

    Each line is one `write` call, so a killed process leaves no incomplete line. A call takes only 3 µs.
    A file with content is never overwritten or extended: it is renamed, so that a service can restart. The new name
    contains the time of its last line: ``results-20261129T160500Z.jsonl``.
    When the disk is full, publishing continues: the error is logged once, lost lines are counted, and recording resumes
    when space is available again.
    """

    def __init__(self, path: Path | str) -> None:
        """Create the file. Rename an existing file with content.

        Raises:
            ConfigError: the file cannot be created.
            Unavailable: the file cannot be created at present, for example because the disk is full.
        """
        self.written = 0
        self.lost = 0
        self._path = Path(path)
        try:
            _rotate(self._path)
            self._file = open(self._path, "ab", buffering=0, opener=_open_private)  # noqa: SIM115 - `close` closes it
        except OSError as error:
            raise from_os_error(f"--record: cannot write {path}", error, code="recording") from error
        self._is_regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)

    def write(self, payload: bytes) -> None:
        """Append a JSON message as a line. If writing fails, count the line as lost. Raise `Closed` after `close`."""
        if self._file.closed:
            raise Closed("the recorder is closed")
        line, sent = payload + b"\n", 0
        try:
            while sent < len(line):
                sent += self._file.write(line[sent:])
            self.written += 1
        except OSError as error:
            if sent and self._is_regular:
                os.ftruncate(self._file.fileno(), os.fstat(self._file.fileno()).st_size - sent)
            self.lost += 1
            if self.lost == 1:
                text = "cannot record to %s: %s; publishing continues, and recording is tried again with each result"
                log.error(text, self._path, error.strerror)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if not self._file.closed and self.lost:
            log.error("%s lacks %d of %d results", self._path, self.lost, self.lost + self.written)
        self._file.close()


def _rotate(path: Path) -> None:
    """Rename a recording with content, so that a new recording can have its name."""
    if not path.is_file() or not path.stat().st_size:
        return
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(path.stat().st_mtime))
    names = (f"{path.stem}-{moment}{suffix}{path.suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    free = next(name for name in names if not path.with_name(name).exists())
    path.rename(path.with_name(free))
    log.info("--record: the existing recording is now %s", path.with_name(free))


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, _FILE_MODE)
