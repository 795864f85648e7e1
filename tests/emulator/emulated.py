"""Builds a kernel file for the CPU and launches its kernels on NumPy arrays; see ``emulator.h``."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


_HERE = Path(__file__).parent
KERNELS = _HERE.parents[1] / "vision" / "detect" / "kernels"


class Emulated:
    """A kernel file. Arrays are passed as such: here the device's memory is the host's."""

    def __init__(self, path: Path) -> None:
        self._launch = ctypes.CDLL(str(path)).launch

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        *arguments: object,
        shared_bytes: int = 0,
        seed: int = 0,
    ) -> None:
        """Run one kernel to its end; `seed` decides in which order the threads take turns."""
        from vision.nvrtc import pack  # not at the top: the stand-in for NVRTC imports this module

        kept = [pack(memory(each) if isinstance(each, np.ndarray) and each.ndim else each) for each in arguments]
        pointers = (ctypes.c_void_p * len(kept))(*(value.ctypes.data for value in kept))
        geometry = (ctypes.c_uint * 6)(*grid, *block)
        self._launch(name.encode(), geometry, ctypes.c_uint(shared_bytes), ctypes.c_ulonglong(seed), pointers)


def memory(array: NDArray[Any]) -> int:
    """Address of an array's first element."""
    return int(array.ctypes.data)


def _folder() -> Path:
    """Libraries are kept between runs: their names hold what they were made from."""
    folder = Path(tempfile.gettempdir()) / f"vision-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _sources() -> bytes:
    files = sorted([*KERNELS.glob("*.cu*"), *_HERE.glob("*.cpp"), *_HERE.glob("*.h")])
    return b"".join(file.read_bytes() for file in files)


def build(file: str, definitions: Mapping[str, int | float | str]) -> Path:
    """Build ``vision/detect/kernels/<file>`` with these definitions; the path of the library."""
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    stem = file.removesuffix(".cu")
    key = hashlib.sha256(_sources() + " ".join([file, *options]).encode()).hexdigest()[:16]
    library = _folder() / f"{stem}-{key}.so"
    if not library.exists():
        command = [
            "g++", "-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-ffp-contract=off", "-w", "-I", str(_HERE),
            f'-DKERNEL="{KERNELS / file}"', f"-DKERNEL_{stem.upper()}=1", *options,
            str(_HERE / "kernels.cpp"), "-o", f"{library}.{os.getpid()}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{file} does not build for the CPU:\n{done.stderr}")
        Path(f"{library}.{os.getpid()}").replace(library)
    return library


def emulate(file: str, definitions: Mapping[str, int | float | str]) -> Emulated:
    """A kernel file with these definitions, ready to launch."""
    return Emulated(build(file, definitions))
