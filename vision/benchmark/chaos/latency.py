"""Check that a fault of a camera, of a subscriber, or of the disk does not delay unaffected cameras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.benchmark.chaos.record import Record
from vision.benchmark.chaos.recovery import back_ns, measure_recoveries
from vision.benchmark.chaos.schedule import KINDS
from vision.benchmark.chaos.verdict import Verdict, judge

MAX_RATIO: Final = 1.2
"""Maximum ratio of the p99 latency during faults of other cameras to the p99 latency without faults."""
_ENOUGH: Final = 2000  # minimum number of frames in each group; a p99 of fewer frames is random
_AFTER_NS: Final = 1_000_000_000  # time after a recovery that still belongs to the fault

_PROGRAM_WIDE: Final = ("process-stop", "worker-kill", "program-kill", "detector-hang")


def check_latency(record: Record) -> Verdict:
    """Check that faults do not delay the frames of unaffected cameras.

    The check fails if the p99 latency of these frames is more than `MAX_RATIO` times the p99 latency in periods without
    faults. Periods with and without faults alternate during the whole run, so other programs on the machine disturb
    both. Faults that affect all cameras do not count. If there are too few frames with or without faults, the verdict
    is "not judged".
    """
    undisturbed_ms, others_ms = split_latencies(record)
    if not len(undisturbed_ms) or not len(others_ms):
        return judge("others undisturbed", [], "no frames to compare", is_judged=False)
    before, after = (float(np.percentile(each, 99)) for each in (undisturbed_ms, others_ms))
    text = f"p99 {before:.1f} ms without faults, {after:.1f} ms of the other cameras during faults"
    is_judged = min(len(undisturbed_ms), len(others_ms)) >= _ENOUGH
    is_slower = is_judged and after > MAX_RATIO * before
    problems = [f"{after:.1f} ms is {after / before:.2f} times {before:.1f} ms"] if is_slower else []
    return judge("others undisturbed", problems, text, is_judged=is_judged)


def split_latencies(record: Record) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two arrays of latencies in ms: in periods without faults, and of unaffected cameras during faults.

    Neither array contains frames from periods with an active process fault.
    """
    received_ns = np.array([seen.received_ns for seen in record.frames], np.int64)
    total_ms = np.array([seen.total_ms for seen in record.frames], np.float64)
    cameras = np.array([seen.camera for seen in record.frames])
    back = back_ns(measure_recoveries(record))
    within = received_ns >= record.began_ns
    within &= received_ns <= record.ended_ns
    quiet, excluded = within.copy(), ~within
    for each in record.faults:
        if each.left_out:
            continue
        active = (received_ns >= each.started_ns) & (received_ns <= _over_ns(each.ended_ns, each.fault.number, back))
        quiet &= ~active
        if each.fault.kind in _PROGRAM_WIDE:
            excluded |= active
        elif KINDS[each.fault.kind].has_camera:
            excluded |= active & (cameras == each.target)
    return total_ms[quiet], total_ms[~quiet & ~excluded]


def _over_ns(ended_ns: int, number: int, back: Mapping[int, int]) -> int:
    return max(ended_ns, back.get(number, 0)) + _AFTER_NS
