"""Which files are still images, by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def holds_images(path: Path) -> bool:
    """Return True if `path` is a folder or a still image, False if it is a video."""
    return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES
