"""Masks, keypoints, and oriented boxes of candidates, and their conversion to the source frame.

Each class contains the values of N candidates, as the model returns them. The GPU writes these values for the objects
that are left after NMS, and the host converts them with the same classes, so the back-ends agree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.layout import Floats, Indices
from vision.detect.reference.letterbox import Letterbox
from vision.types import Mask, Shapes


class CandidateShapes(ABC):
    """Base class for one kind of shape, such as keypoints, of N candidates."""

    @abstractmethod
    def take(self, rows: Indices) -> CandidateShapes:
        """Return the shapes of the candidates with the indices `rows`."""

    @abstractmethod
    def to_source(self, letterbox: Letterbox, source_width_px: int, source_height_px: int) -> Shapes:
        """Return the shapes, converted to pixels of the source frame."""


@dataclass(frozen=True, slots=True)
class RotatedBoxes(CandidateShapes):
    """Boxes that are rotated around their center, as Ultralytics' models for oriented boxes (OBB) export them."""

    values: Floats
    """(N, 5) center x, center y, width, height; angle of the width in radians, clockwise because y points down."""

    def take(self, rows: Indices) -> RotatedBoxes:
        return RotatedBoxes(self.values[rows])

    def enclosing(self) -> Floats:
        """Return the smallest upright boxes that contain the rotated boxes, xyxy (N, 4)."""
        x, y, width, height, angle = self.values.T
        cosine, sine = np.abs(np.cos(angle)), np.abs(np.sin(angle))
        half = np.float32(0.5)
        across, down = (width * cosine + height * sine) * half, (width * sine + height * cosine) * half
        return np.stack([x - across, y - down, x + across, y + down], axis=1)

    def to_source(self, letterbox: Letterbox, source_width_px: int, source_height_px: int) -> Shapes:
        """Convert the boxes to source pixels, with the longer side as the first side, and an angle from 0 to pi."""
        # The sides stay perpendicular, although rounding makes the scales of x and y differ.
        values = self.values.astype(np.float64)
        centers = letterbox.points_to_source(values[:, :2], source_width_px, source_height_px)
        ratio = letterbox.ratios(source_width_px, source_height_px)
        cosine, sine = np.cos(values[:, 4]), np.sin(values[:, 4])
        along = np.stack([cosine, sine], axis=1) * ratio
        width = values[:, 2] * np.hypot(along[:, 0], along[:, 1])
        height = values[:, 3] * np.hypot(sine * ratio[0], cosine * ratio[1])
        angle = np.arctan2(along[:, 1], along[:, 0])
        upright = height > width  # then the height is the longer side
        angle = np.mod(angle + np.where(upright, np.pi / 2, 0.0), np.pi)
        longer, shorter = np.maximum(width, height), np.minimum(width, height)
        rotated = np.concatenate([centers, np.stack([longer, shorter, angle], axis=1)], axis=1)
        return Shapes(rotated_boxes=rotated.astype(np.float32))


@dataclass(frozen=True, slots=True)
class Keypoints(CandidateShapes):
    """Keypoints of N candidates, with K keypoints each."""

    points: Floats  # (N, K, 2) x and y, or (N, K, 3) with a score
    names: tuple[str, ...]  # K names; empty if they are not known

    def take(self, rows: Indices) -> Keypoints:
        return Keypoints(self.points[rows], self.names)

    def to_source(self, letterbox: Letterbox, source_width_px: int, source_height_px: int) -> Shapes:
        """Convert the points, and move points outside the frame to its edge. Points without a score get the score 1."""
        found = np.ones((*self.points.shape[:2], 3), np.float32)
        at = letterbox.points_to_source(self.points[..., :2], source_width_px, source_height_px)
        np.clip(at, 0, (source_width_px, source_height_px), out=found[..., :2], casting="same_kind")
        if self.points.shape[2] == 3:
            np.clip(self.points[..., 2], 0, 1, out=found[..., 2])
        return Shapes(keypoints=found, keypoint_names=self.names)


@dataclass(frozen=True, slots=True)
class CroppedMasks(CandidateShapes):
    """One mask per candidate, cropped to the candidate's box."""

    cells: Sequence[NDArray[np.bool_]]  # (h, w) each
    crops: NDArray[np.int64]  # (N, 4) left, top, right, bottom in cells of the prototypes; right and bottom exclusive
    cell_px: tuple[float, float]  # width and height of a cell in model pixels

    def take(self, rows: Indices) -> CroppedMasks:
        return CroppedMasks([self.cells[row] for row in rows.tolist()], self.crops[rows], self.cell_px)

    def to_source(self, letterbox: Letterbox, source_width_px: int, source_height_px: int) -> Shapes:
        corners = self.crops.reshape(-1, 2, 2) * np.array(self.cell_px)
        regions = letterbox.points_to_source(corners, source_width_px, source_height_px).reshape(-1, 4)
        pairs = zip(self.cells, regions.tolist(), strict=True)
        return Shapes(masks=tuple(Mask(cells, (x1, y1, x2, y2)) for cells, (x1, y1, x2, y2) in pairs))


@dataclass(frozen=True, slots=True)
class MaskCoefficients(CandidateShapes):
    """Masks as sums of prototypes, as in YOLACT (Bolya et al., ICCV 2019). Only `to_source` computes the masks.

    A cell belongs to the object if the sum of the prototypes, weighted with the candidate's coefficients, is positive.
    """

    values: Floats  # (N, M) coefficients
    boxes_xyxy: Floats  # (N, 4) model pixels
    prototypes: Floats  # (M, rows, columns)
    canvas_px: tuple[int, int]  # width and height of the model's input

    def take(self, rows: Indices) -> MaskCoefficients:
        return MaskCoefficients(self.values[rows], self.boxes_xyxy[rows], self.prototypes, self.canvas_px)

    def to_source(self, letterbox: Letterbox, source_width_px: int, source_height_px: int) -> Shapes:
        count, rows, columns = self.prototypes.shape
        crops = mask_crops(self.boxes_xyxy, self.canvas_px, (columns, rows))
        cells = []
        for values, (left, top, right, bottom) in zip(self.values, crops.tolist(), strict=True):
            crop = self.prototypes[:, top:bottom, left:right]
            cells.append((values @ crop.reshape(count, -1) > 0).reshape(crop.shape[1:]))
        masks = CroppedMasks(cells, crops, (self.canvas_px[0] / columns, self.canvas_px[1] / rows))
        return masks.to_source(letterbox, source_width_px, source_height_px)


def mask_crops(boxes_xyxy: Floats, canvas_px: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.int64]:
    """Return the cells of the prototypes that each box touches, as left, top, right, and bottom (N, 4).

    Right and bottom are exclusive. The cells are limited to the grid. Each box gets at least one cell.

    Args:
        boxes_xyxy: (N, 4) model pixels.
        canvas_px: width and height of the model's input.
        grid: columns and rows of the prototypes.
    """
    scale = np.array(mask_scale(canvas_px, grid), np.float32)
    low = np.floor(boxes_xyxy[:, :2] * scale).astype(np.int64)
    high = np.ceil(boxes_xyxy[:, 2:] * scale).astype(np.int64)
    size = np.array(grid)
    low = np.clip(low, 0, size - 1)
    return np.concatenate([low, np.clip(high, low + 1, size)], axis=1)


def mask_scale(canvas_px: tuple[int, int], grid: tuple[int, int]) -> tuple[float, float]:
    """Return the number of cells of the prototypes per model pixel, horizontally and vertically."""
    return grid[0] / canvas_px[0], grid[1] / canvas_px[1]
