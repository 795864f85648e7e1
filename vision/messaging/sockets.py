"""Bound ZeroMQ sockets, the options that all sockets share, and checks of addresses."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import zmq

from vision.errors import ConfigError, Unavailable, VisionError, from_os_error
from vision.messaging.curve import CurveServer, KeyFolder
from vision.messaging.exposed_port import ExposedPort, PortLimits

log = logging.getLogger(__name__)

_NOT_LOCAL: Final = (
    Unavailable,
    "address-not-local",
    "no network interface of this machine has this name or address",
    "list them with: ip address",
)
_BIND_ERRORS: Final = {
    errno.EADDRINUSE: (
        Unavailable,
        "address-in-use",
        "port in use by another program",
        "find it with: ss -ltnp 'sport = :{port}', or choose a different port with --bind",
    ),
    errno.EADDRNOTAVAIL: _NOT_LOCAL,
    errno.ENODEV: _NOT_LOCAL,
    errno.EACCES: (
        ConfigError,
        "not-permitted",
        "permission denied",
        "use a port from 1024 on, or a folder that you can write to",
    ),
    errno.ENOENT: (ConfigError, "no-folder", "the folder of the socket does not exist", "create the folder first"),
}
"""The class, code, reason, and hint for each error number. `vision.config` refuses malformed addresses."""

_TCP: Final = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\[\]:/\s]+):(?P<port>\d{1,5})")
_RECONNECT_MAX_MS: Final = 2000
_BACKLOG: Final = 1024
_GROUP_MODE: Final = 0o660
_ANY_INTERFACE: Final = ("*", "0.0.0.0", "[::]")


class BoundSocket:
    """A ZeroMQ socket that is bound to ``tcp://ADDRESS:PORT`` or ``ipc:///PATH``, in its own context.

    Attributes:
        zmq: the socket.
        address: the bound address, with the actual port instead of ``*``.
        internal_address: address for processes of the same user on this machine, to which `limits` do not apply.
    """

    def __init__(
        self,
        kind: zmq.SocketType,
        bind: str,
        *,
        key: str,
        keepalive_s: int,
        options: Mapping[zmq.SocketOption, int],
        limits: PortLimits | None = None,
        keys: KeyFolder | None = None,
    ) -> None:
        """Bind the socket. Errors contain the configuration key `key`.

        Args:
            kind: type of the socket.
            bind: address.
            key: configuration key of the address.
            keepalive_s: time in seconds before the first probe of an idle connection, and between probes.
            options: further options of the socket.
            limits: limits for connections to the address, which a separate process enforces. If None, ZeroMQ serves the
                address without these limits.
            keys: keys for CURVE. If None, messages are not encrypted, and every client can connect.

        Raises:
            ConfigError: the address cannot be bound, for example because its folder does not exist, or the key of the
                publisher cannot be used.
            Unavailable: the address is in use, or not an address of this machine at present.
            Untrusted: other users can write to the folder of `keys` or to a folder above it.
        """
        _check_free(bind, key)
        self._port: ExposedPort | None = None
        self._curve: CurveServer | None = None
        self._context = zmq.Context()
        try:
            self.zmq = self._context.socket(kind)
            if limits is not None:
                self._port = ExposedPort(bind, limits, keepalive_s)
            set_common_options(self.zmq, bind, keepalive_s)
            for option, value in options.items():
                self.zmq.setsockopt(option, value)
            if keys is not None:
                self._curve = CurveServer(self.zmq, keys, self._disconnect_clients)
            self._bind(bind)
        except VisionError:
            self._context.destroy(linger=0)
            self._close_port()
            raise
        except (OSError, zmq.ZMQError) as error:
            self._context.destroy(linger=0)
            self._close_port()
            raise bind_error(key, bind, error.errno, str(error)) from error
        self.address = self._port.address if self._port else self.zmq.getsockopt_string(zmq.LAST_ENDPOINT)
        self.internal_address = self._port.target if self._port else self.address
        self._file = _socket_file(self.address)

    def _bind(self, bind: str) -> None:
        if self._port is None:
            self.zmq.bind(bind)
        else:
            self.zmq.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
            self.zmq.setsockopt(zmq.BACKLOG, _BACKLOG)
            self.zmq.bind(self._port.target)
            self._port.start()
        _permit_group(bind)

    def _disconnect_clients(self) -> None:
        if self._port is not None:
            self._port.disconnect_clients()

    def _close_port(self) -> None:
        if self._port is not None:
            self._port.close()

    def counters(self) -> dict[str, int]:
        """Return the counters of the process that serves the port, by name.

        Return an empty dict if there is no such process.
        """
        return {} if self._port is None else self._port.counters

    def second(self, kind: zmq.SocketType) -> zmq.Socket[bytes]:
        """Return another socket in the context of this socket, for a proxy. Close the new socket before this socket."""
        return self._context.socket(kind)

    def interrupt(self) -> None:
        """Free the address while a different thread waits on the socket. Return when that thread has closed the socket.

        The calls of that thread raise `zmq.ContextTerminated`.
        """
        self._unlink()
        self._context.term()
        self._close_port()

    def close(self, linger_s: float = 0.0) -> None:
        """Free the address, and wait up to `linger_s` seconds for messages to be sent."""
        self._unlink()
        self.zmq.close(linger=int(linger_s * 1000))
        self._context.term()
        self._close_port()

    def _unlink(self) -> None:
        """Remove the file of an ipc:// socket, unless a newer file has replaced it."""
        if self._file is not None and _socket_file(self.address) == self._file:
            self._file[0].unlink()


def bind_error(key: str, bind: str, number: int | None, text: str) -> VisionError:
    """Return the error for an address that cannot be bound, from the number and the text of the system's error."""
    if number not in _BIND_ERRORS:
        return from_os_error(f"{key}: cannot use {bind}", OSError(number, text))
    refusal, code, reason, hint = _BIND_ERRORS[number]
    return refusal(f"{key}: {reason}: {bind}", hint=hint.format(port=bind.rpartition(":")[2]), code=code)


def set_common_options(sock: zmq.Socket[bytes], address: str, keepalive_s: int) -> None:
    """Set the options that the sockets of publishers and subscribers share.

    TCP keep-alive is used instead of ZeroMQ heartbeats, because heartbeats close the connection of a subscriber that is
    only slow. In 6 of 16 attempts, libzmq 4.3.5 then aborted the subscriber's process.

    Args:
        sock: the socket.
        address: the address of the socket. If it contains an IPv6 address in brackets, IPv6 is enabled.
        keepalive_s: time in seconds before the first probe of an idle connection, and between probes. Three lost probes
            close the connection.
    """
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
    sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, keepalive_s)
    sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, keepalive_s)
    sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    sock.setsockopt(zmq.IPV6, int("[" in address))


def check_address(address: str) -> None:
    """Raise `ConfigError` if ZeroMQ would refuse the address as "Invalid argument", or would never connect to it."""
    if address.startswith("ipc://") and len(address) > len("ipc://"):
        return
    match = _TCP.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        hint = f"did you mean tcp://{address}" if _TCP.fullmatch(f"tcp://{address}") else ""
        text = f"address: expected tcp://HOST:PORT or ipc:///PATH/OF/SOCKET, got {address!r}"
        raise ConfigError(text, hint=hint, code="address-form")
    if match["host"] in _ANY_INTERFACE:
        text = f"address: expected the host of a publisher, got {match['host']!r}, which is for binding only"
        raise ConfigError(text, hint=f"on the same machine: tcp://127.0.0.1:{match['port']}", code="address-form")


def reachable_address(replay: str, address: str) -> str:
    """Return the address `replay`. If its host is only for binding, such as ``*``, replace the host.

    The replacement is the host of `address`, or 127.0.0.1 if `address` is not a TCP address.
    """
    match = _TCP.fullmatch(replay)
    if match is None or match["host"] not in _ANY_INTERFACE:
        return replay
    publisher = _TCP.fullmatch(address)
    return f"tcp://{publisher['host'] if publisher is not None else '127.0.0.1'}:{match['port']}"


def _socket_file(address: str) -> tuple[Path, int] | None:
    """Return the path and the inode number of an ipc:// socket's file. Return None if there is no such file."""
    if not address.startswith("ipc://") or address.startswith("ipc://@"):
        return None
    path = Path(address.removeprefix("ipc://"))
    try:
        return path, path.stat().st_ino
    except OSError:
        return None


def _permit_group(bind: str) -> None:
    """Permit the group of the service to connect to an ipc:// socket in the runtime folder of the service.

    systemd sets RUNTIME_DIRECTORY. In other folders, the umask decides who can connect.
    """
    path, folders = Path(bind.removeprefix("ipc://")), os.environ.get("RUNTIME_DIRECTORY")
    if folders is None or not bind.startswith("ipc:///"):
        return
    if path.parent.resolve() in [Path(folder).resolve() for folder in folders.split(":")]:
        path.chmod(_GROUP_MODE)


def _check_free(bind: str, key: str) -> None:
    """Check that an ipc:// path is not in use, because the new socket replaces the file.

    Raises:
        ConfigError: the path is a file that is not a socket, or this user has no access.
        Unavailable: a program uses the socket, or the socket cannot be checked at present.
    """
    path = bind.removeprefix("ipc://")
    if path == bind or path.startswith("@"):
        return
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        text = f"{key}: expected a free path for a socket, got a file: {path}"
        raise ConfigError(text, hint="remove the file, or choose a different path", code="path-in-use")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # a killed program left the file
        except OSError as error:
            raise from_os_error(f"{key}: cannot use ipc://{path}", error) from error
    text, hint = f"{key}: socket in use by another program: {bind}", f"find it with: ss -xlp src {path}"
    raise Unavailable(text, hint=hint, code="address-in-use")
