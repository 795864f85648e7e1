"""`CameraThreads`, which runs the supervisor of each camera in a thread, and replaces a thread that hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from vision.capture.blocking import threads_left_running
from vision.capture.session import READS
from vision.capture.supervisor import CameraSupervisor
from vision.runtime.hang_watchdog import Part

log = logging.getLogger(__name__)

MAX_ABANDONED: Final = 16
"""Maximum number of abandoned threads. Each keeps its memory and its descriptors, so one more hang ends the process."""

_CLOSING_S: Final = 0.5  # longest time in which a library closes one camera, while others wait for it
_LOOK_S: Final = 0.05
_LEFT_S: Final = 120.0
"""Time in seconds after which a library thread of a closed camera counts as abandoned.

This time is longer than a slow look-up of a host name takes.
"""


class ForgetsBuffers(Protocol):
    """A sink to which the thread of a camera writes frames, and whose buffers can be replaced if the thread hangs."""

    def forget_buffers(self) -> None:
        """Stop using the current buffers, because the call that hangs can still write to one of the buffers."""


@dataclass(slots=True)
class CameraThreads:
    """The threads that read the cameras, one for each camera.

    `guard` runs the function of a thread, and reports a failure of this function under a name.
    """

    supervisors: dict[str, CameraSupervisor]  # by camera id
    sinks: dict[str, ForgetsBuffers]  # by camera id
    guard: Callable[[str, Callable[[], None]], None]
    _running: dict[str, threading.Thread] = field(default_factory=dict)
    _abandoned: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start a thread for each camera."""
        for camera_id in self.supervisors:
            self._start(camera_id)

    def add(self, camera_id: str, supervisor: CameraSupervisor, sink: ForgetsBuffers) -> None:
        """Start a thread that reads one more camera with `supervisor`, which writes the frames to `sink`."""
        self.supervisors[camera_id], self.sinks[camera_id] = supervisor, sink
        self._start(camera_id)

    def is_running(self, camera_id: str) -> bool:
        """Return True if the thread of a camera has not ended."""
        return camera_id in self._running and self._running[camera_id].is_alive()

    def remove(self, camera_id: str) -> None:
        """Forget a camera. If the camera's thread has not ended, count the thread as abandoned."""
        thread = self._running.pop(camera_id)
        if thread.is_alive():
            self._abandoned.append(thread)
            self.sinks[camera_id].forget_buffers()
        del self.supervisors[camera_id], self.sinks[camera_id]

    def parts(self, hang_s: float) -> list[Part]:
        """Return the calls to the libraries of all cameras, as parts of the program that the watchdog observes."""
        return [part for camera_id in self.supervisors for part in self.parts_of(camera_id, hang_s)]

    def parts_of(self, camera_id: str, hang_s: float) -> list[Part]:
        """Return the calls to the library of one camera, as parts that the watchdog observes, named ``camera-<id>``."""
        supervisor, name = self.supervisors[camera_id], f"camera-{camera_id}"
        repair = partial(self._replace, camera_id) if supervisor.policy.retry else None
        opening_s = max(hang_s, supervisor.policy.longest_call_s)
        return [
            Part(name, partial(_call, supervisor, opening=False), hang_s, repair),
            Part(name, partial(_call, supervisor, opening=True), opening_s, repair),
        ]

    @property
    def abandoned(self) -> int:
        """Number of abandoned threads that still hang in the library of a camera."""
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        return len(self._abandoned) + threads_left_running(_LEFT_S)

    def join(self, deadline_s: float) -> list[str]:
        """Wait until all threads have ended, at most until `deadline_s` (`time.monotonic`).

        After the deadline, continue to wait as long as a thread has ended in the previous 0.5 s. Return the names of
        the threads that are still running, with the calls in which they hang.
        """
        waiting = list(self._running.values())
        while waiting and (left_s := deadline_s - time.monotonic()) > 0:
            waiting[0].join(min(left_s, _LOOK_S))
            running = [thread for thread in waiting if thread.is_alive()]
            if len(running) < len(waiting):
                deadline_s = max(deadline_s, time.monotonic() + _CLOSING_S)
            waiting = running
        return [
            f"camera-{camera_id} {self.supervisors[camera_id].blocked_in()}".strip()
            for camera_id, thread in self._running.items()
            if thread.is_alive()
        ]

    def _start(self, camera_id: str) -> None:
        name, supervisor = f"camera-{camera_id}", self.supervisors[camera_id]
        # Daemon threads, because the library of a camera can hang in a call that nothing can interrupt.
        thread = threading.Thread(target=self.guard, args=(name, supervisor.run), name=name, daemon=True)
        self._running[camera_id] = thread
        thread.start()

    def _replace(self, camera_id: str, _still_s: float) -> bool:
        """Abandon the thread of a camera, and start a new thread. Return False if too many threads were abandoned."""
        supervisor = self.supervisors.get(camera_id)
        if supervisor is None:  # the camera was removed a moment ago
            return True
        if self.abandoned >= MAX_ABANDONED:
            return False
        text = "camera %s: the library hangs %s; a new thread opens the camera"
        log.warning(text, camera_id, supervisor.blocked_in())
        self._abandoned.append(self._running[camera_id])
        supervisor.abandon()
        self.sinks[camera_id].forget_buffers()
        self._start(camera_id)
        return True


def _call(supervisor: CameraSupervisor, *, opening: bool) -> tuple[str, int] | None:
    """Return the call to the camera's library that is in progress, and its start time.

    If `opening` is True, the call must open or close the source. Otherwise, it must read a frame. Return None if no
    such call is in progress.
    """
    call = supervisor.call()
    return call if call is not None and (call[0] not in READS) is opening else None
