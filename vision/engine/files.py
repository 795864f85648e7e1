"""Files that are code: written whole or not at all, and read only where nobody else could have written them.

An engine plan runs on the GPU with the rights of this process and is parsed by a library that trusts it. What OpenSSH
demands of ``authorized_keys`` is therefore demanded of the cache: neither the file nor any folder above it may be
writable by others.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vision.errors import ModelError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class Untrusted(ModelError):
    """Others may write a file or a folder above it."""


def _who_may_write(status: os.stat_result) -> str:
    """Who but this user and root may write, in words; empty where nobody."""
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return "may be written by everybody"
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        return f"may be written by group {status.st_gid}"
    return ""


def require_private_folder(folder: Path) -> None:
    """Refuse a folder into which others could put, or replace, files. A sticky one such as /tmp above it is fine.

    Raises:
        Untrusted: others may write it or a folder above it.
    """
    if os.name != "posix":  # Windows: access lists, inherited from the user's profile
        return
    resolved = folder.resolve()
    for each in (resolved, *resolved.parents):
        status = each.stat()
        sticky = bool(status.st_mode & stat.S_ISVTX) and each != resolved
        reason = _who_may_write(status)
        if reason and not (sticky and status.st_uid in (os.geteuid(), 0)):
            raise Untrusted(
                f"{each} {reason}, so the engines in {folder} are not to be trusted",
                hint=f"`chmod go-w {each}`, or another cache folder; then `vision build MODEL --force`",
            )


def make_private_folder(folder: Path) -> None:
    """Make a folder for this user alone, or accept one that is.

    Raises:
        Untrusted: see `require_private_folder`.
        ModelError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"the folder {folder} cannot be made: {error.strerror}") from error
    require_private_folder(folder)


def read_private(path: Path) -> bytes:
    """Contents of a file that only this user or root can have written.

    Raises:
        FileNotFoundError: there is none.
        Untrusted: it is a link, or others may write it.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:  # ELOOP
        raise Untrusted(f"{path} cannot be read: {error.strerror}", hint=f"`rm {path}`; it is built again") from error
    try:
        status = os.fstat(descriptor)  # of what was opened, whatever the name means by now
        reason = "is not a file" if not stat.S_ISREG(status.st_mode) else ""
        if os.name == "posix":
            reason = reason or _who_may_write(status)
        if reason:
            raise Untrusted(f"{path} {reason}", hint=f"`rm {path}`; it is built again")
    except BaseException:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def write_whole(path: Path, contents: bytes) -> None:
    """Put a file in place of `path` in one step: after a power cut there is the old one or the new one.

    Raises:
        ModelError: the disk is full or read-only.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:  # mkstemp: readable and writable by this user alone
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    timeout_s: float = 3600.0,
    when_waiting: Callable[[], object] = lambda: None,
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Hold a lock that other processes see. It goes with the process that holds it, however that ends.

    Args:
        path: the lock file; it stays.
        when_waiting: called once if somebody else holds it.
        cancelled: ends the wait.

    Raises:
        ModelError: it was held for `timeout_s`, or the wait was cancelled.
    """
    with path.open("ab") as file:
        deadline = clock() + timeout_s
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                when_waiting()
                told = True
            if clock() >= deadline or cancelled():
                raise ModelError(f"another process holds {path}", hint="`fuser` shows which one")
            time.sleep(0.05)
        try:
            yield
        finally:
            _unlock(file.fileno())


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    if sys.platform == "win32":
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def sha256_of(contents: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(contents).hexdigest()
