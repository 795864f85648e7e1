"""Tests of the messages that a sink selects: rate limits, keys, positions, and losses."""

from __future__ import annotations

from typing import Any

import msgspec

from vision.client import CountsMessage, EventMessage, NewJournal
from vision.messaging.codec import Numbering
from vision.messaging.gap_recovery import Gap
from vision.messaging.schema import CameraStatusMessage, ObjectMessage
from vision.outputs.sinks.delivery import MAX_PAYLOAD_BYTES, Outgoing
from vision.outputs.sinks.selection import Selection
from vision.outputs.sinks.spool import Position

AT = "2026-03-01T12:00:00.000000Z"


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


class Source:
    """Source of messages, similar to the publisher of one program."""

    def __init__(self, instance: str = "i1") -> None:
        self._numbering = Numbering("station", instance)

    def event(self, number: int | None, camera: str = "gate", **data: Any) -> EventMessage:
        journal = None if number is None else "j1"
        return EventMessage(
            **self._numbering.header(f"events/{camera}"),
            camera=camera,
            epoch=0,
            frame=0,
            at=AT,
            at_monotonic_ns=0,
            kind="line_crossed",
            name="door",
            data=data,
            journal=journal,
            number=number,
        )

    def counts(self, camera: str = "gate") -> CountsMessage:
        header = self._numbering.header(f"counts/{camera}")
        return CountsMessage(**header, camera=camera, at=AT, at_monotonic_ns=0, lines={}, zones={})

    def status(self, state: str) -> CameraStatusMessage:
        return CameraStatusMessage(
            **self._numbering.header("status/gate"),
            camera="gate",
            at=AT,
            at_monotonic_ns=0,
            state=state,
            state_for_s=0,
            epoch=0,
            reconnects=0,
            grabbed=0,
            published=0,
            dropped={},
            fps=0,
            published_fps=0,
            objects=0,
        )

    def left(self) -> ObjectMessage:
        return ObjectMessage(
            **self._numbering.header("objects/gate"),
            camera="gate",
            epoch=0,
            track_id=1,
            class_name="person",
            class_id=0,
            score=0.5,
            first_seen=AT,
            at=AT,
            at_monotonic_ns=0,
            duration_s=1,
            width=64,
            height=48,
            box=(0, 0, 1, 1),
            path=[],
        )


KINDS = ("events", "objects", "counts", "status")


def sent(selection: Selection, *items: Any) -> list[Outgoing]:
    return [message for item in items for message in selection.add(item)]


def seq(message: Outgoing) -> int:
    return int(msgspec.json.decode(message.payload)["seq"])


def test_all_events_and_objects_are_sent_with_stable_keys() -> None:
    source, selection = Source(), Selection(KINDS, None, 10.0)
    found = sent(selection, source.event(7), source.event(8), source.event(None), source.left())
    assert [message.key for message in found] == [
        "station-j1-7",
        "station-j1-8",
        "station-i1-events-gate-3",
        "station-i1-objects-gate-1",
    ]
    assert [message.topic for message in found] == ["events/gate"] * 3 + ["objects/gate"]
    assert not any(message.is_state for message in found)
    assert selection.position == Position("j1", 8)


def test_counts_are_limited_and_the_newest_is_sent_later() -> None:
    clock, source = Clock(), Source()
    selection = Selection(KINDS, None, 10.0, clock=clock)
    assert [seq(each) for each in sent(selection, source.counts(), source.counts(), source.counts())] == [1]
    assert list(selection.due()) == []
    clock.s += 10
    late = list(selection.due())
    assert [seq(each) for each in late] == [3]
    assert late[0].is_state
    assert list(selection.due()) == []
    assert sent(selection, source.counts()) == []


def test_changed_state_of_a_camera_is_sent_at_once() -> None:
    source, selection = Source(), Selection(KINDS, None, 10.0, clock=Clock())
    states = ["connecting", "streaming", "streaming", "backing-off"]
    found = sent(selection, *(source.status(state) for state in states))
    assert [msgspec.json.decode(each.payload)["state"] for each in found] == ["connecting", "streaming", "backing-off"]


def test_only_chosen_cameras_and_kinds_are_sent_but_every_event_moves_the_position() -> None:
    source, selection = Source(), Selection(("events",), ["yard"], 10.0)
    found = sent(selection, source.event(1), source.event(2, "yard"), source.counts("yard"), source.event(3, "node"))
    assert [each.topic for each in found] == ["events/yard", "events/node"]
    assert selection.position == Position("j1", 3)
    sent(selection, source.event(4))
    assert selection.position == Position("j1", 4)


def test_new_journal_starts_at_its_beginning() -> None:
    selection = Selection(KINDS, None, 10.0, position=Position("j0", 50))
    sent(selection, NewJournal("station", "j0", "j1"))
    assert selection.position == Position("j1", 0)


def test_lost_messages_are_counted_once() -> None:
    source, selection = Source(), Selection(KINDS, None, 10.0)
    sent(selection, Gap("events/", 5, 8), Gap("objects/gate", 1, 3), Gap("counts/gate", 1, 9), source.left())
    assert selection.lost == 3
    source.left()
    source.left()
    sent(selection, source.left())
    assert selection.lost == 5
    after_restart = Selection(KINDS, None, 10.0, sequences=selection.sequences)
    source.left()
    sent(after_restart, source.left())
    assert after_restart.lost == 1
    sent(after_restart, Source("i2").left())
    assert after_restart.lost == 1


def test_too_large_message_is_lost_and_counted() -> None:
    source, selection = Source(), Selection(KINDS, None, 10.0)
    assert sent(selection, source.event(1, text="x" * MAX_PAYLOAD_BYTES)) == []
    assert selection.lost == 1
