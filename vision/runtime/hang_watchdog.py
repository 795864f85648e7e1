"""`Watchdog`, which replaces a part of the program that hangs, or ends the process if this part cannot be replaced.

The watchdog also observes the whole pipeline: if frames arrive, results must be produced. Each part reports its
progress without taking a lock, because a part that hangs can hold the lock.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from vision.state.service_manager import notify, watchdog_interval_s

log = logging.getLogger(__name__)

_MAX_STEP_NS: Final = 1_000_000_000
"""Maximum time that one interval between calls to `look` contributes. Usually, an interval is at most a second."""

_LONGEST_CHECK_S: Final = 0.5  # longest time between two checks
_GIL_HANGS: Final = 2  # multiple of `hang_s` after which the process ends if no thread runs Python
_END_S: Final = 10.0  # longest time in seconds for an orderly end after a hang
_END_HANGS: Final = 4  # multiple of `hang_s` for an orderly end, if that is shorter
_STANDARD_ERROR: Final = 2

Progress: TypeAlias = Callable[[], object]
"""Function that returns the progress of a part, such as a count or a time. Any change is progress.

The function returns None if the part has nothing to do. It must not take a lock.
"""


@dataclass(slots=True)
class ProgressMonitor:
    """Measurement of the time in which a part has made no progress.

    A long interval between two calls to `look` counts only in part, because the whole process may have been suspended.
    """

    looked_ns: int
    progress: object = None
    still_ns: int = 0

    def look(self, progress: object, now_ns: int) -> int:
        """Return the time without progress in ns, or 0 if the part has nothing to do (`progress` is None)."""
        since_ns = min(now_ns - self.looked_ns, _MAX_STEP_NS)
        self.still_ns = self.still_ns + since_ns if progress is not None and progress == self.progress else 0
        self.progress, self.looked_ns = progress, now_ns
        return self.still_ns


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the program that the watchdog observes, such as a thread, a worker process, or the whole pipeline."""

    name: str
    progress: Progress
    limit_s: float  # longest time without progress
    repair: Callable[[float], bool] | None = None
    """Function that replaces the part, for example with a new thread. None means that the part cannot be replaced.

    The argument of the function is the time without progress in seconds. The function returns False if it fails.
    """


class Watchdog:
    """Observer of parts that repairs a part without progress. If a part cannot be repaired, the program must end."""

    def __init__(self, fail: Callable[[Part, float], object], *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Create the watchdog.

        Args:
            fail: function that `check` calls if a part hangs and cannot be repaired, with the part and the time
                without progress in seconds.
            clock: function that returns the monotonic time in ns.
        """
        self._fail = fail
        self._clock = clock
        self._parts: list[tuple[Part, ProgressMonitor]] = []
        self._done = threading.Event()
        self._fed_ns = 0

    def watch(self, part: Part) -> None:
        """Start observing a part."""
        self._parts.append((part, ProgressMonitor(self._clock())))

    def forget(self, name: str) -> None:
        """Stop observing the parts with this name."""
        self._parts = [entry for entry in self._parts if entry[0].name != name]

    def check(self, *, end_s: float | None = None) -> bool:
        """Check the parts, and repair the parts that hang. Return False at the first part that cannot be repaired.

        If a part cannot be repaired and `end_s` is not None, the process ends after `end_s` seconds, even if an
        orderly end hangs.
        """
        for part, monitor in self._parts:
            still_s = monitor.look(part.progress(), self._clock()) / 1e9
            if still_s <= part.limit_s:
                continue
            monitor.still_ns = 0  # a repaired part has its whole time again
            repaired = part.repair is not None and part.repair(still_s)
            if not repaired:
                if end_s is not None:
                    _end_process_after(end_s)
                self._fail(part, still_s)
            text = "%s has made no progress for %.1f s; stack of every thread:\n%s"
            log.log(logging.WARNING if repaired else logging.ERROR, text, part.name, still_s, thread_stacks())
            if not repaired:
                return False
        return True

    @contextmanager
    def running(self, hang_s: float, *, end_process: bool = False) -> Iterator[None]:
        """Check all parts in a thread during a `with` block, and report to the service manager that the program works.

        If `end_process` is True, the process prints the stacks of all threads, and ends with exit code 1, in two cases:

        * The process does not end by itself after a hang.
        * No thread runs Python for `2 * hang_s`. Calls that queue work for the GPU hold the GIL (`cuda.driver_calls`),
          so a call that never returns blocks every thread. In this case, only faulthandler can end the process, because
          its thread does not need the GIL. A process that was suspended (Ctrl-Z) for this time also ends when it
          resumes.

        Args:
            hang_s: configured time in seconds after which a part counts as hanging. The thread checks the parts every
                tenth of this time, and at least every 0.5 s.
            end_process: if True, end the process in these two cases.
        """
        gil_s = _GIL_HANGS * hang_s if end_process else None
        thread = threading.Thread(target=self._run, args=(hang_s, gil_s), name="watchdog", daemon=True)
        if gil_s is not None:
            _end_process_after(gil_s)
        thread.start()
        try:
            yield
        finally:
            if not self._done.is_set():
                self._done.set()
                thread.join()
                if gil_s is not None:
                    faulthandler.cancel_dump_traceback_later()

    def _run(self, hang_s: float, gil_s: float | None) -> None:
        interval_s, postpone_ns = min(hang_s / 10, _LONGEST_CHECK_S), 0
        end_s = None if gil_s is None else min(_END_S, _END_HANGS * hang_s)
        while not self._done.wait(interval_s):
            if not self.check(end_s=end_s):
                self._done.set()
                return
            now_ns = self._clock()
            if gil_s is not None and now_ns >= postpone_ns:  # rarely, because each call starts a C thread
                _end_process_after(gil_s)
                postpone_ns = now_ns + int(gil_s * 1e8)
            service_s = watchdog_interval_s()
            if service_s is not None and now_ns - self._fed_ns >= service_s * 1e9 / 4:
                self._fed_ns = now_ns
                notify("WATCHDOG=1")


def _end_process_after(seconds: float) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STANDARD_ERROR)


def thread_stacks() -> str:
    """Return the current stack of every thread as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
