"""Expected texts of errors about language models in the log, and the expected text of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from vision.config.language import DescribeConfig, VerifyConfig
from vision.errors import InvalidAnswer, LanguageError, register_secret
from vision.language import answers, refusals
from vision.language.messages import Question
from vision.language.prompts import prompt_of, schema_of

SCHEMA = schema_of(("yes", "no"))
URL = "http://127.0.0.1:8000/v1/chat/completions"


def _status(status: int, body: bytes) -> str:
    return str(refusals.of_status(URL, status, body))


def _text(call: Callable[[], object]) -> str:
    """Return the text of the error that `call` raises when it checks a response from `URL`."""
    try:
        call()
    except InvalidAnswer as error:
        return str(refusals.invalid(URL, error))
    return "no error"


def _logged(error: LanguageError) -> str:
    return refusals.log_text(VerifyConfig(name="real", prompt="?"), "gate", error)


def _secret() -> str:
    """Return the text for a response with a secret that crosses the end of the shown part."""
    register_secret("wording-secret-5150")
    return _status(401, b'{"error": {"message": "Invalid key ' + b"x" * 180 + b' wording-secret-5150"}}')


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
        (
            f"{URL}: expected one of yes, no; the answer is 'perhaps'\n"
            "  hint: if this lasts, rephrase the prompt or the statement, or use a different model"
        ),
    ),
    (
        "an answer that breaks the schema",
        lambda: _text(lambda: answers.Expected(SCHEMA).parse(_completion('{"answer": "perhaps", "confidence": 1}'))),
        (
            f"{URL}: expected an answer that matches the JSON schema; 'perhaps' is not one of ['yes', 'no']; "
            """the answer is '{"answer": "perhaps", "confidence": 1}'\n"""
            "  hint: if this lasts, set `format: token` in this entry, or use a server that enforces JSON schemas, "
            "or a different model"
        ),
    ),
    (
        "an answer that is not JSON",
        lambda: _text(lambda: answers.Expected(SCHEMA).parse(_completion("Yes, I see one."))),
        (
            f"{URL}: expected JSON; the answer is 'Yes, I see one.'\n"
            "  hint: if this lasts, set `format: token` in this entry, or use a server that enforces JSON schemas, "
            "or a different model"
        ),
    ),
    (
        "a response that is not a chat completion",
        lambda: _text(lambda: answers.decode(b"<html>")),
        (
            f"{URL}: expected a chat completion in JSON; the response is '<html>': JSON is malformed: invalid "
            "character (byte 0)\n"
            "  hint: set `language.url` to the base URL of an API for chat completions; it often ends in /v1"
        ),
    ),
    (
        "a response without an answer",
        lambda: _text(lambda: answers.decode(b'{"choices": []}')),
        (
            f"{URL}: expected a text in `choices`; the response contains none\n"
            "  hint: if the model thinks before it answers, turn this off in the server; otherwise, use a different "
            "model"
        ),
    ),
    (
        "an internal error of the server, in the log",
        lambda: _logged(refusals.of_status(URL, 500, b'{"error": "out of memory"}')),
        (
            f"verify real, camera gate: {URL} responds with 500: out of memory\n"
            "  hint: read the log of the server; if its memory is full, set a lower `language.max_image_px` or "
            "`language.parallel`"
        ),
    ),
    (
        "a secret of which only the start fits",
        _secret,
        (
            f"{URL} responds with 401: Invalid key {'x' * 180} ***\n"
            "  hint: set `language.api_key: ${NAME}`, and export the key of the server as NAME"
        ),
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
