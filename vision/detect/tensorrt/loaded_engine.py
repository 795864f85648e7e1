"""Open engine with the specification of its model, from which the detector is built."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vision.config import DetectConfig, ModelSpec
from vision.detect.reference.heads import Head
from vision.engine.cache import default_folder
from vision.engine.profiles import batch_sizes
from vision.engine.runtime import Context, Engine
from vision.errors import ModelError
from vision.gpu.cuda import Stream


def kernel_cache() -> Path:
    """Return the folder in which compiled kernels are cached."""
    return default_folder().parent / "kernels"


@dataclass(slots=True)
class StartupTimer:
    """Durations of the phases of a start, in seconds, by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the `with` block, and add its duration to the phase `name`."""
        start_ns = time.monotonic_ns()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + (time.monotonic_ns() - start_ns) / 1e9

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.2f} s ({parts})"


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """Open engine, the specification and the head of its model, and the configuration of the detector."""

    engine: Engine
    spec: ModelSpec
    head: Head
    class_names: tuple[str, ...]
    detect: DetectConfig

    @property
    def input_name(self) -> str:
        """Name of the tensor that holds the frames.

        Raises:
            ModelError: the engine has no such tensor, or several.
        """
        frames = [tensor for tensor in self.engine.inputs if not tensor.is_shape_io]
        if len(frames) != 1 or len(frames[0].shape) != 4 or frames[0].dtype not in {"float32", "float16"}:
            inputs = ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in frames) or "none"
            raise ModelError(
                f"{self.spec.name}: expected one input, (batch, 3, height, width) in fp32 or fp16; "
                f"the engine has {inputs}",
                hint="export the model with only this input",
            )
        return frames[0].name

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        """Return the shape of the tensor that holds the frames."""
        channels = self.engine.tensor(self.input_name).channels
        return (batch, channels, self.spec.input.height, self.spec.input.width)

    def batches(self) -> tuple[int, ...]:
        """Return the batch sizes to prepare: those of `batch_sizes` that the engine accepts; if none, its largest."""
        name, profiles = self.input_name, self.engine.profiles
        sizes = batch_sizes(self.detect.max_batch)
        taken = tuple(size for size in sizes if any(p.contains({name: self.input_shape(size)}) for p in profiles))
        return taken or (self.engine.max_batch,)

    def context(self, batch: int, stream: Stream) -> Context:
        """Create a context for one batch size on a stream. The caller must set its memory and addresses."""
        shapes = {self.input_name: self.input_shape(batch)}
        profile = self.engine.choose(shapes)
        context = self.engine.create_context(profile, stream.address)
        context.set_shape(self.input_name, shapes[self.input_name])
        for name, values in self.engine.profiles[profile].values.items():
            context.set_values(name, values.opt)
        return context
