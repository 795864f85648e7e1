"""Detection of hangs: `ProgressMonitor` observes one thread, and `hang_watchdog` observes the whole interpreter."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_MAX_STEP_NS: Final = 1_000_000_000
"""Maximum time that counts between two calls of `look`. Usually, 50 ms and the time for a report pass between them."""

_STANDARD_ERROR: Final = 2


@dataclass(slots=True)
class ProgressMonitor:
    """Measures how long a thread has made no progress.

    A long interval between two calls of `look` counts only in part, because the whole process may have been suspended.
    """

    looked_ns: int
    progress_ns: int = 0
    still_ns: int = 0

    def look(self, progress_ns: int, now_ns: int) -> int:
        """Return how long the thread has made no progress, in ns. Any change of `progress_ns` is progress."""
        since_ns = min(now_ns - self.looked_ns, _MAX_STEP_NS)
        self.still_ns = self.still_ns + since_ns if progress_ns == self.progress_ns else 0
        self.progress_ns, self.looked_ns = progress_ns, now_ns
        return self.still_ns


def thread_stacks() -> str:
    """Return the current stack of every thread as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


@contextlib.contextmanager
def hang_watchdog(limit_s: float = 60.0) -> Iterator[None]:
    """End the process if no thread runs Python for `limit_s` seconds. Write all stacks to standard error first.

    The exit code is 1. Calls that queue work for the GPU hold the GIL (`cuda.driver_calls`). A call that never returns
    therefore blocks every thread, including threads that monitor others. Then only faulthandler can end the process,
    because its thread does not need the GIL. While Python runs, a dedicated thread keeps postponing the end of the
    process; the main thread cannot, because it may wait for a terminal or for a long stop. A process that was suspended
    (Ctrl-Z) for `limit_s` seconds also ends when it resumes.
    """
    done = threading.Event()

    def postpone() -> None:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=_STANDARD_ERROR)

    def keep_postponing() -> None:
        while not done.wait(limit_s / 10):  # rarely, because each call starts a C thread
            postpone()

    thread = threading.Thread(target=keep_postponing, name="watchdog", daemon=True)
    thread.start()
    try:
        postpone()
        yield
    finally:
        done.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()
