"""The `track:` section: how objects are followed from frame to frame, in seconds and scores, never in frames."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vision.config.checks import TRACK_SCORES, tracking_conflicts
from vision.config.section import ConfigSection, Fraction, raise_conflicts


class TrackConfig(ConfigSection):
    """How sure a detection must be to do what, and for how long an object is remembered.

    The detector must report down to `low_score`: its threshold is the lower one of `low_score` and the score from
    which objects are published.
    """

    low_score: Fraction = Field(
        default=TRACK_SCORES["low_score"],
        description="lowest score of a detection that may carry on an object that was seen just before",
    )
    high_score: Fraction = Field(
        default=TRACK_SCORES["high_score"],
        description="lowest score of a detection that may find any known object again",
    )
    new_score: Fraction = Field(
        default=TRACK_SCORES["new_score"], description="lowest score of a detection that may begin a new object"
    )
    confirm_s: float = Field(
        default=0.0,
        ge=0,
        le=60,
        description="seconds that a new object is watched before it is published; it is always seen twice at least",
    )
    tentative_s: float = Field(
        default=0.25,
        ge=0,
        le=60,
        description="seconds without detection after which an unpublished object is forgotten",
    )
    weak_s: float = Field(
        default=0.5,
        ge=0,
        le=60,
        description="seconds that scores between `low_score` and `high_score` carry an object on",
    )
    lost_s: float = Field(
        default=1.5, gt=0, le=60, description="seconds without detection after which a published object is forgotten"
    )
    reactivation: Literal["filter", "observation"] = Field(
        default="filter",
        description="motion of an object found again; filter: corrected by the new position; observation: "
        "taken from its last and its new position alone",
    )
    max_objects: int = Field(default=500, ge=1, le=10_000, description="most objects that are remembered at once")

    @model_validator(mode="after")
    def _consistent(self) -> TrackConfig:
        raise_conflicts(tracking_conflicts(self.model_dump()))
        return self
