"""Code that all back-ends share for second models, which classify detected objects in crops of frames.

It contains the geometry of crops, and the activation and checks of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.config.model_spec import ClassifierSpec, CropSpec
from vision.detect.reference.letterbox import Letterbox
from vision.errors import ModelError

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, and bottom of a rectangle in whole pixels. Right and bottom are exclusive."""

_Floats: TypeAlias = NDArray[np.float32]

_ROUNDING: Final = 1e-3  # tolerance for scores that were rounded to float16


@dataclass(frozen=True, slots=True)
class CropFit:
    """Position of an object's pixels, scaled from a frame, in the input of a classifier, in model pixels."""

    left: int
    top: int
    width: int
    height: int
    shrinks: bool
    """True if scaling makes the part smaller along both axes. Then each model pixel is a mean of source pixels."""

    @staticmethod
    def of(spec: CropSpec, width_px: int, height_px: int) -> CropFit:
        """Return the position for a part of a frame of `width_px` x `height_px` source pixels."""
        left, top, width, height = 0, 0, spec.width, spec.height
        if spec.fit == "letterbox":
            letterbox = Letterbox.fit(width_px, height_px, spec.width, spec.height, "center")
            left, top = letterbox.pad_x_px, letterbox.pad_y_px
            width, height = letterbox.content(width_px, height_px)
        return CropFit(left, top, width, height, height < height_px and width < width_px)


def require_part(box: Box, width_px: int, height_px: int) -> None:
    """Raise `ValueError` if `box` is empty, or is not completely within a frame of this size."""
    left, top, right, bottom = box
    if not (0 <= left < right <= width_px and 0 <= top < bottom <= height_px):
        raise ValueError(f"expected a part of {width_px}x{height_px} pixels, got {box}")


def _softmax(values: _Floats) -> _Floats:
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _sigmoid(values: _Floats) -> _Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0))), np.float32)


ACTIVATIONS: Final[Mapping[str, Callable[[_Floats], _Floats]]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "none": lambda values: values,
}
"""Functions that convert the outputs (N, classes) of a classifier to scores from 0 to 1."""


def output_mismatch(spec: ClassifierSpec, outputs: str) -> ModelError:
    """Return the error for a model whose outputs, described by `outputs`, do not fit the spec."""
    return ModelError(
        f"{spec.name}: expected one output, float32 (batch, {len(spec.classes)}), with a score for each class; the "
        f"model has {outputs}",
        hint="`classes` in model.yaml must list the classes in the model's order",
        code="output-mismatch",
    )


def require_scores(spec: ClassifierSpec, scores: _Floats) -> None:
    """Check the scores, after the activation, that a classifier computes for a test input.

    Raises:
        ModelError: a score is not finite, or is not from 0 to 1, usually because the spec lacks the activation.
    """
    if not np.isfinite(scores).all():
        raise ModelError(
            f"{spec.name}: the scores are not finite",
            hint="set `cascade: {precision: fp32}`, or export the model again",
            code="not-finite",
        )
    low, high = float(scores.min()), float(scores.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise ModelError(
            f"{spec.name}: expected scores from 0 to 1, got {low:.3g} to {high:.3g}",
            hint="write `head: {activation: softmax}` or `sigmoid` in model.yaml",
            code="scores-out-of-range",
        )
