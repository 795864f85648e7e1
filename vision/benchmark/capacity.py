"""The number of cameras that fit on a machine, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_CAMERAS: Final = 256
MAX_STEPS: Final = 6


@dataclass(frozen=True, slots=True)
class Capacity:
    """Result of a search."""

    fit: int  # largest number of cameras that was tried and fits; 0 if not even one fits
    too_many: int | None  # smallest number that was tried and does not fit; None if all fit

    def __str__(self) -> str:
        if self.too_many is None:
            return f"at least {self.fit}"
        return str(self.fit) if self.too_many == self.fit + 1 else f"{self.fit} to {self.too_many - 1}"


def find_capacity(
    fits: Callable[[int], bool],
    tried: int,
    *,
    tried_fits: bool,
    max_steps: int = MAX_STEPS,
    time_left: Callable[[], bool] = lambda: True,
) -> Capacity:
    """Double or halve the number of cameras until the limit lies between two numbers, then bisect.

    Args:
        fits: runs that number of cameras, and returns True if every camera gets what it asks for.
        tried: a number of cameras whose result is known.
        tried_fits: that result.
        max_steps: maximum number of calls of `fits`.
        time_left: returns False when no further step may start.
    """
    fit, too_many = (tried, None) if tried_fits else (0, tried)
    for _ in range(max_steps):
        count = _next(fit, too_many)
        if count is None or not time_left():
            break
        if fits(count):
            fit = count
        else:
            too_many = count
    return Capacity(fit, too_many)


def _next(fit: int, too_many: int | None) -> int | None:
    """Return the number of cameras to try next; None when the limit is exact."""
    if too_many is None:
        return min(2 * fit, MAX_CAMERAS) if fit < MAX_CAMERAS else None
    if too_many - fit < 2:
        return None
    return too_many // 2 if fit == 0 else (fit + too_many) // 2
