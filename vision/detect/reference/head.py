"""Base class of heads. A head finds the scores and boxes in the outputs of one family of detectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final

import numpy as np

from vision.config import ModelSpec
from vision.detect.classes import COCO91, background_ids
from vision.detect.reference.decoder import Coding, Decoder, Grid, Rules, logit_floor
from vision.detect.reference.extras import TASKS, expected_extra, is_clear
from vision.detect.reference.layout import Layout, Shape, in_words, is_size, with_batch
from vision.errors import ModelError

HEADS: Final[dict[str, type[Head]]] = {}
"""Every head by its kind. `vision.detect.reference.heads` fills it."""


class Head(ABC):
    """Reader of the outputs of one family of detectors. Every head is immutable and thread-safe."""

    coding: ClassVar[Coding]
    root: ClassVar[bool] = False
    center: ClassVar[tuple[float, float]] = (0.5, 0.0)
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    bins: ClassVar[int] = 0
    has_batch: ClassVar[bool] = True  # False if the outputs of this family never have a batch axis

    def __init__(self, spec: ModelSpec, class_count: int, score: float, classes: Sequence[int] | None = None) -> None:
        """Create the head.

        Args:
            class_count: number of classes in model.yaml.
            score: minimum score of a candidate.
            classes: ids of the classes to keep. None means all classes. Background classes are never kept.
        """
        self._spec = spec
        self._class_count = class_count
        sigmoid, softmax = spec.head.activation == "sigmoid", spec.head.activation == "softmax"
        least = score * score * (1 - 1e-6) if self.root else score
        wanted = set(range(class_count) if classes is None else classes) - set(background_ids(spec))
        sides = (spec.input.width, spec.input.height) * 2 if spec.head.box_scale == "fraction" else (1,) * 4
        strides = spec.head.strides or self.strides
        self.rules = Rules(
            coding="rotated" if spec.head.task == "obb" else self.coding,
            class_count=class_count,
            score=np.float32(score),
            floor=np.float32(logit_floor(least) if sigmoid else least),
            classes=np.array(sorted(wanted), np.intp),
            sigmoid=sigmoid,
            softmax=softmax,
            root=self.root,
            unit_px=np.array(sides, np.float32),
            strides=strides,
            grid=Grid.of(spec.input.width, spec.input.height, strides),
            center=self.center,
            bins=spec.head.bins or self.bins,
        )

    @property
    @abstractmethod
    def expected(self) -> str:
        """Text that describes the shapes of the outputs that this head reads."""

    @abstractmethod
    def _ways(self, shapes: Mapping[str, Shape]) -> Iterator[Layout]:
        """Yield each possible layout of outputs of these shapes, for any number of classes, the most likely first."""

    def without_batch(self, shapes: Mapping[str, Shape]) -> frozenset[str]:
        """Return the names of the outputs without a batch axis. Models with such outputs accept one frame at a time."""
        del shapes
        return frozenset()

    def fits(self, shapes: Mapping[str, Shape]) -> Layout | None:
        """Return the most likely layout for these shapes and the model's number of classes.

        Return None if no layout fits. With softmax, the outputs can have one more class at the end, which stands for
        the absence of an object.
        """
        counts = {None, self._class_count, self._class_count + self.rules.softmax}
        return next((way for way in self._ways(shapes) if way.classes in counts), None)

    def could_fit(self, shapes: Mapping[str, Shape]) -> bool:
        """Return True if the head can read outputs of these shapes.

        `shapes` are the shapes in the model file, in which outputs of some families have no batch axis.
        """
        without_batch = self.without_batch(shapes)
        return (self.has_batch or bool(without_batch)) and self.fits(with_batch(shapes, without_batch)) is not None

    def bind(self, shapes: Mapping[str, Shape]) -> Decoder:
        """Return the decoder for outputs of these shapes.

        Raises:
            ModelError: the head cannot read the outputs.
        """
        without_batch = self.without_batch(shapes)
        layout = self.fits(with_batch(shapes, without_batch))
        if layout is None:
            raise ModelError(
                f"{self._spec.name}: head `{self._spec.head.kind}` with {self._class_count} classes expects "
                f"{self.expected}{expected_extra(self._spec.head)}; the model has {in_words(shapes)}",
                hint=self._advice(shapes),
                code="head-mismatch",
            )
        rules = replace(self.rules, class_count=layout.classes or self._class_count)
        return Decoder(self._spec, rules, layout, without_batch)

    def _advice(self, shapes: Mapping[str, Shape]) -> str:
        task = self._spec.head.task
        heads = {kind: other(self._spec, self._class_count, 1.0) for kind, other in HEADS.items()}
        fitting = [kind for kind, head in heads.items() if kind in TASKS.get(task, heads) and head.could_fit(shapes)]
        if fitting:
            return f"by their shapes, these outputs can fit head `{'` or `'.join(fitting)}`; `vision check` tries them"
        shapes = with_batch(shapes, self.without_batch(shapes))
        if task == "detect" and (other_task := self._other_task(shapes)):
            return f"these outputs fit {other_task}"
        counts = [way.classes for way in self._ways(shapes) if way.classes is not None]
        if counts:
            known = ", for example `classes: coco91`" if counts[0] == len(COCO91) else ""
            if counts[0] == self._class_count + 1 and self._spec.head.kind in TASKS["obb"] and task == "detect":
                known = ", unless the last value is the angle of an oriented box (`task: obb`)"
            if self._spec.head.keypoints is not None:
                known = f", or `keypoints` must list more or fewer names than {len(self._spec.head.keypoints)}"
            return f"these outputs have {counts[0]} classes; `classes` in model.yaml must list the same number{known}"
        return "no head fits; `vision models` shows the outputs that each head expects"

    def _other_task(self, shapes: Mapping[str, Shape]) -> str:
        """Return text for an error message that names a head and a task that clearly fit the outputs.

        Return an empty string if there are none.
        """
        for task, kinds in TASKS.items():
            spec = self._spec.model_copy(update={"head": self._spec.head.model_copy(update={"task": task})})
            for kind in sorted(kinds, key=lambda kind: kind != self._spec.head.kind):
                layout = HEADS[kind](spec, self._class_count, 1.0).fits(shapes)
                if layout is not None and is_clear(spec, layout):
                    return f"head `{kind}` with `task: {task}`"
        return ""

    @property
    def _sizes(self) -> list[tuple[int, int]]:
        """Numbers of rows and columns of cells, for each stride."""
        size = self._spec.input
        return [(-(-size.height // stride), -(-size.width // stride)) for stride in self.rules.strides]

    @property
    def _cells(self) -> int:
        return len(self.rules.grid.strides)

    def _per_cell(self, shapes: Mapping[str, Shape], level: tuple[int, int]) -> dict[str, tuple[int | None, bool]]:
        """Find the outputs with values for each cell of one stride, either a row per cell or a map per value.

        Args:
            level: numbers of rows and columns of cells of the stride.

        Returns:
            By output name, the number of values per cell (None if the model does not fix it), and True if the output
            contains maps.
        """
        rows, columns = level
        found: dict[str, tuple[int | None, bool]] = {}
        for name, shape in shapes.items():
            if len(shape) == 3 and is_size(shape[1], rows * columns):
                found[name] = (shape[2], False)
            elif len(shape) == 4 and is_size(shape[2], rows) and is_size(shape[3], columns):
                found[name] = (shape[1], True)
        return found
