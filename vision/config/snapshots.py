"""The `snapshots:` section: frames of events, on this machine's disk, in a folder that never outgrows its limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from vision.config.addresses import FOLDER_FORMS, check_folder
from vision.config.section import ConfigSection, Identifier, unique_names


class SnapshotConfig(ConfigSection):
    """A JPEG of the frame of every event."""

    folder: Annotated[str, AfterValidator(check_folder)] = Field(
        title=FOLDER_FORMS, description="where the JPEGs go, relative to this file; made where it is missing"
    )
    kinds: Annotated[tuple[Identifier, ...], AfterValidator(unique_names)] | None = Field(
        default=None, description="kinds of events that get one; all where absent"
    )
    max_files: int = Field(default=10_000, ge=1, le=1_000_000, description="beyond so many the oldest are deleted")
    max_mb: int = Field(
        default=1000, ge=1, le=10_000_000, description="megabytes; beyond so many the oldest are deleted"
    )
    max_side_px: int = Field(
        default=1280, ge=64, le=16384, description="a larger frame is made smaller before it is written"
    )
    quality: int = Field(default=85, ge=1, le=100, description="of the JPEG, per cent")
    annotate: bool = Field(
        default=True, description="draw the object, the line or zone, and the time of the event on the frame"
    )
