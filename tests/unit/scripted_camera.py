"""Camera that follows a script, with a clock that the test advances, and a sink that records its calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from vision.capture.source import Grab, SkippedFrames, StreamInfo
from vision.errors import Closed, SizeChanged, SourceError
from vision.types import ClockSource, DropReason, FrameBuffer, FrameMeta, PixelFormat, YuvEncoding, frame_shape

SECOND = 1_000_000_000


@dataclass
class ManualClock:
    """Clock that the test advances."""

    now_ns: int = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND)


@dataclass(frozen=True)
class Frame:
    """Frame that arrives `after_s` seconds after the previous step."""

    after_s: float = 0.04
    shade: int | None = None  # of all pixels; None: different from that of the previous frame
    corrupt: bool = False
    pts_s: float | None = None
    size: tuple[int, int] | None = None  # height and width of this frame and all later ones
    error: Exception | None = None  # that `retrieve` raises
    clock: ClockSource = "arrival"
    yuv: YuvEncoding | None = None


@dataclass(frozen=True)
class Silence:
    """Period of `seconds` without frames."""

    seconds: float


@dataclass(frozen=True)
class Fault:
    """Error that `grab` raises."""

    error: Exception


@dataclass(frozen=True)
class Do:
    """Action of the test between two steps."""

    action: Callable[[], object]


Step: TypeAlias = Frame | Silence | Fault | Do


@dataclass
class Connection:
    """One connection: its properties, its steps, and the errors that occur when it is opened."""

    steps: Sequence[Step] = ()
    live: bool = True
    size: tuple[int, int] = (4, 6)
    pixel_format: PixelFormat = "bgr"
    yuv: YuvEncoding = "bt601"
    open_error: Exception | None = None
    open_takes_s: float = 0.0
    make_error: Exception | None = None
    close_error: Exception | None = None


class ScriptedSource:
    """`vision.capture.source.Source` that follows a script. At the end of the script, it calls `ended`."""

    def __init__(self, script: Connection, clock: ManualClock, ended: Callable[[], None]) -> None:
        self._script = script
        self._steps = list(script.steps)
        self._clock = clock
        self._ended = ended
        self._size = script.size
        self._shade = 0
        self._frame: Frame | None = None
        self.opened = 0
        self.closed = 0
        self.skipped = SkippedFrames()

    @property
    def live(self) -> bool:
        return self._script.live

    def open(self) -> StreamInfo:
        self.opened += 1
        self._clock.advance(self._script.open_takes_s)
        if self._script.open_error is not None:
            raise self._script.open_error
        height_px, width_px = self._size
        return StreamInfo(width_px, height_px, self._script.pixel_format, None, "scripted", self._script.yuv)

    def grab(self, timeout_s: float) -> Grab | None:
        assert timeout_s > 0
        while self._steps and isinstance(step := self._steps[0], Do):
            self._steps.pop(0)
            step.action()
        if not self._steps:
            self._ended()
            return None
        step = self._steps.pop(0)
        if isinstance(step, Fault):
            raise step.error
        if isinstance(step, Silence):
            self._pass(step.seconds, timeout_s)
            return None
        if isinstance(step, Frame):
            return self._come(step, timeout_s)
        raise AssertionError(step)

    def _pass(self, seconds: float, timeout_s: float) -> None:
        self._clock.advance(min(seconds, timeout_s))
        if seconds > timeout_s:
            self._steps.insert(0, Silence(seconds - timeout_s))

    def _come(self, frame: Frame, timeout_s: float) -> Grab | None:
        if frame.after_s > timeout_s:
            self._steps[:0] = [Silence(frame.after_s - timeout_s), replace(frame, after_s=0.0)]
            self._clock.advance(timeout_s)
            return None
        self._clock.advance(frame.after_s)
        self._frame = frame
        self._size = frame.size or self._size
        self._shade = (self._shade + 1) % 256 if frame.shade is None else frame.shade
        pts_ns = None if frame.pts_s is None else round(frame.pts_s * SECOND)
        return Grab(self._clock(), self._clock() + 5, frame.clock, pts_ns, frame.corrupt, frame.yuv)

    def retrieve(self, out: FrameBuffer) -> None:
        assert self._frame is not None
        assert not self._frame.corrupt, "a damaged frame is not worth its pixels"
        if self._frame.error is not None:
            raise self._frame.error
        pixels = out.require_host()
        if pixels.shape != frame_shape(*self._size, self._script.pixel_format):
            raise SizeChanged(*self._size)
        pixels.fill(self._shade)

    def interrupt(self) -> None:
        self._steps.clear()

    def close(self) -> None:
        self.closed += 1
        if self._script.close_error is not None:
            raise self._script.close_error


@dataclass
class RecordingSink:
    """`vision.capture.source.FrameSink` that records its calls."""

    pixel_limit: int = 1 << 20
    waits: int = 0  # number of times that the reader delays the writer
    on_wait: Callable[[], object] = lambda: None
    closed: bool = False
    layouts: list[tuple[int, int, PixelFormat]] = field(default_factory=list)
    metas: list[FrameMeta] = field(default_factory=list)
    shades: list[int] = field(default_factory=list)
    drops: list[DropReason] = field(default_factory=list)
    flushes: list[DropReason] = field(default_factory=list)
    ended: int = 0
    _buffer: FrameBuffer | None = None

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        self._buffer = FrameBuffer.allocate(height_px, width_px, pixel_format)
        self.layouts.append((height_px, width_px, pixel_format))

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        assert timeout_s > 0
        if self.closed:
            raise Closed("closed by the test")
        if self.waits:
            self.waits -= 1
            self.on_wait()
            return None
        return self._buffer

    def commit(self, meta: FrameMeta) -> None:
        assert self._buffer is not None
        self.metas.append(meta)
        self.shades.append(int(self._buffer.require_host().flat[0]))

    def drop(self, reason: DropReason) -> None:
        self.drops.append(reason)

    def flush(self, reason: DropReason) -> None:
        self.flushes.append(reason)

    def end(self) -> None:
        self.ended += 1


class AllUsed(SourceError):
    """The script of the camera contains no further connection."""
