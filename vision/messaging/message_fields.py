"""Base class of all messages, and fields of boxes and shapes that several messages have."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct


def doc(description: str) -> Meta:
    """Return the annotation of a field that adds `description` to the JSON Schema and to docs/messages.md."""
    return Meta(description=description)


class Compact(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base class of all structs. `repr` omits fields that are None, and encoded messages omit default values."""

    def __repr__(self) -> str:
        fields = ((name, getattr(self, name)) for name in self.__struct_fields__)
        shown = (f"{name}={value!r}" for name, value in fields if value is not None)
        return f"{type(self).__name__}({', '.join(shown)})"


Box: TypeAlias = tuple[float, float, float, float]
"""x1, y1, x2, and y2 in pixels of the frame."""

Pixel: TypeAlias = tuple[float, float]
"""x and y in pixels of the frame."""


class MaskOfObject(Compact, frozen=True, kw_only=True):
    """The pixels of an object, either as `polygons` or as run lengths (`size` and `counts`) in the format of COCO."""

    polygons: Annotated[
        list[list[Pixel]] | None,
        doc("outer outline of each part of the object, in pixels; absent with `publish.masks: rle` or without OpenCV"),
    ] = None
    size: Annotated[tuple[int, int] | None, doc("height and width of the frame; absent with polygons")] = None
    counts: Annotated[
        list[int] | None,
        doc(
            "numbers of pixels alternately outside and inside the object, from top to bottom in each column, columns "
            "from left to right; absent with polygons"
        ),
    ] = None


# The shape of an object, in messages about a frame and about an event.
ObjectMask: TypeAlias = Annotated[MaskOfObject | None, doc("pixels of the object; absent if the model finds no masks")]
Keypoints: TypeAlias = Annotated[
    list[tuple[float, float, float]] | None,
    doc("x, y, and score of each keypoint, in the order of `keypoint_names`; absent if the model finds none"),
]
Angle: TypeAlias = Annotated[
    float | None,
    doc("angle of the longer side of an oriented box, 0 up to 180, clockwise from the x axis; absent if upright"),
]
Corners: TypeAlias = Annotated[
    list[Pixel] | None,
    doc("corners of an oriented box, clockwise; can lie outside the frame; absent for upright boxes"),
]
KeypointNames: TypeAlias = Annotated[
    list[str] | None, doc("names of the keypoints of an object; absent if there are no keypoints or names")
]
