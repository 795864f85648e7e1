"""CUDA's calls that queue work, or ask how far it is, made without giving the GIL away.

cuda-python gives it away in every call, which is right where a call waits. Those here take a few microseconds, but
getting the GIL back, with the threads of thirty cameras waiting for it, takes milliseconds each time, and a batch makes
one such call for every frame: on 16 cores with 32 cameras of 30 frames/s, submitting 25 frames took up to 80 ms.

The functions are the driver's own, by the addresses that CUDA gives for them. Their handles are those of the runtime.
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

_CUDA_VERSION: Final = 12_000  # whose signatures these are
_INVALID_CONTEXT: Final = 201  # the thread has not yet used the GPU; the runtime's calls see to that themselves

_Call = Callable[..., int]


class Calls(NamedTuple):
    """Each returns a CUresult, whose numbers are those of cudaError_t."""

    copy_to_device: _Call  # target, source, bytes, stream; from page-locked memory, or else it waits
    record: _Call  # event, stream
    wait: _Call  # stream, event, flags
    query: _Call  # event
    launch: _Call  # graph, stream


@functools.cache
def calls() -> Calls:
    """The functions of this process's driver.

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
    found = runtime.cudaGetDriverEntryPointByVersion(symbol.encode(), _CUDA_VERSION, 0)
    if found[0] != runtime.cudaError_t.cudaSuccess or not found[1]:
        raise DeviceMissing(
            f"the NVIDIA driver has no {symbol}: {found[0].name}",
            hint="CUDA 12.0 or newer is needed: update the driver",
        )
    function = ctypes.PYFUNCTYPE(ctypes.c_int, *types)(int(found[1]))  # PYFUNCTYPE: the GIL is kept

    def call(*arguments: int) -> int:
        status = int(function(*arguments))
        if status == _INVALID_CONTEXT:
            runtime.cudaSetDevice(runtime.cudaGetDevice()[1])
            status = int(function(*arguments))
        return status

    return call
