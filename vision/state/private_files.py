"""Private files: written completely or not at all, and read only if no other user can write them.

An engine plan runs on the GPU with the rights of this process, and the library that parses it trusts it. The cache
therefore has the same rule as ``authorized_keys`` of OpenSSH: other users must not be able to write the file or any
folder above it. A group with no other member, which Debian and Ubuntu create for each user, is allowed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
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

_log = logging.getLogger(__name__)

_DIGEST_BYTES = hashlib.sha256().digest_size


class Untrusted(ModelError):
    """Other users can write a file or a folder above it."""


class Held(ModelError):
    """Another process holds the lock."""


class Unwritable(ModelError):
    """The disk is full or read-only, or the folder belongs to another user."""


def _who_may_write(status: os.stat_result) -> str:
    """Return which other users can write, as text; empty: none."""
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return "may be written by everybody"
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0 and not _of_this_user_alone(status.st_gid):
        return f"may be written by group {status.st_gid}"
    return ""


def _of_this_user_alone(group_id: int) -> bool:
    """Return True if this user is the only member of a group."""
    try:
        members = set(grp.getgrgid(group_id).gr_mem)
    except KeyError:
        return False
    members |= {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == group_id}
    with contextlib.suppress(KeyError):
        return members == {pwd.getpwuid(os.geteuid()).pw_name}
    return False


def _way_out(folder: Path, status: os.stat_result, *, above: bool) -> str:
    """Return a hint for a folder that other users can write."""
    another = "set XDG_CACHE_HOME, or CACHE_DIRECTORY for a service, to a folder of your own"
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_ISVTX:  # other users need this folder as it is
        return another
    after = "" if above else "; then `vision build MODEL --force`"
    return f"`chmod go-w {folder}`, or {another}{after}"


def require_private_folder(folder: Path) -> None:
    """Refuse a folder in which other users can create or replace files. A sticky one above it, such as /tmp, is fine.

    Raises:
        Untrusted: other users can write it or a folder above it.
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
    """Create a folder for this user only, or accept an existing one.

    Raises:
        Untrusted: see `require_private_folder`.
        ModelError: it cannot be created.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        for each in reversed(missing):  # one by one: `parents` would create those above with the default mode
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
    """Return the contents of a file that only this user or root can write.

    Raises:
        FileNotFoundError: the file does not exist.
        Untrusted: it is a link, or other users can write it.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:  # ELOOP
        raise Untrusted(f"{path} cannot be read: {error.strerror}", hint=f"`rm {path}`; it is built again") from error
    try:
        status = os.fstat(descriptor)  # of the open file: the name may mean another one by now
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
    """Replace `path` in one step: after a power cut the file is the old one or the new one.

    Raises:
        Unwritable: the disk is full or read-only.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:  # mkstemp: readable and writable by this user only
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


def write_checked(path: Path, contents: bytes) -> None:
    """Replace `path` as `write_whole` does, with the SHA-256 of the contents in front of them."""
    write_whole(path, hashlib.sha256(contents).digest() + contents)


def read_checked(path: Path) -> bytes | None:
    """Return what `write_checked` wrote, or None if there is no such file or it is damaged, which is logged.

    Raises:
        Untrusted: other users can write to the file or a folder above it.
    """
    try:
        require_private_folder(path.parent)
        stored = read_private(path)
    except FileNotFoundError:
        return None
    digest, contents = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if hashlib.sha256(contents).digest() != digest:
        _log.warning("%s is damaged and is not used", path)
        return None
    return contents


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
    """Hold a lock between processes. The system releases it when the process ends, in any way.

    Args:
        path: the lock file. It stays, unless the holder removes it.
        timeout_s: longest wait; 0: do not wait.
        when_waiting: called once if another process holds it.
        cancelled: returns True to end the wait.

    Raises:
        Held: it was held for `timeout_s`, or the wait was cancelled.
        Unwritable: the lock file cannot be created.
    """
    deadline = clock() + timeout_s
    waiting = False
    while (file := _locked_file(path)) is None:
        if not waiting:
            when_waiting()
            waiting = True
        if clock() >= deadline or cancelled():
            raise Held(f"another process holds {path}", hint="`fuser` shows which one")
        time.sleep(0.05)
    with file:
        try:
            yield
        finally:
            _unlock(file.fileno())


def _locked_file(path: Path) -> BinaryIO | None:
    """Return the locked file; None: another process holds the lock."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise Unwritable(f"the lock {path} cannot be opened: {error.strerror}") from error
    if _try_lock(file.fileno()) and _is_still(path, file.fileno()):
        return file
    file.close()
    return None


def _is_still(path: Path, descriptor: int) -> bool:
    """Return True if a path still names the open file: the previous holder may have removed it."""
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
    """Return the hexadecimal SHA-256."""
    return hashlib.sha256(contents).hexdigest()
