"""The sections `language:`, `verify:`, and `describe:` of camera.yaml, and their conflicts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from vision.config.fields import (
    ClassNames,
    ConfigSection,
    Conflict,
    Day,
    FolderPath,
    Hour,
    Identifier,
    Identifiers,
    Minute,
    free_of,
    unique_names,
)
from vision.config.source_address import is_port
from vision.config.wording import UNPRINTABLE, InvalidValue, Loc, did_you_mean, one_of, with_advice

_URL_FORMS: Final = "the base URL of the server, such as http://127.0.0.1:8000/v1"
_LONGEST_ANSWER: Final = 40
_KEYS_OF_REQUESTS: Final = ("messages", "model", "n", "stream")


def check_server_url(url: str) -> str:
    """Return `url` if it is an HTTP or HTTPS base URL; otherwise, raise `InvalidValue`.

    An account, a query, a fragment, and the path of an endpoint are not allowed.
    """
    if UNPRINTABLE.search(url) or " " in url:
        raise InvalidValue("server-url", _URL_FORMS)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidValue("server-url", _URL_FORMS) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or (port is not None and not is_port(str(port))):
        raise InvalidValue("server-url", _URL_FORMS)
    if parts.username is not None or parts.password is not None:
        raise InvalidValue("server-account", "a URL without an account", "write the key as `api_key: ${NAME}`")
    if parts.query or parts.fragment:
        raise InvalidValue("server-url", f"{_URL_FORMS}, without a query")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise InvalidValue("server-url", _URL_FORMS, "without /chat/completions")
    return url


def check_extra_body(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `body` if it has no keys that the program sets itself; otherwise, raise `InvalidValue`."""
    if any(key in body for key in _KEYS_OF_REQUESTS):
        raise InvalidValue("extra-body", f"keys other than {one_of(_KEYS_OF_REQUESTS)}")
    return body


def check_answers(answers: tuple[str, ...]) -> tuple[str, ...]:
    """Return `answers` if they are different, and each consists of words; otherwise, raise `InvalidValue`."""
    unique_names(answers)
    if any(len(answer) > _LONGEST_ANSWER or not re.fullmatch(r"\w+( \w+)*", answer) for answer in answers):
        raise InvalidValue("answers", f"answers of letters and digits, with at most {_LONGEST_ANSWER} characters")
    if len({answer.lower() for answer in answers}) < len(answers):
        raise InvalidValue("answers", "answers that differ in more than upper and lower case")
    return answers


Answers = Annotated[tuple[str, ...], AfterValidator(check_answers)]
Prompt = Annotated[str, Field(min_length=1, max_length=10_000)]
ServerUrl = Annotated[str, AfterValidator(check_server_url), Field(title=_URL_FORMS)]


class LanguageServer(ConfigSection):
    """A server of a language model, with OpenAI's API for chat completions."""

    url: ServerUrl = Field(examples=["http://127.0.0.1:8000/v1"])
    """Base URL of the API, usually with /v1 at the end."""
    model: str | None = Field(default=None, min_length=1)
    """Name of the model; the first model of the server if absent."""
    api_key: str | None = Field(
        default=None, min_length=1, repr=False, title="${NAME}, an environment variable that holds the key"
    )
    """Key of the server, from the environment: ${NAME}; not sent if absent."""
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Maximum time in seconds for one answer, including the connection."""
    parallel: int | None = Field(default=None, ge=1, le=64)
    """Maximum number of requests at the same time; if absent, up to 8, or fewer if the server handles fewer at a
    time."""
    max_image_px: int = Field(default=768, ge=64, le=8192)
    """Maximum length in pixels of the longer side of an image; larger images are scaled down."""
    extra_body: Annotated[Mapping[str, Any], AfterValidator(check_extra_body)] = Field(default_factory=dict)
    """Additional keys of each request, such as options of the server; null removes a key that the program sends."""


class LanguageConfig(LanguageServer):
    """The server of a language model, and limits of the requests to it."""

    queue: int = Field(default=64, ge=1, le=10_000)
    """Maximum number of events that wait for the server; each camera has an equal share, and its newest events come
    first."""
    max_age_s: Hour = 30.0
    """Maximum age in seconds of an event when the server is asked about it."""
    ledger: FolderPath | None = None
    """Folder of the ledger, which keeps each prompt and answer and the hashes of the images, relative to this file;
    none if absent."""
    ledger_mb: int = Field(default=100, ge=1, le=1_000_000)
    """Maximum size of the ledger in megabytes; the older half is deleted first."""


class Inquiry(ConfigSection):
    """Events about which the language model is asked, and the frames to send. A missing list chooses all events."""

    name: Identifier
    """Name of this entry in messages, counters, and the ledger."""
    cameras: Identifiers | None = None
    """Ids of the cameras; all if absent."""
    kinds: Identifiers | None = None
    """Kinds of events, such as rule or zone_entered; all if absent."""
    names: Identifiers | None = None
    """Names of lines, zones, and rules whose events are chosen; all if absent."""
    classes: ClassNames | None = None
    """Classes of the object of the event; all if absent."""
    frames: int = Field(default=1, ge=1, le=16)
    """Number of frames; the first is the frame of the event, or the next one for which there is room."""
    spacing_s: Minute = 0.5
    """Time in seconds between two of the frames."""
    crop: bool = False
    """Cut out the object of the event, if it has one, instead of sending whole frames."""
    margin: float = Field(default=0.25, ge=0, le=10)
    """Margin on every side of the object, as a fraction of its width and height."""


Section: TypeAlias = Mapping[str, object]


def verify_conflicts(section: Section) -> Iterator[Conflict]:
    """Yield the conflicts between the keys of an entry of `verify:`."""
    for key in ("on_timeout", "keep"):
        if section.get(key) is not None and section.get("wait_s") is None:
            yield Conflict((key,), "no-effect", "has no effect without wait_s")
    frames, spacing_s, wait_s = section.get("frames", 1), section.get("spacing_s", 0.5), section.get("wait_s")
    if isinstance(frames, int) and isinstance(spacing_s, int | float) and isinstance(wait_s, int | float):
        last_s = (frames - 1) * spacing_s
        if last_s >= wait_s:
            yield Conflict(("wait_s",), "short-wait", f"expected more than the {last_s:g} s until the last frame")
    keep, answers = section.get("keep"), section.get("answers", ("yes", "no"))
    if not isinstance(keep, tuple) or not isinstance(answers, tuple):
        return
    for index, answer in enumerate(keep):
        if answer not in answers:
            yield Conflict(("keep", index), "unknown-answer", f"expected {one_of([str(each) for each in answers])}")


def describe_conflicts(section: Section) -> Iterator[Conflict]:
    """Yield the conflicts between the keys of an entry of `describe:`."""
    for given, other in (
        ("statement", "every_s"),
        ("every_s", "statement"),
        ("again_after_s", "statement"),
        ("format", "statement"),
    ):
        if section.get(given) is not None and section.get(other) is None:
            yield Conflict((given,), "given-alone", f"expected {other} too, because the keys are only valid together")
    for key in ("prompt", "kinds", "names", "classes", "crop", "margin"):
        if section.get("statement") is not None and section.get(key) is not None:
            yield Conflict((key,), "no-effect", "has no effect with statement, which is not about an event")


class VerifyConfig(Inquiry):
    """Events that the language model confirms or refutes."""

    prompt: Prompt
    """Question about the event; `answers` contains its possible answers."""
    answers: Answers = ("yes", "no")
    """Possible answers."""
    format: Literal["json", "token"] = "json"
    """Form of the answer; json: the answer and its confidence, as JSON; token: only the answer, which is faster."""
    wait_s: Hour | None = None
    """Maximum time in seconds for which the publication of the event waits for the answer; if absent, the event is
    published immediately, and again with the answer."""
    on_timeout: Literal["send", "drop"] = "send"
    """Treatment of an event without an answer after `wait_s`: publish it without a verdict, or not at all."""
    keep: Answers | None = None
    """Answers after which a waiting event is published; events with other answers are dropped; all answers if
    absent."""

    _consistent = free_of(verify_conflicts)


class DescribeConfig(Inquiry):
    """Events that the language model describes, or a statement that it checks at regular intervals."""

    prompt: Prompt = "Describe in one sentence what happens."
    """Request for a description; it has no effect with `statement`."""
    statement: str | None = Field(default=None, min_length=1, max_length=2000)
    """Statement about a camera, such as "The gate is open."; if set, frames are checked every `every_s` seconds until
    the statement is true, and then an event reports this."""
    every_s: Day | None = None
    """Seconds between two checks of `statement`."""
    format: Literal["json", "token"] = "json"
    """Form of the answer about `statement`; json: the answer and its confidence, as JSON; token: only the answer, which
    is faster."""
    again_after_s: float | None = Field(default=None, gt=0, le=30 * 86_400)
    """Seconds after which a statement that was true is checked again; not until the next start if absent."""

    _consistent = free_of(describe_conflicts)


def language_conflicts(config: Section, known_kinds: Sequence[str] | None) -> Iterator[Conflict]:
    """Yield the conflicts of `verify:` and `describe:` with each other and with the rest of a camera.yaml.

    `known_kinds` contains the kinds of events of the pipeline. It is empty if the pipeline has no events, and None if
    the kinds are not known.
    """
    cameras = _texts(config.get("cameras"), "id")
    names: dict[str, Loc] = {}
    for key in ("verify", "describe"):
        entries = config.get(key)
        for index, entry in enumerate(entries if isinstance(entries, tuple) else ()):
            if not isinstance(entry, Mapping):
                continue
            loc: Loc = (key, index)
            if config.get("language") is None:
                yield Conflict(loc, "needs-language", "expected `language: {url: ...}` too, the server that is asked")
            name = entry.get("name")
            if isinstance(name, str) and names.setdefault(name, loc) != loc:
                yield Conflict((*loc, "name"), "duplicate-name", "expected a different name in each entry")
            conflicts = verify_conflicts if key == "verify" else describe_conflicts
            yield from (conflict.below(*loc) for conflict in conflicts(entry))
            if known_kinds is not None and not known_kinds and entry.get("statement") is None:
                yield Conflict(loc, "wrong-pipeline", "the pipeline has no events; expected pipeline: count")
            yield from _unknown(entry, loc, "cameras", "unknown-camera", cameras)
            if known_kinds:
                yield from _unknown(entry, loc, "kinds", "unknown-kind", known_kinds)
                yield from _unknown(entry, loc, "names", "unknown-name", _event_names(config))


def _unknown(entry: Section, loc: Loc, key: str, code: str, known: Sequence[str]) -> Iterator[Conflict]:
    written = entry.get(key)
    for index, name in enumerate(written if isinstance(written, tuple) else ()):
        if isinstance(name, str) and name not in known and known:
            advice = did_you_mean(name, known)
            yield Conflict((*loc, key, index), code, with_advice(f"expected {one_of(sorted(set(known)))}", advice))


def _event_names(config: Section) -> list[str]:
    """Return the names of all lines, zones, and rules."""
    analytics = config.get("analytics")
    sections = (
        [each for each in analytics.values() if isinstance(each, Mapping)] if isinstance(analytics, Mapping) else []
    )
    shapes = [name for each in sections for key in ("lines", "zones") for name in _texts(each.get(key), "name")]
    return [*shapes, *_texts(config.get("rules"), "name")]


def _texts(entries: object, key: str) -> list[str]:
    sections = [entry for entry in (entries if isinstance(entries, tuple) else ()) if isinstance(entry, Mapping)]
    return [text for section in sections if isinstance(text := section.get(key), str)]
