"""Tests of the heads: decoded outputs, accepted shapes, and the errors for other shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vision.config import ModelSpec
from vision.detect.reference.decoder import Decoder, sigmoid
from vision.detect.reference.heads import HEADS, make_head
from vision.detect.reference.layout import Shape
from vision.detect.reference.postprocess import Candidates
from vision.errors import ModelError

Floats = NDArray[np.float32]
ABC = ("a", "b", "c")


def spec(
    head: Mapping[str, Any], *, sides: tuple[int, int] = (64, 32), nms: Mapping[str, Any] | None = None
) -> ModelSpec:
    """Return a model specification with an input of `sides` (width, height) pixels."""
    return ModelSpec.model_validate(
        {
            "name": "tiny",
            "file": "tiny.onnx",
            "input": {"width": sides[0], "height": sides[1]},
            "head": head,
            "classes": ABC,
            "nms": nms or {},
            "licence": "CC0-1.0",
        }
    )


def bound(head: Mapping[str, Any], shapes: Mapping[str, Shape], score: float = 0.5, **options: Any) -> Decoder:
    classes = options.pop("classes", None)
    return make_head(spec(head, **options), len(ABC), score, classes).bind(shapes)


def rows(decoded: Candidates) -> list[tuple[float, ...]]:
    """Return the class, the score, and the box of each candidate, rounded for comparison."""
    return [
        (int(class_id), round(float(score), 4), *(round(float(side), 3) for side in box))
        for class_id, score, box in zip(decoded.class_ids, decoded.scores, decoded.boxes_xyxy, strict=True)
    ]


def array(*values: Sequence[float]) -> Floats:
    return np.array(values, np.float32)


# --------------------------------------------------------------------------------------------- nanodet

NANODET = {"kind": "nanodet", "strides": (16, 32), "bins": 3}
CELLS = 4 * 2 + 2 * 1  # of 64x32 at strides 16 and 32
NANODET_SHAPES: dict[str, Shape] = {"scores": (None, CELLS, 3), "distances": (None, CELLS, 12)}


def nanodet_outputs(scored: Mapping[tuple[int, int], float]) -> tuple[Floats, Floats]:
    """Return outputs of NanoDet with the scores `scored`, by (cell, class).

    The distances from the center of each cell to the sides of its box are 0, 1, 2, and 1.5 strides.
    """
    scores = np.zeros((CELLS, 3), np.float32)
    for at, score in scored.items():
        scores[at] = score
    sure = 100.0
    sides = [[sure, 0, 0], [0, sure, 0], [0, 0, sure], [-sure, sure, sure]]
    return scores, np.tile(np.array(sides, np.float32).reshape(1, 12), (CELLS, 1))


@pytest.mark.parametrize(
    ("scored", "options", "expected"),
    [
        ({}, {}, []),
        # cell 0: center (7.5, 7.5); left 0, top 16, right 32, bottom 24
        ({(0, 2): 0.75}, {}, [(2, 0.75, 7.5, -8.5, 39.5, 31.5)]),
        # cell 5: column 1 of row 1: center (23.5, 23.5)
        ({(5, 0): 0.5}, {}, [(0, 0.5, 23.5, 7.5, 55.5, 47.5)]),  # the threshold itself is enough
        ({(5, 0): 0.4999}, {}, []),
        # cell 9: the second of stride 32: center (47.5, 15.5)
        ({(9, 1): 1.0}, {}, [(1, 1.0, 47.5, -16.5, 111.5, 63.5)]),
        # a cell has one class, the best that is reported
        ({(0, 0): 0.6, (0, 2): 0.9}, {}, [(2, 0.9, 7.5, -8.5, 39.5, 31.5)]),
        ({(0, 0): 0.6, (0, 2): 0.6}, {}, [(0, 0.6, 7.5, -8.5, 39.5, 31.5)]),
        ({(0, 0): 0.6, (0, 2): 0.9}, {"classes": [0]}, [(0, 0.6, 7.5, -8.5, 39.5, 31.5)]),
        ({(0, 0): 0.6}, {"classes": [1, 2]}, []),
        ({(0, 0): float("nan")}, {}, []),
    ],
)
def test_nanodet_cells_become_detections(
    scored: Mapping[tuple[int, int], float], options: Mapping[str, Any], expected: list[tuple[float, ...]]
) -> None:
    scores, distances = nanodet_outputs(scored)
    head = bound(NANODET, NANODET_SHAPES, **options)
    assert head.outputs == ("scores", "distances")
    assert rows(head.decode([scores, distances])) == expected
    joined = bound(NANODET, {"output": (1, CELLS, 15)}, **options)
    assert rows(joined.decode([np.concatenate([scores, distances], axis=1)])) == expected


def test_nanodet_softmax_is_an_expectation_and_does_not_overflow() -> None:
    distances = np.zeros((CELLS, 12), np.float32)
    distances[0] = [0, 0, 0, math.log(2), 0, 0, 1e4, 1e4, -1e4, -1e4, -1e4, -1e4]
    scores, _ = nanodet_outputs({(0, 0): 1.0})
    (row,) = rows(bound(NANODET, NANODET_SHAPES).decode([scores, distances]))
    assert row == (0, 1.0, 7.5 - 16, 7.5 - 12, 7.5 + 8, 7.5 + 16)  # 1, 0.75, 0.5 and 1 strides


def test_nanodet_rounds_the_number_of_cells_up() -> None:
    head = make_head(spec(NANODET, sides=(65, 33)), 3, 0.5)
    assert head.fits({"scores": (1, 5 * 3 + 3 * 2, 3), "distances": (1, 5 * 3 + 3 * 2, 12)}) is not None


# ---------------------------------------------------------------------------------------------- yolov5

V5 = {"kind": "yolov5"}


@pytest.mark.parametrize(
    ("boxes", "head", "expected"),
    [
        ([], V5, []),
        ([[10, 20, 4, 8, 1.0, 0.1, 0.9, 0.0]], V5, [(1, 0.9, 8, 16, 12, 24)]),
        ([[10, 20, 4, 8, 0.8, 0.1, 0.75, 0.0]], V5, [(1, 0.6, 8, 16, 12, 24)]),  # objectness times class
        ([[10, 20, 4, 8, 0.6, 0.1, 0.8, 0.0]], V5, []),
        ([[10, 20, 4, 8, 0.4, 1.0, 1.0, 1.0]], V5, []),
        (
            [[10, 20, 4, 8, 1.0, 0.5, 0.6, 0.0], [1, 2, 2, 2, 1.0, 0.0, 0.0, 0.7]],
            V5,
            [(2, 0.7, 0, 1, 2, 3), (1, 0.6, 8, 16, 12, 24)],
        ),
        ([[0.5, 0.5, 0.25, 0.5, 1.0, 1.0, 0.0, 0.0]], {**V5, "box_scale": "fraction"}, [(0, 1.0, 24, 8, 40, 24)]),
        ([[10, 20, 4, 8, 2.0, 3.0, -9.0, -9.0]], {**V5, "activation": "sigmoid"}, [(0, 0.839, 8, 16, 12, 24)]),
    ],
)
def test_yolov5_rows_become_detections(
    boxes: list[list[float]], head: Mapping[str, Any], expected: list[tuple[float, ...]]
) -> None:
    output = np.array(boxes, np.float32).reshape(-1, 8)
    assert rows(bound(head, {"output": (1, None, 8)}).decode([output])) == expected
    of_class_1 = [row for row in expected if row[0] == 1]
    assert rows(bound(head, {"output": (1, None, 8)}, classes=[1]).decode([output])) == of_class_1


# ---------------------------------------------------------------------------------------------- yolov8

V8 = {"kind": "yolov8"}


@pytest.mark.parametrize(
    ("boxes", "head", "expected"),
    [
        ([], V8, []),
        ([[10, 20, 4, 8, 0.1, 0.9, 0.0]], V8, [(1, 0.9, 8, 16, 12, 24)]),
        ([[10, 20, 4, 8, 0.1, 0.49, 0.0]], V8, []),
        (
            # ties go by class within a box, then by box, although the scores lie class by class
            [[10, 20, 4, 8, 0.0, 0.6, 0.6], [1, 2, 2, 2, 0.6, 0.0, 0.0], [4, 4, 2, 2, 0.6, 0.0, 0.8]],
            V8,
            [(2, 0.8, 3, 3, 5, 5), (1, 0.6, 8, 16, 12, 24), (0, 0.6, 0, 1, 2, 3)],
        ),
        ([[0.5, 0.5, 0.25, 0.5, 1.0, 0.0, 0.0]], {**V8, "box_scale": "fraction"}, [(0, 1.0, 24, 8, 40, 24)]),
        ([[10, 20, 4, 8, 3.0, -9.0, -9.0]], {**V8, "activation": "sigmoid"}, [(0, 0.9526, 8, 16, 12, 24)]),
    ],
)
def test_yolov8_columns_become_detections(
    boxes: list[list[float]], head: Mapping[str, Any], expected: list[tuple[float, ...]]
) -> None:
    output = np.ascontiguousarray(np.array(boxes, np.float32).reshape(-1, 7).T)
    assert rows(bound(head, {"output": (1, 7, None)}).decode([output])) == expected
    for class_id in range(3):
        decoded = rows(bound(head, {"output": (1, 7, None)}, classes=[class_id]).decode([output]))
        assert {row[0] for row in decoded} <= {class_id}
        assert {row for row in expected if row[0] == class_id} <= set(decoded)


# ------------------------------------------------------------------------------------------ end to end

END = {"kind": "end-to-end"}


@pytest.mark.parametrize(
    ("objects", "options", "expected"),
    [
        ([], {}, []),
        ([[1, 2, 3, 4, 0.9, 2], [0, 0, 0, 0, 0, 0]], {}, [(2, 0.9, 1, 2, 3, 4)]),
        ([[1, 2, 3, 4, 0.6, 0], [5, 6, 7, 8, 0.9, 1]], {}, [(1, 0.9, 5, 6, 7, 8), (0, 0.6, 1, 2, 3, 4)]),
        ([[1, 2, 3, 4, 0.6, 0], [5, 6, 7, 8, 0.9, 1]], {"classes": [0]}, [(0, 0.6, 1, 2, 3, 4)]),
        ([[1, 2, 3, 4, 0.9, 3], [1, 2, 3, 4, 0.9, -1], [1, 2, 3, 4, 0.9, float("nan")]], {}, []),  # no such classes
        ([[1, 2, 3, 4, 0.9, 0], [1, 2, 3, 4, 0.8, 0]], {"nms": {"max_objects": 1}}, [(0, 0.9, 1, 2, 3, 4)]),
    ],
)
def test_end_to_end_boxes_become_detections(
    objects: list[list[float]], options: Mapping[str, Any], expected: list[tuple[float, ...]]
) -> None:
    head = bound(END, {"output": (None, None, 6)}, **options)
    assert not head.needs_nms
    assert rows(head.decode([np.array(objects, np.float32).reshape(-1, 6)])) == expected


def test_end_to_end_fractions_are_scaled_to_the_canvas() -> None:
    head = bound({**END, "box_scale": "fraction"}, {"output": (1, 300, 6)})
    assert rows(head.decode([array([0.25, 0.5, 0.5, 1.0, 0.9, 1])])) == [(1, 0.9, 16, 16, 32, 32)]


# --------------------------------------------------------------------------------------------- rt-detr

RT = {"kind": "rt-detr", "box_scale": "fraction", "activation": "sigmoid"}
RT_SHAPES: dict[str, Shape] = {"pred_logits": (1, 2, 3), "pred_boxes": (1, 2, 4)}


@pytest.mark.parametrize(
    ("logits", "options", "expected"),
    [
        ([[-9, -9, -9], [-9, -9, -9]], {}, []),
        ([[-9, 3, -9], [-9, -9, -9]], {}, [(1, 0.9526, 24, 8, 40, 24)]),
        ([[-9, 0, -9], [-9, -9, -9]], {}, [(1, 0.5, 24, 8, 40, 24)]),
        ([[1, 2, -9], [3, -9, -9]], {}, [(0, 0.9526, 0, 0, 64, 32), (1, 0.8808, 24, 8, 40, 24)]),
        ([[2, 2, 2], [3, 3, 3]], {"nms": {"max_objects": 1}}, [(0, 0.9526, 0, 0, 64, 32)]),
        ([[1, 2, 3], [-9, -9, -9]], {"classes": [0]}, [(0, 0.7311, 24, 8, 40, 24)]),
        ([[-1e5, 1e5, -1e5], [-1e5, -1e5, -1e5]], {}, [(1, 1.0, 24, 8, 40, 24)]),
    ],
)  # fmt: skip
def test_rt_detr_queries_become_detections(
    logits: list[list[float]], options: Mapping[str, Any], expected: list[tuple[float, ...]]
) -> None:
    head = bound(RT, RT_SHAPES, **options)
    assert head.outputs == ("pred_boxes", "pred_logits")
    boxes = array([0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 1.0, 1.0])
    decoded = head.decode([boxes, np.array(logits, np.float32)])
    assert rows(decoded) == expected


def test_rt_detr_counts_truncated_candidates() -> None:
    head = bound(RT, RT_SHAPES, nms={"max_objects": 1})
    assert head.decode([np.zeros((2, 4), np.float32), np.full((2, 3), 9, np.float32)]).truncated_candidates == 1


# ------------------------------------------------------------------------------------------- all heads

CELLS_OF = {8: 8 * 4, 16: 4 * 2, 32: 2 * 1, 64: 1}  # of 64x32


def per_stride(strides: Sequence[int], **values: int) -> dict[str, Shape]:
    return {f"{name}_{stride}": (1, CELLS_OF[stride], count) for name, count in values.items() for stride in strides}


SHAPES: dict[str, dict[str, Shape]] = {
    "nanodet": NANODET_SHAPES,
    "nanodet-plus": {"output": (1, CELLS, 15)},
    "picodet": per_stride((16, 32), cls=3, dis=12),
    "yolov5": {"output": (1, 40, 8)},
    "yolox": {"output": (1, CELLS, 8)},
    "yolov8": {"output": (1, 7, 40)},
    "yunet": per_stride((16, 32), cls=3, obj=1, bbox=4, kps=10),
    "corners": {"boxes": (1, 40, 1, 4), "confs": (1, 40, 3)},
    "end-to-end": {"output": (1, 50, 6)},
    "rt-detr": {"boxes": (1, 40, 4), "scores": (1, 40, 3)},
    "paddle": {"output": (1, 50, 6)},
    "yolov7": {"output": (1, 50, 7)},
    "yolo-nas-flat": {"output": (1, 50, 7)},
    "tensorflow": {"detection_boxes": (1, 50, 4), "detection_classes": (1, 50), "detection_scores": (1, 50)},
}


def test_every_head_is_in_the_table() -> None:
    assert set(SHAPES) == set(HEADS)


def zeros(kind: str) -> list[Floats]:
    """Return outputs of zeros for one frame, in the order of the decoder."""
    shapes = SHAPES[kind]
    names = bound({**NANODET, "kind": kind}, shapes).outputs
    return [np.zeros([CELLS if side is None else side for side in shapes[name][1:]], np.float32) for name in names]


@pytest.mark.parametrize("kind", HEADS)
def test_candidates_over_the_capacity_are_counted(kind: str) -> None:
    head = bound({**NANODET, "kind": kind}, SHAPES[kind], 0.0, nms={"max_candidates": 7, "max_objects": 7})
    decoded = head.decode(zeros(kind))
    boxes = {
        "end-to-end": 50,
        "paddle": 50,
        "yolov7": 50,
        "yolo-nas-flat": 50,
        "tensorflow": 50,
        "yolov5": 40,
        "yolov8": 40,
        "corners": 40,
        "rt-detr": 40,
    }.get(kind, CELLS)
    assert len(decoded.scores) == 7
    assert decoded.truncated_candidates == boxes - 7


@pytest.mark.parametrize("kind", HEADS)
def test_non_finite_boxes_are_dropped(kind: str) -> None:
    head = bound({**NANODET, "kind": kind}, SHAPES[kind], 0.5)
    outputs = [np.full_like(each, np.inf) for each in zeros(kind)]
    for scores in head.raw_scores(outputs):
        scores[...] = 1.0
    if kind == "end-to-end":
        outputs[0][:, 5] = 0
    decoded = head.decode(outputs)
    assert len(decoded.scores) == 0
    assert decoded.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("kind", HEADS)
def test_candidates_have_the_documented_types(kind: str) -> None:
    decoded = bound({**NANODET, "kind": kind}, SHAPES[kind], 0.0).decode(zeros(kind))
    assert len(decoded.scores) > 0
    assert decoded.boxes_xyxy.dtype == np.float32
    assert decoded.scores.dtype == np.float32
    assert decoded.class_ids.dtype == np.int32


@pytest.mark.parametrize("kind", HEADS)
def test_scores_outside_zero_to_one_are_refused(kind: str) -> None:
    outputs = zeros(kind)
    head = bound({**NANODET, "kind": kind}, SHAPES[kind])
    head.check_scores(outputs)
    for wrong in (-4.0, 3.0, math.nan):
        head.raw_scores(outputs)[-1][-1:] = wrong
        with pytest.raises(ModelError) as caught:
            head.check_scores(outputs)
        assert caught.value.code == "scores-out-of-range"
        assert "activation: sigmoid" in caught.value.hint
        bound({**NANODET, "kind": kind, "activation": "sigmoid"}, SHAPES[kind]).check_scores(outputs)


@pytest.mark.parametrize(
    ("kind", "shapes", "outputs"),
    [
        ("nanodet", {"scores": (1, 10, 3), "distances": (1, 10, 12)}, ("scores", "distances")),
        ("nanodet", {"distances": (1, 10, 12), "scores": (1, 10, 3)}, ("scores", "distances")),
        ("nanodet", {"b": (1, 10, 12), "a": (1, 10, 3)}, ("a", "b")),
        ("nanodet", {"cls": (None, None, None), "reg": (None, None, None)}, ("cls", "reg")),
        ("nanodet", {"output": (1, 10, 15)}, ("output",)),
        ("nanodet", {"anchors": (10, 2), "output": (1, 10, 15)}, ("output",)),
        ("yolov5", {"output": (1, 25200, 8), "p3": (1, 3, 80, 80, 8)}, ("output",)),
        ("yolov8", {"output": (None, 7, None)}, ("output",)),
        ("yolov8", {"output": (1, 8400, 7)}, ("output",)),
        ("yolov8", {"output": (1, CELLS, 7)}, ("output",)),
        ("yolo-nas-flat", {"flat": (None, 7)}, ("flat",)),
        ("yolov7", {"output": (12, 7)}, ("output",)),
        ("end-to-end", {"output": (1, 300, 6)}, ("output",)),
        ("end-to-end", {"labels": (1, 1), "boxes": (1, 1, 4), "scores": (1, 1)}, ("boxes", "scores", "labels")),
        ("end-to-end", {"labels": (1, 0), "boxes": (1, 0, 4), "scores": (1, 0)}, ("boxes", "scores", "labels")),
        (
            "end-to-end",
            {"num": (1, 1), "classes": (1, 1), "boxes": (1, 1, 4), "scores": (1, 1)},
            ("boxes", "scores", "classes", "num"),
        ),
        ("end-to-end", {"dets": (1, 0, 5), "labels": (1, 0)}, ("dets", "labels")),
        ("end-to-end", {"dets": (1, 1, 5), "labels": (1, 1)}, ("dets", "labels")),
        ("rt-detr", {"logits": (1, 300, 3), "pred_boxes": (1, 300, 4)}, ("pred_boxes", "logits")),
        ("rt-detr", {"pred_boxes": (1, None, 4), "logits": (1, None, 3)}, ("pred_boxes", "logits")),
    ],
)
def test_head_chooses_its_outputs(kind: str, shapes: dict[str, Shape], outputs: tuple[str, ...]) -> None:
    assert bound({**NANODET, "kind": kind}, shapes).outputs == outputs


def test_softmax_counts_one_more_class_at_the_end() -> None:
    softmax = {**RT, "activation": "softmax"}
    shapes = {"logits": (1, 2, 4), "pred_boxes": (1, 2, 4)}
    logits = np.log(np.array([[0.5, 0.2, 0.1, 0.2], [0.02, 0.03, 0.05, 0.9]], np.float32)) + 7
    boxes = np.full((2, 4), 0.5, np.float32)
    decoder = bound(softmax, shapes, 0.05)
    assert decoder.rules.class_count == 4
    found = decoder.decode([boxes, logits] if decoder.outputs[0] == "pred_boxes" else [logits, boxes])
    assert found.class_ids.tolist() == [0, 2]
    np.testing.assert_allclose(found.scores, [0.5, 0.05], rtol=1e-5)
    with pytest.raises(ModelError) as caught:
        bound(RT, shapes)
    assert caught.value.code == "head-mismatch"


def test_softmax_of_values_that_are_not_finite_gives_no_object() -> None:
    logits = np.array([[np.nan, 1, 0], [np.inf, 1, 0], [9, 1, 0]], np.float32)
    decoder = bound({**RT, "activation": "softmax"}, {"logits": (1, 3, 3), "boxes": (1, 3, 4)}, 0.3)
    boxes = np.full((3, 4), 0.5, np.float32)
    found = decoder.decode([boxes if name == "boxes" else logits for name in decoder.outputs])
    assert found.class_ids.tolist() == [0]


@pytest.mark.parametrize("kind", sorted(set(HEADS) - {"corners", "rt-detr"}))
def test_softmax_is_refused_by_heads_without_it(kind: str) -> None:
    with pytest.raises(ModelError) as caught:
        make_head(spec({"kind": kind, "activation": "softmax"}), 3, 0.5)
    assert caught.value.code == "head-activation"


def test_scores_of_four_classes_are_not_taken_for_boxes() -> None:
    for names in (("scores", "boxes"), ("labels", "dets"), ("pred_logits", "pred_boxes")):
        for order in (names, names[::-1]):
            head = HEADS["rt-detr"](spec(RT), 4, 0.5)
            assert head.bind(dict.fromkeys(order, (1, 300, 4))).outputs == names[::-1]


@pytest.mark.parametrize(
    ("kind", "shapes", "expects", "has", "hint"),
    [
        ("yolov8", {"out": (1, 40, 8)}, "(batch, 7, boxes)", "out (1, 40, 8)", "`yolov5`"),
        ("yolov5", {"out": (1, 7, 40)}, "(batch, boxes, 8)", "out (1, 7, 40)", "`yolov8`"),
        ("yolov8", {"out": (1, 300, 6)}, "(batch, 7, boxes)", "out (1, 300, 6)", "`end-to-end`"),
        ("end-to-end", {"out": (1, 7, 40)}, "(batch, objects, 6)", "out (1, 7, 40)", "`yolov8`"),
        ("yolov5", NANODET_SHAPES, "(batch, boxes, 8)", "scores (?, 10, 3), distances (?, 10, 12)", "`nanodet`"),
        ("rt-detr", {"out": (1, 10, 15)}, "(batch, queries, 4) boxes", "out (1, 10, 15)", "`nanodet`"),
        (
            "nanodet",
            {"a": (1, 300, 4), "b": (1, 300, 3)},
            "(batch, 10, 3) scores and (batch, 10, 12) distances, both in one (batch, 10, 15)",
            "a (1, 300, 4), b (1, 300, 3)",
            "`rt-detr`",
        ),
        ("yolov8", {"out": (1, 84, 8400)}, "(batch, 7, boxes)", "out (1, 84, 8400)", "80"),
        ("yolov5", {"out": (1, 25200, 85)}, "(batch, boxes, 8)", "out (1, 25200, 85)", "80"),
        ("yolov8", {"out": (1, 1000)}, "(batch, 7, boxes)", "out (1, 1000)", ""),
        ("yolov8", {}, "(batch, 7, boxes)", "", ""),
    ],
)
def test_head_mismatch_names_the_fitting_head(
    *, kind: str, shapes: dict[str, Shape], expects: str, has: str, hint: str
) -> None:
    with pytest.raises(ModelError) as error:
        bound({**NANODET, "kind": kind}, shapes)
    message = str(error.value)
    assert f"`{kind}`" in message
    assert expects in message
    assert has in message
    assert hint in error.value.hint


@given(st.floats(0, 1, width=32), st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=30))
def test_logit_floor_drops_no_candidate(score: float, logits: list[float]) -> None:
    values = np.array(logits, np.float32)
    output = np.zeros((7, len(values)), np.float32)
    output[4:] = -100
    output[4] = values
    head = bound({**V8, "activation": "sigmoid"}, {"output": (1, 7, len(values))}, score, nms={"max_candidates": 8192})
    expected = np.count_nonzero(sigmoid(output[4:]).max(axis=0) >= np.float32(score))
    assert len(head.decode([output]).scores) == expected
