"""`LossMark` records, across restarts, that a disk has failed and has possibly lost the newest events."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from vision.errors import VisionError
from vision.state.private_files import require_private_folder


class LossMark:
    """A file that exists while the disk of the folder `state` possibly lacks data that was already published.

    Such a disk cannot store this fact itself. For example, Linux makes a file system read-only after an error. It
    discards the data that waits for the disk when the file system is unmounted or earlier. The mark is therefore in the
    folder `marks` of a different file system, usually in memory. If `marks` is None, there is never a mark.
    """

    def __init__(self, state: Path, marks: Path | None) -> None:
        name = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]
        self._path = None if marks is None else marks / f"state-{name}.lost"

    def is_set(self) -> bool:
        """Return True if the disk has possibly lost published events, which means that the file of the mark exists."""
        return self._path is not None and self._path.exists()

    def set(self) -> None:
        """Create the file of the mark. Do nothing if this fails, or if other users can write to its folder."""
        if self._path is None:
            return
        with contextlib.suppress(OSError, VisionError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_private_folder(self._path.parent)
            self._path.touch(0o600)

    def clear(self) -> None:
        """Remove the file of the mark."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
