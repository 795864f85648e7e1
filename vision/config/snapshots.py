"""The `snapshots:` section: JPEGs of the frames of events, in a folder of limited size."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from vision.config.addresses import FOLDER_FORMS, check_folder
from vision.config.section import ConfigSection, Identifier, unique_names


class SnapshotConfig(ConfigSection):
    """A JPEG of the frame of every event."""

    folder: Annotated[str, AfterValidator(check_folder)] = Field(
        title=FOLDER_FORMS, description="folder of the JPEGs, relative to this file; created if missing"
    )
    kinds: Annotated[tuple[Identifier, ...], AfterValidator(unique_names)] | None = Field(
        default=None, description="kinds of events with a JPEG; all if absent"
    )
    max_files: int = Field(
        default=10_000, ge=1, le=1_000_000, description="maximum number of files; the oldest are deleted first"
    )
    max_mb: int = Field(
        default=1000,
        ge=1,
        le=10_000_000,
        description="maximum total size, megabytes; the oldest files are deleted first",
    )
    max_side_px: int = Field(
        default=1280,
        ge=64,
        le=16384,
        description="maximum length of the longer side, pixels; larger frames are scaled down",
    )
    quality: int = Field(default=85, ge=1, le=100, description="JPEG quality, percent")
    annotate: bool = Field(
        default=True, description="draw the object, the line or zone, and the time of the event on the frame"
    )
