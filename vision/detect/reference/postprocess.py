"""NMS of candidates, and the way back to the source frame: inverse letterbox and clipping."""

from __future__ import annotations

import numpy as np

from vision.config import NmsSpec
from vision.detect.reference.heads import Candidates
from vision.detect.reference.letterbox import Letterbox
from vision.detect.reference.nms import kept_in_order
from vision.types import Detections


def to_detections(
    candidates: Candidates,
    limits: NmsSpec | None,
    letterbox: Letterbox,
    source_width_px: int,
    source_height_px: int,
) -> Detections:
    """Return the detections of one frame in new arrays. Drops boxes that clipping leaves without area.

    Args:
        candidates: output of a head.
        limits: None for heads that need no NMS: their candidates are the objects.
        letterbox: geometry of the frame on the canvas.
        source_width_px: width of the frame.
        source_height_px: height of the frame.
    """
    boxes, scores, class_ids, truncated_candidates = (
        candidates.boxes_xyxy,
        candidates.scores,
        candidates.class_ids,
        candidates.truncated_candidates,
    )
    if limits is not None:
        kept = np.flatnonzero(kept_in_order(boxes, class_ids if limits.class_aware else None, limits.iou_threshold))
        truncated_candidates += max(0, len(kept) - limits.max_objects)
        kept = kept[: limits.max_objects]
        boxes, scores, class_ids = boxes[kept], scores[kept], class_ids[kept]
    boxes = letterbox.to_source(boxes, source_width_px, source_height_px)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not solid.all():
        boxes, scores, class_ids = boxes[solid], scores[solid], class_ids[solid]
    return Detections(boxes, scores, class_ids, truncated_candidates)
