"""Checks of a run of `vision chaos`.

Each check is a function that reads only the record of the run, and returns a `Verdict`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from statistics import median
from typing import Final

from vision.benchmark.chaos.latency import check_latency
from vision.benchmark.chaos.record import FrameSeen, Injected, Record, Sample, StatusSeen
from vision.benchmark.chaos.recovery import check_recoveries
from vision.benchmark.chaos.verdict import Verdict, judge
from vision.errors import EXIT_TEMPORARY

_IN_FLIGHT: Final = 16  # maximum number of frames of one camera between capture and publication
_RESULT_S: Final = 0.5  # maximum time for the stages and the socket
_AFTER_STOP_NS: Final = 1_000_000_000  # time after a suspension in which ages are not checked
_EXPLAINED_NS: Final = 5_000_000_000  # time after a fault in which a process can still end because of the fault
_WARM_UP_NS: Final = 20_000_000_000  # time after the start of a process in which its resources may grow
_LONG_ENOUGH_NS: Final = 60_000_000_000  # minimum lifetime of a judged process after its warm-up
_MEMORY_GROWTH, _MEMORY_BYTES = 1.1, 16 * 2**20  # allowed growth of memory: a factor, and bytes in addition
_THREADS, _DESCRIPTORS = 2, 4  # allowed growth of these numbers

_UNCONFIRMED: Final = 2  # maximum number of frames of one camera that a killed worker published without a confirmation
_KILLS_WORKERS: Final = ("worker-kill", "process-stop")
_SUSPENDS: Final = ("process-stop", "detector-hang")
_ENDS_PROCESSES: Final = ("process-stop", "worker-kill", "program-kill", "detector-hang", "stuck-call")


def check_all(record: Record) -> list[Verdict]:
    """Return the verdict of every check."""
    return [check(record) for check in CHECKS]


def check_crashes(record: Record) -> Verdict:
    """Check that only faults ended the program and its processes, and that the program's log contains no traceback."""
    problems = []
    for end in record.program_ends:
        waits = end.code == EXIT_TEMPORARY and _active(record, end.at_ns, ("disk-full", "disk-slow"))
        if not end.cause and not waits:
            problems.append(f"the program ended with code {end.code} at {_at(record, end.at_ns)}")
    problems += [
        f"the process {lost.name} ended at {_at(record, lost.at_ns)}"
        for lost in record.process_ends
        if not _active(record, lost.at_ns, _ENDS_PROCESSES)
    ]
    if record.tracebacks:
        problems.append(f"the log contains {record.tracebacks} tracebacks")
    return judge("no crashes", problems, f"{len(record.program_ends)} ends of the program")


def check_frames(record: Record) -> Verdict:
    """Check that each camera's grabbed frames are published, dropped with a reason, or in flight."""
    problems = [*_missing_frames(record.frames), *_unbalanced(record.statuses)]
    if record.program_ends and record.program_ends[-1].cause == "stop":
        problems += _unbalanced_at_end(record)
    checked = f"{len(record.frames)} frames and {len(record.statuses)} status messages of {len(record.cameras)} cameras"
    return judge("frames accounted for", problems, checked, is_judged=bool(record.frames))


def _missing_frames(frames: Sequence[FrameSeen]) -> Iterator[str]:
    """Yield a problem for each message whose count of dropped frames is wrong.

    The right count is the number of frames that are missing between the previous message and this message.
    """
    for (_, camera), group in _by_camera(frames):
        for before, after in pairwise(sorted(group, key=lambda seen: seen.seq)):
            if after.seq != before.seq + 1 or after.epoch != before.epoch:
                continue
            missing = after.frame - before.frame - 1
            if missing != after.dropped:
                yield f"{camera}, epoch {after.epoch}: {missing} frames before {after.frame}, {after.dropped} counted"


def _by_camera(frames: Sequence[FrameSeen]) -> Iterable[tuple[tuple[str, str], list[FrameSeen]]]:
    groups: dict[tuple[str, str], list[FrameSeen]] = defaultdict(list)
    for seen in frames:
        groups[seen.instance, seen.camera].append(seen)
    return groups.items()


def _unbalanced(statuses: Sequence[StatusSeen]) -> Iterator[str]:
    for seen in statuses:
        open_frames = seen.grabbed - seen.published - seen.dropped
        if not 0 <= open_frames <= _IN_FLIGHT:
            counts = f"grabbed {seen.grabbed}, published {seen.published}, dropped {seen.dropped}"
            yield f"{seen.camera}: {counts}"


def _unbalanced_at_end(record: Record) -> Iterator[str]:
    """Yield a problem for each camera whose final status does not account for all of its frames.

    The program must have stopped in an orderly way.
    """
    last = {seen.camera: seen for seen in record.statuses}
    received = {(seen.instance, seen.camera): seen.seq for seen in record.frames}
    kills = sum(each.fault.kind in _KILLS_WORKERS and not each.left_out for each in record.faults)
    for camera in record.cameras:
        if camera not in last:
            yield f"{camera}: no status"
            continue
        seen = last[camera]
        if seen.grabbed != seen.published + seen.dropped:
            yield (f"{camera} at the end: grabbed {seen.grabbed}, published {seen.published}, dropped {seen.dropped}")
        newest = received.get((seen.instance, camera), 0)
        if not 0 <= newest - seen.published <= _UNCONFIRMED * kills:
            yield f"{camera} at the end: published {seen.published}, but the last message has number {newest}"


def check_events(record: Record) -> Verdict:
    """Check that each numbered event was received once and is stored, and that the counters agree with the events.

    Events without a number were not stored. Such events are a problem, unless there were disk faults.
    """
    numbers = [event.number for event in record.events if event.number is not None]
    problems = list(record.reports)
    repeated = [number for number, count in Counter(numbers).items() if count > 1]
    missing = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
    problems += [f"event {number} was received more than once" for number in repeated]
    problems += [f"event {number} was not received" for number in missing]
    if len({event.journal for event in record.events if event.journal is not None}) > 1:
        problems.append("the journal was replaced")
    unnumbered = sum(event.number is None for event in record.events)
    if unnumbered and not any(each.fault.kind.startswith("disk") for each in record.faults):
        problems.append(f"{unnumbered} events were not stored, although the disk worked")
    if record.stored is None:
        problems.append("the state database could not be read")
    else:
        stored = set(record.stored.numbers)
        kept = {number for number in numbers if number >= min(stored, default=0)}  # the oldest can be deleted
        problems += [f"event {number} is not stored" for number in sorted(kept - stored)]
        problems += [f"event {number} is stored, but was not received" for number in sorted(stored - set(numbers))]
        problems += _wrong_counters(record, exact=not unnumbered)
    text = f"{len(numbers)} stored events, and {unnumbered} while the disk was full"
    return judge("acknowledged events kept", problems, text, is_judged=bool(numbers))


def _wrong_counters(record: Record, *, exact: bool) -> Iterator[str]:
    """Yield a problem for each counter that is lower than the number of its stored events.

    If `exact` is True, each counter must equal this number.
    """
    assert record.stored is not None
    for crossing, events in record.stored.crossings.items():
        counter = record.stored.counters.get(crossing, 0)
        if counter < events or (exact and counter != events):
            yield f"the counter of {' '.join(crossing)} is {counter}, but {events} events are stored"


def check_ages(record: Record) -> Verdict:
    """Check that the age of each published frame stays below its limits, except while a process is suspended.

    At the start of inference, the limit is `max_frame_age_s`. At publication, the limit is 0.5 s higher, and the age
    does not include the time of inference.
    """
    problems = []
    checked = 0
    stops = [
        (each.started_ns, each.ended_ns + _AFTER_STOP_NS) for each in record.faults if each.fault.kind in _SUSPENDS
    ]
    for seen in record.frames:
        limit_ms = record.max_age_s[seen.camera] * 1e3
        if any(start_ns <= seen.received_ns <= end_ns for start_ns, end_ns in stops):
            continue
        checked += 1
        if seen.wait_ms > limit_ms:
            problems.append(f"{seen.camera} frame {seen.frame}: inference started after {seen.wait_ms:.0f} ms")
        elif seen.total_ms - seen.infer_ms > limit_ms + _RESULT_S * 1e3:
            problems.append(f"{seen.camera} frame {seen.frame}: published after {seen.total_ms:.0f} ms")
    return judge("ages bounded", problems, f"{checked} frames", is_judged=bool(checked))


def check_resources(record: Record) -> Verdict:
    """Check that the memory, threads, and descriptors of each process grow by no more than their limits.

    Check only processes that ran for at least 60 s after their warm-up. A spare process that becomes a worker counts as
    a different process.
    """
    problems: list[str] = []
    judged: list[str] = []

    def process(sample: Sample) -> tuple[int, str]:
        return sample.pid, sample.name

    for _, group in groupby(sorted(record.samples, key=process), key=process):
        samples = list(group)
        warm = [sample for sample in samples if sample.at_ns - samples[0].at_ns >= _WARM_UP_NS]
        if not warm or warm[-1].at_ns - warm[0].at_ns < _LONG_ENOUGH_NS:
            continue
        judged.append(warm[0].name)
        problems += _growth(warm)
    return judge("resources flat", problems, f"{len(judged)} processes", is_judged=bool(judged))


def _growth(samples: Sequence[Sample]) -> Iterator[str]:
    """Yield a problem for each resource whose median grows too much from the first to the second half of `samples`.

    `samples` are the samples of one process, in the order of time. Each resource has its own limit.
    """
    half = len(samples) // 2
    limits: list[tuple[str, Callable[[Sample], int], float, float]] = [
        ("bytes of memory", lambda sample: sample.memory_bytes, _MEMORY_GROWTH, _MEMORY_BYTES),
        ("threads", lambda sample: sample.threads, 1, _THREADS),
        ("descriptors", lambda sample: sample.descriptors, 1, _DESCRIPTORS),
    ]
    for unit, value, factor, more in limits:
        before, after = (median(map(value, part)) for part in (samples[:half], samples[half:]))
        if after > before * factor + more:
            name = f"{samples[0].name} ({samples[0].pid})"
            yield f"{name}: {before:.0f} {unit} in the first half of its time, {after:.0f} in the second"


def _active(record: Record, at_ns: int, kinds: Sequence[str]) -> list[Injected]:
    """Return the faults of the kinds `kinds` that were active at `at_ns` or ended at most 5 s before `at_ns`."""
    return [
        each
        for each in record.faults
        if each.fault.kind in kinds and not each.left_out and each.started_ns <= at_ns <= each.ended_ns + _EXPLAINED_NS
    ]


def _at(record: Record, at_ns: int) -> str:
    return f"{(at_ns - record.began_ns) / 1e9:.1f} s"


CHECKS: Final = (
    check_crashes,
    check_frames,
    check_events,
    check_ages,
    check_recoveries,
    check_latency,
    check_resources,
)
