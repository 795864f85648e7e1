"""`Placement` detects that the database file of a running program was removed or replaced."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vision.errors import Unavailable
from vision.state.private_files import open_restricted, sync_folder

log = logging.getLogger(__name__)

_LOOK_S: Final = 1.0  # minimum time between two checks of the path
_GRACE_S: Final = 10.0  # time in which somebody can put the file back


class Placement:
    """The path of an open database file, and the identity of this file.

    If the file is removed, Linux keeps its content until the program closes the file. Therefore, `restore` can write
    the content to a new file.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Store the path of the database file, and the identity of the file that is there now."""
        self.path = path
        self._clock = clock
        self._identity = self._found()
        self._looked_s = clock()
        self._gone_s: float | None = None  # since when the file is not at its path
        self._is_replaced = False

    def check(self) -> None:
        """Check, at most once per second, that the database file is at its path. Raise `OSError` if it was replaced.

        If the file was removed, only log an error, because `restore` can write the database to a new file.
        """
        if self._clock() - self._looked_s >= _LOOK_S:
            self._look()
        if self._is_replaced:
            raise OSError(errno.ESTALE, f"another file has replaced {self.path}")

    def _look(self) -> None:
        self._looked_s, found = self._clock(), self._found()
        self._is_replaced = found not in (None, self._identity)
        if found == self._identity:
            if self._gone_s is not None:
                log.info("%s is back", self.path)
            self._gone_s = None
        elif self._gone_s is None:
            self._gone_s = self._clock()
            if found is None:
                text = "%s was removed. If it is not back in %.0f s, the program ends, and writes it again"
                log.error(text, self.path, _GRACE_S)

    def require(self) -> None:
        """Check that the database file is at its path. Raise `Unavailable` if it has been missing for at least 10 s.

        A different file at the path also counts as missing. A restart of the program solves this problem.
        """
        self._look()
        if self._gone_s is not None and self._clock() - self._gone_s >= _GRACE_S:
            text = f"{self.path} was {'replaced' if self._is_replaced else 'removed'} while the program was running"
            raise Unavailable(text, hint="start the program again", code="state-removed")

    def restore(self, connection: sqlite3.Connection) -> None:
        """If the database file was removed, write the database to a new file at the same path.

        `connection` must have been opened before the file was removed.
        """
        if self._found() is not None:
            return
        partial = self.path.with_name(f"{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(open_restricted(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC))
            with contextlib.closing(sqlite3.connect(partial)) as copy:
                connection.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # so that the file is complete without a log
            partial.replace(self.path)
            sync_folder(self.path.parent)
        except (OSError, sqlite3.Error) as error:
            log.error("%s cannot be written again, so its events and counts are lost: %s", self.path, error)
            return
        log.warning("%s was removed, and was written again", self.path)

    def _found(self) -> tuple[int, int] | None:
        """Return the device and inode numbers of the file at the path of the database, or None if there is no file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino
