"""Progress of an engine build as nested phases, and cancellation of a build.

TensorRT blocks the thread of the build for minutes, except for callbacks, and Ctrl-C would have to wait. Therefore, the
build has a separate thread. Ctrl-C interrupts the thread that waits for the build, and the next callback tells TensorRT
to stop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from vision.state.service_manager import extend_start

_EXTEND_NS: Final = 10_000_000_000  # shortest time between two reports to the service manager

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Phase:
    """Running phase of a build. A step of a phase can contain other phases."""

    name: str
    depth: int  # 0 means the whole build
    done: int  # number of completed steps
    steps: int
    parent: str | None = None  # name of the phase that contains this phase


class BuildListener(Protocol):
    """Receiver of the progress of a build. The build thread and threads of TensorRT call the methods."""

    def parsed(self, layers: int) -> None:
        """Receive the number of layers before fusion. This method is called after the ONNX file was parsed."""

    def progress(self, phases: Sequence[Phase]) -> None:
        """Receive the running phases, outermost first. Steps of different phases take different amounts of time."""

    def built(self, plan_bytes: int) -> None:
        """Receive the size of the engine in bytes. This method is called after a successful build."""


class LogListener:
    """Listener that logs the progress, at most once every `every_s` seconds, and reports it to the service manager."""

    def __init__(self, label: str, clock: Callable[[], int] = time.monotonic_ns, every_s: float = 15.0) -> None:
        self._label = label
        self._clock = clock
        self._every_ns = int(every_s * 1e9)
        self._started_ns = self._logged_ns = clock()
        self._extended_ns = self._started_ns - _EXTEND_NS

    def parsed(self, layers: int) -> None:
        """Log the number of layers of the model before fusion."""
        _log.info("building %s: %d layers before fusion", self._label, layers)

    def progress(self, phases: Sequence[Phase]) -> None:
        """Log the innermost running phase, unless the last line was logged less than `every_s` seconds ago.

        At most once every 10 s, also ask the service manager for more time.
        """
        now_ns = self._clock()
        if now_ns - self._extended_ns >= _EXTEND_NS:
            self._extended_ns = now_ns
            extend_start()
        if phases and now_ns - self._logged_ns >= self._every_ns:
            self._logged_ns = now_ns
            inner = phases[-1]
            seconds = (now_ns - self._started_ns) / 1e9
            _log.info("building %s: %.0f s, %s %d/%d", self._label, seconds, inner.name, inner.done, inner.steps)

    def built(self, plan_bytes: int) -> None:
        """Log the size of the engine and the duration of the build."""
        seconds = (self._clock() - self._started_ns) / 1e9
        _log.info("built %s: %.1f MiB in %.1f s", self._label, plan_bytes / 2**20, seconds)


class Monitor:
    """Methods of TensorRT's progress monitor, in a class that does not depend on TensorRT."""

    def __init__(self, listener: BuildListener, cancel: threading.Event) -> None:
        self._listener = listener
        self._cancel = cancel
        self._open: dict[str, Phase] = {}
        self._lock = threading.Lock()  # several threads report phases

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Start a phase of `num_steps` steps within a step of its parent phase, if any."""
        with self._lock:
            above = self._open.get(parent_phase) if parent_phase else None
            self._open[phase_name] = Phase(phase_name, above.depth + 1 if above else 0, 0, num_steps, parent_phase)
            self._report()

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Record that step `step`, counted from 0, is complete. Return False if TensorRT must stop the build."""
        with self._lock:
            phase = self._open.get(phase_name)
            if phase is not None:
                self._open[phase_name] = replace(phase, done=step + 1)
                self._report()
        return not self._cancel.is_set()

    def phase_finish(self, phase_name: str) -> None:
        """End a phase and all phases within it. A phase can end before its last step."""
        with self._lock:
            self._close(phase_name)
            self._report()

    def _close(self, name: str) -> None:
        self._open.pop(name, None)
        for child in [phase.name for phase in self._open.values() if phase.parent == name]:
            self._close(child)

    def _report(self) -> None:
        self._listener.progress(tuple(self._open.values()))


def run_interruptible(work: Callable[[], _T], cancel: threading.Event) -> _T:
    """Run `work` in a separate thread, and wait for it. Return its result, or raise its error.

    Ctrl-C sets `cancel`. `KeyboardInterrupt` is raised when `work` has ended, or immediately after a second Ctrl-C.
    """
    outcome: Future[_T] = Future()
    begun, ended = threading.Event(), threading.Event()

    def run() -> None:
        begun.set()
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            outcome.set_exception(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="engine build", daemon=True)
    interrupted: KeyboardInterrupt | None = None
    starts = [thread.start]  # emptied before the call, so that Ctrl-C during the call cannot cause a second call
    while not ended.is_set():
        try:
            if starts:
                starts.pop()()
            ended.wait(timeout=0.2)  # an interrupted join marks the thread as stopped (bugs.python.org/issue45274)
        except KeyboardInterrupt as error:
            cancel.set()
            if interrupted is not None or not begun.wait(timeout=1.0):
                raise  # a second Ctrl-C ends the wait immediately; the thread is a daemon
            interrupted = error
    thread.join()
    if interrupted is not None:
        raise interrupted
    return outcome.result()
