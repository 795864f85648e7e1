"""Supervisor of one camera, which connects, reads frames, detects failures, waits, and reconnects.

Cameras fail in ways that a library does not report. For example, cameras stop sending without closing the connection,
repeat the same frame, or return with a different frame size. The supervisor uses only the `Source` protocol, so that
the same rules apply to every kind of camera. No camera failure ends the program or delays other cameras.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from vision.capture.camera_status import CameraStatus, Failure, StatusTracker
from vision.capture.frame_tap import FrameTap
from vision.capture.liveness import Backoff, FrozenFrameDetector
from vision.capture.session import CameraParts, Session, SourceCalls
from vision.capture.source import FrameSink, Source
from vision.errors import Closed, EndOfStream, SourceError
from vision.types import DropReason

log = logging.getLogger(__name__)

_MEASUREMENT: Final = re.compile(r"[\d.]+ (s|MiB)\b")


@dataclass(frozen=True, slots=True)
class SupervisorPolicy:
    """The timeouts of one camera, whether its stream can end, and when to connect again after a failure."""

    read_timeout_s: float = 5.0  # longest wait for a frame before reconnecting
    frozen_after_s: float | None = 10.0  # a camera that repeats a frame for this long is frozen; None means never
    finite: bool = False  # the source can end; otherwise, an end is a lost connection
    retry: bool = True  # reconnect after a failure; False for a file, which would stay unreadable
    first_retry_s: float = 0.5  # upper limit of the delay before the first retry, as in `Backoff`
    longest_retry_s: float = 30.0  # upper limit of the delay before each retry
    longest_call_s: float = 0.0  # opening or closing the source can take this long without an error


class CameraSupervisor:
    """Supervisor that keeps one camera connected. `run` occupies a thread. Other threads can use all other members.

    `factory` returns a new source for every connection. Only the thread of `run` writes to `sink`.

    A live source counts as frozen if no frame arrives for longer than its frame rate explains (`StallTimeouts`), or if
    the frame does not change for `frozen_after_s`. The supervisor reconnects, with back-off, after
    `StallTimeouts.lost_s` without a frame, or after `frozen_after_s` without a change of the frame or of the stream's
    time. Once the frame has not changed for `frozen_after_s`, the supervisor drops this frame as stale, even in a new
    connection. Sources that are not live (files, folders) wait for their reader, so these rules do not apply to them.
    """

    def __init__(
        self,
        camera_id: str,
        factory: Callable[[], Source],
        sink: FrameSink,
        policy: SupervisorPolicy | None = None,
        *,
        first_epoch: int = 0,
        frame_tap: FrameTap | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[float], object] | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        """Create the supervisor.

        The first connection has the epoch `first_epoch`. `frame_tap`, if given, receives each frame. `wait` sleeps for
        a number of seconds, or until `stop` is called. `jitter` randomizes the time between attempts.
        """
        self.camera_id = camera_id
        self._factory = factory
        self._policy = policy = policy or SupervisorPolicy()
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._logged = ""  # the last logged reason
        self._final = ""
        self._delay_s = 0.0  # before the first connection of a new thread
        self._source: Source | None = None
        self._parts = CameraParts(
            camera_id,
            sink,
            StatusTracker(policy.read_timeout_s, clock, first_epoch=first_epoch),
            SourceCalls(camera_id, clock),
            FrozenFrameDetector(policy.frozen_after_s),
            Backoff(policy.first_retry_s, policy.longest_retry_s, random=jitter or random.Random()),
            self._stopping,
            clock,
            frame_tap,
        )

    # Methods for any thread

    def status(self) -> CameraStatus:
        """Return a consistent copy of the camera's state, even while the camera's thread is blocked in its library."""
        return self._parts.status.snapshot()

    def stop(self) -> None:
        """Make `run` return soon, by ending its waits and interrupting its source. This call does not block."""
        self._stopping.set()
        source = self._source
        if source is not None:
            source.interrupt()

    @property
    def failure(self) -> str:
        """The reason why a source without retries has failed, or an empty string if it has not failed or is retried."""
        return self._final

    def blocked_in(self) -> str:
        """Return a text with the source call in progress and its duration, or an empty string if there is none."""
        return self._parts.calls.in_progress()

    def call(self) -> tuple[str, int] | None:
        """Return the source call in progress, and its start time (monotonic ns), or None if there is none.

        This method takes no lock.
        """
        return self._parts.calls.current

    @property
    def policy(self) -> SupervisorPolicy:
        """The timeouts of the camera, whether its stream can end, and when to connect again after a failure."""
        return self._policy

    def abandon(self) -> None:
        """Make the thread that executes `run` end when its current source call returns.

        A new thread can call `run` immediately. Never reuse the frame buffers to which the source call writes.
        """
        call, old = self.blocked_in(), self._parts
        self._source = None
        self._parts = replace(old, calls=SourceCalls(self.camera_id, old.clock))
        old.calls.abandoned = True
        hint = "the driver or the library of the camera hangs: reconnect the camera, or set a different `reader`"
        delay_s = old.backoff.next_delay_s()
        self._delay_s = delay_s
        failure = Failure(f"the library did not return {call}; a new thread opens the camera", hint, was_connected=True)
        old.status.failed(failure, old.clock() + int(delay_s * 1e9))

    def retire(self) -> None:
        """Make `run` return soon, as `stop` does, but without ending the sink, which another supervisor uses next."""
        self._parts.calls.abandoned = True
        self.stop()

    # Methods for the camera's thread

    def run(self) -> None:
        """Run until the source ends, `stop` is called, or the sink is closed.

        If the policy does not permit retries, also end after the first failure.

        Raises:
            DeviceError: the GPU failed.
            Exception: the sink raised this exception. A failure of the camera raises no exception.
        """
        parts = self._parts
        try:
            self._run(parts)
        except BaseException:
            if not parts.calls.abandoned:
                raise
            if not self._stopping.is_set():
                log.info("camera %s: the abandoned thread has ended", self.camera_id)
        finally:
            if not parts.calls.abandoned:
                parts.status.enter("ended")
                parts.sink.end()

    def _run(self, parts: CameraParts) -> None:
        try:
            if self._delay_s:
                self._wait(self._delay_s)
                self._delay_s = 0.0
            while not self._stopping.is_set():
                failure = self._connect_and_stream(parts)
                if failure is None or self._stopping.is_set():  # interrupted by `stop`, which is not a failure
                    break
                if not self._policy.retry:
                    self._give_up(failure)
                    break
                self._back_off(failure)
        except Closed:
            pass

    def _connect_and_stream(self, parts: CameraParts) -> Failure | None:
        """Run one connection until it ends. Return its failure, or None if the camera must not reconnect."""
        connected = False
        try:
            parts.status.enter("connecting")
            with parts.calls.calling("the constructor"):
                source = self._factory()
                if parts.calls.abandoned:
                    source.close()
            self._source = source
            try:
                if self._stopping.is_set():  # `stop` may have been called just before there was a source to interrupt
                    return None
                session = Session(source, parts)
                connected = True
                session.stream()
            finally:
                self._discard(source, parts)
        except EndOfStream as end:
            if not self._policy.finite:
                return Failure(f"the camera ended the stream: {end.args[0]}", end.hint, connected, end.code)
            log.info("camera %s: %s", self.camera_id, end)
        except SourceError as error:
            return Failure.from_error(error, was_connected=connected)
        return None

    def _give_up(self, failure: Failure) -> None:
        self._parts.status.failed(failure, self._parts.clock())
        self._final = f"{failure.text}; {failure.hint}" if failure.hint else failure.text
        log.error("camera %s: %s", self.camera_id, self._final)

    def _back_off(self, failure: Failure) -> None:
        self._parts.sink.flush(DropReason.EPOCH)
        delay_s = self._parts.backoff.next_delay_s()
        self._log_failure(failure, self._parts.backoff.failures, delay_s)
        self._parts.status.failed(failure, self._parts.clock() + int(delay_s * 1e9))
        self._wait(delay_s)

    def _log_failure(self, failure: Failure, attempt: int, delay_s: float) -> None:
        """Log each new reason, and a repeated reason only at attempts 1, 2, 4, 8, ...

        The log of a camera that is unreachable for a month must not fill the disk.
        """
        reason = _MEASUREMENT.sub("", failure.text)  # different seconds or bytes are not a different reason
        repeated = reason == self._logged
        if repeated and attempt & (attempt - 1):
            return
        self._logged = reason
        log.warning(
            "camera %s: %s (attempt %d), retrying in %.1f s: %s%s%s%s",
            self.camera_id,
            "connection lost" if failure.was_connected else "cannot connect",
            attempt,
            delay_s,
            failure.text,
            f"; {failure.hint}" if failure.hint else "",
            f" (code {failure.code})" if failure.code else "",
            f" [repeats are logged at attempts {2 * attempt}, {4 * attempt}, ...]" if repeated and attempt == 2 else "",
        )

    def _discard(self, source: Source, parts: CameraParts) -> None:
        if parts.calls.abandoned:
            with suppress(Exception):
                source.close()
            return
        self._source = None
        parts.status.disconnected()
        try:
            with parts.calls.calling("close"):
                source.close()
        except SourceError as error:
            log.warning("camera %s: %s", self.camera_id, error)
