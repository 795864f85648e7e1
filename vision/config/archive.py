"""The `archive:` section: tracks, events, and counts of every frame, kept in files."""

from __future__ import annotations

from pydantic import Field

from vision.config.fields import ConfigSection, FolderPath


class ArchiveConfig(ConfigSection):
    """An archive of the tracks, events, and counts of every frame."""

    folder: FolderPath
    """Folder of the archive, relative to this file; created if missing."""
    keep_days: int = Field(default=90, ge=1, le=36_500)
    """Number of days for which files are kept; older days are deleted."""
    max_mb: int = Field(default=50_000, ge=10, le=1_000_000_000)
    """Maximum total size in megabytes; the oldest days are deleted first."""
