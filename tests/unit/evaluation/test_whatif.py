"""Tests that `vision whatif` repeats the live events bit for bit, and finds all effects of a changed configuration."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from tests.archive_simulation import START_UTC_NS, Recorder, Site, detections_of, live_results, record, site
from tests.rejudge import rejudge
from vision.config import AppConfig, CameraConfig
from vision.config.analytics import CameraAnalytics
from vision.config.rules import RuleConfig
from vision.errors import ConfigError, Unavailable
from vision.evaluation.simulation.truth import class_names
from vision.evaluation.whatif.coverage import Coverage
from vision.evaluation.whatif.difference import Comparison, Difference, compare
from vision.evaluation.whatif.finding import Search, found_by_process
from vision.evaluation.whatif.judge import Judge
from vision.evaluation.whatif.rejudge import Rejudgment
from vision.outputs.archive.compaction import compact
from vision.outputs.archive.reader import Archive, ArchivedEvent
from vision.types import Event

START_US = START_UTC_NS // 1000
RULES = (
    RuleConfig(name="left-again", when="line_crossed left", cooldown="5s"),
    RuleConfig(name="long-stay", when="dwelling place for 6s"),
)


def configuration(section: CameraAnalytics, rules: Sequence[RuleConfig] = RULES) -> AppConfig:
    camera = CameraConfig(id="gate", source="synthetic:")
    return AppConfig(cameras=(camera,), analytics={"gate": section}, rules=tuple(rules))


def difference(folder: Path, config: AppConfig, since_us: int = 0) -> Difference:
    judgment = rejudge(Archive(folder), Judge(config, "gate", class_names()), "gate", since_us, 1 << 61)
    return compare("gate", judgment.published, judgment.events)


@pytest.fixture(scope="module")
def waiting() -> Site:
    return site("gate", "waiting", 1, rules=RULES)


@pytest.fixture(scope="module")
def recorded(waiting: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    record(folder, waiting)
    return folder


def test_same_configuration_gives_the_same_events(waiting: Site, recorded: Path) -> None:
    found = difference(recorded, configuration(waiting.section))
    assert found.equal and not found.changes and found.same > 50
    kinds = {each.event.kind for each in Archive(recorded).events("gate", 0, 1 << 61)}
    assert {"line_crossed", "zone_entered", "zone_left", "dwelling", "rule"} <= kinds


@pytest.mark.parametrize("kind", ["camera_lost", "camera_back", "camera_moved", "statement", "of_my_stage"])
def test_events_of_other_origin_are_no_difference(waiting: Site, tmp_path: Path, kind: str) -> None:
    recorder = Recorder(tmp_path)
    for number, result in enumerate(islice(live_results(waiting, detections_of(waiting)), 300)):
        other = Event(kind, "gate", "gate", None, result.meta.captured_ns, {"phase": "instant"})
        recorder.add(structs.replace(result, events=(*result.events, other)) if number == 100 else result)
    recorder.close()
    assert kind in {each.event.kind for each in Archive(tmp_path).events("gate", 0, 1 << 61)}
    assert difference(tmp_path, configuration(waiting.section)).equal


def test_other_scene_from_parquet_files_gives_the_same_events(tmp_path: Path) -> None:
    one = site("gate", "street", 3)
    assert record(tmp_path, one)
    compact(tmp_path, START_US + 10**12, keep_days=1000, max_mb=100)
    assert difference(tmp_path, configuration(one.section, ())).equal


def test_restart_of_the_program_starts_again(waiting: Site, tmp_path: Path) -> None:
    for instance, start_s in (("first", 0.0), ("second", 300.0)):
        recorder = Recorder(tmp_path, instance=instance)
        later = replace(waiting, start_s=start_s)
        for result in live_results(later, islice(detections_of(later), 400)):
            recorder.add(result)
        recorder.close()
    assert difference(tmp_path, configuration(waiting.section)).equal


def test_range_in_the_middle_of_a_run_has_the_same_events(waiting: Site, recorded: Path) -> None:
    assert difference(recorded, configuration(waiting.section), START_US + 40_000_000).equal


def test_changed_line_gains_loses_and_moves_events(waiting: Site, recorded: Path) -> None:
    left, *others = waiting.section.lines
    points = tuple((x + 15.0, y) for x, y in left.points)
    moved = left.model_copy(update={"points": points})
    one_way = others[0].model_copy(update={"direction": "in"})
    changed = waiting.section.model_copy(update={"lines": (moved, one_way, *others[1:])})
    found = difference(recorded, configuration(changed))
    assert not found.equal
    before = [each.event for each in Archive(recorded).events("gate", 0, 1 << 61)]
    lost = [each for each in before if each.name == one_way.name and each.data["direction"] == "out"]
    assert lost and {each.before.event.track_id for each in found.changes if each.kind == "lost" and each.before} >= {
        each.track_id for each in lost
    }
    shifts = [each for each in found.changes if each.kind == "moved" and each.before and each.after]
    assert shifts and all(each.before.event.track_id == each.after.event.track_id for each in shifts)  # type: ignore[union-attr]
    numbers = found.numbers()
    assert numbers["moved"] == len(shifts)
    assert found.same + numbers["lost"] + numbers["moved"] + numbers["changed"] == len(before)


def test_new_rule_gains_its_events_only(waiting: Site, recorded: Path) -> None:
    extra = RuleConfig(name="entered", when="zone_entered place")
    found = difference(recorded, configuration(waiting.section, (*RULES, extra)))
    assert found.changes and {(each.kind, each.shown.event.name) for each in found.changes} == {("gained", "entered")}


def event(at_s: float, *, track: int = 1, name: str = "door", stayed_s: float = 0.0) -> ArchivedEvent:
    data = {"phase": "instant", "direction": "in", "stayed_s": stayed_s, "total_in": int(at_s)}
    found = Event("line_crossed", name, "gate", track, round(at_s * 1e9), data)
    return ArchivedEvent(found, "first", 0, round(10 * at_s), round(at_s * 1e6))


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        ([event(1)], [event(1)], []),
        ([event(1)], [], ["lost"]),
        ([], [event(1)], ["gained"]),
        ([event(1)], [event(2)], ["moved"]),
        ([event(1)], [event(12)], ["lost", "gained"]),
        ([event(1)], [event(1, stayed_s=2.0)], ["changed"]),
        ([event(1)], [event(2, track=2)], ["lost", "gained"]),
        ([event(1)], [event(1, name="gate")], ["lost", "gained"]),
        ([event(1), event(4)], [event(3.5)], ["lost", "moved"]),
        ([event(1), event(1)], [event(1)], ["lost"]),
    ],
)
def test_kinds_of_differences(before: list[ArchivedEvent], after: list[ArchivedEvent], kinds: list[str]) -> None:
    found = compare("gate", before, after)
    assert sorted(change.kind for change in found.changes) == sorted(kinds)
    assert found.equal is (not kinds)


def test_parts_have_the_same_differences_as_the_whole() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        times = np.sort(rng.uniform(0, 200, (2, 40)), axis=1).round(1)
        times[1, ::3] = times[0, ::3]
        before, after = (
            sorted((event(at_s, track=int(rng.integers(3))) for at_s in side), key=lambda each: each.at_us)
            for side in times
        )
        whole, parts, last_us = compare("gate", before, after), Comparison("gate"), 0
        for until_us in (*range(10_000_000, 200_000_000, 10_000_000), 1 << 61):
            some = [[each for each in side if last_us < each.at_us <= until_us] for side in (before, after)]
            parts.add(some[0], some[1], until_us)
            last_us = until_us
        found = parts.finish()
        assert found.numbers() == whole.numbers() and found.same == whole.same and found.equal == whole.equal
        assert {*map(repr, found.changes)} == {*map(repr, whole.changes)}


@pytest.fixture(scope="module")
def hours(waiting: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive with frames from three different hours."""
    folder = tmp_path_factory.mktemp("hours")
    recorder = Recorder(folder)
    for hour in range(3):
        later = replace(waiting, start_s=3600.0 * hour)
        for result in live_results(later, islice(detections_of(later), 300)):
            recorder.add(structs.replace(result, meta=structs.replace(result.meta, epoch=hour)))
    recorder.close()
    compact(folder, START_US + 10**12, keep_days=1000, max_mb=100)
    return folder


def test_each_part_has_the_events_of_its_time(waiting: Site, hours: Path) -> None:
    judge = Judge(configuration(waiting.section), "gate", class_names())
    rejudgment, last_us, number = Rejudgment(Archive(hours), judge, "gate", 0, 1 << 61), -1, 0
    for part in rejudgment.parts(rejudgment.search.found()):
        for each in (*part.published, *part.events):
            assert last_us < each.at_us <= part.settled_us
        last_us = part.settled_us
        number += bool(part.events)
    assert number == 3
    assert len(rejudgment.coverage.missing) == 4


@pytest.mark.integration
def test_two_processes_find_the_same(waiting: Site, hours: Path) -> None:
    judge = Judge(configuration(waiting.section), "gate", class_names())
    rejudgment = Rejudgment(Archive(hours), judge, "gate", 0, 1 << 61)
    alone = [*rejudgment.parts(rejudgment.search.found())]
    with found_by_process(rejudgment.search) as found:
        together = [*rejudgment.parts(found)]
    assert together == alone and sum(len(part.events) for part in alone) > 50


@pytest.mark.integration
def test_errors_and_the_end_of_the_other_process_are_reported(waiting: Site, hours: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "archive"
    shutil.copytree(hours, damaged)
    for path in damaged.glob("tracks/camera=gate/*.parquet"):
        path.unlink()
    judge = Judge(configuration(waiting.section), "gate", class_names())
    with found_by_process(Search(Archive(damaged), judge, "gate", 0, 1 << 61)) as found, pytest.raises(ConfigError):
        list(found)
    with found_by_process(Search(Archive(hours), judge, "gate", 0, 1 << 61)) as found:
        (child,) = multiprocessing.active_children()
        child.kill()
        with pytest.raises(Unavailable):
            list(found)


def test_coverage_names_pauses_and_clocks_that_were_set_back() -> None:
    coverage = Coverage(0, 10_000_000_000)
    for times_s in ([-50, 1, 2], [1000, 1001], [500, 500.5, 400.4, 9900]):
        coverage.add(np.array([1e6 * at_s for at_s in times_s]).astype(np.int64))
    coverage.finish()
    assert coverage.missing == [(2_000_000, 1_000_000_000), (400_400_000, 9_900_000_000)]
    assert coverage.set_back == [(1_001_000_000, 500_000_000), (500_500_000, 400_400_000)]
