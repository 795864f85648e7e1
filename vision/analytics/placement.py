"""`Placement`: the lines, zones and ground plane of a camera in the pixels of one frame size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vision.analytics.geometry import FloatArray, GroundPlane, LineSet, places_of_anchors
from vision.config.analytics import CameraAnalytics, pixels_per_unit

Corners = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Placement:
    """The shapes of one camera on a frame of one size."""

    width_px: int
    height_px: int
    lines: list[Corners]
    zones: list[Corners]
    ground: GroundPlane | None
    outside: tuple[str, ...]  # names of shapes with no part in the frame, as if configured for another resolution

    @staticmethod
    def on(config: CameraAnalytics, width_px: int, height_px: int) -> Placement:
        """Place the configured shapes on a frame of this size."""
        scale_x, scale_y = pixels_per_unit(config.units, width_px, height_px)

        def to_pixels(points: Sequence[tuple[float, float]]) -> Corners:
            return [(x * scale_x, y * scale_y) for x, y in points]

        lines = [to_pixels(line.points) for line in config.lines]
        zones = [to_pixels(zone.polygon) for zone in config.zones]
        names = [*(line.name for line in config.lines), *(zone.name for zone in config.zones)]
        outside = (
            name
            for name, points in zip(names, lines + zones, strict=True)
            if min(x for x, _ in points) >= width_px or min(y for _, y in points) >= height_px
        )
        ground = GroundPlane(to_pixels(config.ground.points), config.ground.metres) if config.ground else None
        return Placement(width_px, height_px, lines, zones, ground, tuple(outside))


class BoxTransform:
    """One matrix product that gives everything that lines and zones need of the boxes.

    The columns are x and y of each of A anchors, width and height, then the distances from each of L lines twice.
    """

    __slots__ = ("_matrix", "_offset")

    def __init__(self, anchors: Sequence[str], lines: LineSet) -> None:
        places = places_of_anchors(anchors)
        distances, offset = lines.of_places(places)
        size = ((-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0))
        self._matrix: FloatArray = np.concatenate([places, size, distances, distances], axis=1)
        self._offset: FloatArray = np.concatenate([np.zeros(places.shape[1] + 2), offset, offset])

    def apply(self, boxes_xyxy: FloatArray) -> FloatArray:
        """Return (M, 2 A + 2 + 2 L) for M boxes."""
        columns: FloatArray = boxes_xyxy @ self._matrix
        columns += self._offset
        return columns
