"""Functions that build the prompt and the expected form of the answer for a question."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from vision.config.language import DescribeConfig, VerifyConfig
from vision.language.messages import Question

TRUE, FALSE = "yes", "no"  # the possible answers to the question whether a statement is true
_MOST_FACTS: Final = 4000  # characters


def prompt_of(entry: VerifyConfig | DescribeConfig, question: Question) -> str:
    """Return the prompt: the request, the known facts, what the images show, and the form of the answer."""
    parts = [_request(entry), _facts(question), _images(question)]
    answers = answers_of(entry)
    if answers and is_json(entry):
        expected = f'{{"answer": one of {", ".join(answers)}, "confidence": a number from 0 to 1}}'
        parts.append(f"Answer only with JSON: {expected}")
    elif answers:
        parts.append(f"Answer with one word: {', '.join(answers)}")
    return "\n".join(part for part in parts if part)


def answers_of(entry: VerifyConfig | DescribeConfig) -> tuple[str, ...]:
    """Return the possible answers, or an empty tuple if the answer is free text."""
    if isinstance(entry, VerifyConfig):
        return entry.answers
    return () if entry.statement is None else (TRUE, FALSE)


def is_json(entry: VerifyConfig | DescribeConfig) -> bool:
    """Return True if an entry with possible answers requires a JSON object with an answer and its confidence."""
    return entry.format == "json"


def schema_of(answers: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON Schema of an answer with its confidence."""
    confidence = {"type": "number", "minimum": 0, "maximum": 1}
    return {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": list(answers)}, "confidence": confidence},
        "required": ["answer", "confidence"],
        "additionalProperties": False,
    }


def _request(entry: VerifyConfig | DescribeConfig) -> str:
    if isinstance(entry, DescribeConfig) and entry.statement is not None:
        return f"Is this statement about the camera true? {entry.statement}"
    return entry.prompt


def _facts(question: Question) -> str:
    facts = {"camera": question.camera, "at": question.at, **question.facts}
    return f"What is known: {msgspec.json.encode(facts).decode()[:_MOST_FACTS]}"


def _images(question: Question) -> str:
    number = len(question.offsets_ms)
    what = "the object with its surroundings" if question.cropped else "the view of the camera"
    if number == 1:
        return f"The image shows {what}."
    times = ", ".join(f"{offset} ms" for offset in question.offsets_ms)
    return f"The {number} images show {what} at these times after the event: {times}."
