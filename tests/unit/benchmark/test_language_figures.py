"""Tests of the figures that `tests.perf.language_model` computes from events and memory with known faults."""

from __future__ import annotations

import pytest

from tests.perf.language_figures import Observed, event_faults, goals, growth, ratio
from vision.client import EventMessage

_MS = 1_000_000
_WAIT_MS = 1000


def _event(camera: str, kind: str, frame: int, at_ns: int) -> EventMessage:
    return EventMessage(
        node="n",
        instance="i",
        boot="b",
        seq=frame,
        camera=camera,
        epoch=1,
        frame=frame,
        at="2026-01-01T00:00:00Z",
        at_monotonic_ns=at_ns,
        kind=kind,
        name="left",
        track_id=1,
        data={},
    )


def _observed(*delays_ms: tuple[str, float | None]) -> Observed:
    """Return observations with a zone entry and a rule event for each item.

    An item contains the camera, and the delay of the rule event in ms, or None if the event is lost.
    """
    observed = Observed(since_ns=1)
    for frame, (camera, delay_ms) in enumerate(delays_ms, 1):
        at_ns = frame * 100 * _MS
        observed.events.append((_event(camera, "zone_entered", frame, at_ns), at_ns + 5 * _MS))
        if delay_ms is not None:
            observed.events.append((_event(camera, "rule", frame, at_ns), at_ns + int((5 + delay_ms) * _MS)))
    return observed


def test_events_are_late_after_their_own_deadline() -> None:
    observed = _observed(("c0", _WAIT_MS + 20), ("c0", _WAIT_MS + 150), ("c1", 20), ("c1", 150))
    found = event_faults(observed)
    assert (found["events"], found["lost"], found["late"]) == (4, 0, 2)
    assert found["most_ms_after_deadline"] == pytest.approx(150)


def test_lost_and_repeated_events_are_counted() -> None:
    observed = _observed(("c0", None), ("c1", 0))
    observed.events.append(observed.events[-1])
    found = event_faults(observed)
    assert (found["lost"], found["repeated"]) == (1, 1)


def test_interval_contains_the_mean_and_widens_with_the_spread() -> None:
    narrow, wide = ratio([1.01, 1.02, 1.03], [1, 1, 1]), ratio([0.9, 1.0, 1.2], [1, 1, 1])
    assert narrow["from"] < narrow["mean"] < narrow["to"]
    assert narrow["to"] - narrow["from"] == pytest.approx(0.0497, abs=0.0015)  # with t = 4.303
    assert wide["to"] - wide["from"] > narrow["to"] - narrow["from"]
    assert ratio([1.5], [1]) == {"mean": 1.5}


def test_slope_belongs_to_one_process() -> None:
    observed = Observed()
    observed.resident_mib["program"] = [(second, 100 + second / 3600, 7) for second in range(60)]
    observed.resident_mib["language"] = [(second, 60 + second, 8 + second // 40) for second in range(60)]
    found = growth(observed)
    assert found["program_mib_per_hour"] == pytest.approx(1)
    assert "language_mib_per_hour" not in found
    observed.resident_mib["program"] = observed.resident_mib["program"][:20]
    assert "program_mib_per_hour" not in growth(observed)


def test_goals_of_a_run_that_was_cut_off() -> None:
    verdicts = [
        {"parallel": 4, "event_to_verdict_p95_ms": 700.0, "least_answered_share_of_a_camera": 1.0},
        {"parallel": 8, "event_to_verdict_p95_ms": 650.0, "least_answered_share_of_a_camera": 0.5},
    ]
    assert goals({}) == {}
    assert goals({"verdicts": verdicts}) == {
        "event_to_verdict_p95_ms_at_most_1000": {"parallel_4": 700.0, "parallel_8": 650.0},
        "least_answered_share_of_a_camera": 0.5,
    }
