"""The `rules:` section: additional events, for chosen events or for states that last.

The grammar of ``when`` is::

    when     = KIND NAME [ "for" DURATION ]
    KIND     = "line_crossed" | "zone_entered" | "zone_left" | "crowded" | "dwelling"
    NAME     = the name of a line or zone under analytics
    DURATION = a number and ms, s, m, h or d, without a blank between them

`crowded` and `dwelling` are states, and may have a duration: since the zone became crowded, or the object entered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, Field

from vision.config.section import IDENTIFIER_TITLE, ConfigSection, Identifier, unique_names
from vision.config.wording import InvalidValue, Loc, did_you_mean, nearest, one_of, quoted

KINDS_OF_LINES: Final = ("line_crossed",)
KINDS_OF_ZONES: Final = ("zone_entered", "zone_left", "crowded", "dwelling")
LASTING: Final = ("crowded", "dwelling")
"""Kinds of states, which begin and end."""

RULE: Final = "rule"
"""Kind of the events that rules report."""

DURATION_FORMS: Final = "a duration such as 500ms, 10s, 5m, 2h or 1d"
WHEN_FORMS: Final = "KIND NAME, or KIND NAME for DURATION, such as crowded queue for 10s"

_KINDS: Final = (*KINDS_OF_LINES, *KINDS_OF_ZONES)
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNIT_WORDS: Final = {
    "ms": ("ms", "msec", "msecs", "millisecond", "milliseconds"),
    "s": ("s", "sec", "secs", "second", "seconds"),
    "m": ("m", "min", "mins", "minute", "minutes"),
    "h": ("h", "hr", "hrs", "hour", "hours"),
    "d": ("d", "day", "days"),
}
UNITS: Final = "the units are ms, s, m, h and d, without a blank before them"
_LONGEST_S: Final = 30 * 86400.0
_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,3})?)(?P<unit>ms|s|m|h|d)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

# The key of a zone that each state needs.
_NEEDED: Final[Mapping[str, str]] = {"crowded": "crowd_threshold", "dwelling": "dwell_s"}
_ALREADY_S: Final[Mapping[str, str]] = {"crowded": "crowded_for_s", "dwelling": "dwell_s"}

_Conflict: TypeAlias = tuple[Loc, str]


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition of a rule. `for_s` is 0 without a duration."""

    kind: str
    name: str
    for_s: float


def duration_s(text: str) -> float:
    """Return the seconds of ``500ms``, ``10s``, ``5m``, ``2h`` or ``1d``.

    Raises:
        InvalidValue: none of these, or more than 30 days.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidValue(DURATION_FORMS, advice=_advice_for_duration(text))
    seconds = float(match["number"]) * _UNIT_S[match["unit"]]
    if seconds > _LONGEST_S:
        raise InvalidValue(DURATION_FORMS, advice="at most 30d")
    return seconds


def _advice_for_duration(text: str) -> str:
    """Return the duration that was probably meant, or the valid units."""
    match = re.fullmatch(r"(?P<number>[0-9]{1,6}(?:\.[0-9]{1,3})?) ?(?P<unit>[a-z]*)", text.lower())
    if match is None:
        return ""
    unit = "s" if not match["unit"] else next((u for u, words in _UNIT_WORDS.items() if match["unit"] in words), None)
    if unit is None:
        return f"the unit {quoted(match['unit'])} does not exist: {UNITS}"
    return f"did you mean '{match['number']}{unit}'? {UNITS}"


def parse_when(text: str) -> Condition:
    """Parse the `when` of a rule.

    Raises:
        InvalidValue: It does not follow the grammar.
    """
    words = text.split()
    if len(words) != 2 and not (len(words) > 3 and words[2] == "for"):
        raise InvalidValue(WHEN_FORMS, advice=_advice_for(words))
    kind, name = words[:2]
    if kind not in _KINDS:
        raise InvalidValue(f"{WHEN_FORMS}; KIND is {one_of(_KINDS)}", advice=did_you_mean(kind, _KINDS))
    if not _NAME.fullmatch(name):
        raise InvalidValue(f"{WHEN_FORMS}; NAME is {IDENTIFIER_TITLE}")
    if len(words) == 2:
        return Condition(kind, name, 0.0)
    if kind not in LASTING:
        raise InvalidValue(f"{kind} NAME alone", advice=f"it has no duration; {' and '.join(LASTING)} last")
    return Condition(kind, name, duration_s(" ".join(words[3:])))


def _advice_for(words: list[str]) -> str:
    if words and words[0] not in _KINDS:
        return did_you_mean(words[0], _KINDS)
    if len(words) == 3:
        return "'for' stands before the duration" if words[2] != "for" else "a duration follows 'for', such as 10s"
    return "the name of a line or zone follows the kind" if len(words) == 1 else ""


def _check_when(text: str) -> str:
    parse_when(text)
    return text


def _check_duration(text: str) -> str:
    duration_s(text)
    return text


class RuleConfig(ConfigSection):
    """A rule that reports an additional event."""

    name: Identifier = Field(description="name of the rule in its events")
    when: Annotated[str, AfterValidator(_check_when)] = Field(
        title=WHEN_FORMS,
        description="KIND NAME [for DURATION]; KIND is line_crossed, zone_entered, zone_left, crowded or dwelling, "
        "NAME that of a line or zone",
    )
    cameras: Annotated[tuple[Identifier, ...], AfterValidator(unique_names)] | None = Field(
        default=None, description="ids of cameras; all with a line or zone of this name if absent"
    )
    cooldown: Annotated[str, AfterValidator(_check_duration)] = Field(
        default="0s",
        title=DURATION_FORMS,
        description="minimum time between two events of the rule on one camera",
    )

    @property
    def condition(self) -> Condition:
        """Return `when`, parsed."""
        return parse_when(self.when)

    @property
    def cooldown_s(self) -> float:
        """Return `cooldown` in seconds."""
        return duration_s(self.cooldown)


# --- conflicts -------------------------------------------------------------------------------------------------------


def rule_conflicts(rule: Mapping[str, object], analytics: object) -> Iterator[_Conflict]:
    """Yield lines and zones that a rule names and that are absent, of another kind, or never report its event."""
    if not isinstance(analytics, Mapping | None):
        return
    analytics = analytics or {}
    when, cameras = rule.get("when"), rule.get("cameras")
    try:
        condition = parse_when(when) if isinstance(when, str) else None
    except InvalidValue:
        return
    if condition is None:
        return
    shapes = {str(camera): dict(_shapes(section)) for camera, section in analytics.items()}
    if isinstance(cameras, tuple):
        unknown = [index for index, camera in enumerate(cameras) if camera not in shapes]
        for index in unknown:
            yield ("cameras", index), "expected a camera that has lines or zones under analytics"
        shapes = {camera: shapes[camera] for camera in map(str, cameras) if camera in shapes}
        if unknown:
            return
    having = {camera: of_camera[condition.name] for camera, of_camera in shapes.items() if condition.name in of_camera}
    missing = [camera for camera in shapes if camera not in having] if isinstance(cameras, tuple) else []
    if not having or missing:
        yield ("when",), _no_such_shape(condition.name, shapes, missing)
        return
    for camera, (key, shape) in having.items():
        yield from ((("when",), text) for text in _misfits(condition, f"analytics.{camera}", key, shape))


def _shapes(section: object) -> Iterator[tuple[str, tuple[str, Mapping[str, object]]]]:
    for key in ("lines", "zones"):
        listed = section.get(key) if isinstance(section, Mapping) else None
        for shape in listed if isinstance(listed, tuple) else ():
            if isinstance(shape, Mapping) and isinstance(name := shape.get("name"), str):
                yield name, (key, shape)


def _no_such_shape(name: str, shapes: Mapping[str, Mapping[str, object]], missing: list[str]) -> str:
    names = sorted({shape for of_camera in shapes.values() for shape in of_camera})
    where = f" of camera {one_of(missing)}" if missing else ""
    expected = f"; expected {one_of(names)}" if names else "; expected some under analytics"
    near = nearest(name, names)
    advice = f" (did you mean {quoted(near)}?)" if near is not None and near != name else ""
    return f"no line or zone{where} is called {quoted(name)}{expected}{advice}"


def _misfits(condition: Condition, place: str, key: str, shape: Mapping[str, object]) -> Iterator[str]:
    """Yield the reasons why a line or zone never reports the rule's event, or reports it too late."""
    kinds = KINDS_OF_LINES if key == "lines" else KINDS_OF_ZONES
    if condition.kind not in kinds:
        shape_kind = key.removesuffix("s")
        yield f"{condition.name} in {place} is a {shape_kind}; expected {one_of(kinds)}, got {quoted(condition.kind)}"
        return
    needed = _NEEDED.get(condition.kind)
    if needed is not None and shape.get(needed) is None:
        yield f"{condition.name} in {place} has no {needed}, so it is never {condition.kind}"
        return
    already_s = shape.get(_ALREADY_S.get(condition.kind, ""))
    if condition.for_s and isinstance(already_s, int | float) and condition.for_s < already_s:
        option = _ALREADY_S[condition.kind]
        yield f"expected at least the {already_s:g}s that {option} of {condition.name} in {place} has"
