"""Find the events of single objects in archived frames, in this process or in a second process.

The state of an object at lines and zones depends on no other object. Counts, crowds, and rules depend on all objects.
`Rejudgment` evaluates counts, crowds, and rules from the events that this module finds. With two processes, one process
reads the archive and runs `Rejudgment`, and the other process finds the events. Both need about the same CPU time.
"""

from __future__ import annotations

import gc
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from vision.analytics.object_analytics import ObjectAnalytics, ObjectEvent
from vision.analytics.recorded_objects import RecordedTracks
from vision.errors import Unavailable
from vision.evaluation.whatif.judge import FoundEvents, Judge
from vision.outputs.archive.reader import Archive
from vision.outputs.archive.rows import ArchivedBlock

_AHEAD: Final = 24
"""Number of blocks that the second process can find events in while the first process reads or compares an hour."""
_ALLOCATIONS: Final = 100_000  # new objects between two runs of the garbage collector; Python's default is 700


class Finder:
    """Function that finds the events of the objects of one camera, block by block."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._started: tuple[str, int] | None = None  # start of the program, and epoch
        self._analytics: ObjectAnalytics | None = None

    def __call__(self, block: ArchivedBlock) -> FoundEvents:
        """Return the events in the next block. If the block belongs to a new epoch, start this epoch first."""
        ended: Sequence[ObjectEvent] = ()
        if self._started is None or self._started[0] != block.instance:
            self._analytics = self._judge.object_analytics(block.frame_size_px)
        elif self._started[1] != block.epoch and self._analytics is not None:
            ended = self._analytics.end_epoch(block.frame_size_px, block.tracks.captured_ns[0])
        self._started = block.instance, block.epoch
        found = () if self._analytics is None else self._analytics.judge(block.tracks)
        return FoundEvents(ended, found)


class FoundBlock(NamedTuple):
    """Block of archived frames, from which the tracks are removed, and the events of the objects in the block."""

    block: ArchivedBlock
    events: FoundEvents


class Search(NamedTuple):
    """Frames of one camera's archive in a time range, and the configuration with which to find their events."""

    archive: Archive
    judge: Judge  # the configuration
    camera: str
    since_us: int  # start of the range, in microseconds since 1970 (UTC)
    until_us: int  # end of the range, in microseconds since 1970 (UTC)

    def blocks(self) -> Iterator[ArchivedBlock]:
        """Yield the frames and their tracks, in the order of publication."""
        return self.archive.blocks(self.camera, self.since_us, self.until_us)

    def found(self) -> Iterator[FoundBlock]:
        """Yield the frames, and the events of their objects with the configuration, in the order of publication."""
        find = Finder(self.judge)
        for block in self.blocks():
            yield FoundBlock(_without_tracks(block), find(block))


def _without_tracks(block: ArchivedBlock) -> ArchivedBlock:
    return replace(block, tracks=replace(RecordedTracks.empty(), captured_ns=block.tracks.captured_ns))


@contextmanager
def rare_collections() -> Iterator[None]:
    """Run the garbage collector rarely during a `with` block.

    Events create many objects but no reference cycles, so each run would find nothing.
    """
    before = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def found_by_process(search: Search) -> Iterator[Iterator[FoundBlock]]:
    """Find the events of a search in a second process. Yield an iterator over the blocks that `Search.found` yields.

    This process reads the archive, and sends the blocks to the second process. The iterator raises the `ConfigError`
    that ended the search, or `Unavailable` if the second process was killed. The second process ends when the context
    ends.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_find_events, args=(search.judge, there), daemon=True)
    process.start()
    there.close()
    try:
        yield _exchanged(search, here)
    finally:
        process.kill()
        process.join()
        here.close()


def _exchanged(search: Search, connection: Connection) -> Iterator[FoundBlock]:
    """Send each block to the second process. Yield the blocks with the events that the second process finds."""
    waiting, answers = deque[ArchivedBlock](), SimpleQueue[FoundEvents | None]()
    # The thread accepts events at once. Otherwise, the second process would wait while this process compares events.
    threading.Thread(target=_receive, args=(connection, answers), daemon=True).start()
    try:
        for block in search.blocks():
            connection.send(block)
            waiting.append(_without_tracks(block))
            while len(waiting) > _AHEAD:
                yield _answered(waiting.popleft(), answers)
        while waiting:
            yield _answered(waiting.popleft(), answers)
    except (EOFError, ConnectionError):
        hint = "the memory may be too small: try again with a shorter time"
        raise Unavailable("the process that finds events has ended", hint=hint, code="whatif-killed") from None


def _answered(block: ArchivedBlock, answers: SimpleQueue[FoundEvents | None]) -> FoundBlock:
    """Return the block with its events. Raise `EOFError` if the second process has ended."""
    found = answers.get()
    if found is None:
        raise EOFError
    return FoundBlock(block, found)


def _find_events(judge: Judge, connection: Connection) -> None:
    """Find the events in each block from `connection`, and send them back, until this process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this process
    # The thread accepts each block at once. Otherwise, both processes could wait until the other one reads.
    blocks = SimpleQueue[ArchivedBlock | None]()
    threading.Thread(target=_receive, args=(connection, blocks), daemon=True).start()
    find = Finder(judge)
    with suppress(ConnectionError), rare_collections():
        while (block := blocks.get()) is not None:
            connection.send(find(block))


def _receive(connection: Connection, received: SimpleQueue[Any]) -> None:
    """Put each object from `connection` into `received`, and None when the other process has ended."""
    with suppress(EOFError, OSError):
        while True:
            received.put(connection.recv())
    received.put(None)
