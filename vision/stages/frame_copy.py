"""`FrameCopy`: a private copy of a frame, for a stage that works on it in a thread of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.types import Frame, Result


@dataclass(slots=True)
class FrameCopy:
    """A copy of one frame and its result, in memory that is reused and grows to the largest frame."""

    memory: NDArray[np.uint8]
    frame: Frame | None = None
    result: Result | None = None

    @classmethod
    def empty(cls) -> FrameCopy:
        """Return a copy of nothing, without memory."""
        return cls(np.empty(0, np.uint8))

    def copy(self, frame: Frame, result: Result) -> None:
        """Replace the copy."""
        source = frame.pixels
        size = source.size
        if size > len(self.memory):
            self.memory = np.empty(size, np.uint8)
        pixels = self.memory[:size].reshape(source.shape)
        np.copyto(pixels, source)
        self.frame, self.result = Frame.wrap(frame.meta, pixels, frame.pixel_format), result

    def clear(self) -> None:
        """Forget the frame and the result. The memory stays."""
        self.frame = self.result = None
