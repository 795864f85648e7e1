"""Events become fewer events: what somebody wants to be told, such as a queue that has been crowded for ten seconds.

Rules are configured by `vision.config.rules`, which also says their grammar. Time is that of the frames, so a rule
finds in a recording what it would have found in front of the camera.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from vision.analytics.frame_clock import FrameClock
from vision.config.analytics import CameraAnalytics
from vision.config.rules import LASTING, RULE, RuleConfig
from vision.types import Event, FrameMeta, Result

_CLOCK_GRAIN_S: Final = 1e-3  # capture times are no more exact than this


class RuleStage:
    """Adds the events of rules to those that lines and zones have made.

    A rule about what lasts begins when it has lasted long enough and ends with it; one about an instant is an instant.
    Within its cooldown a rule says nothing: what lasts is reported when the cooldown is over, if it still lasts then.
    How many were never reported stands in the next event as `suppressed`.
    """

    def __init__(self, rules: Sequence[RuleConfig], sections: Mapping[str, CameraAnalytics]) -> None:
        """`sections`: the lines and zones that rules are about, by camera id."""
        self._cameras = {
            camera_id: _Camera(camera_id, _rules_of(camera_id, rules, section))
            for camera_id, section in sections.items()
        }

    def __call__(self, result: Result) -> Result:
        camera = self._cameras.get(result.meta.camera_id)
        if camera is None or not camera.rules:
            return result
        found = tuple(camera.update(result.events, result.meta))
        return replace(result, events=result.events + found) if found else result


def _rules_of(camera_id: str, rules: Sequence[RuleConfig], section: CameraAnalytics) -> list[_Rule]:
    early_s = {zone.name: zone.crowded_for_s for zone in section.zones}
    names = {line.name for line in section.lines} | set(early_s)
    return [
        _Rule(camera_id, rule, early_s.get(rule.condition.name, 0.0))
        for rule in rules
        if rule.condition.name in names and (rule.cameras is None or camera_id in rule.cameras)
    ]


class _Camera:
    """All rules of one camera, and its time."""

    def __init__(self, camera_id: str, rules: list[_Rule]) -> None:
        self.camera_id = camera_id
        self.rules = rules
        self._time = FrameClock()
        self._epoch: int | None = None

    def update(self, events: Sequence[Event], meta: FrameMeta) -> Iterator[Event]:
        self._time.advance(meta.captured_ns)
        now_s, new_epoch = self._time.now_s, meta.epoch != self._epoch
        self._epoch = meta.epoch
        for rule in self.rules:
            before = set(rule.states) if new_epoch else set()
            for event in events:
                yield from rule.take(event, now_s, meta.captured_ns)
                before.discard(event.track_id)
            for left_over in before:  # whoever made it has forgotten to end it
                rule.states.pop(left_over, None)
            yield from rule.look(now_s, meta.captured_ns)


@dataclass(slots=True)
class _State:
    """Something that lasts: a crowd, or one object's stay."""

    since_s: float
    begin: Event
    reported: bool = False


class _Rule:
    """One rule on one camera."""

    def __init__(self, camera_id: str, config: RuleConfig, crowded_for_s: float) -> None:
        """`crowded_for_s`: so long before its event a crowd has begun."""
        self.states: dict[int | None, _State] = {}  # by track id; a crowd's is None
        self._camera_id = camera_id
        self._name, self._when = config.name, " ".join(config.when.split())
        self._condition, self._cooldown_s = config.condition, config.cooldown_s
        self._crowded_for_s = crowded_for_s
        self._reported_s: float | None = None
        self._suppressed = 0

    def take(self, event: Event, now_s: float, at_ns: int) -> Iterator[Event]:
        """An event of this frame."""
        if (event.kind, event.name) != (self._condition.kind, self._condition.name):
            return
        if event.kind not in LASTING:
            if self._is_silent(now_s):
                self._suppressed += 1
            else:
                yield self._report("instant", event, now_s, at_ns)
        elif event.data.get("phase") == "end":
            yield from self._end(event, now_s, at_ns)
        else:
            already_s = float(event.data.get("stayed_s", self._crowded_for_s))
            self.states[event.track_id] = _State(now_s - already_s, event)

    def _end(self, event: Event, now_s: float, at_ns: int) -> Iterator[Event]:
        state = self.states.pop(event.track_id, None)
        if state is None:
            return
        if state.reported:
            yield self._event("end", event, at_ns, {"lasted_s": round(now_s - state.since_s, 3)})
        elif self._is_due(state, now_s) and self._is_silent(now_s):
            self._suppressed += 1

    def look(self, now_s: float, at_ns: int) -> Iterator[Event]:
        """Whatever has now lasted long enough."""
        for state in self.states.values():
            if not state.reported and self._is_due(state, now_s) and not self._is_silent(now_s):
                state.reported = True
                yield self._report("begin", state.begin, now_s, at_ns, lasted_s=round(now_s - state.since_s, 3))

    def _is_due(self, state: _State, now_s: float) -> bool:
        return now_s - state.since_s >= self._condition.for_s - _CLOCK_GRAIN_S

    def _is_silent(self, now_s: float) -> bool:
        return self._reported_s is not None and now_s - self._reported_s < self._cooldown_s - _CLOCK_GRAIN_S

    def _report(self, phase: Literal["begin", "instant"], event: Event, now_s: float, at_ns: int, **more: Any) -> Event:
        self._reported_s = now_s
        if self._suppressed:
            more["suppressed"] = self._suppressed
            self._suppressed = 0
        return self._event(phase, event, at_ns, more)

    def _event(self, phase: str, event: Event, at_ns: int, more: Mapping[str, Any]) -> Event:
        about = {"when": self._when, "event": event.kind, "place": event.name}
        data = {**event.data, "phase": phase, **about, **more}
        return Event(RULE, self._name, self._camera_id, event.track_id, at_ns, data)
