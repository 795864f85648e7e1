"""Where pixels come in: one protocol for every kind of camera, file or generator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vision.errors import SourceError
from vision.types import ClockSource, DropReason, FrameBuffer, FrameMeta, PixelFormat, YuvEncoding


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a source tells about its stream when it opens."""

    width_px: int
    height_px: int
    pixel_format: PixelFormat
    fps: float | None  # nominal, frames/s; None where the source does not say
    decoder: str  # who decodes, for status and doctor: "ffmpeg", "avdec_h264", "nvv4l2decoder", ...
    yuv: YuvEncoding = "bt601"  # of nv12 and i420 frames, as long as no `Grab` says another


@dataclass(frozen=True, slots=True)
class Grab:
    """One frame that has arrived, before its pixels are copied out."""

    captured_ns: int  # monotonic
    captured_utc_ns: int
    clock: ClockSource
    pts_ns: int | None  # presentation time in the stream, where the source has one
    corrupt: bool = False  # decoded after packet loss, before the next key frame
    yuv: YuvEncoding | None = None  # of this frame: streams change it, with their size or alone; None: as it began


class Source(Protocol):
    """A camera, a file, a folder or a generator. One thread calls all but `interrupt`.

    Every implementation passes ``tests/contract/test_source.py``.
    """

    @property
    def live(self) -> bool:
        """True where frames come at their own pace and old ones are worthless."""

    def open(self) -> StreamInfo:
        """Connect and learn the frame's size. Returns within the source's open timeout.

        Raises:
            SourceError: what was tried, what came, what to do.
        """

    def grab(self, timeout_s: float) -> Grab | None:
        """Advance to the next frame; cheap where the source can put off decoding. None: nothing came in time.

        Raises:
            EndOfStream: a finite source has no more.
            SourceError: the connection or the decoder failed.
        """

    def retrieve(self, out: FrameBuffer) -> None:
        """Write the frame last grabbed into `out`: into its GPU memory if it has no host memory.

        Raises:
            SizeChanged: the frame has another size; call again with a buffer of that size.
            SourceError: the frame could not be decoded.
            ValueError: `out` has no host memory, and this source writes to no other.
        """

    def interrupt(self) -> None:
        """From any thread: make a blocked `grab` or `open` return soon, as far as the library below allows."""

    def close(self) -> None:
        """Release everything. May be called twice and before `open`."""


class FrameSink(Protocol):
    """What a camera's thread writes to: the writer's side of `vision.runtime.latest_slot.LatestSlot`."""

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        """Make buffers for frames of this size and format, where they differ from those there are.

        A frame of the old ones that waits unread is dropped: what it shows is over.

        Raises:
            ValueError: the size is not possible in this format.
            OutOfMemory, MemoryError: no memory for them; there are none until the next call.
        """

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        """The buffer to write the next frame into; None if the reader kept a lossless writer waiting too long.

        Raises:
            Closed: the program is stopping.
        """

    def commit(self, meta: FrameMeta) -> None:
        """The buffer last given holds this whole frame."""

    def drop(self, reason: DropReason) -> None:
        """Count a grabbed frame that is not worth its pixels."""

    def flush(self, reason: DropReason) -> None:
        """Drop the frame that waits unread, if any: what it shows is over."""

    def end(self) -> None:
        """The source is finished for good; what waits can still be read."""


def not_open(source: str | Path, call: Literal["grab", "retrieve"]) -> SourceError:
    """Return the error for a call out of order: `grab` before `open`, or `retrieve` before `grab`."""
    before = "open" if call == "grab" else "grab"
    return SourceError(f"{source}: {call} before {before}, or after close", code="not-open")
