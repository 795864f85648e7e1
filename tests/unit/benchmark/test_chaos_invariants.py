"""Tests that each check of `vision chaos` passes for a good record, and fails for a record with one bad value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from vision.benchmark.chaos.invariants import (
    check_ages,
    check_all,
    check_crashes,
    check_events,
    check_frames,
    check_resources,
)
from vision.benchmark.chaos.latency import check_latency
from vision.benchmark.chaos.record import (
    EventSeen,
    FrameSeen,
    Injected,
    ProcessEnd,
    ProgramEnd,
    Record,
    Sample,
    StatusSeen,
    Stored,
)
from vision.benchmark.chaos.recovery import check_recoveries, measure_recoveries
from vision.benchmark.chaos.report import all_held, as_json
from vision.benchmark.chaos.schedule import Fault, Kind
from vision.benchmark.chaos.verdict import Verdict

S = 1_000_000_000
CAMERAS = ("a", "b")
FPS = 25
SECONDS = 150
DOWN = (40, 44)
"""Seconds in which camera a is down."""


def seen(camera: str, number: int, at_ns: int, seq: int, *, epoch: int = 0, total_ms: float = 10.0) -> FrameSeen:
    return FrameSeen(at_ns, at_ns - int(total_ms * 1e6), camera, "i", seq, epoch, number, 0, 2.0, 5.0, 1.0, total_ms)


def injected(kind: Kind, start_s: float, end_s: float, camera: int | None = None, number: int = 1) -> Injected:
    fault = Fault(number, start_s, kind, camera, end_s - start_s, 0.5)
    target = "main" if camera is None else CAMERAS[camera]
    return Injected(fault, target, started_ns=int(start_s * S), ended_ns=int(end_s * S))


def good() -> Record:
    """Return the record of a run in which camera a was down once. Everything else in the run was perfect."""
    record = Record(CAMERAS, dict.fromkeys(CAMERAS, 0.5), start_s=1.5, ended_ns=SECONDS * S)
    for camera in CAMERAS:
        seq = 0
        for index in range(FPS * SECONDS):
            at_s = index / FPS
            if camera == "a" and DOWN[0] <= at_s < DOWN[1] + 1:
                continue
            late = camera == "a" and at_s > DOWN[1]
            seq += 1
            number = index - late * FPS * (DOWN[1] + 1)
            record.frames.append(seen(camera, number, int(at_s * S), seq, epoch=int(late)))
        record.statuses.append(StatusSeen(SECONDS * S, camera, "i", "ended", SECONDS * S, None, seq, seq, 0))
    record.frames.sort(key=lambda frame: frame.received_ns)
    record.faults.append(injected("camera-down", *DOWN, camera=0))
    record.program_ends.append(ProgramEnd(SECONDS * S, 0, "stop"))
    record.events += [EventSeen("a", "line_crossed", "door", "j", number) for number in (1, 2, 3)]
    record.stored = Stored("j", [1, 2, 3], Counter({("a", "door", "in"): 3}), {("a", "door", "in"): 3})
    record.samples += [Sample(second * S, 9, "main", 100 << 20, 20, 50) for second in range(SECONDS)]
    return record


def test_all_checks_hold_for_a_good_record() -> None:
    verdicts = check_all(good())
    assert [verdict.result for verdict in verdicts].count("held") == 6
    assert verdicts[5] == check_latency(good())  # too few frames during the fault
    assert all_held(verdicts)


def test_all_checks_find_nothing_to_judge_in_an_empty_record() -> None:
    record = Record(CAMERAS, dict.fromkeys(CAMERAS, 0.5), stored=Stored("j"))
    assert {check.result for check in check_all(record)} == {"held", "not judged"}


def broken(check: Callable[[Record], Verdict], damage: Callable[[Record], object]) -> bool:
    """Return True if the check passes for a good record, and fails after `damage` has changed the record."""
    record = good()
    assert check(record).result == "held"
    damage(record)
    return check(record).result == "broken"


def change_frame(record: Record, index: int, **values: Any) -> None:
    record.frames[index] = record.frames[index]._replace(**values)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.program_ends.insert(0, ProgramEnd(30 * S, 1, "")),
        lambda record: record.program_ends.insert(0, ProgramEnd(30 * S, -11, "")),
        lambda record: record.program_ends.insert(0, ProgramEnd(30 * S, 75, "")),
        lambda record: record.process_ends.append(ProcessEnd(30 * S, "relay")),
        lambda record: setattr(record, "tracebacks", 1),
    ],
)
def test_crash_is_found(damage: Callable[[Record], object]) -> None:
    assert broken(check_crashes, damage)


def test_ends_because_of_faults_are_no_crashes() -> None:
    record = good()
    record.faults += [injected("worker-kill", 30, 30), injected("disk-full", 60, 64)]
    record.process_ends.append(ProcessEnd(30 * S + 1000, "relay"))
    record.program_ends.insert(0, ProgramEnd(61 * S, 75, ""))
    assert check_crashes(record).result == "held"


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: change_frame(record, 100, dropped=1),
        lambda record: record.frames.pop(-1),
        lambda record: record.statuses.append(record.statuses[-1]._replace(grabbed=99)),
        lambda record: record.statuses.append(record.statuses[-1]._replace(grabbed=10**6)),
        lambda record: record.statuses.pop(),
    ],
)
def test_frame_that_is_not_accounted_for_is_found(damage: Callable[[Record], object]) -> None:
    assert broken(check_frames, damage)


def test_dropped_and_lost_messages_are_accounted_for() -> None:
    record = good()
    kept = [frame for frame in record.frames if not (frame.camera == "b" and frame.seq == 50)]
    record.frames[:] = kept  # the subscriber has lost a message, which the sequence numbers show
    assert check_frames(record).result == "held"


def test_frame_that_a_killed_worker_published_can_count_as_dropped() -> None:
    record = good()
    record.statuses = [seen._replace(published=seen.published - 1, dropped=1) for seen in record.statuses]
    assert check_frames(record).result == "broken"
    record.faults.append(injected("worker-kill", 60, 60, number=2))
    assert check_frames(record).result == "held"


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.events.pop(1),
        lambda record: record.events.append(record.events[0]),
        lambda record: record.events.append(record.events[0]._replace(journal="k", number=4)),
        lambda record: record.events.append(record.events[0]._replace(number=None)),
        lambda record: record.reports.append("events/: lost 3 messages"),
        lambda record: record.stored.numbers.pop(),
        lambda record: record.stored.numbers.append(4),
        lambda record: record.stored.counters.clear(),
        lambda record: record.stored.counters.update({("a", "door", "in"): 4}),
        lambda record: setattr(record, "stored", None),
    ],
)
def test_lost_event_is_found(damage: Callable[[Record], object]) -> None:
    assert broken(check_events, damage)


def test_events_without_number_are_allowed_while_the_disk_is_full() -> None:
    record = good()
    record.faults.append(injected("disk-full", 60, 64))
    record.events.append(record.events[0]._replace(number=None))
    assert record.stored is not None
    record.stored.counters["a", "door", "in"] = 4
    assert check_events(record).result == "held"


@pytest.mark.parametrize("values", [{"wait_ms": 501.0, "total_ms": 510.0}, {"total_ms": 1100.0}])
def test_old_frame_is_found(values: dict[str, float]) -> None:
    assert broken(check_ages, lambda record: change_frame(record, 100, **values))


def test_age_is_not_judged_while_the_program_is_suspended() -> None:
    record = good()
    change_frame(record, 100, total_ms=3000.0)
    at_s = record.frames[100].received_ns / S
    record.faults.append(injected("process-stop", at_s - 3, at_s - 0.1))
    assert check_ages(record).result == "held"


def test_late_camera_is_found() -> None:
    def delay(record: Record) -> None:
        record.frames[:] = [f for f in record.frames if f.camera == "b" or not 44 * S < f.received_ns < 47 * S]

    assert broken(check_recoveries, delay)


def test_camera_that_never_returns_is_found() -> None:
    def lose(record: Record) -> None:
        record.frames[:] = [f for f in record.frames if f.camera == "b" or f.received_ns < 44 * S]

    assert broken(check_recoveries, lose)


def late_by(seconds: float) -> Record:
    """Return the record of a run in which camera a returned `seconds` after the end of its fault."""
    record = good()
    back_ns = int((DOWN[1] + seconds) * S)
    record.frames[:] = [f for f in record.frames if f.camera == "b" or not DOWN[0] * S < f.received_ns < back_ns]
    return record


def test_back_off_that_started_during_the_fault_is_allowed() -> None:
    record = late_by(6)
    assert check_recoveries(record).result == "broken"
    record.statuses.insert(0, StatusSeen(43 * S, "a", "i", "backing-off", 43 * S, 49 * S, 1, 1, 0))
    assert check_recoveries(record).result == "held"


def test_back_off_that_started_after_the_fault_is_not_allowed() -> None:
    record = late_by(6)
    record.statuses.insert(0, StatusSeen(47 * S, "a", "i", "backing-off", 47 * S, 49 * S, 1, 1, 0))
    assert check_recoveries(record).result == "broken"


def test_start_of_a_process_is_allowed() -> None:
    record = late_by(4)
    record.faults.append(injected("program-kill", 43, 43.5, number=2))
    assert check_recoveries(record).result == "broken"
    record.faults[-1].restarts = True
    assert [each.allowed_s for each in measure_recoveries(record)] == [4.5, 5.0, 5.0]
    assert check_recoveries(record).result == "held"


def test_detector_that_hangs_must_end_the_program() -> None:
    record = good()
    record.faults.append(injected("detector-hang", 60, 70, number=2))
    assert check_recoveries(record).result == "held"
    record.faults[-1] = injected("detector-hang", 60, 85, number=2)
    assert check_recoveries(record).result == "broken"


def test_slower_frames_of_other_cameras_are_found() -> None:
    def slow(record: Record) -> None:
        record.faults[:] = [injected("camera-down", 10, 100, camera=0)]
        for index, frame in enumerate(record.frames):
            if frame.camera == "b" and 10 * S < frame.received_ns < 100 * S:
                record.frames[index] = frame._replace(total_ms=12.5)

    record = good()
    record.faults[:] = [injected("camera-down", 10, 100, camera=0)]
    assert check_latency(record).result == "held"
    slow(record)
    assert check_latency(record).result == "broken"


def test_slower_frames_of_the_same_camera_are_allowed() -> None:
    record = good()
    record.faults[:] = [injected("jitter", 10, 100, camera=0)]
    for index, frame in enumerate(record.frames):
        if frame.camera == "a" and 10 * S < frame.received_ns < 100 * S:
            record.frames[index] = frame._replace(total_ms=400.0)
    assert check_latency(record).result == "held"


def test_few_frames_are_not_judged() -> None:
    record = good()
    record.frames[:] = [frame._replace(total_ms=float(frame.seq % 7)) for frame in record.frames[:500]]
    assert check_latency(record).result == "not judged"


@pytest.mark.parametrize(("resource", "more"), [("memory_bytes", 30 << 20), ("threads", 3), ("descriptors", 5)])
def test_growth_is_found(resource: str, more: int) -> None:
    def grow(record: Record) -> None:
        for index, sample in enumerate(record.samples):
            if sample.at_ns > 90 * S:
                record.samples[index] = sample._replace(**{resource: getattr(sample, resource) + more})

    assert broken(check_resources, grow)


def test_spare_process_that_becomes_a_worker_is_no_growth() -> None:
    def become_worker(record: Record, *, name: str) -> None:
        for index, sample in enumerate(record.samples):
            if sample.at_ns > 90 * S:
                record.samples[index] = sample._replace(name=name, memory_bytes=3 * sample.memory_bytes)

    assert not broken(check_resources, partial(become_worker, name="capture worker 1"))
    assert broken(check_resources, partial(become_worker, name="main"))


def test_short_peak_is_no_growth() -> None:
    record = good()
    record.samples[120] = record.samples[120]._replace(memory_bytes=10**9, threads=100, descriptors=1000)
    assert check_resources(record).result == "held"


def test_report_lists_faults_and_those_left_out() -> None:
    record = good()
    record.faults.append(replace(injected("disk-full", 60, 60, number=2), left_out="no compiler", ended_ns=0))
    report = as_json(record, check_all(record), seed=3)
    assert report["held"]
    assert report["arguments"] == {"seed": 3}
    assert report["left_out"] == {"disk-full": {"no compiler": 1}}
    assert [each["recovered_s"] for each in report["faults"]] == [1.0, None]
