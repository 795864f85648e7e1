"""Measurement of the network alone with TensorRT, and a trace of the steps of a batch on the GPU. This needs a GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.config import DetectConfig, ModelSpec
from vision.detect.tensorrt.detector import TensorRTDetector
from vision.detect.tensorrt.loaded_engine import input_shapes
from vision.detect.tensorrt.plugins.register import register_plugins
from vision.detect.tensorrt.slot import Slot
from vision.engine.build import BuildOptions
from vision.engine.build_plan import resolve
from vision.engine.library import find_library
from vision.engine.memory import MemoryPool
from vision.engine.open import open_engine
from vision.engine.profiles import Shape
from vision.engine.runtime import Context, Engine
from vision.engine.trace import Span, SpanRecorder
from vision.errors import ModelError
from vision.gpu.cuda import Event, Graph, Stream, open_device, use_device
from vision.gpu.memory import CudaMemory, DeviceBuffer, allocated
from vision.types import Frame


def require() -> None:
    """Check that the GPU and TensorRT can be used.

    Raises:
        DeviceMissing: the GPU, its driver, or TensorRT is missing.
        DeviceError: the GPU does not work.
    """
    open_device()
    find_library()


class GpuLane:
    """Lane that runs the network on a GPU, with or without a CUDA graph, and owns a stream, a context, and inputs."""

    def __init__(
        self,
        engine: Engine,
        shapes: Mapping[str, Shape],
        *,
        graph: bool,
        values: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Create the context and its memory.

        Args:
            engine: the engine to run.
            shapes: shapes of the inputs for frames, by name.
            graph: True if the network runs as a CUDA graph.
            values: values of the inputs, by name, or None for random values.

        Raises:
            ModelError: no profile includes these shapes, or the size of an output depends on the data.
            DeviceError: there is not enough memory, or the graph cannot be captured.
        """
        self._engine = engine
        with contextlib.ExitStack() as resources:
            self.stream = resources.enter_context(Stream())
            self.profile = engine.choose(shapes)
            context = engine.create_context(self.profile, self.stream.address)
            for name, shape in shapes.items():
                context.set_shape(name, shape)
            for name, extents in engine.profiles[self.profile].values.items():
                context.set_values(name, extents.opt)
            self._inputs, self._outputs = _give_memory(engine, context, shapes, values or {}, resources)
            self.context: Context = context
            self._graph = None
            if graph:
                captured = Graph.capture(self.stream, lambda: context.enqueue(self.stream.address), "the engine")
                self._graph = resources.enter_context(captured)
            self._resources = resources.pop_all()

    def run(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the network on the inputs `values`, and return its outputs. Inputs and outputs are arrays by name."""
        for name, array in values.items():
            self._inputs[name].write(np.ascontiguousarray(array.astype(self._engine.tensor(name).dtype)))
        self.start()
        self.finish()
        sizes = self.context.output_sizes()
        return {
            name: buffer.read(sizes[name].shape or (), self._engine.tensor(name).dtype)
            for name, buffer in self._outputs.items()
        }

    def start(self) -> None:
        if self._graph is not None:
            self._graph.launch(self.stream)
        else:
            self.context.enqueue(self.stream.address)

    def finish(self) -> None:
        self.stream.synchronize()

    def close(self) -> None:
        del self.context  # contexts must be freed before their engine
        self._resources.close()


def _give_memory(
    engine: Engine,
    context: Context,
    shapes: Mapping[str, Shape],
    given: Mapping[str, NDArray[Any]],
    resources: contextlib.ExitStack,
) -> tuple[dict[str, DeviceBuffer], dict[str, DeviceBuffer]]:
    """Allocate the memory of a context, and write its inputs. Return the buffers of the inputs and of the outputs.

    `given` contains values of inputs, by name. Other inputs receive random values. `resources` owns the memory.
    """

    def buffer(size: int, purpose: str) -> DeviceBuffer:
        return resources.enter_context(DeviceBuffer(size, purpose))

    context.give_memory(buffer(context.memory_bytes, "activations").address, context.memory_bytes)
    generator = np.random.default_rng(1)
    inputs, outputs = {}, {}
    for name, shape in shapes.items():
        tensor = engine.tensor(name)
        values = given.get(name)
        values = (generator.standard_normal(shape, np.float32) if values is None else values).astype(tensor.dtype)
        inputs[name] = buffer(values.nbytes, f"input {name}")
        inputs[name].write(np.ascontiguousarray(values))
        context.set_address(name, inputs[name].address)
    for name, size in context.output_sizes().items():
        if size.bytes is None:
            raise ModelError(f"the size of output {name} depends on the frame, so the network is not measured alone")
        outputs[name] = buffer(size.bytes, f"output {name}")
        context.set_address(name, outputs[name].address)
    return inputs, outputs


def network_shapes(engine: Engine, spec: ModelSpec, batch: int) -> Mapping[str, Shape]:
    """Return the shapes of the network's inputs, by name, for batches of `batch` frames."""
    return input_shapes(engine, spec, batch)


@contextlib.contextmanager
def opened_engine(folder: Path, spec: ModelSpec, detect: DetectConfig) -> Iterator[Engine]:
    """Open the engine of a model, with a separate memory pool, until the end of the `with` block.

    If the engine is not in the cache, build the engine first.
    """
    device = open_device()
    use_device(device)
    register_plugins(spec)
    options = BuildOptions(prepare_thread=lambda: use_device(device))
    with (
        contextlib.closing(MemoryPool(CudaMemory())) as pool,
        open_engine(folder, spec, device, resolve(detect, spec), options, pool=pool) as engine,
    ):
        yield engine


def library_name() -> str:
    """Return the name and the version of TensorRT."""
    return str(find_library())


def device_mib() -> float:
    """Return the GPU memory of this process in MiB, including the memory of TensorRT."""
    return allocated().device_bytes / 2**20


class DeviceTimeline:
    """Tracer that records CUDA events before and after each step of a batch on the GPU.

    The tracer replaces the graphs of a detector until `close` is called. Nothing else may use the detector until then.

    Events cannot be recorded inside a CUDA graph. Therefore, a trace without `steps` shows each graph as one span, at
    full speed. A trace with `steps` shows the separate steps, with gaps between them, because each step is launched
    separately.
    """

    def __init__(self, detector: TensorRTDetector, *, steps: bool) -> None:
        """Wrap a detector. If `steps` is True, launch each step separately. Otherwise, launch whole graphs."""
        self._detector = detector
        self._resources = contextlib.ExitStack()
        self._marks: list[tuple[str, str, Event, Event]] = []
        self._copying: Event | None = None  # event at the start of the copies of a batch
        slots, self._copies = detector.parts()
        self._slots = [slot for slot in slots if isinstance(slot, Slot)]
        self._graphs = [dict(slot.graphs) for slot in self._slots]
        for number, slot in enumerate(self._slots):
            for batch, graph in self._graphs[number].items():
                parts = graph.steps if steps else ((f"batch of {batch}", graph.run),)
                run = partial(self._run, f"slot {number}", slot.stream, parts)
                traced: Any = SimpleNamespace(run=run, is_captured=graph.is_captured and not steps)
                slot.graphs[batch] = traced
        self._origin = self._event(self._copies)
        self._origin.synchronize()
        self._origin_ns = time.monotonic_ns()

    def _event(self, stream: Stream) -> Event:
        event = self._resources.enter_context(Event(timing=True))
        event.record(stream)
        return event

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        """Submit a batch to the detector, and trace its copies to the GPU."""
        self._copying = self._event(self._copies)
        self._detector.submit(slot, frames)

    def _run(self, lane: str, stream: Stream, steps: Iterable[tuple[str, Callable[[], object]]]) -> None:
        """Queue the `steps` of a batch on `stream`, and record a CUDA event before and after each step.

        The detector calls this method instead of launching its graph, after it has queued the copies of the batch.
        """
        if self._copying is not None:
            self._marks.append((f"{lane} copies", "copy", self._copying, self._event(self._copies)))
            self._copying = None
        for name, step in steps:
            begin = self._event(stream)
            step()
            self._marks.append((f"{lane} on the GPU", name, begin, self._event(stream)))

    def write_to(self, recorder: SpanRecorder) -> None:
        """Add the spans to `recorder`, with times of the host's monotonic clock. All batches must have finished."""
        for lane, name, begin, end in self._marks:
            start_ns, end_ns = (self._origin_ns + round(at.ms_since(self._origin) * 1e6) for at in (begin, end))
            recorder.add(Span(name, lane, start_ns, end_ns))

    def close(self) -> None:
        """Restore the original graphs of the detector, and free the recorded events. Call `write_to` first."""
        for slot, graphs in zip(self._slots, self._graphs, strict=False):
            slot.graphs.update(graphs)
        self._graphs.clear()  # contexts must be freed before their engine
        self._resources.close()
