"""`RuleStage` derives events such as "a queue has been crowded for ten seconds" from the events of lines and zones.

`vision.config.rules` defines the configuration of rules and its grammar. Rules use the timestamps of the frames, so a
rule reports the same events for a live camera and for a recording of that camera.

To add a kind of rule, add its condition to `vision.config.rules` and evaluate it in `_Rule`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from vision.analytics.frame_clock import CLOCK_GRAIN_S, FrameClock
from vision.config import AppConfig
from vision.config.analytics import CameraAnalytics
from vision.config.rules import LASTING, RULE, RuleConfig
from vision.types import Event, Result

_MOTION: Final = ("speed_kmh", "heading_deg")


class RuleStage:
    """Stage that adds the events of rules to the events of lines and zones.

    A rule for a state reports the start of the state once the state has lasted for the configured time, and then the
    end of the state. A rule for an instant, such as a crossing, reports that instant.

    During its cooldown, a rule reports only the end of states whose start it has reported. If another state still lasts
    when the cooldown ends, the rule reports the start of this state at that time. `suppressed` in the next report of a
    start or an instant is the number of suppressed reports.
    """

    def __init__(self, rules: Sequence[RuleConfig], sections: Mapping[str, CameraAnalytics]) -> None:
        """Create the stage. `sections` contains the lines and zones to which the rules refer, by camera id."""
        cameras = {camera_id: _Camera(camera_id, rules, section) for camera_id, section in sections.items()}
        self._cameras = {camera_id: camera for camera_id, camera in cameras.items() if camera.rules}

    def reconfigure(self, config: AppConfig) -> None:
        """Use new rules. Unchanged rules continue. Other rules start with the next event of their kind.

        If a rule was changed or removed, the next result of the camera reports the ends of the states that this rule
        has reported.
        """
        earlier, self._cameras = self._cameras, {}
        for camera_id, section in {**dict.fromkeys(earlier), **config.analytics}.items():
            camera = _Camera(camera_id, config.rules, section or CameraAnalytics())
            if camera_id in earlier:
                camera.adopt(earlier[camera_id])
            if camera.rules or camera.ended:
                self._cameras[camera_id] = camera

    def clock(self, camera_id: str) -> FrameClock | None:
        """Return the clock of a camera's rules. Return None if the camera has no rules.

        A caller that evaluates recorded frames can skip frames that have no events and cause no report (`due_s`). The
        caller must then advance this clock to the time of the last skipped frame.
        """
        camera = self._cameras.get(camera_id)
        return None if camera is None else camera.time

    def due_s(self, camera_id: str) -> float:
        """Return the time in seconds, on the clock of a camera, before which frames without events cause no report.

        Infinity means that only an event can cause a report.
        """
        camera = self._cameras.get(camera_id)
        return math.inf if camera is None else min((rule.due_s() for rule in camera.rules), default=math.inf)

    def causes(self, camera_id: str) -> Container[tuple[str, str]]:
        """Return the kind and the name of each event that can cause a report of a camera's rules."""
        camera = self._cameras.get(camera_id)
        return () if camera is None else frozenset(rule.cause for rule in camera.rules)

    def __call__(self, result: Result) -> Result:
        meta, counts = result.meta, result.counts
        if meta.camera_id not in self._cameras:
            return result
        occupancy = counts.occupancy if counts else {}
        events = self.judge(meta.camera_id, meta.epoch, meta.captured_ns, result.events, occupancy)
        return replace(result, events=result.events + events) if events else result

    def judge(
        self, camera_id: str, epoch: int, captured_ns: int, events: Sequence[Event], occupancy: Mapping[str, int]
    ) -> tuple[Event, ...]:
        """Return the reports that a camera's rules make in one frame.

        Args:
            camera_id: id of the camera, which must have rules.
            epoch: epoch of the frame.
            captured_ns: capture time of the frame in ns.
            events: events of the frame.
            occupancy: number of objects in each zone, by name of the zone.
        """
        camera = self._cameras[camera_id]
        camera.time.advance(captured_ns)
        return tuple(camera.update(epoch, events, _Now(camera.time.now_s, captured_ns, occupancy)))


class _Camera:
    """All rules that apply to one camera, and the clock of this camera, which follows the timestamps of its frames."""

    def __init__(self, camera_id: str, rules: Sequence[RuleConfig], section: CameraAnalytics) -> None:
        early_s = {line.name: 0.0 for line in section.lines} | {zone.name: zone.crowded_for_s for zone in section.zones}
        self.rules = [
            _Rule(camera_id, rule, early_s[rule.condition.name])
            for rule in rules
            if rule.condition.name in early_s and (rule.cameras is None or camera_id in rule.cameras)
        ]
        self.ended: list[_Rule] = []  # rules that were removed while they reported a state
        self.time = FrameClock()
        self._epoch: int | None = None

    def adopt(self, earlier: _Camera) -> None:
        """Take over the clock and the unchanged rules of `earlier`. Keep changed rules that still report a state."""
        self.time, self._epoch = earlier.time, earlier._epoch
        known = {rule.identity: rule for rule in earlier.rules}
        self.rules = [known.pop(rule.identity, rule) for rule in self.rules]
        self.ended = [*earlier.ended, *(rule for rule in known.values() if rule.states)]

    def update(self, epoch: int, events: Sequence[Event], now: _Now) -> Iterator[Event]:
        new_epoch, self._epoch = epoch != self._epoch, epoch
        for rule in self.ended:
            yield from rule.end(now)
        self.ended = []
        for rule in self.rules:
            unended = set(rule.states) if new_epoch else None
            for event in events:
                if (event.kind, event.name) == rule.cause:
                    yield from rule.take(event, now)
                if unended:
                    unended.discard(event.track_id)
            for track_id in unended or ():  # the analytics restarted, and reported no end of this state
                rule.states.pop(track_id, None)
            if rule.states:
                yield from rule.look(now)


class _Now(NamedTuple):
    """The time of a frame, and the number of objects in each zone at this time."""

    time_s: float  # on the camera's clock
    at_ns: int  # capture time
    occupancy: Mapping[str, int]  # by the name of the zone


@dataclass(slots=True)
class _State:
    """A state that has not ended: a crowded zone, or the stay of an object in a zone."""

    since_s: float
    start_event: Event
    reported: bool = False


class _Rule:
    """One configured rule, applied to the events of one camera, with the states and the cooldown of the rule."""

    def __init__(self, camera_id: str, config: RuleConfig, crowded_for_s: float) -> None:
        """Create the rule. Crowding starts `crowded_for_s` seconds before the event that reports the crowding."""
        self.states: dict[int | None, _State] = {}  # by track id; None for a crowded zone
        self.identity = config.model_dump_json(), crowded_for_s  # equal for rules that work in the same way
        self._camera_id = camera_id
        self._name, self._when = config.name, " ".join(config.when.split())
        self._condition, self._cooldown_s = config.condition, config.cooldown_s
        self.cause = config.condition.kind, config.condition.name
        """Kind and name of the events that can cause a report."""
        self._crowded_for_s = crowded_for_s
        self._reported_s = -math.inf
        self._suppressed = 0

    def take(self, event: Event, now: _Now) -> Iterator[Event]:
        """Process an event of this frame, to which the rule refers. Yield the reports that the event causes."""
        if event.kind not in LASTING:
            if self._is_silent(now):
                self._suppressed += 1
            else:
                yield self._report("instant", event, event.data, now)
        elif event.data.get("phase") != "end":
            already_s = float(event.data.get("stayed_s", self._crowded_for_s))
            self.states[event.track_id] = _State(now.time_s - already_s, event)
        elif (state := self.states.pop(event.track_id, None)) is not None:
            if state.reported:
                yield self._event("end", event, now, {**event.data, "lasted_s": _since(state, now)})
            elif self._is_due(state, now) and self._is_silent(now):
                self._suppressed += 1

    def look(self, now: _Now) -> Iterator[Event]:
        """Yield a report for every unreported state that has lasted long enough, unless the rule is in its cooldown."""
        for state in self.states.values():
            if not state.reported and self._is_due(state, now) and not self._is_silent(now):
                state.reported = True
                yield self._report("begin", state.start_event, self._current_data(state, now), now)

    def due_s(self) -> float:
        """Return the time in seconds, on the camera's clock, before which `look` reports nothing, or infinity."""
        if not self.states:
            return math.inf
        waiting = [state.since_s + self._condition.for_s for state in self.states.values() if not state.reported]
        return max(min(waiting), self._reported_s + self._cooldown_s) - CLOCK_GRAIN_S if waiting else math.inf

    def end(self, now: _Now) -> Iterator[Event]:
        """End all states. Yield a report for each state whose start was reported."""
        for state in self.states.values():
            if state.reported:
                yield self._event("end", state.start_event, now, self._current_data(state, now))
        self.states.clear()

    def _current_data(self, state: _State, now: _Now) -> dict[str, Any]:
        """Return the data of the event that started a state, updated to the current frame, and `lasted_s`.

        If the event is not from the current frame, its speed and heading are omitted.
        """
        lasted_s, data = _since(state, now), dict(state.start_event.data)
        if "stayed_s" in data:
            data["stayed_s"] = lasted_s
        if "occupancy" in data:
            data["occupancy"] = now.occupancy.get(self._condition.name, data["occupancy"])
        if state.start_event.at_ns != now.at_ns:
            data = {key: value for key, value in data.items() if key not in _MOTION}
        return {**data, "lasted_s": lasted_s}

    def _is_due(self, state: _State, now: _Now) -> bool:
        return now.time_s - state.since_s >= self._condition.for_s - CLOCK_GRAIN_S

    def _is_silent(self, now: _Now) -> bool:
        return now.time_s - self._reported_s < self._cooldown_s - CLOCK_GRAIN_S

    def _report(self, phase: str, event: Event, data: Mapping[str, Any], now: _Now) -> Event:
        self._reported_s = now.time_s
        if self._suppressed:
            data = {**data, "suppressed": self._suppressed}
            self._suppressed = 0
        return self._event(phase, event, now, data)

    def _event(self, phase: str, event: Event, now: _Now, data: Mapping[str, Any]) -> Event:
        about = {"phase": phase, "when": self._when, "event": event.kind, "place": event.name}
        return Event(RULE, self._name, self._camera_id, event.track_id, now.at_ns, {**data, **about})


def _since(state: _State, now: _Now) -> float:
    return round(now.time_s - state.since_s, 3)
