"""Compile a kernel file for the CPU, and run its kernels. See ``emulator.h``."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_HERE = Path(__file__).parent
KERNELS = _HERE.parents[1] / "vision" / "detect" / "tensorrt" / "cuda"


class Launch:
    """Kernel with its arguments. The object reads the values of the arguments when it is created."""

    def __init__(
        self, library: ctypes.CDLL, name: bytes, geometry: Sequence[int], shared_bytes: int, arguments: object
    ) -> None:
        self._library = library
        library.prepare.restype = ctypes.c_void_p
        sides = (ctypes.c_uint * 6)(*geometry)
        self._prepared = ctypes.c_void_p(library.prepare(name, sides, ctypes.c_uint(shared_bytes), arguments))

    def run(self, seed: int = 1) -> None:
        """Run the kernel. `seed` determines the order in which its threads run."""
        with _one_kernel:
            self._library.run(self._prepared, ctypes.c_ulonglong(seed))

    def __del__(self) -> None:
        self._library.forget(self._prepared)


_one_kernel = threading.Lock()  # the emulator keeps its state in globals


def _folder() -> Path:
    """Return the folder of compiled libraries. The names of the libraries contain the hashes of their sources."""
    folder = Path(tempfile.gettempdir()) / f"vision-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _sources() -> bytes:
    files = sorted([*KERNELS.glob("*.cu*"), *_HERE.glob("*.cpp"), *_HERE.glob("*.h")])
    return b"".join(file.read_bytes() for file in files)


def fingerprint() -> int:
    """Return a hash of all sources of the emulator."""
    return int(hashlib.sha256(_sources()).hexdigest()[:8], 16)


def _compile(target: Path, arguments: Sequence[str]) -> None:
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-w", "-I", str(_HERE), *arguments]
    done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{target.stem} does not build for the CPU:\n{done.stderr}")
    unfinished.replace(target)


@functools.cache
def _scheduler() -> Path:
    """Compile the part of the emulator that does not depend on kernels. Return the path of the library."""
    target = _folder() / f"scheduler-{fingerprint():08x}.so"
    if not target.exists():
        _compile(target, [str(_HERE / "scheduler.cpp")])
    return target


def build(file: str, definitions: Mapping[str, int | float | str]) -> Path:
    """Compile ``vision/detect/tensorrt/cuda/<file>`` with `definitions`. Return the path of the library."""
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    stem = file.removesuffix(".cu")
    key = hashlib.sha256(_sources() + " ".join([file, *options]).encode()).hexdigest()[:16]
    library = _folder() / f"{stem}-{key}.so"
    if not library.exists():
        definition = [f'-DKERNEL="{KERNELS / file}"', f"-DKERNEL_{stem.upper()}=1", *options]
        # The scheduler brings the libraries of C and C++, which take a third of the time if they are linked here.
        _compile(library, ["-nostdlib", *definition, str(_HERE / "kernels.cpp"), str(_scheduler())])
    return library
