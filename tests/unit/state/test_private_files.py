"""Tests that files are written completely or not at all, and that files of other users are rejected."""

from __future__ import annotations

import errno
import fcntl
import grp
import multiprocessing
import os
import pwd
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event as ProcessEvent
from pathlib import Path

import pytest

from tests.paths import ROOT
from vision.errors import ModelError
from vision.state import private_files
from vision.state.private_files import (
    Held,
    Untrusted,
    Unwritable,
    locked,
    make_private_folder,
    read_checked,
    read_private,
    require_private_folder,
    sha256_of,
    write_checked,
    write_whole,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cache" / "engines"
    make_private_folder(made)
    return made


def test_written_file_is_read(folder: Path) -> None:
    write_whole(folder / "a", b"one")
    write_whole(folder / "a", b"two")
    assert read_private(folder / "a") == b"two"
    assert [path.name for path in folder.iterdir()] == ["a"], "nothing is left over"


def test_files_and_folders_are_private(folder: Path) -> None:
    write_whole(folder / "a", b"one")
    assert (folder / "a").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


_AS_ORDINARY_USER = """
import os, pathlib, sys
from vision.state.private_files import make_private_folder, read_private, write_whole
os.setgroups([]); os.setgid(12321); os.setuid(12321); os.umask(0o002)
folder = pathlib.Path(sys.argv[1]) / ".cache" / "vision" / "engines"
make_private_folder(folder)
write_whole(folder / "a", b"one")
print(read_private(folder / "a").decode(), oct(folder.parent.stat().st_mode & 0o777))
"""


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_created_folders_are_private_with_any_umask() -> None:
    """Debian and Ubuntu create a group for each user, and Ubuntu sets a umask of 002."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:  # other users cannot read temporary folders of root
        os.chown(home, 12321, 12321)
        ran = subprocess.run(
            [sys.executable, "-c", _AS_ORDINARY_USER, home],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert (ran.stdout.split(), ran.returncode) == (["one", "0o700"], 0), ran.stderr


@pytest.mark.parametrize(
    ("members", "primary", "trusted"),
    [
        ([], [("me", 900)], True),
        (["me"], [("me", 900)], True),
        (["me"], [("me", 100)], True),
        (["me", "other"], [("me", 900)], False),
        ([], [("me", 900), ("other", 900)], False),
        ([], [("me", 100)], False),
    ],
)
def test_group_with_other_members_is_refused(
    members: list[str], primary: list[tuple[str, int]], trusted: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = [pwd.struct_passwd((name, "x", 5, group, "", "/", "")) for name, group in primary]
    monkeypatch.setattr("grp.getgrgid", lambda group: grp.struct_group(("g", "x", group, members)))
    monkeypatch.setattr("pwd.getpwall", lambda: accounts)
    monkeypatch.setattr("pwd.getpwuid", lambda _user: accounts[0])
    assert private_files._is_private_group(900) is trusted


@pytest.mark.timeout(20)
def test_named_pipe_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "engine", 0o600)
    with pytest.raises(Untrusted, match="not a regular file"):
        read_private(folder / "engine")


def test_unknown_group_is_refused() -> None:
    assert not private_files._is_private_group(3_999_999)


@pytest.mark.parametrize("mode", [0o777, 0o707])
def test_folder_writable_by_others_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(Untrusted) as caught:
        require_private_folder(folder)
    assert f"chmod go-w {folder}" in caught.value.hint


def test_folder_below_writable_folder_is_refused(folder: Path) -> None:
    folder.parent.chmod(0o777)
    with pytest.raises(Untrusted) as caught:
        make_private_folder(folder)
    assert str(folder.parent) in str(caught.value)


def test_sticky_folder_is_accepted_only_as_parent(folder: Path) -> None:
    folder.parent.chmod(0o1777)  # as /tmp: users cannot replace files of others
    require_private_folder(folder)
    folder.chmod(0o1777)
    with pytest.raises(Untrusted) as caught:
        require_private_folder(folder)
    assert "chmod" not in caught.value.hint, "/tmp stays as it is"
    assert "XDG_CACHE_HOME" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_of_other_users_are_refused(folder: Path) -> None:
    write_whole(folder / "a", b"one")
    os.chown(folder / "a", 12345, -1)
    with pytest.raises(Untrusted) as caught:
        read_private(folder / "a")
    assert "12345" in str(caught.value)
    os.chown(folder, 12345, -1)
    with pytest.raises(Untrusted) as caught:
        require_private_folder(folder)
    assert "12345" in str(caught.value)
    assert "chmod" not in caught.value.hint, "it would not help"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to any group")
def test_folder_writable_by_group_is_refused(folder: Path) -> None:
    os.chown(folder, -1, 12345)
    folder.chmod(0o770)
    with pytest.raises(Untrusted) as caught:
        require_private_folder(folder)
    assert "12345" in str(caught.value)


def test_file_writable_by_others_is_refused(folder: Path) -> None:
    write_whole(folder / "a", b"one")
    (folder / "a").chmod(0o606)
    with pytest.raises(Untrusted) as caught:
        read_private(folder / "a")
    assert f"rm {folder / 'a'}" in caught.value.hint


def test_links_and_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"one")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Untrusted):
        read_private(folder / "link")
    (folder / "sub").mkdir()
    with pytest.raises(Untrusted):
        read_private(folder / "sub")


def test_missing_file_raises_file_not_found(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_private(folder / "nothing")


def test_uncreatable_folder_raises_model_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError):
        make_private_folder(tmp_path / "file" / "engines")
    with pytest.raises(ModelError) as caught:
        make_private_folder(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


def test_failed_write_keeps_old_file(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "in the way").write_text("")
    with pytest.raises(Unwritable):
        write_whole(folder / "a", b"one")
    assert [path.name for path in folder.iterdir()] == ["a"]


def hold(path: Path, taken: ProcessEvent, release: ProcessEvent) -> None:
    with locked(path):
        taken.set()
        release.wait(60)


@pytest.mark.integration
def test_lock_excludes_other_processes(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    taken, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder / "l", taken, release))
    other.start()
    try:
        assert taken.wait(60)
        waits: list[str] = []
        with (
            pytest.raises(Held),
            locked(folder / "l", timeout_s=0.2, when_waiting=lambda: waits.append("waiting")),
        ):
            pytest.fail("two processes hold the lock")
        assert waits == ["waiting"]
        threading.Timer(0.2, release.set).start()
        with locked(folder / "l", timeout_s=60):
            pass
    finally:
        release.set()
        other.join(60)
    assert other.exitcode == 0


def test_lock_of_killed_process_is_released(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    taken, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder / "l", taken, release))
    other.start()
    assert taken.wait(60)
    other.kill()
    other.join(60)
    with locked(folder / "l", timeout_s=5):
        pass


def test_lock_on_removed_file_is_not_valid(folder: Path) -> None:
    """The lock file can be removed while a process waits for the lock. Two processes must never hold the same lock."""
    path, entered = folder / "l", threading.Event()

    def other() -> None:
        with locked(path, timeout_s=60):
            entered.set()
            assert private_files._locked_file(path) is None, "it holds the file that the path names"

    with locked(path):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.2)
        path.unlink()
    thread.join(60)
    assert entered.is_set()


def test_unwritable_lock_raises_error(folder: Path) -> None:
    (folder / "l").mkdir()
    with pytest.raises(Unwritable), locked(folder / "l"):
        pytest.fail("the lock is a folder")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_file_system_without_locks_is_not_a_held_lock(folder: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(Unwritable), locked(folder / "l", timeout_s=60):
        pytest.fail("nothing is locked")


def test_waiting_for_lock_can_be_canceled(folder: Path) -> None:
    started = time.monotonic()
    with locked(folder / "l"):
        outcome: list[str] = []

        def other() -> None:
            try:
                with locked(folder / "l", canceled=lambda: time.monotonic() - started > 0.2):
                    outcome.append("locked")
            except Held:
                outcome.append("canceled")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
    assert outcome == ["canceled"]


def test_sha256_is_hexadecimal() -> None:
    assert sha256_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-1], lambda text: text[:0], lambda text: text + b"x", lambda text: b"y" + text]
)
def test_checked_file_that_is_damaged_reads_as_none(
    damage: Callable[[bytes], bytes], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "a"
    assert read_checked(path) is None
    write_checked(path, b"contents")
    assert read_checked(path) == b"contents"
    path.write_bytes(damage(path.read_bytes()))
    assert read_checked(path) is None
    assert str(path) in caplog.text


def test_checked_file_writable_by_others_is_refused(folder: Path) -> None:
    path = folder / "a"
    write_checked(path, b"contents")
    path.chmod(0o666)
    with pytest.raises(Untrusted):
        read_checked(path)
