"""The sample with which every model is checked when the program starts: a real frame, and a frame of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

_IMAGE: Final = Path(__file__).with_name("sample.npz")
"""First frame of configs/vtest.mp4, scaled to 384x288."""


def sample_frames() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the two frames of the sample, (H, W, 3) uint8 BGR: people on a road, and noise."""
    with np.load(_IMAGE) as arrays:
        image: NDArray[np.uint8] = arrays["frame"]
    noise = np.random.default_rng(1).integers(0, 256, image.shape, np.uint8)
    return image, noise
