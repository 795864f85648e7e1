"""One connection of a camera, from opening its source until the source fails or ends.

Every frame that `Source.grab` returns is committed to the sink or dropped with a reason, exactly once.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from vision.capture.camera_status import Failure, StatusTracker
from vision.capture.frame_tap import FrameTap
from vision.capture.liveness import Backoff, FrozenFrameDetector
from vision.capture.source import FrameSink, Grab, Source
from vision.errors import DeviceError, OutOfMemory, SizeChanged, SourceError, redact
from vision.metrics import span
from vision.types import DropReason, FrameBuffer, FrameMeta

log = logging.getLogger(__name__)

MAX_SIDE_PX: Final = 16384
"""The largest frame side that any codec profile in use allows (16K). A larger value is an error in the stream."""

DAMAGED_HINT: Final = "set `transport: tcp`, shorten the camera's key frame interval, or choose a different `reader`"
_DAMAGED_AFTER_NS: Final = 10_000_000_000
"""If every frame is damaged for this long, the status and the log report the damage."""

_HEALTHY_AFTER_NS: Final = 10_000_000_000  # after streaming for this long, the back-off is reset
_MAX_CALL_S: Final = 0.25  # longest wait in one call, so that a stop is detected in time


READS: Final = ("grab", "retrieve")
"""Names of the source calls that read a frame. All other calls open or close the source, and can take longer."""


class Abandoned(Exception):
    """A new thread reads the camera, so the current thread must end without using objects that both threads share."""


class SourceCalls:
    """Record of the source call that a camera's thread is making. It also converts the exceptions of the source.

    Attributes:
        current: name and start time (monotonic ns) of the call in progress, or None if there is none. Thread-safe.
        abandoned: True if another thread has taken over the camera, because a call did not return.
    """

    def __init__(self, camera_id: str, clock: Callable[[], int]) -> None:
        self._camera_id = camera_id
        self._clock = clock
        self.current: tuple[str, int] | None = None
        self.abandoned = False

    def in_progress(self) -> str:
        """Return the call in progress, such as ``in grab for 2.0 s``, or "" if there is none. Thread-safe."""
        call = self.current
        return f"in {call[0]} for {(self._clock() - call[1]) / 1e9:.1f} s" if call is not None else ""

    def calling(self, name: str) -> _Call:
        """Return a context manager for one call to the source's method `name`.

        The context manager records the call, and converts its exceptions.

        Raises:
            SourceError: the source raised this error or a subclass, ran out of GPU memory, or raised an unexpected
                exception.
            DeviceError: the GPU failed.
            Abandoned: the thread was abandoned before the call, or during a call that raised no error.
        """
        return _Call(self, name)

    def begin(self, name: str) -> None:
        """Record the start of a call. Raise `Abandoned` if another thread has taken over the camera."""
        if self.abandoned:
            raise Abandoned
        self.current = name, self._clock()

    def end(self, name: str, error: BaseException | None) -> None:
        """Record the end of a call. `error` is its exception, or None if it succeeded. `calling` lists the errors."""
        self.current = None
        if error is None:
            if self.abandoned:
                raise Abandoned
        elif isinstance(error, OutOfMemory):
            raise _out_of_memory(f"no memory in {name} of the source", error) from error
        elif isinstance(error, Exception) and not isinstance(error, SourceError | DeviceError | Abandoned):
            # Only this place catches every exception. An exception of a library, or a bug in a source, must neither
            # end this thread silently while its camera seems to work, nor end the program for the other cameras. The
            # traceback is logged as redacted text, because an exception can contain a URL with a password.
            text = redact("".join(traceback.format_exception(type(error), error, error.__traceback__)))
            log.error("camera %s: unexpected exception in %s of the source\n%s", self._camera_id, name, text)
            raise SourceError(
                f"unexpected exception in {name} of the source: {type(error).__name__}: {error}", code="source-bug"
            ) from error


class _Call:
    """Context manager that records one call to a source. A `contextlib.contextmanager` would take twice as long."""

    __slots__ = ("_calls", "_name", "_span")

    def __init__(self, calls: SourceCalls, name: str) -> None:
        self._calls, self._name, self._span = calls, name, span(name)

    def __enter__(self) -> None:
        self._calls.begin(self._name)
        self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.__exit__(kind, error, trace)
        self._calls.end(self._name, error)


@dataclass(frozen=True, slots=True)
class CameraParts:
    """The objects that all connections of one camera share, such as its sink, status, and back-off."""

    camera_id: str
    sink: FrameSink
    status: StatusTracker
    calls: SourceCalls
    frozen_frames: FrozenFrameDetector
    backoff: Backoff
    stopping: threading.Event
    clock: Callable[[], int]
    frame_tap: FrameTap | None = None


class Session:
    """One connection of a camera. Call all methods from the camera's thread."""

    def __init__(self, source: Source, camera: CameraParts) -> None:
        """Open the source and prepare the sink.

        Raises:
            SourceError: the source cannot be opened, or its frames cannot be stored.
            DeviceError: the GPU failed.
            Closed: the sink was closed.
            Abandoned: another thread has taken over the camera.
        """
        self._source = source
        self._camera = camera
        with camera.calls.calling("open"):
            self._info = info = source.open()
        _check_size(info.height_px, info.width_px)
        self._live = source.live
        self._height_px, self._width_px = info.height_px, info.width_px
        self._index = -1  # number of the last grabbed frame in this epoch
        self._damaged_ns: int | None = None  # time of the first damaged frame since the last intact one
        self._damage_reported = False
        camera.status.connected(info, live=self._live)
        camera.frozen_frames.connected()
        self._configure_sink()
        size = f"{info.width_px}x{info.height_px} {info.pixel_format}"
        log.info("camera %s: connected, %s, decoder %s", camera.camera_id, size, info.decoder)

    def stream(self) -> None:
        """Deliver frames until the program stops. Reset the back-off once the camera has been healthy for 10 s.

        Raises:
            EndOfStream: the source has no more frames.
            SourceError: the connection failed, the camera is silent or frozen, or its frames cannot be stored.
            DeviceError: the GPU failed.
            Closed: the sink was closed.
            Abandoned: another thread has taken over the camera.
        """
        camera = self._camera
        healthy_ns = camera.clock() + _HEALTHY_AFTER_NS
        while not camera.stopping.is_set():
            try:
                with camera.calls.calling("grab"):
                    grab = self._source.grab(_MAX_CALL_S)
            finally:
                if not camera.calls.abandoned:
                    self._count_skipped()
            now_ns = camera.clock()
            if grab is None:
                if self._live:
                    camera.status.check_silence(now_ns)
                continue
            self._index += 1
            camera.status.arrived(now_ns, grab.clock)
            self._deliver(grab, now_ns)
            if now_ns >= healthy_ns and not camera.frozen_frames.frozen:
                camera.backoff.reset()

    def _count_skipped(self) -> None:
        """Count the frames that the source skipped as dropped frames of the sink, with their reasons.

        Each skipped frame uses up a frame index, except those before the first grabbed frame of an epoch.
        """
        for reason, frames in self._source.skipped.take().items():
            if self._index >= 0:
                self._index += frames
            for _ in range(frames):
                self._camera.sink.drop(reason)

    def _deliver(self, grab: Grab, now_ns: int) -> None:
        """Commit a copy of the grabbed frame to the sink, or drop the frame with a reason.

        `stream` lists the errors.
        """
        sink = self._camera.sink
        if grab.corrupt:
            sink.drop(DropReason.CORRUPT)
            self._report_damage(now_ns)
            return
        self._damaged_ns = None
        try:
            buffer = self._retrieve()
        except SourceError:
            sink.drop(DropReason.CORRUPT)
            raise
        except BaseException:  # the sink was closed or failed, or this thread was abandoned
            sink.drop(DropReason.STOPPED)
            raise
        if buffer is None:
            sink.drop(DropReason.STOPPED)
            return
        reason = self._frozen_reason(buffer, grab, now_ns)
        if self._camera.frozen_frames.frozen:
            sink.drop(DropReason.STALE)
        else:
            meta = self._meta(grab)
            if self._camera.frame_tap is not None:
                self._camera.frame_tap.offer(buffer, meta)
            sink.commit(meta)
            self._camera.status.delivered()
        if reason:
            raise SourceError(
                reason, hint="restart the camera; if its frames can be equal, set `frozen_after_s: null`", code="frozen"
            )

    def _report_damage(self, now_ns: int) -> None:
        """Show in the camera's status, and log once, that all its frames have been damaged for 10 s or longer.

        Do not reconnect, because a new connection would not help.
        """
        if self._damaged_ns is None:
            self._damaged_ns = now_ns
        damaged_ns = now_ns - self._damaged_ns
        if damaged_ns < _DAMAGED_AFTER_NS:
            return
        failure = Failure(f"every frame for {damaged_ns / 1e9:.0f} s is damaged", DAMAGED_HINT, True, "corrupt")
        self._camera.status.degraded(failure)
        if not self._damage_reported:
            self._damage_reported = True
            log.warning("camera %s: %s; %s (code corrupt)", self._camera.camera_id, failure.text, failure.hint)

    def _retrieve(self, *, resized: bool = False) -> FrameBuffer | None:
        """Copy the grabbed frame into a buffer of the sink. Return the buffer, or None if the program is stopping.

        If `resized` is True, the size has already changed for this frame, so another change raises `SourceError`.
        """
        buffer = self._next_buffer()
        if buffer is None:
            return None
        try:
            with self._camera.calls.calling("retrieve"):
                self._source.retrieve(buffer)
        except SizeChanged as error:
            change = error.with_traceback(None)  # the traceback refers to the buffer
        else:
            return buffer
        del buffer  # `configure` frees the old buffers before it allocates new ones
        if resized:
            text = f"the frame size changed twice within one frame: {change}"
            raise SourceError(text, code="unstable-size") from change
        self._resize(change)
        return self._retrieve(resized=True)

    def _next_buffer(self) -> FrameBuffer | None:
        """Wait for a free buffer of the sink, and return it. Return None if the program is stopping."""
        camera = self._camera
        while not camera.stopping.is_set():
            buffer = camera.sink.write_buffer(_MAX_CALL_S)
            if buffer is not None:
                return buffer
            camera.status.waiting_for_sink()
        return None

    def _frozen_reason(self, buffer: FrameBuffer, grab: Grab, now_ns: int) -> str:
        """Return the reason why the camera counts as frozen, or "" if it does not. Also update the camera's status."""
        if not self._live:
            return ""
        detector = self._camera.frozen_frames
        reason = detector.check(buffer, grab.pts_ns, now_ns)
        self._camera.status.set_frozen(detector.frozen)
        return reason

    def _meta(self, grab: Grab) -> FrameMeta:
        return FrameMeta(
            camera_id=self._camera.camera_id,
            index=self._index,
            epoch=self._camera.status.epoch,
            captured_ns=grab.captured_ns,
            captured_utc_ns=grab.captured_utc_ns,
            width_px=self._width_px,
            height_px=self._height_px,
            clock=grab.clock,
            yuv=grab.yuv or self._info.yuv,
        )

    def _resize(self, change: SizeChanged) -> None:
        """Start a new epoch in the same connection, because the frame size changed with the grabbed frame."""
        _check_size(change.height_px, change.width_px)
        self._height_px, self._width_px = change.height_px, change.width_px
        self._index = 0
        self._camera.status.resized(change.height_px, change.width_px)
        self._configure_sink()
        log.info("camera %s: %s", self._camera.camera_id, change)

    def _configure_sink(self) -> None:
        height_px, width_px = self._height_px, self._width_px
        try:
            self._camera.sink.configure(height_px, width_px, self._info.pixel_format)
        except ValueError as error:  # the source chooses a different format when it is reopened
            raise SourceError(f"no buffer for the camera's frames: {error}", code="frame-size") from error
        except (OutOfMemory, MemoryError) as error:
            raise _out_of_memory(f"no memory for frames of {width_px}x{height_px}", error) from error


def _check_size(height_px: int, width_px: int) -> None:
    if not (1 <= width_px <= MAX_SIDE_PX and 1 <= height_px <= MAX_SIDE_PX):
        raise SourceError(
            f"expected frames of 1x1 to {MAX_SIDE_PX}x{MAX_SIDE_PX} pixels, got {width_px}x{height_px}",
            code="frame-size",
        )


def _out_of_memory(text: str, error: OutOfMemory | MemoryError) -> SourceError:
    """Return an error that ends only this connection, because other cameras can continue to use the GPU."""
    return SourceError(
        f"{text}: {error.args[0] if isinstance(error, OutOfMemory) else str(error)}",
        hint="choose a smaller stream of this camera, such as its second one, or free memory for the larger frames",
        code="out-of-memory",
    )
