"""The `objects:` section: summaries of the objects that left the scene."""

from __future__ import annotations

from pydantic import Field

from vision.config.fields import ConfigSection


class ObjectsConfig(ConfigSection):
    """A message about each object that leaves the scene."""

    snapshots: bool = True
    """Include a JPEG of each object, if possible where it is large and clear; needs OpenCV."""
    max_side_px: int = Field(default=256, ge=32, le=1024)
    """Maximum length in pixels of the longer side of a JPEG; larger parts of frames are scaled down."""
    quality: int = Field(default=80, ge=1, le=100)
    """JPEG quality in percent."""
