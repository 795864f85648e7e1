"""Binding of sockets, with an error that names the reason and a solution."""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

import zmq

from vision.errors import ConfigError


def bound_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: zmq.SocketType,
    bind: str,
    *,
    key: str,
    keepalive_s: int,
    options: Mapping[zmq.SocketOption, int],
) -> zmq.Socket[bytes]:
    """Return a socket of a kind such as `zmq.XPUB`, bound to ``tcp://ADDRESS:PORT`` or ``ipc:///PATH``.

    Args:
        key: configuration key, for errors.
        keepalive_s: time after which an idle connection is probed; three lost probes close it.
        options: socket options, set before binding.

    Raises:
        ConfigError: the address is wrong, in use, or not an address of this machine.
    """
    if bind.startswith("ipc://"):
        _check_free(bind.removeprefix("ipc://"), key)
    port = bind.rpartition(":")[2]
    if port.isdecimal() and int(port) > 65535:  # ZeroMQ would bind its remainder
        raise _bind_error(bind, key, zmq.ZMQError(errno.EINVAL))
    sock = context.socket(kind)
    try:
        sock.setsockopt(zmq.LINGER, 0)
        for option, value in options.items():
            sock.setsockopt(option, value)
        # TCP probes instead of ZeroMQ heartbeats: heartbeats close the connection of a subscriber that is only slow,
        # and libzmq (4.3.5, its issue 3937) then aborts the subscriber's process, in 6 of 16 attempts.
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, keepalive_s)
        sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, keepalive_s)
        sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        sock.setsockopt(zmq.IPV6, int("[" in bind))
        sock.bind(bind)
    except zmq.ZMQError as error:
        sock.close()
        raise _bind_error(bind, key, error) from error
    return sock


def socket_file(address: str) -> tuple[Path, int] | None:
    """Return path and inode of an ipc:// socket; None: it has no file."""
    if not address.startswith("ipc://") or address.startswith("ipc://@"):
        return None
    path = Path(address.removeprefix("ipc://"))
    try:
        return path, path.stat().st_ino
    except OSError:
        return None


def _check_free(path: str, key: str) -> None:
    """Refuse a path that is in use: ZeroMQ would remove the file, even if it belongs to another program."""
    if path.startswith("@"):
        return
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"{key}: expected a free path for a socket, got a file: {path}",
            hint="remove it or choose another path",
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # a killed program left the file
        except OSError as error:
            raise ConfigError(f"{key}: cannot use ipc://{path}: {error.strerror}") from error
    raise ConfigError(
        f"{key}: socket in use by another program: ipc://{path}", hint=f"find it with: ss -xlp src {path}"
    )


def _bind_error(bind: str, key: str, error: zmq.ZMQError) -> ConfigError:
    port = bind.rpartition(":")[2]
    form = ("expected tcp://ADDRESS:PORT or ipc:///PATH/OF/SOCKET, got", "such as tcp://127.0.0.1:5555")
    reasons = {
        errno.EINVAL: form,
        errno.EPROTONOSUPPORT: form,
        errno.ENAMETOOLONG: ("the path of the socket is too long for the operating system", "choose a shorter one"),
        errno.EADDRINUSE: (
            "port in use by another program",
            f"find it with: ss -ltnp 'sport = :{port}', or choose another with --bind",
        ),
        errno.EADDRNOTAVAIL: ("no network interface of this machine has this address", "list them with: ip address"),
        errno.ENODEV: ("no network interface of this machine has this name or address", "list them with: ip address"),
        errno.EACCES: ("permission denied", "ports below 1024 and other users' folders need more rights"),
        errno.ENOENT: ("the folder of the socket does not exist", "make it first"),
    }
    reason, hint = reasons.get(error.errno or 0, (str(error), ""))
    return ConfigError(f"{key}: {reason}: {bind}", hint=hint)
