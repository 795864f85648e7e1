"""Where the frames of a batch are, and what it takes for the GPU to see them.

A frame that a camera decoded into a buffer of `FrameStore.buffer` has a twin in GPU memory and a description for the
letterbox kernel, both made with the buffer. Binding it to a batch is then one copy of 112 bytes on the host and one
asynchronous copy over the bus, and none where CPU and GPU share their memory or the frame was decoded on the GPU.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.config import InputSpec
from vision.detect.tensorrt.kernel_structs import FRAME, FrameLayout, describe_frame
from vision.gpu.cuda import Stream
from vision.gpu.device_image import DeviceImage
from vision.gpu.memory import DeviceBuffer, HostBuffer, copy_to_device, queue_to_device
from vision.types import Frame, PixelFormat, YuvEncoding, frame_shape

_log = logging.getLogger(__name__)

PIXEL_FORMATS: Final[tuple[PixelFormat, ...]] = ("nv12", "i420", "bgrx", "bgr")
"""What the letterbox kernel reads; the fewest bytes to copy first."""

DESCRIPTION_BYTES: Final = FRAME.itemsize
_WORD: Final = 16  # kernels read whole words, so frames are padded to them


@dataclass(slots=True, eq=False)
class _Known:
    """A buffer that the store made, or a frame on the GPU."""

    host_address: int  # 0: nothing to copy
    device_address: int
    nbytes: int
    layout: FrameLayout
    array: weakref.ref[NDArray[np.uint8]]
    descriptions: dict[YuvEncoding, bytes] = field(default_factory=dict)


class FrameStore:
    """The buffers of all cameras. `buffer` may be called from any thread, `place` from one."""

    def __init__(self, spec: InputSpec, *, integrated: bool) -> None:
        self._card = spec
        self._integrated = integrated
        self._known: dict[int, _Known] = {}  # by id() of the array that was handed out
        self._by_address: dict[int, _Known] = {}
        self._lock = threading.RLock()  # a buffer may be finalised inside

    def buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> NDArray[np.uint8]:
        """A page-locked buffer. Its memory, and its twin's, live as long as an array on it does.

        Raises:
            ValueError: the size is not possible in this format.
            OutOfMemory: what was asked for, and what is free.
        """
        shape = frame_shape(height_px, width_px, pixel_format)
        nbytes = math.prod(shape)
        room = -(-nbytes // _WORD) * _WORD
        purpose = f"a camera's frame of {width_px}x{height_px}"
        twin = None if self._integrated else DeviceBuffer(room, purpose)
        forgotten = _Forgotten(twin)
        with HostBuffer(room, purpose, when_freed=forgotten) as host:  # closed: the arrays keep the memory from now on
            array = host.array(shape)
            address, mapped = host.address, host.device_address
        known = _Known(
            host_address=address if twin is not None else 0,
            device_address=mapped if twin is None else twin.address,
            nbytes=nbytes,
            layout=FrameLayout(height_px, width_px, pixel_format),
            array=weakref.ref(array),
        )
        forgotten.then = partial(self._forget, id(array), address)
        with self._lock:
            self._known[id(array)] = known
            self._by_address[address] = known
        return array

    def _forget(self, identity: int, address: int) -> None:
        with self._lock:
            self._known.pop(identity, None)
            self._by_address.pop(address, None)

    def place(self, frame: Frame, row: memoryview, spare: StagingBuffers, index: int, stream: Stream) -> None:
        """Describe a frame in `row` (of `DESCRIPTION_BYTES`), and queue on `stream` the copy that it needs.

        `spare` takes frames that are in nobody's buffer.

        Raises:
            ValueError: the pixels are not what the frame's meta and format say.
        """
        pixels = frame.pixels
        known = self._known.get(id(pixels))
        if known is None or known.array() is not pixels:
            known = self._look_up(frame)
        if known is None:
            row[:] = spare.place(frame, index, stream)
            return
        if frame.pixel_format != known.layout.pixel_format:
            raise ValueError(f"a buffer for {known.layout.pixel_format} holds a frame of {frame.pixel_format}")
        encoding = frame.meta.yuv
        description = known.descriptions.get(encoding)
        if description is None:
            layout = known.layout
            layout = FrameLayout(layout.height_px, layout.width_px, layout.pixel_format, encoding)
            description = known.descriptions[encoding] = describe_frame(self._card, layout, known.device_address)
        row[:] = description
        if known.host_address:
            queue_to_device(known.device_address, known.host_address, known.nbytes, stream)

    def _look_up(self, frame: Frame) -> _Known | None:
        """The buffer of pixels whose array is not the one that was handed out; None where it is somebody else's."""
        require_pixels(frame)
        pixels = frame.pixels
        if isinstance(pixels, DeviceImage):
            return self._adopt(pixels, frame)
        known = self._by_address.get(pixels.ctypes.data)
        return known if known is not None and known.layout == _layout_of(frame, known.layout.yuv) else None

    def _adopt(self, image: DeviceImage, frame: Frame) -> _Known:
        """Remember a frame on the GPU for as long as it lives."""
        if not image.address:
            raise ValueError("this is a part of a frame in GPU memory: only whole ones have an address")
        known = _Known(0, image.address, image.nbytes, _layout_of(frame), weakref.ref(image))
        weakref.finalize(image, self._forget, id(image), 0).atexit = False
        with self._lock:
            self._known[id(image)] = known
        return known


class _Forgotten:
    """What happens once a buffer's memory is gone."""

    def __init__(self, twin: DeviceBuffer | None) -> None:
        self._twin = twin
        self.then: Callable[[], object] | None = None

    def __call__(self) -> None:
        if self.then is not None:
            self.then()
        if self._twin is not None:
            self._twin.close()


def require_pixels(frame: Frame) -> None:
    """
    Raises:
        ValueError: the pixels are not what the frame's meta and format say.
    """
    meta = frame.meta
    expected = frame_shape(meta.height_px, meta.width_px, frame.pixel_format)
    pixels = frame.pixels
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise ValueError(
            f"camera {meta.camera_id}: a {frame.pixel_format} frame of {meta.width_px}x{meta.height_px} has uint8 "
            f"{expected}, got {pixels.dtype} {pixels.shape}"
        )
    if not pixels.flags.c_contiguous and not isinstance(pixels, DeviceImage):
        raise ValueError(f"camera {meta.camera_id}: the pixels of a frame are contiguous, these are not")


def _layout_of(frame: Frame, encoding: YuvEncoding = "bt601") -> FrameLayout:
    return FrameLayout(frame.meta.height_px, frame.meta.width_px, frame.pixel_format, encoding)


class StagingBuffers:
    """Room on the GPU for frames that came in memory of their own, one place for each of a batch.

    Slower, since such memory is not page-locked: meant for frames from files and for tests.
    """

    def __init__(self, spec: InputSpec, places: int) -> None:
        self._card = spec
        self._rooms: list[DeviceBuffer | None] = [None] * places

    def place(self, frame: Frame, index: int, stream: Stream) -> bytes:
        """Copy a frame to place `index`; returns its description."""
        pixels = frame.pixels
        room = self._rooms[index]
        if room is None or room.nbytes < pixels.nbytes:
            if room is not None:
                room.close()
            nbytes = -(-pixels.nbytes // _WORD) * _WORD
            _log.debug("a frame of camera %s came in memory of its own", frame.meta.camera_id)
            room = self._rooms[index] = DeviceBuffer(nbytes, "frames that are in no buffer of the detector")
        copy_to_device(room.address, pixels.ctypes.data, pixels.nbytes, stream)
        return describe_frame(self._card, _layout_of(frame, frame.meta.yuv), room.address)

    def close(self) -> None:
        """Free the room. May be called twice."""
        for room in self._rooms:
            if room is not None:
                room.close()
