"""The `privacy:` section: areas and classes of objects that no image or video of a camera shows."""

from __future__ import annotations

from pydantic import Field

from vision.config.analytics import Polygon, Units
from vision.config.fields import ClassNames, ConfigSection


class CameraPrivacy(ConfigSection):
    """Areas and classes of objects that are hidden in the images and videos of one camera."""

    units: Units = "pixels"
    """Unit of all points: pixels of the source frame, or fractions or percent of its width and height."""
    masks: tuple[Polygon, ...] = Field(default=(), max_length=100)
    """Areas that are filled with black."""
    blur: ClassNames | None = None
    """Classes of the objects that are made unrecognizable; none if absent."""
