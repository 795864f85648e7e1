"""Messages between the program and the process that asks the language model, and the selection of events to ask about.

The stages of the program send questions over a socket, each with its images. The process prints its messages to
standard output as lines of JSON. If a stage cannot send a question, the stage reports this failure to the program over
a second socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from vision.config.language import DescribeConfig, Inquiry, VerifyConfig
from vision.messaging.codec import plain
from vision.messaging.schema import Description, EventMessage, Verdict

Purpose: TypeAlias = Literal["verify", "describe"]

STATEMENT: Final = "statement"
"""Kind of the events that report that a statement of `describe:` is true."""

LARGEST_IMAGE_BYTES: Final = 4 << 20
LARGEST_QUESTION_BYTES: Final = 8 << 20
"""Maximum size in bytes of all images of one question."""
IMAGE_BUDGET_BYTES: Final = 64 << 20
"""Maximum size in bytes of all images that wait in a stage, and of all images that wait for the server."""
MOST_TEXT: Final = 4000  # maximum number of characters of a description

_C = TypeVar("_C", bound=Inquiry)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question about an event or, if `id` is empty, about a camera. The images are sent with the question."""

    id: str
    purpose: Purpose
    check: str  # name of the entry of `verify:` or `describe:`
    camera: str
    epoch: int
    frame: int
    at: str
    at_monotonic_ns: int
    facts: Mapping[str, Any]  # what the prompt states about the event
    expires_ns: int  # time on the monotonic clock after which no answer is needed
    offsets_ms: Sequence[int]  # time from the event to each image
    cropped: bool


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The event that a question is about. `id` is empty if the event has no id."""

    id: str
    purpose: Purpose
    check: str  # name of the entry of `verify:` or `describe:`
    camera: str
    at: str
    kind: str
    name: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag="outcome"):
    """The outcome of a question that the server was asked: a verdict, a description, or an error."""

    id: str
    purpose: Purpose
    verdict: Verdict | None = None
    description: Description | None = None
    error: str = ""  # code of the error; empty if there is an answer


class Received(msgspec.Struct, frozen=True, kw_only=True, tag="received"):
    """A report that the process has received a question about an event. An `Outcome` or `Unasked` will follow."""

    subject: Subject


class Unasked(msgspec.Struct, frozen=True, kw_only=True, tag="unasked"):
    """A report that the server was not asked a question about an event, or that the process ended before the answer."""

    subject: Subject
    reason: str  # code of the reason


class Statement(msgspec.Struct, frozen=True, kw_only=True, tag="statement"):
    """A report that a statement of `describe:` has become true. The publisher sets the header of the event."""

    event: EventMessage
    until_s: float | None  # monotonic time until which the statement counts as true; None if it has no end


class TrueStatement(msgspec.Struct, frozen=True, kw_only=True):
    """A statement of `describe:` that counts as true, so that it is not checked."""

    check: str  # name of the entry of `describe:`
    camera: str
    until_s: float | None  # monotonic time until which the statement counts as true; None if it has no end


class LogLine(msgspec.Struct, frozen=True, kw_only=True, tag="log"):
    """A line for the log of the program. The level is WARNING if `is_problem` is True, and INFO otherwise."""

    text: str
    is_problem: bool


class Totals(msgspec.Struct, frozen=True, kw_only=True, tag="totals"):
    """Counters of the process since its start, and current measurements."""

    counters: Mapping[str, int]
    gauges: Mapping[str, int]


Line: TypeAlias = Received | Unasked | Outcome | Statement | LogLine | Totals

_questions = msgspec.msgpack.Decoder(Question)
_lines: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Line)
_to_msgpack = msgspec.msgpack.Encoder(enc_hook=plain)


def encode_question(question: Question) -> bytes:
    """Encode a question as MessagePack. Raise `TypeError` if its facts have unsupported types."""
    return _to_msgpack.encode(question)


def decode_question(data: bytes) -> Question:
    """Decode a question from MessagePack. Raise `msgspec.MsgspecError` if `data` is not a question."""
    return _questions.decode(data)


def subject_of(question: Question) -> Subject | None:
    """Return the event that a question is about, or None if the question is about a statement."""
    if not question.id:
        return None
    facts = question.facts
    return Subject(
        id=question.id,
        purpose=question.purpose,
        check=question.check,
        camera=question.camera,
        at=question.at,
        kind=str(facts.get("kind", "")),
        name=str(facts.get("name", "")),
    )


def failures_address(name: str) -> str:
    """Return the address to which stages report the questions that they could not send to the socket `name`."""
    return f"ipc://@{name}-failures"


def encode_line(line: Line) -> str:
    """Encode a message of the process as a line of JSON, without the line break."""
    return msgspec.json.encode(line).decode()


def decode_line(text: str) -> Line:
    """Decode a line that `encode_line` returned. Raise `msgspec.MsgspecError` if `text` is not such a line."""
    line: Line = _lines.decode(text)
    return line


def chosen(entries: Sequence[_C], *, camera: str, kind: str, name: str, data: Mapping[str, Any]) -> _C | None:
    """Return the first entry of `verify:` or `describe:` whose filters match an event. Return None if no entry matches.

    An absent filter matches every event. Events that end a state, and entries of `describe:` that check a statement,
    never match.

    Args:
        entries: the entries, in the order of the configuration.
        camera: id of the camera of the event.
        kind: kind of the event.
        name: name of the event's line, zone, or rule.
        data: data of the event, whose `phase` and `class` are read.
    """
    if data.get("phase") == "end":
        return None
    for entry in entries:
        matches = (
            (entry.cameras, camera),
            (entry.kinds, kind),
            (entry.names, name),
            (entry.classes, data.get("class")),
        )
        is_watch = isinstance(entry, DescribeConfig) and entry.statement is not None
        if not is_watch and all(allowed is None or value in allowed for allowed, value in matches):
            return entry
    return None


def waiting_entry(entries: Sequence[VerifyConfig], event: EventMessage) -> VerifyConfig | None:
    """Return the entry whose verdict must arrive before an event is published.

    Return None if the event does not wait.
    """
    entry = chosen(entries, camera=event.camera, kind=event.kind, name=event.name, data=event.data)
    return entry if entry is not None and entry.wait_s is not None else None


def questions_about(
    verify: Sequence[VerifyConfig], describe: Sequence[DescribeConfig], event: EventMessage
) -> dict[Purpose, VerifyConfig | DescribeConfig]:
    """Return the entries of `verify:` and `describe:` that ask about an event.

    If the event has no id, return no entries.
    """
    if event.id is None:
        return {}
    about: dict[str, Any] = {"camera": event.camera, "kind": event.kind, "name": event.name, "data": event.data}
    entries: dict[Purpose, VerifyConfig | DescribeConfig | None] = {
        "verify": chosen(verify, **about),
        "describe": chosen(describe, **about),
    }
    return {purpose: entry for purpose, entry in entries.items() if entry is not None}
