"""Functions that describe masks, keypoints, and oriented boxes of objects in messages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from vision.messaging.message_fields import MaskOfObject
from vision.messaging.schema import DetectedObject, MaskFormat
from vision.types import FrameMeta, Mask, Shapes, rotated_corners

_FINER: Final = 4  # factor by which a mask is enlarged before its outline is traced
_TOLERANCE: Final = 1.0  # distance of a polygon from the traced outline, in pixels of the enlarged mask

_Ints: TypeAlias = NDArray[np.int64]


def add_shapes(
    objects: Sequence[DetectedObject], shapes: Shapes, meta: FrameMeta, form: MaskFormat
) -> list[DetectedObject]:
    """Return copies of `objects` with the masks, keypoints, and oriented boxes in `shapes`.

    Masks have the format `form`, or ``rle`` if OpenCV is not installed.
    """
    pairs = zip(objects, shape_fields(shapes, meta, form, len(objects)), strict=True)
    return [msgspec.structs.replace(detected, **fields) for detected, fields in pairs]


def shape_fields(shapes: Shapes, meta: FrameMeta, form: MaskFormat, count: int = 1) -> list[dict[str, Any]]:
    """Return the fields `mask`, `keypoints`, `angle_deg`, and `corners` that each of `count` objects has."""
    described: list[dict[str, Any]] = [{} for _ in range(count)]
    if shapes.masks is not None:
        for fields, mask in zip(described, shapes.masks, strict=True):
            fields["mask"] = describe_mask(mask, meta.width_px, meta.height_px, form)
    if shapes.keypoints is not None:
        at = shapes.keypoints[..., :2].astype(np.float64).round(1).tolist()
        scores = shapes.keypoints[..., 2].astype(np.float64).round(4).tolist()
        for fields, points, certain in zip(described, at, scores, strict=True):
            fields["keypoints"] = [(x, y, score) for (x, y), score in zip(points, certain, strict=True)]
    if shapes.rotated_boxes is not None:
        angles = np.rad2deg(shapes.rotated_boxes[:, 4].astype(np.float64)).round(1) % 180
        corners = rotated_corners(shapes.rotated_boxes).round(1).tolist()
        for fields, angle, four in zip(described, angles.tolist(), corners, strict=True):
            fields |= {"angle_deg": angle, "corners": [(x, y) for x, y in four]}
    return described


def describe_mask(mask: Mask, width_px: int, height_px: int, form: MaskFormat) -> MaskOfObject:
    """Convert a mask to the format `form`, for a frame of this size. Without OpenCV, the format is always ``rle``."""
    if form == "polygon" and has_opencv():
        return MaskOfObject(polygons=polygons(mask, width_px, height_px))
    return MaskOfObject(size=(height_px, width_px), counts=run_lengths(mask, width_px, height_px))


@lru_cache(maxsize=1)
def has_opencv() -> bool:
    """Return True if OpenCV is installed."""
    try:
        import cv2  # noqa: F401
    except ImportError:
        return False
    return True


def polygons(mask: Mask, width_px: int, height_px: int) -> list[list[tuple[float, float]]]:
    """Return the outlines of a mask's parts as polygons, in pixels of the frame. The polygons do not describe holes."""
    import cv2  # OpenCV is optional

    rows, columns = mask.cells.shape
    padded = np.zeros((rows + 2, columns + 2), np.uint8)  # so that an outline can run along the edge of the region
    padded[1:-1, 1:-1] = mask.cells * np.uint8(255)
    size = (padded.shape[1] * _FINER, padded.shape[0] * _FINER)
    finer = (cv2.resize(padded, size, interpolation=cv2.INTER_LINEAR) > 127).astype(np.uint8)
    outlines, _ = cv2.findContours(finer, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x1, y1, x2, y2 = mask.region_xyxy
    per_cell = np.array([(x2 - x1) / columns, (y2 - y1) / rows])
    found = []
    for outline in outlines:
        corners = cv2.approxPolyDP(outline, _TOLERANCE, True)[:, 0]
        if len(corners) >= 3:
            at = ((corners + 0.5) / _FINER - 1) * per_cell + (x1, y1)
            inside = np.clip(at, 0, (width_px, height_px)).round(1)
            found.append([(x, y) for x, y in inside.tolist()])
    return found


def run_lengths(mask: Mask, width_px: int, height_px: int) -> list[int]:
    """Return the run lengths of a mask in the whole frame, column by column, as in COCO's uncompressed RLE.

    The first number counts pixels outside the mask, the second counts pixels inside the mask, and so on. The sum of the
    numbers is the area of the frame in pixels.
    """
    rows, columns = mask.cells.shape
    x1, y1, x2, y2 = mask.region_xyxy
    first_x, of_columns = _cells_of_pixels(x1, x2, columns, width_px)
    first_y, of_rows = _cells_of_pixels(y1, y2, rows, height_px)
    tall = np.zeros((columns, len(of_rows) + 2), np.bool_)  # a row of this array is a column of cells
    tall[:, 1:-1] = mask.cells.T[:, of_rows]
    steps = (tall[:, 1:] != tall[:, :-1])[of_columns]
    column, row = np.divmod(np.flatnonzero(steps), steps.shape[1])  # several times faster than `nonzero`
    edges = (first_x + column) * height_px + first_y + row  # starts and ends of runs take turns
    turns: _Ints = np.concatenate([[0], edges, [width_px * height_px]])
    return _merged(np.diff(turns).tolist())


def _cells_of_pixels(low: float, high: float, cells: int, side_px: int) -> tuple[int, _Ints]:
    """Convert the cells of a mask to pixels on one axis, on which the mask extends from `low` to `high` (in pixels).

    Return the first pixel in the mask, and, for this pixel and each following pixel in the mask, the index of its cell.
    """
    first, last = max(0, int(np.ceil(low - 0.5))), min(side_px, int(np.ceil(high - 0.5)))
    centers = np.arange(first, max(first, last)) + 0.5
    cell = np.floor((centers - low) * (cells / (high - low))).astype(np.int64)
    return first, np.clip(cell, 0, cells - 1)


def _merged(lengths: list[int]) -> list[int]:
    """Remove run lengths of 0, except the first one, by joining the runs before and after such a run."""
    joined = lengths[:1]
    for length in lengths[1:]:
        joined.append(length)
        if len(joined) > 2 and joined[-2] == 0:
            joined[-3:] = [joined[-3] + joined[-1]]
    return joined[:-1] if len(joined) > 1 and joined[-1] == 0 else joined
