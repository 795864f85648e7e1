"""Temporary folders, with an error message that states what to do if the disk of the folder is full."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vision.errors import Closed, ConfigError, Unavailable

_HINT: Final = "free space in this folder, or set TMPDIR to a folder on a disk with more space"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_PROBE_BYTES: Final = 1 << 20


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yield a temporary folder in the folder that TMPDIR names, or in /tmp. Remove this folder after the `with` block.

    If the disk of the folder is full, any error in the `with` block except `Closed` becomes `Unavailable`. This applies
    even if the message of the error does not mention the full disk.

    Raises:
        ConfigError: no folder for temporary files is writable.
        Unavailable: the disk is full.
    """
    try:
        created = tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as error:
        raise ConfigError(
            f"cannot create temporary files: {error.strerror or error}", hint=_HINT, code="no-temporary-folder"
        ) from error
    with created as name:
        folder = Path(name)
        try:
            yield folder
        except Closed:
            raise
        except Exception as error:
            if not _is_full(folder):
                raise
            parent = folder.parent
            raise Unavailable(
                f"the folder for temporary files, {parent}, is full", hint=_HINT, code="temporary-full"
            ) from error


def _is_full(folder: Path) -> bool:
    """Return True if there is no space for a file of 1 MiB in the folder."""
    probe = folder / ".probe"
    try:
        with probe.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _PROBE_BYTES)
    except OSError as error:
        return error.errno in _FULL
    finally:
        probe.unlink(missing_ok=True)
    return False
