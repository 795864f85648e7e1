"""All heads by their kind, and `make_head`, which creates the head of a model."""

from __future__ import annotations

from collections.abc import Sequence

from vision.config import ModelSpec
from vision.detect.reference.cell_heads import NanoDet, NanoDetPlus, PicoDet, YoloX, YuNet
from vision.detect.reference.extras import check_options
from vision.detect.reference.head import HEADS, Head
from vision.detect.reference.row_heads import (
    Corners,
    EndToEnd,
    Paddle,
    RtDetr,
    TensorFlow,
    YoloNasFlat,
    YoloV5,
    YoloV7,
    YoloV8,
)

__all__ = ["HEADS", "Head", "make_head"]

HEADS.update(
    {
        "nanodet": NanoDet,
        "nanodet-plus": NanoDetPlus,
        "picodet": PicoDet,
        "yolov5": YoloV5,
        "yolox": YoloX,
        "yolov8": YoloV8,
        "yunet": YuNet,
        "corners": Corners,
        "end-to-end": EndToEnd,
        "rt-detr": RtDetr,
        "paddle": Paddle,
        "tensorflow": TensorFlow,
        "yolov7": YoloV7,
        "yolo-nas-flat": YoloNasFlat,
    }
)


def make_head(spec: ModelSpec, class_count: int, score: float, classes: Sequence[int] | None = None) -> Head:
    """Create the head that `spec` describes. For the other arguments, see `Head`.

    Raises:
        ModelError: the kind of the head does not support the task or the activation, or `keypoints` is set but the task
            is not `pose`.
    """
    check_options(spec)
    return HEADS[spec.head.kind](spec, class_count, score, classes)
