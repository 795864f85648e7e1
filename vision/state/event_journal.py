"""Events on disk, for whoever missed some: numbered for ever, limited in size, whole after a crash.

A journal is a folder of segments, files of lines that are only appended to; the oldest segment is deleted when the
newer ones hold enough. Every line carries its number and a checksum and is written before its event is sent. So a
process that is killed has lost nothing that anybody has seen.

The disk is forced once a second, not for every event: it would wear a memory card out, and make results wait for it. A
power cut may therefore take the last second's events, and their numbers must not be given to others: after one, numbers
go on `SKIPPED` higher.

===========================  =====================================================================
<first number>.events        a header line, then the events from that number on
session.json                 which boot of the machine writes, and whether it has ended in order
lock                         held by the process that writes
damaged-<time>/              what could not be read, set aside; only the newest is kept
===========================  =====================================================================
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import secrets
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vision.errors import Closed, ConfigError

log = logging.getLogger(__name__)

SKIPPED: Final = 1000
"""Numbers left out after a power cut; no more events than this are ever written without forcing the disk."""

_SCHEMA: Final = "vision.journal/1"
_SUFFIX: Final = ".events"
_SESSION: Final = "session.json"
_ASIDE: Final = "damaged-"
_SEGMENTS: Final = 8  # that hold what must be kept
_MOST_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the events after a number, in order. What is missing between two of them could not be kept."""

    numbers: tuple[int, ...]
    payloads: tuple[bytes, ...]
    oldest: int  # of all that are kept; beyond `newest` where there are none
    newest: int  # number given so far
    more: bool  # there are further ones behind the last of this page


@dataclass(slots=True)
class _Segment:
    path: Path
    first: int
    count: int = 0
    nbytes: int = 0
    last: int = 0


class EventJournal:
    """Appended to by one thread, read by any."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 10_000,
        most_bytes: int = _MOST_BYTES,
        sync_s: float = 1.0,
        boot: str = "",
        now: Callable[[], float] = time.time,
        force: Callable[[int], None] = os.fsync,
    ) -> None:
        """Read what is there. What cannot be read is set aside, and `notice` says so.

        Args:
            keep: newest events that are never deleted, as long as they have fewer than `most_bytes`.
            boot: of the machine; an empty one is never the same as another.
            force: makes the system write a file's contents to the disk.

        Raises:
            ConfigError: the folder cannot be used, or another process uses it.
        """
        self.folder = folder
        self.notice: str | None = None
        self.journal = secrets.token_hex(4)  # this one's name, which no other has
        self.lost = 0  # events that the disk had no room for
        self._keep = keep
        self._most_bytes = most_bytes
        self._segment_events = max(1, keep // _SEGMENTS)
        self._segment_bytes = max(1, most_bytes // _SEGMENTS)
        self._force = force
        self._boot = boot
        self._lock = threading.Lock()  # of all below
        self._newest = 0
        self._failing = False
        self._segments: list[_Segment] = []
        self._fd = -1
        self._unforced: list[int] = []  # descriptors of finished segments
        self._unforced_events = 0
        self._closed = False
        self._lock_fd = self._locked()
        try:
            self._load(now)
            self._open_segment()
            self._write_session(clean=False)
        except OSError as error:
            if self._fd >= 0:
                os.close(self._fd)
            os.close(self._lock_fd)
            raise self._unusable(error) from error
        self._sync_s = sync_s
        self._dirty = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep_forcing, name="journal", daemon=True)
        self._thread.start()

    # --- what the writer calls ----------------------------------------------------------------------------------------

    @property
    def newest(self) -> int:
        """The last number given; the next event has one more."""
        return self._newest

    def append(self, payloads: Sequence[bytes]) -> bool:
        """Keep events under the numbers that follow `newest`. A payload is one line.

        False: the disk is full or gone, none was kept and no number was given. That is logged once, and the next
        events are tried again.

        Raises:
            Closed: after `close`.
        """
        with self._lock:
            if self._closed:
                raise Closed("the journal is closed")
            try:
                self._write(payloads)
            except OSError as error:
                self._failed(error, len(payloads))
                return False
            self._newest += len(payloads)
            if self._failing:
                log.info("events are kept in %s again", self.folder)
            self._failing = False
        self._dirty.set()
        return True

    def close(self) -> None:
        """Force what was written, and remember that all is in order. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._ending.set()
        self._dirty.set()
        self._thread.join()
        self._force_now()
        with contextlib.suppress(OSError):
            self._write_session(clean=True)
        os.close(self._fd)
        os.close(self._lock_fd)

    def counters(self) -> dict[str, int]:
        """What an operator should see."""
        with self._lock:
            kept = sum(segment.count for segment in self._segments)
        return {"journal.kept": kept, "journal.lost": self.lost}

    # --- what readers call --------------------------------------------------------------------------------------------

    def read(self, since: int, *, most: int = 500, most_bytes: int = 2**20) -> Page:
        """The oldest events with a number above `since`: at most `most`, and after the first at most `most_bytes`."""
        with self._lock:
            newest = self._newest
            kept = [segment.first for segment in self._segments if segment.count]
            oldest = kept[0] if kept else newest + 1
            paths = [segment.path for segment in self._segments if segment.last > since]
        numbers: list[int] = []
        payloads: list[bytes] = []
        size = 0
        for number, payload in _records(paths, since, newest):
            size += len(payload)
            if payloads and (len(payloads) >= most or size > most_bytes):
                return Page(tuple(numbers), tuple(payloads), oldest, newest, True)
            numbers.append(number)
            payloads.append(payload)
        return Page(tuple(numbers), tuple(payloads), oldest, newest, False)

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write(self, payloads: Sequence[bytes]) -> None:
        segment, finished = self._segments[-1], self._fd
        if segment.count and (segment.count >= self._segment_events or segment.nbytes >= self._segment_bytes):
            self._open_segment()
            self._unforced.append(finished)
            segment = self._segments[-1]
        if self._unforced_events + len(payloads) > SKIPPED:
            for fd in (*self._unforced, self._fd):
                self._force(fd)
            self._unforced_events = 0
        lines = b"".join(_line(self._newest + 1 + at, payload) for at, payload in enumerate(payloads))
        _write_whole(self._fd, lines)
        self._unforced_events += len(payloads)
        segment.count += len(payloads)
        segment.nbytes += len(lines)
        segment.last = self._newest + len(payloads)
        self._prune()

    def _failed(self, error: OSError, count: int) -> None:
        self.lost += count
        if not self._failing:
            log.error(
                "cannot keep events in %s: %s; they are sent and cannot be asked for", self.folder, error.strerror
            )
        self._failing = True

    def _open_segment(self) -> None:
        """A new segment behind the others."""
        first = self._newest + 1
        path = self.folder / f"{first:012d}{_SUFFIX}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            header = _line(0, json.dumps({"schema": _SCHEMA, "journal": self.journal}).encode())
            _write_whole(fd, header)
            _force_folder(self.folder)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        self._fd = fd
        self._segments.append(_Segment(path, first, 0, len(header), 0))

    def _prune(self) -> None:
        while len(self._segments) > 1:
            newer = self._segments[1:]
            enough = sum(segment.count for segment in newer) >= self._keep
            if not enough and sum(segment.nbytes for segment in self._segments) <= self._most_bytes:
                return
            with contextlib.suppress(OSError):
                self._segments[0].path.unlink()
            self._segments = newer

    # --- forcing ------------------------------------------------------------------------------------------------------

    def _keep_forcing(self) -> None:
        while not self._ending.is_set():
            self._dirty.wait()
            if self._ending.wait(self._sync_s):
                return
            self._dirty.clear()
            self._force_now()

    def _force_now(self) -> None:
        with self._lock:
            finished, self._unforced = self._unforced, []
            current = os.dup(self._fd)
            pending, self._unforced_events = self._unforced_events, 0
        try:
            for fd in (*finished, current):
                self._force(fd)
        except OSError as error:
            with self._lock:
                self._unforced_events += pending
            log.error("cannot force events to disk in %s: %s", self.folder, error.strerror)
        finally:
            for fd in (*finished, current):
                os.close(fd)

    # --- opening ------------------------------------------------------------------------------------------------------

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot keep events in {self.folder}: {error.strerror}", hint="make the folder writable for this user"
        )

    def _locked(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise ConfigError(
                f"{self.folder} is in use by another process",
                hint="each running program needs a `state` folder of its own",
            ) from error
        return fd

    def _load(self, now: Callable[[], float]) -> None:
        paths = sorted(self.folder.glob(f"*{_SUFFIX}"))
        try:
            found = [_read_segment(path) for path in paths]
            journals = {journal for journal, _ in found if journal is not None}
            if len(journals) > 1:
                raise _Damaged(f"{' and '.join(path.name for path in paths)} are of several journals")
            segments = [segment for journal, segment in found if journal is not None and segment.count]
            for before, after in itertools.pairwise(segments):
                if after.first <= before.last:
                    raise _Damaged(f"{after.path.name} begins before the end of {before.path.name}")
        except _Damaged as damage:
            self._set_aside(paths, damage, now)
            return
        for path in {*paths} - {segment.path for segment in segments}:
            path.unlink()
        if not journals:
            return
        self.journal = journals.pop()
        self._segments = segments
        session = self._read_session()
        written = max([0, *(segment.last for segment in segments)])
        self._newest = max(written, int(session.get("newest", 0)))
        if not session.get("clean") and not (self._boot and session.get("boot") == self._boot):
            self._newest += SKIPPED
        self._prune()

    def _set_aside(self, paths: Sequence[Path], damage: _Damaged, now: Callable[[], float]) -> None:
        for older in self.folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(older, ignore_errors=True)
        aside = self.folder / f"{_ASIDE}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now()))}"
        aside.mkdir(exist_ok=True)
        for path in paths:
            path.replace(aside / path.name)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / _SESSION).unlink()
        self.notice = (
            f"events in {self.folder} were damaged ({damage}): set aside in {aside.name}, a new journal is begun"
        )
        log.error(self.notice)

    def _read_session(self) -> dict[str, Any]:
        try:
            session = json.loads((self.folder / _SESSION).read_bytes())
        except (OSError, ValueError):
            return {}
        valid = isinstance(session, dict) and session.get("journal") == self.journal
        return session if valid and isinstance(session.get("newest"), int) else {}

    def _write_session(self, *, clean: bool) -> None:
        session = {"journal": self.journal, "boot": self._boot, "clean": clean, "newest": self._newest}
        fresh = self.folder / f"{_SESSION}.new"
        with fresh.open("wb") as file:
            file.write(json.dumps(session).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.folder / _SESSION)
        _force_folder(self.folder)


# --- lines ------------------------------------------------------------------------------------------------------------


class _Damaged(Exception):
    """What was written is not what is there."""


def _line(number: int, payload: bytes) -> bytes:
    text = b"%d %s" % (number, payload)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> tuple[int, bytes] | None:
    """Number and payload of a line, or None where its checksum is not its own."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    number, _, payload = text.partition(b" ")
    return int(number), payload


def _read_segment(path: Path) -> tuple[str | None, _Segment]:
    """The journal that a segment is of, None where not even its header was written, and what it holds.

    Lines at its end that are not whole are what a power cut leaves; one between whole lines is damage.

    Raises:
        _Damaged: a line is not what was written.
    """
    data = path.read_bytes()
    records = [_parsed(line) for line in data.split(b"\n")[:-1]]
    while records and records[-1] is None:
        records.pop()
    if not records:
        if data.strip(b"\0") and b"\n" in data.rstrip(b"\0\n"):
            raise _Damaged(f"{path.name} cannot be read")
        return None, _Segment(path, 0)
    whole = [record for record in records if record is not None]
    numbers = [number for number, _ in whole[1:]]
    if (
        len(whole) < len(records)
        or whole[0][0] != 0
        or any(b <= a for a, b in zip([0, *numbers], numbers, strict=False))
    ):
        raise _Damaged(f"{path.name} has lines that are not what was written")
    nbytes = sum(len(_line(*record)) for record in whole)
    if nbytes < len(data):
        log.warning("%s: %d bytes at its end were not written whole, and are left out", path, len(data) - nbytes)
    return _journal_of(path, whole[0][1]), _Segment(
        path, numbers[0] if numbers else 0, len(numbers), nbytes, numbers[-1] if numbers else 0
    )


def _journal_of(path: Path, header: bytes) -> str:
    try:
        fields = json.loads(header)
        if fields["schema"] == _SCHEMA and isinstance(fields["journal"], str):
            return str(fields["journal"])
    except (ValueError, KeyError, TypeError):
        pass
    raise _Damaged(f"{path.name} has a header of another kind")


def _records(paths: Sequence[Path], since: int, newest: int) -> Iterator[tuple[int, bytes]]:
    """Events above `since` and up to `newest`. A segment that was deleted meanwhile is passed over."""
    for path in paths:
        try:
            lines = path.read_bytes().split(b"\n")[1:-1]
        except FileNotFoundError:
            continue
        for line in lines:
            record = _parsed(line)
            if record is not None and since < record[0] <= newest:
                yield record


def _write_whole(fd: int, data: bytes) -> None:
    """All or nothing: half a line in the middle would be damage."""
    before = os.fstat(fd).st_size
    try:
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(fd, before)
        raise


def _force_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
