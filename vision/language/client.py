"""`ChatServer` sends requests to a language model server that is compatible with OpenAI's API for chat completions.

Each request has a deadline, and each request and response has a maximum size. Both limits also apply if the server
accepts no connection, sends no response, sends one byte per second, or never stops sending.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx
import msgspec

from vision.config.language import LanguageServer
from vision.config.tls import tls_context
from vision.errors import InvalidAnswer, LanguageError
from vision.language import answers, refusals

_CHAT: Final = "/chat/completions"
_ANSWER_BYTES: Final = 1 << 20
_REQUEST_BYTES: Final = 32 << 20
_MAX_TOKENS: Final = 256
_TOKENS_OF_CHOICE: Final = 8  # some tokenizers split a short word
_ALTERNATIVES: Final = 5  # number of tokens whose probabilities are requested
_LONGEST_NAME: Final = 200
_MOST_KEPT: Final = 2000  # number of characters of an invalid answer that an error keeps
_FINISH_S: Final = 1.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a language model."""

    text: str
    parsed: Any  # with a schema: the decoded answer; with choices: the chosen word; otherwise the text
    confidence: float | None  # probability of the chosen word among the choices; None if there are none, or if unknown
    model: str
    tokens: int | None  # number of generated tokens; None if the server does not report it
    latency_ms: float


class ChatServer:
    """Client of one language model server. Several threads can call its methods at the same time."""

    def __init__(self, config: LanguageServer, clock: Callable[[], float] = time.monotonic) -> None:
        """Create the client, without connecting. `clock` returns the time in seconds."""
        self._config = config
        self._url = config.url.rstrip("/")
        self._headers = {"Accept-Encoding": "identity"}  # a small compressed answer can expand to a very long one
        if config.api_key is not None:
            self._headers["Authorization"] = f"Bearer {config.api_key}"
        self._tls = tls_context() if self._url.startswith("https:") else False
        self._clock = clock
        self._model = config.model

    @property
    def model(self) -> str | None:
        """Name of the model that is asked. None if it is not configured, and the server has not listed it yet."""
        return self._model

    def models(self, *, deadline_s: float | None = None) -> tuple[str, ...]:
        """Return the names of the server's models, at least one.

        Args:
            deadline_s: maximum time in seconds. If it is None, or exceeds the configured timeout, the configured
                timeout applies.

        Raises:
            ServerRefusal: the server refuses the key or the request.
            ServerFailure: the server cannot be reached, is too slow or busy, or reports an internal error.
            InvalidAnswer: the response is too long or unreadable, or lists no model.
        """
        return self._within(deadline_s, self._models())

    def complete(
        self,
        prompt: str,
        images: Sequence[bytes] = (),
        *,
        schema: Mapping[str, Any] | None = None,
        choices: Sequence[str] = (),
        max_tokens: int = _MAX_TOKENS,
        deadline_s: float | None = None,
    ) -> Answer:
        """Return the model's answer to a prompt.

        Args:
            prompt: the question.
            images: JPEG files to which the prompt refers.
            schema: JSON Schema of the answer. None means that the answer is plain text.
            choices: possible answers, of which the model must choose one. A schema takes precedence.
            max_tokens: maximum length of the answer. If the model must choose one of `choices`, the maximum is
                `_TOKENS_OF_CHOICE` instead.
            deadline_s: maximum time in seconds. If it is None, or exceeds the configured timeout, the configured
                timeout applies.

        Raises:
            ServerRefusal: the server refuses the key, the model, the images, or a different part of the request, or the
                request is too large.
            ServerFailure: the server cannot be reached, is too slow or busy, or reports an internal error.
            InvalidAnswer: the response is too long or unreadable, or has no answer that matches the schema or the
                choices.
        """
        expected = answers.Expected(schema, tuple(choices))
        options = _options_for(expected, max_tokens)
        return self._within(deadline_s, self._complete(prompt, images, expected, options))

    def _within(self, deadline_s: float | None, request: Coroutine[Any, Any, _T]) -> _T:
        """Run a request in its own event loop, so that the deadline ends every wait of the request.

        Raises:
            ServerFailure: the deadline has passed, or the server cannot be reached.
            InvalidAnswer: the server's response is not valid HTTP.
        """
        limit_s = self._config.timeout_s if deadline_s is None else min(deadline_s, self._config.timeout_s)
        loop = asyncio.new_event_loop()
        task = loop.create_task(asyncio.wait_for(request, max(limit_s, 0.0)))
        try:
            return loop.run_until_complete(task)
        except (asyncio.TimeoutError, httpx.TimeoutException) as error:
            raise refusals.too_slow(self._url, limit_s) from error
        except httpx.RemoteProtocolError as error:
            text = f"expected an HTTP response; {error}"
            raise refusals.invalid(self._url, InvalidAnswer(text, code="not-http")) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise refusals.unreachable(self._url, error) from error
        finally:
            task.cancel()  # it is still pending if the user has interrupted the program
            loop.run_until_complete(_finish())
            loop.close()  # without waiting for a name server that does not answer

    async def _models(self) -> tuple[str, ...]:
        body = await self._exchange("GET", "/models", None)
        try:
            return tuple(name[:_LONGEST_NAME] for name in answers.model_names(body))
        except InvalidAnswer as error:
            raise refusals.invalid(f"{self._url}/models", error) from error

    async def _complete(
        self, prompt: str, images: Sequence[bytes], expected: answers.Expected, options: Mapping[str, Any]
    ) -> Answer:
        began_s = self._clock()
        model = self._model
        if model is None:
            model = self._model = (await self._models())[0]
        body = {"model": model, "messages": [{"role": "user", "content": _content(prompt, images)}]}
        body |= {"temperature": 0, "stream": False, **options} | dict(self._config.extra_body)
        request = msgspec.json.encode({key: value for key, value in body.items() if value is not None})
        if len(request) > _REQUEST_BYTES:
            text = f"the request has {len(request) / 1e6:.1f} MB; expected at most {_REQUEST_BYTES / 1e6:.1f} MB"
            raise refusals.image_too_large(text)
        received: bytes | str = b""
        try:
            received = await self._exchange("POST", _CHAT, request)
            try:
                completion = answers.decode(received)
                model, received = (completion.model or model)[:_LONGEST_NAME], completion.text
                parsed, confidence = expected.parse(completion)
            except InvalidAnswer as error:
                raise refusals.invalid(self._url + _CHAT, error) from error
        except LanguageError as error:
            error.model, error.response = model, error.response or _beginning(received)
            if error.code == "no-model" and self._config.model is None:
                self._model = None  # the server has a different model now
            raise
        latency_ms = (self._clock() - began_s) * 1e3
        return Answer(completion.text, parsed, confidence, model, completion.tokens, latency_ms)

    async def _exchange(self, method: str, path: str, content: bytes | None) -> bytes:
        """Send one request, and return the body of the response.

        Raises:
            LanguageError: the status is not 200, or the body is too long.
            httpx.HTTPError, httpx.InvalidURL, OSError: the exchange failed. `_within` converts these exceptions.
        """
        url, headers = self._url + path, dict(self._headers)
        if content is not None:
            headers["Content-Type"] = "application/json"
        async with (
            httpx.AsyncClient(verify=self._tls, timeout=None, trust_env=False) as client,
            client.stream(method, url, headers=headers, content=content) as response,
        ):
            received = bytearray()
            async for part in response.aiter_raw():
                received += part
                if len(received) > _ANSWER_BYTES:
                    text = f"expected at most {_ANSWER_BYTES} bytes; the response is longer, and may have no end"
                    raise _with_response(refusals.invalid(url, InvalidAnswer(text, code="too-long")), received)
        if response.status_code != httpx.codes.OK:
            raise _with_response(refusals.of_status(url, response.status_code, bytes(received)), received)
        return bytes(received)


def _with_response(error: LanguageError, received: bytearray) -> LanguageError:
    error.response = _beginning(bytes(received))
    return error


def _beginning(received: bytes | str) -> str:
    """Return the beginning of a response or of an answer, without secrets."""
    text = received if isinstance(received, str) else received.decode(errors="replace")
    return refusals.shown(text, _MOST_KEPT)


async def _finish() -> None:
    """Close the generators of a response that was not read to its end, and wait for all other tasks of the loop.

    asyncio prints a message about each task that is pending when its loop closes. Wait at most `_FINISH_S` seconds.
    """
    closing = asyncio.ensure_future(asyncio.get_running_loop().shutdown_asyncgens())
    await asyncio.wait({closing, *asyncio.all_tasks()} - {asyncio.current_task()}, timeout=_FINISH_S)


def _content(prompt: str, images: Sequence[bytes]) -> str | list[dict[str, Any]]:
    """Return the `content` field of a message. Without images, return text, because some servers accept only text."""
    if not images:
        return prompt
    urls = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images]
    return [{"type": "text", "text": prompt}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]


def _options_for(expected: answers.Expected, max_tokens: int) -> dict[str, Any]:
    if expected.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": expected.schema}
        return {"max_tokens": max_tokens, "response_format": {"type": "json_schema", "json_schema": schema}}
    if expected.choices:
        return {"max_tokens": _TOKENS_OF_CHOICE, "logprobs": True, "top_logprobs": _ALTERNATIVES}
    return {"max_tokens": max_tokens}
