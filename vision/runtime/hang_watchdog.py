"""Detection of hangs: `ProgressMonitor` for one thread, `hang_watchdog` for the whole interpreter."""

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
"""Maximum time that counts between two calls of `look`, which are usually 50 ms and a report apart."""

_STANDARD_ERROR: Final = 2


@dataclass(slots=True)
class ProgressMonitor:
    """Measures how long a thread has made no progress.

    A long interval between two calls of `look` counts only in part: the whole process may have been suspended.
    """

    looked_ns: int
    progress_ns: int = 0
    still_ns: int = 0

    def look(self, progress_ns: int, now_ns: int) -> int:
        """Return the time without progress in ns. A thread makes progress if its `progress_ns` changes."""
        since_ns = min(now_ns - self.looked_ns, _MAX_STEP_NS)
        self.still_ns = self.still_ns + since_ns if progress_ns == self.progress_ns else 0
        self.progress_ns, self.looked_ns = progress_ns, now_ns
        return self.still_ns


def thread_stacks() -> str:
    """Return the current stack of every thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


@contextlib.contextmanager
def hang_watchdog(limit_s: float = 60.0) -> Iterator[None]:
    """End the process if no thread runs Python for `limit_s`: exit code 1, all stacks on standard error.

    Calls that queue work for the GPU hold the GIL (`cuda.driver_calls`). If one never returns, it blocks every thread,
    including those that monitor the others. Only faulthandler can then end the process, because its thread needs no
    GIL. A dedicated thread postpones that end, because the main thread may wait for a terminal or for a long stop.
    A process that is suspended (Ctrl-Z) or frozen for `limit_s` also ends when it resumes.
    """
    done = threading.Event()

    def postpone() -> None:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=_STANDARD_ERROR)

    def keep_postponing() -> None:
        while not done.wait(limit_s / 10):  # each call starts a C thread
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
