"""The sections `report_after_s:`, which set how long a camera can have a fault before an event reports the fault."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from vision.config.fields import ConfigSection, Day

REALIGN_PATIENCE_S: Final = 10.0
"""Time in seconds after which an event reports that a camera with `realign` has stopped counting."""


class ReportAfter(ConfigSection):
    """Times in seconds for which a camera has a fault, or works again, before an event reports this."""

    lost: Day | None = 60.0
    """Seconds without frames after which a camera is reported as lost; null means never."""
    frozen: Day | None = 60.0
    """Seconds of identical frames, or of a connection without frames, after which a camera is reported as frozen; null
    means never."""
    back: float = Field(default=0.0, ge=0, le=86_400)
    """Seconds of new frames after which a camera that was reported is back."""
    moved: Day | None = None
    """Seconds after which a camera that shows a different view is reported as moved; needs OpenCV; never if absent,
    but after 10 s with `realign`."""
    covered: Day | None = None
    """Seconds after which a camera whose lens is covered is reported; needs OpenCV; never if absent, but after 10 s
    with `realign`."""

    @property
    def watches_view(self) -> bool:
        """True if the frames of the camera must be compared with its background."""
        return self.moved is not None or self.covered is not None
