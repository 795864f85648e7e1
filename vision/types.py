"""The values that travel between the stages: frozen, with shape, dtype and unit beside every field.

Boxes have one format everywhere: ``boxes_xyxy``, float32, ``(N, 4)``, pixels of the source frame, ``x2 > x1``.
Times are nanoseconds of the monotonic clock; UTC appears only beside them, for people and messages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

PixelFormat: TypeAlias = Literal["bgr", "bgrx", "nv12", "i420"]

YuvEncoding: TypeAlias = Literal["bt601", "bt601-full", "bt709", "bt709-full"]
"""How NV12 and I420 numbers mean colours: the matrix (ITU-R BT.601 or BT.709), and whether black to white is 16 to 235
or, full, 0 to 255. Without meaning for BGR."""

ClockSource: TypeAlias = Literal["rtcp", "arrival", "media"]
"""Where a capture time comes from: the camera's RTCP sender report, this machine's clock when the frame
arrived, or the position in a recorded file."""


class DropReason(str, Enum):
    """Why a grabbed frame was not published. Per camera: grabbed = published + sum of drops + frames in flight."""

    SUPERSEDED = "superseded"  # a newer frame of the same camera came before the detector had room
    MAX_FPS = "max_fps"  # the camera's `max_fps` was reached
    STALE = "stale"  # older than `max_frame_age_s` when its turn came
    CORRUPT = "corrupt"  # decoded after packet loss, before the next key frame
    EPOCH = "epoch"  # waiting when the source was lost or changed its frame size
    STOPPED = "stopped"  # waiting or in flight when the program ended


def frame_shape(height_px: int, width_px: int, pixel_format: PixelFormat) -> tuple[int, ...]:
    """Shape of the uint8 array that holds one frame.

    Raises:
        ValueError: NV12 and I420 need an even width and height.
    """
    if pixel_format == "bgr":
        return (height_px, width_px, 3)
    if pixel_format == "bgrx":
        return (height_px, width_px, 4)
    if height_px % 2 or width_px % 2:
        raise ValueError(f"{pixel_format} frames have even sides, got {width_px}x{height_px}")
    return (height_px * 3 // 2, width_px)


@dataclass(frozen=True, slots=True)
class FrameMeta:
    """What is known of one frame. `index` counts grabbed frames per camera and epoch: a gap is a drop."""

    camera_id: str
    index: int
    epoch: int  # +1 at each reconnection or change of frame size
    captured_ns: int  # monotonic
    captured_utc_ns: int
    width_px: int
    height_px: int
    clock: ClockSource = "arrival"
    yuv: YuvEncoding = "bt601"


class DeviceMemory(Protocol):
    """GPU memory of one frame, freed with the last object that holds it (`vision.gpu.memory`)."""

    def read_rows(self, first_byte: int, pitch_bytes: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        """Return a copy of `rows` pieces that begin `pitch_bytes` apart, shape (rows, row_bytes)."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameBuffer:
    """Memory for one frame: in host memory, in GPU memory, or in both.

    The memory lives as long as the buffer. A buffer is equal only to itself.
    """

    pixel_format: PixelFormat
    height_px: int
    width_px: int
    host: NDArray[np.uint8] | None
    """uint8, C-contiguous, shape `shape`. None: the frame is in GPU memory only."""
    device_address: int = 0
    """Where the GPU reads the frame. 0: the GPU has no memory for it."""
    upload_address: int = 0
    """Page-locked host memory to copy to `device_address` before the GPU reads it. 0: there is nothing to copy."""
    device: DeviceMemory | None = None

    @classmethod
    def allocate(cls, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        """Return a buffer in ordinary host memory.

        Raises:
            ValueError: the format does not allow this size.
        """
        shape = frame_shape(height_px, width_px, pixel_format)
        return cls(pixel_format, height_px, width_px, np.empty(shape, np.uint8))

    @classmethod
    def wrap(cls, pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> FrameBuffer:
        """Return a buffer over pixels in host memory, without copying them."""
        planar = pixel_format in ("nv12", "i420")
        height_px = pixels.shape[0] * 2 // 3 if planar else pixels.shape[0]
        return cls(pixel_format, height_px, pixels.shape[1], pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the frame's array, see `frame_shape`."""
        return frame_shape(self.height_px, self.width_px, self.pixel_format)

    def require_host(self) -> NDArray[np.uint8]:
        """Return the pixels in host memory, to write to.

        Raises:
            ValueError: the frame is in GPU memory only.
        """
        if self.host is None:
            raise ValueError("expected a buffer in host memory, this one is in GPU memory only")
        return self.host

    def read(self) -> NDArray[np.uint8]:
        """Return the pixels: the buffer's own if they are in host memory, otherwise a copy.

        Raises:
            DeviceError: the copy from the GPU failed.
        """
        if self.host is not None:
            return self.host
        shape = self.shape
        return self._device().read_rows(0, 0, 1, math.prod(shape)).reshape(shape)

    def read_rows(self, first: int, step: int) -> NDArray[np.uint8]:
        """Return rows `first`, `first + step`, ... with shape (rows, bytes of a row). Copies only these from the GPU.

        Raises:
            DeviceError: the copy from the GPU failed.
        """
        if self.host is not None:
            return self.host.reshape(len(self.host), -1)[first::step]
        rows, *row = self.shape
        row_bytes = math.prod(row)
        return self._device().read_rows(first * row_bytes, step * row_bytes, len(range(first, rows, step)), row_bytes)

    def _device(self) -> DeviceMemory:
        if self.device is None:
            raise ValueError("a frame buffer has host memory, GPU memory, or both; this one has neither")
        return self.device


@dataclass(frozen=True)
class Frame:
    """A frame in a buffer that belongs to its camera: valid only while its lease is held."""

    meta: FrameMeta
    buffer: FrameBuffer

    @classmethod
    def wrap(cls, meta: FrameMeta, pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> Frame:
        """Return a frame over pixels in host memory, without copying them."""
        return cls(meta, FrameBuffer.wrap(pixels, pixel_format))

    @property
    def pixel_format(self) -> PixelFormat:
        return self.buffer.pixel_format

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """Pixels in host memory: uint8, C-contiguous; bgr (H, W, 3), bgrx (H, W, 4), nv12 and i420 (3H/2, W).

        The first access copies a frame that is in GPU memory only. Later ones return the same array.
        """
        return self.buffer.read()


@dataclass(frozen=True, slots=True)
class Detections:
    """N objects of one frame, best score first."""

    boxes_xyxy: NDArray[np.float32]  # (N, 4) source pixels
    scores: NDArray[np.float32]  # (N,) in [0, 1]
    class_ids: NDArray[np.int32]  # (N,)
    truncated_candidates: int = 0  # candidates over the detector's capacity that were not considered

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty() -> Detections:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Tracks:
    """M followed objects of one frame. A track id is never used twice while the process lives."""

    boxes_xyxy: NDArray[np.float32]  # (M, 4) source pixels
    scores: NDArray[np.float32]  # (M,)
    class_ids: NDArray[np.int32]  # (M,)
    track_ids: NDArray[np.int64]  # (M,)
    age_ms: NDArray[np.int64]  # (M,) since the track's first detection
    truncated_candidates: int = 0  # of the frame's detections

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Attribute:
    """What a second model says of one followed object."""

    model: str
    class_name: str
    score: float  # in [0, 1]
    seen_ns: int  # monotonic; of the frame that the model looked at


@dataclass(frozen=True, slots=True)
class Counts:
    """What the lines and zones of one camera have counted, by their names and then by ``in``, ``in:person``, ..."""

    lines: Mapping[str, Mapping[str, int]]  # "in" and "out"
    zones: Mapping[str, Mapping[str, int]]  # "entered" and "left"
    occupancy: Mapping[str, int]  # objects in each zone now


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened: `kind` ("line_crossed", "crowded", ...) at the line or zone called `name`."""

    kind: str
    name: str
    camera_id: str
    track_id: int | None
    at_ns: int  # monotonic
    data: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str = ""  # path of a JPEG of the frame; empty where none was taken


@dataclass(frozen=True, slots=True)
class Timing:
    """When one frame passed each point, monotonic ns. Zero where it has not been yet."""

    captured_ns: int
    batched_ns: int = 0  # bound to a batch
    submitted_ns: int = 0  # handed to the detector
    inferred_ns: int = 0  # boxes were back on the host
    published_ns: int = 0  # handed to the sockets


@dataclass(frozen=True, slots=True)
class Result:
    """All that is known of one frame after the detector; stages replace `objects` and append `events`."""

    meta: FrameMeta
    objects: Detections | Tracks
    timing: Timing
    dropped_before: Mapping[str, int] = field(default_factory=dict)  # reason -> frames since the last result
    events: tuple[Event, ...] = ()
    attributes: Mapping[int, tuple[Attribute, ...]] = field(default_factory=dict)  # by track id
    counts: Counts | None = None  # None: nothing counts
