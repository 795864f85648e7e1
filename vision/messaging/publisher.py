"""`Publisher` sends results, events and status over ZeroMQ. `Recorder` writes results to a file.

===================  ==================================================  ======================================
topic                rate                                                payload (docs/messages.md)
===================  ==================================================  ======================================
detections/<camera>  each inferred frame, also without objects           `vision.messaging.codec.DetectionsMessage`
events/<camera>      when an event occurs                                `vision.messaging.codec.EventMessage`
counts/<camera>      each `status.interval_s`, and to new subscribers    `vision.messaging.codec.CountsMessage`
status/<camera>      each `status.interval_s`, and to new subscribers    `vision.messaging.codec.CameraStatusMessage`
status/node          each `status.interval_s`, and to new subscribers    `vision.messaging.codec.NodeStatusMessage`
===================  ==================================================  ======================================

A lock guards the socket: ZeroMQ sockets may move between threads, but two threads must not use one at the same time. A
thread that owns the socket and reads from a queue would add a thread switch to each message (50 to 100 µs while the GIL
is busy) and a second queue with its own limit. A send under the lock never blocks, because a PUB socket drops messages
for which a slow subscriber has no room. So the results thread and the main thread send directly. The thread of the
publisher sleeps until a subscriber joins.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq

from vision.errors import Closed, ConfigError
from vision.messaging import codec
from vision.messaging.replay_server import ReplayServer
from vision.messaging.sockets import bound_socket, socket_file
from vision.state.events import EventLog
from vision.types import Result

log = logging.getLogger(__name__)

_REPLAY_INTERVAL_S = 0.05  # subscribers that join together share one replay; one that flaps costs the others little
_SEND_BUFFER_BYTES = 256 * 1024
"""Without a limit, Linux grows the buffer to megabytes: minutes of messages that are too old to be useful."""

_LARGEST_SUBSCRIPTION_BYTES = 4096


class Publisher:
    """One bound XPUB socket. Any thread may publish; with a recorder or an event log, results come from one thread."""

    def __init__(
        self,
        bind: str,
        *,
        node: str,
        class_names: Sequence[str] = (),
        encoding: codec.Encoding = "json",
        queue: int = 1000,
        recorder: Recorder | None = None,
        event_log: EventLog | None = None,
        replay: str | None = None,
        linger_s: float = 0.2,
        keepalive_s: int = 10,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Bind the socket and serve subscribers.

        Args:
            bind: ``tcp://127.0.0.1:5555``, ``tcp://*:5555``, ``ipc:///run/vision/out``; port ``*`` takes a free one.
            node: name of this machine, for the messages.
            class_names: names of the class ids of results.
            encoding: of the payloads.
            queue: maximum number of messages that wait for one slow subscriber. It loses further messages.
            recorder: receives every detections message too. The publisher closes it.
            event_log: stores every event before it is sent. The caller closes its database after the publisher.
            replay: address where subscribers ask for events of `event_log`; as `bind`.
            linger_s: longest time that `close` waits for messages to be sent.
            keepalive_s: time after which an idle connection is probed; three lost probes close it.

        Raises:
            ConfigError: the address is wrong, in use, or not this machine's.
        """
        self.numbering = codec.Numbering(node)
        self._class_names = tuple(class_names)
        self._encoding = encoding
        self._recorder = recorder
        self._event_log = event_log
        self._replay_server: ReplayServer | None = None
        self._linger_s = linger_s
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        self._last_status: dict[str, bytes] = {}
        self._joined: set[bytes] = set()  # topic prefixes that were subscribed to since the last replay
        self._joins = 0
        self._replay_at_s = 0.0
        self._context = zmq.Context()
        try:
            if event_log is not None and replay is not None:
                self._replay_server = ReplayServer(
                    replay, event_log, node=node, encoding=encoding, keepalive_s=keepalive_s
                )
            self._socket = bound_socket(
                self._context, zmq.XPUB, bind, key="publish.bind", keepalive_s=keepalive_s, options=_options(queue)
            )
        except BaseException:
            self._context.term()
            self._close_files()
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._socket_file = socket_file(self.address)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._thread = threading.Thread(target=self._serve_joiners, name="publisher", daemon=True)
        self._thread.start()

    @property
    def joins(self) -> int:
        """Number of subscriptions received since the start."""
        return self._joins

    @property
    def replay_address(self) -> str | None:
        """Address for requests of missed events; None: there is none."""
        return None if self._replay_server is None else self._replay_server.address

    def counters(self) -> dict[str, int]:
        """Return the counters of the event log, if there is one."""
        return {} if self._event_log is None else self._event_log.counters()

    def publish(self, result: Result) -> None:
        """Send one result and its events, without waiting for subscribers.

        Raises:
            Closed: after `close`.
        """
        message = codec.detections(result, self._class_names, self._clock())
        with self._lock:
            self._check_open()
            message = self.numbering.stamp(message)
            self._send(message.topic, codec.encode(message, self._encoding))
            events = [self.numbering.stamp(codec.event(happened, result)) for happened in result.events]
        if events:
            self._publish_events(events)
        if self._recorder is not None:
            self._recorder.write(message)

    def _publish_events(self, events: list[codec.EventMessage]) -> None:
        """Store events without the lock, because disks are slow. Then send them: a sent event can be requested."""
        if self._event_log is not None:
            first, journal = self._event_log.newest + 1, self._event_log.journal
            numbered = [codec.with_number(event, journal, number) for number, event in enumerate(events, first)]
            if self._event_log.append([codec.encode(event) for event in numbered]):
                events = numbered
        payloads = [codec.encode(event, self._encoding) for event in events]
        with self._lock:
            self._check_open()
            for event, payload in zip(events, payloads, strict=True):
                self._send(event.topic, payload)

    def publish_status(self, status: codec.StatusMessage) -> None:
        """Send a status or counts, now and to later subscribers.

        Raises:
            Closed: after `close`.
        """
        with self._lock:
            self._check_open()
            if isinstance(status, codec.NodeStatusMessage) and self._replay_server is not None:
                status = codec.with_replay(status, self._replay_server.address)
            payload = codec.encode(self.numbering.stamp(status), self._encoding)
            self._last_status[status.topic] = payload
            self._send(status.topic, payload)

    def close(self) -> None:
        """Wait up to `linger_s` for messages to be sent, then free the address. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake()
        self._thread.join()
        self._wake_reader.close()
        self._wake_writer.close()
        if self._socket_file is not None and socket_file(self.address) == self._socket_file:
            self._socket_file[0].unlink()  # ZeroMQ leaves it
        self._socket.close(linger=int(self._linger_s * 1000))
        self._context.term()
        self._close_files()

    def _close_files(self) -> None:
        for file in (self._replay_server, self._recorder):
            if file is not None:
                file.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the publisher is closed")

    def _send(self, topic: str, payload: bytes) -> None:
        self._socket.send_multipart([topic.encode(), payload], zmq.NOBLOCK)
        # Sending also reads new subscriptions from the mailbox of the socket, and can consume the thread's signal.
        # Without this check, 1 of 300 subscribers that joined while two threads published was never served.
        if self._receive_joins():
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the thread has unread wake-ups
            self._wake_writer.send(b"\0")

    def _receive_joins(self) -> bool:
        received = False
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            message = self._socket.recv(zmq.NOBLOCK)
            if message[:1] == b"\x01":
                self._joined.add(message[1:])
                self._joins += 1
                received = True
        return received

    def _serve_joiners(self) -> None:
        """Send the last status of each topic to its new subscribers.

        Waiting for the descriptor of a ZeroMQ socket needs no lock; everything else does.
        """
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        wait_ms: float | None = None
        while True:
            poll.poll(wait_ms)
            with contextlib.suppress(BlockingIOError):
                self._wake_reader.recv(4096)
            with self._lock:
                if self._closed:
                    return
                self._receive_joins()
                wait_ms = self._replay()

    def _replay(self) -> float | None:
        """Send the last status again. Return the milliseconds until the next replay; None: none is due."""
        if not self._joined:
            return None
        now_s = time.monotonic()
        if now_s < self._replay_at_s:
            return (self._replay_at_s - now_s) * 1000 + 1
        self._replay_at_s = now_s + _REPLAY_INTERVAL_S
        prefixes, self._joined = tuple(self._joined), set()
        for topic, payload in self._last_status.items():
            if topic.encode().startswith(prefixes):
                self._socket.send_multipart([topic.encode(), payload], zmq.NOBLOCK)
        return None


def _options(queue: int) -> dict[zmq.SocketOption, int]:
    return {
        zmq.XPUB_VERBOSE: 1,  # every subscription, not only the first to a topic
        zmq.SNDHWM: queue,
        zmq.SNDBUF: _SEND_BUFFER_BYTES,
        zmq.MAXMSGSIZE: _LARGEST_SUBSCRIPTION_BYTES,
    }


class Recorder:
    """File of messages, one line of JSON each. One thread at a time.

    Each line is one `write` call, so a killed process leaves no torn line. A buffer would not help: a call takes 3 µs.
    A file with content is never overwritten or extended, because a service that restarts must not destroy a recording.
    When the disk is full, publishing continues: the error is logged once, lost lines are counted, and recording resumes
    when there is room again.
    """

    def __init__(self, path: Path | str) -> None:
        """Create the file.

        Raises:
            ConfigError: the file cannot be created, or has content.
        """
        self._path = Path(path)
        self._fd = self._open()
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self.written = 0
        self.lost = 0

    def _open(self) -> int:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"--record: cannot write {self._path}: {error.strerror}", hint="give a file in a folder that exists"
            ) from error
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode) and info.st_size:
            os.close(fd)
            raise ConfigError(
                f"--record: {self._path} holds {info.st_size} bytes already, and a recording is never overwritten",
                hint="give another name, or remove it first",
            )
        return fd

    def write(self, message: codec.DetectionsMessage) -> None:
        """Append one line. Count it in `lost` if the disk is full.

        Raises:
            Closed: after `close`.
        """
        if self._fd < 0:
            raise Closed("the recorder is closed")
        line = codec.encode(message) + b"\n"
        try:
            self._write_whole(line)
        except OSError as error:
            self.lost += 1
            if self.lost == 1:
                log.error(
                    "cannot record to %s: %s; going on without, and trying again each time", self._path, error.strerror
                )
        else:
            self.written += 1

    def _write_whole(self, line: bytes) -> None:
        sent = 0
        try:
            while sent < len(line):
                sent += os.write(self._fd, line[sent:])
        except OSError:
            if sent and self._regular:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - sent)
            raise

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self.lost:
            log.error("%s lacks %d of %d results", self._path, self.lost, self.lost + self.written)
