"""Check that each camera soon delivers frames again after a fault.

A camera must be back within 2 s after the end of the fault. In these cases, the allowed time is longer:

* If the camera is in a back-off when the fault ends, or enters a back-off within a second, the check adds the remaining
  back-off time.
* If the fault ended a process, the check adds twice the time of the program's first start, because the cameras and
  other faults compete with the new process for CPU time.

If another fault that affects the camera begins within the allowed time, the allowed time restarts at the end of this
fault.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vision.benchmark.chaos.record import Injected, Record, StatusSeen
from vision.benchmark.chaos.schedule import HANG_S
from vision.benchmark.chaos.verdict import Verdict, judge

GRACE_S: Final = 2.0
"""Allowed time from the end of a fault to the next frame of a camera, without the additions."""
_STARTS: Final = 2  # allowed time for the start of a process, as a multiple of the first start of the program
_HANG_FACTOR: Final = 1.5  # multiple of `hang_s` after which the program must have noticed a detector that hangs
_HANG_END_S: Final = 12.0  # longest time from this moment to the end of the program
_STATUS_NS: Final = 1_000_000_000  # time after the end of the fault in which a back-off can still start


@dataclass(frozen=True, slots=True)
class Recovery:
    """Time from the end of a fault until one camera delivered a frame."""

    fault: Injected
    camera: str
    took_s: float | None  # None if the camera never came back
    allowed_s: float  # time in which the camera had to be back

    @property
    def is_late(self) -> bool:
        """True if the camera came back too late, or never."""
        return self.took_s is None or self.took_s > self.allowed_s


def check_recoveries(record: Record) -> Verdict:
    """Check that every camera came back in time after every fault that can affect it."""
    recoveries = measure_recoveries(record)
    problems = [_describe(each) for each in recoveries if each.is_late]
    problems += _slow_hangs(record)
    taken = [each.took_s for each in recoveries if each.took_s is not None]
    text = f"{len(recoveries)} recoveries, the longest after {max(taken, default=0.0):.1f} s"
    return judge("cameras back in time", problems, text, is_judged=bool(recoveries))


def measure_recoveries(record: Record) -> list[Recovery]:
    """Return the recovery of each affected camera after each fault.

    Omit a recovery if the run ended before the camera came back, and before the allowed time was over.
    """
    captured: dict[str, list[int]] = {camera: [] for camera in record.cameras}
    received: dict[str, list[int]] = {camera: [] for camera in record.cameras}
    for seen in sorted(record.frames, key=lambda seen: seen.captured_ns):
        captured[seen.camera].append(seen.captured_ns)
        received[seen.camera].append(seen.received_ns)
    statuses = {camera: [seen for seen in record.statuses if seen.camera == camera] for camera in record.cameras}
    done = [each for each in record.faults if not each.left_out and each.ended_ns]
    recoveries = []
    for each in done:
        for camera in affected(each, record.cameras):
            others = [other for other in done if camera in affected(other, record.cameras)]
            allowed_ns = _deadline_ns(each, others, statuses[camera], record.start_s) - each.ended_ns
            index = bisect_right(captured[camera], each.ended_ns)
            took_s = (received[camera][index] - each.ended_ns) / 1e9 if index < len(received[camera]) else None
            if took_s is None and each.ended_ns + allowed_ns > record.ended_ns:
                continue
            recoveries.append(Recovery(each, camera, took_s, allowed_ns / 1e9))
    return recoveries


def affected(each: Injected, cameras: Sequence[str]) -> Sequence[str]:
    """Return the ids of the cameras that the fault `each` can affect. `cameras` are the ids of all cameras."""
    return cameras if each.camera is None else (each.camera,)


def back_ns(recoveries: Sequence[Recovery]) -> Mapping[int, int]:
    """Return, by fault number, the monotonic time in nanoseconds at which the last camera delivered frames again.

    For a camera that never recovered, use its deadline for the recovery.
    """
    back: dict[int, int] = {}
    for each in recoveries:
        number, took_s = each.fault.fault.number, each.allowed_s if each.took_s is None else each.took_s
        back[number] = max(back.get(number, 0), each.fault.ended_ns + int(took_s * 1e9))
    return back


def _deadline_ns(each: Injected, others: Sequence[Injected], statuses: Sequence[StatusSeen], start_s: float) -> int:
    """Return the monotonic time in nanoseconds at which a camera must be back after the fault `each`.

    Faults that begin before this deadline postpone it.

    Args:
        each: the fault.
        others: all faults that affect the camera.
        statuses: the status messages of the camera.
        start_s: duration of the first start of the program in seconds.
    """
    deadline_ns = _own_deadline_ns(each, statuses, start_s)
    for other in sorted(others, key=lambda other: other.started_ns):
        if other.started_ns <= deadline_ns:
            deadline_ns = max(deadline_ns, _own_deadline_ns(other, statuses, start_s))
    return deadline_ns


def _own_deadline_ns(each: Injected, statuses: Sequence[StatusSeen], start_s: float) -> int:
    over_ns = each.ended_ns + int(_STARTS * start_s * 1e9) * each.restarts
    retries = [
        seen.retry_ns
        for seen in statuses
        if seen.retry_ns is not None and seen.since_ns <= over_ns + _STATUS_NS and seen.at_ns >= each.started_ns
    ]
    return max([over_ns, *retries]) + int(GRACE_S * 1e9)


def _slow_hangs(record: Record) -> list[str]:
    """Return a problem for each hang of the detector that did not end the program in time."""
    limit_s = _HANG_FACTOR * HANG_S + _HANG_END_S
    return [
        f"{each.fault}: the program did not end within {limit_s:.0f} s"
        for each in record.faults
        if each.fault.kind == "detector-hang" and (each.ended_ns - each.started_ns) / 1e9 > limit_s
    ]


def _describe(each: Recovery) -> str:
    took = "never" if each.took_s is None else f"after {each.took_s:.1f} s"
    return f"{each.fault.fault}: {each.camera} was back {took}, allowed were {each.allowed_s:.1f} s"
