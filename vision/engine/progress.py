"""What a build is doing: phases inside phases, as TensorRT tells them. Also how a build is stopped.

TensorRT holds the thread that builds for minutes and runs no Python in it but its callbacks, so the build has a thread
of its own: Ctrl-C reaches the waiting one, and the next callback tells TensorRT to give up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Phase:
    """Something that TensorRT is in the middle of. Its next step may consist of phases of its own."""

    name: str
    depth: int  # 0 for the build as a whole
    done: int
    steps: int


class BuildListener(Protocol):
    """Is told how a build goes, from TensorRT's threads."""

    def parsed(self, layers: int) -> None:
        """The ONNX file was read: so many layers before fusion."""

    def progress(self, phases: Sequence[Phase]) -> None:
        """Open phases, outermost first. They have no common measure: a phase does not know how long its steps take."""

    def built(self, plan_bytes: int) -> None:
        """The engine is there."""


class Silent:
    """Listens and says nothing."""

    def parsed(self, layers: int) -> None: ...
    def progress(self, phases: Sequence[Phase]) -> None: ...
    def built(self, plan_bytes: int) -> None: ...


class LogListener:
    """Writes a line now and then: for a service, whose log nobody watches as it grows."""

    def __init__(self, label: str, clock: Callable[[], int] = time.monotonic_ns, every_s: float = 15.0) -> None:
        self._label = label
        self._clock = clock
        self._every_ns = int(every_s * 1e9)
        self._started_ns = self._said_ns = clock()

    def parsed(self, layers: int) -> None:
        """Say how large the model is."""
        _log.info("building %s: %d layers before fusion", self._label, layers)

    def progress(self, phases: Sequence[Phase]) -> None:
        """Say what goes on, unless that was said a moment ago."""
        now_ns = self._clock()
        if phases and now_ns - self._said_ns >= self._every_ns:
            self._said_ns = now_ns
            inner = phases[-1]
            seconds = (now_ns - self._started_ns) / 1e9
            _log.info("building %s: %.0f s, %s %d/%d", self._label, seconds, inner.name, inner.done, inner.steps)

    def built(self, plan_bytes: int) -> None:
        """Say that it is over."""
        seconds = (self._clock() - self._started_ns) / 1e9
        _log.info("built %s: %.1f MiB in %.1f s", self._label, plan_bytes / 2**20, seconds)


class Monitor:
    """What TensorRT's progress monitor calls: the same three methods, without TensorRT."""

    def __init__(self, listener: BuildListener, cancel: threading.Event) -> None:
        self._listener = listener
        self._cancel = cancel
        self._open: dict[str, Phase] = {}
        self._parents: dict[str, str | None] = {}
        self._lock = threading.Lock()  # phases come from several threads

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins, as a part of one step of its parent."""
        with self._lock:
            above = self._open.get(parent_phase) if parent_phase else None
            self._open[phase_name] = Phase(phase_name, above.depth + 1 if above else 0, 0, num_steps)
            self._parents[phase_name] = parent_phase
            self._tell()

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Step number `step`, from 0, is done. False asks TensorRT to give up the build."""
        with self._lock:
            phase = self._open.get(phase_name)
            if phase is not None:
                self._open[phase_name] = replace(phase, done=step + 1)
                self._tell()
        return not self._cancel.is_set()

    def phase_finish(self, phase_name: str) -> None:
        """A phase ends, perhaps before its last step, and with it whatever was still open inside."""
        with self._lock:
            self._close(phase_name)
            self._tell()

    def _close(self, name: str) -> None:
        self._open.pop(name, None)
        for child in [child for child, parent in self._parents.items() if parent == name and child in self._open]:
            self._close(child)

    def _tell(self) -> None:
        self._listener.progress(tuple(self._open.values()))


class _Outcome(Generic[_T]):
    def __init__(self) -> None:
        self.value: _T | None = None
        self.error: BaseException | None = None


def run_interruptible(work: Callable[[], _T], cancel: threading.Event) -> _T:
    """Run `work` in a thread of its own and wait for it.

    Ctrl-C sets `cancel`, waits until `work` has noticed, and goes on its way. What `work` raises is raised here.
    """
    outcome: _Outcome[_T] = _Outcome()
    begun, ended = threading.Event(), threading.Event()

    def run() -> None:
        begun.set()
        try:
            outcome.value = work()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            outcome.error = error
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="engine build", daemon=True)
    interrupted: KeyboardInterrupt | None = None
    starts = [thread.start]  # emptied before the call: Ctrl-C inside of it must not lead to a second one
    while not ended.is_set():
        try:
            if starts:
                starts.pop()()
            ended.wait(
                timeout=0.2
            )  # not join: interrupted, it takes the thread for stopped (bugs.python.org/issue45274)
        except KeyboardInterrupt as error:
            cancel.set()
            if interrupted is not None or not begun.wait(timeout=1.0):
                raise  # the second one leaves at once; the thread is a daemon
            interrupted = error
    thread.join()
    if interrupted is not None:
        raise interrupted
    if outcome.error is not None:
        raise outcome.error
    return outcome.value  # type: ignore[return-value]  # set whenever there was no error
