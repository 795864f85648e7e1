"""What is composed: one file a pipeline, each one `build` of 20 to 60 lines, read top to bottom."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from vision.config import AppConfig
from vision.errors import ConfigError
from vision.runtime.builder import RunOptions
from vision.runtime.runtime import Runtime

Build = Callable[[AppConfig, RunOptions, ExitStack], Runtime]


def load_pipeline(name: str) -> Build:
    """The `build` function of a shipped pipeline, or of a Python file of the user's own (any `name` that ends in .py).

    Raises:
        ConfigError: there is no such pipeline, the file cannot be imported, or it has no `build`.
    """
    if not name.endswith(".py"):
        shipped = sorted(module.name for module in pkgutil.iter_modules(__path__))
        if name not in shipped:
            raise ConfigError(
                f"pipeline: expected one of {', '.join(shipped)} or a file that ends in .py, got {name!r}"
            )
        module = importlib.import_module(f"{__name__}.{name}")
    else:
        path = Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ConfigError(f"pipeline: no such file: {path}")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a file of the user raises is a fault of the configuration
            raise ConfigError(f"pipeline: {path} cannot be imported: {type(error).__name__}: {error}") from error
    build: Build | None = getattr(module, "build", None)
    if not callable(build):
        raise ConfigError(
            f"pipeline: {name} has no function `build`",
            hint="build(site, options, resources) -> Runtime: docs/pipelines.md",
        )
    return build
