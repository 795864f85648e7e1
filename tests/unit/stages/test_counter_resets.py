"""Tests that counters are reset at a configured time of day, even across restarts and clock changes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.unit.analytics.test_camera_analytics import along, line, tracks, zone
from vision.config.analytics import CameraAnalytics
from vision.stages.analytics import AnalyticsStage
from vision.state.database import StateDatabase
from vision.types import Event, FrameMeta, Result, Timing

MIDDAY = datetime(2026, 3, 10, 12, 0, 0)
PATH_IN = along((700, 500), (300, 500))
PATH_OUT = along((300, 500), (700, 500))


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class Site:
    """Camera with a line and a zone. The test sets the camera's clock."""

    def __init__(self, reset_at: Sequence[str] = ("00:00",), state: StateDatabase | None = None) -> None:
        section = CameraAnalytics.model_validate({"lines": [line()], "zones": [zone()], "reset_at": reset_at})
        self.stage = AnalyticsStage({"gate": section}, ["person", "bicycle", "car"], state=state)
        self._number = 0
        self.result: Result | None = None

    def see(self, at: datetime, path: Sequence[tuple[float, float]] = (), track_id: int = 1) -> list[Event]:
        """Move one object along `path`, starting at the local time `at`, at 10 frames/s. Return the events."""
        return self.see_utc(at.timestamp(), path, track_id)

    def see_utc(self, utc_s: float, path: Sequence[tuple[float, float]] = (), track_id: int = 1) -> list[Event]:
        events: list[Event] = []
        utc_ns = int(utc_s) * 10**9
        for step, objects in enumerate([tracks((track_id, place)) for place in path] or [tracks()]):
            self._number += 1
            captured_ns = self._number * 100_000_000
            meta = FrameMeta("gate", self._number, 0, captured_ns, utc_ns + step * 100_000_000, 1000, 1000)
            self.result = self.stage(Result(meta, objects, Timing(0, 0, 0)))
            events += self.result.events
        return events

    def counted(self) -> tuple[int, int, int]:
        """Return the current counters: `in` and `out` of the line, and `entered` of the zone."""
        assert self.result is not None and self.result.counts is not None
        counts = self.result.counts
        return counts.lines["door"]["in"], counts.lines["door"]["out"], counts.zones["queue"]["entered"]


def resets(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.kind == "counters_reset"]


def test_counters_start_again_at_midnight_with_their_totals_in_events() -> None:
    site = Site()
    assert resets(site.see(MIDDAY, PATH_IN)) == []
    site.see(MIDDAY + timedelta(hours=1), PATH_OUT, track_id=2)
    assert site.counted() == (1, 1, 2)
    assert resets(site.see(datetime(2026, 3, 10, 23, 59, 59))) == []
    door, queue = resets(site.see(datetime(2026, 3, 11)))
    assert (door.name, door.data["in"], door.data["out"], door.data["in:person"]) == ("door", 1, 1, 1)
    assert (queue.name, queue.data["entered"], queue.data["phase"]) == ("queue", 2, "instant")
    assert site.counted() == (0, 0, 0)
    assert site.result is not None and site.result.counts is not None
    assert "in:person" not in site.result.counts.lines["door"]
    assert resets(site.see(datetime(2026, 3, 11, 0, 0, 1))) == []
    site.see(datetime(2026, 3, 11, 8), PATH_IN, track_id=3)
    assert site.counted() == (1, 0, 1)


@pytest.mark.parametrize(
    ("reset_at", "expected"), [(["06:00", "14:00", "22:00"], 9), (["00:00"], 3), (["13:37"], 3), ([], 0)]
)
def test_every_time_of_the_day_resets_once(reset_at: list[str], expected: int) -> None:
    site = Site(reset_at)
    events: list[Event] = []
    for minutes in range(0, 3 * 24 * 60, 7):
        events += site.see(MIDDAY + timedelta(minutes=minutes))
    assert len(resets(events)) == 2 * expected


@pytest.mark.parametrize("day", [datetime(2026, 3, 29), datetime(2026, 10, 25)])  # 23 and 25 hours long
@pytest.mark.parametrize("at", ["00:00", "02:30"])
def test_days_on_which_the_clock_changes_have_one_reset(day: datetime, at: str) -> None:
    site = Site([at])
    start_s = (day - timedelta(hours=1)).timestamp()
    events = [event for step in range(24 * 12) for event in site.see_utc(start_s + 300 * step)]
    assert len(resets(events)) == 2


def test_object_inside_a_zone_stays_inside() -> None:
    site = Site()
    site.see(datetime(2026, 3, 10, 23, 59), [(500, 500)] * 5)
    site.see(datetime(2026, 3, 11), [(500, 500)] * 5)
    assert site.result is not None and site.result.counts is not None
    assert site.result.counts.occupancy == {"queue": 1}
    assert site.counted() == (0, 0, 0)


def test_clock_that_is_set_back_does_not_reset_twice() -> None:
    site = Site()
    site.see(datetime(2026, 3, 10, 23, 59))
    assert len(resets(site.see(datetime(2026, 3, 11, 0, 1)))) == 2
    site.see(datetime(2026, 3, 11, 0, 2), PATH_IN)
    assert resets(site.see(datetime(2026, 3, 10, 23, 58))) == []
    assert resets(site.see(datetime(2026, 3, 11, 0, 3))) == []
    assert site.counted()[0] == 1
    assert len(resets(site.see(datetime(2026, 3, 12)))) == 2


@pytest.mark.parametrize(("restart", "expected"), [(datetime(2026, 3, 10, 20), 1), (datetime(2026, 3, 13, 9), 0)])
def test_reset_that_was_due_while_the_program_was_off_is_made_up_for(
    tmp_path: Path, restart: datetime, expected: int
) -> None:
    with closing(StateDatabase(tmp_path, max_events=100, boot="a")) as state:
        Site(state=state).see(MIDDAY, PATH_IN)
    with closing(StateDatabase(tmp_path, max_events=100, boot="b")) as state:
        site = Site(state=state)
        events = resets(site.see(restart))
        assert [event.data.get("in") for event in events] == ([] if expected else [1, None])
        assert site.counted()[0] == expected
    with closing(StateDatabase(tmp_path, max_events=100, boot="c")) as state:
        site = Site(state=state)
        assert resets(site.see(restart + timedelta(minutes=1))) == []
        assert site.counted()[0] == expected


def test_schedule_that_is_added_later_keeps_the_counts_until_the_next_time(tmp_path: Path) -> None:
    with closing(StateDatabase(tmp_path, max_events=100, boot="a")) as state:
        Site([], state).see(MIDDAY, PATH_IN)
    with closing(StateDatabase(tmp_path, max_events=100, boot="b")) as state:
        site = Site(state=state)
        assert resets(site.see(datetime(2026, 3, 12, 8))) == []
        assert site.counted()[0] == 1
        assert len(resets(site.see(datetime(2026, 3, 13)))) == 2


@pytest.mark.parametrize("text", ["24:00", "7:00", "12:60", "noon", "12:00:00", "", " 12:00", "12:00Z"])
def test_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CameraAnalytics.model_validate({"reset_at": [text]})
    assert caught.value.errors()[0]["loc"] == ("reset_at", 0)
