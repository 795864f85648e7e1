"""Definition of the rectangles that the synthetic source paints and that the fake detector finds.

The background is any gray (R = G = B). An object of class ``i`` is a filled, axis-aligned rectangle with the color
``FAKE_COLORS[i]``. A rectangle painted with ``pixels[y1:y2, x1:x2] = FAKE_COLORS[i]`` has the box ``(x1, y1, x2, y2)``.
Rectangles of one class must not touch, not even at corners, because touching rectangles count as one object.
"""

from __future__ import annotations

from typing import Final

FAKE_CLASSES: Final[tuple[str, ...]] = ("red", "green", "blue")

FAKE_COLORS: Final[tuple[tuple[int, int, int], ...]] = ((0, 0, 255), (0, 255, 0), (255, 0, 0))
"""Color of each class of `FAKE_CLASSES`: blue, green, and red, from 0 to 255."""
