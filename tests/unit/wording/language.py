"""Expected texts of errors about language models in the log, and the expected text of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from vision.config.language import DescribeConfig, VerifyConfig
from vision.errors import LanguageError
from vision.language import answers, refusals
from vision.language.messages import Question
from vision.language.prompts import prompt_of

URL = "http://127.0.0.1:8000/v1/chat/completions"


def _status(status: int, body: bytes) -> str:
    return str(refusals.of_status(URL, status, body))


def _text(call: Callable[[], object]) -> str:
    try:
        call()
    except LanguageError as error:
        return str(error)
    return "no error"


def _completion(text: str) -> answers.Completion:
    return answers.Completion(text, cut_short=False, model=None, tokens=None, first_tokens=())


def _prompt(entry: VerifyConfig | DescribeConfig, offsets_ms: list[int]) -> str:
    question = Question(
        id="1", purpose="verify", check=entry.name, camera="gate", epoch=0, frame=7, at="2026-01-31T12:00:00.000000Z",
        at_monotonic_ns=0, facts={"kind": "rule", "name": "intruder"}, expires_ns=0, offsets_ms=offsets_ms,
        cropped=False,
    )  # fmt: skip
    return prompt_of(entry, question)


ROWS = [
    (
        "a wrong key",
        lambda: _status(401, b'{"error": {"message": "Invalid API Key"}}'),
        (
            f"{URL} responds with 401: Invalid API Key\n"
            "  hint: set `language.api_key: ${NAME}`, and export the key of the server as NAME"
        ),
    ),
    (
        "an unknown model",
        lambda: _status(404, b'{"error": {"message": "The model `x` does not exist."}}'),
        (
            f"{URL} responds with 404: The model `x` does not exist.\n"
            "  hint: correct `language.model`; without it, the program uses the server's first model"
        ),
    ),
    (
        "a wrong path",
        lambda: _status(404, b"<html>"),
        f"{URL} responds with 404: Not Found\n  hint: correct `language.url`; it often ends in /v1",
    ),
    (
        "an image with too many pixels",
        lambda: _status(413, b""),
        (
            f"{URL} responds with 413: {HTTPStatus.REQUEST_ENTITY_TOO_LARGE.phrase}\n"
            "  hint: set a lower `language.max_image_px`, or send fewer frames"
        ),
    ),
    (
        "an answer that is not one of the choices",
        lambda: _text(lambda: answers.Expected(choices=("yes", "no")).parse(_completion("perhaps"))),
        "expected one of yes, no; the answer is 'perhaps'",
    ),
    (
        "the prompt of a verification",
        lambda: _prompt(VerifyConfig(name="real", prompt="Is it a person?"), [0, 500]),
        (
            "Is it a person?\n"
            'What is known: {"camera":"gate","at":"2026-01-31T12:00:00.000000Z","kind":"rule","name":"intruder"}\n'
            "The 2 images show the view of the camera at these times after the event: 0 ms, 500 ms.\n"
            'Answer only with JSON: {"answer": one of yes, no, "confidence": a number from 0 to 1}'
        ),
    ),
    (
        "the prompt of a statement",
        lambda: _prompt(DescribeConfig(name="open", statement="The gate is open.", every_s=5.0), [0]),
        (
            "Is this statement about the camera true? The gate is open.\n"
            'What is known: {"camera":"gate","at":"2026-01-31T12:00:00.000000Z","kind":"rule","name":"intruder"}\n'
            "The image shows the view of the camera.\n"
            'Answer only with JSON: {"answer": one of yes, no, "confidence": a number from 0 to 1}'
        ),
    ),
]
