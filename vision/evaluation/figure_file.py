"""`write_figure` writes a plot of matplotlib to a file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from vision.config.user_files import write_output
from vision.errors import from_os_error


def write_figure(figure: Any, path: Path, option: str, *, dpi: float | None = None) -> None:
    """Write a figure to `path`. If this fails, an existing file stays unchanged.

    Args:
        figure: figure of matplotlib.
        path: the file to write. Its extension selects the format.
        option: option of the command that names the file, for error messages.
        dpi: pixels per inch, or None for the resolution of the figure.

    Raises:
        ConfigError: the file cannot be written.
        Unavailable: the file cannot currently be written, for example because the disk is full.
    """
    contents = io.BytesIO()
    figure.savefig(contents, format=path.suffix[1:], dpi=dpi or "figure")
    target = Path(os.path.realpath(path))  # a link stays a link
    try:
        if target.exists() and not target.is_file():  # a pipe or a device cannot be replaced
            write_output(target, contents.getvalue())
            return
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(contents.getvalue())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise from_os_error(f"{option}: cannot write {path}", error, code="not-writable") from error
