"""Functions that read and write files at paths from the user, without waiting forever.

Such a path can name anything, for example a named pipe that no other program uses, a device with endless data, or a
folder.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vision.errors import Closed

_MAX_BYTES: Final = 256 << 20
_CHUNK_BYTES: Final = 1 << 20
_POLL_MS: Final = 100

_stops: list[threading.Event] = []
"""Events that end a wait for the other end of a pipe."""


class TooLarge(OSError):
    """An input has more bytes than the caller accepts."""


def stop_waits_on(stop: threading.Event) -> None:
    """Make `read_input` and `write_output` raise `Closed` if they wait when `stop` is set.

    Commands that do not end at a signal call this function.
    """
    _stops.append(stop)


def read_input(path: Path, *, max_bytes: int = _MAX_BYTES) -> bytes:
    """Return the contents of a file or of a pipe, such as ``<(...)`` of a shell.

    A pipe is read until its writers have closed it. A named pipe that has no writer is empty.

    Raises:
        Closed: the program was stopped while it waited for the writer of a pipe (see `stop_waits_on`).
        TooLarge: the input has more than `max_bytes` bytes.
        OSError: the file cannot be opened or read, or is a folder, a device, or a socket.
    """
    descriptor = _open_to_read(path, os.O_RDONLY)
    try:
        contents = bytearray()
        while part := _read(descriptor, min(_CHUNK_BYTES, max_bytes + 1 - len(contents))):
            contents += part
            if len(contents) > max_bytes:
                raise TooLarge(errno.EINVAL, f"expected at most {max_bytes} bytes", str(path))
        return bytes(contents)
    finally:
        os.close(descriptor)


def write_output(path: Path, contents: str | bytes | Iterable[str]) -> None:
    """Write `contents` to a file, a pipe, or a device. Encode text as UTF-8. Overwrite an existing file.

    If `contents` are several texts, they are written one after the other, so that not all of them are in memory.

    Raises:
        Closed: the program was stopped while it waited for the reader of a pipe (see `stop_waits_on`).
        OSError: the file cannot be opened or written, is a folder or a socket, or is a named pipe without a reader.
    """
    descriptor = open_output(str(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.set_blocking(descriptor, False)
        for part in [contents] if isinstance(contents, str | bytes) else contents:
            rest = memoryview(part.encode() if isinstance(part, str) else part)
            while rest:
                try:
                    rest = rest[os.write(descriptor, rest) :]
                except BlockingIOError:
                    _wait(descriptor, select.POLLOUT)
    finally:
        os.close(descriptor)


def open_input(path: str, flags: int) -> int:
    """Open a file or a pipe, and return the descriptor. This function can be the `opener` of `open`.

    Reading waits for the data of a pipe, but opening does not wait for its writer.

    Raises:
        OSError: the file cannot be opened, or is a folder, a device, or a socket.
    """
    descriptor = _open_to_read(path, flags)
    os.set_blocking(descriptor, True)
    return descriptor


def open_output(path: str, flags: int, mode: int = 0o666) -> int:
    """Open a file, a pipe, or a device to write to it, and return the descriptor.

    Writing waits while a pipe is full, but opening does not wait for its reader.

    Raises:
        OSError: the file cannot be opened, is a folder or a socket, or is a named pipe without a reader.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "expected a file, got a socket, or a pipe that nobody reads", path) from error
        raise
    os.set_blocking(descriptor, True)
    return descriptor


def _open_to_read(path: str | Path, flags: int) -> int:
    """Open a file or a pipe without waiting, and return the descriptor.

    Reading the pipe raises `BlockingIOError` while no data is available.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - before the file is opened, which can have effects on a device
    for is_kind, kind in ((stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device")):
        if is_kind(mode):
            raise OSError(errno.EINVAL, f"expected a file, got a {kind}", str(path))
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder", str(path))
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _read(descriptor: int, nbytes: int) -> bytes:
    """Read at most `nbytes` bytes. Return b"" at the end. Raise `Closed` if the program is stopped during a wait."""
    while True:
        try:
            return os.read(descriptor, nbytes)
        except BlockingIOError:
            _wait(descriptor, select.POLLIN)


def _wait(descriptor: int, event: int) -> None:
    """Wait until a pipe can be read or written. Raise `Closed` if the program is stopped."""
    poll = select.poll()
    poll.register(descriptor, event)
    while not poll.poll(_POLL_MS):
        if any(stop.is_set() for stop in _stops):
            raise Closed("stopped while waiting for the other end of a pipe")
