"""Name and version of the distribution, and commands that install its optional parts."""

from __future__ import annotations

import importlib
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

from vision.errors import ConfigError

DISTRIBUTION: Final = "vision-streams"
"""Name on package indexes, where `vision` is another project."""

_CHECKOUT: Final = Path(__file__).resolve().parents[1]


def version() -> str:
    """Return the version of the installed distribution; ``0+unknown`` in a folder that was not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+unknown"


def install_hint(*extras: str, checkout: Path = _CHECKOUT) -> str:
    """Return the command that installs `extras` into the environment of this process.

    Args:
        extras: Names in pyproject.toml, such as ``eval``.
        checkout: The folder above the package. It is installed in place if it is a checkout of the project.
    """
    listed = f"[{','.join(extras)}]"
    if (checkout / "pyproject.toml").is_file():
        return pip_hint("-e", f"{checkout}{listed}")
    return pip_hint(f"{DISTRIBUTION}{listed}")


def pip_hint(*arguments: str) -> str:
    """Return the command that installs other packages into the environment of this process."""
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def require_cv2(purpose: str) -> None:
    """Check that OpenCV can be imported.

    Raises:
        ConfigError: OpenCV is missing; `purpose` needs it.
    """
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        hint = install_hint("opencv")
        raise ConfigError(f"{purpose} needs OpenCV: {error}", hint=hint, code="opencv-missing") from error
