"""What ends a run that hangs: `ProgressMonitor` for one thread, `hang_watchdog` for the whole interpreter."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_LONGEST_LOOK_NS: Final = 1_000_000_000  # that counts: between two looks are 50 ms and a report
_STANDARD_ERROR: Final = 2


@dataclass(slots=True)
class ProgressMonitor:
    """For how long something has not moved while somebody looked: the whole process may have been stopped meanwhile."""

    looked_ns: int
    progress_ns: int = 0
    still_ns: int = 0

    def look(self, progress_ns: int, now_ns: int) -> int:
        """What has moved has another `progress_ns` than at the last look."""
        since_ns = min(now_ns - self.looked_ns, _LONGEST_LOOK_NS)
        self.still_ns = self.still_ns + since_ns if progress_ns == self.progress_ns else 0
        self.progress_ns, self.looked_ns = progress_ns, now_ns
        return self.still_ns


def thread_stacks() -> str:
    """Where every thread is now."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


@contextlib.contextmanager
def hang_watchdog(limit_s: float = 60.0) -> Iterator[None]:
    """End the process, should no thread come to run Python for `limit_s`: exit code 1, all stacks on standard error.

    Calls that queue work for the GPU keep the GIL (`vision.gpu.driver_calls`). One that never returned would stop
    every thread,
    those that look after the others included; only a thread of faulthandler's, which needs no GIL, can end that. It is
    put off by a thread that does nothing else: the main thread may wait for a terminal or for a stop that takes long.
    A process that is stopped (Ctrl-Z) or frozen for `limit_s` ends too when it goes on.
    """
    over = threading.Event()

    def put_off() -> None:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=_STANDARD_ERROR)

    def keep_putting_off() -> None:
        while not over.wait(limit_s / 10):  # each time makes a thread of C
            put_off()

    thread = threading.Thread(target=keep_putting_off, name="watchdog", daemon=True)
    thread.start()
    try:
        put_off()
        yield
    finally:
        over.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()
