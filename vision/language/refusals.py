"""Functions that return the error for an unsuccessful request to a language model server, and its text for the log.

If the status of a response has several possible causes, the text of the response decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from vision.config.language import DescribeConfig, VerifyConfig
from vision.errors import InvalidAnswer, LanguageError, ServerFailure, ServerRefusal, redact

_SHOWN: Final = 200
_READ: Final = 10_000  # number of characters that are searched for secrets
_TOO_LONG: Final = re.compile(
    r"context (length|size|window)|exceed_context|too (large|long|many tokens)", re.IGNORECASE
)
_IMAGES: Final = re.compile(r"image|multimodal|mmproj|vision", re.IGNORECASE)
_NO_MODEL: Final = re.compile(r"model.{0,80}(not found|not exist|unknown|invalid)|(no such|unknown|invalid) model")
_CODES: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "wrong-key",
    HTTPStatus.FORBIDDEN: "wrong-key",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "image-too-large",
    HTTPStatus.TOO_MANY_REQUESTS: "busy",
    HTTPStatus.SERVICE_UNAVAILABLE: "busy",
}
_KINDS: Final[Mapping[str, type[LanguageError]]] = {
    "wrong-key": ServerRefusal,
    "busy": ServerFailure,
    "images-refused": ServerRefusal,
    "no-model": ServerRefusal,
    "no-endpoint": ServerRefusal,
    "server-error": ServerFailure,
    "refused": ServerRefusal,
    "redirect": ServerRefusal,
    "rubbish": InvalidAnswer,
}
_HINTS: Final[Mapping[str, str]] = {
    "wrong-key": "set `language.api_key: ${NAME}`, and export the key of the server as NAME",
    "busy": "if this lasts, set a lower `language.parallel`, or choose fewer events",
    "images-refused": "serve a model that accepts images",
    "no-model": "correct `language.model`; without it, the program uses the server's first model",
    "no-endpoint": "correct `language.url`; it often ends in /v1",
    "refused": "if the server does not know an option, remove it with `language.extra_body: {OPTION: null}`",
    "redirect": "set `language.url` to the address behind the redirect",
    "server-error": (
        "read the log of the server; if its memory is full, set a lower `language.max_image_px` or `language.parallel`"
    ),
    "rubbish": "set `language.url` to the base URL of an API for chat completions; it often ends in /v1",
    "not-http": "correct the scheme and the port in `language.url`",
    "too-long": (
        "the server must obey `max_tokens` and `stream: false`; configure it so, or correct `language.url`, "
        "which often ends in /v1"
    ),
    "no-model-listed": "load a model in the server, or set `language.model`",
    "no-answer": "if the model thinks before it answers, turn this off in the server; otherwise, use a different model",
    "cut-short": "if this lasts, set a higher `language.extra_body: {max_tokens: NUMBER}`, or use a different model",
    "schema": (
        "if this lasts, set `format: token` in this entry, or use a server that enforces JSON schemas, "
        "or a different model"
    ),
}


def log_text(entry: VerifyConfig | DescribeConfig, camera: str, error: LanguageError) -> str:
    """Return the text for the log about a question of `entry` about `camera` that got no answer."""
    section = "verify" if isinstance(entry, VerifyConfig) else "describe"
    return f"{section} {entry.name}, camera {camera}: {error}"


def invalid(url: str, error: InvalidAnswer) -> InvalidAnswer:
    """Return `error`, an error in the response from `url`, with the URL in its message, and with a hint."""
    return InvalidAnswer(f"{url}: {error.args[0]}", hint=error.hint or _HINTS.get(error.code, ""), code=error.code)


def shown(text: str, most: int = _SHOWN) -> str:
    """Return the first `most` characters of `text`, without secrets, not even a part of one that does not fit."""
    return redact(text[:_READ])[:most]


def unreachable(url: str, error: Exception) -> ServerFailure:
    """Return the error for a connection that fails."""
    hint = "start the server, or correct `language.url`"
    return ServerFailure(f"cannot reach {url}: {error or type(error).__name__}", hint=hint, code="unreachable")


def too_slow(url: str, limit_s: float) -> ServerFailure:
    """Return the error for a server that sends no response within `limit_s` seconds."""
    hint = "set a higher `language.timeout_s` or `wait_s`, send fewer or smaller images, or use a faster model"
    return ServerFailure(f"{url} gave no answer in {limit_s:.1f} s", hint=hint, code="too-slow")


def image_too_large(text: str) -> ServerRefusal:
    """Return the error for a request whose images are too large. `text` is the message of the error."""
    return ServerRefusal(text, hint="set a lower `language.max_image_px`, or send fewer frames", code="image-too-large")


def of_status(url: str, status: int, body: bytes) -> LanguageError:
    """Return the error for a response whose status is not 200."""
    said = _message(body)
    text = f"{url} responds with {status}: {said or _phrase(status)}"
    code = _code(status, said)
    if code == "image-too-large":
        return image_too_large(text)
    return _KINDS[code](text, hint=_HINTS.get(code, ""), code=code)


def _code(status: int, said: str) -> str:
    """Return the code of the error for the status and the text of a response."""
    if status in _CODES:
        return _CODES[status]
    if _TOO_LONG.search(said):
        return "image-too-large"
    if status == HTTPStatus.NOT_FOUND:
        return "no-model" if "model" in said.lower() else "no-endpoint"
    if status >= HTTPStatus.BAD_REQUEST and _IMAGES.search(said):
        return "images-refused"
    if status == HTTPStatus.BAD_REQUEST and _NO_MODEL.search(said):
        return "no-model"
    limits = ((HTTPStatus.INTERNAL_SERVER_ERROR, "server-error"), (HTTPStatus.BAD_REQUEST, "refused"))
    return next(
        (code for limit, code in (*limits, (HTTPStatus.MULTIPLE_CHOICES, "redirect")) if status >= limit), "rubbish"
    )


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in list(HTTPStatus) else "no reason"


def _message(body: bytes) -> str:
    """Return the server's reason, as printable text of limited length. Return an empty string if there is no reason."""
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return ""
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    if isinstance(error, dict):
        error = next((error[key] for key in ("message", "detail", "type") if error.get(key)), "")
    return re.sub(r"[^\x20-\x7e]+", " ", shown(str(error))).strip()
