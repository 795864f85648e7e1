"""Difference between the published events and the events of a different configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any, Final, NamedTuple, TypeAlias

from vision.evaluation.whatif.changes import Change, Changes, Kind
from vision.outputs.archive.reader import ArchivedEvent

MOVED_US: Final = 10_000_000
"""Largest time in microseconds between two events of the same kind and object that count as one event that moved."""

_END_US: Final = 1 << 62  # later than all events
_TOTALS: Final = ("total_in", "total_out")


@dataclass(frozen=True, slots=True)
class Difference:
    """Differences between the published and the new events of one camera, oldest first."""

    changes: Changes
    same: int  # number of events that have no difference, except in their running totals
    equal: bool  # True if all events are equal, including their order and totals

    def numbers(self) -> Mapping[Kind, int]:
        """Return the numbers of gained, lost, moved, and changed events, by kind of difference."""
        return self.changes.numbers()


class Comparison:
    """Comparison of the published events of one camera with the new events, part by part.

    Two events are the same event if their kind, name, object, phase, direction, and time are equal. For rules, the
    underlying kinds of events must also be equal.

    * If other data differ, the event has changed.
    * If only the time differs, by at most `MOVED_US`, the event has moved.

    The comparison ignores running totals. The comparison also ignores the end of a state that was interrupted, for
    example by the end of the program, because the tracks do not determine this end.
    """

    def __init__(self, camera: str, *, same_tracks: bool = True, most: int | None = None) -> None:
        """Start a comparison.

        Args:
            camera: name of the camera.
            same_tracks: True if both lists of events have the same track ids. Otherwise, objects and data are not
                compared.
            most: number of differences to keep, as in `Changes`, or None for all differences.
        """
        self._camera = camera
        self._same_tracks = same_tracks
        self._changes = Changes(most=most)
        self._same, self._equal = 0, True
        # Lost and gained events whose partner can be in a later part.
        self._lost: list[_Known] = []
        self._gained: list[_Known] = []

    def add(self, before: Sequence[ArchivedEvent], after: Sequence[ArchivedEvent], settled_us: int) -> None:
        """Add the events of one part of the time range.

        Args:
            before: the published events of this part.
            after: the new events of this part.
            settled_us: end of the part, in microseconds since 1970 (UTC). All events of this part are at this time or
                earlier, and all events of later parts are later.
        """
        changes = list[Change]()
        before = [each for each in before if not each.event.data.get("interrupted")]
        self._equal = (
            self._equal and len(before) == len(after) and all(map(eq, map(_judged, before), map(_judged, after)))
        )
        if not before and not self._lost:
            self._changes.add(self._gained_alone(after, settled_us))
            return
        pairs, lost, gained = _paired(self._known(before), self._known(after))
        for old, new in pairs:
            if _data(old, self._same_tracks) == _data(new, self._same_tracks):
                self._same += 1
            else:
                changes.append(Change(self._camera, "changed", old, new))
        lost, gained = self._lost + lost, self._gained + gained
        is_open = _open_events(lost, gained, settled_us)
        self._lost, self._gained = ([each for each in part if id(each) in is_open] for part in (lost, gained))
        if is_open:
            lost, gained = ([each for each in part if id(each) not in is_open] for part in (lost, gained))
        moved, lost, gained = _nearest(lost, gained)
        changes += [Change(self._camera, "moved", old, new) for old, new in moved]
        changes += [Change(self._camera, "lost", old.event, None) for old in lost]
        changes += [Change(self._camera, "gained", None, new.event) for new in gained]
        self._changes.add(changes)

    def _gained_alone(self, after: Sequence[ArchivedEvent], settled_us: int) -> list[Change]:
        """Compare the new events of a part of the time range that has no published events.

        Return the events of this part, and earlier ones, that are certainly gained. Keep the latest events for the
        comparison with the next part, whose first events can have almost the same time.
        """
        events, recent_us = [*(each.event for each in self._gained), *after], settled_us - MOVED_US
        self._gained = self._known([each for each in events if each.at_us >= recent_us])
        return [Change(self._camera, "gained", None, each) for each in events if each.at_us < recent_us]

    def _known(self, events: Sequence[ArchivedEvent]) -> list[_Known]:
        return [_Known(_about(each, self._same_tracks), each) for each in events]

    def finish(self) -> Difference:
        """Return the differences between all events that were added."""
        self.add((), (), _END_US)
        return Difference(self._changes, self._same, self._equal and not self._changes)


def compare(
    camera: str, before: Sequence[ArchivedEvent], after: Sequence[ArchivedEvent], *, same_tracks: bool = True
) -> Difference:
    """Compare the published events `before` of one camera with the new events `after`, as `Comparison` does."""
    comparison = Comparison(camera, same_tracks=same_tracks)
    comparison.add(before, after, _END_US)
    return comparison.finish()


class _Known(NamedTuple):
    """Event, and the properties (except the time) that identify the event."""

    about: Hashable  # result of `_about`; equal for two events that can be the same event at different times
    event: ArchivedEvent


def _open_events(lost: Sequence[_Known], gained: Sequence[_Known], settled_us: int) -> set[int]:
    """Return the `id` of each event whose pairing can still change because of events later than `settled_us`.

    Two events can be a pair if they differ only in time, by at most `MOVED_US`.
    """
    found: set[int] = set()
    if settled_us == _END_US:
        return found
    recent_us = settled_us - MOVED_US
    recent = {each.about for events in (lost, gained) for each in events if each.event.at_us >= recent_us}
    groups: dict[Hashable, list[tuple[int, bool, int]]] = {about: [] for about in recent}
    for events, is_lost in ((lost, True), (gained, False)) if recent else ():
        for each in events:
            if each.about in groups:
                groups[each.about].append((each.event.at_us, is_lost, id(each)))
    for group in groups.values():
        has_both, next_us = len({is_lost for _, is_lost, _ in group}) == 2, settled_us
        for at_us, _, number in sorted(group, reverse=True):
            if at_us < next_us - MOVED_US:
                break
            found.add(number)
            next_us = at_us if has_both else settled_us  # two events of the same list cannot be partners
    return found


def _judged(archived: ArchivedEvent) -> tuple[object, ...]:
    """Return the properties of an event, without the snapshot and the question, which only a live run adds."""
    event = archived.event
    return event.kind, event.name, event.track_id, event.at_ns, event.data


_Pairs: TypeAlias = list[tuple[ArchivedEvent, ArchivedEvent]]


def _paired(before: Sequence[_Known], after: Sequence[_Known]) -> tuple[_Pairs, list[_Known], list[_Known]]:
    """Pair each published event with the new event that is the same and has the same time.

    Return the pairs, and the events without a partner.
    """
    waiting: dict[int, list[_Known]] = {}  # by time, the last event first
    times_us = {each.event.at_us for each in before}
    for each in reversed(after):
        if each.event.at_us in times_us:
            waiting.setdefault(each.event.at_us, []).append(each)
    pairs, lost, paired = [], [], set[int]()
    for each in before:
        at_this_time = waiting.get(each.event.at_us, [])
        for at in range(len(at_this_time) - 1, -1, -1):
            if at_this_time[at].about == each.about:
                partner = at_this_time.pop(at)
                paired.add(id(partner))
                pairs.append((each.event, partner.event))
                break
        else:
            lost.append(each)
    return pairs, lost, [each for each in after if id(each) not in paired] if paired else [*after]


def _nearest(lost: Sequence[_Known], gained: Sequence[_Known]) -> tuple[_Pairs, list[_Known], list[_Known]]:
    """Pair lost and gained events that differ only slightly in time, smallest time difference first.

    Return the pairs, and the events without a partner.
    """
    candidates = sorted(_candidates(lost, gained))
    used_before: set[int] = set()
    used_after: set[int] = set()
    pairs = []
    for _, old, new in candidates:
        if old not in used_before and new not in used_after:
            used_before.add(old)
            used_after.add(new)
            pairs.append((lost[old].event, gained[new].event))
    left = [event for number, event in enumerate(lost) if number not in used_before]
    return pairs, left, [event for number, event in enumerate(gained) if number not in used_after]


def _candidates(lost: Sequence[_Known], gained: Sequence[_Known]) -> Iterator[tuple[int, int, int]]:
    """Yield the pairs of a lost and a gained event that differ only in time, by at most `MOVED_US`.

    Each pair is the difference in microseconds, the index in `lost`, and the index in `gained`. Both lists must be in
    the order of time.
    """
    of_kind: dict[Hashable, list[int]] = {}
    for number, each in enumerate(gained if lost else ()):
        of_kind.setdefault(each.about, []).append(number)
    first: Counter[Hashable] = Counter()
    for old, (about, event) in enumerate(lost):
        numbers = of_kind.get(about)
        if numbers is None:
            continue
        while first[about] < len(numbers) and gained[numbers[first[about]]].event.at_us < event.at_us - MOVED_US:
            first[about] += 1
        for new in numbers[first[about] :]:
            at_us = gained[new].event.at_us
            if at_us > event.at_us + MOVED_US:
                break
            yield abs(at_us - event.at_us), old, new


def _about(archived: ArchivedEvent, same_tracks: bool) -> Hashable:
    event = archived.event
    data = event.data
    about = event.kind, event.name, data.get("phase"), data.get("direction"), data.get("event")
    return (*about, event.track_id) if same_tracks else about


def _data(archived: ArchivedEvent, same_tracks: bool) -> Mapping[str, Any]:
    if not same_tracks:
        return {}
    return {key: value for key, value in archived.event.data.items() if key not in _TOTALS}
