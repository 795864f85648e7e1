"""``cuda.bindings.driver``: modules and launches."""

from __future__ import annotations

import ctypes
import threading
from enum import IntEnum
from typing import Any

from cuda.bindings.device import gpu


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NOT_FOUND = 500


class CUfunction_attribute(IntEnum):
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


_one_kernel = threading.Lock()  # the emulator keeps its state in globals


def cuGetErrorName(status: int) -> tuple[Any, bytes]:
    return (CUresult.CUDA_SUCCESS, CUresult(status).name.encode())


def cuGetErrorString(status: int) -> tuple[Any, bytes]:
    return (CUresult.CUDA_SUCCESS, b"said by the emulator")


def cuModuleLoadData(image: bytes) -> tuple[Any, int]:
    return (CUresult.CUDA_SUCCESS, gpu.keep(ctypes.CDLL(image.decode())))


def cuModuleUnload(module: int) -> tuple[Any]:
    gpu.drop(module)
    return (CUresult.CUDA_SUCCESS,)


def cuModuleGetFunction(module: int, name: bytes) -> tuple[Any, Any]:
    return (CUresult.CUDA_SUCCESS, (gpu.get(module), name))


def cuFuncSetAttribute(function: Any, attribute: int, value: int) -> tuple[Any]:
    return (CUresult.CUDA_SUCCESS,)


def cuLaunchKernel(function: Any, *rest: Any) -> tuple[Any]:
    library, name = function
    geometry, shared, stream, arguments = (ctypes.c_uint * 6)(*rest[:6]), rest[6], rest[7], rest[8]

    def work() -> None:
        with _one_kernel:
            library.launch(name, geometry, ctypes.c_uint(shared), ctypes.c_ulonglong(1), ctypes.c_void_p(arguments))

    gpu.get(stream).put(work)
    return (CUresult.CUDA_SUCCESS,)
