"""`profiles` of model.yaml: ranges of shapes of a TensorRT engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from vision.config.section import ConfigSection
from vision.config.wording import InvalidValue

_Extents: TypeAlias = tuple[int, int, int]
_Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _ascending(extents: _Extents) -> _Extents:
    """Return [min, opt, max] of one dimension if they are in ascending order.

    Raises:
        InvalidValue: below 1, above 16384, or not in this order.
    """
    if not 1 <= extents[0] <= extents[1] <= extents[2] <= 16384:
        raise InvalidValue("[min, opt, max] with 1 <= min <= opt <= max <= 16384")
    return extents


def _ascending_shapes(shapes: _Shapes) -> _Shapes:
    """Return [min, opt, max] of the dimensions, or of the values, of one input if they are in ascending order.

    Raises:
        InvalidValue: they differ in length, or one is not in this order.
    """
    low, best, high = shapes
    if not len(low) == len(best) == len(high) or not all(map(_in_order, zip(low, best, high, strict=True))):
        raise InvalidValue("three lists of one length, [min, opt, max], each number at most that of the next list")
    return shapes


def _in_order(numbers: Sequence[int]) -> bool:
    return list(numbers) == sorted(numbers)


Extent = Annotated[_Extents, AfterValidator(_ascending)]
ShapeExtent = Annotated[_Shapes, AfterValidator(_ascending_shapes)]


class ProfileSpec(ConfigSection):
    """One optimisation profile: [min, opt, max] of every dynamic dimension of the ONNX file."""

    batch: Extent = Field(description="[min, opt, max] frames in a batch")
    height: Extent | None = Field(None, description="[min, opt, max] of the canvas; the input's height if absent")
    width: Extent | None = Field(None, description="[min, opt, max] of the canvas; the input's width if absent")
    shapes: dict[str, ShapeExtent] = Field({}, description="[min, opt, max] shapes of other inputs, by name")
    values: dict[str, ShapeExtent] = Field({}, description="[min, opt, max] values of shape inputs, by name")
