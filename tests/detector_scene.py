"""Outputs of every family of detectors for the same objects, in the layout of the family's exporter.

If the center of a cell lies in an object, the box of the cell is the box of the object with small errors. Other cells
have small boxes with low scores. `Scene.forms` encodes these boxes for each head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.postprocess import Overlaps, kept_in_order

Floats = NDArray[np.float32]
Outputs = Mapping[str, Floats]

OBJECTS = (
    (20, 30, 80, 190, 0), (100, 40, 150, 200, 0), (180, 150, 300, 230, 2), (250, 20, 290, 60, 1), (30, 240, 60, 300, 3),
    (200, 250, 216, 270, 4),
)  # fmt: skip
"""Objects on a canvas of 320x320: x1, y1, x2, y2, and class."""


@dataclass(frozen=True)
class Scene:
    """Objects on a canvas, as a network whose cells have the given strides detects them."""

    objects: tuple[tuple[float, ...], ...] = OBJECTS
    width: int = 320
    height: int = 320
    classes: int = 5
    strides: tuple[int, ...] = (8, 16, 32)
    seed: int = 1
    score: float = 0.9
    names: tuple[str, ...] = field(default=("a", "b", "c", "d", "e"))

    @cached_property
    def cells(self) -> Floats:
        """Column, row, and stride of every cell, as an array (N, 3)."""
        found = []
        for stride in self.strides:
            x, y = np.meshgrid(np.arange(-(-self.width // stride)), np.arange(-(-self.height // stride)))
            found.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], axis=1))
        return np.concatenate(found).astype(np.float32)

    @cached_property
    def boxes(self) -> Floats:
        """Box of every cell, as corners xyxy (N, 4)."""
        return self._seen[0]

    @cached_property
    def scores(self) -> Floats:
        """Class scores of every cell, as an array (N, classes)."""
        return self._seen[1]

    @cached_property
    def _seen(self) -> tuple[Floats, Floats]:
        random = np.random.default_rng(self.seed)
        cells = self.cells.astype(np.float64)
        stride = cells[:, 2:]
        centers = (cells[:, :2] + 0.5) * stride
        half = stride * random.uniform(0.3, 2.0, (len(cells), 2))
        boxes = np.concatenate([centers - half, centers + half], axis=1)
        boxes += random.normal(0, 0.1, boxes.shape) * stride
        scores = random.uniform(1e-5, 5e-3, (len(cells), self.classes))
        for x1, y1, x2, y2, class_id in self.objects:
            box = np.array([x1, y1, x2, y2])
            inside = ((centers > box[:2]) & (centers < box[2:])).all(axis=1)
            inside &= (np.abs(box - np.tile(centers, 2)) < 6.5 * stride).all(axis=1)
            boxes[inside] = box + random.normal(0, 0.05, (int(inside.sum()), 4)) * stride[inside]
            near = 1 - np.abs(centers - (box[:2] + box[2:]) / 2).max(axis=1) / max(x2 - x1, y2 - y1)
            scores[inside, int(class_id)] = self.score * near[inside]
        return boxes.astype(np.float32), scores.astype(np.float32)

    # ---------------------------------------------------------------------------------------- encodings

    @property
    def size(self) -> Floats:
        return np.array([self.width, self.height] * 2, np.float32)

    @property
    def centers(self) -> Floats:
        """Box of every cell, as center and size (N, 4)."""
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        return np.concatenate([(low + high) / 2, high - low], axis=1)

    @property
    def grid(self) -> Floats:
        """Boxes relative to their cells (N, 4), as in YOLOX without decoding."""
        stride = self.cells[:, 2:]
        offsets = self.centers[:, :2] / stride - self.cells[:, :2]
        return np.concatenate([offsets, np.log(self.centers[:, 2:] / stride)], axis=1)

    def distances(self, bins: int, center: tuple[float, float]) -> Floats:
        """Return logits (N, 4 * bins) of the distributions of the distances from each cell to the sides of its box."""
        stride = self.cells[:, 2:]
        middle = (self.cells[:, :2] + center[0]) * stride + center[1]
        sides = np.concatenate([middle - self.boxes[:, :2], self.boxes[:, 2:] - middle], axis=1) / stride
        sides = np.clip(sides, 0, bins - 1.001)
        low = np.floor(sides)
        steps = np.arange(bins)
        weight = np.clip(1 - np.abs(steps - sides[..., None]), 1e-6, None)
        assert (low + 1 < bins).all()
        logits: Floats = np.log(weight).reshape(len(sides), -1).astype(np.float32)
        return logits

    @property
    def parted(self) -> tuple[Floats, Floats]:
        """Objectness (N, 1) and class scores (N, classes). Their products are the final scores."""
        objectness = np.sqrt(self.scores.max(axis=1, keepdims=True))
        return objectness, self.scores / objectness

    @cached_property
    def found(self) -> NDArray[np.intp]:
        """Indices of the boxes that remain after non-maximum suppression, in descending order of scores."""
        best = self.scores.max(axis=1)
        order = np.argsort(-best, kind="stable")[:1000]
        ids = self.scores[order].argmax(axis=1).astype(np.int32)
        return np.asarray(order[kept_in_order(self.boxes[order], ids, Overlaps(0.6, 0.9))][:300])

    @property
    def rows(self) -> Floats:
        """Return every box as x1, y1, x2, y2, score, and class (N, 6)."""
        best = self.scores.max(axis=1)[:, None]
        return np.concatenate([self.boxes, best, self.scores.argmax(axis=1)[:, None]], axis=1).astype(np.float32)

    def per_stride(self, table: Floats) -> list[Floats]:
        """Split the rows of `table` by stride."""
        return [table[self.cells[:, 2] == stride] for stride in self.strides]

    def padded(self, rows: Floats, count: int = 300) -> Floats:
        """Return `rows` followed by rows of zeros, so that the result has `count` rows."""
        return np.concatenate([rows, np.zeros((count - len(rows), rows.shape[1]), np.float32)])


def logits(scores: Floats) -> Floats:
    """Return the logits of scores, that is, the values whose sigmoids are the scores."""
    inner = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inner / (1 - inner)), np.float32)


def _joined(*tables: Floats) -> Floats:
    return np.concatenate(tables, axis=1).astype(np.float32)


def _per_stride(scene: Scene, names: Mapping[str, Floats]) -> dict[str, Floats]:
    """Split each table into one output per stride."""
    return {
        f"{name}_{stride}": part
        for name, table in names.items()
        for stride, part in zip(scene.strides, scene.per_stride(table), strict=True)
    }


def _yunet(scene: Scene) -> dict[str, Floats]:
    best = scene.scores.max(axis=1, keepdims=True)
    offsets = np.array([-0.2, -0.2, 0.2, -0.2, 0, 0, -0.2, 0.2, 0.2, 0.2], np.float32)  # in parts of the box
    landmarks = np.tile(scene.grid[:, :2], 5) + np.tile(np.exp(scene.grid[:, 2:]), 5) * offsets
    kps = landmarks.astype(np.float32)
    return _per_stride(scene, {"cls": scene.scores**2 / best, "obj": best, "bbox": scene.grid, "kps": kps})


Encode = Callable[[Scene], dict[str, Floats]]

FORMS: Mapping[str, tuple[dict[str, object], Encode]] = {
    "YOLOv8": ({"kind": "yolov8"}, lambda s: {"output0": _joined(s.centers, s.scores).T}),
    "YOLOv8 in fractions": (
        {"kind": "yolov8", "box_scale": "fraction"},
        lambda s: {"output0": _joined(s.centers / s.size, s.scores).T},
    ),
    "YOLOv8 with logits": (
        {"kind": "yolov8", "activation": "sigmoid"},
        lambda s: {"output0": _joined(s.centers, logits(s.scores)).T},
    ),
    "YOLOv5": ({"kind": "yolov5"}, lambda s: {"output": _joined(s.centers, *s.parted)}),
    "YOLOv5 in fractions": (
        {"kind": "yolov5", "box_scale": "fraction"},
        lambda s: {"output": _joined(s.centers / s.size, *s.parted)},
    ),
    "YOLOX without decoding": ({"kind": "yolox"}, lambda s: {"output": _joined(s.grid, *s.parted)}),
    "YuNet": ({"kind": "yunet"}, _yunet),
    "YOLO-NAS": ({"kind": "corners"}, lambda s: {"graph2_925_predictions": s.boxes, "graph2_903_scores": s.scores}),
    "YOLO-NAS with plain names": ({"kind": "corners"}, lambda s: {"913": s.boxes, "904": s.scores}),
    "corners in fractions": (
        {"kind": "corners", "box_scale": "fraction"},
        lambda s: {"boxes": s.boxes / s.size, "scores": s.scores},
    ),
    "PP-YOLOE": ({"kind": "corners"}, lambda s: {"boxes": s.boxes, "scores": s.scores.T}),
    "DeepStream-Yolo": ({"kind": "end-to-end"}, lambda s: {"output": s.rows}),
    "YOLOv10": ({"kind": "end-to-end"}, lambda s: {"output0": s.padded(s.rows[s.found])}),
    "NMS in fractions": (
        {"kind": "end-to-end", "box_scale": "fraction"},
        lambda s: {"output0": s.padded(_joined(s.rows[s.found, :4] / s.size, s.rows[s.found, 4:]))},
    ),
    "RT-DETR": (
        {"kind": "rt-detr", "box_scale": "fraction", "activation": "sigmoid"},
        lambda s: {"logits": logits(s.scores[s.found]), "pred_boxes": (s.centers / s.size)[s.found]},
    ),
    "RT-DETR by Ultralytics": (
        {"kind": "rt-detr", "box_scale": "fraction"},
        lambda s: {"output0": _joined(s.centers / s.size, s.scores)[s.found]},
    ),
    "NanoDet": (
        {"kind": "nanodet"},
        lambda s: {"output": _joined(s.scores, s.distances(11, (0.5, -0.5)))},
    ),
    "NanoDet per stride": (
        {"kind": "nanodet", "bins": 8},
        lambda s: _per_stride(s, {"cls_pred_stride": s.scores, "dis_pred_stride": s.distances(8, (0.5, -0.5))}),
    ),
}
"""Head in model.yaml, and the outputs for a scene, by family."""
