"""The configurations and models that the package contains."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vision.config.wording import did_you_mean, one_of
from vision.errors import ConfigError


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name, such as ``demo``."""
    folder = Path(str(resources.files("vision.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped_models() -> Path:
    """Return the folder of the shipped models (see `vision.config.folder_of_model`)."""
    return Path(str(resources.files("vision.models")))


def resolve_config(name: str) -> Path:
    """Return the path of a configuration: a shipped one by its name, or a file. ``./demo`` is a file called demo.

    Raises:
        ConfigError: neither of them.
    """
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if "/" in name or path.suffix in (".yaml", ".yml") or (name and path.exists()):
        return path
    advice = did_you_mean(path.stem, shipped)
    raise ConfigError(
        f"no configuration is called {name!r}: expected a file, such as camera.yaml, or one of {one_of(list(shipped))}",
        hint=advice or "vision run demo runs a shipped configuration",
    )
