"""The state of one camera, which the camera's thread writes and any thread can read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vision.capture.liveness import FrameRateEstimator, StallTimeouts
from vision.capture.source import StreamInfo
from vision.errors import SourceError
from vision.types import ClockSource

State: TypeAlias = Literal["connecting", "streaming", "frozen", "backing-off", "ended"]


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """The state of one camera at one moment, with the numbers of its frames and connections, and its last error."""

    state: State
    since_ns: int  # monotonic time at which the camera entered this state
    epoch: int  # increases with each reconnection and change of frame size
    grabbed: int  # frames that `Source.grab` has returned in this process
    fps: float  # frames that arrive per second
    last_frame_age_s: float | None  # time since the last frame arrived; None before the first frame
    reconnects: int  # number of connections after the first
    last_error: str  # one line without secrets; empty while frames are delivered
    last_hint: str  # advice for `last_error`; empty if there is none
    last_code: str  # code of `last_error`, as `vision check` reports it; empty if there is none
    width_px: int  # 0 before the first connection
    height_px: int
    decoder: str  # as in `StreamInfo`; empty before the first connection
    clock: ClockSource | None  # source of the last capture time; None before the first frame
    next_retry_in_s: float | None  # None unless `state` is "backing-off"


@dataclass(slots=True)
class _Stream:
    """The state of the current connection, and the counts of connections and frames so far."""

    alive_ns: int  # time of the last connection, frame, or wait for the sink
    live: bool = False
    decoder: str = ""
    width_px: int = 0
    height_px: int = 0
    epoch: int = 0
    connections: int = 0
    grabbed: int = 0
    last_ns: int | None = None
    clock_source: ClockSource | None = None
    rate: FrameRateEstimator = field(default_factory=FrameRateEstimator)


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a connection failed, or why its frames are not usable. Each text is a single line.

    The status stores a failure instead of the exception, whose traceback would keep frame buffers alive.
    """

    text: str = ""
    hint: str = ""
    was_connected: bool = False
    code: str = ""

    @classmethod
    def from_error(cls, error: SourceError, *, was_connected: bool) -> Failure:
        """Return the failure for `error`. Replace each run of whitespace in the texts with one space.

        `was_connected` is True if the error ended an open connection, and False if the source could not be opened.
        """
        text, hint = (" ".join(str(part).split()) for part in (error.args[0], error.hint))
        return cls(text, hint, was_connected, error.code)


class StatusTracker:
    """Record of one camera's state. The camera's thread updates the record, and any thread can call `snapshot`."""

    def __init__(self, read_timeout_s: float, clock: Callable[[], int], *, first_epoch: int = 0) -> None:
        self._read_timeout_s = read_timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._state: State = "connecting"
        self._since_ns = clock()
        self._frozen = False
        self._stream = _Stream(self._since_ns, epoch=first_epoch)
        self._failure = Failure()
        self._retry_ns = 0

    def snapshot(self) -> CameraStatus:
        """Return a consistent copy of the camera's state."""
        with self._lock:
            now_ns = self._clock()
            state, since_ns = self._visible_state(now_ns)
            stream, failure, last_ns = self._stream, self._failure, self._stream.last_ns
            return CameraStatus(
                state=state,
                since_ns=since_ns,
                epoch=stream.epoch,
                grabbed=stream.grabbed,
                fps=stream.rate.fps(now_ns) if state in ("streaming", "frozen") else 0.0,
                last_frame_age_s=None if last_ns is None else (now_ns - last_ns) / 1e9,
                reconnects=max(0, stream.connections - 1),
                last_error=failure.text,
                last_hint=failure.hint,
                last_code=failure.code,
                width_px=stream.width_px,
                height_px=stream.height_px,
                decoder=stream.decoder,
                clock=stream.clock_source,
                next_retry_in_s=max(0.0, (self._retry_ns - now_ns) / 1e9) if state == "backing-off" else None,
            )

    def _visible_state(self, now_ns: int) -> tuple[State, int]:
        """Return the state to report, and its start time (monotonic ns).

        A live camera that is silent for longer than `StallTimeouts.frozen_s` is reported as frozen, even if the
        camera's thread is blocked and cannot change the state.
        """
        if self._state != "streaming" or not self._stream.live:
            return self._state, self._since_ns
        if self._frozen:
            return "frozen", self._since_ns
        alive_ns = self._stream.alive_ns
        if now_ns - alive_ns > self._timeouts().frozen_s * 1e9:
            return "frozen", alive_ns
        return "streaming", self._since_ns

    def _timeouts(self) -> StallTimeouts:
        return StallTimeouts.from_interval(self._stream.rate.interval_s(), self._read_timeout_s)

    # Methods for the camera's thread

    @property
    def epoch(self) -> int:
        """The current epoch, which increases with each reconnection and change of frame size."""
        return self._stream.epoch

    def enter(self, state: State) -> None:
        """Set the state of the camera. If the state changes, record the current time as the start of the new state."""
        with self._lock:
            if state != self._state:
                self._state, self._since_ns = state, self._clock()

    def connected(self, info: StreamInfo, *, live: bool) -> None:
        """Record a new connection. Every connection except the first starts a new epoch. `live` is `Source.live`."""
        with self._lock:
            stream = self._stream
            stream.epoch += stream.connections > 0
            stream.connections += 1
            stream.live, stream.decoder = live, info.decoder
            stream.width_px, stream.height_px = info.width_px, info.height_px
            stream.alive_ns = self._clock()
            stream.rate.clear()

    def resized(self, height_px: int, width_px: int) -> None:
        """Record that the frame size changed within a connection, which starts a new epoch."""
        with self._lock:
            self._stream.epoch += 1
            self._stream.height_px, self._stream.width_px = height_px, width_px

    def arrived(self, now_ns: int, clock_source: ClockSource) -> None:
        """Record that a frame arrived at `now_ns` (monotonic ns), and set the state to "streaming"."""
        with self._lock:
            stream = self._stream
            stream.grabbed += 1
            stream.last_ns = stream.alive_ns = now_ns
            stream.clock_source = clock_source
            stream.rate.arrived(now_ns)
        if self._state != "streaming":
            self.enter("streaming")

    def delivered(self) -> None:
        """Remove the recorded error, because the camera has delivered a usable frame."""
        if self._failure.text:
            with self._lock:
                self._failure = Failure()

    def degraded(self, failure: Failure) -> None:
        """Record a fault that does not end the connection. `delivered` removes the fault."""
        with self._lock:
            self._failure = failure

    def waiting_for_sink(self) -> None:
        """Record that the camera is waiting for a free buffer of its sink. This wait does not count as silence."""
        with self._lock:
            self._stream.alive_ns = self._clock()

    def set_frozen(self, frozen: bool) -> None:
        """Record whether the camera repeats the same frame."""
        self._frozen = frozen

    def failed(self, failure: Failure, retry_ns: int) -> None:
        """Set the state to "backing-off". Record the failure, and the time of the next attempt (monotonic ns)."""
        with self._lock:
            self._failure, self._retry_ns = failure, retry_ns
        self.enter("backing-off")

    def disconnected(self) -> None:
        """Record that the camera has no connection."""
        with self._lock:
            self._stream.live = False

    def check_silence(self, now_ns: int) -> None:
        """Check that the camera has not been silent for too long. `now_ns` is the current time (monotonic ns).

        Silence starts with the last frame, the last connection, or the last wait for a free buffer of the sink,
        whichever is the latest.

        Raises:
            SourceError: the camera was silent for `StallTimeouts.lost_s` or longer.
        """
        interval_s, lost_s = self._stream.rate.interval_s(), self._timeouts().lost_s
        silent_s = (now_ns - self._stream.alive_ns) / 1e9
        if silent_s < lost_s:
            return
        slow = interval_s is None or interval_s > lost_s / 4
        expected = f", expected one every {interval_s:.2g} s" if interval_s is not None else ""
        raise SourceError(
            f"no frame for {silent_s:.1f} s{expected}",
            hint="if the camera sends frames this rarely, raise `read_timeout_s`" if slow else "",
            code="silent",
        )
