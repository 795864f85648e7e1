"""Functions that write files atomically, and that read files only if no other user can write them.

An engine plan runs on the GPU with the rights of this process, and the library that parses the plan trusts it. The
cache of plans therefore follows the rule of OpenSSH for ``authorized_keys``: other users must not be able to write the
file or any folder above it. A group with no other member, which Debian and Ubuntu create for each user, is allowed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import hashlib
import logging
import os
import pwd
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from vision.errors import ModelError, Unavailable, from_os_error, is_passing

_log = logging.getLogger(__name__)

_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_FIRST_USER_GROUP: Final = 1000
_RESTRICTED: Final = 0o640  # for files about people: only the user and the group of the program can read them
_OTHER_FOLDER: Final = "set XDG_CACHE_HOME, or CACHE_DIRECTORY for a service, to a folder of your own"


class Untrusted(ModelError):
    """A file cannot be trusted: it is a link or unreadable, or other users can write to it or to a folder above it."""


class Held(Unavailable):
    """A lock could not be acquired, because a different process still held it when the wait ended."""


class Unwritable(Unavailable):
    """A file cannot be written, for example because the disk is full or the folder belongs to a different user."""


def cache_folder(name: str) -> Path:
    """Return the path of the cache folder `name`. The folder may not exist yet.

    In a service with ``CacheDirectory=``, the path is in the folder that systemd names in ``CACHE_DIRECTORY``.
    Otherwise, the path is in ``$XDG_CACHE_HOME/vision`` or ``~/.cache/vision``.
    """
    given = os.environ.get("CACHE_DIRECTORY")
    if given:
        return Path(given.split(":")[0]) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vision" / name


def _who_may_write(status: os.stat_result, *, shared: bool = False) -> str:
    """Return a text that states which other users can write to a file.

    Return an empty string if only this user and root can write to the file. `require_private_folder` describes
    `shared`.
    """
    if status.st_uid not in (os.geteuid(), 0) and not (shared and _is_no_other_user(status.st_uid)):
        return f"belongs to user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everyone"
    if (
        status.st_mode & stat.S_IWGRP
        and status.st_gid != 0
        and not _is_private_group(status.st_gid)
        and not (shared and _has_no_members(status.st_gid))
    ):
        return f"can be written by group {status.st_gid}"
    return ""


def _is_no_other_user(user_id: int) -> bool:
    """Return True if a user can be trusted, because the user does not exist, or started this process with `sudo`."""
    if os.geteuid() == 0 and os.environ.get("SUDO_UID") == str(user_id):
        return True
    try:
        pwd.getpwuid(user_id)
    except KeyError:
        return True
    return False


def _has_no_members(group_id: int) -> bool:
    """Return True if a group does not exist on this machine, or is a system group without members.

    The members of a group with a higher id can be unknown, because directories such as LDAP do not list them.
    """
    members = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == group_id}
    try:
        members |= set(grp.getgrgid(group_id).gr_mem)
    except KeyError:
        return not members
    return group_id < _FIRST_USER_GROUP and not members - {"root"}


def _is_private_group(group_id: int) -> bool:
    """Return True if the user of this process is the only member of a group."""
    try:
        members = set(grp.getgrgid(group_id).gr_mem)
        members |= {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == group_id}
        return members == {pwd.getpwuid(os.geteuid()).pw_name}
    except KeyError:
        return False


def require_private_folder(folder: Path, *, content: str = "engines", shared: bool = False) -> None:
    """Check that other users cannot create or replace files in a folder. `content` is the name of the files in errors.

    Sticky folders above the folder, such as /tmp, are accepted if they belong to this user or to root.

    If `shared` is True, the following do not count as other users: users and groups that do not exist on this machine,
    the user who started this process with `sudo`, and system groups without members. This setting is for folders that a
    container shares with its host.

    Raises:
        FileNotFoundError: the folder does not exist.
        Untrusted: other users can write to the folder or to a folder above it.
    """
    resolved = folder.resolve()
    for path in (resolved, *resolved.parents):
        status = path.stat()
        is_mine, is_sticky = status.st_uid == os.geteuid(), bool(status.st_mode & stat.S_ISVTX)
        reason = _who_may_write(status, shared=shared)
        if not reason or (path != resolved and is_sticky and (is_mine or status.st_uid == 0)):
            continue
        is_cache = content == "engines"
        hint = _OTHER_FOLDER if is_cache else "choose a folder that no other user can write to"
        if not is_sticky:  # other users need a sticky folder as it is
            hint = f"{_remedy(path, status)}, or {hint}"
            if path == resolved and is_cache:
                hint += "; then `vision build MODEL --force`"
        raise Untrusted(f"{path} {reason}, so the {content} in {folder} cannot be trusted", hint=hint)


def _remedy(path: Path, status: os.stat_result) -> str:
    """Return the shell command that removes the access of other users to a file."""
    sudo = "" if status.st_uid == os.geteuid() or os.geteuid() == 0 else "sudo "
    if status.st_uid not in (os.geteuid(), 0):
        return f"`{sudo}chown {os.geteuid()} {shlex.quote(str(path))}`"
    return f"`{sudo}chmod go-w {shlex.quote(str(path))}`"


def require_private_file(path: Path, *, shared: bool = False) -> None:
    """Check that only this user and root can write a file. Follow links. `require_private_folder` explains `shared`.

    Raises:
        OSError: the file does not exist, or cannot be examined.
        Untrusted: another user can write the file.
    """
    status = path.stat()
    if reason := _who_may_write(status, shared=shared):
        raise Untrusted(f"{path} {reason}, so it cannot be trusted", hint=_remedy(path, status))


def make_private_folder(folder: Path) -> None:
    """Create a folder that only this user can access, or check an existing folder.

    Raises:
        Untrusted: other users can write to the folder or to a folder above it.
        ModelError: the folder cannot be created.
        Unavailable: the folder cannot be created at present, for example because the disk is full.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for path in reversed(missing):  # `parents=True` would create the parents with the default mode
            path.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        if is_passing(error):
            raise from_os_error(f"the folder {folder} cannot be created", error) from error
        raise ModelError(f"the folder {folder} cannot be created: {error.strerror}", hint=_OTHER_FOLDER) from error
    require_private_folder(folder)


def read_private(path: Path) -> bytes:
    """Return the contents of a file that only this user or root can write.

    Raises:
        FileNotFoundError: the file does not exist.
        Untrusted: the file is a link or no regular file, cannot be read, or can be written by other users.
        Unavailable: the file cannot be read at present, for example because the disk fails.
    """
    hint = f"`rm {path}`; the next start creates the file again"
    try:
        with open(path, "rb", opener=_open_no_link) as file:
            status = os.fstat(file.fileno())  # not of `path`, which can now name a different file
            reason = _who_may_write(status) if stat.S_ISREG(status.st_mode) else "is not a regular file"
            contents = b"" if reason else file.read()
    except FileNotFoundError:
        raise
    except OSError as error:  # such as ELOOP for a link
        if is_passing(error):
            raise from_os_error(f"{path} cannot be read", error) from error
        raise Untrusted(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    if reason:
        raise Untrusted(f"{path} {reason}", hint=hint)
    return contents


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # so that a named pipe does not block the call


def write_whole(path: Path, contents: bytes, *, like: os.stat_result | None = None) -> None:
    """Replace the file at `path` atomically, even if the power fails. Raise `Unwritable` if the file cannot be written.

    The file gets the mode and, if possible, the owner of `like`. If `like` is None, only this user can access the file.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:  # only this user can access a file from `mkstemp`
                if like is not None:
                    with contextlib.suppress(PermissionError):
                        os.fchown(descriptor, like.st_uid, like.st_gid)
                    os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise Unwritable(f"{path} cannot be written: {error.strerror}") from error


def open_restricted(path: str | Path, flags: int) -> int:
    """Open a file with `os.open`, and give a new file the mode 0640. Pass this function to `open` as `opener`."""
    return os.open(path, flags, _RESTRICTED)


def write_checked(path: Path, contents: bytes) -> None:
    """Replace the file at `path` with the SHA-256 of `contents`, followed by `contents`.

    Raises:
        Unwritable: the file cannot be written.
    """
    write_whole(path, hashlib.sha256(contents).digest() + contents)


def read_checked(path: Path) -> bytes | None:
    """Return the contents that `write_checked` wrote. Return None if the file is missing or damaged. Log any damage.

    Raises:
        Untrusted: the file is a link or cannot be read, or other users can write to it or to a folder above it.
        Unavailable: the file cannot be read at present, for example because the disk fails.
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


def sync_folder(folder: Path) -> None:
    """Force the entries of a folder to disk, so that new and renamed files survive a power failure.

    Raises:
        OSError: the folder cannot be opened, or the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
    canceled: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Hold a lock that excludes other processes during a `with` block.

    The system also releases the lock when the process ends or is killed.

    Args:
        path: lock file. The file remains after the release, unless the holder of the lock removes it.
        timeout_s: maximum time in seconds to wait for the lock. 0 means no wait.
        when_waiting: function that is called once if a different process holds the lock.
        canceled: function that returns True to end the wait.

    Raises:
        Held: a different process held the lock for `timeout_s`, or the wait was canceled.
        Unwritable: the lock file cannot be opened or created.
    """
    deadline = time.monotonic() + timeout_s
    if (file := _locked_file(path)) is None:
        when_waiting()
    while file is None:
        if time.monotonic() >= deadline or canceled():
            raise Held(f"a different process holds {path}", hint=f"`fuser {path}` shows the process")
        time.sleep(0.05)
        file = _locked_file(path)
    with file:
        yield


def _locked_file(path: Path) -> BinaryIO | None:
    """Open and lock a file. Return the open file, or None if a different process holds the lock."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise Unwritable(f"the lock {path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass  # a different process holds the lock, or its last holder removed the file
    except OSError as error:  # some network file systems have no locks
        file.close()
        raise Unwritable(f"{path} cannot be locked: {error.strerror}") from error
    file.close()
    return None


def sha256_of(contents: bytes) -> str:
    """Return the SHA-256 of `contents` as a hexadecimal string."""
    return hashlib.sha256(contents).hexdigest()
