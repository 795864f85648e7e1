"""PyGObject and GStreamer: loading them, asking what they have, and reading their memory. The only home of ``gi``.

They are Debian packages, not wheels, so nothing of them is imported before a camera needs them.
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
from vision.types import YuvEncoding

log = logging.getLogger(__name__)

_loading = threading.Lock()


def library() -> SimpleNamespace:
    """GStreamer, loaded when first used.

    Raises:
        SourceError: it, or PyGObject, is not installed.
    """
    with _loading:
        return _load()


def _keep_unwinder() -> None:
    """Let the C++ exceptions of other libraries find GCC's unwinder first, as they do in a process without GStreamer.

    GStreamer depends on libunwind, whose functions have the same names, and PyGObject loads it for everybody to see.
    A library that throws for the first time after that, such as ONNX Runtime or OpenCV at a bad input, would call half
    of the one and half of the other, and crash. What is made visible first is found first.
    """
    with contextlib.suppress(OSError):  # systems without GCC's library have no use for it
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
            "PyGObject is not there: install python3-gi, and make the virtual environment with --system-site-packages"
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
        log.warning("PyGObject %s: frames are copied twice, because hash(%r) is no address", gi.__version__, probe)
    return SimpleNamespace(
        Gst=Gst,
        GstApp=GstApp,
        GstVideo=GstVideo,
        gst_buffer_map=core.gst_buffer_map,
        gst_buffer_unmap=core.gst_buffer_unmap,
    )


class Installed:
    """The registry of this machine's GStreamer."""

    def has(self, factory: str) -> bool:
        return library().Gst.ElementFactory.find(factory) is not None

    def has_property(self, factory: str, name: str) -> bool:
        return name in _property_names(factory)


@functools.cache
def _property_names(factory: str) -> frozenset[str]:
    element = library().Gst.ElementFactory.make(factory, None)
    return frozenset() if element is None else frozenset(spec.name for spec in element.list_properties())


def yuv_encoding(colorimetry: str | None, height_px: int) -> YuvEncoding:
    """From GStreamer's notation, ``range:matrix:transfer:primaries`` or a name. Unsaid, the size decides, as in TVs."""
    text = colorimetry or ("bt709" if height_px >= 720 else "bt601")
    parts = text.split(":")
    full = parts[0] == "1"  # GstVideoColorRange: 1 is 0..255
    bt709 = parts[1] == "3" if len(parts) == 4 else text == "bt709"  # GstVideoColorMatrix: 3 is BT.709
    if bt709:
        return "bt709-full" if full else "bt709"
    return "bt601-full" if full else "bt601"


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
    """PyGObject's hash of a structure is its address, which its text shows too: undocumented, so it is looked at."""
    shown = re.search(r" at 0x([0-9a-f]+)\)>$", repr(structure))
    return shown is not None and int(shown[1], 16) == hash(structure)


@contextlib.contextmanager
def mapped(buffer: Any) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a GstBuffer (flat, uint8), where they are.

    PyGObject's own `map` copies them into a `bytes` first and holds the interpreter's lock meanwhile: 0.4 ms more for a
    1080p frame, during which no other camera's thread runs.

    Raises:
        ValueError: GStreamer cannot map them.
    """
    with _mapped_in_place(buffer) if hash_is_address(buffer) else _mapped_by_copy(buffer) as pixels:
        yield pixels


@contextlib.contextmanager
def _mapped_by_copy(buffer: Any) -> Iterator[NDArray[np.uint8]]:
    found, info = buffer.map(library().Gst.MapFlags.READ)
    if not found:
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
