"""Functions for the inputs of a network: checks of the input for frames, and the values of constant inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.config import ModelSpec
from vision.errors import ModelError


def is_channels_last(shape: Sequence[object]) -> bool:
    """Return True if an input of this shape is (batch, height, width, 3), and False if (batch, 3, height, width)."""
    return shape[3] == 3 and shape[1] != 3


def require_levels(spec: ModelSpec) -> None:
    """Check that model.yaml does not normalize the pixels of a uint8 input, which holds levels from 0 to 255.

    Raises:
        ModelError: model.yaml normalizes the pixels.
    """
    size = spec.input
    if (size.scale, set(size.mean), set(size.std)) != (1.0, {0.0}, {1.0}):
        raise ModelError(
            f"{spec.name}: the model's input is uint8, which holds levels from 0 to 255, but `input` in model.yaml "
            f"normalizes them",
            hint="remove `scale`, `mean`, and `std` from model.yaml: such a model normalizes its input itself",
            code="uint8-normalized",
        )


def constant_input(
    spec: ModelSpec, name: str, shape: Sequence[int | str | None], dtype: str, batch: int
) -> NDArray[Any]:
    """Return the tensor for an input that is the same for every frame.

    Args:
        shape: shape in the file. If the size of the first axis is variable, it becomes `batch`. The size of every other
            variable axis becomes the number of values.

    Raises:
        ModelError: the values are neither in model.yaml nor known for inputs of this name, or do not fit the shape.
    """
    width, height = spec.input.width, spec.input.height
    known = {"orig_target_sizes": (width, height), "im_shape": (height, width), "scale_factor": (1, 1)}
    values = spec.input.constants.get(name, known.get(name))
    if values is None:
        raise ModelError(
            f"{spec.name}: the model has the additional input {name} {tuple(shape)}, whose values are not known",
            hint=f"write `constants: {{{name}: [...]}}` under `input` in model.yaml, with the values for a frame",
            code="unknown-input",
        )
    sides = [side if isinstance(side, int) and side >= 0 else None for side in shape]
    full = [side if side is not None else (len(values) if axis else batch) for axis, side in enumerate(sides)]
    try:
        return np.array(np.broadcast_to(np.array(values if full else values[0]), full), dtype, order="C")
    except ValueError as error:
        raise ModelError(
            f"{spec.name}: the input {name} has the shape {tuple(shape)}, which does not fit the values {list(values)}",
            hint=f"correct `input: {{constants: {{{name}: [...]}}}}` in model.yaml",
            code="constant-shape",
        ) from error
