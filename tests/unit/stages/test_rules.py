"""Tests of rules: when they report, when they do not report, and the data of their events."""

from __future__ import annotations

from typing import Any

import pytest

from vision.config import RuleConfig
from vision.config.analytics import CameraAnalytics
from vision.stages.rules import RuleStage
from vision.types import Detections, Event, FrameMeta, Result, Timing

POLYGON = ((0, 0), (9, 0), (0, 9))
SECTION = CameraAnalytics.model_validate(
    {
        "lines": ({"name": "door", "points": ((1, 1), (9, 9))},),
        "zones": (
            {"name": "queue", "polygon": POLYGON, "crowd_threshold": 5, "dwell_s": 30},
            {"name": "slow", "polygon": POLYGON, "crowd_threshold": 5, "crowded_for_s": 4},
        ),
    }
)


def crowd(phase: str, name: str = "queue", **data: Any) -> Event:
    return Event("crowded", name, "gate", None, 0, {"phase": phase, **data})


def stay(phase: str, track_id: int, stayed_s: float) -> Event:
    return Event("dwelling", "queue", "gate", track_id, 0, {"phase": phase, "class": "person", "stayed_s": stayed_s})


def crossing(track_id: int = 1) -> Event:
    return Event("line_crossed", "door", "gate", track_id, 0, {"phase": "instant", "direction": "in"})


class Site:
    """Cameras with rules. `at` processes one frame and returns the events of the rules."""

    def __init__(self, *rules: tuple[str, str] | RuleConfig) -> None:
        configs = [
            rule if isinstance(rule, RuleConfig) else RuleConfig(name=f"rule-{at}", when=rule[0], cooldown=rule[1])
            for at, rule in enumerate(rules)
        ]
        self._stage = RuleStage(configs, {"gate": SECTION, "yard": SECTION})

    def at(self, time_s: float, *events: Event, camera: str = "gate", epoch: int = 0) -> list[Event]:
        at_ns = round(1e12 + time_s * 1e9)
        meta = FrameMeta(camera, 0, epoch, at_ns, at_ns, 64, 48)
        after = self._stage(Result(meta, Detections.empty(), Timing(at_ns, at_ns, at_ns), events=events))
        assert after.events[: len(events)] == events
        return list(after.events[len(events) :])


def summary(events: list[Event]) -> list[str]:
    return [f"{event.name} {event.data['phase']}" for event in events]


def test_lasting_crowd_is_reported_once_and_ends() -> None:
    site = Site(("crowded queue for 10s", "0s"))
    assert site.at(0, crowd("begin", occupancy=6)) == []
    assert site.at(9.5) == []
    (begun,) = site.at(10.0)
    assert (begun.kind, begun.name, begun.camera_id, begun.track_id) == ("rule", "rule-0", "gate", None)
    assert begun.at_ns == 1_010_000_000_000
    assert begun.data == {
        "phase": "begin", "when": "crowded queue for 10s", "event": "crowded", "place": "queue", "occupancy": 6,
        "lasted_s": 10.0,
    }  # fmt: skip
    assert site.at(11.0) == []
    (ended,) = site.at(13.0, crowd("end", occupancy=5))
    assert (ended.data["phase"], ended.data["lasted_s"], ended.data["occupancy"]) == ("end", 13.0, 5)
    assert site.at(30.0) == []


def test_short_crowd_is_not_reported() -> None:
    site = Site(("crowded queue for 10s", "0s"))
    site.at(0, crowd("begin"))
    assert site.at(9.0, crowd("end")) == []
    assert site.at(20.0) == []
    site.at(21.0, crowd("begin"))
    assert site.at(30.0) == []
    assert summary(site.at(31.0)) == ["rule-0 begin"]


def test_rule_without_a_duration_reports_at_once() -> None:
    site = Site(("crowded queue", "0s"))
    assert summary(site.at(0, crowd("begin"))) == ["rule-0 begin"]
    assert summary(site.at(1, crowd("end"))) == ["rule-0 end"]


def test_duration_counts_from_the_beginning_of_the_state() -> None:
    site = Site(("crowded slow for 10s", "0s"), ("dwelling queue for 35s", "0s"))
    site.at(0, crowd("begin", "slow"), stay("begin", 7, 30.0))
    assert summary(site.at(4.9)) == []
    assert summary(site.at(5.0)) == ["rule-1 begin"]
    assert summary(site.at(5.9)) == []
    assert summary(site.at(6.0)) == ["rule-0 begin"]


def test_rule_reports_each_stay_separately() -> None:
    site = Site(("dwelling queue for 1m", "0s"))
    site.at(0, stay("begin", 1, 30.0))
    site.at(5, stay("begin", 2, 30.0))
    assert site.at(20, stay("end", 1, 50.0)) == []
    (begun,) = site.at(35)
    assert (begun.track_id, begun.data["class"], begun.data["lasted_s"]) == (2, "person", 60.0)
    (ended,) = site.at(40, stay("end", 2, 65.0))
    assert (ended.track_id, ended.data["phase"]) == (2, "end")


def test_rule_about_an_instant_is_an_instant() -> None:
    site = Site(("line_crossed door", "0s"))
    reports = site.at(0, crossing(1), crossing(2))
    assert [event.track_id for event in reports] == [1, 2]
    assert reports[0].data == {
        "phase": "instant", "when": "line_crossed door", "event": "line_crossed", "place": "door", "direction": "in"
    }  # fmt: skip


def test_cooldown_suppresses_and_counts_instants() -> None:
    site = Site(("line_crossed door", "60s"))
    assert len(site.at(0, crossing(1), crossing(2))) == 1
    assert site.at(59, crossing(3)) == []
    (report,) = site.at(60, crossing(4))
    assert (report.track_id, report.data["suppressed"]) == (4, 2)
    (report,) = site.at(120, crossing(5))
    assert "suppressed" not in report.data


def test_lasting_state_is_reported_after_the_cooldown() -> None:
    site = Site(("crowded queue for 10s", "60s"))
    site.at(0, crowd("begin"))
    assert summary(site.at(10)) == ["rule-0 begin"]
    assert summary(site.at(12, crowd("end"))) == ["rule-0 end"]
    site.at(20, crowd("begin"))
    assert site.at(40, crowd("end")) == []  # never reported
    site.at(50, crowd("begin"))
    assert site.at(69) == []
    (report,) = site.at(70)
    assert (report.data["lasted_s"], report.data["suppressed"]) == (20.0, 1)


def test_short_state_is_not_counted_as_suppressed() -> None:
    site = Site(("crowded queue for 10s", "60s"))
    site.at(0, crowd("begin"))
    site.at(10)
    site.at(11, crowd("end"))
    site.at(12, crowd("begin"))
    site.at(15, crowd("end"))
    site.at(70, crowd("begin"))
    (report,) = site.at(80)
    assert "suppressed" not in report.data


def test_cooldown_lets_one_of_many_stays_pass() -> None:
    site = Site(("dwelling queue", "10s"))
    assert [e.track_id for e in site.at(0, stay("begin", 1, 30), stay("begin", 2, 30))] == [1]
    assert [e.track_id for e in site.at(10)] == [2]


def test_rules_and_cooldowns_are_per_camera() -> None:
    only_gate = RuleConfig(name="gate", when="line_crossed door", cameras=("gate",))
    site = Site(only_gate, ("line_crossed door", "60s"))
    assert summary(site.at(0, crossing())) == ["gate instant", "rule-1 instant"]
    assert summary(site.at(1, crossing(), camera="yard")) == ["rule-1 instant"]
    assert summary(site.at(2, crossing())) == ["gate instant"]
    assert site.at(3, crossing(), camera="unknown") == []


@pytest.mark.parametrize("other", [crowd("begin", "slow"), stay("begin", 1, 30), crossing()])
def test_rule_ignores_other_events(other: Event) -> None:
    assert Site(("crowded queue", "0s")).at(0, other) == []


def test_end_without_a_begin_is_ignored() -> None:
    assert Site(("crowded queue", "0s")).at(0, crowd("end")) == []


def test_new_epoch_drops_states_without_an_end() -> None:
    site = Site(("dwelling queue for 60s", "0s"))
    site.at(0, stay("begin", 1, 30.0), stay("begin", 2, 30.0))
    # A new epoch begins with the ends of all states of the previous one. Here, one end is missing.
    assert site.at(40, stay("end", 1, 70.0), stay("begin", 3, 30.0), epoch=1) == []
    assert [event.track_id for event in site.at(70, epoch=1)] == [3]


def test_backward_clock_jump_does_not_affect_a_rule() -> None:
    site = Site(("crowded queue for 3s", "0s"))
    site.at(0)
    site.at(1, crowd("begin"))
    site.at(2)
    assert site.at(-100) == []  # counts as one second
    assert summary(site.at(-99)) == ["rule-0 begin"]
