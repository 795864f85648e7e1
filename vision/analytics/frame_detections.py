"""`FrameDetections` contains the detections of one or several frames in the form that the tracker needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy import count_nonzero  # several times faster than any() and all() on small arrays

from vision.analytics.class_groups import ClassGroups, ClassIds, single_boxes
from vision.analytics.geometry import BoolArray, FloatArray, FrameEdges, IndexArray
from vision.config import TrackConfig
from vision.types import Detections

SCORE_GRAIN: Final = 1e-6  # tolerance of thresholds, because scores are rounded to float32

# Lengths are in object sizes (the longer side of the box), so that the distance to the camera does not matter.
_POSITION_NOISE: Final = np.array(0.05)  # standard deviation of the center of a strong detection; 1/20 as in ByteTrack
_UNSURE_NOISE: Final = np.array(0.2)  # added per unit of score below `_SURE_SCORE`
_SURE_SCORE: Final = np.array(0.8)  # NumPy computes faster with an array than with a Python number
_ZERO: Final = np.array(0.0)

_CENTERS: Final = np.array([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [-1, 0, 1, 0], [0, -1, 0, 1]])
"""Matrix that converts corners x1, y1, x2, y2 to center x, center y, width, and height."""


class FrameDetections:
    """N usable detections in the frames of one or several cameras, in the order of the cameras."""

    __slots__ = (
        "_usable",
        "at",
        "boxes",
        "camera",
        "classes",
        "cut",
        "detections",
        "groups",
        "noise",
        "scores",
        "strong",
    )

    def __init__(
        self,
        detections: Sequence[Detections],
        config: TrackConfig,
        class_groups: ClassGroups | None,
        edges: FrameEdges | None,
    ) -> None:
        """Convert the detections.

        Args:
            detections: detections of one frame of each camera.
            config: contains the minimum scores of usable detections and of strong detections.
            class_groups: groups of classes that the detector confuses, or None if there are no groups.
            edges: edges of the cameras' frames, or None if the frame sizes are unknown.
        """
        camera: IndexArray | None = None
        classes: ClassIds
        if len(detections) == 1:
            boxes = detections[0].boxes_xyxy.astype(np.float64).reshape(-1, 4)
            scores, classes = detections[0].scores.astype(np.float64), detections[0].class_ids
        else:
            boxes = np.concatenate([found.boxes_xyxy for found in detections]).astype(np.float64).reshape(-1, 4)
            scores = np.concatenate([found.scores for found in detections]).astype(np.float64)
            classes = np.concatenate([found.class_ids for found in detections])
            camera = np.arange(len(detections)).repeat([len(found.scores) for found in detections])
        finite = np.isfinite(boxes)
        if count_nonzero(finite) < finite.size:
            boxes[~finite.all(axis=1)] = 0.0  # a box without area is not usable
        at = _CENTERS.dot(boxes.T)
        size = np.maximum(at[2], at[3])
        usable = np.minimum(at[2], at[3]) > _ZERO
        usable &= scores >= config.low_score - SCORE_GRAIN
        groups = classes
        if class_groups is not None:
            groups = class_groups.of(classes)
            if count_nonzero(groups != classes):
                cameras = None if camera is None else camera[usable]
                single = single_boxes(boxes[usable], scores[usable], classes[usable], groups[usable], cameras)
                usable[usable] = single
        self._usable: BoolArray | None = None
        if count_nonzero(usable) < len(usable):
            boxes, scores, classes, groups = boxes[usable], scores[usable], classes[usable], groups[usable]
            at, size = at[:, usable], size[usable]
            camera = None if camera is None else camera[usable]
            self._usable = usable
        self.detections = detections
        self.camera = camera  # (N,) index of the camera of each detection; None if there is only one camera
        self.boxes: FloatArray = boxes  # (N, 4) corners
        self.scores: FloatArray = scores
        self.strong: BoolArray = scores >= config.high_score - SCORE_GRAIN
        self.classes: ClassIds = classes
        self.groups: ClassIds = groups
        self.cut: BoolArray  # (N,) True if the edge of the frame cuts off the box
        self.cut = np.zeros(len(boxes), np.bool_) if edges is None else edges.are_near(boxes, camera)
        self.at: FloatArray = at  # (4, N) center x, center y, width, height
        self.noise = _center_variances(scores, size)  # (N,)

    def rows_of(self, camera: int, rows: IndexArray) -> IndexArray:
        """Convert indices `rows` (M,) of usable detections of one camera to indices (M,) in `detections[camera]`."""
        all_rows = rows if self._usable is None else self._usable.nonzero()[0][rows]
        return all_rows - sum(len(found.scores) for found in self.detections[:camera])


def _center_variances(scores: FloatArray, size: FloatArray) -> FloatArray:
    """Return the variances (N,) of the centers of boxes with these scores (N,) and longer sides (N,)."""
    noise: FloatArray = _SURE_SCORE - scores
    np.maximum(noise, _ZERO, out=noise)
    noise *= _UNSURE_NOISE
    noise += _POSITION_NOISE
    noise *= size
    noise *= noise
    return noise
