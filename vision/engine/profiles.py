"""Optimization profiles of an engine, and functions that create them and choose one for given input shapes.

A profile is a range of input shapes, with one shape for which the engine is tuned. TensorRT does not choose a profile
itself. The first profile that fits is often the widest and slowest. The fastest is the profile that is tuned for the
nearest shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vision.config import AnySpec, ProfileSpec
from vision.errors import ModelError

if TYPE_CHECKING:
    from vision.engine.build_plan import BuildPlan

Shape: TypeAlias = tuple[int, ...]

BATCH_BANDS = (1, 4, 16, 64)
"""Limits of batch size ranges. Each range has a profile, because kernels tuned for 64 frames are slow for 1 frame."""


@dataclass(frozen=True, slots=True)
class Range:
    """Minimum, optimum, and maximum of the shape of one input, or of the values of an input that determines shapes."""

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
    """Optimization profile: ranges of shapes for all inputs, and ranges of values for inputs that determine shapes."""

    shapes: Mapping[str, Range]
    values: Mapping[str, Range]

    def contains(self, shapes: Mapping[str, Shape]) -> bool:
        """Return True if the profile has, for every input in `shapes`, a range that contains the shape of the input."""
        return all(name in self.shapes and shape in self.shapes[name] for name, shape in shapes.items())

    def cost(self, shapes: Mapping[str, Shape]) -> float:
        """Return the distance of `shapes` from the optimum: the sum of ``|log(size / opt)|`` over all dimensions."""
        return sum(
            abs(math.log(max(size, 1) / max(best, 1)))
            for name, shape in shapes.items()
            for size, best in zip(shape, self.shapes[name].opt, strict=True)
        )

    def extent(self) -> tuple[int, int]:
        """Return two numbers by which `choose_profile` orders equally near profiles.

        The first is the number of input values at the maximum shapes. The second is the difference between this number
        and the number of input values at the minimum shapes.
        """
        largest = sum(math.prod(sizes.max) for sizes in self.shapes.values())
        return largest, largest - sum(math.prod(sizes.min) for sizes in self.shapes.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {sizes}" for name, sizes in {**self.shapes, **self.values}.items())


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """Return the index of the profile that contains `shapes` and is tuned for the nearest shapes.

    If several profiles are equally near, choose the profile with the smallest maximum size, then with the narrowest
    range, and then with the lowest index.

    Raises:
        ModelError: no profile contains `shapes`. The error lists the ranges of all profiles.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.contains(shapes)]
    if not fitting:
        listed = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        allowed = "; ".join(f"{index}: {profile}" for index, profile in enumerate(profiles))
        raise ModelError(
            f"no profile of the engine contains {listed}; its profiles are {allowed or 'none'}",
            hint="raise `detect: {max_batch: ...}` or widen `profiles` in model.yaml; the engine is built again",
            code="no-profile",
        )
    return min(fitting, key=lambda index: (profiles[index].cost(shapes), *profiles[index].extent(), index))


def batch_bands(max_batch: int) -> tuple[tuple[int, int, int], ...]:
    """Return (min, opt, max) of the batch size for each range between the limits `BATCH_BANDS`, up to `max_batch`.

    `opt` is the upper limit of a range. In the last range, it is `max_batch`, the batch size of busy systems. Ranges
    share their limits, so that a batch whose size is a limit uses the profile that is tuned for this size.
    """
    if max_batch == 1:
        return ((1, 1, 1),)
    inner = [edge for edge in BATCH_BANDS if edge < max_batch]
    return tuple((low, top, top) for low, top in itertools.pairwise((*inner, max_batch)))


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Return the batch sizes that a detector runs. Other batches are padded with empty rows to the next larger size.

    The sizes are the powers of two up to `max_batch`, and `max_batch`. Each size needs a context and a graph for each
    batch that can be in flight, which takes seconds at the start. Empty rows take little time, because in a camera
    system a batch is either so small that the GPU is not fully used, or has `max_batch` frames.
    """
    return tuple(sorted({*(1 << power for power in range(max_batch.bit_length())), max_batch}))


# ------------------------------------------------------------------------------------------------ making profiles


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """Input of a network, as the ONNX file declares it."""

    name: str
    shape: Shape  # -1 means a dynamic dimension
    is_shape_tensor: bool = False  # True if its values determine shapes


def frame_input(inputs: Sequence[NetworkInput]) -> NetworkInput:
    """Return the input for frames, the first input with four dimensions. Raise `ModelError` if there is none."""
    for tensor in inputs:
        if len(tensor.shape) == 4 and not tensor.is_shape_tensor:
            return tensor
    listed = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in inputs) or "none"
    raise ModelError(
        f"expected an input of shape (batch, channels, height, width); the model's inputs are {listed}",
        code="no-frame-input",
    )


def make_profiles(
    inputs: Sequence[NetworkInput], spec: AnySpec, plan: BuildPlan, *, channels: int = 3
) -> tuple[Profile, ...]:
    """Create the profiles of a model from its spec or, if the spec has no profiles, from ranges of batch sizes.

    If the spec has no profiles, the profiles are:

    - one for each range of `batch_bands`.
    - one for a single frame, the usual batch of one or two cameras.
    - one for each size of `batch_sizes` if `plan.fixed_batches` is True, because a library that selects kernels by
      rules selects much better kernels if the shape is fixed.

    If the ONNX file has a fixed batch size, or the plan is for a DLA, which supports only fixed shapes, the only
    profile has the batch size `plan.max_batch`. The input for frames must have `channels` channels.

    Raises:
        ModelError: the spec, the ONNX file, and the plan contradict each other.
    """
    frame, max_batch = frame_input(inputs), plan.max_batch
    specs = spec.profiles or [ProfileSpec.model_validate({"batch": band}) for band in _bands(frame.shape[0], plan)]
    if plan.on_dla and any(profile.batch[0] != profile.batch[2] for profile in specs):
        raise ModelError(
            "a DLA needs a fixed batch size, but `profiles` in model.yaml have a range",
            hint=f"write `batch: [{max_batch}, {max_batch}, {max_batch}]` there, or remove `dla_core`",
            code="dla-open-batch",
        )
    largest = max(profile.batch[2] for profile in specs)
    if largest < max_batch:
        raise ModelError(
            f"max_batch is {max_batch}, but the largest batch of `profiles` in model.yaml is {largest}",
            hint="lower `detect: {max_batch: ...}` or widen `profiles` in model.yaml",
            code="batch-too-large",
        )
    return tuple(_profile(inputs, frame, spec, profile, channels) for profile in specs)


def _bands(fixed: int, plan: BuildPlan) -> tuple[tuple[int, int, int], ...]:
    """Return (min, opt, max) of the batch size for each profile.

    `fixed` is the batch size in the ONNX file, or -1 if the batch size is dynamic.

    Raises:
        ModelError: the batch size is fixed, and differs from `plan.max_batch`.
    """
    if fixed >= 0 and fixed != plan.max_batch:
        raise ModelError(
            f"the model's batch is fixed to {fixed} in the ONNX file, but max_batch is {plan.max_batch}",
            hint=f"set `detect: {{max_batch: {fixed}}}`, or export the model with a dynamic batch dimension",
            code="batch-fixed",
        )
    if fixed >= 0 or plan.on_dla:
        return ((plan.max_batch,) * 3,)
    exact = [(size, size, size) for size in (batch_sizes(plan.max_batch) if plan.fixed_batches else (1,))]
    return tuple(dict.fromkeys((*batch_bands(plan.max_batch), *exact)))


def _profile(
    inputs: Sequence[NetworkInput], frame: NetworkInput, spec: AnySpec, profile: ProfileSpec, channels: int
) -> Profile:
    shapes: dict[str, Range] = {}
    values: dict[str, Range] = {}
    for tensor in inputs:
        if tensor.is_shape_tensor:
            values[tensor.name] = _value_range(tensor, spec, profile)
        elif tensor is frame:
            shapes[tensor.name] = _frame_range(tensor, spec, profile, channels)
        else:
            shapes[tensor.name] = _other_range(tensor, profile)
    for name in (*profile.shapes, *profile.values):
        if name not in shapes and name not in values:
            names = ", ".join(tensor.name for tensor in inputs)
            raise ModelError(
                f"`profiles` in model.yaml contain the unknown input {name}; the model has {names}",
                code="unknown-input",
            )
    return Profile(shapes, values)


def _value_range(tensor: NetworkInput, spec: AnySpec, profile: ProfileSpec) -> Range:
    """Return the range of the values of an input that determines shapes.

    If the profile has no range, the minimum, the optimum, and the maximum are the values in `input.constants` of
    model.yaml.

    Raises:
        ModelError: model.yaml has no values for the input, or the values are not whole numbers.
    """
    if tensor.name in profile.values or tensor.name not in spec.input.constants:
        return _given(tensor, profile.values, "values")
    return Range(*[shape_values(spec, tensor.name)] * 3)


def shape_values(spec: AnySpec, name: str) -> Shape:
    """Return the values of an input that determines shapes, from `input.constants` of model.yaml.

    Raises:
        ModelError: the values are not whole numbers.
    """
    given = spec.input.constants[name]
    if any(value != int(value) for value in given):
        raise ModelError(
            f"{spec.name}: the input {name} determines shapes, so expected whole numbers, got {list(given)}",
            hint=f"correct `input: {{constants: {{{name}: [...]}}}}` in model.yaml",
            code="shape-values",
        )
    return tuple(map(int, given))


def _given(tensor: NetworkInput, table: Mapping[str, tuple[Shape, Shape, Shape]], key: str) -> Range:
    if tensor.name not in table:
        raise ModelError(
            f"input {tensor.name} {tensor.shape} is dynamic in the ONNX file, but model.yaml has no {key} for it",
            hint=f"add `profiles: [{{batch: [1, 4, 8], {key}: {{{tensor.name}: [[...], [...], [...]]}}}}]` there"
            + (f", or `constants: {{{tensor.name}: [...]}}` under `input`" if key == "values" else ""),
            code="profile-missing",
        )
    return Range(*table[tensor.name])


def _frame_range(frame: NetworkInput, spec: AnySpec, profile: ProfileSpec, channels: int) -> Range:
    heights, widths = profile.height or (spec.input.height,) * 3, profile.width or (spec.input.width,) * 3
    axes = {"batch": profile.batch, "channels": (channels,) * 3, "height": heights, "width": widths}
    if frame.shape[3] == 3 and frame.shape[1] != 3:  # (batch, height, width, channels)
        axes = {name: axes[name] for name in ("batch", "height", "width", "channels")}
    extents = tuple(axes.values())
    for axis, fixed, extent in zip(axes, frame.shape, extents, strict=True):
        if fixed >= 0 and extent != (fixed,) * 3:
            raise ModelError(
                f"input {frame.name}: {axis} is fixed to {fixed} in the ONNX file, but the profile requests "
                f"{extent[0] if extent[0] == extent[2] else list(extent)}",
                hint="correct `input` and `profiles` in model.yaml, or export the model with this dimension dynamic",
                code="dimension-fixed",
            )
    low, best, top = zip(*extents, strict=True)
    return Range(low, best, top)


def _other_range(tensor: NetworkInput, profile: ProfileSpec) -> Range:
    """Return the range of an input that is not for frames: from the profile, or else from its shape in the file."""
    shape = tensor.shape
    if not shape:
        return Range((), (), ())
    if tensor.name not in profile.shapes and all(size >= 0 for size in shape[1:]):
        return Range(*((size if shape[0] < 0 else shape[0], *shape[1:]) for size in profile.batch))
    given = _given(tensor, profile.shapes, "shapes")
    ends = zip(shape, given.min, given.max, strict=False)
    if len(given.min) != len(shape) or any(fixed >= 0 and not low == top == fixed for fixed, low, top in ends):
        raise ModelError(
            f"input {tensor.name} is {shape} in the ONNX file, but the profile requests {given}", code="dimension-fixed"
        )
    return given
