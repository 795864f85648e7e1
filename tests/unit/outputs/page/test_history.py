"""Tests of counts over time: increases per bucket, resets, and equal results from messages and the archive."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.messages.samples import HEADER
from tests.unit.outputs.page.client import client_of
from vision.messaging.schema import CountsMessage, LineCounts, ZoneCounts
from vision.messaging.times import rfc3339
from vision.outputs.archive.live import LiveDatabase
from vision.outputs.page.history import KEPT_S, LIVE_STEP_S, CountBuckets, LiveHistory, Sample
from vision.outputs.page.state import PageState


def counts(at_s: float, crossed: int, entered: int, occupancy: int, camera: str = "gate") -> CountsMessage:
    line = LineCounts(in_=crossed, out=2 * crossed, in_by_class={}, out_by_class={})
    zone = ZoneCounts(occupancy=occupancy, entered=entered, left=0, entered_by_class={}, left_by_class={})
    at = rfc3339(int(at_s * 1e9))
    lines, zones = {"<b>door": line}, {"queue": zone}
    return CountsMessage(**HEADER, camera=camera, at=at, at_monotonic_ns=0, lines=lines, zones=zones)


def test_bucket_has_the_increase_and_the_largest_occupancy() -> None:
    buckets = CountBuckets(60)
    for at_s, first, occupancy in [(0, 100, 2), (10, 103, 5), (59, 104, 1), (60, 110, 0), (200, 111, 3)]:
        buckets.add(Sample(at_s, "queue", first, 0, occupancy))
    history = buckets.history("memory", 0, 239)
    assert history.times == [0, 60, 120, 180]
    assert history.series[0].first == [4, 6, 0, 1]
    assert history.series[0].occupancy == [5, 0, 0, 3]


def test_reset_counter_continues_from_0() -> None:
    buckets = CountBuckets(60)
    for at_s, first in [(0, 100), (10, 120), (20, 3), (70, 5), (75, 0)]:
        buckets.add(Sample(at_s, "door", first, 0, None))
    assert buckets.history("memory", 0, 119).series[0].first == [23, 2]


def test_buckets_of_days_start_at_local_midnight() -> None:
    buckets = CountBuckets(86_400, offset_s=2 * 3600)
    midnight_s = 1_790_000_000 // 86_400 * 86_400 - 2 * 3600
    for at_s, first in [(midnight_s - 1, 0), (midnight_s + 1, 7)]:
        buckets.add(Sample(at_s, "door", first, 0, None))
    history = buckets.history("memory", midnight_s - 1, midnight_s + 1)
    assert history.times == [midnight_s - 86_400, midnight_s]
    assert history.series[0].first == [0, 7]


def test_memory_keeps_one_day() -> None:
    history = LiveHistory()
    history.since_s = 0.0
    for number in range(3 * KEPT_S // LIVE_STEP_S):
        history.add(counts(number * LIVE_STEP_S, number, 0, 0))
    buckets = history._cameras["gate"]._counts["<b>door"].buckets
    assert len(buckets) <= KEPT_S // LIVE_STEP_S + 2
    found = history.history("gate", 0.0, 3 * KEPT_S)
    assert len(found.times) <= KEPT_S // LIVE_STEP_S + 2
    assert set(found.series[0].first) == {0, 1}  # the last bucket is still empty


def test_history_of_a_short_time_has_the_buckets_of_an_hour() -> None:
    now_s = time.time()
    history = LiveHistory()
    history.add(counts(now_s, 1, 0, 0))
    found = history.history("gate", now_s - 86_400, now_s)
    assert len(found.times) == 3600 // LIVE_STEP_S + 1
    assert found.since_s == history.since_s


def test_archive_and_memory_have_the_same_totals(tmp_path: Path) -> None:
    now_s = time.time()
    messages = [counts(now_s - 7200 + 60 * number, 5 + number, 2 * number, number % 4) for number in range(100)]
    state = PageState(1.0, LiveHistory())
    live = LiveDatabase(tmp_path)
    for each in messages:
        state.add(each)
        live.add_counts(each)
    live.commit()
    live.close()
    assert state.history is not None
    state.history.since_s = now_s - 8000
    answers = [client_of(state).get("/api/history?camera=gate&hours=6").json()]
    answers.append(client_of(archive=str(tmp_path)).get("/api/history?camera=gate&hours=6").json())
    assert ["No archive" in each["status"] for each in answers] == [True, False]
    for answer in answers:
        line, zone, occupancy = answer["plots"]
        assert line["title"] == "Line <b>door: crossings"
        assert {label: sum(values) for label, values in line["columns"].items()} == {"in": 99, "out": 198}
        assert {label: sum(values) for label, values in zone["columns"].items()} == {"entered": 198, "left": 0}
        assert max(occupancy["columns"]["objects"]) == 3
        assert {len(values) for plot in answer["plots"] for values in plot["columns"].values()} == {
            len(answer["times"])
        }


def test_time_before_the_range_is_the_basis_of_its_first_increase(tmp_path: Path) -> None:
    now_s = time.time()
    live = LiveDatabase(tmp_path)
    for each in (counts(now_s - 7 * 3600, 10, 0, 0), counts(now_s - 60, 13, 0, 0)):
        live.add_counts(each)
    live.commit()
    live.close()
    answer = client_of(archive=str(tmp_path)).get("/api/history?camera=gate&hours=6").json()
    assert sum(answer["plots"][0]["columns"]["in"]) == 3


@pytest.mark.parametrize(
    "query", ["hours=5", "hours=x", "offset_min=x", "offset_min=1440", f"offset_min={10**30}", "hours=99999999999"]
)
def test_invalid_query_is_refused(query: str) -> None:
    assert client_of().get(f"/api/history?camera=gate&{query}").status_code == 400


def test_unknown_camera_and_missing_archive(tmp_path: Path) -> None:
    answer = client_of().get("/api/history?camera=nowhere").json()
    assert answer["plots"] == [] and "counted nothing" in answer["status"]
    response = client_of(archive=str(tmp_path / "missing")).get("/api/history?camera=gate")
    assert (response.status_code, response.json()["code"]) == (503, "no-archive")


def test_removed_camera_leaves_the_state() -> None:
    state = PageState(1.0)
    message = counts(time.time(), 1, 1, 1)
    state.add(message)
    assert state.snapshot().counts["gate"].lines["<b>door"].in_ == 1
