"""`Ledger` stores the questions to the language model and its answers in files, for audits."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from vision.errors import from_os_error
from vision.state.free_space import FreeSpace
from vision.state.private_files import open_restricted

_NAME: Final = "ledger.jsonl"
_OLDER: Final = "ledger-older.jsonl"


class Ledger:
    """Two files of JSON lines in one folder: the newer file and the older file.

    At half of the maximum size, the newer file replaces the older file. Several processes can write to the same folder
    at the same time. `lost` is the number of entries that this object could not write.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Create the folder and the newer file if necessary. `max_bytes` is the maximum size of both files together.

        Raises:
            ConfigError: the folder cannot be created, or is not writable.
            Unavailable: the folder cannot be used at present, for example because the disk is full.
        """
        self.lost = 0
        self._path, self._older = folder / _NAME, folder / _OLDER
        self._max_bytes = max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise from_os_error(f"language.ledger: cannot write to {folder}", error, code="ledger") from error
        self._space = FreeSpace(folder)

    def write(self, entry: Mapping[str, Any], images: Sequence[bytes]) -> None:
        """Append an entry with the SHA-256 of each image. If this fails, count the entry in `lost`.

        If the newer file would become larger than half of `max_bytes`, it replaces the older file, and the entry is the
        first entry of a new file.
        """
        hashes = [hashlib.sha256(image).hexdigest() for image in images]
        line = msgspec.json.encode({**entry, "images_sha256": hashes}) + b"\n"
        try:
            if self._space.is_low():
                raise OSError("the disk is nearly full")
            self._lock()
            try:
                self._append(line)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError:
            self.lost += 1

    def close(self) -> None:
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        if os.fstat(self._file).st_size + len(line) > self._max_bytes // 2:
            self._path.replace(self._older)
            self._lock()
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError("the disk is full")

    def _lock(self) -> None:
        """Lock the newer file for this process. Reopen it if a different process has renamed or removed it."""
        while True:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), self._path.stat()):
                    return
            former, self._file = self._file, self._open()
            os.close(former)

    def _open(self) -> int:
        return open_restricted(str(self._path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
