"""The difference between the events that were published and those of a different configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from vision.outputs.archive.reader import ArchivedEvent
from vision.types import Event

Kind: TypeAlias = Literal["gained", "lost", "moved", "changed"]

MOVED_US: Final = 10_000_000
"""Largest time between two events of the same kind and object that count as one event that moved."""

_TOTALS: Final = ("total_in", "total_out")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `before` is None for a gained event, and `after` is None for a lost event."""

    camera: str
    kind: Kind
    before: ArchivedEvent | None
    after: ArchivedEvent | None

    @property
    def shown(self) -> ArchivedEvent:
        """The new event; the lost event if there is no new event."""
        found = self.before if self.after is None else self.after
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class Difference:
    """The differences of one camera, oldest first."""

    changes: tuple[Change, ...]
    same: int  # number of events that have no difference, except in their running totals
    equal: bool  # True if all events are equal, including their order and totals

    def numbers(self) -> Mapping[Kind, int]:
        """Return the number of differences of each kind."""
        found = Counter(change.kind for change in self.changes)
        return {kind: found[kind] for kind in ("gained", "lost", "moved", "changed")}


def compare(
    camera: str, before: Sequence[ArchivedEvent], after: Sequence[ArchivedEvent], *, same_tracks: bool = True
) -> Difference:
    """Compare two lists of events of one camera.

    Two events are the same event if their kind, name, object, phase, direction, time, and, for rules, their underlying
    kind of event are equal. If other data differ, the event has changed. If only the time differs, by at most
    `MOVED_US`, the event has moved. Running totals are not compared. Ends of states that were interrupted, for example
    by the end of the program, are ignored, because they do not follow from the tracks.

    Args:
        camera: name of the camera.
        before: the published events.
        after: the new events.
        same_tracks: if True, both lists have the same track ids. Otherwise, objects and data are not compared.
    """
    changes, same = [], 0
    before = [each for each in before if not each.event.data.get("interrupted")]
    pairs, lost, gained = _paired(before, after, lambda event: (_about(event, same_tracks), event.at_us))
    for old, new in pairs:
        if _data(old, same_tracks) == _data(new, same_tracks):
            same += 1
        else:
            changes.append(Change(camera, "changed", old, new))
    moved, lost, gained = _nearest(lost, gained, same_tracks)
    changes += [Change(camera, "moved", old, new) for old, new in moved]
    changes += [Change(camera, "lost", old, None) for old in lost]
    changes += [Change(camera, "gained", None, new) for new in gained]
    changes.sort(key=lambda change: change.shown.at_us)
    equal = not changes and [*map(_judged, before)] == [*map(_judged, after)]
    return Difference(tuple(changes), same, equal)


def _judged(archived: ArchivedEvent) -> Event:
    """Return the event without the data that only a live run adds: the path of a snapshot, and the id of a question."""
    return replace(archived.event, snapshot="", id="")


_Pairs: TypeAlias = list[tuple[ArchivedEvent, ArchivedEvent]]


def _paired(
    before: Sequence[ArchivedEvent], after: Sequence[ArchivedEvent], key: Callable[[ArchivedEvent], Hashable]
) -> tuple[_Pairs, list[ArchivedEvent], list[ArchivedEvent]]:
    """Pair events with equal keys, in order. Return the pairs, and the rest of each list."""
    waiting: dict[Hashable, list[ArchivedEvent]] = {}
    for event in reversed(after):
        waiting.setdefault(key(event), []).append(event)
    pairs, lost = [], []
    for event in before:
        found = waiting.get(key(event))
        if found:
            pairs.append((event, found.pop()))
        else:
            lost.append(event)
    rest = {id(event) for events in waiting.values() for event in events}
    return pairs, lost, [event for event in after if id(event) in rest]


def _nearest(
    lost: Sequence[ArchivedEvent], gained: Sequence[ArchivedEvent], same_tracks: bool
) -> tuple[_Pairs, list[ArchivedEvent], list[ArchivedEvent]]:
    """Pair the candidates, those nearest in time first. Return the pairs, and the rest of each list."""
    candidates = sorted(_candidates(lost, gained, same_tracks))
    used_before: set[int] = set()
    used_after: set[int] = set()
    pairs = []
    for _, old, new in candidates:
        if old not in used_before and new not in used_after:
            used_before.add(old)
            used_after.add(new)
            pairs.append((lost[old], gained[new]))
    left = [event for number, event in enumerate(lost) if number not in used_before]
    return pairs, left, [event for number, event in enumerate(gained) if number not in used_after]


def _candidates(
    lost: Sequence[ArchivedEvent], gained: Sequence[ArchivedEvent], same_tracks: bool
) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of events that differ in time by at most `MOVED_US`: the difference in µs, and their list indexes.

    `_about` returns the same for both events of a pair. Both lists must be in the order of time.
    """
    of_kind: dict[Hashable, list[int]] = {}
    for number, event in enumerate(gained):
        of_kind.setdefault(_about(event, same_tracks), []).append(number)
    first: Counter[Hashable] = Counter()
    for old, event in enumerate(lost):
        about = _about(event, same_tracks)
        numbers = of_kind.get(about, [])
        while first[about] < len(numbers) and gained[numbers[first[about]]].at_us < event.at_us - MOVED_US:
            first[about] += 1
        for new in numbers[first[about] :]:
            if gained[new].at_us > event.at_us + MOVED_US:
                break
            yield abs(gained[new].at_us - event.at_us), old, new


def _about(archived: ArchivedEvent, same_tracks: bool) -> Hashable:
    event = archived.event
    track = event.track_id if same_tracks else None
    return event.kind, event.name, track, event.data.get("phase"), event.data.get("direction"), event.data.get("event")


def _data(archived: ArchivedEvent, same_tracks: bool) -> Mapping[str, Any]:
    if not same_tracks:
        return {}
    return {key: value for key, value in archived.event.data.items() if key not in _TOTALS}
