"""Tests of the schedule by which `vision chaos` applies faults."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.paths import ROOT
from vision.benchmark.chaos.schedule import KINDS, ROUND_S, make_schedule

ALL = tuple(KINDS)


def test_schedule_depends_only_on_its_arguments() -> None:
    first = make_schedule(7, 1800, 8, ALL)
    assert first == make_schedule(7, 1800, 8, ALL)
    assert first != make_schedule(8, 1800, 8, ALL)


@pytest.mark.parametrize("seed", range(5))
def test_half_an_hour_has_200_faults_of_all_kinds(seed: int) -> None:
    schedule = make_schedule(seed, 1800, 8, ALL)
    assert len(schedule) >= 200
    assert {fault.kind for fault in schedule} == set(KINDS)
    assert [fault.number for fault in schedule] == list(range(1, len(schedule) + 1))
    assert sorted(fault.at_s for fault in schedule) == [fault.at_s for fault in schedule]
    for fault in schedule:
        spec = KINDS[fault.kind]
        assert spec.shortest_s <= fault.duration_s <= spec.longest_s
        assert (fault.camera is not None) == spec.has_camera
        assert fault.camera is None or 0 <= fault.camera < 8
        assert 0 <= fault.choice < 1


def test_no_camera_has_two_faults_in_one_round() -> None:
    schedule = make_schedule(1, 1800, 3, ALL)
    counts = Counter((fault.at_s // ROUND_S, fault.camera) for fault in schedule if fault.camera is not None)
    assert set(counts.values()) == {1}


def test_short_run_has_short_faults_of_the_requested_kinds() -> None:
    schedule = make_schedule(1, 12, 3, ("freeze", "loss"))
    assert {fault.kind for fault in schedule} == {"freeze", "loss"}
    assert all(fault.at_s < 12 and fault.duration_s <= 7 for fault in schedule)


def test_more_faults_than_cameras() -> None:
    assert all(fault.camera == 0 for fault in make_schedule(1, 240, 1, ("freeze",)))


def test_page_lists_every_kind() -> None:
    page = (ROOT / "docs" / "chaos.md").read_text(encoding="utf-8")
    table = page.partition("<!-- kinds -->")[2].partition("<!-- end of kinds -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    assert rows == [[f"`{kind}`", spec.text] for kind, spec in KINDS.items()]
