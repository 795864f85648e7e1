"""Outputs of detectors, in the layouts of their public exporters, with objects at known places.

Every layout shows the same scene on a canvas of 128x96 pixels: a car at (16, 24, 80, 72) that a second box covers
almost exactly, and a person at (90, 8, 114, 80). If the layout has class scores, the second box has the class truck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 128, 96
NAMES = ("person", "car", "truck")
PERSON, CAR, TRUCK = range(3)

Outputs = Mapping[str, NDArray[Any]]

# corners, score of each class
ROWS = (
    ((16.0, 24.0, 80.0, 72.0), (0.02, 0.75, 0.5)),
    ((17.0, 24.0, 81.0, 73.0), (0.02, 0.5, 0.625)),
    ((90.0, 8.0, 114.0, 80.0), (0.875, 0.1, 0.02)),
)
FOUND = (((90.0, 8.0, 114.0, 80.0), PERSON, 0.875), ((16.0, 24.0, 80.0, 72.0), CAR, 0.75))
"""Boxes, classes, and scores after NMS, best first."""


@dataclass(frozen=True)
class Export:
    """Outputs of one exporter, and the `head` that reads them."""

    head: Mapping[str, Any]
    outputs: Outputs
    names: Sequence[str] = NAMES
    tolerance_px: float = 0.02
    unnamed: int = 0
    found: Sequence[tuple[tuple[float, ...], int, float]] = field(default=FOUND)


def logit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(values / (1 - values))


def corners(count: int) -> NDArray[np.float64]:
    """Return `count` boxes. The objects are at rows 3, 4, and 7."""
    boxes = np.tile([40.0, 40.0, 44.0, 44.0], (count, 1))
    for at, (box, _) in zip((3, 4, 7), ROWS, strict=True):
        boxes[at] = box
    return boxes


def scores(count: int, classes: int = 3, first: int = 0) -> NDArray[np.float64]:
    """Return class scores (count, columns) for the boxes of `corners`. The class `person` is in column `first`."""
    found = np.full((count, classes), 0.01)
    for at, (_, values) in zip((3, 4, 7), ROWS, strict=True):
        found[at, first : first + 3] = values
    return found


def centers(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def labels(count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the score and the class of each box of `corners`. Padding has the score 0."""
    values = scores(count)
    values[values <= 0.01] = 0
    return values.max(axis=1), values.argmax(axis=1)


def fraction(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return boxes / [WIDTH, HEIGHT, WIDTH, HEIGHT]


# ------------------------------------------------------------------------------------------------ heads with cells


def levels(strides: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the stride, the number of rows, and the number of columns of each level, as the networks pad them."""
    return [(stride, -(-HEIGHT // stride), -(-WIDTH // stride)) for stride in strides]


def cells(strides: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the stride, the column, and the row of each cell, in the order of the exports."""
    return [(s, x, y) for s, rows, columns in levels(strides) for y in range(rows) for x in range(columns)]


def assigned(strides: Sequence[int]) -> dict[int, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return the box and the class scores of each object, by the index of the cell that is assigned to the object.

    This cell contains the center of the object, and belongs to the level that fits the size of the object.
    """
    places: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {}
    table = {cell: index for index, cell in enumerate(cells(strides))}
    for (box, values), stride in zip(ROWS, (strides[1], strides[2], strides[0]), strict=True):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        places[table[stride, int(x // stride), int(y // stride)]] = (box, values)
    return places


def bins_of(distance: float, bins: int) -> NDArray[np.float64]:
    """Return logits of a distribution whose expectation is `distance`."""
    below = int(distance)
    weights = np.full(bins, 1e-9)
    weights[below] = 1 - (distance - below)
    if distance > below:
        weights[below + 1] = distance - below
    logits: NDArray[np.float64] = np.log(weights)
    return logits


def distances(
    strides: Sequence[int], bins: int, center: Callable[[int, int], float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return class scores and distributions of distances.

    `center` computes the center of a cell, in pixels, from the stride and from the column or row.
    """
    all_cells = cells(strides)
    classes, sides = np.full((len(all_cells), 3), 0.01), np.zeros((len(all_cells), 4 * bins))
    for index, (box, values) in assigned(strides).items():
        stride, column, row = all_cells[index]
        x, y = center(column, stride), center(row, stride)
        lengths = ((x - box[0]) / stride, (y - box[1]) / stride, (box[2] - x) / stride, (box[3] - y) / stride)
        classes[index] = values
        sides[index] = np.concatenate([bins_of(length, bins) for length in lengths])
    return classes, sides


def grid(strides: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the boxes relative to their cells, and the class scores, without decoding."""
    all_cells = cells(strides)
    boxes, classes = np.zeros((len(all_cells), 4)), np.full((len(all_cells), 3), 0.01)
    for index, (box, values) in assigned(strides).items():
        stride, column, row = all_cells[index]
        x, y, width, height = centers(np.array([box]))[0]
        boxes[index] = (x / stride - column, y / stride - row, np.log(width / stride), np.log(height / stride))
        classes[index] = values
    return boxes, classes


def by_stride(strides: Sequence[int], **values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return one output for each kind of value and each stride, ordered by kind and then by stride."""
    edges = np.cumsum([rows * columns for _, rows, columns in levels(strides)])[:-1]
    return {
        f"{name}_{stride}": part
        for name, value in values.items()
        for stride, part in zip(strides, np.split(value, edges), strict=True)
    }


def maps(strides: Sequence[int], **values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the outputs of `by_stride` as maps (values, rows, columns)."""
    sizes = {stride: (rows, columns) for stride, rows, columns in levels(strides)}
    return {
        name: part.T.reshape(part.shape[1], *sizes[int(name.rsplit("_", 1)[1])])
        for name, part in by_stride(strides, **values).items()
    }


def _nanodet() -> dict[str, Export]:
    three, four = (8, 16, 32), (8, 16, 32, 64)
    classes, sides = distances(three, 11, lambda x, stride: (x + 0.5) * stride - 0.5)
    plus_classes, plus_sides = distances(four, 8, lambda x, stride: x * stride)
    pico_classes, pico_sides = distances(four, 8, lambda x, stride: (x + 0.5) * stride)
    head = {"kind": "nanodet"}
    reverse = dict(reversed(by_stride(three, cls_pred_stride=classes, dis_pred_stride=sides).items()))
    pico = by_stride(four, transpose_a=pico_classes, transpose_b=pico_sides)
    return {
        "nanodet-m, six outputs": Export(head, by_stride(three, cls_pred_stride=classes, dis_pred_stride=sides)),
        "nanodet-m, six outputs, reversed": Export(head, reverse),
        "nanodet-m, six outputs, logits": Export(
            {**head, "activation": "sigmoid"}, by_stride(three, cls=logit(classes), dis=sides)
        ),
        "nanodet-m, six maps": Export(head, maps(three, cls=classes, reg=sides)),
        "nanodet-plus": Export(
            {"kind": "nanodet-plus"}, {"output": np.concatenate([plus_classes, plus_sides], axis=1)}
        ),
        "nanodet-plus, per stride": Export({"kind": "nanodet-plus"}, by_stride(four, cls=plus_classes, dis=plus_sides)),
        "picodet, eight outputs without names": Export({"kind": "picodet"}, pico),
        "picodet, pairs": Export(
            {"kind": "picodet"},
            {f"tmp_{index}": pico[name] for index, name in enumerate(sorted(pico, key=lambda name: name[-2:]))},
        ),
        "picodet, logits": Export(
            {"kind": "picodet", "activation": "sigmoid"}, by_stride(four, cls=logit(pico_classes), dis=pico_sides)
        ),
    }


def _yolo() -> dict[str, Export]:
    strides = (8, 16, 32)
    boxes, classes = grid(strides)
    sure = np.ones((len(boxes), 1))
    raw = np.concatenate([boxes, sure, classes], axis=1)
    first = classes[:, :1]  # faces of one class: the person
    face = {"kind": "yunet"}
    person = (FOUND[0],)
    kps = np.zeros((len(boxes), 10))
    faces = by_stride(strides, cls=first**2, obj=sure, bbox=boxes, kps=kps)
    plain = np.concatenate([centers(corners(20)), np.ones((20, 1)), scores(20)], axis=1)
    dense = np.concatenate([centers(corners(len(boxes))), scores(len(boxes))], axis=1)
    return {
        "yolov5": Export({"kind": "yolov5"}, {"output": plain}),
        "yolov5, objectness": Export(
            {"kind": "yolov5"}, {"output": plain * [1, 1, 1, 1, 0.5, 1, 1, 1]}, found=[
                (FOUND[0][0], PERSON, 0.4375), (FOUND[1][0], CAR, 0.375)]
        ),
        "yolov8": Export({"kind": "yolov8"}, {"output0": np.delete(plain, 4, axis=1).T}),
        "yolov8, transposed": Export({"kind": "yolov8"}, {"output0": dense}),
        "yolox, raw": Export({"kind": "yolox"}, {"output": raw}),
        "yolox, maps": Export({"kind": "yolox"}, maps(strides, output=raw)),
        "yolox, logits": Export(
            {"kind": "yolox", "activation": "sigmoid"},
            {"output": np.concatenate([boxes, sure * 30, logit(classes)], axis=1)},
        ),
        "yunet": Export(face, faces, names=("face",), found=person),
        "yunet, by stride": Export(
            face, dict(sorted(faces.items(), key=lambda each: each[0][-2:])), names=("face",), found=person
        ),
        "yunet, objectness": Export(
            face,
            by_stride(strides, cls=np.ones_like(first), obj=first**2, bbox=boxes, kps=kps),
            names=("face",),
            found=person,
        ),
    }  # fmt: skip


def _corners() -> dict[str, Export]:
    boxes, classes = corners(20), scores(20)
    softmax = np.concatenate([1 - classes.max(axis=1, keepdims=True), classes], axis=1)
    head = {"kind": "corners"}
    return {
        "yolo-nas, flat": Export(head, {"pred_bboxes": boxes, "pred_scores": classes}),
        "yolo-nas, numbers for names": Export(head, {"913": boxes, "904": classes}),
        "yolov4": Export({**head, "box_scale": "fraction"}, {"boxes": fraction(boxes)[:, None], "confs": classes}),
        "ssd with background": Export(
            {**head, "box_scale": "fraction"},
            {"scores": softmax, "boxes": fraction(boxes)},
            names=("background", *NAMES),
            found=[(box, class_id + 1, score) for box, class_id, score in FOUND],
        ),
        "ssd with background, logits": Export(
            {**head, "activation": "softmax"},
            {"scores": np.log(with_no_object(classes)[:, [3, 0, 1, 2]]) - 2, "boxes": boxes},
            names=("background", *NAMES),
            found=[(box, class_id + 1, score) for box, class_id, score in FOUND],
        ),
        "pp-yoloe": Export(head, {"boxes": boxes, "scores": classes.T}),
        "corners, logits": Export({**head, "activation": "sigmoid"}, {"scores": logit(classes), "boxes": boxes}),
        "corners of four classes": Export(
            head, {"scores": scores(20, 4), "bboxes": boxes}, names=(*NAMES, "bus")
        ),
    }  # fmt: skip


def _transformers() -> dict[str, Export]:
    boxes = fraction(centers(corners(30)))
    classes = scores(30)
    classes[4] = 0.01  # a transformer finds each object once
    sigmoid = {"kind": "rt-detr", "box_scale": "fraction", "activation": "sigmoid"}
    coco = np.full((30, 91), 0.01)
    coco[3, [3, 8]], coco[7, 1] = (0.75, 0.5), 0.875
    coco_found = [(FOUND[0][0], 1, 0.875), (FOUND[1][0], 3, 0.75)]
    return {
        "rt-detr, hugging face": Export(sigmoid, {"logits": logit(classes), "pred_boxes": boxes}),
        "rt-detr, scores": Export(
            {"kind": "rt-detr", "box_scale": "fraction"}, {"pred_boxes": boxes, "pred_scores": classes}
        ),
        "rt-detr, ultralytics": Export(
            {"kind": "rt-detr", "box_scale": "fraction"}, {"output0": np.concatenate([boxes, classes], axis=1)}
        ),
        "detr": Export(
            {**sigmoid, "activation": "softmax"},
            {"logits": np.log(with_no_object(classes)) + 3, "pred_boxes": boxes},
        ),
        "rf-detr, coco": Export(
            sigmoid, {"dets": boxes, "labels": logit(coco)}, names="coco91", found=coco_found
        ),
        "rf-detr, fine-tuned, with masks": Export(
            sigmoid,
            {"masks": np.zeros((30, 24, 32)), "labels": logit(scores_of(classes, 4)), "dets": boxes},
            names=(*NAMES, "background"),
        ),
    }  # fmt: skip


def with_no_object(classes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return class scores with an additional last column, so that the sum of each row is 1."""
    shares = classes / np.maximum(1, classes.sum(axis=1, keepdims=True) / 0.999)
    best = classes.argmax(axis=1)
    others = np.minimum(shares, (1 - classes.max(axis=1, keepdims=True)) / 3)
    others[np.arange(len(classes)), best] = classes.max(axis=1)
    return np.concatenate([others, 1 - others.sum(axis=1, keepdims=True)], axis=1)


def scores_of(classes: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return class scores with `count` columns. Additional columns have high scores, like a background class."""
    wide = np.full((len(classes), count), 0.9)
    wide[:, : classes.shape[1]] = classes
    return wide


def _suppressed() -> dict[str, Export]:
    score, class_ids = labels(20)
    score[4] = 0
    boxes, column = corners(20), score[:, None]
    head = {"kind": "end-to-end"}
    ids = class_ids.copy()
    ids[[0, 1, 2]] = 3, 90, -1
    more = score.copy()
    more[[0, 1, 2]] = 0.6
    all_score, all_ids = labels(len(cells((8, 16, 32))))
    all_boxes = corners(len(all_score))
    return {
        "end-to-end rows": Export(head, {"output0": np.concatenate([boxes, column, class_ids[:, None]], axis=1)}),
        "deepstream-yolo, not suppressed": Export(
            {"kind": "end-to-end"},
            {"output": np.concatenate([all_boxes, all_score[:, None], all_ids[:, None]], axis=1)},
        ),
        "ids without a name": Export(
            head, {"output0": np.concatenate([boxes, more[:, None], ids[:, None]], axis=1)}, unnamed=3
        ),
        "efficient nms": Export(
            head,
            {
                "num_dets": np.array([12], np.int32),
                "det_boxes": boxes,
                "det_scores": score,
                "det_classes": class_ids.astype(np.int32),
            },
        ),
        "yolo-nas, batched": Export(
            head,
            {
                "num_predictions": np.array([12], np.int64),
                "pred_boxes": boxes,
                "pred_scores": score,
                "pred_classes": class_ids,
            },
        ),
        "rt-detr, official": Export(head, {"labels": class_ids, "boxes": boxes, "scores": score}),
        "rt-detr, official, other order": Export(head, {"scores": score, "labels": class_ids, "boxes": boxes}),
        "rt-detr, official, ids without a name": Export(
            head, {"labels": ids, "boxes": boxes, "scores": more}, unnamed=3
        ),
        "tensorflow": Export(
            {"kind": "tensorflow", "box_scale": "fraction"},
            {
                "detection_anchor_indices": np.arange(20.0),
                "detection_boxes": fraction(boxes)[:, [1, 0, 3, 2]],
                "detection_classes": class_ids + 1.0,
                "detection_multiclass_scores": scores(20, 4),
                "detection_scores": score,
                "num_detections": np.array([12.0]),
                "raw_detection_boxes": fraction(corners(60)),
                "raw_detection_scores": scores(60, 4),
            },
            names=("background", *NAMES),
            found=[(box, class_id + 1, value) for box, class_id, value in FOUND],
        ),
        "paddle": Export(
            {"kind": "paddle"},
            {
                "multiclass_nms3_0.tmp_0": np.concatenate([class_ids[:, None], column, boxes], axis=1),
                "multiclass_nms3_0.tmp_2": np.array([12], np.int32),
            },
        ),
        "mmdeploy": Export(head, {"dets": np.concatenate([boxes, column], axis=1), "labels": class_ids}),
    }  # fmt: skip


def _numbered() -> dict[str, Export]:
    """Return outputs without a batch axis. Each row contains the number of its frame."""
    score, class_ids = labels(20)
    score[4] = 0
    boxes, column, named = corners(20), score[:, None], class_ids[:, None]
    return {
        "yolo-nas, numbered rows": Export(
            {"kind": "yolo-nas-flat"}, {"flat": np.concatenate([0 * column, boxes, column, named], axis=1)}
        ),
        "yolov7, end to end": Export(
            {"kind": "yolov7"}, {"output": np.concatenate([0 * column, boxes, named, column], axis=1)}
        ),
    }


EXPORTS = {**_nanodet(), **_yolo(), **_corners(), **_transformers(), **_suppressed()}
WITHOUT_BATCH: Mapping[str, Export] = {
    "paddle": EXPORTS["paddle"],
    "torchvision": EXPORTS["rt-detr, official"],
    "rows": EXPORTS["end-to-end rows"],
    **_numbered(),
}
"""Outputs that also exist without a batch axis, by the exporter or the layout."""


def as_type(export: Export, real: type[np.floating[Any]]) -> dict[str, NDArray[Any]]:
    """Return the outputs of an exporter. Convert floating-point outputs to the type `real`."""
    return {name: value.astype(real) if value.dtype.kind == "f" else value for name, value in export.outputs.items()}
