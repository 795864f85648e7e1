"""Which keypoints are drawn, and which of them are connected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

COCO_LIMBS: Final[tuple[tuple[int, int], ...]] = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""Pairs of keypoints that the skeleton of COCO connects, as 0-based indices of the 17 keypoints."""

_SURE: Final = 0.3  # score below which a keypoint is not drawn
_COCO_KEYPOINTS: Final = 17


def drawn_keypoints(scores: Sequence[float]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the indices of the keypoints to draw, and the pairs of them to connect, from the scores of all keypoints.

    Keypoints with low scores are not drawn. Only the 17 keypoints of COCO are connected.
    """
    sure = [index for index, score in enumerate(scores) if score >= _SURE]
    limbs = COCO_LIMBS if len(scores) == _COCO_KEYPOINTS else ()
    return sure, [(first, second) for first, second in limbs if first in sure and second in sure]
