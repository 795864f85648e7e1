"""Optimisation profiles: ranges of shapes that an engine was tuned for, and which one to run a shape with.

TensorRT does not choose. The first profile that fits is often the widest and slowest; the one tuned nearest to the
shape is the fast one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from vision.errors import ModelError

if TYPE_CHECKING:
    from vision.config import ModelSpec, ProfileSpec

Shape: TypeAlias = tuple[int, ...]

BATCH_BANDS = (1, 4, 16, 64, 256)
"""Edges of the batch ranges that get a profile each: kernels tuned for 64 frames lose at 1, and the other way."""


@dataclass(frozen=True, slots=True)
class Range:
    """Least, best and greatest shape of one input, or least, best and greatest values of one shape-tensor input."""

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ModelError(f"min {self.min}, opt {self.opt} and max {self.max} differ in their number of dimensions")
        if not all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise ModelError(f"a range needs min <= opt <= max, got {self.min}, {self.opt}, {self.max}")

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
        """Return True if every given input lies in its range. Inputs that the profile does not know never do."""
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
        greatest = sum(math.prod(each.max) for each in self.shapes.values())
        return greatest, greatest - sum(math.prod(each.min) for each in self.shapes.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {each}" for name, each in {**self.shapes, **self.values}.items())


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """Index of the profile that contains `shapes` and is tuned nearest to them.

    Profiles may overlap. Ties go to the smaller greatest volume, then to the narrower range, then to the lower index.

    Raises:
        ModelError: none contains them; the message lists what each allows.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.contains(shapes)]
    if not fitting:
        wanted = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        allowed = "; ".join(f"{index}: {profile}" for index, profile in enumerate(profiles))
        raise ModelError(
            f"no profile of the engine takes {wanted}; it has {allowed or 'none'}",
            hint="raise `detect: {max_batch: ...}` or widen `profiles` in model.yaml; the engine is built again",
        )
    return min(fitting, key=lambda index: (profiles[index].cost(shapes), *profiles[index].extent(), index))


def batch_bands(max_batch: int) -> tuple[tuple[int, int, int], ...]:
    """(min, opt, max) of the batch for 1–4, 4–16, 16–64, … as far as `max_batch` needs them.

    `opt` is the top of a band and, in the last one, `max_batch`: where a busy site runs. Bands share their edges, so
    that the batch on an edge is served by the profile that was tuned for it.
    """
    if max_batch < 1:
        raise ValueError(f"max_batch is at least 1, got {max_batch}")
    if max_batch == 1:
        return ((1, 1, 1),)
    bands = []
    for low, high in itertools.pairwise(BATCH_BANDS):
        top = max_batch if high == BATCH_BANDS[-1] else min(high, max_batch)
        bands.append((low, top, top))
        if max_batch <= high:
            break
    return tuple(bands)


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Batch sizes that a detector runs; a batch goes into the next larger one, its other rows empty.

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


@dataclass(frozen=True, slots=True)
class _Given:
    """A `ProfileSpec` that no model.yaml contains."""

    batch: tuple[int, int, int]
    height: None = None
    width: None = None
    shapes: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)
    values: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)


def frame_input(inputs: Sequence[NetworkInput]) -> NetworkInput:
    """Return the input that takes frames: the first with four dimensions, (batch, channels, height, width).

    Raises:
        ModelError: there is none.
    """
    for each in inputs:
        if len(each.shape) == 4 and not each.is_shape_tensor:
            return each
    listed = ", ".join(f"{each.name} {each.shape}" for each in inputs) or "none"
    raise ModelError(f"expected an input of shape (batch, channels, height, width), the model's inputs are {listed}")


def make_profiles(
    inputs: Sequence[NetworkInput],
    spec: ModelSpec,
    max_batch: int,
    *,
    fixed_batches: bool = False,
    one_size: bool = False,
    channels: int = 3,
) -> tuple[Profile, ...]:
    """Return the profiles of a model: those of its spec, or batch bands as far as `max_batch` needs them.

    Args:
        inputs: inputs of the ONNX file.
        spec: description of the model.
        max_batch: largest batch.
        fixed_batches: add a profile for each size of `batch_sizes` alone. A library that chooses kernels by rule
            chooses far better ones if it knows the shape.
        channels: number of channels that the input of frames must have.
        one_size: `max_batch` only: a DLA takes no layer with a free shape.

    Raises:
        ModelError: the spec, the ONNX file and `max_batch` do not agree.
    """
    frame = frame_input(inputs)
    given: Sequence[ProfileSpec | _Given] = spec.profiles or tuple(
        _Given(band) for band in _bands(frame, max_batch, fixed_batches=fixed_batches, one_size=one_size)
    )
    if one_size and any(each.batch[0] != each.batch[2] for each in given):
        raise ModelError(
            "a DLA takes no open batch, and `profiles` in model.yaml have one",
            hint=f"write `batch: [{max_batch}, {max_batch}, {max_batch}]` there, or leave `dla_core` out",
        )
    greatest = max(each.batch[2] for each in given)
    if greatest < max_batch:
        raise ModelError(
            f"max_batch is {max_batch}, and the widest of `profiles` in model.yaml ends at {greatest}",
            hint="lower `detect: {max_batch: ...}` or widen `profiles` in model.yaml",
        )
    return tuple(_profile(inputs, frame, spec, each, channels) for each in given)


def _bands(
    frame: NetworkInput, max_batch: int, *, fixed_batches: bool, one_size: bool
) -> tuple[tuple[int, int, int], ...]:
    fixed = frame.shape[0]
    if fixed < 0 and one_size:
        return ((max_batch, max_batch, max_batch),)
    if fixed < 0:
        exact = tuple((size, size, size) for size in batch_sizes(max_batch)) if fixed_batches else ()
        return tuple(dict.fromkeys((*batch_bands(max_batch), *exact)))
    if fixed != max_batch:
        raise ModelError(
            f"the model's batch is fixed to {fixed} in the ONNX file, and max_batch is {max_batch}",
            hint=f"set `detect: {{max_batch: {fixed}}}`, or export the model with an open batch dimension",
        )
    return ((fixed, fixed, fixed),)


def _profile(
    inputs: Sequence[NetworkInput],
    frame: NetworkInput,
    spec: ModelSpec,
    given: ProfileSpec | _Given,
    channels: int,
) -> Profile:
    shapes: dict[str, Range] = {}
    values: dict[str, Range] = {}
    for each in inputs:
        if each.is_shape_tensor:
            values[each.name] = _given(each, given.values, "values")
        elif each is frame:
            shapes[each.name] = _frame_range(each, spec, given, channels)
        else:
            shapes[each.name] = _other_range(each, given)
    for name in (*given.shapes, *given.values):
        if name not in shapes and name not in values:
            raise ModelError(f"`profiles` in model.yaml names the input {name}; the model has {_names(inputs)}")
    return Profile(shapes, values)


def _names(inputs: Sequence[NetworkInput]) -> str:
    return ", ".join(each.name for each in inputs)


def _given(each: NetworkInput, table: Mapping[str, tuple[Shape, Shape, Shape]], key: str) -> Range:
    if each.name not in table:
        raise ModelError(
            f"the ONNX file leaves {each.name} {each.shape} open, and model.yaml gives no {key} for it",
            hint=f"add `profiles: [{{batch: [1, 4, 8], {key}: {{{each.name}: [[...], [...], [...]]}}}}]` to model.yaml",
        )
    return Range(*table[each.name])


def _frame_range(frame: NetworkInput, spec: ModelSpec, given: ProfileSpec | _Given, channels: int) -> Range:
    high, wide = spec.input.height, spec.input.width
    heights, widths = given.height or (high, high, high), given.width or (wide, wide, wide)
    asked = (given.batch, (channels, channels, channels), heights, widths)
    for axis, of_model, wanted in zip(("batch", "channels", "height", "width"), frame.shape, asked, strict=True):
        if of_model >= 0 and wanted != (of_model, of_model, of_model):
            raise ModelError(
                f"input {frame.name}: {axis} is fixed to {of_model} in the ONNX file, and the profile asks for "
                f"{wanted[0] if wanted[0] == wanted[2] else list(wanted)}",
                hint="make `input` and `profiles` in model.yaml say what the file has, or export it with this one open",
            )
    low, best, top = zip(*asked, strict=True)
    return Range(low, best, top)


def _other_range(each: NetworkInput, given: ProfileSpec | _Given) -> Range:
    """Return the range of a fixed input, or of one whose free first dimension follows the batch.

    Others must be given.
    """
    if each.name in given.shapes:
        asked = _given(each, given.shapes, "shapes")
        for of_model, low, top in zip(each.shape, asked.min, asked.max, strict=False):
            if len(asked.min) != len(each.shape) or (of_model >= 0 and not low == top == of_model):
                raise ModelError(
                    f"input {each.name} is {each.shape} in the ONNX file, and the profile asks for {asked}"
                )
        return asked
    if all(size >= 0 for size in each.shape[1:]):
        return Range(*((size if each.shape[0] < 0 else each.shape[0], *each.shape[1:]) for size in given.batch))
    return _given(each, given.shapes, "shapes")
