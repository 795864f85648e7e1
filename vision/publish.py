"""The end of the pipeline: results, status and events go out over ZeroMQ, and into a file where one was asked for.

===================  ==================================================  ======================================
topic                rate                                                payload (docs/messages.md)
===================  ==================================================  ======================================
detections/<camera>  each inferred picture, empty ones too               `vision.wire.DetectionsMessage`
events/<camera>      when something happens                              `vision.wire.EventMessage`
status/<camera>      each `status.interval_s`, and when somebody joins   `vision.wire.CameraStatusMessage`
status/node          each `status.interval_s`, and when somebody joins   `vision.wire.NodeStatusMessage`
===================  ==================================================  ======================================

Who owns the socket: whoever holds the lock. ZeroMQ sockets may move between threads but not be used by two at once.
A thread that owned it, fed by a queue, would add a change of threads to each message (50 to 100 µs while the GIL is
busy) and a second queue with its own limit and its own way of overflowing; a send under the lock never blocks, because
a PUB socket drops what a slow subscriber has no room for. So results and main thread send by themselves, and the only
thread here sleeps until a subscriber joins.
"""

from __future__ import annotations

import contextlib
import errno
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

from vision import wire
from vision.errors import Closed, ConfigError
from vision.types import Result

log = logging.getLogger(__name__)

_REPLAY_INTERVAL_S = 0.05  # subscribers that join together share one replay, and one that flaps costs the others little
_SEND_BUFFER_BYTES = (
    256 * 1024
)  # Linux grows it to megabytes otherwise: minutes of messages that are too old to be useful
_LARGEST_SUBSCRIPTION_BYTES = 4096


class Publisher:
    """One bound XPUB socket. Any thread may publish; where there is a recorder, results come from one thread."""

    def __init__(
        self,
        bind: str,
        *,
        node: str,
        class_names: Sequence[str] = (),
        encoding: wire.Encoding = "json",
        queue: int = 1000,
        recorder: Recorder | None = None,
        linger_s: float = 0.2,
        keepalive_s: int = 10,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Bind, and answer subscribers from now on.

        Args:
            bind: ``tcp://127.0.0.1:5555``, ``tcp://*:5555``, ``ipc:///run/vision/out``; port ``*`` takes a free one.
            node: name of this machine in the messages.
            class_names: `class_ids` of results index into this.
            encoding: of the payloads.
            queue: messages kept for one subscriber that does not read; what comes after them is lost to it.
            recorder: gets every detections message too; the publisher's own from here on, and closed with it.
            linger_s: longest `close` waits for messages to leave.
            keepalive_s: a connection that is idle for so long is probed, and closed after three probes without answer.

        Raises:
            ConfigError: the address is wrong, in use, or not this machine's.
        """
        self.numbering = wire.Numbering(node)
        self._class_names = tuple(class_names)
        self._encoding = encoding
        self._recorder = recorder
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
            self._socket = _bound_socket(self._context, bind, queue, keepalive_s)
        except BaseException:
            self._context.term()
            if recorder is not None:
                recorder.close()
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._socket_file = _socket_file(self.address)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._thread = threading.Thread(target=self._serve_joiners, name="publisher", daemon=True)
        self._thread.start()

    @property
    def joins(self) -> int:
        """Subscriptions received since the start."""
        return self._joins

    def publish(self, result: Result) -> None:
        """Send one result and its events. Never waits for a subscriber.

        Raises:
            Closed: after `close`.
        """
        message = wire.detections(result, self._class_names, self._clock())
        with self._lock:
            self._check_open()
            message = self.numbering.stamp(message)
            self._send(message.topic, wire.encode(message, self._encoding))
            for happened in result.events:
                event = self.numbering.stamp(wire.event(happened, result))
                self._send(event.topic, wire.encode(event, self._encoding))
        if self._recorder is not None:
            self._recorder.write(message)

    def publish_status(self, status: wire.StatusMessage) -> None:
        """Send the status of a camera or of the node, and keep it for whoever joins later.

        Raises:
            Closed: after `close`.
        """
        with self._lock:
            self._check_open()
            payload = wire.encode(self.numbering.stamp(status), self._encoding)
            self._last_status[status.topic] = payload
            self._send(status.topic, payload)

    def close(self) -> None:
        """Wait up to `linger_s` for messages to leave, then free the address. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake()
        self._thread.join()
        self._wake_reader.close()
        self._wake_writer.close()
        if self._socket_file is not None and _socket_file(self.address) == self._socket_file:
            self._socket_file[0].unlink()  # ZeroMQ leaves it
        self._socket.close(linger=int(self._linger_s * 1000))
        self._context.term()
        if self._recorder is not None:
            self._recorder.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the publisher is closed")

    def _send(self, topic: str, payload: bytes) -> None:
        self._socket.send_multipart([topic.encode(), payload], zmq.NOBLOCK)
        # Sending reads new subscriptions from the socket's mailbox too, and so can swallow the signal for the thread:
        # without this, 1 of 300 subscribers that joined while two threads published was never served.
        if self._receive_joins():
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wake-ups that the thread has not read yet
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
        """Send the last status of all that somebody subscribed to, once the socket says that somebody did.

        The descriptor of a ZeroMQ socket may be waited for without the lock; everything else needs it.
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
        """Milliseconds until the next replay is allowed; None where none is due."""
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


def _bound_socket(
    context: zmq.Context[zmq.Socket[bytes]], bind: str, queue: int, keepalive_s: int
) -> zmq.Socket[bytes]:
    if bind.startswith("ipc://"):
        _check_free(bind.removeprefix("ipc://"))
    port = bind.rpartition(":")[2]
    if port.isdecimal() and int(port) > 65535:  # ZeroMQ would bind its remainder
        raise _bind_error(bind, zmq.ZMQError(errno.EINVAL))
    sock = context.socket(zmq.XPUB)
    try:
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.XPUB_VERBOSE, 1)  # every subscription, not only the first to a topic
        sock.setsockopt(zmq.SNDHWM, queue)
        sock.setsockopt(zmq.SNDBUF, _SEND_BUFFER_BYTES)
        sock.setsockopt(zmq.MAXMSGSIZE, _LARGEST_SUBSCRIPTION_BYTES)
        # TCP's own probes and not ZeroMQ's heartbeats: those close the connection of a subscriber that is merely slow,
        # and that makes libzmq (4.3.5, its issue 3937) abort the subscriber's process: 6 times out of 16 when tried.
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, keepalive_s)
        sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, keepalive_s)
        sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        sock.setsockopt(zmq.IPV6, int("[" in bind))
        sock.bind(bind)
    except zmq.ZMQError as error:
        sock.close()
        raise _bind_error(bind, error) from error
    return sock


def _socket_file(address: str) -> tuple[Path, int] | None:
    """Path and inode of an ipc:// socket, where it has one."""
    if not address.startswith("ipc://") or address.startswith("ipc://@"):
        return None
    path = Path(address.removeprefix("ipc://"))
    try:
        return path, path.stat().st_ino
    except OSError:
        return None


def _check_free(path: str) -> None:
    """ZeroMQ removes whatever has the name of an ipc:// socket: another program's, or a file that is none."""
    if path.startswith("@"):
        return
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"publish.bind: expected a free path for a socket, got a file: {path}",
            hint="remove it or choose another path",
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # left behind by a program that was killed
        except OSError as error:
            raise ConfigError(f"publish.bind: cannot use ipc://{path}: {error.strerror}") from error
    raise ConfigError(
        f"publish.bind: socket in use by another program: ipc://{path}", hint=f"find it with: ss -xlp src {path}"
    )


def _bind_error(bind: str, error: zmq.ZMQError) -> ConfigError:
    port = bind.rpartition(":")[2]
    form = ("expected tcp://ADDRESS:PORT or ipc:///PATH/OF/SOCKET, got", "such as tcp://127.0.0.1:5555")
    reasons = {
        errno.EINVAL: form,
        errno.EPROTONOSUPPORT: form,
        errno.ENAMETOOLONG: ("the path of the socket is too long for the operating system", "choose a shorter one"),
        errno.EADDRINUSE: ("port in use by another program", f"find it with: ss -ltnp 'sport = :{port}'"),
        errno.EADDRNOTAVAIL: ("no network interface of this machine has this address", "list them with: ip address"),
        errno.ENODEV: ("no network interface of this machine has this name or address", "list them with: ip address"),
        errno.EACCES: ("permission denied", "ports below 1024 and other users' folders need more rights"),
        errno.ENOENT: ("the folder of the socket does not exist", "make it first"),
    }
    reason, hint = reasons.get(error.errno or 0, (str(error), ""))
    return ConfigError(f"publish.bind: {reason}: {bind}", hint=hint)


class Recorder:
    """Writes each message as a line of JSON. One thread at a time.

    Each line is one `write` to the operating system, so even a killed process leaves no torn line, and nothing waits in
    a buffer of ours; at 3 µs a line there is nothing to gain from one. A file that holds something is never overwritten
    or extended: a service that restarts must not destroy what it recorded. When the disk is full, watching goes on:
    the error is logged once, lost lines are counted, and recording resumes when there is room again.
    """

    def __init__(self, path: Path | str) -> None:
        """
        Raises:
            ConfigError: the file cannot be made, or holds something already.
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

    def write(self, message: wire.DetectionsMessage) -> None:
        """Append one line; what the disk has no room for is counted in `lost`.

        Raises:
            Closed: after `close`.
        """
        if self._fd < 0:
            raise Closed("the recorder is closed")
        line = wire.encode(message) + b"\n"
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
        """Close the file. May be called twice."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self.lost:
            log.error("%s lacks %d of %d results", self._path, self.lost, self.lost + self.written)
