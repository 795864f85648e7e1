"""The protocols of frame sources (cameras, files, synthetic cameras) and of the sink that receives their frames."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, SupportsFloat

from msgspec import Struct

from vision.errors import SourceError
from vision.types import ClockSource, DropReason, FrameBuffer, FrameMeta, PixelFormat, YuvEncoding

_MAX_FPS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The properties of a stream, which are known when its source is open."""

    width_px: int
    height_px: int
    pixel_format: PixelFormat
    fps: float | None  # nominal, frames/s; None if unknown
    decoder: str  # for status and doctor: "ffmpeg", "avdec_h264", "nvv4l2decoder", ...
    yuv: YuvEncoding = "bt601"  # color encoding of nv12 and i420 frames, unless `Grab.yuv` is set


class Grab(Struct, frozen=True, gc=False):
    """One frame that has arrived, before its pixels are copied."""

    captured_ns: int  # capture time, monotonic
    captured_utc_ns: int  # the same time in UTC
    clock: ClockSource  # source of the capture time
    pts_ns: int | None  # presentation time in the stream; None if the stream has no times
    corrupt: bool = False  # decoded after packet loss, before the next key frame
    yuv: YuvEncoding | None = None  # color encoding, which streams can change; None means `StreamInfo.yuv`


class SkippedFrames:
    """Thread-safe counter, by reason, of the frames that a source received but did not deliver."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[DropReason] = Counter()

    def add(self, reason: DropReason, frames: int = 1) -> None:
        """Add `frames` to the count of a reason."""
        if frames:
            with self._lock:
                self._counts[reason] += frames

    def take(self) -> Mapping[DropReason, int]:
        """Return the counts by reason since the previous call."""
        if not self._counts:
            return {}
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return counts


class Source(Protocol):
    """A camera, file, folder, or synthetic camera. Call all methods except `interrupt` from one thread.

    Every implementation passes ``tests/contract/test_source.py``.
    """

    skipped: SkippedFrames
    """Counter of the frames that `grab` skipped, for example because they could not be decoded."""

    @property
    def live(self) -> bool:
        """True if the source is a camera. Its frames arrive at their own rate, so old frames are not useful."""

    def open(self) -> StreamInfo:
        """Connect to the source within its open timeout, and return the properties of the stream.

        Raises:
            SourceError: the source cannot be opened.
        """

    def grab(self, timeout_s: float) -> Grab | None:
        """Advance to the next frame, and return the frame.

        Return None after `timeout_s` without a frame, or after `interrupt`.

        Raises:
            EndOfStream: a finite source has no more frames.
            SourceError: the connection or the decoder failed, or the source is not open.
        """

    def retrieve(self, out: FrameBuffer) -> None:
        """Write the last grabbed frame into the host memory of `out`, or into GPU memory if `out` has no host memory.

        Raises:
            SizeChanged: the frame has a different size; call again with a buffer of that size.
            SourceError: the frame could not be decoded, or there is no grabbed frame.
            ValueError: `out` has no host memory, but this source writes only to host memory.
        """

    def interrupt(self) -> None:
        """Make a blocked `grab` or `open` return soon, if the library allows it. Any thread can call this method."""

    def close(self) -> None:
        """Release all resources. This method is idempotent, and can be called before `open`."""


class FrameSink(Protocol):
    """Destination of the frames of one camera. `vision.runtime.latest_slot.LatestSlot` implements this protocol."""

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        """Allocate buffers for frames of this size and format, unless the current buffers already fit.

        If the buffers change, drop a waiting frame.

        Raises:
            ValueError: the format does not allow this size.
            OutOfMemory, MemoryError: memory is exhausted. There are no buffers until the next call.
        """

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        """Return the buffer for the next frame, or None if a lossless sink has no free buffer within `timeout_s`.

        Raises:
            Closed: the program is stopping.
        """

    def commit(self, meta: FrameMeta) -> None:
        """Pass on the frame that was written into the last buffer from `write_buffer`, as the newest frame."""

    def drop(self, reason: DropReason) -> None:
        """Add a frame that arrived, but is not published, to the count of `reason`."""

    def flush(self, reason: DropReason) -> None:
        """Drop the waiting frame, if any, because it is no longer current. `reason` is the reason to count."""

    def end(self) -> None:
        """Record that the source has ended. A waiting frame can still be read."""


def plausible_fps(rate: SupportsFloat | None) -> float | None:
    """Return `rate` in frames/s, or None if it is unknown or above 1000.

    Some streams report their time base, which is a larger number, instead of their frame rate.
    """
    fps = float(rate or 0.0)
    return fps if 0 < fps <= _MAX_FPS else None


def not_open(source: str | Path, call: Literal["grab", "retrieve"]) -> SourceError:
    """Return the error for `grab` before `open`, `retrieve` before `grab`, or either call after `close`."""
    first = "open" if call == "grab" else "grab"
    return SourceError(f"{source}: `{call}` was called before `{first}`, or after `close`", code="not-open")


IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def holds_images(path: Path) -> bool:
    """Return True if `path` is a folder or a still image, or False if it is a video."""
    # `Path.is_dir` raises an error if a name is too long.
    return os.path.isdir(path) or path.suffix.lower() in IMAGE_SUFFIXES  # noqa: PTH112
