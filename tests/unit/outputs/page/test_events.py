"""Tests of pages of events that come from the journal, from the archive, or from the memory of the process."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.messages.samples import HEADER, result
from tests.unit.outputs.page.client import Client, client_of
from vision.messaging import codec
from vision.messaging.schema import Description, EventMessage, Verdict
from vision.messaging.times import rfc3339
from vision.outputs.archive.live import LiveDatabase
from vision.outputs.page.state import KEPT_EVENTS, PageState
from vision.state.database import StateDatabase
from vision.types import Event

START_NS = 1_790_000_000_000_000_000


def message(index: int, camera: str = "gate", **changes: Any) -> EventMessage:
    """Return the event with the number `index`, one minute after the previous event."""
    event = Event("line_crossed" if index % 2 else "zone_entered", "door", camera, index, 0)
    made = codec.event(HEADER, event, result())
    assert isinstance(made, EventMessage)
    at = rfc3339(START_NS + index * 60_000_000_000)
    return msgspec.structs.replace(made, at=at, seq=index, **changes)


def tracks(client: Client, query: str = "") -> list[int]:
    """Request all pages of events. Return the track ids of the events in order."""
    found, cursor = [], ""
    for _ in range(1000):
        response = client.get(f"/api/events?{query}&cursor={cursor}")
        assert response.status_code == 200, response.text
        found += [event["track_id"] for event in response.json()["events"]]
        cursor = response.json()["next"]
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[StateDatabase]:
    database = StateDatabase(tmp_path / "state")
    yield database
    database.close()


def add(journal: StateDatabase, *messages: EventMessage) -> list[EventMessage]:
    """Store events as the publisher does. Return the events with their numbers."""
    first = journal.events.newest + 1
    numbered = [
        msgspec.structs.replace(each, journal=journal.events.journal, number=number)
        for number, each in enumerate(messages, first)
    ]
    assert journal.events.append([codec.encode(each) for each in numbered])
    return numbered


def test_journal_is_listed_newest_first_in_pages(journal: StateDatabase) -> None:
    add(journal, *(message(index) for index in range(120)))
    client = client_of(state_dir=str(journal.folder))
    assert len(client.get("/api/events").json()["events"]) == 50
    assert tracks(client) == list(range(119, -1, -1))


def test_filter_chooses_camera_kind_and_time(journal: StateDatabase) -> None:
    add(journal, *(message(index, "yard" if index % 3 == 0 else "gate") for index in range(60)))
    client = client_of(state_dir=str(journal.folder))
    assert tracks(client, "camera=yard&kind=line_crossed") == [i for i in range(59, -1, -1) if i % 3 == 0 and i % 2]
    since, until = (rfc3339(START_NS + minutes * 60_000_000_000) for minutes in (10, 13))
    assert tracks(client, f"since={since}&until={until}") == [12, 11, 10]
    assert tracks(client, "camera=nowhere") == []


def test_archive_continues_the_journal_without_gap_and_repetition(tmp_path: Path) -> None:
    journal = StateDatabase(tmp_path / "state", max_events=100)
    (tmp_path / "archive").mkdir()
    live = LiveDatabase(tmp_path / "archive")
    for first in range(0, 300, 10):
        for each in add(journal, *(message(first + index) for index in range(10))):
            live.add_event(each)
    live.commit()
    client = client_of(state_dir=str(journal.folder), archive=str(tmp_path / "archive"))
    cursors = ("", "100-1900000000000000")
    assert [client.get(f"/api/events?cursor={each}").json()["source"] for each in cursors] == ["journal", "archive"]
    assert tracks(client) == list(range(299, -1, -1))
    assert tracks(client_of(archive=str(tmp_path / "archive"))) == list(range(299, -1, -1))
    assert tracks(client, f"camera=gate&until={rfc3339(START_NS + 5 * 60_000_000_000)}") == [4, 3, 2, 1, 0]
    journal.close()
    live.close()


def test_damaged_events_are_left_out(journal: StateDatabase) -> None:
    add(journal, *(message(index) for index in range(5)))
    with closing(sqlite3.connect(journal.folder / "state.db")) as connection, connection:
        connection.execute("UPDATE events SET payload = ? WHERE number = 2", (b'{"schema": "x"}',))
    assert tracks(client_of(state_dir=str(journal.folder))) == [4, 3, 2, 0]


@pytest.mark.parametrize("content", [b"not a database" * 100, b""])
def test_unreadable_journal_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.db").write_bytes(content)
    for folder in (tmp_path, tmp_path / "missing"):
        response = client_of(state_dir=str(folder)).get("/api/events")
        assert (response.status_code, response.json()["code"]) == (503, "journal-unreadable")


def test_memory_has_a_limit_and_the_answers_of_a_language_model() -> None:
    state = PageState(1.0)
    for index in range(KEPT_EVENTS + 10):
        state.add(message(index))
    verdict = Verdict(check="real", answer="yes", model="m", latency_ms=1.0)
    description = Description(check="what", text="<b>a dog</b>", model="m", latency_ms=1.0)
    state.add(message(KEPT_EVENTS, amends=KEPT_EVENTS, verdict=verdict, description=description))
    content = client_of(state).get("/api/events").json()
    assert content["source"] == "memory" and content["next"] is None
    assert [event["track_id"] for event in content["events"]] == list(range(KEPT_EVENTS + 9, 9, -1))
    assert content["events"][9]["verdict"]["answer"] == "yes"
    assert content["events"][9]["description"]["text"] == "<b>a dog</b>"


def test_answer_of_a_language_model_is_added_to_an_event_of_the_journal(journal: StateDatabase) -> None:
    (stored,) = add(journal, message(7))
    state = PageState(1.0)
    verdict = Verdict(check="real", answer="no", model="m", latency_ms=1.0)
    state.add(msgspec.structs.replace(stored, amends=stored.seq, number=None, journal=None, verdict=verdict))
    (event,) = client_of(state, state_dir=str(journal.folder)).get("/api/events").json()["events"]
    assert (event["number"], event["verdict"]["answer"]) == (1, "no")


@pytest.mark.parametrize(
    "query",
    ["cursor=x", "cursor=1-2-3", "cursor=-", "cursor=9999999999999999999999", "cursor=-1", "since=yesterday",
     "until=2026-13-01T00:00:00.000Z", "since=%00", "cursor=%D9%A1"],
)  # fmt: skip
def test_invalid_query_is_refused(query: str) -> None:
    response = client_of().get(f"/api/events?{query}")
    assert (response.status_code, response.json()["code"]) == (400, "query")
