"""A TCP port that a separate process serves (`vision.messaging.relay`), and that stays open if this process fails."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from vision.messaging import relay

log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_SEND_BUFFER_BYTES: Final = 256 * 1024
"""Without a limit, Linux extends the buffer to megabytes, which hold minutes of outdated messages."""

_STOP_S: Final = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0


@dataclass(frozen=True, slots=True)
class PortLimits:
    """Limits of a port. The process that serves it has further limits (`vision.messaging.relay`)."""

    connections: int  # maximum number at the same time; further clients wait
    subscribes: bool  # the clients are subscribers, which send only subscriptions


class ExposedPort:
    """A TCP port, and the process that forwards its connections to the socket that is bound to `target`.

    Attributes:
        address: address of the port, such as ``tcp://127.0.0.1:5555``.
        target: address to which the ZeroMQ socket must be bound. Only processes of the same user can connect to it.
        counters: counters of the process by name. Any thread can read them.
    """

    def __init__(self, bind: str, limits: PortLimits, keepalive_s: int) -> None:
        """Bind the port.

        Raises:
            OSError: the port cannot be bound, for example because it is in use.
        """
        self.counters: dict[str, int] = {}
        self._limits = limits
        self._keepalive_s = keepalive_s
        self._name = f"vision-{os.getpid()}-{secrets.token_hex(8)}"
        self.target = f"ipc://@{self._name}"
        self._listener, self.address = _listen(bind)
        self._closed = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._serve, name="relay", daemon=True)

    def start(self) -> None:
        """Accept connections. Call this after a socket is bound to `target`."""
        self._process = self._start_process()
        self._thread.start()

    def disconnect_clients(self) -> None:
        """Close all connections. Clients can connect again at once."""
        process = self._process
        if process is not None:
            process.kill()  # the thread starts a new process

    def close(self) -> None:
        """Send what the socket has sent to the process, and close all connections and the port. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        process = self._process
        if process is not None:
            _close_input(process)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            self._thread.join()
        self._listener.close()

    def _start_process(self) -> subprocess.Popen[str]:
        fd = self._listener.fileno()
        options = {
            "listener": fd,
            "target": f"\0{self._name}",
            "connections": self._limits.connections,
            "subscribes": self._limits.subscribes,
            "keepalive_s": self._keepalive_s,
        }
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(relay.__file__)), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[fd],
        )

    def _serve(self) -> None:
        """Read the counters of the process, and start a new process if it ends."""
        pause_s = _FIRST_PAUSE_S
        while (process := self._process) is not None:
            started = time.monotonic()
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(ValueError):  # a killed process can leave an incomplete line
                    self.counters = {**json.loads(line), "restarts": self.counters.get("restarts", 0)}
            code = process.wait()
            process.stdout.close()
            _close_input(process)
            if self._closed.is_set():
                return
            log.warning("the process that serves %s ended (%d), and is started again", self.address, code)
            pause_s = _FIRST_PAUSE_S if time.monotonic() - started > _LONGEST_PAUSE_S else pause_s
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self.counters = {**self.counters, "restarts": self.counters.get("restarts", 0) + 1}
            self._process = self._start_process()
            if self._closed.is_set():
                _close_input(self._process)


def _close_input(process: subprocess.Popen[str]) -> None:
    """Make the process end."""
    with contextlib.suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()


def _listen(bind: str) -> tuple[socket.socket, str]:
    """Return a listening socket, and its address with the actual port."""
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


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Return the family and the address of a host in the form of ``publish.bind``, which can be an interface.

    Raises:
        OSError: there is no interface of this name (ENODEV).
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
