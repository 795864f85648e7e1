"""Progress of a build, as nested phases, and its cancellation.

TensorRT blocks the building thread for minutes, in which only its callbacks run Python code. So the build has a
separate thread. Ctrl-C reaches the thread that waits, and the next callback tells TensorRT to stop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Phase:
    """A running phase of TensorRT. A step of a phase can contain other phases."""

    name: str
    depth: int  # 0 for the build as a whole
    done: int
    steps: int
    parent: str | None = None


class BuildListener(Protocol):
    """Receiver of a build's progress, called from TensorRT's threads."""

    def parsed(self, layers: int) -> None:
        """Receive the number of layers before fusion, after the ONNX file is parsed."""

    def progress(self, phases: Sequence[Phase]) -> None:
        """Receive the open phases, outermost first. Steps of different phases take different times."""

    def built(self, plan_bytes: int) -> None:
        """Receive the size of the engine."""


class LogListener:
    """Listener that logs the progress at intervals, for services."""

    def __init__(self, label: str, clock: Callable[[], int] = time.monotonic_ns, every_s: float = 15.0) -> None:
        self._label = label
        self._clock = clock
        self._every_ns = int(every_s * 1e9)
        self._started_ns = self._logged_ns = clock()

    def parsed(self, layers: int) -> None:
        """Log the size of the model."""
        _log.info("building %s: %d layers before fusion", self._label, layers)

    def progress(self, phases: Sequence[Phase]) -> None:
        """Log the current phase, unless the last line is recent."""
        now_ns = self._clock()
        if phases and now_ns - self._logged_ns >= self._every_ns:
            self._logged_ns = now_ns
            inner = phases[-1]
            seconds = (now_ns - self._started_ns) / 1e9
            _log.info("building %s: %.0f s, %s %d/%d", self._label, seconds, inner.name, inner.done, inner.steps)

    def built(self, plan_bytes: int) -> None:
        """Log the end of the build."""
        seconds = (self._clock() - self._started_ns) / 1e9
        _log.info("built %s: %.1f MiB in %.1f s", self._label, plan_bytes / 2**20, seconds)


class Monitor:
    """The three methods of TensorRT's progress monitor, without TensorRT."""

    def __init__(self, listener: BuildListener, cancel: threading.Event) -> None:
        self._listener = listener
        self._cancel = cancel
        self._open: dict[str, Phase] = {}
        self._lock = threading.Lock()  # phases come from several threads

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Start a phase as a part of one step of its parent."""
        with self._lock:
            above = self._open.get(parent_phase) if parent_phase else None
            self._open[phase_name] = Phase(phase_name, above.depth + 1 if above else 0, 0, num_steps, parent_phase)
            self._report()

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Record that step `step` is complete, counted from 0. Return False to stop the build."""
        with self._lock:
            phase = self._open.get(phase_name)
            if phase is not None:
                self._open[phase_name] = replace(phase, done=step + 1)
                self._report()
        return not self._cancel.is_set()

    def phase_finish(self, phase_name: str) -> None:
        """End a phase and all phases inside it, possibly before its last step."""
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

    Ctrl-C sets `cancel`. `KeyboardInterrupt` is raised when `work` has ended.
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
    starts = [thread.start]  # emptied before the call, so that Ctrl-C during it cannot cause a second call
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
