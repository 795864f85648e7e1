"""Functions that return those parts of configuration errors that do not depend on the wording."""

from __future__ import annotations

from vision.config import load_config_text
from vision.errors import ConfigError, VisionError

FaultKey = tuple[int, str, str]
"""Line, key and code of a fault."""


def fault_keys(error: VisionError) -> list[FaultKey]:
    """Return the line, the key, and the code of each fault of `error`, in the order of the file."""
    return [(fault.line, fault.key, fault.code) for fault in error.faults]


def config_faults(text: str, environ: dict[str, str] | None = None) -> list[FaultKey]:
    """Return the faults of a camera.yaml, or an empty list if the file is valid."""
    try:
        load_config_text(text, environ or {})
    except ConfigError as error:
        return fault_keys(error)
    return []
