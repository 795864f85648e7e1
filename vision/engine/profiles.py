"""Optimisation profiles: ranges of shapes that an engine was tuned for, and which one to run a shape with.

TensorRT does not choose. The first profile that fits is often the widest and slowest; the one tuned nearest to the
shape is the fast one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vision.errors import ModelError

Shape: TypeAlias = tuple[int, ...]

BATCH_BANDS = (1, 4, 16, 64, 256)
"""Edges of the batch ranges that get a profile each: kernels tuned for 64 pictures lose at 1, and the other way."""


@dataclass(frozen=True, slots=True)
class Range:
    """Least, best and greatest shape of one input, or least, best and greatest values of one shape-tensor input."""

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ModelError(f"min {self.min}, opt {self.opt} and max {self.max} differ in their number of dimensions")
        if not all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise ModelError(f"a range needs min <= opt <= max, got {self.min}, {self.opt}, {self.max}")

    def __contains__(self, shape: object) -> bool:
        return (
            isinstance(shape, tuple)
            and len(shape) == len(self.min)
            and all(low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True))
        )

    def __str__(self) -> str:
        low, best, high = ("x".join(map(str, shape)) or "scalar" for shape in (self.min, self.opt, self.max))
        return f"{low} .. {high} (best {best})" if low != high else high


@dataclass(frozen=True, slots=True)
class Profile:
    """One optimisation profile of an engine: a range for each input; `values` for shape-tensor inputs."""

    shapes: Mapping[str, Range]
    values: Mapping[str, Range]

    def contains(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether every given input lies in its range. Inputs that the profile does not know are never contained."""
        return all(name in self.shapes and shape in self.shapes[name] for name, shape in shapes.items())

    def cost(self, shapes: Mapping[str, Shape]) -> float:
        """Distance from the best shapes: sum of ``|log(size / opt)|`` over the dimensions."""
        return sum(
            abs(math.log(max(size, 1) / max(best, 1)))
            for name, shape in shapes.items()
            for size, best in zip(shape, self.shapes[name].opt, strict=True)
        )

    def volume(self) -> int:
        """Elements of all inputs at their greatest."""
        return sum(math.prod(each.max) for each in self.shapes.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {each}" for name, each in {**self.shapes, **self.values}.items())


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """Index of the profile that contains `shapes` and is tuned nearest to them.

    Profiles may overlap. Ties go to the smaller greatest volume, then to the lower index.

    Raises:
        ModelError: none contains them; the message lists what each allows.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.contains(shapes)]
    if not fitting:
        wanted = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        allowed = "; ".join(f"{index}: {profile}" for index, profile in enumerate(profiles))
        raise ModelError(
            f"no profile of the engine takes {wanted}; it has {allowed or 'none'}",
            hint="raise `detect: {max_batch: ...}` or widen `profiles` in model.yaml; the engine is built again",
        )
    return min(fitting, key=lambda index: (profiles[index].cost(shapes), profiles[index].volume(), index))


def batch_bands(max_batch: int) -> tuple[tuple[int, int, int], ...]:
    """(min, opt, max) of the batch for 1–4, 4–16, 16–64, … as far as `max_batch` needs them.

    `opt` is the top of a band and, in the last one, `max_batch`: where a busy site runs. Bands share their edges, so
    that the batch on an edge is served by the profile that was tuned for it.
    """
    if max_batch < 1:
        raise ValueError(f"max_batch is at least 1, got {max_batch}")
    if max_batch == 1:
        return ((1, 1, 1),)
    bands = []
    for low, high in itertools.pairwise(BATCH_BANDS):
        top = max_batch if high == BATCH_BANDS[-1] else min(high, max_batch)
        bands.append((low, top, top))
        if max_batch <= high:
            break
    return tuple(bands)
