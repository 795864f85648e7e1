"""`FinderProcesses` finds the events of the objects of one camera in several processes."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from types import TracebackType
from typing import Final

from vision.analytics.recorded_objects import Share
from vision.evaluation.whatif.rejudge import Finder, FoundEvents, Judge, together
from vision.outputs.archive.rows import ArchivedBlock

_AHEAD: Final = 3  # blocks that the processes receive before the events of the first of them are used

_finder: Finder | None = None  # of this process


class FinderProcesses:
    """Processes that each find the events of a share of the objects. Use it as a context manager."""

    def __init__(self, judge: Judge, number: int) -> None:
        """Start `number` processes."""
        self._resources = ExitStack()
        context, self._pools = get_context("spawn"), list[ProcessPoolExecutor]()
        for part in range(number):
            pool = ProcessPoolExecutor(1, context, initializer=_start, initargs=(judge, Share(part, number)))
            self._resources.callback(pool.shutdown, cancel_futures=True)
            self._pools.append(pool)

    def find(self, blocks: Iterable[ArchivedBlock]) -> Iterator[tuple[ArchivedBlock, FoundEvents]]:
        """Yield each block with the events of its objects, as `FinderGroup.find` does."""
        waiting: deque[tuple[ArchivedBlock, list[Future[FoundEvents]]]] = deque()
        for block in blocks:
            waiting.append((block, [pool.submit(_find, block) for pool in self._pools]))
            if len(waiting) > _AHEAD:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)

    def __enter__(self) -> FinderProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()


def _first(
    waiting: deque[tuple[ArchivedBlock, list[Future[FoundEvents]]]],
) -> tuple[ArchivedBlock, FoundEvents]:
    """Remove the first block, and wait for its events. Return both."""
    block, shares = waiting.popleft()
    return block, together([share.result() for share in shares])


def _start(judge: Judge, share: Share) -> None:
    """Prepare a process."""
    global _finder  # noqa: PLW0603 - a process of the pool has no other place for its state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, but the main process decides
    _finder = Finder(judge, share)


def _find(block: ArchivedBlock) -> FoundEvents:
    assert _finder is not None
    return _finder(block)
