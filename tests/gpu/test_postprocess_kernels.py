"""Compare ``postprocess.cu`` with the heads, NMS, and `to_detections` of the reference."""

from __future__ import annotations

from collections.abc import Mapping
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
from vision.types import Detections

SIZES = [(480, 640), (77, 33), (64, 96), (1, 1), (4320, 7680), None]
ROUNDING = (
    1e-6  # of float32, 6e-8, over the few operations of a score or a coordinate; 2.4e-7 is the most that was seen
)
CELLS = 12 * 8 + 6 * 4 + 3 * 2  # of a 96x64 input, strides 8, 16, 32

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One network's head with one kind of input."""

    kind: str  # of the head; "nanodet, one output" and "efficient nms" are forms of others
    classes: int = 7
    half: bool = False
    sigmoid: bool = False
    fraction: bool = False
    score: float = 0.3
    iou: float = 0.5
    class_aware: bool = True
    candidates: int = 1024
    objects: int = 300
    wanted: tuple[int, ...] | None = None
    rows: int = 200  # boxes, where the head does not say
    content: Literal["random", "ties", "nothing", "all", "same box", "not numbers"] = "random"

    @property
    def spec(self) -> ModelSpec:
        head = {"nanodet, one output": "nanodet", "efficient nms": "end-to-end"}.get(self.kind, self.kind)
        return ModelSpec(
            name="test",
            file="test.onnx",
            input=InputSpec(width=96, height=64),
            head=HeadSpec(
                kind=head,  # type: ignore[arg-type]
                activation="sigmoid" if self.sigmoid else "none",
                box_scale="fraction" if self.fraction else "pixels",
            ),
            classes=tuple(f"class {index}" for index in range(self.classes)),
            nms=NmsSpec(
                iou_threshold=self.iou,
                class_aware=self.class_aware,
                max_candidates=self.candidates,
                max_objects=self.objects,
            ),
            licence="none",
        )

    def scores(self, random: np.random.Generator, *shape: int) -> NDArray[np.float64]:
        """Return raw scores: logits if the head has an activation."""
        values = random.random(shape) ** 2
        if (
            self.sigmoid
        ):  # no two alike, nor so near that the last bit of exp, which libraries differ in, could order them
            values = ((random.permutation(values.size) + 0.5) / values.size).reshape(shape) ** 2
        if self.content == "nothing":
            values[:] = 0.01
        if self.content == "all":
            values[:] = 0.5
        if self.content == "ties":
            values = np.round(values * 8) / 8
        if self.content == "not numbers":
            values[random.random(shape) < 0.5] = np.nan
        if self.sigmoid:
            return np.log((values + 1e-6) / (1 - values + 1e-6))
        return values

    def boxes(self, random: np.random.Generator, *shape: int, corners: bool = False) -> NDArray[np.float64]:
        """Return boxes as center and size, or as corners. Some have no area or are far outside of the frame."""
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
                name: np.ascontiguousarray(value, real if value.dtype.kind == "f" else np.int32)
                for name, value in made.items()
            }

    def _raw(self, batch: int, random: np.random.Generator) -> Arrays:
        rows, classes = self.rows, self.classes
        if self.kind.startswith("nanodet"):
            scores, sides = self.scores(random, batch, CELLS, classes), random.normal(size=(batch, CELLS, 44)) * 3
            if self.kind == "nanodet":
                return {"scores": scores, "distances": sides}
            return {"both": np.concatenate([scores, sides], axis=-1)}
        if self.kind == "yolov5":
            parts = [self.boxes(random, batch, rows), self.scores(random, batch, rows, 1 + classes)]
            return {"output": np.concatenate(parts, axis=-1)}
        if self.kind == "yolov8":
            parts = [self.boxes(random, batch, rows), self.scores(random, batch, rows, classes)]
            return {"output": np.concatenate(parts, axis=-1).transpose(0, 2, 1)}
        if self.kind == "rt-detr":
            return {"boxes": self.boxes(random, batch, rows), "logits": self.scores(random, batch, rows, classes)}
        return self._rows(batch, random)

    def _rows(self, batch: int, random: np.random.Generator) -> Arrays:
        """Return the rows of a head that has one class per box."""
        rows = self.rows
        corners = self.boxes(random, batch, rows, corners=True)
        named = random.integers(-1, self.classes + 1, (batch, rows))
        if self.kind == "end-to-end":
            parts = [corners, self.scores(random, batch, rows, 1), named[..., None].astype(float)]
            return {"output": np.concatenate(parts, axis=-1)}
        numbers, scores = random.integers(0, rows + 1, (batch, 1)), self.scores(random, batch, rows)
        return {"num_dets": numbers, "det_boxes": corners, "det_scores": scores, "det_classes": named}


KINDS = ("nanodet", "nanodet, one output", "yolov5", "yolov8", "end-to-end", "efficient nms", "rt-detr")

CASES = [
    *(Case(kind, half=half) for kind in KINDS for half in (False, True)),
    *(Case(kind, sigmoid=True) for kind in KINDS),
    *(Case(kind, fraction=True) for kind in ("yolov5", "yolov8", "end-to-end", "rt-detr")),
    *(Case(kind, content="ties") for kind in KINDS),
    *(Case(kind, content="not numbers") for kind in KINDS),
    *(Case(kind, content="nothing") for kind in ("nanodet", "yolov8", "rt-detr")),
    *(Case(kind, content="all", score=0.5) for kind in ("nanodet", "yolov8", "rt-detr", "end-to-end")),
    *(Case("yolov8", content="same box", class_aware=aware) for aware in (False, True)),
    *(Case("yolov8", iou=iou, class_aware=False) for iou in (0.0, 1.0)),
    *(Case("yolov8", score=score) for score in (0.0, 1.0)),
    *(Case("yolov8", wanted=wanted) for wanted in ((0,), (2, 5), (6,))),
    *(Case("end-to-end", wanted=wanted) for wanted in ((0,), (2, 5))),
    *(Case("yolov8", candidates=candidates, objects=5, score=0.0) for candidates in (1, 2, 33, 64, 65, 1000)),
    Case("yolov8", candidates=8192, score=0.0, classes=80),  # work outside shared memory
    Case("yolov8", rows=3000, score=0.0),  # more pairs than can be written down
    Case("yolov8", rows=3000, score=0.0, half=True, content="ties"),
    Case("nanodet", classes=80, score=0.0, content="ties", candidates=300, objects=300, class_aware=False),
    Case("yolov5", classes=1, rows=1),
    Case("yolov8", classes=1, rows=1),
    Case("rt-detr", classes=80, rows=300, objects=300, sigmoid=True, score=0.01),
]


def reference(case: Case, outputs: Arrays, index: int, size: tuple[int, int]) -> Detections:
    spec = case.spec
    head = make_head(spec, case.classes, case.score, case.wanted)
    names = head.choose_outputs({name: value.shape for name, value in outputs.items()})
    fit = Letterbox.fit(size[1], size[0], 96, 64, spec.input.letterbox)
    with np.errstate(all="ignore"):
        candidates = head.decode([outputs[name][index].astype(np.float32) for name in names])
        if case.sigmoid:
            assert_rounding_decides_nothing(candidates.scores, case.score)
        return to_detections(candidates, spec.nms if head.needs_nms else None, fit, size[1], size[0])


def assert_rounding_decides_nothing(scores: NDArray[np.float32], threshold: float) -> None:
    """Return scores, best first, that differ from each other and from the threshold by more than `ROUNDING`."""
    steps = -np.diff([*scores.astype(np.float64), threshold]) / scores
    assert len(scores) == 0 or steps.min() > 2 * ROUNDING, "a case that may end either way tests nothing"


def name_of(case: Case) -> str:
    return f"plain {case.kind}" if case == Case(case.kind) else repr(case)[5:-1]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_detections_match_the_reference(device: Any, case: Case) -> None:
    outputs = case.outputs(len(SIZES), seed=CASES.index(case))
    head = make_head(case.spec, case.classes, case.score, case.wanted)
    found = postprocess(device, case.spec, head, outputs, SIZES)
    for index, (given, size) in enumerate(zip(found, SIZES, strict=True)):
        if size is None:
            assert len(given) == given.truncated_candidates == 0, "a row without a frame has objects"
            continue
        wanted = reference(case, outputs, index, size)
        assert (len(given), given.truncated_candidates) == (len(wanted), wanted.truncated_candidates)
        np.testing.assert_array_equal(given.class_ids, wanted.class_ids)
        np.testing.assert_allclose(given.scores, wanted.scores, rtol=ROUNDING)
        np.testing.assert_allclose(given.boxes_xyxy, wanted.boxes_xyxy, rtol=0, atol=ROUNDING * max(size))


def test_results_are_deterministic(device: Any) -> None:
    """The order in which threads write candidates must not change the result."""
    case = Case("yolov8", rows=1500, content="ties", score=0.1, candidates=100)
    outputs = case.outputs(2, seed=1)
    head = make_head(case.spec, case.classes, case.score, None)
    first = postprocess(device, case.spec, head, outputs, [(480, 640), (64, 96)])
    for _ in range(5):
        again = postprocess(device, case.spec, head, outputs, [(480, 640), (64, 96)])
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
            np.testing.assert_array_equal(one.class_ids, other.class_ids)
