"""A frame that lies elsewhere than its array says, as those in GPU memory do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    _Bytes = np.ndarray[Any, np.dtype[np.uint8]]
else:
    _Bytes = np.ndarray


class Elsewhere(_Bytes):
    """Satisfies `vision.types.OffHost`. Its own bytes are all 0."""

    pixels: NDArray[np.uint8]

    @staticmethod
    def of(pixels: NDArray[np.uint8]) -> Elsewhere:
        """A frame whose pixels are really these."""
        image = np.broadcast_to(np.zeros((), np.uint8), pixels.shape).view(Elsewhere)
        image.pixels = pixels
        return image

    def to_host(self) -> NDArray[np.uint8]:
        copied: NDArray[np.uint8] = self.pixels.copy()
        return copied

    def rows_to_host(self, first: int, step: int) -> NDArray[np.uint8]:
        return np.stack([self.pixels[row].reshape(-1) for row in range(first, len(self.pixels), step)])
