"""Function that checks that a path is a regular file, before the file is opened.

Opening a FIFO by mistake would wait for its writer, or make the writer fail.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vision.config.wording import did_you_mean_file
from vision.errors import SourceError

_KINDS: Final[tuple[tuple[Callable[[int], bool], str, str], ...]] = (
    (stat.S_ISDIR, "a folder", "a folder of images is read as images"),
    (stat.S_ISFIFO, "a FIFO (named pipe)", "write the video to a file, or serve it over RTSP or HTTP"),
    (stat.S_ISSOCK, "a socket", "serve the video over RTSP or HTTP"),
    (stat.S_ISCHR, "a device", "USB cameras are /dev/video0, /dev/video1, ..."),
    (stat.S_ISBLK, "a disk", "expected the path of a video on the disk"),
)


def require_file(path: Path) -> None:
    """Check that `path` is a readable file, and not empty.

    Raises:
        SourceError: the file is missing, empty, not readable, or not a regular file.
    """
    try:
        status = path.stat()
        for is_kind, kind, hint in _KINDS:
            if is_kind(status.st_mode):
                raise SourceError(f"{path}: expected a file, this is {kind}", hint=hint, code="file-kind")
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        hint = did_you_mean_file(path) or "check the path and its permissions"
        raise SourceError(f"{path}: {error.strerror}", hint=hint, code="file") from error
    if empty:
        raise SourceError(f"{path}: the file is empty", code="file")
