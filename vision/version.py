"""Name and version of the distribution, checks for optional packages, and commands that install them."""

from __future__ import annotations

import functools
import importlib
import shlex
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Final

from vision.errors import ConfigError

DISTRIBUTION: Final = "vision-streams"
"""Name on package indexes, where `vision` is a different project."""

_CHECKOUT: Final = Path(__file__).resolve().parents[1]


@functools.cache
def version() -> str:
    """Return the version of the installed distribution, or ``0+unknown`` if the distribution is not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+unknown"


def install_hint(*extras: str, checkout: Path = _CHECKOUT) -> str:
    """Return the command that installs `extras` into the environment of this process.

    Args:
        extras: names of extras in pyproject.toml, such as ``eval``.
        checkout: folder above the package. If the folder contains pyproject.toml, the command installs the checkout in
            place.
    """
    listed = f"[{','.join(extras)}]"
    if (checkout / "pyproject.toml").is_file():
        return pip_hint("-e", f"{checkout}{listed}")
    return pip_hint(f"{DISTRIBUTION}{listed}")


def pip_hint(*arguments: str) -> str:
    """Return the command that passes `arguments` to ``pip install`` in the environment of this process."""
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def require_package(module: str, purpose: str, hint: str, code: str = "package-missing") -> ModuleType:
    """Import a module of an optional package, and return it.

    Raises:
        ConfigError: the module cannot be imported. The error has `hint` and `code`, and its text starts with `purpose`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{purpose}: {error}", hint=hint, code=code) from error


def require_cv2(purpose: str) -> None:
    """Raise `ConfigError` if OpenCV cannot be imported. `purpose` is the feature that needs OpenCV."""
    require_package("cv2", f"{purpose} needs OpenCV", install_hint("opencv"), code="opencv-missing")
