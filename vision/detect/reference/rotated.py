"""Overlap of rotated boxes for non-maximum suppression.

The overlap is the probabilistic IoU (ProbIoU) of Llerena et al., "Gaussian Bounding Boxes and Probabilistic
Intersection-over-Union for Object Detection", arXiv:2106.06072. Ultralytics uses ProbIoU to suppress oriented boxes
(`batch_probiou`). ProbIoU compares normal distributions that have the mean and the covariance of the boxes::

    ProbIoU = 1 - sqrt(1 - exp(-distance))

The distance is the Bhattacharyya distance. ProbIoU exceeds a threshold if the distance is below `distance_limit`, so
only the distance of each pair is computed. No term of the sums below is negative. Because no digits cancel, float32 is
exact enough, even for long and narrow boxes. With ``p = width² / 12``, ``q = height² / 12``, ``d`` the angle between
the boxes, and ``u, v`` the offset of the centers along and across a box::

    S        = p1 q1 + p2 q2 + p1 (q2 cos²d + p2 sin²d) + q1 (p2 cos²d + q2 sin²d)
    M        = q1 u1² + p1 v1² + q2 u2² + p2 v2²
    distance = M / (4 S) + ln(S / (4 sqrt(p1 q1 p2 q2))) / 2

A box without area neither suppresses a box nor is suppressed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.layout import Floats, Indices

_EPSILON: Final = 1e-7
"""Constant of `batch_probiou`. It ensures that boxes that are far apart do not overlap at a threshold of 0."""


def distance_limit(iou: float) -> float:
    """Return the distance below which ProbIoU exceeds `iou`."""
    return -math.log(1 + _EPSILON - (1 - iou) ** 2)


@dataclass(frozen=True, slots=True)
class Gaussians:
    """Normal distributions of N rotated boxes, with one row per quantity."""

    at: Floats  # (2, N) center x and y
    spread: Floats  # (3, N) p, q, and sqrt(p q)
    turn: Floats  # (2, N) cosine and sine of the angle

    @staticmethod
    def of(rotated: Floats) -> Gaussians:
        """Return the distributions of boxes (N, 5) with center x, center y, width, height, and angle."""
        x, y, width, height, angle = np.ascontiguousarray(rotated.T, np.float32)
        twelfth = np.float32(1 / 12)
        spread = np.stack([width * width, height * height, np.maximum(width, 0) * np.maximum(height, 0)]) * twelfth
        return Gaussians(np.stack([x, y]), spread, np.stack([np.cos(angle), np.sin(angle)]))

    def take(self, index: Indices) -> Gaussians:
        return Gaussians(self.at[:, index], self.spread[:, index], self.turn[:, index])

    def distances(self, others: Gaussians) -> NDArray[np.float32]:
        """Return the distances (K, M) between these boxes and `others`. They are not finite for boxes without area."""
        (p1, q1, root1), (c1, s1) = self.spread[:, :, None], self.turn[:, :, None]
        (p2, q2, root2), (c2, s2) = others.spread, others.turn
        dx, dy = others.at[:, None] - self.at[:, :, None]
        cosine, sine = c1 * c2 + s1 * s2, s1 * c2 - c1 * s2
        cosine *= cosine
        sine *= sine
        total = root1 * root1 + root2 * root2 + p1 * (q2 * cosine + p2 * sine) + q1 * (p2 * cosine + q2 * sine)
        u1, v1, u2, v2 = dx * c1 + dy * s1, dy * c1 - dx * s1, dx * c2 + dy * s2, dy * c2 - dx * s2
        apart = q1 * u1 * u1 + p1 * v1 * v1 + q2 * u2 * u2 + p2 * v2 * v2
        with np.errstate(all="ignore"):
            return np.asarray(apart / (4 * total) + np.float32(0.5) * np.log(total / (4 * root1 * root2)), np.float32)
