"""The values passed between the stages: frozen, with the shape, dtype and unit of every field.

Boxes have one format everywhere: ``boxes_xyxy``, float32, ``(N, 4)``, pixels of the source frame, ``x2 > x1``.
Times are nanoseconds of the monotonic clock. UTC times are additional, for people and messages.
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
"""Color encoding of NV12 and I420: the matrix (ITU-R BT.601 or BT.709), and the range of luma: 16 to 235, or 0 to 255
(``full``). BGR frames ignore it."""

ClockSource: TypeAlias = Literal["rtcp", "arrival", "media"]
"""Source of a capture time: the camera's RTCP sender report, this machine's clock at the arrival of the frame, or the
position in a recorded file."""


class DropReason(str, Enum):
    """Reason for a grabbed frame that was not published. Per camera: grabbed = published + drops + frames in flight."""

    SUPERSEDED = "superseded"  # a newer frame of the same camera arrived before the detector was free
    MAX_FPS = "max_fps"  # the camera's `max_fps` was reached
    STALE = "stale"  # older than `max_frame_age_s` when the detector was free
    CORRUPT = "corrupt"  # decoded after packet loss, before the next key frame
    EPOCH = "epoch"  # waiting when the source was lost or changed its frame size
    STOPPED = "stopped"  # waiting or in flight when the program ended


def frame_shape(height_px: int, width_px: int, pixel_format: PixelFormat) -> tuple[int, ...]:
    """Return the shape of the uint8 array that holds one frame.

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
    """Description of one frame. `index` counts grabbed frames per camera and epoch: a gap is a drop."""

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
    """GPU memory of one frame, freed with the last object that refers to it (`vision.gpu.memory`)."""

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
    """Pixels: uint8, C-contiguous, shape `shape`. None: the frame is in GPU memory only."""
    device_address: int = 0
    """Address from which the GPU reads the frame. 0: the frame is in host memory only."""
    upload_address: int = 0
    """Address of page-locked host memory to copy to `device_address` before the GPU reads it. 0: nothing to copy."""
    device: DeviceMemory | None = None

    @classmethod
    def allocate(cls, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        """Return a buffer in ordinary host memory.

        Raises:
            ValueError: The format does not allow this size.
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
        """Return the shape of the frame's array, see `frame_shape`."""
        return frame_shape(self.height_px, self.width_px, self.pixel_format)

    def require_host(self) -> NDArray[np.uint8]:
        """Return the pixels in host memory, to write to.

        Raises:
            ValueError: The frame is in GPU memory only.
        """
        if self.host is None:
            raise ValueError("expected a buffer in host memory, got one in GPU memory only")
        return self.host

    def read(self) -> NDArray[np.uint8]:
        """Return the pixels: the buffer's own if they are in host memory, otherwise a copy.

        Raises:
            DeviceError: The copy from the GPU failed.
        """
        if self.host is not None:
            return self.host
        shape = self.shape
        return self._device().read_rows(0, 0, 1, math.prod(shape)).reshape(shape)

    def read_rows(self, first: int, step: int) -> NDArray[np.uint8]:
        """Return rows `first`, `first + step`, ... with shape (rows, bytes of a row). Copies only these from the GPU.

        Raises:
            DeviceError: The copy from the GPU failed.
        """
        if self.host is not None:
            return self.host.reshape(len(self.host), -1)[first::step]
        rows, *row = self.shape
        row_bytes = math.prod(row)
        return self._device().read_rows(first * row_bytes, step * row_bytes, len(range(first, rows, step)), row_bytes)

    def _device(self) -> DeviceMemory:
        if self.device is None:
            raise ValueError("expected a buffer in host memory or GPU memory, got one with neither")
        return self.device


@dataclass(frozen=True)
class Frame:
    """A frame in a buffer of its camera. Valid only while its lease is held."""

    meta: FrameMeta
    buffer: FrameBuffer

    @classmethod
    def wrap(cls, meta: FrameMeta, pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> Frame:
        """Return a frame over pixels in host memory, without copying them."""
        return cls(meta, FrameBuffer.wrap(pixels, pixel_format))

    @property
    def pixel_format(self) -> PixelFormat:
        return self.buffer.pixel_format

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Return the pixels in host memory: uint8, C-contiguous; bgr (H, W, 3), bgrx (H, W, 4), others (3H/2, W).

        The first access copies a frame that is in GPU memory only. Later ones return the same array.
        """
        host = self.buffer.host
        return self._copy if host is None else host

    @cached_property
    def _copy(self) -> NDArray[np.uint8]:
        return self.buffer.read()


@dataclass(frozen=True, slots=True)
class Detections:
    """N objects of one frame, best score first."""

    boxes_xyxy: NDArray[np.float32]  # (N, 4) source pixels
    scores: NDArray[np.float32]  # (N,) in [0, 1]
    class_ids: NDArray[np.int32]  # (N,)
    truncated_candidates: int = 0  # candidates above the detector's capacity, which it ignored

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty() -> Detections:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Tracks:
    """M tracks of one frame. The process never uses a track id twice."""

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
    """Result of a second model for one track."""

    model: str
    class_name: str
    score: float  # in [0, 1]
    seen_ns: int  # monotonic; capture time of the classified frame


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of the lines and zones of one camera, by name and then by ``in``, ``in:person``, ..."""

    lines: Mapping[str, Mapping[str, int]]  # "in" and "out"
    zones: Mapping[str, Mapping[str, int]]  # "entered" and "left"
    occupancy: Mapping[str, int]  # objects in each zone now


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a `kind` ("line_crossed", "crowded", ...) at the line or zone called `name`."""

    kind: str
    name: str
    camera_id: str
    track_id: int | None
    at_ns: int  # monotonic
    data: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str = ""  # path of a JPEG of the frame; empty if there is none


@dataclass(frozen=True, slots=True)
class Timing:
    """Times at which one frame passed the detector, monotonic ns. `FrameMeta` has the time of its capture."""

    batched_ns: int  # assigned to a batch
    submitted_ns: int  # submitted to the detector
    inferred_ns: int  # boxes arrived on the host


@dataclass(frozen=True, slots=True)
class Result:
    """Result of one frame after the detector. Stages replace `objects` and append `events`."""

    meta: FrameMeta
    objects: Detections | Tracks
    timing: Timing
    dropped_before: Mapping[str, int] = field(default_factory=dict)  # reason -> frames since the last result
    events: tuple[Event, ...] = ()
    attributes: Mapping[int, tuple[Attribute, ...]] = field(default_factory=dict)  # by track id
    counts: Counts | None = None  # None: without analytics
