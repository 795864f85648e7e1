"""The `rules:` section: rules that report selected events, or states that last a given time.

The grammar of ``when`` is::

    when     = KIND NAME [ "for" DURATION ]
    KIND     = "line_crossed" | "zone_entered" | "zone_left" | "crowded" | "dwelling"
    NAME     = name of a line or zone under analytics
    DURATION = a number followed by ms, s, m, h, or d, without a space

`crowded` and `dwelling` are states and can have a duration, counted from when the zone became crowded or the object
entered the zone.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple

from pydantic import Field

from vision.config.fields import IDENTIFIER, IDENTIFIER_TITLE, ConfigSection, Identifier, Identifiers, parsed_by
from vision.config.wording import InvalidValue, did_you_mean, one_of, quoted

KINDS_OF_LINES: Final = ("line_crossed",)
KINDS_OF_ZONES: Final = ("zone_entered", "zone_left", "crowded", "dwelling")
LASTING: Final = ("crowded", "dwelling")
"""Kinds of events that report the start and the end of a state."""

RULE: Final = "rule"
"""Kind of the events that rules report."""

_DURATION_FORMS: Final = "a duration such as 500ms, 10s, 5m, 2h or 1d"
_WHEN_FORMS: Final = "KIND NAME, or KIND NAME for DURATION, such as crowded queue for 10s"

_KINDS: Final = (*KINDS_OF_LINES, *KINDS_OF_ZONES)
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNIT_WORDS: Final = {
    "ms": "ms msec msecs millisecond milliseconds",
    "s": "s sec secs second seconds",
    "m": "m min mins minute minutes",
    "h": "h hr hrs hour hours",
    "d": "d day days",
}
_UNITS: Final = "the units are ms, s, m, h and d, without a space before them"
_LONGEST_S: Final = 30 * 86400.0
_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,3})?)(?P<unit>ms|s|m|h|d)")


class Condition(NamedTuple):
    """The parsed condition of a rule. `for_s` is 0 if the condition has no duration."""

    kind: str
    name: str
    for_s: float


def duration_s(text: str) -> float:
    """Convert a text such as ``500ms`` to seconds. Raise `InvalidValue` if it is malformed, or exceeds 30 days."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidValue("duration", _DURATION_FORMS, _advice_for_duration(text))
    seconds = float(match["number"]) * _UNIT_S[match["unit"]]
    if seconds > _LONGEST_S:
        raise InvalidValue("long-duration", _DURATION_FORMS, "at most 30d")
    return seconds


def _advice_for_duration(text: str) -> str:
    """Return advice for an invalid duration: the probably intended duration, the valid units, or an empty string."""
    match = re.fullmatch(r"(?P<number>[0-9]{1,6}(?:\.[0-9]{1,3})?) ?(?P<unit>[a-z]*)", text.lower())
    if match is None:
        return ""
    written = match["unit"] or "s"
    unit = next((unit for unit, words in _UNIT_WORDS.items() if written in words.split()), None)
    if unit is None:
        return f"the unit {quoted(written)} does not exist: {_UNITS}"
    return f"did you mean '{match['number']}{unit}'? {_UNITS}"


def parse_when(text: str) -> Condition:
    """Parse the key `when` of a rule. Raise `InvalidValue` if its text does not follow the grammar of this module."""
    words = text.split()
    if len(words) != 2 and not (len(words) > 3 and words[2] == "for"):
        raise InvalidValue("when-form", _WHEN_FORMS, _advice_for(words))
    kind, name = words[:2]
    if kind not in _KINDS:
        raise InvalidValue("kind", f"{_WHEN_FORMS}; KIND is {one_of(_KINDS)}", did_you_mean(kind, _KINDS))
    if not IDENTIFIER.fullmatch(name):
        raise InvalidValue("name", f"{_WHEN_FORMS}; NAME is {IDENTIFIER_TITLE}")
    if len(words) == 2:
        return Condition(kind, name, 0.0)
    if kind not in LASTING:
        raise InvalidValue("no-duration", f"{kind} NAME alone", f"only {' and '.join(LASTING)} have a duration")
    return Condition(kind, name, duration_s(" ".join(words[3:])))


def _advice_for(words: list[str]) -> str:
    if words and words[0] not in _KINDS:
        return did_you_mean(words[0], _KINDS)
    if len(words) == 3:
        return "write 'for' before the duration" if words[2] != "for" else "write a duration after 'for', such as 10s"
    return "write the name of a line or zone after the kind" if len(words) == 1 else ""


class RuleConfig(ConfigSection):
    """A rule that reports an additional event."""

    name: Identifier
    """Name of the rule in its events."""
    when: Annotated[str, parsed_by(parse_when)] = Field(title=_WHEN_FORMS)
    """KIND NAME [for DURATION]; KIND: line_crossed, zone_entered, zone_left, crowded, dwelling; NAME: line or zone."""
    cameras: Identifiers | None = None
    """Ids of cameras to which the rule applies; if absent, all cameras with a line or zone called NAME."""
    cooldown: Annotated[str, parsed_by(duration_s)] = Field(default="0s", title=_DURATION_FORMS)
    """Minimum time between two events of the rule on one camera."""

    @property
    def condition(self) -> Condition:
        """The condition that `when` describes."""
        return parse_when(self.when)

    @property
    def cooldown_s(self) -> float:
        """The value of `cooldown` in seconds."""
        return duration_s(self.cooldown)
