"""Comparison of ``postprocess.cu`` with the heads, NMS, and `to_detections` of the reference."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu.launching import postprocess
from vision.config import HeadSpec, InputSpec, ModelSpec, NmsSpec
from vision.detect.reference.heads import make_head
from vision.detect.reference.letterbox import Letterbox
from vision.detect.reference.postprocess import to_detections
from vision.types import Detections, Shapes

SIZES = [(480, 640), (77, 33), (64, 96), (1, 1), (4320, 7680), None]
ROUNDING = (
    1e-6  # of float32, 6e-8, over the few operations of a score or a coordinate; 2.4e-7 is the most that was seen
)
LEVELS = {8: 12 * 8, 16: 6 * 4, 32: 3 * 2, 64: 2 * 1}  # cells of a 96x64 input by stride
CELLS = 12 * 8 + 6 * 4 + 3 * 2  # at strides 8, 16, 32

EXTRAS = {"segment": 8, "pose": 15, "obb": 1}

Arrays = Mapping[str, NDArray[Any]]
WHOLE = {"labels": np.int64}  # type of outputs with integers that are not int32


@dataclass(frozen=True)
class Case:
    """Head of one network, with one kind of input."""

    kind: str  # of the head, then its form after a comma
    classes: int = 7
    half: bool = False
    sigmoid: bool = False
    softmax: bool = False
    fraction: bool = False
    score: float = 0.3
    iou: float = 0.5
    class_aware: bool = True
    across: float = 0.8
    candidates: int = 1024
    objects: int = 300
    wanted: tuple[int, ...] | None = None
    rows: int = 200  # number of boxes, unless the head determines it
    task: Literal["detect", "segment", "pose", "obb"] = "detect"
    content: Literal["random", "ties", "nothing", "all", "same box", "not numbers"] = "random"

    @property
    def spec(self) -> ModelSpec:
        head = self.kind.split(",")[0]
        return ModelSpec(
            name="test",
            file="test.onnx",
            input=InputSpec(width=96, height=64),
            head=HeadSpec(
                kind=head,  # type: ignore[arg-type]
                activation="softmax" if self.softmax else "sigmoid" if self.sigmoid else "none",
                box_scale="fraction" if self.fraction else "pixels",
                task=self.task,
            ),
            classes=tuple(f"class {index}" for index in range(self.classes)),
            nms=NmsSpec(
                iou_threshold=self.iou,
                class_aware=self.class_aware,
                iou_across_classes=self.across,
                max_candidates=self.candidates,
                max_objects=self.objects,
            ),
            licence="none",
        )

    def scores(self, random: np.random.Generator, *shape: int) -> NDArray[np.float64]:
        """Return raw scores: logits if the head has an activation."""
        values = random.random(shape) ** 2
        if self.sigmoid or self.softmax:
            # All values differ enough that the last bit of exp, which depends on the library, cannot change the order.
            values = ((random.permutation(values.size) + 0.5) / values.size).reshape(shape) ** 2
        if self.content == "nothing":
            values[:] = 0.01
        if self.content == "all":
            values[:] = 0.5
        if self.content == "ties":
            values = np.round(values * 8) / 8
        if self.content == "not numbers":
            values[random.random(shape) < 0.5] = np.nan
        if self.sigmoid or self.softmax:
            return np.log((values + 1e-6) / (1 - values + 1e-6))
        return values

    def boxes(self, random: np.random.Generator, *shape: int, corners: bool = False) -> NDArray[np.float64]:
        """Return random boxes as center and size, or as corners. Some boxes have no area, or are outside the frame."""
        center, size = random.random((*shape, 2)) * [96, 64], random.random((*shape, 2)) * 40
        if self.content == "same box":
            center[:], size[:] = 30, 20
        size[random.random(shape) < 0.05] *= [1, 0]
        center[random.random(shape) < 0.05] += 500
        if self.content == "not numbers":
            center[random.random(shape) < 0.2] = np.nan
            size[random.random(shape) < 0.2] = np.inf
        boxes = np.concatenate([center - size / 2, center + size / 2] if corners else [center, size], axis=-1)
        return boxes / [96, 64, 96, 64] if self.fraction else boxes

    def outputs(self, batch: int, seed: int) -> Arrays:
        random = np.random.default_rng(seed)
        made = self._raw(batch, random)
        real = np.float16 if self.half else np.float32
        with np.errstate(over="ignore"):
            return {
                name: np.ascontiguousarray(value, real if value.dtype.kind == "f" else WHOLE.get(name, np.int32))
                for name, value in made.items()
            }

    def _raw(self, batch: int, random: np.random.Generator) -> Arrays:
        rows, classes = self.rows, self.classes
        if self.task != "detect":
            return self._with_shapes(batch, random)
        if self.kind in ("nanodet", "nanodet, one output", "nanodet-plus", "nanodet, per stride", "picodet"):
            return self._distances(batch, random)
        if self.kind in ("yolox", "yolox, maps", "yunet", "yunet, maps"):
            return self._cells(batch, random)
        if self.kind.startswith(("end-to-end", "paddle", "tensorflow", "yolov7", "yolo-nas")):
            return self._rows(batch, random)
        boxes = self.boxes(random, batch, rows, corners=self.kind.startswith("corners"))
        scores = self.scores(random, batch, rows, classes)
        made: Mapping[str, Arrays] = {
            "yolov5": {"output": np.concatenate([boxes, self.scores(random, batch, rows, 1), scores], axis=-1)},
            "yolov8": {"output": np.concatenate([boxes, scores], axis=-1).transpose(0, 2, 1)},
            "yolov8, rows": {"output": np.concatenate([boxes, scores], axis=-1)},
            "corners": {"scores": scores, "boxes": boxes},
            "corners, columns": {"boxes": boxes[:, :, None], "scores": scores.transpose(0, 2, 1)},
            "rt-detr": {"boxes": boxes, "logits": scores},
            "rt-detr, one output": {"output": np.concatenate([boxes, scores], axis=-1)},
        }
        return made[self.kind]

    def _with_shapes(self, batch: int, random: np.random.Generator) -> Arrays:
        rows, extra = self.rows, EXTRAS[self.task]
        corners = self.kind == "end-to-end" and self.task != "obb"
        boxes = self.boxes(random, batch, rows, corners=corners)
        extras = random.normal(size=(batch, rows, extra))
        if self.task == "obb":
            extras = extras * 2
            boxes[..., 2:] += 3  # a side of 0 has an angle, but no distance
        if self.task == "pose":
            extras = np.abs(extras) * ([40, 40, 0.5] * 5)
        if self.content == "not numbers":
            extras[random.random((batch, rows)) < 0.2, -1] = np.inf
        scores = self.scores(random, batch, rows, self.classes)
        labels = random.integers(-1, self.classes + 1, (batch, rows, 1))
        if self.kind == "yolov8":
            table = np.concatenate([boxes, scores, extras], axis=-1).transpose(0, 2, 1)
        elif self.kind == "yolov5":
            table = np.concatenate([boxes, scores[..., :1], scores, extras], axis=-1)
        else:
            table = np.concatenate([boxes, scores[..., :1], labels, extras], axis=-1)
        prototypes = random.normal(size=(batch, extra, 16, 24))
        return {"output": table, "prototypes": prototypes} if self.task == "segment" else {"output": table}

    def _distances(self, batch: int, random: np.random.Generator) -> Arrays:
        strides, bins = ((8, 16, 32), 11) if self.kind.split(",")[0] == "nanodet" else ((8, 16, 32, 64), 8)
        cells = sum(LEVELS[stride] for stride in strides)
        scores = self.scores(random, batch, cells, self.classes)
        sides = random.normal(size=(batch, cells, 4 * bins)) * 3
        if self.kind == "nanodet":
            return {"scores": scores, "distances": sides}
        if self.kind in ("nanodet, one output", "nanodet-plus"):
            return {"both": np.concatenate([scores, sides], axis=-1)}
        return {**_split("cls", scores, strides), **_split("dis", sides, strides)}

    def _cells(self, batch: int, random: np.random.Generator) -> Arrays:
        strides = (8, 16, 32)
        boxes = random.normal(size=(batch, CELLS, 4))
        if self.content == "not numbers":
            boxes[random.random(boxes.shape) < 0.1] = np.nan
            boxes[random.random(boxes.shape) < 0.1] = 200  # overflows
        factors, scores = self.scores(random, batch, CELLS, 1), self.scores(random, batch, CELLS, self.classes)
        if self.kind.startswith("yunet"):
            landmarks = random.normal(size=(batch, CELLS, 10))
            if self.content == "not numbers":
                landmarks[random.random(landmarks.shape) < 0.01] = np.inf
                landmarks[random.random(landmarks.shape) < 0.01] = 3e38  # overflows in pixels
            parts = {"cls": scores, "obj": factors, "bbox": boxes, "kps": landmarks}
            if self.kind.endswith("maps"):
                return {key: each for name, part in parts.items() for key, each in _maps(name, part, strides).items()}
            return {key: each for name, part in parts.items() for key, each in _split(name, part, strides).items()}
        output = np.concatenate([boxes, factors, scores], axis=-1)
        return {"output": output} if self.kind == "yolox" else _maps("map", output, strides)

    def _rows(self, batch: int, random: np.random.Generator) -> Arrays:
        """Return the rows of a head that has one class per box."""
        rows = self.rows
        corners = self.boxes(random, batch, rows, corners=True)
        named = random.integers(-1, self.classes + 2, (batch, rows))
        scores = self.scores(random, batch, rows)
        made: Arrays
        match self.kind:
            case "end-to-end":
                labels = named + (random.random((batch, rows)) < 0.1) * 0.5  # some are no whole numbers
                made = {"output": np.concatenate([corners, scores[..., None], labels[..., None]], axis=-1)}
            case "yolov7" | "yolo-nas-flat":
                parts = [corners[..., :1], corners, named[..., None], scores[..., None]]
                order = parts if self.kind == "yolov7" else [*parts[:2], parts[3], parts[2]]
                made = {"output": np.concatenate(order, axis=-1)}
            case "paddle":
                numbers = random.integers(0, rows + 1, batch)
                parts = [named[..., None], scores[..., None], corners]
                made = {"rows": np.concatenate(parts, axis=-1), "numbers": numbers}
            case "end-to-end, efficient nms" | "tensorflow":
                numbers = random.integers(0, rows + 1, (batch, 1))
                made = {"num_dets": numbers, "det_boxes": corners, "det_scores": scores, "det_classes": named}
            case "end-to-end, three outputs":
                made = {"labels": named.astype(np.int64), "boxes": corners, "scores": scores}
            case _:
                made = {"dets": np.concatenate([corners, scores[..., None]], axis=-1), "labels": named}
        return made


def _split(name: str, values: NDArray[np.float64], strides: tuple[int, ...]) -> dict[str, NDArray[np.float64]]:
    """Split the values of the cells by stride."""
    edges = np.cumsum([LEVELS[stride] for stride in strides])[:-1]
    return {f"{name}_{stride}": part for stride, part in zip(strides, np.split(values, edges, axis=1), strict=True)}


def _maps(name: str, values: NDArray[np.float64], strides: tuple[int, ...]) -> dict[str, NDArray[np.float64]]:
    """Split the values of the cells by stride, as maps (batch, values, rows, columns)."""
    return {
        key: level.transpose(0, 2, 1).reshape(len(level), -1, 64 // stride, 96 // stride)
        for stride, (key, level) in zip(strides, _split(name, values, strides).items(), strict=True)
    }


KINDS = (
    "nanodet",
    "nanodet, one output",
    "nanodet, per stride",
    "nanodet-plus",
    "picodet",
    "yolov5",
    "yolox",
    "yolox, maps",
    "yolov8",
    "yolov7",
    "yolo-nas-flat",
    "yunet",
    "corners",
    "corners, columns",
    "end-to-end",
    "end-to-end, efficient nms",
    "end-to-end, three outputs",
    "end-to-end, two outputs",
    "rt-detr",
    "rt-detr, one output",
    "paddle",
    "tensorflow",
)

# Each case with half precision or with a sigmoid is compiled separately, which takes seconds in the emulator.
HALVES = ("nanodet", "picodet", "yolox, maps", "yolov8", "end-to-end", "end-to-end, two outputs")
LOGITS = ("nanodet", "yolov5", "yunet", "corners, columns", "rt-detr")

CASES = [
    *(Case(kind) for kind in KINDS),
    *(Case(kind, half=True) for kind in HALVES),
    *(Case(kind, sigmoid=True) for kind in LOGITS),
    *(Case(kind, fraction=True) for kind in ("yolov8", "end-to-end")),
    *(Case(kind, content="ties") for kind in KINDS),
    *(Case(kind, content="not numbers") for kind in KINDS),
    *(Case(kind, content="nothing") for kind in ("nanodet", "yolov8", "rt-detr")),
    *(Case(kind, content="all", score=0.5) for kind in ("nanodet", "yolov8", "rt-detr", "end-to-end")),
    *(Case("yolov8", content="same box", class_aware=aware) for aware in (False, True)),
    *(Case("yolov8", content="same box", across=across) for across in (0.5, 1.0)),
    *(Case("corners", across=across, iou=0.3) for across in (0.3, 0.6, 1.0)),
    Case("end-to-end", rows=1200),  # not suppressed
    Case("end-to-end", rows=CELLS, iou=0.2),
    *(Case("yolov8", iou=iou, class_aware=False) for iou in (0.0, 1.0)),
    *(Case("yolov8", score=score) for score in (0.0, 1.0)),
    *(Case("yolov8", wanted=wanted) for wanted in ((0,), (2, 5), (6,))),
    *(Case("end-to-end", wanted=wanted) for wanted in ((0,), (2, 5))),
    *(Case("yolov8", candidates=candidates, objects=5, score=0.0) for candidates in (1, 2, 33, 64, 65, 1000)),
    Case("yolov8", candidates=8192, score=0.0, classes=80),  # work outside shared memory
    Case("yolov8", rows=3000, score=0.0),  # more pairs than can be written down
    Case("yolov8", rows=3000, score=0.0, half=True, content="ties"),
    Case("picodet", score=0.0, content="ties", candidates=50),
    *(Case("yolov8", task=task) for task in ("pose", "obb", "segment")),
    *(Case("yolov8", task=task, content="not numbers") for task in ("pose", "obb", "segment")),
    *(Case("yolov8", task="obb", across=across, iou=0.3) for across in (0.3, 0.6, 1.0)),
    Case("end-to-end", task="obb", rows=1200),  # not suppressed
    Case("yolov8", task="segment", half=True),
    Case("yolov5", task="segment", objects=3),
    Case("yunet", classes=1, rows=1),
    Case("yunet, maps", half=True, fraction=True),
    Case("picodet", wanted=(1, 4), half=True),
    Case("yolox", wanted=(1, 4)),
    Case("nanodet", classes=80, score=0.0, content="ties", candidates=300, objects=300, class_aware=False),
    Case("yolov5", classes=1, rows=1),
    Case("yolov8", classes=1, rows=1),
    Case("yolov8, rows", rows=1200),
    *(Case(kind, softmax=True, score=0.2) for kind in ("rt-detr", "corners, columns")),
    Case("rt-detr", softmax=True, score=0.2, wanted=(2, 5)),
    Case("corners", softmax=True, score=0.2, rows=40),
    Case("rt-detr", softmax=True, score=0.2, content="not numbers"),
    Case("rt-detr", classes=80, rows=300, objects=300, sigmoid=True, score=0.01),
]


def reference(case: Case, outputs: Arrays, index: int, size: tuple[int, int]) -> tuple[Detections, int]:
    spec = case.spec
    head = make_head(spec, case.classes, case.score, case.wanted)
    decoder = head.bind({name: value.shape for name, value in outputs.items()})
    fit = Letterbox.fit(size[1], size[0], 96, 64, spec.input.letterbox)
    with np.errstate(all="ignore"):
        candidates = decoder.decode([outputs[name][index].astype(np.float32) for name in decoder.outputs])
        if (case.sigmoid or case.softmax) and can_rounding_decide(candidates.scores, case.score):
            raise RoundingDecides
        limits = spec.nms if decoder.needs_nms else None
        return to_detections(candidates, limits, fit, size[1], size[0]), candidates.unnamed


class RoundingDecides(Exception):
    """Rounding errors can affect the result of a case, so the case is not a valid test."""


def can_rounding_decide(scores: NDArray[np.float32], threshold: float) -> bool:
    """Return True if two of the `scores` (in descending order), or a score and the threshold, are nearly equal."""
    steps = -np.diff([*scores.astype(np.float64), threshold]) / scores
    return bool(len(scores)) and steps.min() <= 2 * ROUNDING


def outputs_and_results(case: Case) -> tuple[Arrays, list[tuple[Detections, int] | None]]:
    """Return outputs whose results do not depend on rounding errors, and the result for each frame size of `SIZES`."""
    for seed in range(CASES.index(case), CASES.index(case) + 100):
        outputs = case.outputs(len(SIZES), seed=seed)
        with suppress(RoundingDecides):
            return outputs, [size and reference(case, outputs, index, size) for index, size in enumerate(SIZES)]
    raise RoundingDecides


def name_of(case: Case) -> str:
    return f"plain {case.kind}" if case == Case(case.kind) else repr(case)[5:-1]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_detections_match_the_reference(device: Any, case: Case) -> None:
    outputs, results = outputs_and_results(case)
    head = make_head(case.spec, case.classes, case.score, case.wanted)
    found = postprocess(device, case.spec, head, outputs, SIZES)
    for (given, unnamed), result, size in zip(found, results, SIZES, strict=True):
        if size is None or result is None:
            assert len(given) == given.truncated_candidates == 0, "a row without a frame has objects"
            continue
        wanted, unnamed_wanted = result
        assert unnamed == unnamed_wanted
        assert (len(given), given.truncated_candidates) == (len(wanted), wanted.truncated_candidates)
        np.testing.assert_array_equal(given.class_ids, wanted.class_ids)
        np.testing.assert_allclose(given.scores, wanted.scores, rtol=ROUNDING)
        np.testing.assert_allclose(given.boxes_xyxy, wanted.boxes_xyxy, rtol=0, atol=ROUNDING * max(size))
        assert_same_shapes(given.shapes, wanted.shapes, max(size))


def assert_same_shapes(given: Shapes | None, wanted: Shapes | None, side_px: int) -> None:
    if wanted is None or given is None:
        assert given is wanted is None
        return
    for mine, other in ((given.keypoints, wanted.keypoints), (given.rotated_boxes, wanted.rotated_boxes)):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            np.testing.assert_allclose(mine, other, rtol=0, atol=ROUNDING * side_px)
    assert (given.masks is None) == (wanted.masks is None)
    for mask, expected in zip(given.masks or (), wanted.masks or (), strict=True):
        assert mask.region_xyxy == expected.region_xyxy
        different = np.count_nonzero(mask.cells != expected.cells)  # a sum near 0 can have either sign
        assert different <= 1e-4 * mask.cells.size


def test_results_are_deterministic(device: Any) -> None:
    """The result must not depend on the order in which threads write candidates."""
    case = Case("yolov8", rows=1500, content="ties", score=0.1, candidates=100)
    outputs = case.outputs(2, seed=1)
    head = make_head(case.spec, case.classes, case.score, None)
    first = postprocess(device, case.spec, head, outputs, [(480, 640), (64, 96)])
    for _ in range(5):
        again = postprocess(device, case.spec, head, outputs, [(480, 640), (64, 96)])
        for (one, _), (other, _) in zip(first, again, strict=True):
            np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
            np.testing.assert_array_equal(one.class_ids, other.class_ids)
