"""The process that writes the archive. It subscribes to the program like any other subscriber.

A slow disk delays only this process. If messages are lost because of the delay, the archive contains a gap.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from vision.client import Item, Subscription
from vision.errors import VisionError
from vision.messaging.curve import KeyPair
from vision.messaging.gap_recovery import Gap
from vision.messaging.helper_process import show_life
from vision.messaging.schema import CountsMessage, DetectionsMessage, EventMessage
from vision.messaging.times import utc_ns
from vision.outputs.archive.live import LIVE_NAME, LiveDatabase
from vision.outputs.archive.reports import LOSES, READY, STORES_AGAIN
from vision.state.free_space import FreeSpace
from vision.state.private_files import Held, locked

COMMIT_S: Final = 2.0
"""Interval of commits in seconds.

A power failure causes the loss of at most the messages that arrive during one interval and one commit.
"""

ALL_CAMERAS: Final = "_all"
"""Camera of a gap in the events of all cameras. No camera can have this name."""

_COMPACT_S: Final = 60.0
_QUEUE: Final = 100_000  # messages that can wait while a commit waits for the disk
_LOCK_S: Final = 30.0
_COMPACTION: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from vision.outputs.archive.compaction import main
main()
"""


class ArchiveWriter:
    """Writer that adds the items of a subscription to the live database, and commits the added rows."""

    def __init__(self, folder: Path, *, recovers_events: bool = False) -> None:
        """Open the live database in `folder`.

        `recovers_events` is True if the subscription requests missed events, and reports the events that remain
        missing.
        """
        self._recovers_events = recovers_events
        self._live = LiveDatabase(folder)
        self._disk = FreeSpace(folder)
        self._instance = ""
        self._at_us = 0
        self._failing = False
        self._lost: dict[str, tuple[int, int]] = {}  # numbers of the first and last frame that a full disk lost
        self._pending: dict[str, tuple[int, int]] = {}  # numbers of the frames since the last commit
        self._known: set[tuple[str, str]] = set()  # topics and instances that have a message
        # The first connection to a publisher delivers all events that it stores, also those before the archive.
        self._events_from_us = time.time_ns() // 1000 if self._live.last_event is None else 0

    @property
    def last_event(self) -> tuple[str, int] | None:
        """Journal and number of the newest event that was added, or None if no event had a number."""
        return self._live.last_event

    def add(self, item: Item) -> None:
        """Add a message, or a `Gap` that reports lost messages, to the next commit. Ignore items of other types."""
        if isinstance(item, DetectionsMessage):
            self._instance, self._at_us = item.instance, utc_ns(item.captured_at) // 1000
            self._number("detections", item)
            self._live.add_detections(item)
            self._pending[item.camera] = self._pending.get(item.camera, (item.seq, 0))[0], item.seq
        elif isinstance(item, EventMessage):
            if not self._recovers_events:
                self._number("events", item)
            if item.number is None or utc_ns(item.at) // 1000 >= self._events_from_us:
                self._live.add_event(item)
        elif isinstance(item, CountsMessage):
            self._number("counts", item)
            self._live.add_counts(item)
        elif isinstance(item, Gap):
            kind, _, camera = item.topic.partition("/")
            numbers = item.expected_seq, item.got_seq - 1
            self._live.add_gap(camera or ALL_CAMERAS, self._at_us, self._instance, kind, missing=numbers)

    def _number(self, kind: str, message: DetectionsMessage | EventMessage | CountsMessage) -> None:
        """Record the sequence number of a message.

        If messages are missing before the first message of a topic, add a gap. The subscription itself reports messages
        that are missing after the first message.
        """
        topic = f"{kind}/{message.camera}"
        if (topic, message.instance) not in self._known:
            self._known.add((topic, message.instance))
            expected, at_us = self._live.expected_seq(topic, message.instance), _at_us(message)
            if message.seq > expected:
                missing = expected, message.seq - 1
                self._live.add_gap(message.camera, at_us, message.instance, kind, missing=missing)
        self._live.received(topic, message.instance, message.seq)

    def commit(self) -> None:
        """Write all added rows. If the disk is full or fails, discard these rows, and add a gap to the next commit."""
        pending, self._pending = self._pending, {}
        for camera, (first, last) in self._lost.items():
            self._live.add_gap(camera, self._at_us, self._instance, "disk", missing=(first, last))
        try:
            if self._disk.is_low():
                raise sqlite3.OperationalError("the disk is nearly full")
            self._live.commit()
        except sqlite3.OperationalError as error:
            self._live.discard()
            for camera, (first, last) in pending.items():
                self._lost[camera] = self._lost.get(camera, (first, last))[0], last
            if not self._failing:
                _tell(f"{LOSES}: {error}")
            self._failing = True
            return
        if self._failing:
            _tell(STORES_AGAIN)
        self._lost, self._failing = {}, False

    def close(self) -> None:
        """Commit, and close the database. Idempotent."""
        with suppress(sqlite3.ProgrammingError):  # closed already
            self.commit()
        self._live.close()


def _at_us(message: DetectionsMessage | EventMessage | CountsMessage) -> int:
    return utc_ns(message.captured_at if isinstance(message, DetectionsMessage) else message.at) // 1000


def write(options: Mapping[str, Any]) -> None:
    """Write the archive until standard input closes, which also happens if the program ends.

    `vision.outputs.archive.process.ArchiveProcess` creates the `options`.

    Raises:
        OSError: the archive was removed or replaced, so that a new process must open it.
    """
    folder, stop = Path(options["folder"]), threading.Event()
    folder.mkdir(parents=True, exist_ok=True)  # somebody can have removed it
    threading.Thread(target=_wait_for_end, args=(stop,), daemon=True).start()
    with (
        locked(folder / "writer.lock", timeout_s=_LOCK_S),
        closing(ArchiveWriter(folder, recovers_events=options["replay"])) as writer,
    ):
        since = (writer.last_event or 0) if options["replay"] else None
        keys = KeyPair(*options["keys"]) if options["keys"] else None
        subscription = Subscription(
            options["address"],
            kinds=("detections", "events", "counts"),
            since=since,
            key=keys,
            silence_s=1e6,
            queue=_QUEUE,
        )
        compaction, live = Compaction(options), folder / LIVE_NAME
        opened = live.stat()
        with subscription:
            _receive(subscription, writer, 0.3)  # gives the connection time to be made
            _tell(READY)
            while not stop.is_set():
                show_life()
                end_s = time.monotonic() + COMMIT_S
                while (left_s := end_s - time.monotonic()) > 0 and not stop.is_set():
                    _receive(subscription, writer, min(left_s, 0.2))
                writer.commit()
                if not live.exists() or not os.path.samestat(live.stat(), opened):
                    raise FileNotFoundError(errno.ENOENT, f"{live} was removed or replaced")
                compaction.start_if_due()
            while _receive(subscription, writer, 0.1):
                pass


def _receive(subscription: Subscription, writer: ArchiveWriter, timeout_s: float) -> bool:
    """Add the next item to `writer`. Return False if no item arrives within `timeout_s` seconds."""
    item = subscription.receive(timeout_s)
    if item is not None:
        writer.add(item)
    return item is not None


class Compaction:
    """The compaction of the archive, which starts at most once per minute.

    A compaction runs in its own process, because it can take minutes.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._command: Sequence[str] = [
            *(sys.executable, "-I", "-c", _COMPACTION, json.dumps(sys.path)),
            json.dumps({name: options[name] for name in ("folder", "keep_days", "max_mb")}),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._failing = False  # True after a failure, until a compaction succeeds
        self._due_s = time.monotonic()

    def start_if_due(self) -> None:
        """Start the process, unless it is running, or was started less than a minute ago."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None and self._process.returncode:
            if not self._failing:
                _tell(f"the compaction of the archive failed ({self._process.returncode}), and is repeated")
            self._failing, self._process = True, None
        elif self._process is not None:
            self._failing, self._process = False, None
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + _COMPACT_S
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _wait_for_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def _tell(text: str) -> None:
    with suppress(OSError):  # the program has ended
        print(text, flush=True)


def main() -> None:
    """Run the process. The first line of standard input contains the options as JSON."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the program ends this process
        signal.signal(number, signal.SIG_IGN)
    try:
        write(json.loads(sys.stdin.readline()))
    except (VisionError, Held, sqlite3.Error, OSError) as error:
        _tell(f"the archive cannot be written: {error}")
        os._exit(1)  # the program starts this process again
    os._exit(0)
