"""CUDA kernels: compilation with NVRTC (CUDA's runtime compiler), a cache of compiled kernels, and launches.

The program compiles its kernels for the GPU of each machine. The package contains no compiled kernels for two reasons:
sizes and types of the model are constants in the source, and the same package must support every GPU that the installed
CUDA supports.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cuda.bindings import driver, nvrtc
from numpy.typing import NDArray

from vision.errors import DeviceError, DeviceMissing, ModelError
from vision.gpu.cuda import BorrowedStream, Resource, Stream, check, failure, released
from vision.state.private_files import Unwritable, make_private_folder, read_checked, sha256_of, write_checked
from vision.version import pip_hint

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """Contents of a ``.cu`` file and of its headers, and the preprocessor definitions for the compiler."""

    name: str
    text: str
    headers: Mapping[str, str]
    definitions: Mapping[str, int | float | str]

    @classmethod
    def read(cls, path: Path, definitions: Mapping[str, int | float | str]) -> Source:
        """Read a ``.cu`` file and all headers in its folder."""
        headers = {header.name: header.read_text("utf-8") for header in sorted(path.parent.glob("*.cuh"))}
        return cls(path.name, path.read_text("utf-8"), headers, definitions)

    def options(self, arch: str) -> tuple[str, ...]:
        """Return the compiler options for the architecture `arch`, such as ``sm_87``."""
        fixed = (f"--gpu-architecture={arch}", "--std=c++17", "--fmad=true", "-default-device")
        return fixed + tuple(f"-D{name}={value}" for name, value in self.definitions.items())


def nvrtc_version() -> tuple[int, int]:
    """Return the version of NVRTC as (major, minor). Raise `DeviceMissing` if the library is not installed."""
    try:
        major, minor = check(nvrtc.nvrtcVersion(), "reading the version of NVRTC")
    except RuntimeError as error:  # cuda-python loads the library at its first use
        raise DeviceMissing(
            f"NVRTC, CUDA's runtime compiler, was not found: {error}",
            hint="Jetson: `sudo apt install cuda-nvrtc-12-6` (JetPack 7: 13-x); "
            f"elsewhere: {pip_hint('nvidia-cuda-nvrtc')}",
        ) from error
    return int(major), int(minor)


def compile_cubin(source: Source, arch: str, cache: Path | None = None) -> bytes:
    """Return the machine code of kernels for `arch`, such as ``sm_87``.

    If the folder `cache` contains the machine code, read it from there. Otherwise, compile the kernels, and store the
    machine code in `cache`. If `cache` is None, always compile the kernels.

    Raises:
        DeviceMissing: NVRTC is not installed.
        DeviceError: the source does not compile. The error contains the messages of the compiler.
        ModelError: the cache cannot be created or read, or other users can write to it.
        Unavailable: the cache cannot be created or read at present, for example because the disk is full.
    """
    major, minor = nvrtc_version()
    options = source.options(arch)
    if cache is None:
        return _compile(source, options)
    key = sha256_of(repr((source.text, sorted(source.headers.items()), options, major, minor)).encode())[:32]
    path = cache / f"{source.name.removesuffix('.cu')}-{arch}-{key}.cubin"
    make_private_folder(cache)
    cubin = read_checked(path)
    if cubin is not None:
        return cubin
    cubin = _compile(source, options)
    try:
        write_checked(path, cubin)
    except Unwritable as error:
        _log.warning("cannot store the compiled kernels, so the next start compiles them again: %s", error.args[0])
    return cubin


def compile_ptx(source: Source, arch: str) -> bytes:
    """Return the kernels for `arch` as PTX, the intermediate code of CUDA, which TensorRT stores in an engine.

    Raises:
        DeviceMissing: NVRTC is not installed.
        DeviceError: the source does not compile.
    """
    nvrtc_version()
    return _compile(source, source.options(arch.replace("sm_", "compute_")), "PTX")


def _compile(source: Source, options: Sequence[str], code: Literal["CUBIN", "PTX"] = "CUBIN") -> bytes:
    texts, names = [text.encode() for text in source.headers.values()], [name.encode() for name in source.headers]
    created = nvrtc.nvrtcCreateProgram(source.text.encode(), source.name.encode(), len(names), texts, names)
    program = check(created, f"reading {source.name}")
    try:
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            message = f"{source.name} does not compile with {' '.join(options)}:\n{_compiler_log(program)}"
            raise DeviceError(message, code="kernel-not-compiled")
        size, get = getattr(nvrtc, f"nvrtcGet{code}Size"), getattr(nvrtc, f"nvrtcGet{code}")
        compiled = bytes(check(size(program), f"compiling {source.name}"))
        check(get(program, compiled), f"compiling {source.name}")
        return compiled
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _compiler_log(program: Any) -> str:
    text = bytes(check(nvrtc.nvrtcGetProgramLogSize(program), "reading the compiler's messages"))
    check(nvrtc.nvrtcGetProgramLog(program, text), "reading the compiler's messages")
    return text.decode(errors="replace").rstrip("\0 \n")


class Module(Resource):
    """Compiled kernels of one source, loaded on the GPU."""

    def __init__(self, cubin: bytes, name: str) -> None:
        self._name = name
        self.handle = check(driver.cuModuleLoadData(cubin), f"loading the kernels of {name}")
        self._opened = True

    @classmethod
    def build(cls, source: Source, arch: str, cache: Path | None) -> Module:
        """Load kernels on the GPU.

        Compile the kernels if `cache` is None, or if the folder `cache` does not contain them. `compile_cubin` lists
        the errors.
        """
        return cls(compile_cubin(source, arch, cache), source.name)

    def kernel(self, name: str, *, shared_bytes: int = 0) -> Kernel:
        """Return the kernel with this name. Each of its blocks gets `shared_bytes` bytes of dynamic shared memory."""
        function = check(driver.cuModuleGetFunction(self.handle, name.encode()), f"looking for {name} in {self._name}")
        if shared_bytes > 48 << 10:  # maximum size that needs no request
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(driver.cuFuncSetAttribute(function, attribute, shared_bytes), f"requesting shared memory for {name}")
        return Kernel(function, name, shared_bytes)

    def _release(self) -> None:
        released(driver.cuModuleUnload(self.handle), f"the kernels of {self._name}")


@dataclass(frozen=True, slots=True)
class Kernel:
    """Kernel function of a `Module`, which must stay open as long as the kernel is used."""

    function: Any
    name: str
    shared_bytes: int

    def bind(self, grid: tuple[int, int, int], block: tuple[int, int, int], *arguments: object) -> Launch:
        """Return a launch of `grid` blocks with `block` threads each. `pack` describes the types of `arguments`."""
        return Launch(self, (*grid, *block, self.shared_bytes), arguments)


class Launch:
    """Kernel with its grid, block, and arguments. Memory to which the arguments point must outlive the launch."""

    def __init__(self, kernel: Kernel, geometry: tuple[int, ...], arguments: Sequence[object]) -> None:
        self._kernel = kernel
        self._geometry = geometry
        self._values = [pack(argument) for argument in arguments]
        self._pointers = (ctypes.c_void_p * max(1, len(self._values)))(*(value.ctypes.data for value in self._values))
        self._address = ctypes.addressof(self._pointers)

    def enqueue(self, stream: Stream | BorrowedStream) -> None:
        """Queue the kernel on a stream, without waiting."""
        (status,) = driver.cuLaunchKernel(self._kernel.function, *self._geometry, stream.handle, self._address, 0)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise failure(status, f"launching {self._kernel.name}")


def pack(argument: object) -> NDArray[Any]:
    """Copy a kernel argument to a zero-dimensional array, whose memory CUDA reads at the launch.

    NumPy scalars and structures (zero-dimensional arrays) keep their type. Python integers are addresses of 64 bits.
    Raise `ModelError` for other types.
    """
    if isinstance(argument, int) and not isinstance(argument, bool):
        return np.array(argument, np.uint64)
    if isinstance(argument, (np.generic, np.ndarray)) and argument.ndim == 0:
        return np.array(argument)
    raise ModelError(f"expected a NumPy scalar, structure, or address as an argument, got {type(argument).__name__}")
