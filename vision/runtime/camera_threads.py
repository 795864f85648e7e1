"""`CameraThreads`, which runs the supervisor of each camera in a thread, and replaces a thread that hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from vision.capture.blocking import threads_left_running
from vision.capture.session import READS
from vision.capture.supervisor import CameraSupervisor
from vision.runtime.hang_watchdog import Part

log = logging.getLogger(__name__)

MAX_ABANDONED: Final = 16
"""Maximum number of abandoned threads, because each keeps its memory and its descriptors. If one more thread hangs, the
process ends."""

_LEFT_S: Final = 120.0
"""Time in seconds after which a library thread of a closed camera counts as abandoned. A slow look-up of a host name
ends earlier."""


class ForgetsBuffers(Protocol):
    """The sink of a camera whose thread can hang."""

    def forget_buffers(self) -> None:
        """Stop using the present buffers, because the call that hangs can still write to one of them."""


@dataclass(slots=True)
class CameraThreads:
    """The threads of all cameras. `guard` runs a function in a thread, and reports its failure under a name."""

    supervisors: Mapping[str, CameraSupervisor]  # by camera id
    sinks: Mapping[str, ForgetsBuffers]
    guard: Callable[[str, Callable[[], None]], None]
    _running: dict[str, threading.Thread] = field(default_factory=dict)
    _abandoned: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start a thread for each camera."""
        for camera_id in self.supervisors:
            self._start(camera_id)

    def parts(self, hang_s: float) -> list[Part]:
        """Return the parts that the watchdog observes: the calls of each camera to its library."""
        parts = []
        for camera_id, supervisor in self.supervisors.items():
            policy, name = supervisor.policy, f"camera-{camera_id}"
            repair = partial(self._replace, camera_id) if policy.retry else None
            opening_s = max(hang_s, policy.longest_call_s)
            parts.append(Part(name, partial(_call, supervisor, opening=False), hang_s, repair))
            parts.append(Part(name, partial(_call, supervisor, opening=True), opening_s, repair))
        return parts

    @property
    def abandoned(self) -> int:
        """Number of threads that still hang in the library of a camera, and that the program no longer waits for."""
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        return len(self._abandoned) + threads_left_running(_LEFT_S)

    def join(self, deadline_s: float) -> list[str]:
        """Wait for the threads until `deadline_s` (`time.monotonic`). Return names and calls of those still running."""
        for thread in self._running.values():
            thread.join(max(0.0, deadline_s - time.monotonic()))
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
        """Abandon the thread of a camera and start a new one. Return False if there are too many abandoned threads."""
        if self.abandoned >= MAX_ABANDONED:
            return False
        supervisor = self.supervisors[camera_id]
        text = "camera %s: the library hangs %s; a new thread opens the camera"
        log.warning(text, camera_id, supervisor.blocked_in())
        self._abandoned.append(self._running[camera_id])
        supervisor.abandon()
        self.sinks[camera_id].forget_buffers()
        self._start(camera_id)
        return True


def _call(supervisor: CameraSupervisor, *, opening: bool) -> tuple[str, int] | None:
    """Return the call in progress and its start time; None if there is none of the requested kind.

    If `opening` is True, the call must open or close the source; otherwise, it must read a frame.
    """
    call = supervisor.call()
    return call if call is not None and (call[0] not in READS) is opening else None
