"""`Changes` stores the differences between the events of two configurations compactly.

For one camera, one day can have hundreds of thousands of differences.
"""

from __future__ import annotations

import heapq
import pickle
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from vision.outputs.archive.reader import ArchivedEvent
from vision.types import Event

Kind: TypeAlias = Literal["gained", "lost", "moved", "changed"]

_BLOCK: Final = 10_000  # number of differences in a compressed block
_LEVEL: Final = 1  # of zlib: fast


class Change(NamedTuple):
    """One difference between the published events and the events of a new configuration.

    `before` is the published event, or None if the new configuration adds the event. `after` is the new event, or None
    if the new configuration loses the event.
    """

    camera: str
    kind: Kind
    before: ArchivedEvent | None
    after: ArchivedEvent | None

    @property
    def shown(self) -> ArchivedEvent:
        """The event to show for this difference: the new event or, if there is none, the published event."""
        found = self.before if self.after is None else self.after
        assert found is not None
        return found


def _at_us(change: Change) -> int:
    return change.shown.at_us


# Python stores tuples several times faster than data classes.
_values_of: Final = attrgetter(*(each.name for each in fields(Event)))


def _values(archived: ArchivedEvent | None) -> tuple[Any, ...] | None:
    if archived is None:
        return None
    return _values_of(archived.event), archived.instance, archived.epoch, archived.frame, archived.at_us


def _event(values: tuple[Any, ...] | None) -> ArchivedEvent | None:
    return None if values is None else ArchivedEvent(Event(*values[0]), *values[1:])


class _Block(NamedTuple):
    first_us: int  # time of the first difference, in microseconds since 1970 (UTC)
    content: bytes

    def changes(self) -> list[Change]:
        values = pickle.loads(zlib.decompress(self.content))
        return [Change(camera, kind, _event(before), _event(after)) for camera, kind, before, after in values]


class Changes:
    """Differences between the published and the new events of one camera.

    An iteration yields the differences in the order of time. Differences at the same time are in the order in which
    they were added. Most differences are compressed. An iteration decompresses only a few differences at the same time.
    """

    def __init__(self, changes: Iterable[Change] = (), *, most: int | None = None) -> None:
        """Keep `changes`, and the differences that `add` receives.

        If `most` is not None, an iteration yields only the first `most` differences. `numbers` counts all differences.
        """
        self._most = most
        self._blocks: list[_Block] = []
        self._newest: list[Change] = []  # not compressed yet
        self._numbers: Counter[Kind] = Counter()
        self.add(changes)

    def add(self, changes: Iterable[Change]) -> None:
        """Add differences, in any order."""
        number = len(self._newest)
        self._newest += changes
        self._numbers.update(change.kind for change in self._newest[number:])
        if self._most is not None:
            self._newest = heapq.nsmallest(self._most, self._newest, key=_at_us)
        elif len(self._newest) >= _BLOCK:
            self._newest.sort(key=_at_us)
            for start in range(0, len(self._newest), _BLOCK):
                block = self._newest[start : start + _BLOCK]
                values = [(each.camera, each.kind, _values(each.before), _values(each.after)) for each in block]
                self._blocks.append(_Block(_at_us(block[0]), zlib.compress(pickle.dumps(values), _LEVEL)))
            self._newest = []

    def numbers(self) -> Mapping[Kind, int]:
        """Return the numbers of gained, lost, moved, and changed events, by kind of difference."""
        return {kind: self._numbers[kind] for kind in ("gained", "lost", "moved", "changed")}

    def __len__(self) -> int:
        return self._numbers.total()

    def __iter__(self) -> Iterator[Change]:
        waiting = sorted(enumerate(self._blocks), key=lambda each: each[1].first_us, reverse=True)
        newest = iter(sorted(self._newest, key=_at_us))
        # Time and number of the block for the next difference of each decompressed block.
        heads: list[tuple[int, int, Change, Iterator[Change]]] = []
        _push(heads, len(self._blocks), newest)
        while heads or waiting:
            while waiting and (not heads or waiting[-1][1].first_us <= heads[0][0]):
                number, block = waiting.pop()
                _push(heads, number, iter(block.changes()))
            _, number, change, rest = heapq.heappop(heads)
            yield change
            _push(heads, number, rest)


def _push(heads: list[tuple[int, int, Change, Iterator[Change]]], number: int, rest: Iterator[Change]) -> None:
    change = next(rest, None)
    if change is not None:
        heapq.heappush(heads, (_at_us(change), number, change, rest))
