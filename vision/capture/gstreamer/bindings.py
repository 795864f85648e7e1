"""PyGObject and GStreamer: loading them, querying their elements, and mapping their memory.

This is the only module that imports ``gi``. The libraries are Debian packages, not wheels, so nothing is imported
before a camera needs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.errors import SourceError

log = logging.getLogger(__name__)

_loading = threading.Lock()


def library() -> SimpleNamespace:
    """Return GStreamer. The first call loads it.

    Raises:
        SourceError: GStreamer or PyGObject is not installed.
    """
    with _loading:
        return _load()


def _keep_unwinder() -> None:
    """Let the C++ exceptions of other libraries find GCC's unwinder first, as they do in a process without GStreamer.

    GStreamer depends on libunwind, whose functions have the same names, and PyGObject loads it with global symbols.
    A library that throws for the first time after that, such as ONNX Runtime or OpenCV at a bad input, would call
    functions of both, and crash. The linker uses the symbols that were loaded first.
    """
    with contextlib.suppress(OSError):  # systems without GCC's library do not need it
        ctypes.CDLL("libgcc_s.so.1", mode=ctypes.RTLD_GLOBAL)


@functools.cache
def _load() -> SimpleNamespace:
    _keep_unwinder()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # PyGObject's importer, on Python 3.11
            import gi

            for name in ("Gst", "GstApp", "GstVideo"):
                gi.require_version(name, "1.0")
            from gi.repository import Gst, GstApp, GstVideo
    except ImportError:
        raise SourceError(
            "PyGObject is not installed: install python3-gi, and create the virtual environment with "
            "--system-site-packages"
        ) from None
    except ValueError as error:
        raise SourceError(f"{error}: install gir1.2-gst-plugins-base-1.0") from None
    Gst.init(None)
    core = ctypes.CDLL("libgstreamer-1.0.so.0")
    core.gst_buffer_map.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    core.gst_buffer_map.restype = ctypes.c_int
    core.gst_buffer_unmap.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    core.gst_buffer_unmap.restype = None
    if not hash_is_address(probe := Gst.Buffer.new()):
        log.warning("PyGObject %s: frames are copied twice, because hash(%r) is not an address", gi.__version__, probe)
    return SimpleNamespace(
        Gst=Gst,
        GstApp=GstApp,
        GstVideo=GstVideo,
        gst_buffer_map=core.gst_buffer_map,
        gst_buffer_unmap=core.gst_buffer_unmap,
    )


class Installed:
    """The element registry of this machine's GStreamer."""

    def has(self, factory: str) -> bool:
        return library().Gst.ElementFactory.find(factory) is not None

    def has_property(self, factory: str, name: str) -> bool:
        return name in _property_names(factory)


@functools.cache
def _property_names(factory: str) -> frozenset[str]:
    element = library().Gst.ElementFactory.make(factory, None)
    return frozenset() if element is None else frozenset(spec.name for spec in element.list_properties())


class _MapInfo(ctypes.Structure):
    """GstMapInfo of GStreamer's ABI, 1.0 and later."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("maxsize", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p * 4),
        ("reserved", ctypes.c_void_p * 4),
    )


def hash_is_address(structure: Any) -> bool:
    """Return True if PyGObject's hash of a structure is its address. Undocumented, so compared with its text."""
    shown = re.search(r" at 0x([0-9a-f]+)\)>$", repr(structure))
    return shown is not None and int(shown[1], 16) == hash(structure)


@contextlib.contextmanager
def mapped(buffer: Any) -> Iterator[NDArray[np.uint8]]:
    """Map the bytes of a GstBuffer (flat, uint8) without copying them.

    PyGObject's own `map` copies them to a `bytes` object first, and holds the interpreter's lock meanwhile. That takes
    0.4 ms more for a 1080p frame, during which no other camera's thread runs.

    Raises:
        ValueError: GStreamer cannot map them.
    """
    with _mapped_in_place(buffer) if hash_is_address(buffer) else _mapped_by_copy(buffer) as pixels:
        yield pixels


@contextlib.contextmanager
def _mapped_by_copy(buffer: Any) -> Iterator[NDArray[np.uint8]]:
    success, info = buffer.map(library().Gst.MapFlags.READ)
    if not success:
        raise ValueError("GStreamer cannot map a frame's memory")
    try:
        yield np.frombuffer(info.data, np.uint8)
    finally:
        buffer.unmap(info)


@contextlib.contextmanager
def _mapped_in_place(buffer: Any) -> Iterator[NDArray[np.uint8]]:
    info = _MapInfo()
    address = hash(buffer)
    if not library().gst_buffer_map(address, ctypes.byref(info), 1):  # GST_MAP_READ
        raise ValueError("GStreamer cannot map a frame's memory")
    try:
        yield np.ctypeslib.as_array(ctypes.cast(info.data, ctypes.POINTER(ctypes.c_uint8)), (info.size,))
    finally:
        library().gst_buffer_unmap(address, ctypes.byref(info))
