"""Tests in which the disk of the state, the archive, and the snapshots becomes read-only while the program runs.

After a disk error, Linux makes a file system read-only if it is mounted with ``errors=remount-ro``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from tests.small_disk import failing_disk
from vision.benchmark.chaos.disk import Disk
from vision.client import EventMessage, NodeStatusMessage, Subscription
from vision.outputs.archive.reader import Archive
from vision.state.events import NUMBERS_SKIPPED

pytestmark = pytest.mark.integration

DEADLINE_S = 90.0
STORES = {"journal", "archive", "snapshots"}


class Site:
    """Running program whose files are in one folder, and a subscriber to its events and its status."""

    def __init__(self, folder: Path, disk: Path, environment: Mapping[str, str]) -> None:
        self._disk = disk
        self._path = folder / "camera.yaml"
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), **environment}
        self._environment.pop("RUNTIME_DIRECTORY", None)
        line = {"name": "door", "points": [[0.5, 0], [0.5, 1]], "anchor": "center"}
        config = {
            "detect": {"backend": "fake"},
            "track": {"low_score": 0.1, "high_score": 0.2, "new_score": 0.2},
            "cameras": [{"id": "gate", "source": "synthetic:320x240@20?objects=8"}],
            "analytics": {"gate": {"units": "fraction", "lines": [line]}},
            "archive": {"folder": str(disk / "archive")},
            "snapshots": {"folder": str(disk / "snapshots")},
            "state_dir": str(disk / "state"),
            "publish": {"bind": f"ipc://{folder}/out", "replay": f"ipc://{folder}/replay"},
        }
        self._path.write_text(yaml.safe_dump(config))
        self.subscription = Subscription(f"ipc://{folder}/out", kinds=("events", "status"), since=0, silence_s=1e6)
        self.events: list[EventMessage] = []
        self.status: NodeStatusMessage | None = None

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "vision.cli.main", "run", str(self._path)]
        with subprocess.Popen(command, env=self._environment) as program:
            try:
                yield program
            finally:
                program.kill()

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Receive messages until `condition` holds. Fail with the text `what` if this takes too long."""
        end_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end_s, what
            item = self.subscription.receive(0.1)
            if isinstance(item, EventMessage):
                self.events.append(item)
            elif isinstance(item, NodeStatusMessage):
                self.status = item

    def numbers(self) -> list[int]:
        return [event.number for event in self.events if event.number is not None]

    def wait_for_events(self, count: int, *, numbered: bool) -> None:
        """Receive messages until `count` new events of the line `door` have arrived, with or without a number."""
        known = len(self.events)

        def are_received() -> bool:
            found = [event for event in self.events[known:] if event.name == "door"]
            return sum((event.number is not None) is numbered for event in found) >= count

        self.wait(are_received, f"{count} events, numbered: {numbered}")

    def stores(self, kind: str) -> set[str]:
        return {str(event.data["of"]) for event in self.events if event.kind == kind}

    def stopped(self) -> set[str]:
        counters = {} if self.status is None else self.status.counters
        return {name for name in STORES if counters.get(f"{name}.stopped")}

    def frames(self) -> int:
        with suppress(FileNotFoundError):
            return sum(1 for _ in Archive(self._disk / "archive").frames("gate", 0, 1 << 61))
        return 0


def test_program_survives_a_file_system_that_becomes_read_only(tmp_path: Path) -> None:
    with failing_disk(tmp_path / "disk") as disk:
        site = Site(tmp_path, disk.folder, {})
        with site.subscription:
            with site.running() as program:
                site.wait(lambda: len(site.numbers()) > 5 and site.frames() > 0, "events and an archive")
                disk.fail()
                site.wait(lambda: site.stores("storage_stopped") == STORES, "storage_stopped")
                site.wait(lambda: site.stopped() == STORES, "the counters of the status")
                site.wait_for_events(5, numbered=False)
                program.send_signal(signal.SIGTERM)
                assert program.wait(DEADLINE_S) == 0
            disk.repair()
            last, stored = max(site.numbers()), site.frames()
            with site.running() as program:
                site.wait_for_events(5, numbered=True)
                site.wait(lambda: site.stopped() == set() and site.frames() > stored, "the archive continues")
                program.send_signal(signal.SIGTERM)
                assert program.wait(DEADLINE_S) == 0
        assert site.numbers() == sorted(set(site.numbers()))
        assert max(site.numbers()) > last
        assert max(site.numbers()) > NUMBERS_SKIPPED  # the file system had lost events with lower numbers


def test_program_stores_events_again_when_the_disk_is_writable_again(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    with closing(Disk(folder, tmp_path)) as disk:
        site = Site(tmp_path, folder, disk.environment)
        with site.subscription, site.running() as program:
            site.wait(lambda: len(site.numbers()) > 5 and site.frames() > 0, "events and an archive")
            disk.set_read_only(True)
            site.wait(lambda: site.stores("storage_stopped") == STORES, "storage_stopped")
            site.wait_for_events(5, numbered=False)
            disk.set_read_only(False)
            site.wait(lambda: site.stores("storage_resumed") == STORES, "storage_resumed")
            site.wait_for_events(5, numbered=True)
            site.wait(lambda: site.stopped() == set(), "the counters of the status")
            program.send_signal(signal.SIGTERM)
            assert program.wait(DEADLINE_S) == 0
        assert site.numbers() == list(range(1, len(site.numbers()) + 1))
