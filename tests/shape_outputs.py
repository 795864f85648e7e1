"""Outputs of pose, oriented, and segmentation models in the layouts of their exporters, with known objects.

The canvas has 128x96 pixels. The objects lie between x = 40 and x = 88, and between y = 24 and y = 72. Wide and tall
frames both cover this part of the canvas. The first object is a car with score 0.875, and the second object is a person
with score 0.75. A third box covers the car almost exactly, and has score 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 128, 96
CELL_PX = 4  # of the prototypes
NAMES = ("person", "car")
CLASS_IDS = [1, 0]
SCORES = [0.875, 0.75]
BOXES = np.array([[44.0, 28, 84, 68], [60, 30, 76, 46]])
"""Upright boxes of the two objects, in model pixels."""

ROTATED = np.array([[64.0, 48, 32, 10, 0.5], [60, 40, 8, 20, 0.25]])
"""Center, width, height, and angle of the two objects, in model pixels and radians."""

ROTATED_FOUND = np.array([[64.0, 48, 32, 10, 0.5], [60, 40, 20, 8, 0.25 + np.pi / 2]])
"""The same boxes with the longer side first, as they are published."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shaped:
    """Outputs of one exporter, the `head` that reads them, and the expected shapes in model pixels."""

    head: Mapping[str, Any]
    outputs: Mapping[str, NDArray[Any]]
    keypoints: Floats | None = None  # (2, K, 3)
    rotated: Floats | None = None  # (2, 5)
    masks: Sequence[NDArray[np.bool_]] | None = None  # (24, 32) each: the whole canvas


def keypoints(count: int) -> Floats:
    """Return the expected keypoints (2, count, 3) of the two objects."""
    steps = np.arange(count)
    both = [np.stack([44.0 + 2 * steps, 28.0 + 0.5 * steps + 8 * k, 1 - steps / 64], axis=1) for k in (0, 1)]
    return np.stack(both)


def centers(boxes: Floats) -> Floats:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def table(boxes: Floats, extras: Floats, *, kind: str, rows: int = 20) -> Floats:
    """Return the output that the head `kind` reads, for one frame, with one row per box.

    Args:
        boxes: (2, 4) values of the boxes of the two objects.
        extras: (2, E) further values of the two objects.
        kind: kind of the head. For an end-to-end head, the rows are the objects in descending order of scores.
        rows: number of boxes.
    """
    background = np.tile([8.0, 8, 4, 4], (rows, 1))
    classes = np.full((rows, 2), 0.01)
    further = np.full((rows, extras.shape[1]), 0.125)
    places = (0, 1) if kind == "end-to-end" else (7, 3)
    for at, box, extra, class_id, score in zip(places, boxes, extras, CLASS_IDS, SCORES, strict=True):
        background[at], further[at], classes[at, class_id] = box, extra, score
    if kind == "end-to-end":
        labels = np.zeros((rows, 1))
        labels[:2, 0] = CLASS_IDS
        scores = np.zeros((rows, 1))
        scores[:2, 0] = SCORES
        return np.concatenate([background, scores, labels, further], axis=1)
    background[8], further[8], classes[8, CLASS_IDS[0]] = boxes[0] + [1, 0, 0, 0], extras[0], 0.5
    if kind == "yolov5":
        return np.concatenate([background, np.ones((rows, 1)), classes, further], axis=1)
    columns: Floats = np.concatenate([background, classes, further], axis=1).T
    return columns


def pose(kind: str, count: int = 17, values: int = 3, **head: Any) -> Shaped:
    known = keypoints(count)
    if values == 2:
        known[..., 2] = 1
    boxes = BOXES if kind == "end-to-end" else centers(BOXES)
    extras = known[..., :values].reshape(2, -1)
    output = table(boxes, extras, kind=kind).astype(np.float32)
    return Shaped({"kind": kind, "task": "pose", **head}, {"output0": output}, keypoints=known)


def faces(*, maps: bool = False, dtype: type = np.float32, **head: Any) -> Shaped:
    """Return the outputs of YuNet, per stride. Each object has 5 landmarks, and is in the cell of its center."""
    known = keypoints(5)
    known[..., 2] = 1
    boxes = centers(BOXES)
    outputs: dict[str, NDArray[Any]] = {}
    for stride, rows, columns in ((8, 12, 16), (16, 6, 8), (32, 3, 4)):
        parts = {"cls": np.full((rows, columns, 2), 1e-4), "obj": np.ones((rows, columns, 1))}
        parts |= {"bbox": np.zeros((rows, columns, 4)), "kps": np.full((rows, columns, 10), 0.125)}
        for at, score, shift in ((0, SCORES[0], 0), (1, SCORES[1], 0), (0, 0.5, 1)):
            if stride != (32, 8)[at]:
                continue
            box = boxes[at] + [shift, 0, 0, 0]
            cell = np.array([int(box[0] // stride) - shift, int(box[1] // stride)])
            column, row = cell
            parts["cls"][row, column, CLASS_IDS[at]] = score**2
            parts["bbox"][row, column] = [*(box[:2] / stride - cell), *np.log(box[2:] / stride)]
            parts["kps"][row, column] = (known[at, :, :2] / stride - cell).ravel()
        for name, values in parts.items():
            table = values.transpose(2, 0, 1) if maps else values.reshape(rows * columns, -1)
            outputs[f"{name}_{stride}"] = np.ascontiguousarray(table, dtype)
    return Shaped({"kind": "yunet", **head}, outputs, keypoints=known)


def oriented(kind: str, *, turn: float = 0.0) -> Shaped:
    """Return the boxes of `ROTATED`, turned by `turn` radians."""
    boxes, found = ROTATED.copy(), ROTATED_FOUND.copy()
    boxes[:, 4] += turn
    found[:, 4] = (found[:, 4] + turn) % np.pi
    output = table(boxes[:, :4], boxes[:, 4:], kind=kind).astype(np.float32)
    return Shaped({"kind": kind, "task": "obb"}, {"output0": output}, rotated=found)


def segmented(kind: str, count: int = 32, *, prototypes_first: bool = False, dtype: type = np.float32) -> Shaped:
    """Return outputs for a car whose mask is an ellipse, and a person whose mask is two bars with a gap."""
    rows, columns = HEIGHT // CELL_PX, WIDTH // CELL_PX
    y, x = np.mgrid[:rows, :columns] + 0.5
    ellipse = ((x - 16) / 4.5) ** 2 + ((y - 12) / 3) ** 2 < 1
    bars = (y >= 8) & (y < 11) & (np.abs(x - 17) > 0.6)
    prototypes = np.zeros((count, rows, columns))
    prototypes[1], prototypes[2], prototypes[count - 1] = ellipse * 2 - 1.0, bars * 2 - 1.0, 0.25
    coefficients = np.zeros((2, count))
    coefficients[0, [1, count - 1]] = [1, 0.5]
    coefficients[1, [2, count - 1]] = [-1, 0.5]
    prototypes[2] *= -1
    boxes = BOXES if kind == "end-to-end" else centers(BOXES)
    outputs = {"output0": table(boxes, coefficients, kind=kind).astype(np.float32), "output1": prototypes.astype(dtype)}
    if prototypes_first:
        outputs = dict(reversed(outputs.items()))
    within = [cells_of(box) for box in BOXES]
    return Shaped({"kind": kind, "task": "segment"}, outputs, masks=[ellipse & within[0], bars & within[1]])


def cells_of(box: Floats) -> NDArray[np.bool_]:
    """Return a mask of the cells of the canvas that a box touches."""
    y, x = np.mgrid[: HEIGHT // CELL_PX, : WIDTH // CELL_PX] * CELL_PX
    touched: NDArray[np.bool_] = (x + CELL_PX > box[0]) & (x < box[2]) & (y + CELL_PX > box[1]) & (y < box[3])
    return touched


SHAPED: Mapping[str, Shaped] = {
    "pose, yolov8": pose("yolov8"),
    "pose, yolov8, five named keypoints": pose("yolov8", 5, keypoints=["a", "b", "c", "d", "e"]),
    "pose, yolov8, keypoints without scores": pose("yolov8", 4, 2, keypoints=["a", "b", "c", "d"]),
    "pose, yolov8, one keypoint": pose("yolov8", 1),
    "pose, end-to-end": pose("end-to-end"),
    "pose, end-to-end, named keypoints": pose("end-to-end", 6, keypoints=["a", "b", "c", "d", "e", "f"]),
    "faces, yunet": faces(),
    "faces, yunet, maps": faces(maps=True),
    "faces, yunet, named keypoints": faces(task="pose", keypoints=["a", "b", "c", "d", "e"]),
    "obb, yolov8": oriented("yolov8"),
    "obb, yolov8, turned": oriented("yolov8", turn=1.75),
    "obb, yolov8, upright": oriented("yolov8", turn=-0.25),
    "obb, yolov8, negative angles": oriented("yolov8", turn=-0.7),
    "obb, end-to-end": oriented("end-to-end"),
    "obb, end-to-end, turned": oriented("end-to-end", turn=2.0),
    "segment, yolov8": segmented("yolov8"),
    "segment, yolov8, eight coefficients": segmented("yolov8", 8),
    "segment, yolov8, prototypes first": segmented("yolov8", prototypes_first=True),
    "segment, yolov8, 16-bit prototypes": segmented("yolov8", dtype=np.float16),
    "segment, yolov5": segmented("yolov5"),
    "segment, end-to-end": segmented("end-to-end"),
}
"""The outputs of one frame, without the batch axis, by the name of the layout."""

FRAMES = {"wide": (256, 96), "tall": (96, 192), "small": (64, 48)}
"""Width and height of frames. The scale of each is exact in binary."""


def to_source(points: Floats, size: tuple[int, int]) -> Floats:
    """Convert points (..., 2) from the canvas to a frame of the size `size`, which is in the center of the canvas."""
    scale = min(WIDTH / size[0], HEIGHT / size[1])
    pad = (np.array([WIDTH, HEIGHT]) - np.array(size) * scale) / 2
    converted: Floats = (points - pad) / scale
    return converted
