"""`RecordingStore` creates the files of recordings, lists them in the index, and deletes the oldest files."""

from __future__ import annotations

import contextlib
import errno
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vision.config.recording import RecordingConfig
from vision.outputs.recording.index import Kind, RecordedEvent, RecordedFile, RecordingIndex
from vision.outputs.recording.repair import file_name
from vision.outputs.recording.ring import KeptPacket
from vision.outputs.recording.segment_file import SegmentFile
from vision.state.free_space import FreeSpace

log = logging.getLogger(__name__)

_DAY_NS: Final = 86_400_000_000_000
_CLEAN_S: Final = 2.0  # time between two checks of the limits
_RESUME: Final = 1.2  # multiple of the reserve from which the disk counts as free again


@dataclass(slots=True)
class OpenFile:
    """A file that is being written, and its entry in the index."""

    file: SegmentFile
    entry: RecordedFile


class RecordingStore:
    """The folder of the recordings, and its index. Not thread-safe.

    Methods that write raise `OSError` if the disk is full or fails.
    """

    def __init__(
        self, config: RecordingConfig, index: RecordingIndex, utc_clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.written = 0  # complete files
        self.deleted = 0  # files that exceeded a limit
        self._config = config
        self._folder = Path(config.folder)
        self._index = index
        self._utc_clock = utc_clock
        self.is_full = False  # True if the free space is too small, and there is nothing left to delete
        self._open: list[OpenFile] = []
        self._cleaned_s = 0.0
        self._folder.mkdir(parents=True, exist_ok=True)
        self._space = FreeSpace(self._folder)

    def add_recording(self, camera: str, kind: Kind) -> int:
        """Add a recording without files. Return its number."""
        with _os_errors():
            return self._index.add_recording(camera, kind)

    def add_event(self, recording: int, event: RecordedEvent) -> None:
        """Record in the index that a recording shows an event."""
        with _os_errors():
            self._index.add_event(recording, event)

    def remove_empty(self, recording: int) -> None:
        """Remove a recording if it has no files."""
        with _os_errors():
            self._index.remove_if_empty(recording)

    def create(self, recording: int, camera: str, kind: Kind, number: int, key: KeptPacket) -> OpenFile:
        """Create a file of a recording. The file starts with the packet `key`. `number` is 1 for the first file.

        Raises:
            ValueError: FFmpeg does not understand the key frame.
            OSError: the disk is full or fails.
        """
        self.clean(now=True)
        self.require_room()
        utc_ns = key.header.arrived_utc_ns
        name = file_name(camera, utc_ns, kind, number)
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        entry = RecordedFile(recording, name, utc_ns, utc_ns, 0, 0, 0, "writing")
        with _os_errors():
            self._index.put_file(entry)
            try:
                opened = OpenFile(SegmentFile(path, key.header.codec, key.parameters, key.data), entry)
            except BaseException:
                path.unlink(missing_ok=True)
                self._index.remove_file(name)
                raise
        self._open.append(opened)
        return opened

    def require_room(self) -> None:
        """Raise `OSError` if the free space was too small when the limits were last checked."""
        if self.is_full:
            raise OSError(errno.ENOSPC, "the disk is nearly full")

    def complete(self, opened: OpenFile) -> None:
        """Complete a file. If this fails, the index lists the file as `writing` until the next start of the program."""
        self._open.remove(opened)
        try:
            nbytes = opened.file.close()
        except OSError:
            opened.file.abandon()
            raise
        with _os_errors():
            self._index.put_file(replace(opened.entry, nbytes=nbytes, state="complete"))
        self.written += 1

    def clean(self, *, now: bool = False) -> None:
        """Delete the oldest files until no limit is exceeded, and update `is_full`.

        If the limits were checked less than 2 s ago and `now` is False, do nothing.

        Raises:
            OSError: a file cannot be deleted, or the index cannot be changed.
        """
        if not now and time.monotonic() - self._cleaned_s < _CLEAN_S:
            return
        self._cleaned_s = time.monotonic()
        with _os_errors():
            while (oldest := self._index.oldest_complete()) is not None and self._exceeds(oldest):
                (self._folder / oldest.name).unlink(missing_ok=True)
                self._index.remove_file(oldest.name)
                self.deleted += 1
        self.is_full = self._space.is_low(now=True, times=_RESUME if self.is_full else 1.0)

    def _exceeds(self, oldest: RecordedFile) -> bool:
        age_ns = self._utc_clock() - oldest.end_utc_ns
        if age_ns > self._config.max_days * _DAY_NS or self._space.is_low(now=True):
            return True
        open_bytes = sum(_size(opened.file.path) for opened in self._open)
        return self._index.complete_bytes() + open_bytes > self._config.max_gb * 1e9


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Within the `with` block, raise `OSError` instead of SQLite errors."""
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(errno.EIO, f"the index: {error}") from error
