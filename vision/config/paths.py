"""Checks of paths from the user. Unlike the methods of `Path`, they raise no error if a name is too long."""

from __future__ import annotations

import os
from pathlib import Path


def exists(path: Path) -> bool:
    """Return True if there is a file or folder at `path`."""
    return os.path.exists(path)  # noqa: PTH110 - `Path.exists` raises errors


def is_file(path: Path) -> bool:
    """Return True if there is a file at `path`."""
    return os.path.isfile(path)  # noqa: PTH113 - `Path.is_file` raises errors


def is_dir(path: Path) -> bool:
    """Return True if there is a folder at `path`."""
    return os.path.isdir(path)  # noqa: PTH112 - `Path.is_dir` raises errors


def can_write(path: Path) -> bool:
    """Return True if a file at `path` can be replaced or, if there is none, created. Symbolic links are followed.

    Return False if `path` is a folder, or if its parent folder does not exist.
    """
    target = Path(os.path.realpath(path))  # `Path.resolve` raises errors
    return not is_dir(target) and os.access(target if exists(target) else target.parent, os.W_OK)
