"""The source protocol: cameras, files and synthetic cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, SupportsFloat

from vision.errors import SourceError
from vision.types import ClockSource, DropReason, FrameBuffer, FrameMeta, PixelFormat, YuvEncoding

_MAX_FPS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The properties of a stream, known when its source is open."""

    width_px: int
    height_px: int
    pixel_format: PixelFormat
    fps: float | None  # nominal, frames/s; None if unknown
    decoder: str  # for status and doctor: "ffmpeg", "avdec_h264", "nvv4l2decoder", ...
    yuv: YuvEncoding = "bt601"  # of nv12 and i420 frames, unless a `Grab` has a different one


@dataclass(frozen=True, slots=True)
class Grab:
    """One frame that has arrived, before its pixels are copied."""

    captured_ns: int  # monotonic
    captured_utc_ns: int
    clock: ClockSource
    pts_ns: int | None  # presentation time in the stream, if there is one
    corrupt: bool = False  # decoded after packet loss, before the next key frame
    yuv: YuvEncoding | None = None  # of this frame, because streams can change it; None means that of `StreamInfo`


class Source(Protocol):
    """A camera, file, folder or synthetic camera. One thread calls all methods except `interrupt`.

    Every implementation passes ``tests/contract/test_source.py``.
    """

    @property
    def live(self) -> bool:
        """Return True if frames arrive at their own rate and old frames are not useful."""

    def open(self) -> StreamInfo:
        """Connect, and return the stream's properties. Returns within the source's open timeout.

        Raises:
            SourceError: the source cannot be opened.
        """

    def grab(self, timeout_s: float) -> Grab | None:
        """Advance to the next frame. Return None if no frame arrived in time.

        Raises:
            EndOfStream: a finite source has no more frames.
            SourceError: the connection or the decoder failed.
        """

    def retrieve(self, out: FrameBuffer) -> None:
        """Write the last grabbed frame into `out`: into its GPU memory if it has no host memory.

        Raises:
            SizeChanged: the frame has a different size; call again with a buffer of that size.
            SourceError: the frame could not be decoded.
            ValueError: `out` has no host memory, but this source writes only to host memory.
        """

    def interrupt(self) -> None:
        """Make a blocked `grab` or `open` return soon if the library allows it. Any thread can call it."""

    def close(self) -> None:
        """Release all resources. Idempotent, and allowed before `open`."""


class FrameSink(Protocol):
    """The destination of a camera's frames: the writer's side of `vision.runtime.latest_slot.LatestSlot`."""

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        """Allocate buffers for this size and format, if they differ from the current ones.

        A waiting frame of the old buffers is dropped.

        Raises:
            ValueError: the format does not allow this size.
            OutOfMemory, MemoryError: memory is exhausted. There are no buffers until the next call.
        """

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        """Return the buffer for the next frame, or None if a lossless sink has no free buffer in time.

        Raises:
            Closed: the program is stopping.
        """

    def commit(self, meta: FrameMeta) -> None:
        """Publish the frame in the last buffer."""

    def drop(self, reason: DropReason) -> None:
        """Count a grabbed frame that is not published."""

    def flush(self, reason: DropReason) -> None:
        """Drop the waiting frame, if any, because it is no longer current."""

    def end(self) -> None:
        """Mark the end of the source. A waiting frame can still be read."""


def plausible_fps(rate: SupportsFloat | None) -> float | None:
    """Return a frame rate in frames/s, or None if the value cannot be one, such as the time base of a stream."""
    fps = float(rate or 0.0)
    return fps if 0 < fps <= _MAX_FPS else None


def not_open(source: str | Path, call: Literal["grab", "retrieve"]) -> SourceError:
    """Return the error for a call out of order: `grab` before `open`, or `retrieve` before `grab`."""
    before = "open" if call == "grab" else "grab"
    return SourceError(f"{source}: {call} before {before}, or after close", code="not-open")


IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def holds_images(path: Path) -> bool:
    """Return True if `path` is a folder or a still image, False if it is a video."""
    return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES
