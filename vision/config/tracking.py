"""The `track:` section: how objects are tracked, in seconds and scores, independent of the frame rate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vision.config.checks import TRACK_SCORES, tracking_conflicts
from vision.config.section import ConfigSection, Fraction, raise_conflicts


class TrackConfig(ConfigSection):
    """Scores that extend and start tracks, and how long tracks last.

    The detector must report down to `low_score`: its threshold is the lower one of `low_score` and the score from
    which objects are published.
    """

    low_score: Fraction = Field(
        default=TRACK_SCORES["low_score"],
        description="minimum score of a detection that can extend a track of the previous frame",
    )
    high_score: Fraction = Field(
        default=TRACK_SCORES["high_score"],
        description="minimum score of a detection that can extend any track",
    )
    new_score: Fraction = Field(
        default=TRACK_SCORES["new_score"], description="minimum score of a detection that starts a track"
    )
    confirm_s: float = Field(
        default=0.0,
        ge=0,
        le=60,
        description="seconds before a new track is published; it always needs two detections",
    )
    tentative_s: float = Field(
        default=0.25,
        ge=0,
        le=60,
        description="seconds without detection after which an unpublished track ends",
    )
    weak_s: float = Field(
        default=0.5,
        ge=0,
        le=60,
        description="seconds that detections between `low_score` and `high_score` alone can extend a track",
    )
    lost_s: float = Field(
        default=1.5, gt=0, le=60, description="seconds without detection after which a published track ends"
    )
    reactivation: Literal["filter", "observation"] = Field(
        default="filter",
        description="motion of an object detected again; filter: corrected by the new position; observation: "
        "from the last and the new position only",
    )
    max_objects: int = Field(default=500, ge=1, le=10_000, description="maximum number of tracks")

    @model_validator(mode="after")
    def _consistent(self) -> TrackConfig:
        raise_conflicts(tracking_conflicts(self.model_dump()))
        return self
