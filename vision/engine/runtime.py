"""Engines in memory, and execution contexts that run them.

TensorRT reports most failures by returning False or None, and by writing the reason to its log. The classes in this
module raise an exception that contains the reason instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.engine.library import LogLines, collect_log, find_library, member_of, or_none, recent_errors, start, trt
from vision.engine.memory import MemoryPool, make_allocator
from vision.engine.profiles import Shape, choose_profile
from vision.engine.tensors import OutputSize, Tensor, as_shape, read_profiles, read_tensors
from vision.errors import DeviceError, ModelError
from vision.state.private_files import Untrusted, Unwritable, read_checked, write_checked

_log = logging.getLogger(__name__)


def _device_error(action: str, log: LogLines, pool: MemoryPool | None = None) -> DeviceError:
    """Return an error with the text `action`, TensorRT's messages and, if an allocation in `pool` failed, its size."""
    reason = "; ".join(log.errors()) or "no reason given"
    memory = f"; {pool.last_failure}" if pool is not None and pool.last_failure else ""
    return DeviceError(f"{action}: {reason}{memory}")


@contextmanager
def _refusing(problem: str) -> Iterator[Callable[[object], None]]:
    """Convert a RuntimeError in a `with` block to a `DeviceError` whose text starts with `problem`.

    Yield a function that raises `DeviceError` if its argument is False or None.
    """
    with collect_log() as log:

        def check(result: object) -> None:
            if result is False or result is None:
                raise _device_error(problem, log)

        try:
            yield check
        except RuntimeError as error:  # pybind raises this for some C++ failures
            raise DeviceError(f"{problem}: {error}; {'; '.join(log.errors())}") from error


class Context:
    """Execution context that runs an engine with one optimization profile. It is not thread-safe.

    The profile cannot be changed, because a change would invalidate graphs. The caller owns the scratch memory. Call
    `give_memory` before the first `enqueue`. The memory is in use until the enqueued work has ended on the GPU. All
    methods raise `DeviceError` if TensorRT refuses a call.
    """

    def __init__(self, engine: Engine, raw: trt.IExecutionContext, profile: int) -> None:
        self._engine = engine  # keeps the engine alive, as TensorRT requires
        self._kept: dict[str, object] = {}  # host memory and allocators to which TensorRT points
        self.raw = raw
        self.profile = profile

    @property
    def memory_bytes(self) -> int:
        """Size in bytes of the scratch memory that the largest shapes of the profile need."""
        return int(self._engine.raw.get_device_memory_size_for_profile_v2(self.profile))

    def keep(self, name: str, what: object) -> None:
        """Keep the object `what`, which TensorRT does not own, alive until another object is kept under this name."""
        self._kept[name] = what

    def give_memory(self, address: int, size: int) -> None:
        """Set the scratch memory: `size` bytes of device memory at `address`, which must be aligned to 256 bytes."""
        if address % 256:
            raise DeviceError(f"scratch memory must be aligned to 256 bytes, got address {address:#x}")
        with _refusing(f"scratch memory of {size} bytes was refused"):
            self.raw.set_device_memory(address, size)

    def set_shape(self, name: str, shape: Shape) -> None:
        """Set the shape of an input. Raise `ModelError` if the profile does not contain this shape."""
        allowed = self._engine.profiles[self.profile].shapes.get(name)
        if allowed is None or shape not in allowed:
            raise ModelError(
                f"input {name} of shape {'x'.join(map(str, shape))} is outside profile {self.profile}: {allowed}",
                hint="raise `detect: {max_batch: ...}` or widen `profiles` in model.yaml; the engine is built again",
                code="shape-outside-profile",
            )
        with _refusing(f"shape {shape} of input {name} was refused") as check:
            check(self.raw.set_input_shape(name, shape))

    def set_values(self, name: str, values: Sequence[int]) -> None:
        """Set the values of an input that determines shapes. The context keeps the host memory with these values."""
        tensor = self._engine.tensor(name)
        array: NDArray[Any] = np.array(values, dtype=tensor.dtype)
        self.keep(f"values of {name}", array)
        self.set_address(name, array.ctypes.data)

    def set_address(self, name: str, address: int) -> None:
        """Set the address of an input or output. Graphs that are already captured keep the previous address."""
        with _refusing(f"address of {name} was refused") as check:
            check(self.raw.set_tensor_address(name, address))

    def set_output_allocator(self, name: str, allocator: trt.IOutputAllocator) -> None:
        """Set the allocator from which TensorRT requests the memory of an output whose size depends on the data."""
        self.keep(f"allocator of {name}", allocator)
        with _refusing(f"output allocator of {name} was refused") as check:
            check(self.raw.set_output_allocator(name, allocator))

    def output_sizes(self) -> Mapping[str, OutputSize]:
        """Return the size of each output for the current input shapes. The shapes of all inputs must be set."""
        inputs = {tensor.name: as_shape(self.raw.get_tensor_shape(tensor.name)) for tensor in self._engine.inputs}
        missing = [name for name, shape in inputs.items() if min(shape, default=0) < 0]
        if missing:  # in this case, TensorRT 10.3 crashes outside of the main thread
            raise DeviceError(f"inputs without a shape: {', '.join(missing)}")
        with _refusing("the output shapes could not be inferred") as check:
            open_names = self.raw.infer_shapes()
            check(open_names)
        if open_names:
            raise DeviceError(f"the output shapes could not be inferred without {', '.join(open_names)}")
        return {tensor.name: self._output_size(tensor) for tensor in self._engine.outputs}

    def _output_size(self, tensor: Tensor) -> OutputSize:
        shape = as_shape(self.raw.get_tensor_shape(tensor.name))
        if all(size >= 0 for size in shape):
            return OutputSize(shape, tensor.bytes_of(shape))
        bound = int(self.raw.get_max_output_size(tensor.name))
        return OutputSize(None, bound if 0 < bound < 1 << 40 else None)

    def enqueue(self, stream: int) -> None:
        """Queue one run of the network on the stream with the handle `stream`, without waiting."""
        if not self.raw.execute_async_v3(stream):
            raise DeviceError(f"{self._engine.label} could not be started: {recent_errors()}")


class Engine:
    """Loaded engine that creates execution contexts, and describes its tensors and profiles.

    `load_engine` creates an engine from a plan. The arguments of the constructor are:

    - `owners`: objects, such as the runtime, to keep alive as long as `raw`.
    - `plan_bytes`: size of the plan.
    - `pool`: source of TensorRT's memory. It must outlive the engine. If it is None, TensorRT allocates memory itself.
    - `kernel_file`: file for the kernels that TensorRT-RTX compiles at run time. If it is None, the kernels are not
      stored. Like the plan, the kernels are code, so other users must not be able to write to the file.
    - `label`: name of the engine in messages.
    """

    def __init__(
        self,
        raw: trt.ICudaEngine,
        *,
        owners: Sequence[object] = (),
        plan_bytes: int = 0,
        pool: MemoryPool | None = None,
        kernel_file: Path | None = None,
        label: str = "engine",
    ) -> None:
        self.label = label
        self.plan_bytes = plan_bytes
        self._pool = pool
        self._kernel_file = kernel_file
        self._compiled: Any = None  # trt.IRuntimeCache, shared by all contexts
        self._owners = tuple(owners)
        self._raw: trt.ICudaEngine | None = raw
        self.tensors = read_tensors(raw)
        self.profiles = read_profiles(raw, self.tensors)
        self.inputs = tuple(tensor for tensor in self.tensors if tensor.mode == "input")
        self.outputs = tuple(tensor for tensor in self.tensors if tensor.mode == "output")

    @property
    def raw(self) -> trt.ICudaEngine:
        """TensorRT's own engine object. Raises `DeviceError` after `close`."""
        if self._raw is None:
            raise DeviceError(f"{self.label} is closed")
        return self._raw

    @property
    def max_batch(self) -> int:
        """Maximum number of frames in one run: the largest first dimension of the input for frames."""
        frames = next((tensor for tensor in self.inputs if len(tensor.shape) == 4), self.inputs[0])
        return max((profile.shapes[frames.name].max[0] for profile in self.profiles), default=frames.shape[0])

    @property
    def layers(self) -> int:
        """Number of layers after fusion."""
        return int(self.raw.num_layers)

    @property
    def weights_bytes(self) -> int:
        """Size in bytes of the weights on the GPU.

        If this size is unknown, the value is the size of the plan, which is slightly larger.
        """
        statistic = member_of("EngineStat", "TOTAL_WEIGHTS_SIZE")
        if statistic is None or not hasattr(self.raw, "get_engine_stat"):
            return self.plan_bytes
        size = int(self.raw.get_engine_stat(statistic))
        return size if size >= 0 else self.plan_bytes

    def tensor(self, name: str) -> Tensor:
        """Return the input or output with this name. Raise `ModelError` if there is no such tensor."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        names = ", ".join(tensor.name for tensor in self.tensors)
        raise ModelError(f"{self.label} has no tensor {name}; it has {names}", code="no-tensor")

    def choose(self, shapes: Mapping[str, Shape]) -> int:
        """Return the index of the best profile for inputs of these shapes. See `choose_profile`."""
        return choose_profile(self.profiles, shapes)

    def create_context(self, profile: int, stream: int) -> Context:
        """Create a context for the profile with the index `profile`. The caller provides the scratch memory.

        Selecting the profile can queue copies on `stream`. Synchronize the stream, or use it also for `enqueue`.

        Raises:
            DeviceError: TensorRT refuses the context or the profile, for example because memory is lacking.
            Untrusted: other users can write to the kernel file.
            Unavailable: the kernel file cannot be read at present.
        """
        with collect_log() as log:
            raw = self._new_context()
            if raw is None:
                raise _device_error(f"no execution context for {self.label}", log, self._pool)
        # With the details that the engine contains for `vision profile`, every run would be slower under a tracer.
        raw.nvtx_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        with _refusing(f"profile {profile} of {self.label} was refused") as check:
            check(raw.set_optimization_profile_async(profile, stream))
        return Context(self, raw, profile)

    def _new_context(self) -> trt.IExecutionContext | None:
        """Create a context that is suitable for CUDA graphs. Return None if TensorRT fails.

        A captured graph must not contain fallback kernels that TensorRT-RTX replaces after the capture. Therefore, the
        library must compile the kernels of the current shape immediately (EAGER), not in the background (LAZY, the
        default).
        """
        user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "CudaGraphStrategy") or not hasattr(self.raw, "create_runtime_config"):
            return self.raw.create_execution_context(user_managed)
        config: Any = self.raw.create_runtime_config()
        config.set_execution_context_allocation_strategy(user_managed)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        specialization = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)  # TensorRT-RTX only
        if specialization is not None:
            config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        if self._kernel_file is not None:
            self._compiled = self._compiled or self._load_kernels(config, self._kernel_file)
            config.set_runtime_cache(self._compiled)
        return self.raw.create_execution_context(config)

    def _load_kernels(self, config: Any, file: Path) -> Any:
        """Return a cache of compiled kernels that all contexts share.

        Load the kernels in `file`, if they fit the driver and the library, into the cache. Raise `Untrusted` if `file`
        cannot be read or other users can write to it.
        """
        cache = config.create_runtime_cache()
        kernels = read_checked(file)
        if kernels is None:
            _log.info("%s: compiling kernels, which takes several seconds per batch size, only once", self.label)
        elif not cache.deserialize(kernels):
            _log.info("%s: the saved kernels do not fit this driver or library; compiling them again", self.label)
        return cache

    def save_kernels(self) -> bool:
        """Store the compiled kernels for the next start. Return False if there are no kernels, or no `kernel_file`.

        Call this method after the warm-up. If the file cannot be written, only a warning is logged.
        """
        memory = self._compiled.serialize() if self._compiled is not None else None
        if memory is None or not memory.nbytes or self._kernel_file is None:
            return False
        kernels = bytes(memory)
        with suppress(Untrusted):
            if read_checked(self._kernel_file) == kernels:
                return True
        try:
            write_checked(self._kernel_file, kernels)
        except Unwritable as error:
            _log.warning("cannot store the compiled kernels, so the next start compiles them again: %s", error.args[0])
        return True

    def information(self) -> str:
        """Return a JSON description of the layers. It contains only names if the build did not request details."""
        return str(self.raw.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Release the engine. All contexts of the engine must have been released before. Idempotent."""
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
    pool: MemoryPool | None = None,
    kernel_file: Path | None = None,
    label: str = "engine",
    dla_core: int | None = None,
) -> Engine:
    """Load a plan on the GPU that is current in this thread. For the arguments, see `Engine`.

    `dla_core` is the DLA core for which the plan was built. If it is None, TensorRT uses the first core.

    Raises:
        ModelError: the plan is damaged, or was built for a different machine or library.
        DeviceMissing: no GPU works.
        DeviceError: the engine does not fit into the memory of `pool`. Without `pool`, the error is `ModelError`.
    """
    allocator = None if pool is None else make_allocator(pool)
    with collect_log() as log:
        runtime = start(trt.Runtime)
        if pool is not None:
            setattr(runtime, "gpu_allocator", allocator)  # noqa: B010 - the stubs lack this write-only property
            pool.last_failure = ""  # TensorRT may have recovered from an earlier failure
        aim_at_dla(runtime, dla_core)
        causes = invalidity(runtime, plan)
        raw = or_none(runtime.deserialize_cuda_engine(plan))
        if raw is None and pool is not None and pool.last_failure:
            raise _device_error(f"{label} does not fit into memory", log, pool)
        if raw is None:
            raise ModelError(
                f"{find_library()} cannot load {label}: {'; '.join([*causes, *log.errors()]) or 'no reason given'}",
                hint="`vision build MODEL --force` builds it again for this machine; `vision doctor` checks the driver",
                code="engine-not-loaded",
            )
    owners = (runtime, allocator)
    return Engine(raw, owners=owners, plan_bytes=len(plan), pool=pool, kernel_file=kernel_file, label=label)


def aim_at_dla(runtime: Any, core: int | None) -> None:
    """Select the DLA core for the engines that `runtime` loads. Do nothing if `core` is None or does not exist."""
    if core is not None and core < runtime.num_DLA_cores:
        runtime.DLA_core = core


def invalidity(runtime: Any, plan: bytes) -> list[str]:
    """Return the reasons why TensorRT-RTX considers a plan invalid on this machine. For TensorRT, the list is empty.

    The reasons do not justify refusing a plan: version 1.6.1 reports "unsupported cc" on an H100, but runs the plan.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return []
    validity, bits = runtime.get_engine_validity(plan)
    if validity.name != "INVALID":
        return []
    members: Mapping[str, Any] = getattr(getattr(trt, "EngineInvalidityDiagnostics", None), "__members__", {})
    return [name.lower().replace("_", " ") for name, member in members.items() if int(bits) & int(member)]
