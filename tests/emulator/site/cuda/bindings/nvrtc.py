"""Stand-in for ``cuda.bindings.nvrtc``. It calls the host's compiler. The "cubin" is the path of a compiled library."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from cuda.bindings.device import gpu
from tests.emulator.emulated import build, fingerprint


class nvrtcResult(IntEnum):
    NVRTC_SUCCESS = 0
    NVRTC_ERROR_COMPILATION = 6


_OK = nvrtcResult.NVRTC_SUCCESS


def nvrtcVersion() -> tuple[Any, int, int]:
    """Return a version that changes with the emulator, because the kernel cache depends on it."""
    return (_OK, 0, fingerprint())


def nvrtcCreateProgram(source: bytes, name: bytes, count: int, headers: Any, names: Any) -> tuple[Any, int]:
    return (_OK, gpu.keep({"name": name.decode(), "path": b""}))


def nvrtcCompileProgram(program: int, count: int, options: list[bytes]) -> tuple[Any]:
    state = gpu.get(program)
    pairs = (option[2:].decode().split("=", 1) for option in options if option.startswith(b"-D"))
    state["path"] = str(build(state["name"], dict(pairs))).encode()
    return (_OK,)


def nvrtcGetCUBINSize(program: int) -> tuple[Any, int]:
    return (_OK, len(gpu.get(program)["path"]))


def nvrtcGetCUBIN(program: int, target: bytes) -> tuple[Any]:
    import ctypes

    path = gpu.get(program)["path"]
    ctypes.memmove(target, path, len(path))
    return (_OK,)


def nvrtcDestroyProgram(program: int) -> tuple[Any]:
    gpu.drop(program)
    return (_OK,)


def nvrtcGetErrorString(status: int) -> tuple[Any, bytes]:
    return (_OK, nvrtcResult(status).name.encode())
