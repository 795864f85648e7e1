"""Which version of the program this is."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Of the installed package; ``0+unknown`` where it runs from a folder that was not installed."""
    try:
        return metadata.version("vision")
    except metadata.PackageNotFoundError:
        return "0+unknown"
