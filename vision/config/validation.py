"""Conversion of pydantic's errors to faults of a file, in plain language.

Messages show values as they are written in the file, so they contain no secrets from the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vision.config.document import Document, Unreadable
from vision.config.fields import IDENTIFIER_TITLE, INCONSISTENT
from vision.config.schema import Schema, expectation, key_paths, properties_of, schema_at
from vision.config.wording import InvalidValue, Loc, did_you_mean, nearest, one_of, quoted, with_advice
from vision.errors import Fault

RENAMED: Final[Mapping[str, str]] = {
    "cameras[].via": "reader",
    "cameras[].staleness_s": "max_frame_age_s",
    "detect.score": "score_threshold",
    "detect.iou": "iou_threshold",
    "detect.slots": "batches_in_flight",
    "analytics.*.zones[].crowded_above": "crowd_threshold",
    "cascade.score": "score_threshold",
    "snapshots.most_files": "max_files",
    "snapshots.most_mb": "max_mb",
    "snapshots.longest_side_px": "max_side_px",
    "publish.keep_events": "max_events",
    "state": "state_dir",
    "nms.iou": "iou_threshold",  # model.yaml
}
"""New name of each renamed key, by the path of the old key."""

SYNONYMS: Final[Mapping[str, str]] = {
    "cameras[].name": "id",
    "cameras[].url": "source",
    "cameras[].path": "source",
    "detect.confidence": "score_threshold",
    "detect.threshold": "score_threshold",
    "analytics.*.zones[].points": "polygon",
    "analytics.*.zones[].coordinates": "polygon",
    "analytics.*.lines[].polygon": "points",
    "analytics.*.ground.polygon": "points",
}
"""Valid key for each wrong name that users are likely to write, by the path of the wrong name."""


def key_path(loc: Loc) -> str:
    """Return the path of a key without indices and camera ids, such as ``analytics.*.zones[].points``.

    `RENAMED`, the table of keys with new names, contains such paths.
    """
    parts = ["[]" if isinstance(part, int) else f".{part}" for part in loc]
    if len(loc) > 1 and loc[0] == "analytics":
        parts[1] = ".*"
    return "".join(parts).removeprefix(".")


_KEY: Final = "[key]"  # pydantic's mark for an error in the key of a mapping


@dataclass(frozen=True, slots=True)
class ErrorContext:
    """One error from pydantic, with the document in which it occurred and the schema of that document."""

    loc: Loc
    details: Mapping[str, Any]
    document: Document
    schema: Schema
    part: Schema  # part of the schema that describes the value
    value: object
    got: str  # the value as text

    @property
    def expected(self) -> str:
        return expectation(self.schema, self.part)


def validation_faults(error: ValidationError, document: Document, schema: Schema) -> Iterator[Fault]:
    """Yield a fault for each of pydantic's errors, except errors that only result from a fault reported elsewhere."""
    for details in error.errors(include_url=False, include_input=False):
        loc, phrase = _in_document(details["loc"], document), _PHRASES.get(details["type"], _expected)
        if details["type"] == "missing" and isinstance(loc[-1], int):  # an entry is missing in a list of fixed length
            loc, phrase = loc[:-1], _expected
        node = document.node(loc)
        value = node.value if node is not None else None
        if details["type"] == INCONSISTENT or isinstance(value, Unreadable):
            continue
        part, got = schema_at(schema, loc), document.shown(loc)
        text = phrase(ErrorContext(loc, details.get("ctx", {}), document, schema, part, value, got))
        if text:
            yield document.fault(loc, _code(details), text)


def _code(details: ErrorDetails) -> str:
    if details["type"] == "value_error":
        return str(details["ctx"]["error"].code)
    return {"extra_forbidden": "unknown-key"}.get(details["type"], details["type"].replace("_", "-"))


def _in_document(error_loc: Loc, document: Document) -> Loc:
    """Return the location of a pydantic error in the document, without the parts that pydantic adds.

    Pydantic adds marks for keys and for the branches of a union. The mark of a branch that is a section must be in
    brackets, because it could also be one of the section's keys.
    """
    loc: Loc = ()
    for part in error_loc:
        if isinstance(part, str) and part.startswith("[") and part != _KEY:
            continue
        node = document.node(loc)
        if node is None or isinstance(node.value, dict if isinstance(part, str) else tuple):
            loc = (*loc, part)
    return loc[:-1] if loc and loc[-1] == _KEY else loc


# --- phrases ----------------------------------------------------------------------------------------------------------


def _expected(context: ErrorContext) -> str:
    return with_advice(f"expected {context.expected}, got {context.got}", _advice(context))


def _advice(context: ErrorContext) -> str:
    loc, value, part = context.loc, context.value, context.part
    kind = part.get("type")
    if loc == ("cameras",) and isinstance(value, dict):
        return f"a list, in which each camera begins with {quoted('- id: ' + next(iter(value), 'NAME'))}"
    if loc[-1:] == ("source",) and type(value) is int:
        return f"USB camera {value} is /dev/video{value}"
    if value is None and kind in ("object", "array") and "default" in part:
        return "omit the key to use its defaults"
    if isinstance(value, str):
        return _advice_for_text(value, part)
    if isinstance(value, bool | int | float) and kind == "string" and loc[-1:] != ("password",) and "enum" not in part:
        return f"as text: {quoted(context.got)}"
    return ""


def _advice_for_text(value: str, part: Schema) -> str:
    branches = [part, *part.get("oneOf", ())]
    choices = [choice for branch in branches for choice in (*branch.get("enum", ()), branch.get("const")) if choice]
    if choices:
        return did_you_mean(value, choices)
    if part.get("type") == "boolean":
        word = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower())
        return f"did you mean {word}?" if word else ""
    if part.get("type") in ("integer", "number"):
        with suppress(ValueError):
            float(value)
            return "without quotes"
    return ""


def _pattern(context: ErrorContext) -> str:
    if not isinstance(context.value, str):  # the key itself, not its value
        return f"expected {IDENTIFIER_TITLE}, got {quoted(str(context.loc[-1]))}"
    return _expected(context)


def _meant(loc: Loc, properties: Mapping[str, object]) -> str | None:
    """Return the valid key that a user probably meant by the unknown key at `loc`, or None if there is none."""
    path = key_path(loc)
    key = RENAMED.get(path) or SYNONYMS.get(path)
    return key if key in properties else nearest(str(loc[-1]), properties)


def _missing(context: ErrorContext) -> str:
    base, parent = context.loc[:-1], context.document.node(context.loc[:-1])
    properties = properties_of(context.schema, schema_at(context.schema, base))
    unknown = [key for key in parent.keys if key not in properties] if parent is not None else []
    if any(_meant((*base, key), properties) == context.loc[-1] for key in unknown):
        return ""  # the misspelled key is already reported
    return f"missing; expected {context.expected}"


def _unknown(context: ErrorContext) -> str:
    properties = properties_of(context.schema, schema_at(context.schema, context.loc[:-1]))
    meant = _meant(context.loc, properties)
    if meant is not None and key_path(context.loc) in RENAMED:
        return f"unknown key: renamed to {quoted(meant)}"
    if meant is not None:
        return f"unknown key (did you mean {quoted(meant)}?)"
    elsewhere = [path for path, _, _ in key_paths(context.schema) if path.rpartition(".")[2] == context.loc[-1]]
    if elsewhere:
        return f"unknown key here (did you mean {one_of(elsewhere)}?)"
    return f"unknown key; expected {one_of(list(properties))}"


def _too_short(context: ErrorContext) -> str:
    """Describe a list that is too short.

    Return an empty string if the list has enough entries in the file, because the invalid entries are reported
    separately.
    """
    entries = context.value
    return "" if isinstance(entries, tuple) and len(entries) >= context.details["min_length"] else _expected(context)


def _refused(context: ErrorContext) -> str:
    refusal = context.details["error"]
    assert isinstance(refusal, InvalidValue), "validators of this package raise InvalidValue"
    got = f", got {context.got}" if isinstance(context.value, str) else ""
    return with_advice(f"expected {refusal.expected}{got}", refusal.advice)


_PHRASES: Final[Mapping[str, Callable[[ErrorContext], str]]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "value_error": _refused,
    "string_pattern_mismatch": _pattern,
    "too_short": _too_short,
}
"""Function that describes each type of error. `_expected` describes all other types."""
