"""One camera's thread: connect, read, notice that the camera is dead, wait, connect again; for months.

Cameras fail in ways that a library does not report: they stop sending without closing, send the same frame for ever,
come back with another frame size. The supervisor knows nothing of protocols: it works on the `Source` protocol alone,
so every kind of camera is watched by the same rules. Nothing a camera does ends the program or disturbs another camera.

Accounting: every frame that `Source.grab` gave is committed to the sink or dropped with a reason, whatever happens
in between.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from vision.capture.liveness import Backoff, FrameRateEstimator, FrozenFrameDetector, StallTimeouts
from vision.capture.source import FrameSink, Grab, Source, StreamInfo
from vision.errors import Closed, DeviceError, EndOfStream, OutOfMemory, SizeChanged, SourceError, redact
from vision.metrics import span
from vision.types import ClockSource, DropReason, FrameBuffer, FrameMeta

log = logging.getLogger(__name__)

State: TypeAlias = Literal["connecting", "streaming", "frozen", "backing-off", "ended"]

LARGEST_SIDE_PX: Final = 16384
"""Beyond it a size is a fault of the stream: 16K is the largest that any codec profile in use allows."""

_MEASURED: Final = re.compile(r"[\d.]+ (s|MiB)\b")


@dataclass(frozen=True, slots=True)
class SupervisorPolicy:
    """When a camera counts as frozen, lost and well again."""

    read_timeout_s: float = 5.0  # longest wait for a frame before reconnecting
    frozen_after_s: float | None = 10.0  # the same frame for this long means a frozen camera; None: never
    finite: bool = False  # the source may come to its end; a camera that says so has lost its connection
    first_retry_s: float = 0.5
    longest_retry_s: float = 30.0
    healthy_after_s: float = 10.0  # streaming for this long makes the next retry a quick one again
    slice_s: float = 0.25  # longest wait in one call, so that a stop is noticed


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """How a camera is, at the moment of asking."""

    state: State
    since_ns: int  # monotonic; when it came into this state
    epoch: int
    grabbed: int  # frames since the start
    fps: float  # of arrivals
    last_frame_age_s: float | None  # None before the first
    reconnects: int  # connections after the first
    last_error: str  # without secrets; empty before the first
    width_px: int  # 0 before the first connection
    height_px: int
    decoder: str
    clock: ClockSource | None
    next_retry_in_s: float | None  # while backing off


class CameraSupervisor:
    """Runs one camera: `run` in a thread of its own, `status` and `stop` from any other.

    `factory` makes a new source for every connection; `sink` is written by this thread alone.

    A live source counts as frozen when no frame comes for longer than its cadence explains (`StallTimeouts`), and
    when the frame or the stream's time stops changing for `frozen_after_s`. Its connection is then given up and made
    anew, with back-off. Frames are published until the camera is declared frozen; the same frame again, also over
    a new connection, is dropped as stale: it shows nothing that is now. Sources that are not live (files, folders) wait
    to be read, so none of this holds for them.
    """

    def __init__(
        self,
        camera_id: str,
        factory: Callable[[], Source],
        sink: FrameSink,
        policy: SupervisorPolicy | None = None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[float], object] | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        """
        Args:
            wait: sleeps for so many seconds, or until `stop`.
            jitter: of the time between attempts.
        """
        self.camera_id = camera_id
        self._factory = factory
        self._sink = sink
        self._policy = policy or SupervisorPolicy()
        self._clock = clock
        self._stopping = threading.Event()
        self._done = threading.Event()
        self._wait = wait or self._stopping.wait
        self._backoff = Backoff(
            self._policy.first_retry_s, self._policy.longest_retry_s, random=jitter or random.Random()
        )
        frozen_after_s = self._policy.frozen_after_s
        self._watch = FrozenFrameDetector(frozen_after_s) if frozen_after_s is not None else None
        self._lock = threading.Lock()  # of all below, which other threads read
        self._source: Source | None = None
        self._live = False
        self._info: StreamInfo | None = None
        self._width_px = self._height_px = 0
        self._state: State = "connecting"
        self._since_ns = clock()
        self._alive_ns = self._since_ns  # last sign of life: connected, a frame, or a reader that lets us wait
        self._cadence = FrameRateEstimator()
        self._frame_ns: int | None = None
        self._connections = 0
        self._epoch = 0
        self._index = -1
        self._grabbed = 0
        self._clock_source: ClockSource | None = None
        self._last_error = ""
        self._logged = ""
        self._retry_ns = 0
        self._call = ""
        self._call_ns = 0

    # Any thread

    def status(self) -> CameraStatus:
        """A consistent snapshot, also while the camera's thread is blocked inside its library."""
        with self._lock:
            now_ns = self._clock()
            state, since_ns = self._visible_state(now_ns)
            info = self._info
            return CameraStatus(
                state=state,
                since_ns=since_ns,
                epoch=self._epoch,
                grabbed=self._grabbed,
                fps=self._cadence.fps(now_ns) if state in ("streaming", "frozen") else 0.0,
                last_frame_age_s=None if self._frame_ns is None else (now_ns - self._frame_ns) / 1e9,
                reconnects=max(0, self._connections - 1),
                last_error=self._last_error,
                width_px=self._width_px,
                height_px=self._height_px,
                decoder=info.decoder if info is not None else "",
                clock=self._clock_source,
                next_retry_in_s=max(0.0, (self._retry_ns - now_ns) / 1e9) if state == "backing-off" else None,
            )

    def stop(self) -> None:
        """Make `run` return soon: wakes it from any sleep and interrupts its source. Returns at once."""
        self._stopping.set()
        with self._lock:
            source = self._source
        if source is not None:
            source.interrupt()

    def wait_stopped(self, timeout_s: float) -> bool:
        """Wait for `run` to return. False: its library hangs, which is logged; nothing can end that thread."""
        if self._done.wait(timeout_s):
            return True
        log.warning("camera %s does not stop: %s", self.camera_id, self.blocked_in() or "its thread was never started")
        return False

    def blocked_in(self) -> str:
        """The call into the source that is going on, and for how long; empty if there is none."""
        with self._lock:
            return f"in {self._call} for {(self._clock() - self._call_ns) / 1e9:.1f} s" if self._call else ""

    def _visible_state(self, now_ns: int) -> tuple[State, int]:
        if self._state != "streaming" or not self._live:
            return self._state, self._since_ns
        if self._stuck:
            return "frozen", self._since_ns
        if now_ns - self._alive_ns > self._limits().frozen_s * 1e9:
            return "frozen", self._alive_ns
        return "streaming", self._since_ns

    def _limits(self) -> StallTimeouts:
        return StallTimeouts.of(self._cadence.interval_s(), self._policy.read_timeout_s)

    # The camera's thread

    def run(self) -> None:
        """Until the source ends, `stop` is called, or the sink is closed.

        Raises:
            VisionError: the sink failed; never what the camera does.
        """
        try:
            while not self._stopping.is_set() and not self._session():
                self._back_off()
        except Closed:
            pass
        finally:
            self._enter("ended")
            self._sink.end()
            self._done.set()

    def _session(self) -> bool:
        """One connection, from its beginning to its end. True: there will be no other."""
        try:
            self._enter("connecting")
            source = self._make()
            try:
                self._connect(source)
                self._stream(source)
            finally:
                self._discard(source)
        except EndOfStream as end:
            if not self._policy.finite:
                return self._lost(SourceError(f"the camera ended the stream: {end}"))
            log.info("camera %s: %s", self.camera_id, end)
            return True
        except SourceError as error:
            return self._lost(error)
        return True

    def _make(self) -> Source:
        with self._calling("its constructor"):
            source = self._factory()
        with self._lock:
            self._source = source
        return source

    def _connect(self, source: Source) -> None:
        if self._stopping.is_set():  # `stop` may have looked for a source just before there was one
            return
        with self._calling("open"):
            info = source.open()
        self._check_size(info.width_px, info.height_px)
        with self._lock:
            self._live = source.live
            self._info = info
            self._epoch += self._connections > 0
            self._connections += 1
            self._index = -1
            self._width_px, self._height_px = info.width_px, info.height_px
            self._alive_ns = self._clock()
            self._cadence.clear()
        if self._watch is not None:
            self._watch.connected()
        self._configure()
        log.info(
            "camera %s: %dx%d %s through %s",
            self.camera_id,
            info.width_px,
            info.height_px,
            info.pixel_format,
            info.decoder,
        )

    def _stream(self, source: Source) -> None:
        connected_ns = self._clock()
        while not self._stopping.is_set():
            with self._calling("grab"):
                grab = source.grab(self._policy.slice_s)
            now_ns = self._clock()
            if grab is None:
                self._check_silence(now_ns)
                continue
            self._count(grab, now_ns)
            self._deliver(source, grab, now_ns)
            if now_ns - connected_ns >= self._policy.healthy_after_s * 1e9 and not self._stuck:
                self._backoff.recovered()

    def _count(self, grab: Grab, now_ns: int) -> None:
        with self._lock:
            self._grabbed += 1
            self._index += 1
            self._frame_ns = self._alive_ns = now_ns
            self._clock_source = grab.clock
            self._cadence.arrived(now_ns)
        if self._state != "streaming":
            self._enter("streaming")

    def _deliver(self, source: Source, grab: Grab, now_ns: int) -> None:
        """Commit the frame or drop it: exactly one of the two, also where something fails."""
        if grab.corrupt:
            self._sink.drop(DropReason.CORRUPT)
            return
        try:
            buffer = self._retrieve(source)
        except SourceError:
            self._sink.drop(DropReason.CORRUPT)
            raise
        except BaseException:  # the sink was closed or failed
            self._sink.drop(DropReason.STOPPED)
            raise
        if buffer is None:
            self._sink.drop(DropReason.STOPPED)
            return
        frozen = self._watch.see(buffer, grab.pts_ns, now_ns) if self._watch is not None and self._live else ""
        if self._stuck:
            self._sink.drop(DropReason.STALE)
        else:
            self._sink.commit(self._meta(grab))
        if frozen:
            raise SourceError(
                frozen, hint="restart the camera; where its frame may stand still: `frozen_after_s: null`"
            )

    def _retrieve(self, source: Source) -> FrameBuffer | None:
        """The frame, in a buffer of the sink. None: stopping."""
        for again in (False, True):
            buffer = self._buffer()
            if buffer is None:
                return None
            try:
                with self._calling("retrieve"):
                    source.retrieve(buffer)
            except SizeChanged as change:
                if again:
                    raise SourceError(f"{change}, which it was just made ready for") from change
                self._change_size(change)
            else:
                return buffer
        raise AssertionError("unreachable")

    def _buffer(self) -> FrameBuffer | None:
        """A buffer of the sink; a lossless one makes the camera wait for its reader. None: stopping."""
        while not self._stopping.is_set():
            buffer = self._sink.write_buffer(self._policy.slice_s)
            if buffer is not None:
                return buffer
            with self._lock:
                self._alive_ns = self._clock()
        return None

    def _meta(self, grab: Grab) -> FrameMeta:
        info = self._info
        began = info.yuv if info is not None else "bt601"
        return FrameMeta(
            camera_id=self.camera_id,
            index=self._index,
            epoch=self._epoch,
            captured_ns=grab.captured_ns,
            captured_utc_ns=grab.captured_utc_ns,
            width_px=self._width_px,
            height_px=self._height_px,
            clock=grab.clock,
            yuv=grab.yuv or began,
        )

    def _change_size(self, change: SizeChanged) -> None:
        """A new epoch over the same connection; the frame at hand is its first."""
        self._check_size(change.width_px, change.height_px)
        with self._lock:
            self._epoch += 1
            self._index = 0
            self._width_px, self._height_px = change.width_px, change.height_px
        self._configure()
        log.info("camera %s: %s", self.camera_id, change)

    def _configure(self) -> None:
        pixel_format = self._info.pixel_format if self._info is not None else "bgr"
        try:
            self._sink.configure(self._height_px, self._width_px, pixel_format)
        except ValueError as error:  # the source chooses another format when it opens again
            raise SourceError(f"no buffer for its frames: {error}") from error
        except (OutOfMemory, MemoryError) as error:
            raise _no_memory(f"no memory for its frames of {self._width_px}x{self._height_px}", error) from error

    @staticmethod
    def _check_size(width_px: int, height_px: int) -> None:
        if not (1 <= width_px <= LARGEST_SIDE_PX and 1 <= height_px <= LARGEST_SIDE_PX):
            raise SourceError(
                f"expected frames of 1x1 to {LARGEST_SIDE_PX}x{LARGEST_SIDE_PX} pixels, got {width_px}x{height_px}"
            )

    @property
    def _stuck(self) -> bool:
        return self._watch is not None and self._watch.stuck

    def _check_silence(self, now_ns: int) -> None:
        if not self._live:
            return
        limits, silent_ns = self._limits(), now_ns - self._alive_ns
        if silent_ns >= limits.lost_s * 1e9:
            interval_s = self._cadence.interval_s()
            seldom = interval_s is None or interval_s > limits.lost_s / 4
            raise SourceError(
                f"no frame for {silent_ns / 1e9:.1f} s"
                + (f", expected one each {interval_s:.2g} s" if interval_s is not None else ""),
                hint="a camera that sends so seldom needs a longer `read_timeout_s`" if seldom else "",
            )

    def _lost(self, error: SourceError) -> bool:
        if self._stopping.is_set():  # interrupted by `stop`, which is no fault
            return True
        self._sink.flush(DropReason.EPOCH)
        text = str(error)  # and not the error, whose traceback holds buffers as long as a handler keeps what is logged
        with self._lock:
            self._last_error = text
        # A camera that is away for a month must not fill the disk with its log.
        failures = self._backoff.failures + 1
        reason = _MEASURED.sub("", text)  # other seconds that passed, or bytes that are free, are no other reason
        if reason != self._logged or failures & (failures - 1) == 0:
            self._logged = reason
            log.warning("camera %s, failure %d in a row: %s", self.camera_id, failures, text)
        return False

    def _back_off(self) -> None:
        delay_s = self._backoff.failed()
        with self._lock:
            self._retry_ns = self._clock() + int(delay_s * 1e9)
        self._enter("backing-off")
        self._wait(delay_s)

    def _discard(self, source: Source) -> None:
        with self._lock:
            self._source = None
            self._live = False
        try:
            with self._calling("close"):
                source.close()
        except SourceError as error:
            log.warning("camera %s: %s", self.camera_id, error)

    def _enter(self, state: State) -> None:
        with self._lock:
            if state != self._state:
                self._state, self._since_ns = state, self._clock()

    @contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        """Around every call into a source: notes it for `blocked_in`, and makes any fault in it one of this camera."""
        with self._lock:
            self._call, self._call_ns = what, self._clock()
        try:
            with span(what):
                yield
        except OutOfMemory as error:
            raise _no_memory(f"no memory in {what} of its source", error) from error
        except (SourceError, DeviceError):
            raise
        except Exception as error:
            # The one place that catches everything: whatever a library or a bug in a source raises must neither end
            # this thread in silence, with its camera shown as alive, nor end the program for the other cameras. The
            # traceback is logged as text, because logging would print the URL that the exception may carry.
            text = redact("".join(traceback.format_exception(type(error), error, error.__traceback__)))
            log.error("camera %s: fault in %s of its source\n%s", self.camera_id, what, text)
            raise SourceError(f"fault in {what} of its source: {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._call = ""


def _no_memory(what: str, error: OutOfMemory | MemoryError) -> SourceError:
    """The fault of one camera: unlike CUDA's other errors it leaves everything as it was, and the others go on."""
    return SourceError(
        f"{what}: {error.args[0] if isinstance(error, OutOfMemory) else str(error)}",
        hint="choose a smaller stream of this camera, such as its second one, or make room for the larger frames",
    )
