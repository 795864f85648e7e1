"""The network alone on TensorRT. Needs a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vision.config import DetectConfig, ModelSpec
from vision.engine.build import BuildOptions
from vision.engine.build_plan import resolve
from vision.engine.cuda_memory import CudaMemory
from vision.engine.library import find_library
from vision.engine.memory import MemoryPool
from vision.engine.open import open_engine
from vision.engine.profiles import Shape
from vision.engine.runtime import Context, Engine
from vision.errors import ModelError
from vision.gpu.cuda import Graph, Stream, open_device, use_device
from vision.gpu.memory import DeviceBuffer, allocated


def require() -> None:
    """Check that a GPU and TensorRT are available.

    Raises:
        DeviceMissing: no GPU, no driver or no TensorRT.
    """
    open_device()
    find_library()


class GpuLane:
    """Lane on a GPU: a stream and a context with random input, as a CUDA graph or as separate launches."""

    def __init__(self, engine: Engine, shapes: Mapping[str, Shape], *, graph: bool) -> None:
        """Create the context and its memory.

        Args:
            shapes: shape of each input that takes frames.

        Raises:
            ModelError: no profile has these shapes, or the size of an output depends on the data.
            DeviceError: not enough memory, or it cannot be captured.
        """
        with contextlib.ExitStack() as made:
            self.stream = made.enter_context(Stream())
            self.profile = engine.choose(shapes)
            context = engine.create_context(self.profile, self.stream.address)
            for name, shape in shapes.items():
                context.set_shape(name, shape)
            for name, values in engine.profiles[self.profile].values.items():
                context.set_values(name, values.opt)
            _give_memory(engine, context, shapes, made)
            self.context: Context | None = context
            self._graph = made.enter_context(self._capture(context)) if graph else None
            self._made = made.pop_all()

    def _capture(self, context: Context) -> Graph:
        return Graph.capture(self.stream, lambda: context.enqueue(self.stream.address), "the engine")

    def start(self) -> None:
        if self._graph is not None:
            self._graph.launch(self.stream)
        elif self.context is not None:
            self.context.enqueue(self.stream.address)

    def finish(self) -> None:
        self.stream.synchronize()

    def close(self) -> None:
        self.context = None  # the engine cannot go before its contexts
        self._made.close()


def _give_memory(engine: Engine, context: Context, shapes: Mapping[str, Shape], made: contextlib.ExitStack) -> None:
    def buffer(size: int, purpose: str) -> DeviceBuffer:
        return made.enter_context(DeviceBuffer(size, purpose))

    context.give_memory(buffer(context.memory_bytes, "activations").address, context.memory_bytes)
    generator = np.random.default_rng(1)
    for name, shape in shapes.items():
        tensor = engine.tensor(name)
        values = generator.standard_normal(shape, np.float32).astype(tensor.dtype)
        given = buffer(values.nbytes, f"input {name}")
        given.write(values)
        context.set_address(name, given.address)
    for name, size in context.output_sizes().items():
        if size.bytes is None:
            raise ModelError(f"the size of output {name} depends on the frame: this network is not measured alone")
        context.set_address(name, buffer(size.bytes, f"output {name}").address)


def frame_shapes(engine: Engine, spec: ModelSpec, batch: int) -> dict[str, Shape]:
    """Return the shape of the input that takes frames, for one batch."""
    frame = next(tensor for tensor in engine.inputs if not tensor.is_shape_io)
    return {frame.name: (batch, frame.channels, spec.input.height, spec.input.width)}


@contextlib.contextmanager
def opened_engine(folder: Path, spec: ModelSpec, detect: DetectConfig) -> Iterator[Engine]:
    """Open the engine of a model, from the cache or built now, with a private memory pool.

    Raises:
        VisionError: as for `open_engine`.
    """
    device = open_device()
    use_device(device)
    options = BuildOptions(prepare_thread=lambda: use_device(device))
    with (
        contextlib.closing(MemoryPool(CudaMemory())) as pool,
        open_engine(folder, spec, device, resolve(detect, spec), options, pool=pool) as engine,
    ):
        yield engine


def device_mib() -> float:
    """Return the GPU memory of this process, TensorRT's included, MiB."""
    return allocated().device_bytes / 2**20
