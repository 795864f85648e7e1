"""An engine in memory, and the execution contexts that run it.

TensorRT reports most failures by returning False or None, with a line in its log. This module raises an exception with
that line instead. Only calls on a `trt` object need a GPU; the rest is plain data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.engine.library import LogLines, collect_log, find_library, or_none, recent_errors, start, trt
from vision.engine.profiles import Shape, choose_profile
from vision.engine.tensors import OutputSize, Tensor, as_shape, profile_memory, read_profiles, read_tensors
from vision.errors import DeviceError, ModelError

__all__ = [
    "Context",
    "Engine",
    "GraphPolicy",
    "OutputSize",
    "RuntimeCacheStore",
    "Tensor",
    "device_error",
    "invalidity",
    "load_engine",
]

_log = logging.getLogger(__name__)

GraphPolicy: TypeAlias = Literal["own", "library", "off"]
"""Who captures CUDA graphs: `own` the caller does; `library` TensorRT-RTX does by itself; `off` nobody."""


class RuntimeCacheStore(Protocol):
    """Storage of the compiled kernels of TensorRT-RTX between starts."""

    def load(self) -> bytes | None:
        """Return the saved kernels, or None if they cannot be used."""

    def save(self, blob: bytes) -> None:
        """Store `blob` for the next start."""


def device_error(what: str, log: LogLines, *, allocator: Any = None) -> DeviceError:
    """Return a DeviceError with TensorRT's messages and the failed allocation, if any."""
    said = "; ".join(log.errors()) or "it gave no reason"
    failure = getattr(allocator, "last_failure", None)
    memory = f"; {failure}" if failure else ""
    return DeviceError(f"{what}: {said}{memory}")


@contextmanager
def _refusing(what: str) -> Iterator[Callable[[object], None]]:
    """Yield a check for TensorRT's bool results that raises with the log lines of the block."""
    with collect_log() as log:

        def check(result: object) -> None:
            if result is False or result is None:
                raise device_error(what, log)

        try:
            yield check
        except RuntimeError as error:  # pybind turns some C++ failures into this
            raise DeviceError(f"{what}: {error}; {'; '.join(log.errors())}") from error


class Context:
    """One execution context. Not thread-safe; one per (profile, slot), because a change of profile voids its graphs.

    The caller owns its scratch memory: call `give_memory` before the first `enqueue`. The memory stays in use until the
    enqueued work has ended on the GPU.
    """

    def __init__(self, engine: Engine, raw: trt.IExecutionContext, profile: int) -> None:
        self._engine = engine  # TensorRT needs it to live longer
        self._kept: dict[str, object] = {}  # host values and allocators that TensorRT points to
        self.raw = raw
        self.profile = profile

    @property
    def memory_bytes(self) -> int:
        """Return the scratch memory for the largest shapes of the profile."""
        return self._engine.activation_bytes(self.profile)

    def memory_bytes_for_shapes(self) -> int:
        """Return the scratch memory for the current shapes, at most `memory_bytes`. All inputs must have a shape."""
        update = getattr(self.raw, "update_device_memory_size_for_shapes", None)
        return int(update()) if update is not None else self.memory_bytes

    def keep(self, name: str, what: object) -> None:
        """Keep an object alive as long as the context: TensorRT points to it and does not own it."""
        self._kept[name] = what

    def give_memory(self, address: int, size: int) -> None:
        """Use `size` bytes at `address` (256-byte aligned device memory) as scratch memory.

        Raises:
            DeviceError: not aligned, or TensorRT refuses.
        """
        if address % 256:
            raise DeviceError(f"scratch memory must be aligned to 256 bytes, got address {address:#x}")
        with _refusing(f"scratch memory of {size} bytes was refused"):
            if hasattr(self.raw, "set_device_memory"):
                self.raw.set_device_memory(address, size)
            else:
                setattr(self.raw, "device_memory", address)  # noqa: B010 - write-only, so the stubs do not have it

    def set_shape(self, name: str, shape: Shape) -> None:
        """Set the shape of an input.

        Raises:
            ModelError: outside the profile.
            DeviceError: TensorRT refuses.
        """
        allowed = self._engine.profiles[self.profile].shapes.get(name)
        if allowed is None or shape not in allowed:
            raise ModelError(
                f"input {name} of shape {'x'.join(map(str, shape))} is outside profile {self.profile}: {allowed}",
                hint="raise `detect: {max_batch: ...}` or widen `profiles` in model.yaml; the engine is built again",
            )
        with _refusing(f"shape {shape} of input {name} was refused") as check:
            check(self.raw.set_input_shape(name, shape))

    def set_values(self, name: str, values: Sequence[int]) -> None:
        """Set the values of a shape-tensor input, read from host memory that the context keeps."""
        tensor = self._engine.tensor(name)
        array: NDArray[Any] = np.array(values, dtype=tensor.dtype)
        self.keep(f"values of {name}", array)
        self.set_address(name, array.ctypes.data)

    def set_address(self, name: str, address: int) -> None:
        """Set the address of an input or output. A captured graph keeps the old one."""
        with _refusing(f"address of {name} was refused") as check:
            check(self.raw.set_tensor_address(name, address))

    def set_output_allocator(self, name: str, allocator: trt.IOutputAllocator) -> None:
        """Let TensorRT request the memory of an output with a data-dependent size."""
        self.keep(f"allocator of {name}", allocator)
        with _refusing(f"output allocator of {name} was refused") as check:
            check(self.raw.set_output_allocator(name, allocator))

    def output_sizes(self) -> Mapping[str, OutputSize]:
        """Return the size of each output at the current shapes.

        Raises:
            DeviceError: an input has no shape yet, or shape inference failed.
        """
        self._require_shapes()  # TensorRT 10.3 crashes in its error path off the main thread
        with _refusing("the output shapes could not be inferred") as check:
            open_names = self.raw.infer_shapes()
            check(None if open_names is None else True)
        if open_names:
            raise DeviceError(f"the output shapes could not be inferred: {', '.join(open_names)} not specified")
        return {tensor.name: self._output_size(tensor) for tensor in self._engine.outputs}

    def _require_shapes(self) -> None:
        missing = [
            tensor.name
            for tensor in self._engine.inputs
            if min(as_shape(self.raw.get_tensor_shape(tensor.name)), default=0) < 0
        ]
        if missing:
            raise DeviceError(f"inputs without a shape: {', '.join(missing)}")

    def _output_size(self, tensor: Tensor) -> OutputSize:
        shape = as_shape(self.raw.get_tensor_shape(tensor.name))
        if all(size >= 0 for size in shape):
            return OutputSize(shape, tensor.bytes_of(shape))
        bound = int(self.raw.get_max_output_size(tensor.name))
        return OutputSize(None, bound if 0 < bound < 1 << 40 else None)

    def set_greatest_shapes(self) -> None:
        """Set every input to the largest shape of the profile, for which buffers are sized."""
        for name, allowed in self._engine.profiles[self.profile].shapes.items():
            self.set_shape(name, allowed.max)
        for name, allowed in self._engine.profiles[self.profile].values.items():
            self.set_values(name, allowed.max)

    def enqueue(self, stream: int) -> None:
        """Put the network on a stream and return.

        Raises:
            DeviceError: TensorRT refuses.
        """
        if not self.raw.execute_async_v3(stream):
            raise DeviceError(f"{self._engine.label} could not be started: {recent_errors()}")

    def is_capturable(self, stream: int) -> bool | None:
        """Return whether TensorRT-RTX reports that `stream` can be captured; None if it cannot be asked.

        False is no proof: engines that reported it were captured and replayed correctly. Capture, and compare with an
        eager run.
        """
        ask = getattr(self.raw, "is_stream_capturable", None)
        return bool(ask(stream)) if ask is not None else None

    def set_aux_streams(self, streams: Sequence[int]) -> None:
        """Set streams for parallel branches: as many as `Engine.aux_streams`, none of them 0."""
        if streams:
            self.raw.set_aux_streams(list(streams))


class Engine:
    """Tensors and profiles of an engine as plain data, and contexts of it. Thread-safe.

    `load_engine` creates one from a plan.

    Args:
        raw: TensorRT's own object.
        owners: objects that must live as long as `raw`, such as its runtime.
        plan_bytes: size of the plan.
        allocator: serves TensorRT's own memory; it must outlive the engine.
        kernels: storage for the kernels that TensorRT-RTX compiles at run time.
        label: name of the engine in messages.
    """

    def __init__(
        self,
        raw: trt.ICudaEngine,
        *,
        owners: Sequence[object] = (),
        plan_bytes: int = 0,
        allocator: trt.IGpuAllocator | None = None,
        kernels: RuntimeCacheStore | None = None,
        label: str = "engine",
    ) -> None:
        self.label = label
        self.plan_bytes = plan_bytes
        self._allocator = allocator
        self._kernels = kernels
        self._compiled: Any = None  # trt.IRuntimeCache, shared by all contexts
        self._owners = tuple(owners)
        self._raw: trt.ICudaEngine | None = raw
        self.tensors = read_tensors(raw)
        self.profiles = read_profiles(raw, self.tensors)

    @property
    def raw(self) -> trt.ICudaEngine:
        """Return TensorRT's own object.

        Raises:
            DeviceError: after `close`.
        """
        if self._raw is None:
            raise DeviceError(f"{self.label} is closed")
        return self._raw

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Return the inputs in the engine's order."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "input")

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Return the outputs in the engine's order."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "output")

    @property
    def max_batch(self) -> int:
        """Return the maximum number of frames of one enqueue: the largest first dimension of the first input."""
        name = self.inputs[0].name
        return max((profile.shapes[name].max[0] for profile in self.profiles), default=self.inputs[0].shape[0])

    @property
    def layers(self) -> int:
        """Return the number of layers after fusion."""
        return int(self.raw.num_layers)

    @property
    def aux_streams(self) -> int:
        """Return the number of streams that the engine can use in addition to that of `enqueue`."""
        return int(self.raw.num_aux_streams)

    @property
    def weights_bytes(self) -> int:
        """Return the bytes of weights on the device, or the slightly larger size of the plan if unknown."""
        statistic = getattr(getattr(trt, "EngineStat", None), "TOTAL_WEIGHTS_SIZE", None)
        if statistic is None or not hasattr(self.raw, "get_engine_stat"):
            return self.plan_bytes
        size = int(self.raw.get_engine_stat(statistic))
        return size if size >= 0 else self.plan_bytes

    def tensor(self, name: str) -> Tensor:
        """Return an input or output by name.

        Raises:
            ModelError: there is none of this name.
        """
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        known = ", ".join(tensor.name for tensor in self.tensors)
        raise ModelError(f"{self.label} has no tensor {name}; it has {known}")

    def choose(self, shapes: Mapping[str, Shape]) -> int:
        """Return the index of the profile to run `shapes` with; see `choose_profile`."""
        return choose_profile(self.profiles, shapes)

    def activation_bytes(self, profile: int) -> int:
        """Return the scratch memory of one context of `profile`, in bytes."""
        return profile_memory(self.raw, profile)

    def create_context(self, profile: int, stream: int, *, graphs: GraphPolicy = "own") -> Context:
        """Create a context on `profile`. The caller provides its scratch memory.

        Args:
            profile: index of the profile.
            stream: carries the copies that a change of profile may need: synchronise it, or use it for the enqueue too.
            graphs: capture policy of TensorRT-RTX.

        Raises:
            DeviceError: TensorRT refuses, for example for lack of memory.
        """
        with collect_log() as log:
            raw = self._new_context(graphs)
            if raw is None:
                raise device_error(f"no execution context for {self.label}", log, allocator=self._allocator)
        # The engine carries details for `vision profile`; on every enqueue they would slow the tracer down.
        raw.nvtx_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        with _refusing(f"profile {profile} of {self.label} was refused") as check:
            check(raw.set_optimization_profile_async(profile, stream))
        return Context(self, raw, profile)

    def _new_context(self, graphs: GraphPolicy) -> trt.IExecutionContext | None:
        user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        config = self._runtime_config(graphs)
        if config is None:
            return self.raw.create_execution_context(user_managed)
        config.set_execution_context_allocation_strategy(user_managed)
        return self.raw.create_execution_context(config)

    def _runtime_config(self, graphs: GraphPolicy) -> Any:
        """Return TensorRT-RTX's settings of a context, or None if there are none.

        A graph that the caller captures must not hold fallback kernels that the library replaces later. So kernels for
        the current shape are compiled at once (EAGER) and not in the background (LAZY, the default).
        """
        if not hasattr(trt, "CudaGraphStrategy") or not hasattr(self.raw, "create_runtime_config"):
            return None
        config: Any = self.raw.create_runtime_config()
        strategy = trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graphs == "library" else strategy.DISABLED
        specialisation = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if specialisation is not None:
            config.dynamic_shapes_kernel_specialization_strategy = specialisation.EAGER
        cache = self._runtime_cache(config)
        if cache is not None:
            config.set_runtime_cache(cache)
        return config

    def _runtime_cache(self, config: Any) -> Any:
        """Return the kernel cache that all contexts share, loaded from the store the first time."""
        if self._kernels is None or not hasattr(config, "create_runtime_cache"):
            return None
        if self._compiled is None:
            self._compiled = config.create_runtime_cache()
            blob = self._kernels.load()
            if blob is None:
                _log.info("%s: its kernels are compiled, once on this machine: some seconds a batch size", self.label)
            if blob is not None and not self._compiled.deserialize(blob):
                _log.info("%s: the saved kernels do not fit this driver or library, compiling again", self.label)
        return self._compiled

    def save_kernels(self) -> bool:
        """Store the kernels compiled so far for the next start. Call it once warm. Returns False without any."""
        if self._kernels is None or self._compiled is None:
            return False
        memory = self._compiled.serialize()
        if memory is None or not memory.nbytes:
            return False
        self._kernels.save(bytes(memory))
        return True

    def information(self) -> str:
        """Return the layers as JSON. Names only, unless the engine was built with detailed verbosity."""
        return str(self.raw.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Release the engine. Every context must be closed before. Idempotent."""
        self._compiled = None
        self._raw = None
        self._owners = ()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_engine(
    plan: bytes,
    *,
    allocator: trt.IGpuAllocator | None = None,
    kernels: RuntimeCacheStore | None = None,
    label: str = "engine",
    dla_core: int | None = None,
) -> Engine:
    """Deserialize a plan on the GPU that is current in this thread.

    Args:
        plan: serialised engine.
        allocator: see `Engine`.
        kernels: see `Engine`.
        label: see `Engine`.
        dla_core: the core that the plan was built for: TensorRT takes the first one otherwise.

    Raises:
        ModelError: it was not built for this machine and library, or is damaged.
        DeviceMissing: no GPU works.
        DeviceError: it does not fit into the GPU's memory.
    """
    with collect_log() as log:
        runtime = start(trt.Runtime, log)
        if allocator is not None:
            setattr(runtime, "gpu_allocator", allocator)  # noqa: B010 - write-only, so the stubs do not have it
        aim_at_dla(runtime, dla_core)
        forget = getattr(allocator, "forget_failure", None)
        if forget is not None:  # TensorRT may have done without what it did not get earlier
            forget()
        causes = invalidity(runtime, plan)
        raw = or_none(runtime.deserialize_cuda_engine(plan))
        if raw is None and getattr(allocator, "last_failure", None):
            raise device_error(f"{label} does not fit into memory", log, allocator=allocator)
        if raw is None:
            raise ModelError(
                f"{find_library()} cannot load {label}: {'; '.join([*causes, *log.errors()]) or 'no reason given'}",
                hint="`vision build MODEL --force` builds it again for this machine; `vision doctor` checks the driver",
            )
    return Engine(raw, owners=(runtime,), plan_bytes=len(plan), allocator=allocator, kernels=kernels, label=label)


def aim_at_dla(runtime: Any, core: int | None) -> None:
    """Let the plans that `runtime` loads run on this accelerator, if the machine has it."""
    if core is not None and core < int(getattr(runtime, "num_DLA_cores", 0)):
        runtime.DLA_core = core


def invalidity(runtime: Any, plan: bytes) -> list[str]:
    """Return why TensorRT-RTX finds a plan invalid on this machine, if it can be asked.

    That is not a reason to refuse the plan: 1.6.1 reports "unsupported cc" for an H100, and then loads and runs it.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return []
    validity, bits = runtime.get_engine_validity(plan)
    if validity.name != "INVALID":
        return []
    members: Mapping[str, Any] = getattr(getattr(trt, "EngineInvalidityDiagnostics", None), "__members__", {})
    return [name.lower().replace("_", " ") for name, member in members.items() if int(bits) & int(member)]
