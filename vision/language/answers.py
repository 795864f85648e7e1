"""Functions that decode and check the responses of a language model server. A response can contain anything."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jsonschema
import msgspec
from jsonschema.validators import Draft202012Validator
from referencing import Registry

from vision.errors import InvalidAnswer
from vision.language.refusals import shown

_SHOWN: Final = 80
_THINK, _THINK_END, _FENCE = "<think>", "</think>", "```"
_LANGUAGE: Final = re.compile(r"\w*[ \t\r]*\n|json\b", re.IGNORECASE)  # what can follow the start of a code fence


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text
    finish_reason: str | None = None
    logprobs: Any = None


class _Response(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


@dataclass(frozen=True, slots=True)
class Completion:
    """The part of a response that the program uses."""

    text: str
    cut_short: bool  # True if the server ended the answer at the maximum number of tokens
    model: str | None  # name of the model; None if the response does not contain it
    tokens: int | None  # number of generated tokens; None if the response does not contain it
    first_tokens: Sequence[tuple[str, float]]  # the most probable first tokens, and their logarithmic probabilities


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected form of an answer: JSON that matches `schema`, one of `choices`, or, if both are unset, any text."""

    schema: Mapping[str, Any] | None = None
    choices: tuple[str, ...] = ()

    def parse(self, completion: Completion) -> tuple[Any, float | None]:
        """Return the parsed answer, and the probability of the chosen word.

        The probability is None if `choices` is empty, or if the response does not contain the probability.

        Raises:
            InvalidAnswer: the answer does not have the expected form.
        """
        if self.schema is not None:
            return _parse_json(completion, self.schema), None
        if self.choices:
            return _parse_choice(completion, self.choices)
        return completion.text, None


def model_names(body: bytes) -> list[str]:
    """Return the names in a server's list of models. Raise `InvalidAnswer` if `body` lists no model."""
    try:
        names = [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidAnswer(f"expected a list of models in JSON; {_start(body)}: {error}", code="rubbish") from error
    if not names:
        raise InvalidAnswer("expected a list of models; the list is empty", code="no-model-listed")
    return names


def decode(body: bytes) -> Completion:
    """Decode the body of a chat completion. Raise `InvalidAnswer` if the body has no readable answer."""
    try:
        response = msgspec.json.decode(body, type=_Response)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidAnswer(f"expected a chat completion in JSON; {_start(body)}: {error}", code="rubbish") from error
    if not response.choices or response.choices[0].message.content is None:
        raise InvalidAnswer("expected a text in `choices`; the response contains none", code="no-answer")
    choice = response.choices[0]
    return Completion(
        text=choice.message.content or "",
        cut_short=choice.finish_reason == "length",
        model=response.model,
        tokens=None if response.usage is None else response.usage.completion_tokens,
        first_tokens=_first_tokens(choice.logprobs),
    )


def _start(body: bytes) -> str:
    return f"the response is {shown(body.decode(errors='replace'), _SHOWN)!r}"


def _first_tokens(logprobs: Any) -> list[tuple[str, float]]:
    """Return the most probable first tokens of an answer, each with the logarithm of its probability.

    Return an empty list if `logprobs` contains no tokens, or does not have the expected form.
    """
    try:
        return [(str(each["token"]), float(each["logprob"])) for each in logprobs["content"][0]["top_logprobs"]]
    except (TypeError, KeyError, IndexError, ValueError):
        return []


def _parse_json(completion: Completion, schema: Mapping[str, Any]) -> Any:
    try:
        parsed = msgspec.json.decode(_bare(completion.text))
        Draft202012Validator(schema, registry=Registry()).validate(parsed)
    except jsonschema.ValidationError as error:
        reason, answer = shown(error.message, _SHOWN), shown(completion.text, _SHOWN)
        text = f"expected an answer that matches the JSON schema; {reason}; the answer is {answer!r}"
        raise InvalidAnswer(text, code="schema") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        if completion.cut_short:
            text = (
                f"expected JSON; the answer is incomplete after {completion.tokens or 'the maximum number of'} tokens"
            )
            raise InvalidAnswer(text, code="cut-short") from error
        raise InvalidAnswer(
            f"expected JSON; the answer is {shown(completion.text, _SHOWN)!r}", code="schema"
        ) from error
    return parsed


def _parse_choice(completion: Completion, choices: Sequence[str]) -> tuple[str, float | None]:
    text = _bare(completion.text)
    words = _normalized(text)
    chosen = [choice for choice in choices if (words + " ").startswith(_normalized(choice) + " ")]
    if not chosen:
        text = f"expected one of {', '.join(choices)}; the answer is {shown(completion.text, _SHOWN)!r}"
        hint = "if this lasts, rephrase the prompt or the statement, or use a different model"
        raise InvalidAnswer(text, hint=hint, code="schema")
    answer = max(chosen, key=len)
    first_tokens = completion.first_tokens if text == completion.text.strip() else ()  # otherwise of other text
    weights = {choice: _weight(choice, first_tokens) for choice in choices}
    total = sum(weights.values())
    return answer, weights[answer] / total if weights[answer] > 0 else None


def _bare(text: str) -> str:
    """Return an answer without a block of reasoning before it, and without a code fence of Markdown around it."""
    text = text.strip()
    if text.startswith(_THINK):
        text = text.partition(_THINK_END)[2].strip() or text
    if text.startswith(_FENCE) and text.endswith(_FENCE):
        inside = text[len(_FENCE) : -len(_FENCE)].rstrip()
        language = _LANGUAGE.match(inside)
        text = inside[language.end() :] if language else inside
    return text


def _normalized(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _weight(choice: str, first_tokens: Sequence[tuple[str, float]]) -> float:
    """Return the total probability of the first tokens with which `choice` starts."""
    tokens = [(_normalized(token), logprob) for token, logprob in first_tokens]
    return math.fsum(math.exp(min(p, 0.0)) for token, p in tokens if token and _normalized(choice).startswith(token))
