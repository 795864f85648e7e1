"""Immutable types of the values that the parts of the program pass to each other.

Boxes have the same format everywhere: ``boxes_xyxy``, float32, ``(N, 4)``, pixels of the source frame, ``x2 > x1``.
Times are nanoseconds of the monotonic clock. Additional UTC times are for people and messages.

The values of a frame are structs of msgspec, because a frozen dataclass takes six times as long to create. To change a
field of a copy, use `msgspec.structs.replace`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Final, Literal, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

PixelFormat: TypeAlias = Literal["bgr", "bgrx", "nv12", "i420"]

YuvEncoding: TypeAlias = Literal["bt601", "bt601-full", "bt709", "bt709-full"]
"""Color encoding of NV12 and I420 frames: the matrix of ITU-R BT.601 or BT.709, with luma from 16 to 235, or from 0 to
255 (``full``). The encoding has no meaning for BGR frames."""

ClockSource: TypeAlias = Literal["rtcp", "arrival", "media"]
"""Source of a capture time: the camera's RTCP sender report (``rtcp``), this machine's clock when the frame arrived
(``arrival``), or the position in a file (``media``)."""

STEPS_PER_PX: Final = 5
"""Number of steps per pixel to which the boxes of tracks are rounded. The coordinates are multiples of 0.2 px."""


class DropReason(str, Enum):
    """Reason why a grabbed frame was not published. For each camera, grabbed = published + dropped + in flight."""

    SUPERSEDED = "superseded"  # a newer frame of the same camera arrived before the next stage was free
    MAX_FPS = "max_fps"  # the camera's `max_fps` was reached
    STALE = (
        "stale"  # the frame was older than `max_frame_age_s`, was skipped by a slow decoder, or its camera was frozen
    )
    CORRUPT = "corrupt"  # the frame was between a packet loss and the next key frame, or could not be decoded
    EPOCH = "epoch"  # the frame was waiting when the source was lost or changed its frame size
    WORKER = "worker"  # the frame was waiting or in flight when its worker process ended
    STOPPED = "stopped"  # the frame was waiting or in flight when the program ended

    __hash__ = str.__hash__  # otherwise, the enumeration computes its hash in Python


SlowStage: TypeAlias = Literal["capture", "detector", "results"]
"""Stage that caused a drop with the reason `DropReason.SUPERSEDED` or `DropReason.STALE`.

* ``capture``: the steps before the slot of the camera. The decoder was too slow, or the camera was frozen.
* ``detector``: the batching and the detector.
* ``results``: the steps after the detector, which are the stages and the sinks.
"""


def frame_shape(height_px: int, width_px: int, pixel_format: PixelFormat) -> tuple[int, ...]:
    """Return the shape of the uint8 array that holds one frame.

    Raises:
        ValueError: the format is NV12 or I420, and the width or height is odd.
    """
    if pixel_format == "bgr":
        return (height_px, width_px, 3)
    if pixel_format == "bgrx":
        return (height_px, width_px, 4)
    if height_px % 2 or width_px % 2:
        raise ValueError(f"expected an even width and height for {pixel_format}, got {width_px}x{height_px}")
    return (height_px * 3 // 2, width_px)


class FrameMeta(msgspec.Struct, frozen=True, gc=False):
    """Description of one frame, without its pixels."""

    camera_id: str
    index: int  # number of the grabbed frame within its epoch; a gap means dropped frames
    epoch: int  # increases with each reconnection or change of frame size
    captured_ns: int  # capture time on the monotonic clock
    captured_utc_ns: int  # capture time in UTC
    width_px: int
    height_px: int
    clock: ClockSource = "arrival"
    yuv: YuvEncoding = "bt601"


class SharedMemory(Protocol):
    """A file in memory that contains the frames of one camera, and that other processes can map."""

    number: int  # identifies the file in this process
    nbytes: int

    def fileno(self) -> int:
        """Return the descriptor of the file, which stays open as long as this object exists."""


class DeviceMemory(Protocol):
    """GPU memory of one frame, which is freed together with the last reference to it (`vision.gpu.memory`)."""

    def read_rows(self, first_byte: int, pitch_bytes: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        """Return a copy of rows in host memory: uint8, (rows, row_bytes).

        The first row starts at `first_byte`, and each further row starts `pitch_bytes` after the previous row.
        """


@dataclass(frozen=True, slots=True, eq=False)
class FrameBuffer:
    """Buffer for one frame, in host memory, GPU memory, or both.

    The memory exists as long as the buffer object. A buffer is equal only to itself.
    """

    pixel_format: PixelFormat
    height_px: int
    width_px: int
    host: NDArray[np.uint8] | None
    """Pixels, C-contiguous, with the shape `shape`. None if the frame is only in GPU memory."""
    device_address: int = 0
    """Address from which the GPU reads the frame. 0 if the frame is only in host memory."""
    upload_address: int = 0
    """Address of page-locked host memory to copy to `device_address` before the GPU reads. 0 if no copy is needed."""
    device: DeviceMemory | None = None
    shared: tuple[SharedMemory, int] | None = None
    """The file that contains `host`, and the offset in this file. None if other processes cannot read the frame."""

    @classmethod
    def allocate(cls, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        """Allocate a buffer in ordinary host memory.

        Raises:
            ValueError: the format is NV12 or I420, and the width or height is odd.
        """
        shape = frame_shape(height_px, width_px, pixel_format)
        return cls(pixel_format, height_px, width_px, np.empty(shape, np.uint8))

    @classmethod
    def wrap(cls, pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> FrameBuffer:
        """Return a buffer that refers to `pixels` in host memory without copying the pixels."""
        planar = pixel_format in ("nv12", "i420")
        height_px = pixels.shape[0] * 2 // 3 if planar else pixels.shape[0]
        return cls(pixel_format, height_px, pixels.shape[1], pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the frame's uint8 array, as returned by `frame_shape`."""
        return frame_shape(self.height_px, self.width_px, self.pixel_format)

    def require_host(self) -> NDArray[np.uint8]:
        """Return the array of pixels in host memory without copying it.

        Raises:
            ValueError: the frame is only in GPU memory.
        """
        if self.host is None:
            raise ValueError("expected a buffer in host memory, got one in GPU memory only")
        return self.host

    def read(self) -> NDArray[np.uint8]:
        """Return the pixels: `host` if the frame is in host memory, and otherwise a copy from the GPU.

        Raises:
            DeviceError: the copy from the GPU failed.
            ValueError: the buffer has neither host memory nor GPU memory.
        """
        if self.host is not None:
            return self.host
        shape = self.shape
        return self._device().read_rows(0, 0, 1, math.prod(shape)).reshape(shape)

    def read_rows(self, first: int, step: int) -> NDArray[np.uint8]:
        """Return the rows `first`, `first + step`, ... as uint8 (rows, bytes per row).

        Copy only these rows if the frame is in GPU memory.

        Raises:
            DeviceError: the copy from the GPU failed.
            ValueError: the buffer has neither host memory nor GPU memory.
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
    """A frame in a buffer of its camera.

    The frame is valid until its `Lease` is released, because the buffer is then used for another frame.
    """

    meta: FrameMeta
    buffer: FrameBuffer

    @classmethod
    def wrap(cls, meta: FrameMeta, pixels: NDArray[np.uint8], pixel_format: PixelFormat) -> Frame:
        """Return a frame that refers to `pixels` in host memory, without copying them."""
        return cls(meta, FrameBuffer.wrap(pixels, pixel_format))

    @property
    def pixel_format(self) -> PixelFormat:
        return self.buffer.pixel_format

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Pixels in host memory: uint8, C-contiguous; bgr (H, W, 3), bgrx (H, W, 4), other formats (3H/2, W).

        If the frame is only in GPU memory, the first access copies it. Subsequent accesses return the same array.
        """
        host = self.buffer.host
        return self._copy if host is None else host

    @cached_property
    def _copy(self) -> NDArray[np.uint8]:
        return self.buffer.read()


@dataclass(frozen=True, slots=True)
class Mask:
    """The pixels of one object, as a grid of cells over a region that contains the object's box."""

    cells: NDArray[np.bool_]  # (h, w), at least 1 x 1; True where the object is
    region_xyxy: tuple[float, float, float, float]  # source pixels of the whole grid; can extend beyond the frame


@dataclass(frozen=True, slots=True)
class Shapes:
    """Masks, keypoints, and rotated boxes of N objects, in the order of their boxes.

    If the model does not have one of these outputs, the attribute is None.
    """

    masks: tuple[Mask, ...] | None = None
    keypoints: NDArray[np.float32] | None = None  # (N, K, 3) x and y in source pixels, score in [0, 1]
    keypoint_names: tuple[str, ...] = ()  # K names; empty if they are not known
    rotated_boxes: NDArray[np.float32] | None = None
    """(N, 5) center x, center y, longer side, and shorter side in source pixels; angle of the longer side in radians,
    from 0 to pi, clockwise from the x axis."""

    def take(self, rows: NDArray[np.intp]) -> Shapes:
        """Return the shapes of the objects with the indices `rows`."""
        return Shapes(
            None if self.masks is None else tuple(self.masks[row] for row in rows.tolist()),
            None if self.keypoints is None else self.keypoints[rows],
            self.keypoint_names,
            None if self.rotated_boxes is None else self.rotated_boxes[rows],
        )


def rotated_corners(rotated_boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the corners (N, 4, 2) of N rotated boxes, clockwise in the frame.

    Each row of `rotated_boxes` contains a center, two sides, and an angle, as in `Shapes.rotated_boxes`.
    """
    x, y, longer, shorter, angle = rotated_boxes.astype(np.float64).T
    along = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * longer[:, None] / 2
    across = np.stack([-np.sin(angle), np.cos(angle)], axis=-1) * shorter[:, None] / 2
    center = np.stack([x, y], axis=-1)
    corners = [center - along - across, center + along - across, center + along + across, center - along + across]
    return np.stack(corners, axis=1)


class Detections(msgspec.Struct, frozen=True):
    """N objects detected in one frame, highest score first."""

    boxes_xyxy: NDArray[np.float32]  # (N, 4) source pixels
    scores: NDArray[np.float32]  # (N,) in [0, 1]
    class_ids: NDArray[np.int32]  # (N,)
    truncated_candidates: int = 0  # number of candidates that exceeded the detector's capacity and were ignored
    shapes: Shapes | None = None  # None if the model finds only boxes

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: NDArray[np.intp]) -> Detections:
        """Return the objects with the indices `rows`, including their shapes."""
        shapes = None if self.shapes is None else self.shapes.take(rows)
        boxes, scores, class_ids = self.boxes_xyxy[rows], self.scores[rows], self.class_ids[rows]
        return Detections(boxes, scores, class_ids, self.truncated_candidates, shapes)

    @staticmethod
    def empty() -> Detections:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


class Tracks(msgspec.Struct, frozen=True):
    """M tracks that were detected in one frame. A process never gives two tracks the same id.

    Lengths are multiples of 1 / `STEPS_PER_PX` px, so that messages contain exactly the values that analytics reads.
    """

    boxes_xyxy: NDArray[np.float32]  # (M, 4) source pixels
    scores: NDArray[np.float32]  # (M,)
    class_ids: NDArray[np.int32]  # (M,)
    track_ids: NDArray[np.int64]  # (M,)
    age_ms: NDArray[np.int64]  # (M,) time since the track's first detection
    truncated_candidates: int = 0  # as in the frame's `Detections`
    hidden_px: NDArray[np.float32] | None = None  # (M,) height of the hidden part of each object, below its box
    shapes: Shapes | None = None  # shapes of the detections that were matched with the tracks; None as in `Detections`
    previous_xyxy: NDArray[np.float32] | None = None
    """(M, 4) box of each track that is published for the first time, at its previous detection; NaN for other tracks.
    None if no track is published for the first time."""

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Attribute:
    """A class that a second model assigned to one track."""

    model: str
    class_name: str
    score: float  # in [0, 1]
    seen_ns: int  # capture time of the classified frame


ViewNumbers: TypeAlias = tuple[float, float, float, float, float, float]
"""The numbers xx, xy, dx, yx, yy, dy of an affine transformation to the current view of a camera.

The configured point (x, y) is at (xx x + xy y + dx, yx x + yy y + dy) in this view, in pixels of the frame.
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of the lines and zones of one camera, by name and then by key, such as ``in`` or ``in:person``."""

    lines: Mapping[str, Mapping[str, int]]  # with the keys "in" and "out", in total and by class
    zones: Mapping[str, Mapping[str, int]]  # with the keys "entered" and "left", in total and by class
    occupancy: Mapping[str, int]  # current number of objects in each zone
    intervals: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    """95 % interval of the true number, by line or zone and by key. Contains only counts with measured accuracy."""
    view: ViewNumbers | None = None
    """Transformation of configured points to the current view. None if the view has not changed."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the line, zone, or rule `name`. For example, its `kind` is "line_crossed" or "crowded"."""

    kind: str
    name: str
    camera_id: str
    track_id: int | None  # None if the event does not belong to a single object
    at_ns: int  # capture time of the frame
    data: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str = ""  # path of a JPEG file of the frame; empty if there is none
    id: str = ""  # identifies the event if a language model is asked about it; else empty


@dataclass(frozen=True, slots=True)
class ObjectSnapshot:
    """The part of a frame that shows one object best."""

    jpeg: bytes
    at_ns: int  # capture time of the frame
    box_xyxy: tuple[float, float, float, float]  # box of the object in the frame, in source pixels


@dataclass(frozen=True, slots=True)
class ObjectSummary:
    """A summary of one object that has left the scene."""

    track_id: int
    epoch: int
    width_px: int  # size of the frames
    height_px: int
    class_id: int
    score: float  # highest score of its detections
    first_ns: int  # capture time of its first detection
    last_ns: int  # capture time of its last detection
    box_xyxy: tuple[float, float, float, float]  # last box, in source pixels
    path: tuple[tuple[int, float, float], ...]  # time since `first_ns` in ms, and bottom center of the box
    crossings: tuple[tuple[str, str, int], ...]  # name of the line, direction, and time in ns
    visits: tuple[tuple[str, int, int | None], ...]  # name of the zone, and times of entry and exit in ns
    attributes: tuple[Attribute, ...] = ()
    snapshot: ObjectSnapshot | None = None


class Timing(msgspec.Struct, frozen=True, gc=False):
    """Monotonic times, in ns, at which one frame reached the steps of the detector.

    `FrameMeta` contains the capture time.
    """

    batched_ns: int  # the frame was assigned to a batch
    submitted_ns: int  # the batch was submitted to the detector
    inferred_ns: int  # the boxes arrived on the host


class Result(msgspec.Struct, frozen=True):
    """The result of one frame. The detector creates the result. Stages replace `objects` and append `events`."""

    meta: FrameMeta
    objects: Detections | Tracks
    timing: Timing
    dropped_before: Mapping[str, int] = msgspec.field(default_factory=dict)  # drops since the last result, by reason
    events: tuple[Event, ...] = ()
    attributes: Mapping[int, tuple[Attribute, ...]] = msgspec.field(default_factory=dict)  # by track id
    counts: Counts | None = None  # None if the camera has no lines or zones
    left: tuple[ObjectSummary, ...] = ()  # objects that left the scene; empty without `objects` in the configuration
