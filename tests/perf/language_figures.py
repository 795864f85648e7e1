"""Figures computed from the messages and the memory of a run of `tests.perf.language_model`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.client import EventMessage

WAIT_S: Final = 1.0
"""`wait_s` of the events of the cameras with even numbers. The events of the others do not wait."""

_LATE_MS: Final = 100.0  # an event is late if it arrives this long after its deadline
_SLOPE_S: Final = 20.0  # shortest time for the slope of the memory
_DRAWS: Final = 1_000_000  # of Student's t distribution


@dataclass
class Observed:
    """Messages that a subscriber received from one run."""

    latency_ms: list[float] = field(default_factory=list)  # from capture to publication, of each frame
    events: list[tuple[EventMessage, int]] = field(default_factory=list)  # with the time of arrival in ns
    since_ns: int = 0  # earlier events can be missing, because the subscriber had not joined
    numbers: list[int] = field(default_factory=list)  # in the journal
    resident_mib: dict[str, list[tuple[float, float, int]]] = field(default_factory=lambda: defaultdict(list))
    """Monotonic time in s, resident memory in MiB, and id of each process."""

    def of_rule(self) -> list[tuple[EventMessage, int]]:
        return [(event, at_ns) for event, at_ns in self.events if event.kind == "rule"]


def _first_events(observed: Observed) -> list[tuple[EventMessage, int]]:
    """Return the events that happened after the subscriber connected, without amendments."""
    return [(e, at) for e, at in observed.events if e.at_monotonic_ns > observed.since_ns and e.amends is None]


def plain_ms(observed: Observed) -> list[float]:
    """Return the time, in ms, from capture to arrival, for each event that causes no question to the server."""
    return [(at - e.at_monotonic_ns) / 1e6 for e, at in _first_events(observed) if e.kind == "zone_entered"]


def event_faults(observed: Observed) -> dict[str, Any]:
    """Compare the zone entries with the events of the rule that must report them.

    Return the numbers of lost, repeated, and late events, and the latencies of the events with and without a question.
    The zone entry of the same frame, which never waits, shows when an event was due.
    """
    first = [(e, at) for e, at in _first_events(observed) if e.kind == "rule"]
    entered = Counter(
        (e.camera, e.epoch, e.frame, e.track_id) for e, _ in _first_events(observed) if e.kind == "zone_entered"
    )
    reported = Counter((e.camera, e.epoch, e.frame, e.track_id) for e, _ in first)
    entered_at = {(e.camera, e.epoch, e.frame, e.track_id): at for e, at in _first_events(observed) if e.kind != "rule"}
    overdue_ms = [
        (at - entered_at[key]) / 1e6 - (0 if int(e.camera[1:]) % 2 else WAIT_S * 1e3)
        for e, at in first
        if (key := (e.camera, e.epoch, e.frame, e.track_id)) in entered_at
    ]
    at_once_ms = [(at - e.at_monotonic_ns) / 1e6 for e, at in first if int(e.camera[1:]) % 2]
    waiting_ms = [(at - e.at_monotonic_ns) / 1e6 for e, at in first if not int(e.camera[1:]) % 2]
    return {
        "events": sum(entered.values()),
        "lost": sum((entered - reported).values()),
        "repeated": sum((reported - entered).values()),
        "late": sum(each > _LATE_MS for each in overdue_ms),
        "most_ms_after_deadline": round(max(overdue_ms, default=0.0), 1),
        "gaps_in_journal": sum(b != a + 1 for a, b in pairwise(observed.numbers)),
        "amended": sum(e.amends is not None for e, _ in observed.of_rule()),
        "with_verdict": sum(e.verdict is not None for e, _ in first),
        "p99_ms_of_events_without_question": quantile(plain_ms(observed), 99),
        "p99_ms_of_events_with_question": quantile(at_once_ms, 99),
        "p99_ms_of_events_that_wait_1_s": quantile(waiting_ms, 99),
        "max_ms_of_events_that_wait_1_s": round(max(waiting_ms, default=0.0), 1),
    }


def quantile(values: list[float], percent: float) -> float:
    return round(float(np.percentile(values, percent)), 2) if values else 0.0


def ratio(with_: Sequence[float], without: Sequence[float]) -> dict[str, float]:
    """Return the geometric mean of the ratios of paired values, and its 95 % interval from Student's t-distribution."""
    return {name: round(float(np.exp(each)), 3) for name, each in _mean(np.log(np.divide(with_, without))).items()}


def _mean(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """Return the mean of values and its 95 % confidence interval. For a single value, omit the interval."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"mean": mean}
    t = float(np.quantile(np.random.default_rng(0).standard_t(count - 1, _DRAWS), 0.975))
    half = t * float(np.std(values, ddof=1)) / count**0.5
    return {"mean": mean, "from": mean - half, "to": mean + half}


def growth(observed: Observed) -> dict[str, float]:
    """Return the growth of the memory in MiB, and the slope of a line fitted to the samples after the first third.

    Omit the slope if the samples cover too short a time, or if the process was killed.
    """
    found = {}
    for name, samples in observed.resident_mib.items():
        sizes = [size for _, size, _ in samples]
        third = max(1, len(sizes) // 3)
        found[f"{name}_resident_mib_first_third"] = round(max(sizes[:third]), 1)
        found[f"{name}_resident_mib_last_third"] = round(max(sizes[-third:]), 1)
        later = np.array(samples[third:] or samples)
        if later[-1, 0] - later[0, 0] >= _SLOPE_S and len(set(later[:, 2])) == 1:
            found[f"{name}_mib_per_hour"] = round(float(np.polyfit(later[:, 0] / 3600, later[:, 1], 1)[0]), 2)
    return found


def goals(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Summarize the measurements: one value for each goal, with the limit in the name of the value."""
    found: dict[str, Any] = {}
    if "faults" in measured:
        pairs = measured["faults"]["pairs"]
        found["frame_p99_ratio_at_most_1_02"] = measured["faults"]["ratios_with_95_percent_interval"]["frame_p99_ms"]
        for name in ("events", "lost", "repeated", "late"):
            found[name if name == "events" else f"events_{name}_0"] = sum(pair["events"][name] for pair in pairs)
        found["most_ms_after_deadline"] = max(pair["events"]["most_ms_after_deadline"] for pair in pairs)
        slopes = [pair["memory"]["program_mib_per_hour"] for pair in pairs if "program_mib_per_hour" in pair["memory"]]
        if slopes:  # of short runs, so the interval is wide
            found["program_mib_per_hour_in_rounds"] = {name: round(each, 1) for name, each in _mean(slopes).items()}
    if "soak" in measured:
        found["soak_mib_per_hour"] = {k: v for k, v in measured["soak"].items() if k.endswith("mib_per_hour")}
        found["soak_events"] = {k: measured["soak"]["events"][k] for k in ("events", "lost", "repeated", "late")}
    if "verdicts" in measured:
        found["event_to_verdict_p95_ms_at_most_1000"] = {
            f"parallel_{each['parallel']}": each["event_to_verdict_p95_ms"] for each in measured["verdicts"]
        }
        shares = [each["least_answered_share_of_a_camera"] for each in measured["verdicts"]]
        found["least_answered_share_of_a_camera"] = min(shares)
    return found
