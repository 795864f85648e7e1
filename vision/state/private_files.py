"""Files that are code: written whole or not at all, and read only where nobody else could have written them.

An engine plan runs on the GPU with the rights of this process and is parsed by a library that trusts it. What OpenSSH
demands of ``authorized_keys`` is therefore demanded of the cache: neither the file nor any folder above it may be
writable by others. A group that has no other member than this user, as Debian and Ubuntu give to each, is nobody else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vision.errors import ModelError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl
    import grp
    import pwd


class Untrusted(ModelError):
    """Others may write a file or a folder above it."""


class Held(ModelError):
    """Another process has the lock."""


class Unwritable(ModelError):
    """The disk is full or read-only, or the folder is another user's."""


def _who_may_write(status: os.stat_result) -> str:
    """Who but this user and root may write, in words; empty where nobody."""
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return "may be written by everybody"
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0 and not _of_this_user_alone(status.st_gid):
        return f"may be written by group {status.st_gid}"
    return ""


def _of_this_user_alone(group_id: int) -> bool:
    """Whether a group has this user in it and nobody else."""
    try:
        members = set(grp.getgrgid(group_id).gr_mem)
    except KeyError:
        return False
    members |= {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == group_id}
    with contextlib.suppress(KeyError):
        return members == {pwd.getpwuid(os.geteuid()).pw_name}
    return False


def _way_out(folder: Path, status: os.stat_result, *, above: bool) -> str:
    """What to do about a folder that others may write."""
    another = "set XDG_CACHE_HOME, or CACHE_DIRECTORY for a service, to a folder of your own"
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_ISVTX:  # no folder to change: it serves others too
        return another
    after = "" if above else "; then `vision build MODEL --force`"
    return f"`chmod go-w {folder}`, or {another}{after}"


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
                hint=_way_out(each, status, above=each != resolved),
            )


def make_private_folder(folder: Path) -> None:
    """Make a folder for this user alone, or accept one that is.

    Raises:
        Untrusted: see `require_private_folder`.
        ModelError: it cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        for each in reversed(missing):  # one by one: `parents` would make those above with the usual rights
            each.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise ModelError(
            f"the folder {folder} cannot be made: {error.strerror}",
            hint="set XDG_CACHE_HOME, or CACHE_DIRECTORY for a service, to a folder that can be written",
        ) from error
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
        Unwritable: the disk is full or read-only.
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
        raise Unwritable(f"{path} cannot be written: {error.strerror}") from error


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
        path: the lock file. It stays, or who holds the lock removes it.
        timeout_s: longest wait; 0: none.
        when_waiting: called once if somebody else holds it.
        cancelled: ends the wait.

    Raises:
        Held: it was held for `timeout_s`, or the wait was cancelled.
        Unwritable: there can be no lock file.
    """
    deadline = clock() + timeout_s
    told = False
    while (file := _locked_file(path)) is None:
        if not told:
            when_waiting()
            told = True
        if clock() >= deadline or cancelled():
            raise Held(f"another process holds {path}", hint="`fuser` shows which one")
        time.sleep(0.05)
    with file:
        try:
            yield
        finally:
            _unlock(file.fileno())


def _locked_file(path: Path) -> BinaryIO | None:
    """The file of a lock that is this process's from now on; None: somebody else has it."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise Unwritable(f"the lock {path} cannot be opened: {error.strerror}") from error
    if _try_lock(file.fileno()) and _is_still(path, file.fileno()):
        return file
    file.close()
    return None


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a name still means what was opened: whoever held the lock may have removed the file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
