"""Faults of the disk that affect only the program under test. A small library, loaded by `LD_PRELOAD`, causes them."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("disk.c")
_FORM: Final = struct.Struct("ii")  # the errno of each write, or 0, and the delay of fsync in ms
_SLOW_MS: Final = 2000  # delay of fsync on a slow disk
_COMPILE_S: Final = 60  # timeout of the compiler


class Disk:
    """Control of disk faults in one folder, which affect only processes that are started with `environment`."""

    def __init__(self, folder: Path, work: Path) -> None:
        """Compile the library that causes the faults, in the folder `work`. No fault is active yet.

        Faults affect only files below `folder`.

        Raises:
            OSError: there is no C compiler, or the library cannot be written.
            subprocess.SubprocessError: the compiler failed.
        """
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise FileNotFoundError("there is no C compiler")
        library, control = work / "disk.so", work / "disk"
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_S)
        control.write_bytes(bytes(_FORM.size))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), _FORM.size)
        self.environment = {
            "LD_PRELOAD": " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)])),
            "VISION_CHAOS_DISK": str(control),
            "VISION_CHAOS_FOLDER": f"{folder.resolve()}/",
        }
        self._errno, self._slow = 0, False

    def set_full(self, full: bool) -> None:
        """Make all writes below the folder fail with ENOSPC if `full` is True. Otherwise, end this fault."""
        self._errno = errno.ENOSPC if full else 0
        self._write()

    def set_read_only(self, read_only: bool) -> None:
        """Make writes and fsync below the folder fail with EROFS if `read_only` is True. Otherwise, end this fault.

        Creating a file still succeeds.
        """
        self._errno = errno.EROFS if read_only else 0
        self._write()

    def set_slow(self, slow: bool) -> None:
        """Make fsync and fdatasync take 2 s longer if `slow` is True. Otherwise, end this fault."""
        self._slow = slow
        self._write()

    def close(self) -> None:
        """End all faults of the disk. Idempotent."""
        if not self._control.closed:
            self._errno, self._slow = 0, False
            self._write()
            self._control.close()

    def _write(self) -> None:
        _FORM.pack_into(self._control, 0, self._errno, _SLOW_MS * self._slow)
