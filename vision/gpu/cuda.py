"""Thin wrappers for CUDA calls: errors, the device, streams, events, and graphs.

The wrappers use calls of ``cuda.bindings.runtime`` that are the same in cuda-python 12.6 (JetPack 6) to 13.x (JetPack 7
and servers). Memory is in `vision.gpu.memory`, and kernels are in `vision.gpu.nvrtc`. docs/decisions/030-cuda-core.md
explains why NVIDIA's own wrappers are not used.

Every object has one owner, which calls `close`. `close` is idempotent. An object that is freed without `close` emits a
ResourceWarning. Except in `close`, every CUDA error becomes a `DeviceError` that states which action failed.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cuda.bindings import driver, nvrtc, runtime

from vision.errors import DeviceError, DeviceMissing, DeviceNotReady, OutOfMemory
from vision.version import install_hint, pip_hint

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger(__name__)

_FIRST = 0  # index of the GPU to use; CUDA_VISIBLE_DEVICES determines which GPU has this index
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY
_UNLOADING = 4  # cudaErrorCudartUnloading: the process is ending
_OLD_DRIVER = 35  # cudaErrorInsufficientDriver: the driver is too old or missing
_NO_DEVICE = 100  # cudaErrorNoDevice
_INVALID_CONTEXT = 201  # cudaErrorDeviceUninitialized: the thread has not used the GPU yet
_NOT_READY = 600  # cudaErrorNotReady
_OTHER_DRIVER = (803, 804)  # cudaErrorSystemDriverMismatch, cudaErrorCompatNotSupportedOnDevice
_SUCCESS = runtime.cudaError_t.cudaSuccess

_RESTART = (
    "restart the process (systemd does this), because a CUDA error persists until it ends; "
    "`dmesg | grep -i -e xid -e nvgpu` shows the GPU's reports"
)
_MISSING = {  # status of CUDA: message, hint, code
    _OLD_DRIVER: (
        "there is no NVIDIA driver (libcuda was not found)",
        "install the driver; in a container, start it with `--gpus all` (Jetson: `--runtime nvidia`)",
        "no-driver",
    ),
    _NO_DEVICE: (
        "the NVIDIA driver reports no GPU",
        "`nvidia-smi` lists GPUs; CUDA_VISIBLE_DEVICES may hide them; a container needs `--gpus all`",
        "no-gpu",
    ),
}


# ------------------------------------------------------------------------------------------------ errors


def _name_of(status: Any) -> str:
    """Return the name and the description of a status code of the CUDA driver, the CUDA runtime, or NVRTC."""
    try:
        if isinstance(status, nvrtc.nvrtcResult):
            return str(nvrtc.nvrtcGetErrorString(status)[1].decode())
        if isinstance(status, driver.CUresult):
            name, text = driver.cuGetErrorName(status)[1], driver.cuGetErrorString(status)[1]
        else:
            name, text = runtime.cudaGetErrorName(status)[1], runtime.cudaGetErrorString(status)[1]
        return f"{name.decode()}: {text.decode()}"
    except (
        AttributeError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # the library is missing, or older than the status
        return str(getattr(status, "name", status))


def failure(status: Any, action: str) -> DeviceError:
    """Return the error to raise if `action`, such as "creating a stream", failed with the status code `status`."""
    if isinstance(status, (runtime.cudaError_t, driver.CUresult)) and int(status) == _OUT_OF_MEMORY:
        runtime.cudaGetLastError()  # clears the error, which the next call would otherwise report again
        return OutOfMemory(
            f"{action}: out of GPU memory", hint="end other programs that use the GPU", code="out-of-memory"
        )
    hint = "" if isinstance(status, nvrtc.nvrtcResult) else _RESTART
    return DeviceError(f"{action} failed with {_name_of(status)}", hint=hint, code="cuda-error")


def check(result: tuple[Any, ...], action: str) -> Any:
    """Return the result of a ``cuda.bindings`` call without its status: None, a value, or a tuple of values.

    Raise a `DeviceError`, whose text starts with `action`, if the call failed.
    """
    if result[0] != _SUCCESS:
        raise failure(result[0], action)
    return result[1] if len(result) == 2 else result[1:] or None


def queued(status: int, action: str) -> None:
    """Check the status that a function of `driver_calls` returned. Raise a `DeviceError` if it is an error."""
    if status:
        raise failure(_status(status), action)


def _status(code: int) -> Any:
    try:
        return runtime.cudaError_t(code)
    except ValueError:  # the code is newer than the library
        return f"CUDA error {code}"


def no_device(code: int, driver_version: int, runtime_version: int) -> DeviceError:
    """Return the error for a missing or unusable GPU. The class of the error shows whether a restart can help.

    Args:
        code: status of `cudaGetDeviceCount`.
        driver_version: CUDA version that the driver supports, as 1000 * major + 10 * minor. It is 0 if there is no
            driver.
        runtime_version: CUDA version of cuda-python, in the same form.
    """

    def dotted(version: int) -> str:
        return f"{version // 1000}.{version % 1000 // 10}"

    if code == _OLD_DRIVER and driver_version:
        install = install_hint(f"cuda{driver_version // 1000}")
        if driver_version // 1000 == runtime_version // 1000:  # the extra would install the same version again
            install = pip_hint(f"cuda-python=={dotted(driver_version)}.*")
        return DeviceMissing(
            f"the NVIDIA driver is too old: it supports CUDA {dotted(driver_version)}, but cuda-python is for "
            f"CUDA {dotted(runtime_version)}",
            code="old-driver",
            hint=f"update the driver, or {install}",
        )
    if code in _MISSING:
        message, hint, error_code = _MISSING[code]
        return DeviceNotReady(message, hint=hint, code=error_code)
    message = f"the GPU cannot be used: {_name_of(_status(code))}"
    if code in _OTHER_DRIVER:
        hint = "restart the machine, because the driver was updated but its old kernel module is still loaded"
        return DeviceNotReady(message, hint=hint, code="driver-mismatch")
    return DeviceError(message, hint=_RESTART, code="cuda-error")


# ------------------------------------------------------------------------------------------------ device


@dataclass(frozen=True, slots=True)
class Device:
    """The GPU that this process uses, and its properties."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    integrated: bool  # True if CPU and GPU share memory
    total_bytes: int
    shared_bytes: int  # maximum shared memory of one block
    cache_bytes: int  # size of the L2 cache
    driver_version: int  # 1000 * major + 10 * minor

    @property
    def arch(self) -> str:
        """Name of the architecture for compilers, such as ``sm_87``."""
        return "sm_{}{}".format(*self.compute_capability)


@functools.cache
def open_device() -> Device:
    """Open the first GPU, and make it current in the calling thread. Later calls only return the `Device`.

    Raises:
        DeviceMissing: there is no GPU, or the driver is missing, too old, or does not match its kernel module.
        DeviceError: the GPU does not work, or another process has exclusive use of it.
    """
    try:
        status, count = runtime.cudaGetDeviceCount()
    except RuntimeError:  # cuda-python 12 loads libcuda at its first use
        raise no_device(_OLD_DRIVER, 0, 0) from None
    driver_version = runtime.cudaDriverGetVersion()[1] or 0
    if status != _SUCCESS or not count:
        raise no_device(int(status) or _NO_DEVICE, driver_version, runtime.cudaRuntimeGetVersion()[1] or 0)
    check(runtime.cudaSetDevice(_FIRST), "opening the GPU")
    attribute = runtime.cudaDeviceAttr

    def value(name: Any) -> int:
        return int(check(runtime.cudaDeviceGetAttribute(name, _FIRST), f"reading {name} of the GPU"))

    properties = check(runtime.cudaGetDeviceProperties(_FIRST), "reading the properties of the GPU")
    return Device(
        index=_FIRST,
        name=properties.name.split(b"\0")[0].decode(),
        compute_capability=(
            value(attribute.cudaDevAttrComputeCapabilityMajor),
            value(attribute.cudaDevAttrComputeCapabilityMinor),
        ),
        integrated=bool(value(attribute.cudaDevAttrIntegrated)),
        total_bytes=memory_info()[1],
        shared_bytes=value(attribute.cudaDevAttrMaxSharedMemoryPerBlockOptin),
        cache_bytes=value(attribute.cudaDevAttrL2CacheSize),
        driver_version=driver_version,
    )


def use_device(device: Device) -> None:
    """Make the GPU current in the calling thread. This is necessary in each new thread."""
    check(runtime.cudaSetDevice(device.index), "choosing the GPU")


def memory_info() -> tuple[int, int]:
    """Return the free and the total GPU memory in bytes. On a Jetson, the system can reclaim further memory.

    Raises:
        DeviceError: there is no driver, or the GPU does not work.
    """
    try:
        result = runtime.cudaMemGetInfo()
    except RuntimeError:  # cuda-python 12 loads libcuda at its first use
        raise no_device(_OLD_DRIVER, 0, 0) from None
    free_bytes, total_bytes = check(result, "reading the free device memory")
    return int(free_bytes), int(total_bytes)


# ------------------------------------------------------------------------------------------------ driver calls


class DriverCalls(NamedTuple):
    """CUDA calls that, without releasing the GIL, queue work or query the progress of work.

    cuda-python releases the GIL in every call, which is right only for calls that wait. The calls in this class take a
    few microseconds. If they released the GIL, acquiring it again would take milliseconds while the threads of thirty
    cameras wait for it, and a batch needs one such call per frame. With the calls of cuda-python, submitting 25 frames
    took up to 80 ms on 16 cores with 32 cameras of 30 frames/s.

    Each function is called at its address in the driver. It accepts handles of the CUDA runtime, and returns a CUresult
    as an integer, which equals the corresponding cudaError_t.
    """

    copy_to_device: Callable[..., int]  # target, source, bytes, stream; waits unless the source is page-locked
    record: Callable[..., int]  # event, stream
    wait: Callable[..., int]  # stream, event, flags
    query: Callable[..., int]  # event
    launch: Callable[..., int]  # graph, stream


@functools.cache
def driver_calls() -> DriverCalls:
    """Return the functions of the driver. The first call looks them up.

    Raises:
        DeviceMissing: there is no driver, or the driver lacks one of the functions.
    """
    open_device()  # without a driver, cuda-python 12.6 would raise RuntimeError below
    address, nbytes, flags = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
    return DriverCalls(
        _driver_call("cuMemcpyHtoDAsync", address, address, nbytes, address),
        _driver_call("cuEventRecord", address, address),
        _driver_call("cuStreamWaitEvent", address, address, flags),
        _driver_call("cuEventQuery", address),
        _driver_call("cuGraphLaunch", address, address),
    )


def _driver_call(symbol: str, *types: Any) -> Callable[..., int]:
    status, address = runtime.cudaGetDriverEntryPointByVersion(symbol.encode(), 12_000, 0)[:2]  # as in CUDA 12.0
    if status != _SUCCESS or not address:
        raise DeviceMissing(
            f"the NVIDIA driver has no {symbol}: {status.name}",
            hint="CUDA 12.0 or newer is needed: update the driver",
            code="old-driver",
        )
    function = ctypes.PYFUNCTYPE(ctypes.c_int, *types)(int(address))  # PYFUNCTYPE does not release the GIL

    def call(*arguments: int) -> int:
        status = int(function(*arguments))
        if status == _INVALID_CONTEXT:  # unlike the driver, the CUDA runtime handles this automatically
            runtime.cudaSetDevice(runtime.cudaGetDevice()[1])
            status = int(function(*arguments))
        return status

    return call


# ------------------------------------------------------------------------------------------------ resources


class Resource(ABC):
    """Base class of objects that have one owner, which must close them."""

    _closed = False

    def close(self) -> None:
        """Release the resource. Idempotent."""
        if not self._closed:
            self._closed = True
            self._release()

    @abstractmethod
    def _release(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and hasattr(self, "_opened"):
            warnings.warn(f"{type(self).__name__} was not closed", ResourceWarning, stacklevel=2, source=self)


def released(result: tuple[Any, ...], resource: str) -> None:
    """Log a warning if `result` shows that releasing `resource` failed. `result` comes from a ``cuda.bindings`` call.

    Raise no error, because a later call raises an error if the GPU is lost.
    """
    if result[0] != _SUCCESS and int(result[0]) != _UNLOADING:
        _log.warning("releasing %s: %s", resource, _name_of(result[0]))


class Stream(Resource):
    """Queue of work on the GPU. It is not the default stream, which cannot be captured and waits for other streams."""

    def __init__(self) -> None:
        flag = runtime.cudaStreamNonBlocking
        self.handle = check(runtime.cudaStreamCreateWithFlags(flag), "creating a stream")
        self.address = int(self.handle)  # as an integer, for TensorRT
        self._opened = True

    def synchronize(self) -> None:
        """Wait until the GPU has completed all queued work. Waiting releases the GIL."""
        check(runtime.cudaStreamSynchronize(self.handle), "waiting for a stream")

    def wait(self, event: Event) -> None:
        """Make all work that is queued after this call wait for `event`. The host does not wait."""
        queued(driver_calls().wait(self.address, event.address, 0), "making a stream wait")

    def _release(self) -> None:
        released(runtime.cudaStreamDestroy(self.handle), "a stream")


@dataclass(frozen=True, slots=True)
class BorrowedStream:
    """Stream that belongs to a library, such as the one on which TensorRT runs a plugin."""

    handle: int


class Event(Resource):
    """Position in a stream. An event that was never recorded counts as reached. `timing` enables `ms_since`."""

    def __init__(self, *, timing: bool = False) -> None:
        flags = runtime.cudaEventBlockingSync | (0 if timing else runtime.cudaEventDisableTiming)
        self.handle = check(runtime.cudaEventCreateWithFlags(flags), "creating an event")
        self.address = int(self.handle)
        self._opened = True

    def record(self, stream: Stream) -> None:
        """Place the event after all work that is currently queued on `stream`."""
        queued(driver_calls().record(self.address, stream.address), "recording an event")

    def reached(self) -> bool:
        """Return True if the GPU has reached the event, without waiting. Raise `DeviceError` if prior work failed."""
        status = driver_calls().query(self.address)
        if status == _NOT_READY:
            return False
        queued(status, "work on the GPU")
        return True

    def synchronize(self) -> None:
        """Wait until the GPU has reached the event, without busy waiting. Waiting releases the GIL."""
        check(runtime.cudaEventSynchronize(self.handle), "waiting for an event")

    def ms_since(self, earlier: Event) -> float:
        """Return the time since the event `earlier` in ms. Both events must be created with `timing=True`."""
        return float(check(runtime.cudaEventElapsedTime(earlier.handle, self.handle), "timing"))

    def _release(self) -> None:
        released(runtime.cudaEventDestroy(self.handle), "an event")


_CAPTURING = threading.Lock()
"""Lock that allows one capture at a time, because TensorRT's allocations for one capture can invalidate another."""


class Graph(Resource):
    """Captured work that is launched as a whole. The memory that it uses must outlive the graph."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self._address = int(handle)
        self._opened = True

    @classmethod
    def capture(cls, stream: Stream, enqueue: Callable[[], object], label: str) -> Graph:
        """Capture the work that `enqueue` queues on `stream`, and return the graph.

        Before the capture, `enqueue` runs once as a warm-up. In this run, libraries may allocate memory. During the
        capture, `enqueue` must neither wait nor allocate memory.

        Raises:
            DeviceError: the capture failed. The error contains `label`.
            Exception: the warm-up raised this exception.
        """
        enqueue()
        stream.synchronize()
        problem: BaseException | None = None
        with _CAPTURING:
            mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            check(runtime.cudaStreamBeginCapture(stream.handle, mode), f"beginning to capture {label}")
            try:
                enqueue()
            except BaseException as error:  # noqa: BLE001 - raised below, after the capture has ended
                problem = error
            status, template = runtime.cudaStreamEndCapture(stream.handle)
        try:
            if problem is not None and not isinstance(problem, Exception):
                raise problem
            if problem is not None or status != _SUCCESS:
                runtime.cudaGetLastError()  # clears the error, which the next call would otherwise report again
                cause = str(problem).splitlines()[0] if problem is not None and str(problem) else _name_of(status)
                raise DeviceError(
                    f"the CUDA graph of {label} could not be captured: {cause}",
                    hint="set `detect: {graphs: off}` to run without graphs, which is slower",
                    code="graph-not-captured",
                ) from problem
            executable = check(runtime.cudaGraphInstantiate(template, 0), f"creating the CUDA graph of {label}")
        finally:
            problem = None  # its traceback refers to this frame, and the cycle would keep what `enqueue` uses alive
            if template is not None and int(template):
                released(runtime.cudaGraphDestroy(template), "a captured graph")
        graph = cls(executable)
        check(runtime.cudaGraphUpload(executable, stream.handle), f"uploading the CUDA graph of {label}")
        stream.synchronize()
        return graph

    def launch(self, stream: Stream) -> None:
        """Queue the whole graph on a stream."""
        queued(driver_calls().launch(self._address, stream.address), "launching a CUDA graph")

    def _release(self) -> None:
        released(runtime.cudaGraphExecDestroy(self.handle), "a CUDA graph")
