"""CUDA calls that queue work or query its progress, made without releasing the GIL.

cuda-python releases the GIL in every call, which is right for calls that wait. The calls here take a few microseconds,
but acquiring the GIL again takes milliseconds each time if the threads of thirty cameras wait for it, and a batch makes
one such call per frame. On 16 cores with 32 cameras of 30 frames/s, submitting 25 frames took up to 80 ms.

The functions are the driver's, at the addresses that CUDA returns for them. They take the runtime's handles.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from cuda.bindings import runtime

from vision.errors import DeviceMissing

SUCCESS: Final = 0
NOT_READY: Final = 600  # CUDA_ERROR_NOT_READY

_CUDA_VERSION: Final = 12_000  # version of the signatures below
_INVALID_CONTEXT: Final = 201  # the thread has not used the GPU yet; calls of the runtime handle that

_Call = Callable[..., int]


class Calls(NamedTuple):
    """Functions that return a CUresult, which has the numbers of cudaError_t."""

    copy_to_device: _Call  # target, source, bytes, stream; waits unless the source is page-locked
    record: _Call  # event, stream
    wait: _Call  # stream, event, flags
    query: _Call  # event
    launch: _Call  # graph, stream


@functools.cache
def calls() -> Calls:
    """Return the functions of this process's driver.

    Raises:
        DeviceMissing: there is no driver, or it lacks one of them.
    """
    address, nbytes, flags = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
    return Calls(
        _call("cuMemcpyHtoDAsync", address, address, nbytes, address),
        _call("cuEventRecord", address, address),
        _call("cuStreamWaitEvent", address, address, flags),
        _call("cuEventQuery", address),
        _call("cuGraphLaunch", address, address),
    )


def _call(symbol: str, *types: Any) -> _Call:
    entry = runtime.cudaGetDriverEntryPointByVersion(symbol.encode(), _CUDA_VERSION, 0)
    if entry[0] != runtime.cudaError_t.cudaSuccess or not entry[1]:
        raise DeviceMissing(
            f"the NVIDIA driver has no {symbol}: {entry[0].name}",
            hint="CUDA 12.0 or newer is needed: update the driver",
        )
    function = ctypes.PYFUNCTYPE(ctypes.c_int, *types)(int(entry[1]))  # PYFUNCTYPE: the GIL is kept

    def call(*arguments: int) -> int:
        status = int(function(*arguments))
        if status == _INVALID_CONTEXT:
            runtime.cudaSetDevice(runtime.cudaGetDevice()[1])
            status = int(function(*arguments))
        return status

    return call
