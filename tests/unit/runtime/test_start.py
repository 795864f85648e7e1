"""Tests that a service repeats its start after temporary errors, but not after errors that need an operator."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.log_records import log_args
from vision.capture.liveness import Backoff
from vision.errors import Closed, ConfigError, Unavailable, VisionError
from vision.messaging.publisher import Publisher
from vision.messaging.recorder import Recorder
from vision.runtime.start import open_patiently
from vision.stages.snapshots import _existing_snapshots
from vision.stages.video import video_paths
from vision.state.database import StateDatabase


def quickly() -> Backoff:
    return Backoff(0.01, 0.02, shortest_s=0.001)


def attempt(outcomes: list[Exception | str], closed: list[int]) -> Callable[[ExitStack], str]:
    """Return a function that raises or returns the outcomes in order, and registers a resource in each call."""

    def open_parts(opened: ExitStack) -> str:
        opened.callback(closed.append, len(outcomes))
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return open_parts


def test_service_repeats_its_start_and_closes_what_each_attempt_opened(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[int] = []
    failures: list[Exception | str] = [Unavailable("full"), OSError(errno.EMFILE, "x"), Unavailable("full"), "open"]
    with ExitStack() as resources:
        opening = attempt(failures, closed)
        assert open_patiently(opening, resources, threading.Event(), patient=True, backoff=quickly()) == "open"
        assert closed == [4, 3, 2]
    assert closed == [4, 3, 2, 1]
    attempts = [args[0] for args in log_args(caplog, "vision.runtime.start", logging.WARNING)]
    assert attempts == [1, 2]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("key"), ConfigError),
        (OSError(errno.EACCES, "x"), ConfigError),
        (VisionError("device"), VisionError),
    ],
)
def test_other_errors_end_the_start_of_a_service(error: Exception, kind: type[VisionError]) -> None:
    with ExitStack() as resources, pytest.raises(kind):
        open_patiently(attempt([error], []), resources, threading.Event(), patient=True, backoff=quickly())


def test_command_of_a_person_does_not_wait() -> None:
    with ExitStack() as resources, pytest.raises(Unavailable):
        open_patiently(attempt([OSError(errno.ENOSPC, "x")], []), resources, threading.Event())


def test_stop_ends_the_wait() -> None:
    stop = threading.Event()
    stop.set()
    with ExitStack() as resources, pytest.raises(Closed):
        open_patiently(attempt([Unavailable("full")], []), resources, stop, patient=True, backoff=Backoff(60, 60))


@contextmanager
def full_file_system(folder: Path) -> Iterator[Path]:
    """Mount a file system in memory that has no free pages and no free inodes."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=4", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        (folder / "fill").write_bytes(bytes(1))
        with (folder / "fill").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        (folder / "one").touch()
        (folder / "two").touch()
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


OPENINGS: dict[str, Callable[[Path], object]] = {
    "state": lambda folder: StateDatabase(folder / "state"),
    "state in an existing folder": StateDatabase,
    "recording": lambda folder: Recorder(folder / "results.jsonl"),
    "snapshots": lambda folder: _existing_snapshots(folder / "snapshots"),
    "video": lambda folder: video_paths(folder / "a.mp4", ["a"]),
}


@pytest.mark.integration
def test_full_disk_is_no_error_in_the_configuration(tmp_path: Path) -> None:
    codes = {}
    with full_file_system(tmp_path / "disk") as folder:
        for name, opening in OPENINGS.items():
            with pytest.raises(VisionError) as caught:
                opening(folder)
            codes[name] = type(caught.value), "df -h" in caught.value.hint
    assert codes == dict.fromkeys(OPENINGS, (Unavailable, True))


def test_address_that_is_not_there_yet_is_bound_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with Publisher("tcp://127.0.0.1:*", node="first") as first, ExitStack() as resources:
        attempts = []

        def opening(opened: ExitStack) -> str:
            attempts.append(1)
            if len(attempts) == 3:
                first.close()
            return opened.enter_context(Publisher(first.address, node="second")).address

        assert open_patiently(opening, resources, threading.Event(), patient=True, backoff=quickly()) == first.address
    assert len(attempts) == 3
