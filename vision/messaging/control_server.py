"""`ControlServer`, which receives requests of local commands, in a thread of the program.

The socket accepts only processes of the same user and of root. Each connection has one request. The number of
connections, the size of a request, and the time for a request are limited.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vision.errors import ConfigError, MessageError, Unavailable, VisionError, from_os_error
from vision.messaging.control_protocol import (
    LENGTH_BYTES,
    MAX_MESSAGE_BYTES,
    SUFFIX,
    ErrorReply,
    ReloadRequest,
    Reply,
    Request,
    decode_request,
    encode,
    error_reply,
)

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
_REQUEST_S: Final = 5.0  # time for a request to arrive, and for a reply to be received
_MODE: Final = 0o600
_ABANDONED_S: Final = 60.0
_CREDENTIALS: Final = struct.Struct("3i")  # process, user, and group


@dataclass(slots=True)
class _Connection:
    deadline: float
    received: bytearray = field(default_factory=bytearray)

    def request(self) -> bytes | None:
        """Return the whole request, or None if the request is still incomplete.

        Raise `MessageError` if the request is too long.
        """
        if len(self.received) < LENGTH_BYTES:
            return None
        length = int.from_bytes(self.received[:LENGTH_BYTES], "big")
        if length > MAX_MESSAGE_BYTES:
            text = f"expected a request of at most {MAX_MESSAGE_BYTES} bytes, got {length}"
            raise MessageError(text, code="request-too-long")
        end = LENGTH_BYTES + length
        return bytes(self.received[LENGTH_BYTES:end]) if len(self.received) >= end else None


class ControlServer:
    """Server that passes requests to a function, one request at a time.

    A signal can also request a reload of the configuration.
    """

    def __init__(
        self,
        path: Path,
        handle: Callable[[Request], Reply],
        *,
        users: Collection[int] | None = None,
        request_s: float = _REQUEST_S,
    ) -> None:
        """Create the socket, and start the thread.

        Args:
            path: place of the socket, in a folder to which only this user can write.
            handle: function that handles a request. The thread calls it.
            users: users that can connect. None means the user of this process, and root.
            request_s: time in seconds for a request to arrive, and for a reply to be received.

        Raises:
            Unavailable: a running program uses the path, or the disk cannot be used at present.
            ConfigError: the socket cannot be created.
        """
        self.path = path
        self._handle = handle
        self._users = (os.geteuid(), 0) if users is None else users
        self._request_s = request_s
        self._listener = _listen(path)
        self._inode = path.stat().st_ino
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = threading.Event()
        self._reloads = threading.Event()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._connections: dict[socket.socket, _Connection] = {}
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def request_reload(self) -> None:
        """Make the server's thread reload the configuration, without waiting for it. Any thread can call this method.

        Errors of the reload are logged.
        """
        self._reloads.set()
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread, and remove the socket. Wait at most 5 s for a request in progress. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join(_REQUEST_S)
        for connection in [*self._connections]:
            self._drop(connection)
        self._listener.close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self._selector.close()
        os.close(self._wake)

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            deadlines = [connection.deadline for connection in self._connections.values()]
            wait_s = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, _ in self._selector.select(wait_s):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                elif isinstance(key.fileobj, socket.socket):
                    self._receive(key.fileobj)
            if self._reloads.is_set():
                self._reloads.clear()
                self._reload()
            for sock, connection in list(self._connections.items()):
                if time.monotonic() > connection.deadline:
                    self._drop(sock)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # the client has gone, or too many files are open
            log.debug("control socket: %s", error)
            time.sleep(0.01)
            return
        _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if user not in self._users or len(self._connections) >= MAX_CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        self._connections[sock] = _Connection(time.monotonic() + self._request_s)
        self._selector.register(sock, selectors.EVENT_READ, None)

    def _receive(self, sock: socket.socket) -> None:
        connection = self._connections[sock]
        try:
            part = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        connection.received += part
        try:
            request = connection.request()
            if request is not None:
                self._reply(sock, self._answer(decode_request(request)))
            elif not part:
                self._drop(sock)
        except MessageError as error:
            self._reply(sock, error_reply(error))

    def _answer(self, request: Request) -> Reply:
        """Handle a request, and return the reply.

        No other client can send its request in this time, so extend the deadlines of all other clients by this time.
        """
        began_s = time.monotonic()
        try:
            return self._handle(request)
        except VisionError as error:
            return error_reply(error)
        except Exception as error:
            log.exception("a control request failed")
            text = f"unexpected exception: {type(error).__name__}: {error}"
            return error_reply(VisionError(text, code="control-bug"))
        finally:
            for connection in self._connections.values():
                connection.deadline += time.monotonic() - began_s

    def _reload(self) -> None:
        reply = self._answer(ReloadRequest())
        if isinstance(reply, ErrorReply):
            log.error(
                "the configuration was not reloaded: %s%s", reply.message, f"; {reply.hint}" if reply.hint else ""
            )

    def _reply(self, sock: socket.socket, reply: Reply) -> None:
        with contextlib.suppress(OSError):  # the client has gone, or does not read
            sock.settimeout(self._request_s)
            sock.sendall(encode(reply))
        self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._connections[sock]
        sock.close()


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`. If a killed program left a socket there, replace that socket."""
    text = f"the control socket {path} cannot be created"
    try:
        if path.exists():
            _remove_unused(path)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(str(path))
            path.chmod(_MODE)  # before `listen`, so that nobody can connect earlier
            sock.listen(MAX_CONNECTIONS)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise from_os_error(text, error, code="control-socket") from error
    return sock


def remove_unused_sockets(folder: Path) -> None:
    """Remove the control sockets that killed programs left in a folder and that are more than a minute old."""
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError, VisionError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                _remove_unused(path)


def _remove_unused(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError(f"expected a free path for a socket, got a file: {path}", code="control-socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        with contextlib.suppress(ConnectionRefusedError):
            probe.connect(str(path))
            raise Unavailable(f"another program with the same configuration uses {path}", code="control-socket")
    path.unlink()
