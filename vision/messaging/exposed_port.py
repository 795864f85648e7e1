"""A TCP port or Unix socket that a separate process (`vision.messaging.relay`) serves.

If the process ends or hangs, it is replaced, and the port stays open.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from vision.messaging import relay
from vision.messaging.helper_process import HelperProcess

_BACKLOG: Final = 128
_SILENT_S: Final = 10.0  # the relay does nothing that takes long
_SEND_BUFFER_BYTES: Final = 256 * 1024
"""Size of a connection's send buffer.

Without a limit, Linux extends the buffer to megabytes, which hold minutes of old messages.
"""


@dataclass(frozen=True, slots=True)
class PortLimits:
    """Limits for the clients of a public address. The process that serves the address has further limits.

    `vision.messaging.relay` describes these limits.
    """

    connections: int  # maximum number at the same time; further clients wait
    subscribes: bool  # the clients are subscribers, which send only subscriptions


class ExposedPort:
    """A listening socket, and the process that forwards its connections to the socket that is bound to `target`.

    Attributes:
        address: public address, such as ``tcp://127.0.0.1:5555`` or ``ipc:///run/vision/out``.
        target: address to which the ZeroMQ socket must be bound. Only processes of the same user can connect to it.
    """

    def __init__(self, bind: str, limits: PortLimits, keepalive_s: int) -> None:
        """Bind the address. An ``ipc://`` path must be free, or a socket file that no program uses.

        Raises:
            OSError: the address cannot be bound, for example because it is in use.
        """
        name = f"vision-{os.getpid()}-{secrets.token_hex(8)}"
        self.target = f"ipc://@{name}"
        self._counters: dict[str, int] = {}
        self._listener, self.address = listen(bind)
        options = {
            "listener": self._listener.fileno(),
            "target": f"\0{name}",
            "connections": limits.connections,
            "subscribes": limits.subscribes,
            "keepalive_s": keepalive_s,
        }
        program = ["-I", "-S", str(Path(relay.__file__))]
        self._process = HelperProcess(
            "relay",
            program,
            options,
            fds=[self._listener.fileno()],
            on_line=self._set_counters,
            silent_s=_SILENT_S,
        )

    @property
    def counters(self) -> dict[str, int]:
        """The counters of the process that serves the address, by name. Any thread can read them."""
        return {**self._counters, "restarts": self._process.restarts}

    def start(self) -> None:
        """Accept connections. Call this after a socket is bound to `target`."""
        self._process.start()

    def disconnect_clients(self) -> None:
        """Close all connections by killing the process that serves them. Clients can reconnect to the next process."""
        self._process.kill()

    def close(self) -> None:
        """Forward the remaining messages for up to 0.5 s, close all connections, and free the address. Idempotent."""
        self._process.close()
        self._listener.close()

    def _set_counters(self, line: str) -> None:
        with contextlib.suppress(ValueError):  # a killed process can leave an incomplete line
            self._counters = json.loads(line)


def listen(bind: str) -> tuple[socket.socket, str]:
    """Return a listening socket and its address, with the actual port. Raise `OSError` if the address cannot be bound.

    A socket file that exists at an ``ipc://`` path is replaced.
    """
    if bind.startswith("ipc://"):
        return _listen_on_file(bind.removeprefix("ipc://")), bind
    host, _, port = bind.removeprefix("tcp://").rpartition(":")
    family, address = _resolve(host)
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind((address, 0 if port == "*" else int(port)))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    number = listener.getsockname()[1]
    return listener, f"tcp://[{address}]:{number}" if family == socket.AF_INET6 else f"tcp://{address}:{number}"


def _listen_on_file(path: str) -> socket.socket:
    """Return a listening Unix socket. A path that starts with ``@`` is a name in Linux's abstract namespace."""
    is_abstract = path.startswith("@")
    if not is_abstract:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind("\0" + path[1:] if is_abstract else path)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Return the address family and the address of `host`, which can also be the name of a network interface.

    Raises:
        OSError: no interface has this name and an IPv4 address (ENODEV).
    """
    if host == "*":
        return socket.AF_INET, "0.0.0.0"
    if host.startswith("["):
        return socket.AF_INET6, host[1:-1]
    if host[:1].isdigit():
        return socket.AF_INET, host
    for entry in psutil.net_if_addrs().get(host, ()):
        if entry.family == socket.AF_INET:
            return socket.AF_INET, entry.address
    raise OSError(19, os.strerror(19))
