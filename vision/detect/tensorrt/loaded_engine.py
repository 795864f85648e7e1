"""An open engine with the specification of its model, functions for its inputs, and a timer for the start."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from vision.config import DetectConfig, ModelSpec
from vision.detect.reference.heads import Head
from vision.detect.reference.inputs import constant_input, is_channels_last, require_levels
from vision.engine.cache import default_folder
from vision.engine.profiles import Range, batch_sizes, shape_values
from vision.engine.runtime import Context, Engine
from vision.engine.tensors import Tensor
from vision.errors import ModelError
from vision.gpu.cuda import Stream

_FRAME_DTYPES: Final = ("float32", "float16", "uint8")


def kernel_cache() -> Path:
    """Return the folder in which compiled kernels are cached."""
    return default_folder().parent / "kernels"


def frame_input(engine: Engine, spec: ModelSpec) -> Tensor:
    """Return the input for frames, which is the only input with four axes in fp32, fp16, or uint8.

    Raises:
        ModelError: there is no such input, or more than one, or the input is uint8 and model.yaml normalizes the
            pixels.
    """
    inputs = [tensor for tensor in engine.inputs if not tensor.is_shape_io]
    frames = [tensor for tensor in inputs if len(tensor.shape) == 4 and tensor.dtype in _FRAME_DTYPES]
    if len(frames) != 1:
        listed = ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in inputs) or "none"
        raise ModelError(
            f"{spec.name}: expected one input for frames, (batch, 3, height, width) or (batch, height, width, 3) in "
            f"fp32, fp16, or uint8; the engine has {listed}",
            hint="export the model with one input for frames",
            code="input-mismatch",
        )
    if frames[0].dtype == "uint8":
        require_levels(spec)
    return frames[0]


def frame_shape(frames: Tensor, spec: ModelSpec, batch: int) -> tuple[int, ...]:
    """Return the shape of the input `frames` for `batch` frames."""
    size = spec.input
    if is_channels_last(frames.shape):
        return batch, size.height, size.width, 3
    return batch, frames.channels, size.height, size.width


def constants_of(engine: Engine, spec: ModelSpec, batch: int) -> dict[str, NDArray[Any]]:
    """Return the values of the inputs that are the same for every frame, by name.

    Raises:
        ModelError: the values of an input are unknown or do not fit the input, or `frame_input` raises this error.
    """
    frames = frame_input(engine, spec)
    others = [tensor for tensor in engine.inputs if not tensor.is_shape_io and tensor != frames]
    return {
        tensor.name: constant_input(
            spec, tensor.name, [side if side >= 0 else None for side in tensor.shape], tensor.dtype, batch
        )
        for tensor in others
    }


def input_shapes(engine: Engine, spec: ModelSpec, batch: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes, by name, of all inputs except those that determine shapes. For errors, see `constants_of`."""
    frames = frame_input(engine, spec)
    constants = {name: values.shape for name, values in constants_of(engine, spec, batch).items()}
    return {frames.name: frame_shape(frames, spec, batch), **constants}


@dataclass(slots=True)
class StartupTimer:
    """Timer for the start of a detector. `seconds` contains the duration of each phase of the start, by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a `with` block, and add its duration to the phase `name`."""
        start_ns = time.monotonic_ns()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + (time.monotonic_ns() - start_ns) / 1e9

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.2f} s ({parts})"


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An open engine, the specification and the head of its model, and the configuration of the detector."""

    engine: Engine
    spec: ModelSpec
    head: Head
    class_names: tuple[str, ...]
    detect: DetectConfig

    @property
    def frames(self) -> Tensor:
        """Input for frames. Raises `ModelError` as `frame_input` does."""
        return frame_input(self.engine, self.spec)

    @property
    def input_name(self) -> str:
        """Name of the input for frames. Raises `ModelError` as `frame_input` does."""
        return self.frames.name

    @property
    def last_channels(self) -> int:
        """Number of channels of each pixel in the memory of the input for frames.

        It is 0 if each channel is a separate plane.
        """
        frames = self.frames
        if is_channels_last(frames.shape):
            return 3
        return frames.channels if frames.interleaved else 0

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of the input for frames, for `batch` frames."""
        return frame_shape(self.frames, self.spec, batch)

    def constants(self, batch: int) -> dict[str, NDArray[Any]]:
        """Return the values of inputs that are the same for every frame. Raise `ModelError` as `constants_of` does."""
        return constants_of(self.engine, self.spec, batch)

    def shapes_of_frame(self, shapes: Mapping[str, tuple[int, ...]], batch: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the outputs for one frame, from their `shapes` for a batch of `batch` frames, by name.

        The size -1 marks an axis of variable size.

        Raises:
            ModelError: the first axis of an output is not the batch, or an output lacks this axis and `batch` is not 1.
        """
        without_batch = self.head.without_batch(shapes)
        for output, shape in shapes.items():
            one_frame = output in without_batch
            if batch == 1 if one_frame else shape[:1] in {(batch,), (-1,)}:
                continue
            raise ModelError(
                f"{self.spec.name}: expected the batch size {batch} as the first axis of output {output}; its shape is "
                f"{shape}",
                hint="set `detect: {max_batch: 1}`" if one_frame else "export the model with a batch axis",
                code="output-without-batch",
            )
        return {name: shape if name in without_batch else shape[1:] for name, shape in shapes.items()}

    def batches(self) -> tuple[int, ...]:
        """Return the batch sizes up to `detect.max_batch`, as listed by `batch_sizes`, that the engine accepts.

        If the engine accepts none of them, return its largest batch size.
        """
        shapes = {size: input_shapes(self.engine, self.spec, size) for size in batch_sizes(self.detect.max_batch)}
        taken = tuple(size for size in shapes if any(p.contains(shapes[size]) for p in self.engine.profiles))
        return taken or (self.engine.max_batch,)

    def context(self, batch: int, stream: Stream) -> Context:
        """Create a context on a stream for one batch size, and set its input shapes.

        The caller must set the memory and the tensor addresses of the context.

        Raises:
            ModelError: the engine has no profile for these shapes, or the value of an input is unknown or invalid.
        """
        shapes = input_shapes(self.engine, self.spec, batch)
        profile = self.engine.choose(shapes)
        context = self.engine.create_context(profile, stream.address)
        for name, shape in shapes.items():
            context.set_shape(name, shape)
        for name, allowed in self.engine.profiles[profile].values.items():
            context.set_values(name, self.shape_values(name, allowed))
        return context

    def shape_values(self, name: str, allowed: Range) -> tuple[int, ...]:
        """Return the values of an input that determines shapes: `input.constants` of model.yaml, or else `allowed.opt`.

        Raises:
            ModelError: the values in `input.constants` are not whole numbers, or are outside of `allowed`.
        """
        if name not in self.spec.input.constants:
            return allowed.opt
        values = shape_values(self.spec, name)
        if values not in allowed:
            raise ModelError(
                f"{self.spec.name}: the input {name} has the values {list(values)}, but the engine allows {allowed}",
                hint=f"correct `input: {{constants: {{{name}: [...]}}}}`, or widen `profiles` in model.yaml",
                code="shape-values",
            )
        return values
