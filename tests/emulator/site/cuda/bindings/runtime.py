"""Stand-in for ``cuda.bindings.runtime``, with the calls that `vision` makes."""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cuda.bindings.device import Event, Failed, Stream, copy, gpu


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorCudartUnloading = 4
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(IntEnum):
    cudaDevAttrMultiProcessorCount = 16
    cudaDevAttrIntegrated = 18
    cudaDevAttrL2CacheSize = 38
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97


cudaStreamNonBlocking = 1
cudaEventBlockingSync, cudaEventDisableTiming = 1, 2
cudaHostAllocPortable, cudaHostAllocMapped = 1, 2
cudaHostRegisterPortable, cudaHostRegisterMapped = 1, 2
cudaIpcMemLazyEnablePeerAccess = 1
SHAREABLE_BYTES = 1 << 16  # memory of this size and more can be shared with other processes

ATTRIBUTES = {
    cudaDeviceAttr.cudaDevAttrMultiProcessorCount: 4,
    cudaDeviceAttr.cudaDevAttrIntegrated: 0,
    cudaDeviceAttr.cudaDevAttrL2CacheSize: 400_000,
    cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: 9,
    cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: 0,
    cudaDeviceAttr.cudaDevAttrMaxSharedMemoryPerBlockOptin: 100_000,
}


def _call(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Make a function return a status and its value, as the functions of cuda-python do."""

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> tuple[Any, ...]:
        gpu.calls += 1
        count = 2 if function.__annotations__.get("return", "None") != "None" else 1
        try:
            if not any(word in function.__name__ for word in ("Destroy", "Free", "Unregister", "Close")):
                gpu.raise_fault()
            value = function(*arguments)
            gpu.raise_fault()  # a release has been done, even if its status is an error
        except Failed as failed:
            return (cudaError_t(failed.code), None)[:count]
        return (cudaError_t.cudaSuccess, value)[:count]

    return wrapped


@_call
def cudaGetDeviceCount() -> int:
    if gpu.count_status:
        raise Failed(gpu.count_status)
    return 1


@_call
def cudaDriverGetVersion() -> int:
    return gpu.driver_version


@_call
def cudaRuntimeGetVersion() -> int:
    return 13000


@_call
def cudaSetDevice(device: int) -> None: ...


@_call
def cudaDeviceGetAttribute(attribute: int, device: int) -> int:
    return ATTRIBUTES[cudaDeviceAttr(attribute)]


@_call
def cudaGetDeviceProperties(device: int) -> Any:
    return SimpleNamespace(name=b"Emulated GPU\0\0")


def cudaMemGetInfo() -> tuple[Any, ...]:
    return (cudaError_t.cudaSuccess, gpu.total_bytes - gpu.used_bytes, gpu.total_bytes)


def cudaGetLastError() -> tuple[Any]:
    return (cudaError_t.cudaSuccess,)


def cudaGetErrorName(status: int) -> tuple[Any, bytes]:
    return (cudaError_t.cudaSuccess, cudaError_t(status).name.encode())


def cudaGetErrorString(status: int) -> tuple[Any, bytes]:
    return (cudaError_t.cudaSuccess, b"said by the emulator")


@_call
def cudaDeviceSynchronize() -> None:
    for stream in [each for each in list(gpu.objects.values()) if isinstance(each, Stream)]:
        stream.synchronize()


@_call
def cudaStreamCreateWithFlags(flags: int) -> int:
    return gpu.keep(Stream())


@_call
def cudaStreamSynchronize(stream: int) -> None:
    if stream == 0:
        return  # work on the default stream, which is only `cudaMemcpy`, has ended when the call returns
    gpu.get(stream).synchronize()


@_call
def cudaStreamDestroy(stream: int) -> None:
    gpu.drop(stream).close()


@_call
def cudaStreamWaitEvent(stream: int, event: int, flags: int) -> None:
    reached = gpu.get(event).reached
    gpu.get(stream).put(lambda: _wait(reached))


def _wait(reached: Any) -> None:
    while not reached.wait(0.01):
        gpu.raise_fault()


@_call
def cudaEventCreateWithFlags(flags: int) -> int:
    return gpu.keep(Event())


@_call
def cudaEventRecord(event: int, stream: int) -> None:
    gpu.get(event).record(gpu.get(stream))


def cudaEventQuery(event: int) -> tuple[Any]:
    if gpu.fault:
        return (cudaError_t(gpu.fault),)
    return (cudaError_t.cudaSuccess if gpu.get(event).reached.is_set() else cudaError_t.cudaErrorNotReady,)


@_call
def cudaEventSynchronize(event: int) -> None:
    _wait(gpu.get(event).reached)


@_call
def cudaEventElapsedTime(start: int, end: int) -> float:
    return 1.0


@_call
def cudaEventDestroy(event: int) -> None:
    gpu.drop(event)


@_call
def cudaStreamBeginCapture(stream: int, mode: int) -> None:
    gpu.get(stream).captured = []


@_call
def cudaStreamEndCapture(stream: int) -> int:
    captured = gpu.get(stream).captured
    if captured is None:
        raise Failed(901)
    gpu.get(stream).captured = None
    return gpu.keep(captured)


@_call
def cudaGraphInstantiate(graph: int, flags: int) -> int:
    return gpu.keep(list(gpu.get(graph)))


@_call
def cudaGraphUpload(graph: int, stream: int) -> None: ...


@_call
def cudaGraphLaunch(graph: int, stream: int) -> None:
    for work in gpu.get(graph):
        gpu.get(stream).put(work)


@_call
def cudaGraphDestroy(graph: int) -> None:
    gpu.drop(graph)


@_call
def cudaGraphExecDestroy(graph: int) -> None:
    gpu.drop(graph)


@_call
def cudaMalloc(size: int) -> int:
    return gpu.allocate(size, shareable=size >= SHAREABLE_BYTES)


@_call
def cudaHostAlloc(size: int, flags: int) -> int:
    return gpu.allocate(size)


@_call
def cudaHostGetDevicePointer(address: int, flags: int) -> int:
    return address


@_call
def cudaHostRegister(address: int, size: int, flags: int) -> None:
    gpu.register(np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8))


@_call
def cudaHostUnregister(address: int) -> None:
    gpu.forget(address)


class cudaIpcMemHandle_t:
    """Handle of shareable memory: the process, the file descriptor, and the size."""

    def __init__(self) -> None:
        self.content = ctypes.create_string_buffer(64)

    def getPtr(self) -> int:
        return ctypes.addressof(self.content)


@_call
def cudaIpcGetMemHandle(address: int) -> Any:
    if address not in gpu.files:
        raise Failed(cudaError_t.cudaErrorInvalidValue)
    handle = cudaIpcMemHandle_t()
    handle.content.value = f"{os.getpid()} {gpu.files[address]} {gpu.memory[address].nbytes}".encode()
    return handle


@_call
def cudaIpcOpenMemHandle(handle: cudaIpcMemHandle_t, flags: int) -> int:
    process, descriptor, size = handle.content.value.decode().split()
    with Path(f"/proc/{process}/fd/{descriptor}").open("r+b") as file:
        return gpu.map(file.fileno(), int(size))


@_call
def cudaIpcCloseMemHandle(address: int) -> None:
    gpu.forget(address)


@_call
def cudaFree(address: int) -> None:
    gpu.free(address)


@_call
def cudaFreeHost(address: int) -> None:
    gpu.free(address)


@_call
def cudaMemcpy(target: int, source: int, size: int, kind: int) -> None:
    copy(target, source, size)


@_call
def cudaMemcpyAsync(target: int, source: int, size: int, kind: int, stream: int) -> None:
    if kind == cudaMemcpyKind.cudaMemcpyHostToDevice and not any(
        start <= source < start + array.nbytes for start, array in list(gpu.memory.items())
    ):
        pageable = ctypes.string_at(source, size)  # read before the call returns
        gpu.get(stream).put(lambda: copy(target, pageable, size))
        return
    gpu.get(stream).put(lambda: copy(target, source, size))


@_call
def cudaMemcpy2DAsync(
    target: int, target_pitch: int, source: int, pitch: int, width: int, height: int, kind: int, stream: int
) -> None:
    for row in range(height):
        one = functools.partial(copy, target + row * target_pitch, source + row * pitch, width)
        gpu.get(stream).put(one)


@_call
def cudaMemcpy2D(target: int, target_pitch: int, source: int, pitch: int, width: int, height: int, kind: int) -> None:
    for row in range(height):
        copy(target + row * target_pitch, source + row * pitch, width)


@_call
def cudaMemsetAsync(address: int, value: int, size: int, stream: int) -> None:
    gpu.get(stream).put(lambda: ctypes.memset(address, value, size))


def emulate(stream: int, work: Callable[[], None]) -> None:
    """Queue a Python function, such as an emulated engine, on a stream."""
    gpu.get(stream).put(work)


def hold(stream: int) -> Callable[[], None]:
    """Block a stream until the returned function is called, for at most 30 s."""
    release = __import__("threading").Event()
    gpu.get(stream).put(lambda: release.wait(30) and None)
    return release.set


def settle(seconds: float = 0.0) -> None:
    """Sleep for `seconds`, so that the streams can do their work."""
    time.sleep(seconds)


# Functions of the driver that `vision.gpu.cuda.driver_calls` calls by their addresses.

_ENTRIES = {
    b"cuMemcpyHtoDAsync": lambda target, source, size, stream: cudaMemcpyAsync(
        target, source, size, cudaMemcpyKind.cudaMemcpyHostToDevice, stream
    ),
    b"cuEventRecord": cudaEventRecord,
    b"cuStreamWaitEvent": cudaStreamWaitEvent,
    b"cuEventQuery": cudaEventQuery,
    b"cuGraphLaunch": cudaGraphLaunch,
}
_C_TYPES = {"size": ctypes.c_size_t, "flags": ctypes.c_uint}


@functools.cache
def _entry(symbol: bytes) -> Any:
    function = _ENTRIES[symbol]
    names = inspect.signature(function).parameters
    types = [_C_TYPES.get(name, ctypes.c_void_p) for name in names]
    return ctypes.PYFUNCTYPE(ctypes.c_int, *types)(lambda *arguments: int(function(*arguments)[0]))


def cudaGetDriverEntryPointByVersion(symbol: bytes, version: int, flags: int) -> tuple[Any, ...]:
    if gpu.count_status:
        return (cudaError_t(gpu.count_status), None, None)
    return (cudaError_t.cudaSuccess, ctypes.cast(_entry(symbol), ctypes.c_void_p).value, 0)


def cudaGetDevice() -> tuple[Any, int]:
    return (cudaError_t.cudaSuccess, 0)
