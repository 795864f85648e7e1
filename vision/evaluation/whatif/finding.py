"""Find the events of single objects in archived frames, in this process or in a second process.

The state of an object at lines and zones depends on no other object. Counts, crowds, and rules depend on all objects.
`Rejudgment` evaluates counts, crowds, and rules from the events that this module finds. Both steps take about the same
time, so two processes evaluate a camera in nearly half the time of one process.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

from vision.analytics.object_analytics import ObjectAnalytics, ObjectEvent
from vision.analytics.recorded_objects import RecordedTracks
from vision.errors import ConfigError, Unavailable
from vision.evaluation.whatif.judge import FoundEvents, Judge
from vision.outputs.archive.reader import Archive
from vision.outputs.archive.rows import ArchivedBlock

_ALLOCATIONS: Final = 100_000  # new objects between two runs of the garbage collector; Python's default is 700


class Finder:
    """Function that finds the events of the objects of one camera, block by block."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._started: tuple[str, int] | None = None  # start of the program, and epoch
        self._analytics: ObjectAnalytics | None = None

    def __call__(self, block: ArchivedBlock) -> FoundEvents:
        """Return the events in the next block. Start a new epoch if the block belongs to a new epoch."""
        ended: Sequence[ObjectEvent] = ()
        if self._started is None or self._started[0] != block.instance:
            self._analytics = self._judge.object_analytics(block.frame_size_px)
        elif self._started[1] != block.epoch and self._analytics is not None:
            ended = self._analytics.end_epoch(block.frame_size_px, block.tracks.captured_ns[0])
        self._started = block.instance, block.epoch
        found = () if self._analytics is None else self._analytics.judge(block.tracks)
        return FoundEvents(ended, found)


class FoundBlock(NamedTuple):
    """A block of archived frames, without its tracks, and the events of the objects in it."""

    block: ArchivedBlock
    events: FoundEvents


class Search(NamedTuple):
    """The frames to search for events, and the configuration."""

    archive: Archive
    judge: Judge  # the configuration
    camera: str
    since_us: int  # start of the range, in microseconds since 1970 (UTC)
    until_us: int  # end of the range, in microseconds since 1970 (UTC)

    def found(self) -> Iterator[FoundBlock]:
        """Yield the frames and the events of their objects, in the order of publication."""
        find = Finder(self.judge)
        for block in self.archive.blocks(self.camera, self.since_us, self.until_us):
            times = replace(RecordedTracks.empty(), captured_ns=block.tracks.captured_ns)
            yield FoundBlock(replace(block, tracks=times), find(block))


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
    """Run a search in a second process. Yield an iterator over the same blocks that `Search.found` yields.

    The iterator raises the `ConfigError` that ended the search, or `Unavailable` if the process was killed. The process
    ends when the context ends.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_search, args=(search, sender), daemon=True)
    process.start()
    sender.close()
    try:
        yield _received(receiver)
    finally:
        process.kill()
        process.join()
        receiver.close()


def _search(search: Search, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this process
    with suppress(BrokenPipeError), rare_collections():
        try:
            for each in search.found():
                sender.send(each)
            sender.send(None)
        except ConfigError as error:
            sender.send(error)


def _received(receiver: Connection) -> Iterator[FoundBlock]:
    while True:
        try:
            found = receiver.recv()
        except EOFError:
            hint = "the memory may be too small: try again with a shorter time"
            raise Unavailable("the process that reads the archive has ended", hint=hint, code="whatif-killed") from None
        if found is None:
            return
        if isinstance(found, ConfigError):
            raise found
        yield found
