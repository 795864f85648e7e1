"""Messages between the main process and its worker processes, and the program that runs in a worker process.

A connection is a pair of Unix sockets that preserve message boundaries. The first byte of each message is its kind. A
message that is too long for the socket is passed in a file that exists only in memory.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import faulthandler
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from vision.errors import EXIT_OK, EXIT_RUNTIME, Closed, VisionError, redact
from vision.version import version

log = logging.getLogger(__name__)

APPLICATION, LOG, HEARTBEAT, READY, FAILURE, SETUP, STOP = b"A", b"L", b"H", b"R", b"F", b"C", b"S"
"""Kinds of messages. `SETUP` and `STOP` go to the worker, `APPLICATION` goes in both directions, and the other kinds go
to the main process."""

STACKS_SIGNAL: Final = signal.SIGQUIT
"""Signal after which a worker process prints the stacks of its threads to standard error."""

SPARE: Final = "spare worker".ljust(32)
"""Name of a spare process, which replaces the next worker that ends. The padding leaves room for that worker's name."""

HEARTBEAT_S: Final = 0.25
"""Interval between two heartbeats of a worker whose main loop runs."""

_IN_FILE: Final = 0x80  # set in the first byte if the rest of the message is in the first file descriptor
_MAX_INLINE: Final = 32_768
_MAX_FDS: Final = 16
_BUFFER_BYTES: Final = 1 << 20  # requested; the kernel limits it to net.core.wmem_max
_PR_SET_PDEATHSIG: Final = 1
_ARG_START: Final = 45  # index of the address of the command line among the fields of /proc/PID/stat after the name

Entry = Callable[["WorkerChannel", bytes], None]
"""Type of the function that a worker process runs. The arguments are the channel and the setup of the worker."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, with the file descriptors that arrived with it. The receiver must close the descriptors."""

    data: bytes
    fds: tuple[int, ...] = ()


class Connection:
    """One end of a connection. Send from any thread, but receive in one thread. Only `send_waiting` blocks."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._socket = end
        self._buffer = bytearray(_MAX_INLINE + 1)
        self._lock = threading.Lock()  # between `send` and `close`, because a closed descriptor's number is used again

    @staticmethod
    def pair() -> tuple[Connection, socket.socket]:
        """Return a connection, and the socket of the other end, from which another process creates a connection."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Connection(own), other

    def fileno(self) -> int:
        """Return the descriptor on which to wait for messages, or -1 after `close`."""
        return self._socket.fileno()

    def send(self, kind: bytes, data: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Send a message. Return False if the other end is closed or has no room, or too many descriptors are in use.

        The descriptors in `fds` are duplicated, so the caller must still close its own descriptors.

        Raises:
            OSError: the file for a message that is longer than 32 KiB cannot be created.
        """
        if len(data) > _MAX_INLINE:
            return self._send_in_file(kind, data, fds)
        try:
            with self._lock:
                if fds:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                    self._socket.sendmsg([kind, data], [rights])
                else:
                    self._socket.send(kind + data)
        except OSError:  # full, closed, or too many descriptors are in transit
            return False
        return True

    def _send_in_file(self, kind: bytes, data: bytes, fds: Sequence[int]) -> bool:
        fd = os.memfd_create("vision-message", os.MFD_CLOEXEC)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            return self.send(bytes([kind[0] | _IN_FILE]), b"", [fd, *fds])
        finally:
            os.close(fd)

    def send_waiting(self, kind: bytes, data: bytes, fds: Sequence[int], timeout_s: float) -> bool:
        """Send a message as `send` does, but wait up to `timeout_s` seconds until the other end has room."""
        deadline = time.monotonic() + timeout_s
        while not self.send(kind, data, fds):
            poller = select.poll()
            try:
                poller.register(self, select.POLLOUT)
            except ValueError:  # the connection is closed
                return False
            left_s = deadline - time.monotonic()
            events = poller.poll(max(0.0, left_s * 1e3))
            if not events or events[0][1] & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                return False
        return True

    def receive(self) -> tuple[bytes, Message] | None:
        """Return the kind and the content of the next message. Return None if no message waits.

        Raises:
            EOFError: the other end is closed.
        """
        try:
            size, ancillary, _, _ = self._socket.recvmsg_into(
                [self._buffer], socket.CMSG_SPACE(4 * _MAX_FDS), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:  # such as ECONNRESET
            raise EOFError from error
        if size == 0:
            raise EOFError
        fds = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        first = self._buffer[0]
        if not first & _IN_FILE:
            return bytes([first]), Message(bytes(memoryview(self._buffer)[1:size]), tuple(fds))
        try:
            content = os.pread(fds[0], os.fstat(fds[0]).st_size, 0)
        finally:
            os.close(fds[0])
        return bytes([first & ~_IN_FILE]), Message(content, tuple(fds[1:]))

    def receive_short(self) -> bytes | None:
        """Return the next message, with its kind as the first byte. Return None if no message waits.

        Use this method if all messages are short and carry no descriptors. It is twice as fast as `receive`.

        Raises:
            EOFError: the other end is closed.
        """
        try:
            data = self._socket.recv(_MAX_INLINE + 1)
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return data

    def close(self) -> None:
        """Close this end. Idempotent."""
        with self._lock:
            self._socket.close()


class WorkerChannel:
    """The worker's end of its connection to the main process.

    The function that the worker runs must call `receive` regularly, because `receive` sends heartbeats. Any thread can
    call `send`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._poller = select.poll()
        self._poller.register(connection, select.POLLIN)
        self._next_heartbeat = 0.0

    def fileno(self) -> int:
        """Return the descriptor on which to wait for messages together with other descriptors."""
        return self._connection.fileno()

    def ready(self) -> None:
        """Report that the worker is ready. If the worker fails after this report, the main process replaces it."""
        self._connection.send_waiting(READY, b"", (), HEARTBEAT_S)

    def beat(self) -> None:
        """Send a heartbeat if one is due.

        Call this during long work, because a worker without heartbeats is replaced.
        """
        now = time.monotonic()
        if now >= self._next_heartbeat:
            self._connection.send(HEARTBEAT)
            self._next_heartbeat = now + HEARTBEAT_S

    def send(self, data: bytes, fds: Sequence[int] = (), *, timeout_s: float = 0.0) -> bool:
        """Send a message. Return False if the main process has ended, or has no room within `timeout_s` seconds."""
        return self._connection.send_waiting(APPLICATION, data, fds, timeout_s)

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message of the main process, or None if no message arrives within `timeout_s` seconds.

        Raises:
            Closed: the main process asks the worker to stop, or has ended.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.beat()
            try:
                received = self._connection.receive()
            except EOFError:
                raise Closed("the main process has ended") from None
            if received is not None:
                kind, message = received
                if kind == STOP:
                    raise Closed("the main process asks the worker to stop")
                return message
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            self._poller.poll(min(left_s, HEARTBEAT_S) * 1e3)


def run_worker(name: str, modules: str, fd: int, parent: int) -> NoReturn:
    """Run the program of a worker process, and then end the process.

    Args:
        name: name of the worker. A worker named `SPARE` imports `modules`, and then waits until it is needed.
        modules: names of modules, separated by commas. Empty unless the process is a spare process.
        fd: descriptor of the worker's end of its connection.
        parent: process id of the main process. The worker is killed when the main process ends.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before `prctl`
        os._exit(EXIT_RUNTIME)
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process stops its workers
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL)
    os.set_inheritable(fd, False)
    connection = Connection(socket.socket(fileno=fd))
    if name == SPARE:
        _wait_as_spare(modules.split(","), connection)
    code = _run_entry(connection)
    sys.stdout.flush()
    if threading.active_count() > 1:  # a thread is still inside a library, as in `vision.cli.main.entry`
        os._exit(code)
    sys.exit(code)


def _wait_as_spare(modules: Sequence[str], connection: Connection) -> None:
    with contextlib.suppress(Exception):  # `_run_entry` tries again, and reports the failure
        for module in modules:
            importlib.import_module(module)
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    poller.poll()


def _show_name(name: str) -> None:
    """Replace `SPARE` with `name` in the command line of this process, so that tools can identify the process."""
    at = Path("/proc/self/cmdline").read_bytes().find(SPARE.encode())
    address = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[_ARG_START])
    if at >= 0 and address:
        ctypes.memmove(address + at, name.encode().ljust(len(SPARE))[: len(SPARE)], len(SPARE))


def _run_entry(connection: Connection) -> int:
    channel = WorkerChannel(connection)
    try:
        message = channel.receive(60.0)
        if message is None:
            return EXIT_RUNTIME
        setup = Setup.decode(message.data)
        _forward_log(connection, setup.log_level)
        _show_name(setup.name)
        if setup.version != version():
            text = f"the program was updated from version {setup.version} to {version()} while it was running"
            raise VisionError(text, hint="restart it", code="updated-while-running")
        module, _, name = setup.entry.partition(":")
        function: Entry = getattr(importlib.import_module(module), name)
        function(channel, setup.content)
    except Closed:
        pass
    except VisionError as error:
        _send_failure(connection, error)
        return EXIT_RUNTIME
    except Exception:  # noqa: BLE001 - logged; the main process replaces the worker
        log.error("unexpected exception\n%s", traceback.format_exc())
        return EXIT_RUNTIME
    return EXIT_OK


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker process: the function to run, the argument of this function, and log settings."""

    version: str
    log_level: int
    name: str  # name of the worker
    entry: str  # the function to run, as ``package.module:function``
    content: bytes

    def encode(self) -> bytes:
        """Return the message: the length of a JSON header (4 bytes), the header, and `content`."""
        header = json.dumps([self.version, self.log_level, self.name, self.entry]).encode()
        return len(header).to_bytes(4, "little") + header + self.content

    @classmethod
    def decode(cls, data: bytes) -> Setup:
        """Return the setup in a message."""
        end = 4 + int.from_bytes(data[:4], "little")
        program, log_level, name, entry = json.loads(data[4:end])
        return cls(program, log_level, name, entry, data[end:])


# --- log records and failures, from the worker to the main process ----------------------------------------------------


class _ForwardingHandler(logging.Handler):
    """Handler that sends log records to the main process, which writes them. It never blocks the thread that logs."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = redact(self.format(record))
        if self._lost:
            text = f"[{self._lost} log lines before this one were lost]\n{text}"
        fields = [record.name, record.levelno, record.created, record.threadName, text]
        sent = self._connection.send(LOG, json.dumps(fields).encode())
        self._lost = 0 if sent else self._lost + 1


def _forward_log(connection: Connection, level: int) -> None:
    handler = _ForwardingHandler(connection)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def log_record(data: bytes, process: str) -> logging.LogRecord:
    """Return the log record in a message of the kind `LOG` from the worker `process`."""
    name, level, created, thread, text = json.loads(data)
    fields = {"name": name, "levelno": level, "levelname": logging.getLevelName(level), "msg": text}
    times = {"created": created, "msecs": created % 1 * 1000}
    return logging.makeLogRecord({**fields, **times, "threadName": thread, "processName": process})


def _send_failure(connection: Connection, error: VisionError) -> None:
    fields = [type(error).__name__, error.args[0], error.hint, error.code]
    connection.send_waiting(FAILURE, json.dumps(fields).encode(), (), HEARTBEAT_S)


def failure(data: bytes) -> VisionError:
    """Return the exception in a message of the kind `FAILURE`, as a `VisionError` if its own class cannot be used."""
    import vision.errors

    name, text, hint, code = json.loads(data)
    known: Any = getattr(vision.errors, name, VisionError)
    try:
        error: VisionError = known(text, hint=hint, code=code)
    except TypeError:  # an error with different arguments
        error = VisionError(text, hint=hint, code=code)
    return error
