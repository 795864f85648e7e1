"""What the synthetic source paints and the fake detector finds: one module, so that both always agree.

The contract: the background is any grey (R = G = B); an object of class ``i`` is a filled, axis-aligned rectangle of
`FAKE_COLORS[i]`. Boxes are ``[x1, x2) x [y1, y2)`` in pixels, so a rectangle painted with
``pixels[y1:y2, x1:x2] = FAKE_COLORS[i]`` has the box ``(x1, y1, x2, y2)``. Rectangles of one class do not touch,
not even with their corners: those that do are one object with the box around both.
"""

from __future__ import annotations

from typing import Final

FAKE_CLASSES: Final[tuple[str, ...]] = ("red", "green", "blue")

FAKE_COLORS: Final[tuple[tuple[int, int, int], ...]] = ((0, 0, 255), (0, 255, 0), (255, 0, 0))
"""Blue, green, red of each class of `FAKE_CLASSES`."""
