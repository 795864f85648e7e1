"""Stand-in for ``cuda.bindings.driver``, with the calls for modules and kernel launches."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Any

from cuda.bindings.device import gpu
from tests.emulator.emulated import Launch


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NOT_FOUND = 500


class CUfunction_attribute(IntEnum):
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


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
    launch = Launch(library, name, rest[:6], rest[6], ctypes.c_void_p(rest[8]))
    gpu.get(rest[7]).put(launch.run)
    return (CUresult.CUDA_SUCCESS,)
