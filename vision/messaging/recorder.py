"""`Recorder`, which writes detections messages to a file."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from functools import partial
from pathlib import Path

from vision.config.user_files import open_output
from vision.errors import Closed, from_os_error
from vision.state.free_space import FreeSpace

log = logging.getLogger(__name__)
_open_record = partial(open_output, mode=0o640)  # for files about people


class Recorder:
    """Recorder that writes each message to a file as one line of JSON. It is not thread-safe.

    Each line is written with one `write` call, so a killed process leaves no incomplete line. A call takes only 3 µs.

    A file with content is never overwritten or extended. It is renamed, so that a service can restart. The new name
    contains the time of the last line, as in ``results-20261129T160500Z.jsonl``.

    When the disk is full or nearly full (`FreeSpace`), publishing continues. The error is logged once, and lost lines
    are counted. Recording resumes when space becomes available.
    """

    def __init__(self, path: Path | str) -> None:
        """Create the file. Rename an existing file with content.

        Raises:
            ConfigError: the file cannot be created.
            Unavailable: the file cannot be created at present, for example because the disk is full.
        """
        self.written = 0
        self.lost = 0
        self._path = Path(path)
        try:
            _rotate(self._path)
            self._file = open(self._path, "ab", buffering=0, opener=_open_record)  # noqa: SIM115 - `close` closes it
        except OSError as error:
            raise from_os_error(f"--record: cannot write {path}", error, code="recording") from error
        self._space = FreeSpace(self._path.parent)
        self._is_regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)

    def write(self, payload: bytes) -> None:
        """Append a JSON message as a line. If writing fails, count the line as lost. Raise `Closed` after `close`."""
        if self._file.closed:
            raise Closed("the recorder is closed")
        line, sent = payload + b"\n", 0
        try:
            if self._is_regular and self._space.is_low():
                raise OSError(errno.ENOSPC, "the disk is nearly full")
            while sent < len(line):
                sent += self._file.write(line[sent:])
            self.written += 1
        except OSError as error:
            if sent and self._is_regular:
                os.ftruncate(self._file.fileno(), os.fstat(self._file.fileno()).st_size - sent)
            self.lost += 1
            if self.lost == 1:
                text = "cannot record to %s: %s; publishing continues, and recording is tried again with each result"
                log.error(text, self._path, error.strerror)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if not self._file.closed and self.lost:
            log.error("%s lacks %d of %d results", self._path, self.lost, self.lost + self.written)
        self._file.close()


def _rotate(path: Path) -> None:
    """Rename a recording with content, so that a new recording can have its name."""
    if not path.is_file() or not path.stat().st_size:
        return
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(path.stat().st_mtime))
    names = (f"{path.stem}-{moment}{suffix}{path.suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    free = next(name for name in names if not path.with_name(name).exists())
    path.rename(path.with_name(free))
    log.info("--record: the existing recording is now %s", path.with_name(free))
