"""Counters that survive a restart: a journal of one small file per camera.

Each change is appended at once as a line with its checksum, so a process that is killed loses nothing. The disk is
forced by a thread of its own at most every `sync_s`, so a power cut loses at most that much and never what was there
before, and a slow disk makes nobody wait. A torn end is what a power cut leaves and is cut off; damage in the middle is
not, so such a file is set aside for inspection and the counters start anew, which is said in the log and in
`CounterJournal.notice`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from vision.errors import ConfigError
from vision.state.background_flusher import BackgroundFlusher

log = logging.getLogger(__name__)

_HEADER: Final = "vision.counters/1"
_COMPACT_BYTES: Final = 128 * 1024
_MOST_COUNTERS: Final = 20_000


class CounterJournal:
    """Counters by shape and key, such as ``("door", "in")``, kept in the file `path`. One thread at a time.

    Raises:
        ConfigError: the file or its folder cannot be used, or another process uses it.
    """

    def __init__(
        self,
        path: Path,
        *,
        forcer: BackgroundFlusher | None = None,
        sync_s: float = 10.0,
        force: Callable[[int], None] = os.fsync,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            forcer: whose thread forces the disk; one of its own, every `sync_s`, where None.
            force: how the file with a descriptor is forced to disk.
        """
        self._path = path
        self._force = force
        self._counts: dict[tuple[str, str], int] = {}
        self._dirty: dict[tuple[str, str], None] = {}
        self._failing = self._force_failing = False
        self._compact_bytes = _COMPACT_BYTES
        self._lock = threading.Lock()  # of the file, its descriptor and what follows
        self._forcing = threading.Lock()  # held by who forces the disk, however long that takes
        self._file = -1
        self._written = 0  # bytes in the file
        self._meanwhile: list[bytes] | None = None  # appended while the file is written anew
        self.notice: str | None = None  # what an operator should know about how the counters started
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ConfigError(
                f"cannot keep counters in {path}: {error.strerror}", hint="make the folder writable for this user"
            ) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load(now)
            self._rewrite()
        except OSError as error:
            if self._file >= 0:
                os.close(self._file)
            os.close(self._lock_fd)
            if isinstance(error, BlockingIOError):
                raise ConfigError(
                    f"{path} is in use by another process",
                    hint="one camera is counted by one process: stop the other one",
                ) from error
            raise ConfigError(f"cannot keep counters in {path}: {error.strerror}") from error
        self._own_forcer = BackgroundFlusher(sync_s) if forcer is None else None
        self._forcer = forcer or self._own_forcer

    def __getitem__(self, key: tuple[str, str]) -> int:
        return self._counts.get(key, 0)

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Every counter that ever counted, also of lines and zones that are no longer configured."""
        return dict(self._counts)

    def add(self, name: str, keys: Iterable[str]) -> None:
        """Count one more of each; on disk after the next `flush`."""
        for key in keys:
            self._counts[name, key] = self._counts.get((name, key), 0) + 1
            self._dirty[name, key] = None

    def flush(self) -> None:
        """Append what changed. A disk that is full or gone is logged once and tried again; counting goes on."""
        if not self._dirty:
            return
        try:
            self._append("".join(_line(name, key, self._counts[name, key]) for name, key in self._dirty).encode())
            self._dirty.clear()
            if self._failing:
                log.info("counters are written to %s again", self._path)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("cannot write counters to %s: %s; they go on in memory", self._path, error.strerror)
            self._failing = True
            return
        if self._forcer is not None:
            self._forcer.soon(self._keep)

    def close(self) -> None:
        """Write and force what is left. Idempotent."""
        if self._file < 0:
            return
        self.flush()
        if self._own_forcer is not None:
            self._own_forcer.close()
        self._keep()
        with self._forcing:
            os.close(self._file)
            os.close(self._lock_fd)
            self._file = -1

    def _append(self, data: bytes) -> None:
        with self._lock:
            before = os.lseek(self._file, 0, os.SEEK_END)
            try:
                if os.write(self._file, data) < len(data):
                    raise OSError(28, "No space left on device")
            except OSError:
                os.ftruncate(self._file, before)  # half a line in the middle would look like damage
                raise
            self._written = before + len(data)
            if self._meanwhile is not None:
                self._meanwhile.append(data)

    # --- what may take long -------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Force what was written to disk, or write it anew where it has grown long."""
        with self._forcing:
            if self._file < 0:
                return
            try:
                if self._written > self._compact_bytes:
                    self._rewrite()
                self._force(self._file)
                self._force_failing = False
            except OSError as error:
                if not self._force_failing:
                    log.error("cannot force counters to disk at %s: %s", self._path, error.strerror)
                self._force_failing = True

    def _rewrite(self) -> None:
        """The whole state as a new file in place of the old one, which is whole until then."""
        fresh = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            with self._lock:
                meanwhile = self._meanwhile = []
            counts = self._counts.copy()  # in one step, while others count on; what they flush is in `meanwhile`
            lines = (_line(name, key, value) for (name, key), value in counts.items())
            data = (_checked(_HEADER) + "".join(lines)).encode()
            _write_whole(descriptor, data)
            self._force(descriptor)
            with self._lock:
                _write_whole(descriptor, b"".join(meanwhile))
                self._written = os.lseek(descriptor, 0, os.SEEK_END)
                fresh.replace(self._path)
                descriptor, self._file = self._file, descriptor
            self._compact_bytes = max(_COMPACT_BYTES, 4 * len(data))
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._force(folder)
            finally:
                os.close(folder)
        finally:
            with self._lock:
                self._meanwhile = None
            if descriptor >= 0:
                os.close(descriptor)

    def _load(self, now: Callable[[], float]) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        counts = _read(data)
        if counts is None:
            aside = self._path.with_name(
                f"{self._path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now()))}"
            )
            self._path.replace(aside)
            self.notice = f"the counters in {self._path} were damaged: set aside as {aside.name}, counting starts anew"
            log.error(self.notice)
            return
        self._counts = counts


def _write_whole(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _checked(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _line(name: str, key: str, value: int) -> str:
    return _checked(json.dumps([name, key, value], ensure_ascii=True, separators=(",", ":")))


def _text_of(line: bytes) -> str | None:
    """What a line says, or None where its checksum is not its own."""
    checksum, _, text = line.partition(b" ")
    return text.decode("ascii", "replace") if checksum == b"%08x" % zlib.crc32(text) else None


def _read(data: bytes) -> dict[tuple[str, str], int] | None:
    """The counters of a journal, or None where it is damaged elsewhere than at its end."""
    lines = data.split(b"\n")
    texts = [_text_of(line) for line in lines[:-1]]  # what follows the last newline was torn, or is nothing
    while texts and texts[-1] is None:
        texts.pop()
    if not texts:
        return {} if not data.strip(b"\0") else None
    if texts[0] != _HEADER:
        return None
    counts: dict[tuple[str, str], int] = {}
    for text in texts[1:]:
        entry = _entry(text)
        if entry is None:
            return None
        name, key, value = entry
        counts[name, key] = value
    return counts if len(counts) <= _MOST_COUNTERS else None


def _entry(text: str | None) -> tuple[str, str, int] | None:
    try:
        entry = json.loads(text or "")
    except ValueError:
        return None
    match entry:
        case [str(name), str(key), int(value)] if value >= 0 and not isinstance(value, bool):
            return name, key, value
    return None
