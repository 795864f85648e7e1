"""Pinhole camera above flat ground (`CameraView`), which computes the boxes of solid objects in its frames.

World coordinates are in meters: x to the right, y away from the camera, z up. The camera is at (0, 0, `height_m`) and
looks along y, `tilt_deg` below the horizon. Frame coordinates are in pixels: x to the right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]

_NEAR_M: Final = 0.2  # parts of objects that are nearer, or behind the camera, are cut off
_OUTLINE: Final = 8  # number of corners of the base of a round object


@dataclass(frozen=True, slots=True)
class CameraView:
    """Pinhole camera with radial distortion.

    `distortion` is the first term of Brown's model ("Decentering Distortion of Lenses", 1966). A negative value means
    barrel distortion.
    """

    width_px: int = 1280
    height_px: int = 720
    height_m: float = 4.0
    tilt_deg: float = 20.0
    field_of_view_deg: float = 70.0  # horizontal, without distortion
    distortion: float = 0.0

    def project(self, points_m: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the pixels (..., 2) and the depths (...) in meters of world points (..., 3) in front of the camera."""
        right, down, depth = self._rotate(points_m)
        return self._to_pixels(right / depth, down / depth), depth

    def to_ground(self, x_px: float, y_px: float) -> tuple[float, float]:
        """Return the ground point (x, y) in meters that a pixel shows. Ignore the distortion of the lens.

        Raises:
            ValueError: the pixel is at or above the horizon.
        """
        focal_px = self._focal_px
        right, down = (x_px - self.width_px / 2) / focal_px, (y_px - self.height_px / 2) / focal_px
        tilt = math.radians(self.tilt_deg)
        fall = down * math.cos(tilt) + math.sin(tilt)
        if fall <= 0:
            raise ValueError(f"the pixel ({x_px}, {y_px}) is at or above the horizon")
        depth = self.height_m / fall
        return right * depth, depth * (math.cos(tilt) - down * math.sin(tilt))

    def boxes(
        self, places_m: FloatArray, headings: FloatArray, size_m: tuple[float, float, float], *, is_round: bool
    ) -> tuple[FloatArray, FloatArray]:
        """Compute the boxes of an upright object at several times.

        Args:
            places_m: center of the base of the object, (T, 2).
            headings: direction of the length in radians, counterclockwise from x, (T,).
            size_m: length, width, and height of the object.
            is_round: True if the object is an elliptic cylinder, False if it is a cuboid.

        Returns:
            Boxes (T, 4) xyxy in pixels, not clipped to the frame, and distances (T,) of the base from the point below
            the camera, in meters. Boxes are NaN where the whole object is behind the near plane of the camera.
        """
        base = _base(size_m, is_round)  # (K, 2)
        cos, sin = np.cos(headings)[:, None], np.sin(headings)[:, None]
        x = places_m[:, :1] + cos * base[:, 0] - sin * base[:, 1]
        y = places_m[:, 1:] + sin * base[:, 0] + cos * base[:, 1]
        bottom = np.stack([x, y, np.zeros_like(x)], axis=2)
        top = np.stack([x, y, np.full_like(x, size_m[2])], axis=2)
        edges = np.stack(
            [
                np.concatenate([bottom, top, bottom], axis=1),
                np.concatenate([np.roll(bottom, -1, axis=1), np.roll(top, -1, axis=1), top], axis=1),
            ],
            axis=2,
        )  # (T, 3K, 2, 3)
        return self._extents(edges), np.hypot(places_m[:, 0], places_m[:, 1])

    @property
    def horizon_px(self) -> float:
        """Y coordinate of the horizon in pixels, computed without distortion. The horizon can be outside the frame."""
        return self.height_px / 2 - self._focal_px * math.tan(math.radians(self.tilt_deg))

    @property
    def _focal_px(self) -> float:
        return self.width_px / 2 / math.tan(math.radians(self.field_of_view_deg) / 2)

    def _rotate(self, points_m: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the coordinates of points (..., 3) relative to the camera, in meters: right, down, and forward."""
        x, y, z = np.moveaxis(np.asarray(points_m, np.float64), -1, 0)
        z = z - self.height_m
        cos, sin = math.cos(math.radians(self.tilt_deg)), math.sin(math.radians(self.tilt_deg))
        return x, -z * cos - y * sin, y * cos - z * sin

    def _to_pixels(self, right: FloatArray, down: FloatArray) -> FloatArray:
        scale: FloatArray | float = 1.0
        if self.distortion:
            radius2 = right * right + down * down
            if self.distortion < 0:  # beyond this radius, barrel distortion would mirror the scene
                radius2 = np.minimum(radius2, -1.0 / (3.0 * self.distortion))
            scale = 1.0 + self.distortion * radius2
        focal_px = self._focal_px
        return np.stack(
            [self.width_px / 2 + focal_px * right * scale, self.height_px / 2 + focal_px * down * scale], axis=-1
        )

    def _extents(self, edges: FloatArray) -> FloatArray:
        """Clip E edges at the near plane. Return the boxes (T, 4) around the clipped edges.

        `edges` (T, E, 2, 3) contains the two end points of each edge in world coordinates.
        """
        right, down, depth = self._rotate(edges)
        start, end = depth[..., 0], depth[..., 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.clip((_NEAR_M - start) / (end - start), 0.0, 1.0)
        places = np.stack([right, down, depth], axis=-1)
        cut = places[..., 0, :] + share[..., None] * (places[..., 1, :] - places[..., 0, :])
        places = np.where((depth < _NEAR_M)[..., None], cut[..., None, :], places)
        seen = ((start >= _NEAR_M) | (end >= _NEAR_M))[..., None]
        pixels = self._to_pixels(*(places[..., axis] / np.maximum(places[..., 2], _NEAR_M) for axis in (0, 1)))
        low = np.where(seen[..., None], pixels, np.inf).min(axis=(1, 2))
        high = np.where(seen[..., None], pixels, -np.inf).max(axis=(1, 2))
        boxes: FloatArray = np.concatenate([low, high], axis=1)
        boxes[~np.isfinite(boxes).all(axis=1)] = math.nan
        return boxes


def _base(size_m: tuple[float, float, float], is_round: bool) -> FloatArray:
    """Return the corners (K, 2) of an object's base in meters, relative to its center."""
    length, width, _ = size_m
    if not is_round:
        return np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (length / 2, width / 2)
    angles = np.arange(_OUTLINE) * (2 * math.pi / _OUTLINE)
    return np.stack([np.cos(angles) * length / 2, np.sin(angles) * width / 2], axis=1)
