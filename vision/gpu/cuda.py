"""CUDA in the few shapes that the detector needs: its errors, the GPU, streams, events and graphs.

A wrapper of our own, on the calls of ``cuda.bindings.runtime`` that are the same from cuda-python 12.6 (JetPack 6) to
13.x (JetPack 7, servers), because the wrappers that exist need one of the two, page-lock no memory, or do not end a
capture that failed. Memory is in `vision.gpu.memory`, kernels in `vision.gpu.nvrtc`.

Everything here has one owner, who calls `close`; closing twice is allowed, and forgetting it is warned about, never
mended. Every CUDA error becomes a `DeviceError` that says what was being done.
"""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vision.errors import DeviceError, DeviceMissing, OutOfMemory
from vision.version import install_hint

try:
    from cuda.bindings import driver, runtime
except ImportError as error:
    raise DeviceMissing(
        f"cuda-python cannot be imported: {error}",
        hint=f"install the extra of the machine's CUDA version: `{install_hint('cuda13')}`, "
        "or cuda12 in place of cuda13 (JetPack 6)",
    ) from error

from vision.gpu.driver_calls import NOT_READY, SUCCESS, calls

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger(__name__)

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY
_UNLOADING = 4  # cudaErrorCudartUnloading: the process ends, and its memory with it
_OLD_DRIVER = 35  # cudaErrorInsufficientDriver: too old, or none
_NO_DEVICE = 100  # cudaErrorNoDevice
_OTHER_DRIVER = (803, 804)  # cudaErrorSystemDriverMismatch, cudaErrorCompatNotSupportedOnDevice
_SUCCESS = runtime.cudaError_t.cudaSuccess

_RESTART = (
    "a CUDA error stays with the process until it ends, so it must be restarted (systemd does); "
    "`dmesg | grep -i -e xid -e nvgpu` says what the GPU reported"
)


# ------------------------------------------------------------------------------------------------ errors


def _name_of(status: Any) -> str:
    """Name and text of a status of any CUDA library."""
    library = driver if isinstance(status, driver.CUresult) else runtime
    name = library.cuGetErrorName if library is driver else library.cudaGetErrorName
    text = library.cuGetErrorString if library is driver else library.cudaGetErrorString
    try:
        return f"{name(status)[1].decode()}: {text(status)[1].decode()}"
    except (AttributeError, RuntimeError, TypeError, ValueError):  # newer than the library, or no library to ask
        return str(getattr(status, "name", status))


def failure(status: Any, what: str) -> DeviceError:
    """The error to raise when `what` ended with `status`."""
    if isinstance(status, (runtime.cudaError_t, driver.CUresult)) and int(status) == _OUT_OF_MEMORY:
        runtime.cudaGetLastError()  # lack of memory does not stick, but the next call would tell it again
        return OutOfMemory(f"{what}: the GPU's memory does not suffice", hint="end what else uses the GPU")
    return DeviceError(f"{what} failed with {_name_of(status)}", hint=_RESTART)


def check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a call of ``cuda.bindings``, which returns a status before it.

    Raises:
        DeviceError: the status is not success.
    """
    if result[0] != _SUCCESS:
        raise failure(result[0], what)
    return result[1] if len(result) == 2 else result[1:] or None


def queued(status: int, what: str) -> None:
    """
    Raises:
        DeviceError: a call of `vision.gpu.driver_calls` did not succeed.
    """
    if status != SUCCESS:
        raise failure(_status(status), what)


def _status(code: int) -> Any:
    try:
        return runtime.cudaError_t(code)
    except ValueError:  # newer than the library
        return f"CUDA error {code}"


def no_device(code: int, driver_version: int, runtime_version: int) -> DeviceError:
    """Why there is no GPU to work on: `DeviceMissing` where a restart would not help.

    Args:
        code: what `cudaGetDeviceCount` returned.
        driver_version: highest CUDA version of the driver, 1000 * major + 10 * minor; 0 where there is none.
        runtime_version: CUDA version that cuda-python was made for.
    """

    def dotted(version: int) -> str:
        return f"{version // 1000}.{version % 1000 // 10}"

    if code == _OLD_DRIVER and driver_version:
        return DeviceMissing(
            f"the NVIDIA driver is too old: it knows CUDA {dotted(driver_version)}, and cuda-python is for "
            f"CUDA {dotted(runtime_version)}",
            hint=f"update the driver, or install `vision[cuda{driver_version // 1000}]`",
        )
    if code == _OLD_DRIVER:
        return DeviceMissing(
            "there is no NVIDIA driver (libcuda was not found)",
            hint="install the driver; in a container, start it with `--gpus all` (Jetson: `--runtime nvidia`)",
        )
    if code == _NO_DEVICE:
        return DeviceMissing(
            "the NVIDIA driver shows no GPU",
            hint="`nvidia-smi` lists them; CUDA_VISIBLE_DEVICES may hide them; a container needs `--gpus all`",
        )
    what = f"the GPU cannot be used: {_name_of(_status(code))}"
    if code in _OTHER_DRIVER:
        return DeviceMissing(what, hint="the driver was updated and its old module still runs: restart the machine")
    return DeviceError(what, hint=_RESTART)


# ------------------------------------------------------------------------------------------------ device


@dataclass(frozen=True, slots=True)
class Device:
    """The GPU that this process works on."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    integrated: bool  # CPU and GPU share the memory: pages are mapped, not copied
    multiprocessors: int
    total_bytes: int
    shared_bytes: int  # most shared memory that one block may ask for
    cache_bytes: int  # of the second level
    driver_version: int  # 1000 * major + 10 * minor
    runtime_version: int

    @property
    def arch(self) -> str:
        """As compilers name it, such as ``sm_87``."""
        return "sm_{}{}".format(*self.compute_capability)


@functools.cache
def open_device(index: int = 0) -> Device:
    """The GPU, current in the calling thread. Later calls return the same.

    Raises:
        DeviceMissing: no driver, a driver too old, or no GPU; the message says which.
        DeviceError: there is one, and it does not work, or is somebody's alone at the moment.
    """
    try:
        status, count = runtime.cudaGetDeviceCount()
    except RuntimeError:  # cuda-python 12 looks for libcuda at its first use
        raise no_device(_OLD_DRIVER, 0, 0) from None
    driver_version = runtime.cudaDriverGetVersion()[1] or 0
    runtime_version = runtime.cudaRuntimeGetVersion()[1] or 0
    if status != _SUCCESS or not count:
        raise no_device(int(status) or _NO_DEVICE, driver_version, runtime_version)
    if index >= count:
        raise DeviceMissing(f"GPU {index} was asked for, there are {count}", hint="GPUs are counted from 0")
    check(runtime.cudaSetDevice(index), f"opening GPU {index}")
    attribute = runtime.cudaDeviceAttr

    def value(which: Any) -> int:
        return int(check(runtime.cudaDeviceGetAttribute(which, index), f"asking GPU {index} for {which}"))

    properties = check(runtime.cudaGetDeviceProperties(index), f"asking GPU {index} for its properties")
    return Device(
        index=index,
        name=properties.name.split(b"\0")[0].decode(),
        compute_capability=(
            value(attribute.cudaDevAttrComputeCapabilityMajor),
            value(attribute.cudaDevAttrComputeCapabilityMinor),
        ),
        integrated=bool(value(attribute.cudaDevAttrIntegrated)),
        multiprocessors=value(attribute.cudaDevAttrMultiProcessorCount),
        total_bytes=memory_info()[1],
        shared_bytes=value(attribute.cudaDevAttrMaxSharedMemoryPerBlockOptin),
        cache_bytes=value(attribute.cudaDevAttrL2CacheSize),
        driver_version=driver_version,
        runtime_version=runtime_version,
    )


def use_device(device: Device) -> None:
    """Make the GPU current in the calling thread: threads begin without one."""
    check(runtime.cudaSetDevice(device.index), "choosing the GPU")


def memory_info() -> tuple[int, int]:
    """Free and total device memory in bytes. On a Jetson, free leaves out what the system could reclaim."""
    free_bytes, total_bytes = check(runtime.cudaMemGetInfo(), "asking for the free device memory")
    return int(free_bytes), int(total_bytes)


def synchronize_device() -> None:
    """Wait for everything that runs on the GPU."""
    check(runtime.cudaDeviceSynchronize(), "waiting for the GPU")


# ------------------------------------------------------------------------------------------------ life


class Resource(ABC):
    """Something with one owner who must `close` it."""

    _closed = False

    def close(self) -> None:
        """Release it. May be called twice."""
        if not self._closed:
            self._closed = True
            self._release()

    @abstractmethod
    def _release(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and hasattr(self, "_opened"):
            warnings.warn(f"{type(self).__name__} was not closed", ResourceWarning, stacklevel=2, source=self)


def released(result: tuple[Any, ...], what: str) -> None:
    """Log a failed release. It is not raised: where the device was lost, the error that tells so is on its way."""
    if result[0] != _SUCCESS and int(result[0]) != _UNLOADING:
        _log.warning("releasing %s: %s", what, _name_of(result[0]))


# ------------------------------------------------------------------------------------------------ streams


class Stream(Resource):
    """A queue of work on the GPU. Never the default stream, which cannot be captured and waits for all others."""

    def __init__(self) -> None:
        flag = runtime.cudaStreamNonBlocking
        self.handle = check(runtime.cudaStreamCreateWithFlags(flag), "creating a stream")
        self.address = int(self.handle)  # what TensorRT takes
        self._opened = True

    def synchronize(self) -> None:
        """Wait until all that was queued is done. Releases the GIL."""
        check(runtime.cudaStreamSynchronize(self.handle), "waiting for a stream")

    def wait(self, event: Event) -> None:
        """What is queued from now on begins after `event`."""
        queued(calls().wait(self.address, event.address, 0), "making a stream wait")

    def _release(self) -> None:
        released(runtime.cudaStreamDestroy(self.handle), "a stream")


class Event(Resource):
    """A point in a stream. One that was never recorded counts as reached."""

    def __init__(self, *, timing: bool = False) -> None:
        flags = runtime.cudaEventBlockingSync | (0 if timing else runtime.cudaEventDisableTiming)
        self.handle = check(runtime.cudaEventCreateWithFlags(flags), "creating an event")
        self.address = int(self.handle)
        self._opened = True

    def record(self, stream: Stream) -> None:
        """Put the event behind what is queued on `stream`."""
        queued(calls().record(self.address, stream.address), "recording an event")

    def reached(self) -> bool:
        """Whether the GPU has passed it. Never waits.

        Raises:
            DeviceError: something before it failed.
        """
        status = calls().query(self.address)
        if status == NOT_READY:
            return False
        queued(status, "work on the GPU")
        return True

    def synchronize(self) -> None:
        """Wait for it without burning a core. Releases the GIL."""
        check(runtime.cudaEventSynchronize(self.handle), "waiting for an event")

    def ms_since(self, earlier: Event) -> float:
        """Time between two events made with `timing`, milliseconds."""
        return float(check(runtime.cudaEventElapsedTime(earlier.handle, self.handle), "timing"))

    def _release(self) -> None:
        released(runtime.cudaEventDestroy(self.handle), "an event")


# ------------------------------------------------------------------------------------------------ graphs

_CAPTURING = threading.Lock()
"""One capture at a time in the process: TensorRT allocates and logs in places that a capture elsewhere hears."""


class Graph(Resource):
    """Work that was captured once and is launched as a whole. What it reads and writes must outlive it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self._address = int(handle)
        self._opened = True

    @classmethod
    def capture(cls, stream: Stream, enqueue: Callable[[], object], what: str) -> Graph:
        """Run `enqueue` once as a warm-up, since libraries allocate at their first call, then record it.

        `enqueue` puts work on `stream` and does nothing else: no waiting, no allocation.

        Raises:
            DeviceError: the work cannot be captured; the message says why.
        """
        enqueue()
        stream.synchronize()
        problem: BaseException | None = None
        with _CAPTURING:
            mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            check(runtime.cudaStreamBeginCapture(stream.handle, mode), f"beginning to capture {what}")
            try:
                enqueue()
            except BaseException as error:  # noqa: BLE001 - a capture must be ended whatever happened, then it is raised
                problem = error
            status, template = runtime.cudaStreamEndCapture(stream.handle)
        try:
            if problem is not None and not isinstance(problem, Exception):
                raise problem
            if problem is not None or status != _SUCCESS:
                runtime.cudaGetLastError()  # the failure of a capture would be told again by the next call
                cause = str(problem).splitlines()[0] if problem is not None and str(problem) else _name_of(status)
                raise DeviceError(
                    f"the CUDA graph of {what} could not be captured: {cause}",
                    hint="`detect: {graphs: off}` runs without graphs, slower",
                ) from problem
            executable = check(runtime.cudaGraphInstantiate(template, 0), f"making the CUDA graph of {what}")
        finally:
            if template is not None and int(template):
                released(runtime.cudaGraphDestroy(template), "a captured graph")
        graph = cls(executable)
        check(runtime.cudaGraphUpload(executable, stream.handle), f"uploading the CUDA graph of {what}")
        stream.synchronize()
        return graph

    def launch(self, stream: Stream) -> None:
        """Queue the whole graph."""
        queued(calls().launch(self._address, stream.address), "launching a CUDA graph")

    def _release(self) -> None:
        released(runtime.cudaGraphExecDestroy(self.handle), "a CUDA graph")
