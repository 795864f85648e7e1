"""Optimisation profiles: ranges of shapes that an engine was tuned for, and which one to run a shape with.

TensorRT does not choose. The first profile that fits is often the widest and slowest; the one tuned nearest to the
shape is the fast one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vision.config import ModelSpec, ProfileSpec
from vision.errors import ModelError

if TYPE_CHECKING:
    from vision.engine.build_plan import BuildPlan

Shape: TypeAlias = tuple[int, ...]

BATCH_BANDS = (1, 4, 16, 64)
"""Edges of the batch ranges that get a profile each: kernels tuned for 64 frames lose at 1, and the other way."""


@dataclass(frozen=True, slots=True)
class Range:
    """Minimum, best and maximum shape of one input, or values of one shape-tensor input, in ascending order."""

    min: Shape
    opt: Shape
    max: Shape

    def __contains__(self, shape: object) -> bool:
        return (
            isinstance(shape, tuple)
            and len(shape) == len(self.min)
            and all(low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True))
        )

    def __str__(self) -> str:
        low, best, high = ("x".join(map(str, shape)) or "scalar" for shape in (self.min, self.opt, self.max))
        return f"{low} .. {high} (best {best})" if low != high else high


@dataclass(frozen=True, slots=True)
class Profile:
    """One optimisation profile of an engine: a range for each input; `values` for shape-tensor inputs."""

    shapes: Mapping[str, Range]
    values: Mapping[str, Range]

    def contains(self, shapes: Mapping[str, Shape]) -> bool:
        """Return True if every given input lies in its range. Unknown inputs never do."""
        return all(name in self.shapes and shape in self.shapes[name] for name, shape in shapes.items())

    def cost(self, shapes: Mapping[str, Shape]) -> float:
        """Return the distance from the best shapes: sum of ``|log(size / opt)|`` over the dimensions."""
        return sum(
            abs(math.log(max(size, 1) / max(best, 1)))
            for name, shape in shapes.items()
            for size, best in zip(shape, self.shapes[name].opt, strict=True)
        )

    def extent(self) -> tuple[int, int]:
        """Return the elements of all inputs at their largest, and how many fewer they are at their smallest."""
        largest = sum(math.prod(sizes.max) for sizes in self.shapes.values())
        return largest, largest - sum(math.prod(sizes.min) for sizes in self.shapes.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {sizes}" for name, sizes in {**self.shapes, **self.values}.items())


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """Return the index of the profile that contains `shapes` and is tuned nearest to them.

    Profiles may overlap. Ties go to the smaller largest volume, then to the narrower range, then to the lower index.
    If none contains `shapes`, the `ModelError` lists what each allows.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.contains(shapes)]
    if not fitting:
        listed = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        allowed = "; ".join(f"{index}: {profile}" for index, profile in enumerate(profiles))
        raise ModelError(
            f"no profile of the engine takes {listed}; it has {allowed or 'none'}",
            hint="raise `detect: {max_batch: ...}` or widen `profiles` in model.yaml; the engine is built again",
            code="no-profile",
        )
    return min(fitting, key=lambda index: (profiles[index].cost(shapes), *profiles[index].extent(), index))


def batch_bands(max_batch: int) -> tuple[tuple[int, int, int], ...]:
    """Return (min, opt, max) of the batch for 1-4, 4-16, 16-64 and so on, as far as `max_batch` needs them.

    `opt` is the top of a band and, in the last one, `max_batch`, which busy systems run. Bands share their edges, so
    that the batch on an edge is served by the profile that was tuned for it.
    """
    if max_batch == 1:
        return ((1, 1, 1),)
    inner = [edge for edge in BATCH_BANDS if edge < max_batch]
    return tuple((low, top, top) for low, top in itertools.pairwise((*inner, max_batch)))


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Return the batch sizes that a detector runs; a batch goes into the next larger one, its other rows empty.

    Powers of two: each size costs a context and a graph in every slot, seconds at start, and an empty row costs little,
    since batches of a camera system are either small, where the GPU is not full, or `max_batch`.
    """
    return tuple(sorted({*(1 << power for power in range(max_batch.bit_length())), max_batch}))


# ------------------------------------------------------------------------------------------------ making profiles


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """An input as the ONNX file declares it."""

    name: str
    shape: Shape  # -1 where the file leaves a dimension open
    is_shape_tensor: bool = False  # its values decide shapes


def frame_input(inputs: Sequence[NetworkInput]) -> NetworkInput:
    """Return the input that takes frames: the first with four dimensions, (batch, channels, height, width)."""
    for tensor in inputs:
        if len(tensor.shape) == 4 and not tensor.is_shape_tensor:
            return tensor
    listed = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in inputs) or "none"
    raise ModelError(
        f"expected an input of shape (batch, channels, height, width), the model's inputs are {listed}",
        code="no-frame-input",
    )


def make_profiles(
    inputs: Sequence[NetworkInput], spec: ModelSpec, plan: BuildPlan, *, channels: int = 3
) -> tuple[Profile, ...]:
    """Return the profiles of a model: those of its spec, or batch bands as far as `plan.max_batch` needs them.

    A library that chooses kernels by rule (`plan.fixed_batches`) chooses far better ones if the shape is fixed, so each
    size of `batch_sizes` also gets a profile alone. A DLA takes no layer with a free shape, and gets one batch size.
    The input of frames must have `channels` channels. Raises `ModelError` if spec, ONNX file and plan do not agree.
    """
    frame, max_batch = frame_input(inputs), plan.max_batch
    specs = spec.profiles or [ProfileSpec.model_validate({"batch": band}) for band in _bands(frame.shape[0], plan)]
    if plan.on_dla and any(profile.batch[0] != profile.batch[2] for profile in specs):
        raise ModelError(
            "a DLA takes no open batch, and `profiles` in model.yaml have one",
            hint=f"write `batch: [{max_batch}, {max_batch}, {max_batch}]` there, or leave `dla_core` out",
            code="dla-open-batch",
        )
    largest = max(profile.batch[2] for profile in specs)
    if largest < max_batch:
        raise ModelError(
            f"max_batch is {max_batch}, and the widest of `profiles` in model.yaml ends at {largest}",
            hint="lower `detect: {max_batch: ...}` or widen `profiles` in model.yaml",
            code="batch-too-large",
        )
    return tuple(_profile(inputs, frame, spec, profile, channels) for profile in specs)


def _bands(fixed: int, plan: BuildPlan) -> tuple[tuple[int, int, int], ...]:
    """Return the batch bands of a model whose batch is `fixed` in the ONNX file, or negative."""
    if fixed >= 0 and fixed != plan.max_batch:
        raise ModelError(
            f"the model's batch is fixed to {fixed} in the ONNX file, and max_batch is {plan.max_batch}",
            hint=f"set `detect: {{max_batch: {fixed}}}`, or export the model with an open batch dimension",
            code="batch-fixed",
        )
    if fixed >= 0 or plan.on_dla:
        return ((plan.max_batch,) * 3,)
    exact = [(size, size, size) for size in batch_sizes(plan.max_batch)] if plan.fixed_batches else []
    return tuple(dict.fromkeys((*batch_bands(plan.max_batch), *exact)))


def _profile(
    inputs: Sequence[NetworkInput], frame: NetworkInput, spec: ModelSpec, profile: ProfileSpec, channels: int
) -> Profile:
    shapes: dict[str, Range] = {}
    values: dict[str, Range] = {}
    for tensor in inputs:
        if tensor.is_shape_tensor:
            values[tensor.name] = _given(tensor, profile.values, "values")
        elif tensor is frame:
            shapes[tensor.name] = _frame_range(tensor, spec, profile, channels)
        else:
            shapes[tensor.name] = _other_range(tensor, profile)
    for name in (*profile.shapes, *profile.values):
        if name not in shapes and name not in values:
            names = ", ".join(tensor.name for tensor in inputs)
            raise ModelError(
                f"`profiles` in model.yaml names the input {name}; the model has {names}", code="unknown-input"
            )
    return Profile(shapes, values)


def _given(tensor: NetworkInput, table: Mapping[str, tuple[Shape, Shape, Shape]], key: str) -> Range:
    if tensor.name not in table:
        raise ModelError(
            f"the ONNX file leaves {tensor.name} {tensor.shape} open, and model.yaml gives no {key} for it",
            hint=f"add `profiles: [{{batch: [1, 4, 8], {key}: {{{tensor.name}: [[...], [...], [...]]}}}}]` to it",
            code="profile-missing",
        )
    return Range(*table[tensor.name])


def _frame_range(frame: NetworkInput, spec: ModelSpec, profile: ProfileSpec, channels: int) -> Range:
    heights, widths = profile.height or (spec.input.height,) * 3, profile.width or (spec.input.width,) * 3
    extents = (profile.batch, (channels,) * 3, heights, widths)
    for axis, fixed, extent in zip(("batch", "channels", "height", "width"), frame.shape, extents, strict=True):
        if fixed >= 0 and extent != (fixed,) * 3:
            raise ModelError(
                f"input {frame.name}: {axis} is fixed to {fixed} in the ONNX file, and the profile asks for "
                f"{extent[0] if extent[0] == extent[2] else list(extent)}",
                hint="correct `input` and `profiles` in model.yaml, or export the model with this dimension open",
                code="dimension-fixed",
            )
    low, best, top = zip(*extents, strict=True)
    return Range(low, best, top)


def _other_range(tensor: NetworkInput, profile: ProfileSpec) -> Range:
    """Return the range of an input that is fixed, follows the batch in its first dimension, or is in the profile."""
    shape = tensor.shape
    if tensor.name not in profile.shapes and all(size >= 0 for size in shape[1:]):
        return Range(*((size if shape[0] < 0 else shape[0], *shape[1:]) for size in profile.batch))
    given = _given(tensor, profile.shapes, "shapes")
    ends = zip(shape, given.min, given.max, strict=False)
    if len(given.min) != len(shape) or any(fixed >= 0 and not low == top == fixed for fixed, low, top in ends):
        raise ModelError(
            f"input {tensor.name} is {shape} in the ONNX file, and the profile asks for {given}", code="dimension-fixed"
        )
    return given
