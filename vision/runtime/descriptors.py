"""A reserve of file descriptors, so that libraries continue to work when the process has opened too many files.

If the process has no free descriptor, libzmq cannot accept a connection to an ``ipc`` socket, and ends the process with
SIGABRT (`ipc_listener.cpp`, up to 4.3.5).
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import time
from collections.abc import Callable
from typing import Final

from vision.errors import Unavailable

log = logging.getLogger(__name__)

NO_DESCRIPTORS: Final = "no-descriptors"
"""Code of the error of a process that has used up its reserve."""

_RESERVE: Final = 32
_HIGHEST_LIMIT: Final = 65536
_LONGEST_NS: Final = 5_000_000_000
_HINT: Final = (
    "raise the limit: `LimitNOFILE=` in the unit, or `ulimit -n`. `ls -l /proc/PID/fd` shows which files are open"
)


def raise_limit() -> None:
    """Raise this process's soft limit of open files to the hard limit, but at most to 65536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _HIGHEST_LIMIT if hard == resource.RLIM_INFINITY else min(hard, _HIGHEST_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


class DescriptorReserve:
    """Reserved descriptors, which `check` releases if no others are free. Call all methods from one thread."""

    def __init__(self, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Open the descriptors of the reserve.

        Raises:
            OSError: too few descriptors are free. Cameras and libraries would fail immediately.
        """
        self._clock = clock
        self._any = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._spares: list[int] = []
        self._exhausted_ns: int | None = None  # time from which on even the reserve was used up
        if not self._take():
            os.close(self._any)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def check(self) -> None:
        """Release the reserve if no other descriptor is free.

        Retake the reserve if the number of free descriptors is at least twice the size of the reserve.

        Raises:
            Unavailable: the reserve is used up too, and no descriptor has been free for 5 s.
        """
        try:
            os.close(os.dup(self._any))
        except OSError:
            if self._spares:
                self._give_back()
                log.error("no descriptor is free, except %d in reserve; hint: %s", _RESERVE, _HINT)
                return
            now_ns = self._clock()
            self._exhausted_ns = now_ns if self._exhausted_ns is None else self._exhausted_ns
            if now_ns - self._exhausted_ns >= _LONGEST_NS:
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                text = f"the program has opened all {limit} files that it may open"
                raise Unavailable(text, hint=_HINT, code=NO_DESCRIPTORS) from None
            return
        self._exhausted_ns = None
        if not self._spares and self._take():
            log.info("enough descriptors are free again")

    def close(self) -> None:
        """Release all reserved descriptors. Call this method once."""
        self._give_back()
        os.close(self._any)

    def _take(self) -> bool:
        """Open the descriptors of the reserve if twice as many are free. Return True if they were opened."""
        try:
            for _ in range(2 * _RESERVE):
                self._spares.append(os.dup(self._any))
        except OSError:
            self._give_back()
            return False
        self._give_back(_RESERVE)
        return True

    def _give_back(self, kept: int = 0) -> None:
        while len(self._spares) > kept:
            os.close(self._spares.pop())
