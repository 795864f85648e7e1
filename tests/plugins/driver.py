"""Calls of a Python plugin through the C++ interface of TensorRT. See ``drive.cpp``."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.paths import ROOT

CUDA = ROOT / "build" / "cuda"
TOOLKIT = CUDA / "nvidia" / "cu13"
HEADERS = CUDA / "tensorrt"
MISSING = "tests/typing/prepare_cuda.py gets CUDA's compiler and TensorRT's headers"
_SIZE = 8192


class _Attribute(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_double), ("is_float", ctypes.c_int32))


class _Run(ctypes.Structure):
    _fields_ = (
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("input", ctypes.c_void_p),
        ("outputs", ctypes.POINTER(ctypes.c_void_p)),
        ("workspace", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    )


@functools.cache
def compiled(file: str) -> ctypes.CDLL:
    """Compile and load a C++ file of this folder."""
    target = Path(tempfile.mkdtemp(prefix="vision-drive-")) / "drive.so"
    include = [f"-I{HEADERS}", f"-I{TOOLKIT / 'include'}"]
    source = Path(__file__).with_name(file)
    subprocess.run(
        ["g++", "-std=c++17", "-fPIC", "-shared", "-w", *include, str(source), "-o", str(target)], check=True
    )
    return ctypes.CDLL(str(target))


def drive(
    creator: object,
    attributes: Mapping[str, float],
    dims: Sequence[int],
    *,
    memory: tuple[int, Sequence[int], int, int] | None = None,
) -> list[str]:
    """Call all methods of a plugin, from its creation to a run. Return a report of their results.

    Args:
        attributes: attributes of the network node. Python floats become float32.
        dims: shape of the float32 input.
        memory: addresses of the input, the outputs, the workspace, and the stream. If None, the plugin does not run.
    """
    # The first value of an object of pybind11, after its head of 16 bytes, is the address of the C++ object.
    pointer = ctypes.c_void_p.from_address(id(creator) + 16)
    given = [_Attribute(name.encode(), value, isinstance(value, float)) for name, value in attributes.items()]
    run: Any = _Run((ctypes.c_int64 * len(dims))(*dims), len(dims))
    if memory is not None:
        run.input, outputs, run.workspace, run.stream = memory
        run.outputs = (ctypes.c_void_p * len(outputs))(*outputs)
    report = ctypes.create_string_buffer(_SIZE)
    array = (_Attribute * len(given))(*given)
    compiled("drive.cpp").drive(
        pointer, array, ctypes.c_int32(len(given)), ctypes.byref(run), report, ctypes.c_int32(_SIZE)
    )
    return report.value.decode().splitlines()
