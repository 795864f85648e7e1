"""Events for the page: from the journal in `state_dir`, from the archive, or from the memory of this process.

Events are returned in pages, newest first. The first pages come from the journal. When the journal contains no older
events, the next pages come from the archive. If neither exists, the newest events since the process started come from
memory.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from vision.errors import ConfigError
from vision.messaging.schema import Description, EventMessage, Verdict
from vision.messaging.times import utc_ns
from vision.outputs.page.settings import PageSettings
from vision.outputs.page.state import PageState
from vision.state.database import open_for_reading
from vision.state.events import event_checksum

_MAX_SCANNED: Final = 20_000  # events of the journal that one request reads
_LATE_US: Final = 60_000_000  # events are stored in nearly, but not exactly, the order of their times
_END_US: Final = 10**17


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Conditions that events must meet. An empty string or None means no condition.

    Times are in µs since 1970 (UTC).
    """

    camera: str = ""
    kind: str = ""
    since_us: int | None = None  # inclusive
    until_us: int | None = None  # exclusive

    def accepts(self, event: StoredEvent) -> bool:
        """Return True if the event meets all conditions."""
        return (
            (not self.camera or event.camera == self.camera)
            and (not self.kind or event.kind == self.kind)
            and (self.since_us is None or event.at_us >= self.since_us)
            and (self.until_us is None or event.at_us < self.until_us)
        )

    def ends_at(self, at_us: int) -> bool:
        """Return True if all events stored before an event at `at_us` are too old for the filter."""
        return self.since_us is not None and at_us < self.since_us - _LATE_US


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event from the journal, the archive, or memory, with the fields that the page shows."""

    camera: str
    at: str
    at_us: int  # `at` in microseconds since 1970 (UTC)
    kind: str
    name: str
    track_id: int | None = None
    data: dict[str, Any] = {}
    snapshot: str | None = None  # path of the file
    journal: str | None = None
    number: int | None = None
    verdict: Verdict | None = None
    description: Description | None = None


class Cursor(NamedTuple):
    """The position at which the next page of events begins. As text, it is the parameter ``cursor`` of a request."""

    number: int  # in the journal: events below this number follow
    before_us: int | None = None  # in the archive: events before this time follow; None while the journal has more

    def __str__(self) -> str:
        return f"{self.number}" if self.before_us is None else f"{self.number}-{self.before_us}"


_START: Final = Cursor(10**18 - 1)


def parse_cursor(text: str) -> Cursor:
    """Return the cursor that `Cursor.__str__` has formatted. For an empty string, return the first cursor.

    Raises:
        ValueError: the text has a different form.
    """
    if not text:
        return _START
    parts = [part for part in text.split("-") if part.isascii() and part.isdigit() and len(part) < 19]
    if len(parts) != text.count("-") + 1 or len(parts) > 2:
        raise ValueError(text)
    return Cursor(*map(int, parts))


@dataclass(frozen=True, slots=True)
class EventPage:
    """A part of the events, newest first."""

    events: list[StoredEvent]
    next: Cursor | None  # None if there are no older events
    source: str  # "journal", "archive", or "memory"


class EventReader:
    """Reader of events in pages. Any thread can call `page`."""

    def __init__(self, settings: PageSettings, state: PageState) -> None:
        self._state = state
        self._state_dir = None if settings.state_dir is None else Path(settings.state_dir)
        self._archive = None if settings.archive is None else Path(settings.archive)

    def page(self, chosen: EventFilter, cursor: Cursor, limit: int) -> EventPage:
        """Return the next page, of about `limit` events. The page can have fewer events, although older events exist.

        Events from memory are all on one page.

        Raises:
            ConfigError: the journal or the archive cannot be read, or there is no archive.
        """
        if self._state_dir is not None and cursor.before_us is None:
            return self._journal_page(self._state_dir, chosen, cursor.number, limit)
        if self._archive is not None:
            return self._archive_page(self._archive, chosen, cursor, limit)
        events = (of_message(message) for message in reversed(self._state.events()))
        return EventPage([event for event in events if chosen.accepts(event)], None, "memory")

    def _journal_page(self, folder: Path, chosen: EventFilter, below: int, limit: int) -> EventPage:
        events: list[StoredEvent] = []
        amendments = self._state.amendments()
        number, at_us, is_done = below, _END_US, False
        try:
            with closing(open_for_reading(folder)) as connection:
                sql = "SELECT number, payload, checksum FROM events WHERE number < ? ORDER BY number DESC LIMIT ?"
                for number, payload, checksum in connection.execute(sql, (below, _MAX_SCANNED)):
                    message = _decoded(number, payload, checksum)
                    if message is None:
                        continue
                    amended = amendments.get((message.instance, message.camera, message.seq), message)
                    event = of_message(amended, message)
                    at_us = event.at_us
                    is_done = chosen.ends_at(at_us)
                    if chosen.accepts(event):
                        events.append(event)
                    if is_done or len(events) == limit:
                        break
                more = connection.execute("SELECT 1 FROM events WHERE number < ?", (number,)).fetchone() is not None
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"the events in {folder} cannot be read: {error}", code="journal-unreadable") from error
        following = Cursor(number) if more else Cursor(number, min(at_us + _LATE_US, _END_US))
        is_last = is_done or (not more and self._archive is None)
        return EventPage(events, None if is_last else following, "journal")

    def _archive_page(self, folder: Path, chosen: EventFilter, cursor: Cursor, limit: int) -> EventPage:
        from vision.outputs.page.archived_events import read_archive

        journal = self._journal()
        before_us = int(time.time() * 1e6) + _LATE_US if cursor.before_us is None else cursor.before_us
        found, next_us = read_archive(folder, chosen, before_us, limit)
        events = [event for event in found if event.journal != journal or (event.number or 0) < cursor.number]
        following = None if next_us is None else Cursor(cursor.number, next_us)
        return EventPage(events, following, "archive")

    def _journal(self) -> str | None:
        """Return the identifier of the journal of events in `state_dir`.

        Return None if there is no journal, or if it cannot be read.
        """
        if self._state_dir is None:
            return None
        try:
            with closing(open_for_reading(self._state_dir)) as connection:
                return str(connection.execute("SELECT journal FROM session").fetchone()[0])
        except (sqlite3.Error, OSError):
            return None


def of_message(message: EventMessage, numbered: EventMessage | None = None) -> StoredEvent:
    """Return the event of a message. If the message amends an event, `numbered` is the original message."""
    stored = numbered or message
    return StoredEvent(
        camera=message.camera,
        at=message.at,
        at_us=utc_ns(message.at) // 1000,
        kind=message.kind,
        name=message.name,
        track_id=message.track_id,
        data=message.data,
        snapshot=message.snapshot,
        journal=stored.journal,
        number=stored.number,
        verdict=message.verdict,
        description=message.description,
    )


def _decoded(number: int, payload: bytes, checksum: int) -> EventMessage | None:
    """Return the event message with the number `number`, decoded from the `payload` in the journal.

    Return None if the message is damaged, or if this version of the program cannot read it.
    """
    if checksum != event_checksum(number, payload):
        return None
    with contextlib.suppress(msgspec.MsgspecError, ValueError):
        message = msgspec.json.decode(payload, type=EventMessage)
        return msgspec.structs.replace(message, number=number)
    return None
