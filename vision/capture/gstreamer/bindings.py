"""Access to GStreamer through PyGObject: loading it, querying its elements, and reading its frames.

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

from vision.capture.gstreamer import pipeline
from vision.capture.planes import copy_planes, split_planes, yuv_encoding
from vision.capture.source import StreamInfo
from vision.errors import SourceError
from vision.types import PixelFormat, YuvEncoding

log = logging.getLogger(__name__)

_FORMATS: dict[str, PixelFormat] = {name: pixel_format for pixel_format, name in pipeline.NAMES.items()}

_loading = threading.Lock()

CLASSES = (
    "Buffer",
    "BufferFlags",
    "Bus",
    "Caps",
    "Element",
    "ElementFactory",
    "Event",
    "EventType",
    "FlowReturn",
    "Message",
    "MessageType",
    "Pad",
    "PadLinkReturn",
    "PadProbeInfo",
    "PadProbeReturn",
    "PadProbeType",
    "Pipeline",
    "Sample",
    "State",
    "StateChangeReturn",
    "Structure",
    "SystemClock",
)
"""Names of the classes of ``Gst`` that several threads use."""


def library() -> SimpleNamespace:
    """Return GStreamer's modules and functions. The first call loads them.

    Raises:
        SourceError: GStreamer or PyGObject is not installed.
    """
    with _loading:
        return _load()


def _keep_unwinder() -> None:
    """Load GCC's unwinder before GStreamer, so that C++ exceptions of other libraries use it.

    GStreamer depends on libunwind, which has functions of the same names, and PyGObject loads libunwind with global
    symbols. If GCC's unwinder were loaded later, a library that throws an exception would call functions of both
    unwinders, and crash. ONNX Runtime and OpenCV throw exceptions for invalid input, for example. The linker uses the
    symbols that were loaded first.
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
            from gi.repository import Gio, GLib, Gst, GstApp, GstVideo
    except ImportError:
        raise SourceError(
            "PyGObject is not installed: install python3-gi, and create the virtual environment with "
            "--system-site-packages"
        ) from None
    except ValueError as error:
        raise SourceError(f"{error}: install gir1.2-gst-plugins-base-1.0") from None
    Gst.init(None)
    for name in CLASSES:  # PyGObject fills a class at its first use, and other threads can see it before it is complete
        getattr(Gst, name)
    core = ctypes.CDLL("libgstreamer-1.0.so.0")
    core.gst_buffer_map.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    core.gst_buffer_map.restype = ctypes.c_int
    core.gst_buffer_unmap.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    core.gst_buffer_unmap.restype = None
    if not (hash_is_address := _hash_is_address(probe := Gst.Buffer.new())):
        log.warning("PyGObject %s: frames are copied twice, because hash(%r) is not an address", gi.__version__, probe)
    return SimpleNamespace(
        Gio=Gio,
        GLib=GLib,
        Gst=Gst,
        GstApp=GstApp,
        GstVideo=GstVideo,
        gst_buffer_map=core.gst_buffer_map,
        gst_buffer_unmap=core.gst_buffer_unmap,
        hash_is_address=hash_is_address,
    )


def _hash_is_address(structure: Any) -> bool:
    """Return True if PyGObject's hash of a structure equals the address that the structure's `repr` shows.

    If it does, `mapped` can use the hash as the address of a buffer, and need not copy the bytes of the buffer.
    """
    shown = re.search(r" at 0x([0-9a-f]+)\)>$", repr(structure))
    return shown is not None and int(shown[1], 16) == hash(structure)


@functools.cache
def installed(factory: str) -> frozenset[str] | None:
    """Return the names of the properties of the element `factory`, or None if the element is not installed.

    The result is empty if the element is installed, but cannot be created.
    """
    factories = library().Gst.ElementFactory
    if factories.find(factory) is None:
        return None
    element = factories.make(factory, None)
    return frozenset() if element is None else frozenset(spec.name for spec in element.list_properties())


def tls_database(path: str) -> Any:
    """Return a database of the certificates in a PEM file.

    Raises:
        SourceError: the file cannot be read, or contains no certificate.
    """
    gstreamer = library()
    try:
        return gstreamer.Gio.TlsFileDatabase.new(path)
    except gstreamer.GLib.Error as error:
        hint = "expected the path of a PEM file"
        raise SourceError(f"`tls`: {path}: {error.message}", hint=hint, code="tls-file") from None


class _MapInfo(ctypes.Structure):
    """The C structure ``GstMapInfo``, which has the same layout in all versions of GStreamer from 1.0 on."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("maxsize", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p * 4),
        ("reserved", ctypes.c_void_p * 4),
    )


@contextlib.contextmanager
def mapped(buffer: Any) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a GstBuffer (flat, uint8), which are valid only within the context.

    The bytes are copied only if PyGObject does not expose the buffer's address. PyGObject's own functions always copy
    the bytes to a `bytes` object, which takes 0.4 ms more for a 1080p frame. The thread holds the GIL during this copy,
    so no other thread can run Python code.

    Raises:
        ValueError: GStreamer cannot map the bytes.
    """
    gstreamer = library()
    if not gstreamer.hash_is_address:
        yield np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8)
        return
    info, address = _MapInfo(), hash(buffer)
    if not gstreamer.gst_buffer_map(address, ctypes.byref(info), 1):  # GST_MAP_READ
        raise ValueError("GStreamer cannot map a frame's memory")
    try:
        yield np.ctypeslib.as_array(ctypes.cast(info.data, ctypes.POINTER(ctypes.c_uint8)), (info.size,))
    finally:
        gstreamer.gst_buffer_unmap(address, ctypes.byref(info))


def describe(sample: Any, decoder: str) -> StreamInfo:
    """Return the properties of the stream of `sample`, a GstSample. `decoder` is the name of the decoder to report."""
    structure = sample.get_caps().get_structure(0)
    width_px, height_px = structure.get_value("width"), structure.get_value("height")
    _, numerator, denominator = structure.get_fraction("framerate")
    return StreamInfo(
        width_px,
        height_px,
        _FORMATS[structure.get_string("format")],
        numerator / denominator if numerator and denominator else None,
        decoder,
        parse_colorimetry(structure.get_string("colorimetry"), height_px),
    )


def copy_sample(sample: Any, info: StreamInfo, out: NDArray[np.uint8]) -> None:
    """Copy the pixels of a sample to `out`, a uint8 array of the frame's shape.

    Raises:
        ValueError: GStreamer cannot map the memory of the sample, or the memory is shorter than the frame.
    """
    buffer, video = sample.get_buffer(), library().GstVideo
    layout = video.buffer_get_video_meta(buffer)
    if layout is None:  # the layout is the default of these caps
        layout = video.VideoInfo.new_from_caps(sample.get_caps())
    with mapped(buffer) as memory:
        sources = [(memory[offset:], stride) for offset, stride in zip(layout.offset, layout.stride, strict=True)]
        copy_planes(sources, split_planes(out, info.height_px, info.width_px, info.pixel_format))


def parse_colorimetry(colorimetry: str | None, height_px: int) -> YuvEncoding:
    """Return the color encoding that a colorimetry string of GStreamer specifies.

    The string has the form ``range:matrix:transfer:primaries``, or is a name such as ``bt709``.

    If `colorimetry` is None or empty, derive the encoding from the frame size, as television standards do.
    """
    text = colorimetry or ("bt709" if height_px >= 720 else "bt601")
    parts = text.split(":")
    full = parts[0] == "1"  # GstVideoColorRange: 1 is 0..255
    bt709 = parts[1] == "3" if len(parts) == 4 else text == "bt709"  # GstVideoColorMatrix: 3 is BT.709
    return yuv_encoding(bt709=bt709, full=full)
