"""Tests of the client of language models with a scripted server over real HTTP."""

from __future__ import annotations

import gc
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chat_server import MODEL, ChatHttpServer, Handler, chat_server, completion, json_answer
from vision.config.language import LanguageServer
from vision.errors import InvalidAnswer, LanguageError, ServerFailure, ServerRefusal
from vision.language.client import ChatServer

pytestmark = pytest.mark.unit

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "confidence": {"type": "number", "minimum": 0, "maximum": 1}},
    "required": ["answer", "confidence"],
    "additionalProperties": False,
}
JPEG = b"\xff\xd8 an image \xff\xd9"


@pytest.fixture
def server() -> Iterator[ChatHttpServer]:
    with chat_server() as running:
        yield running


def client(server: ChatHttpServer, **keys: Any) -> ChatServer:
    return ChatServer(LanguageServer(url=server.url, **({"timeout_s": 60.0} | keys)))


def respond(body: object, status: int = 200) -> Callable[[Handler], None]:
    return lambda handler: handler.send(body, status)


def test_an_answer_with_a_schema(server: ChatHttpServer) -> None:
    answer = client(server, api_key="secret-key").complete("Is it open?", [JPEG, JPEG], schema=SCHEMA)
    assert answer.parsed == {"answer": "yes", "confidence": 0.9}
    assert (answer.model, answer.tokens) == (MODEL, 3)
    assert answer.latency_ms > 0
    request = server.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer secret-key"
    assert (request.prompt, request.images) == ("Is it open?", 2)
    assert request.body["model"] == MODEL  # the first model of the server
    assert request.body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert request.content[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_text_without_images_is_a_plain_text(server: ChatHttpServer) -> None:
    server.script.chat = respond(completion("a quiet street"))
    answer = client(server, model="second").complete("Describe.")
    assert answer.parsed == answer.text == "a quiet street"
    assert server.requests[0].content == "Describe."
    assert server.requests[0].body["model"] == "second"


def test_extra_body_adds_replaces_and_removes_keys(server: ChatHttpServer) -> None:
    extra = {"cache_prompt": True, "max_tokens": 7, "temperature": None}
    client(server, extra_body=extra).complete("?", schema=SCHEMA)
    body = server.requests[0].body
    assert (body["cache_prompt"], body["max_tokens"]) == (True, 7)
    assert "temperature" not in body


def test_the_models_of_the_server(server: ChatHttpServer) -> None:
    assert client(server).models() == (MODEL, "second")


@pytest.mark.parametrize(("text", "word"), [("yes", "yes"), (" No.", "no"), ("**Yes**, it is.", "yes")])
def test_a_choice_of_words(server: ChatHttpServer, text: str, word: str) -> None:
    server.script.chat = respond(completion(text))
    answer = client(server).complete("?", choices=["yes", "no"])
    assert (answer.parsed, answer.confidence) == (word, None)


def test_the_confidence_of_a_choice_is_its_probability(server: ChatHttpServer) -> None:
    top = [{"token": "Yes", "logprob": math.log(0.6)}, {"token": " no", "logprob": math.log(0.2)}]
    server.script.chat = respond(completion("Yes", logprobs={"content": [{"token": "Yes", "top_logprobs": top}]}))
    answer = client(server).complete("?", choices=["yes", "no"])
    assert answer.confidence == pytest.approx(0.75)
    assert server.requests[0].body["logprobs"] is True


@pytest.mark.parametrize("logprobs", [[], {"content": None}, {"content": [{"top_logprobs": [{"token": "yes"}]}]}, 3])
def test_probabilities_in_a_different_form_are_ignored(server: ChatHttpServer, logprobs: object) -> None:
    server.script.chat = respond(completion("yes", logprobs=logprobs))
    assert client(server).complete("?", choices=["yes", "no"]).confidence is None


FORMS = (
    "```json\n{}\n```",
    "```\r\n{}\r\n```\n",
    "```JSON {}```",
    "```{}```",
    "<think>\nIt is closed: yes or no?\n</think>\n\n{}",
    "\n<think></think>{}",
    "<think>Is it open?</think>\n```json\n{}\n```",
)


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_after_reasoning_or_in_a_code_fence_is_accepted(server: ChatHttpServer, form: str) -> None:
    server.script.chat = respond(completion(form.replace("{}", '{"answer": "no", "confidence": 1}')))
    assert client(server).complete("?", schema=SCHEMA).parsed["answer"] == "no"
    top = [{"token": "yes", "logprob": math.log(0.6)}]  # of the first word of the reasoning
    logprobs = {"content": [{"token": "<", "top_logprobs": top}]}
    server.script.chat = respond(completion(form.replace("{}", "No"), logprobs=logprobs))
    answer = client(server).complete("?", choices=["yes", "no"])
    assert (answer.parsed, answer.confidence) == ("no", None)


NO_FORMS = (
    "<think>{}",
    "<think>{}</think>",
    "Thinking.</think>{}",
    "Sure: <think></think>{}",
    "<think></think><think></think>{}",
    "Sure: ```json\n{}\n```",
    "```json\n```json\n{}\n```\n```",
)


@pytest.mark.parametrize("form", NO_FORMS)
def test_other_text_around_an_answer_is_an_error(server: ChatHttpServer, form: str) -> None:
    parts: list[tuple[str, dict[str, Any]]] = [
        ('{"answer": "no", "confidence": 1}', {"schema": SCHEMA}),
        ("no", {"choices": ["yes", "no"]}),
    ]
    for answer, expected in parts:
        server.script.chat = respond(completion(form.replace("{}", answer)))
        with pytest.raises(InvalidAnswer) as caught:
            client(server).complete("?", **expected)
        assert caught.value.code == "schema"


def test_the_probability_is_unknown_after_reasoning_that_starts_with_an_answer(server: ChatHttpServer) -> None:
    top = [{"token": "no", "logprob": math.log(0.6)}]
    logprobs = {"content": [{"token": "<think>", "top_logprobs": top}]}
    server.script.chat = respond(completion("<think>Hm.</think>No", logprobs=logprobs))
    assert client(server).complete("?", choices=["yes", "no"]).confidence is None


ERRORS = [
    (401, {"error": {"message": "Invalid API Key", "code": 401}}, ServerRefusal, "wrong-key"),
    (403, "forbidden", ServerRefusal, "wrong-key"),
    (404, {"error": {"message": "The model `x` does not exist."}}, ServerRefusal, "no-model"),
    (404, {"error": {"message": 'model "llama3.2-vision" not found'}}, ServerRefusal, "no-model"),
    (400, {"error": "model 'x' not found"}, ServerRefusal, "no-model"),
    (404, "404 page not found", ServerRefusal, "no-endpoint"),
    (413, "", ServerRefusal, "image-too-large"),
    (400, {"object": "error", "message": "maximum context length is 4096 tokens"}, ServerRefusal, "image-too-large"),
    (500, {"error": {"message": "image input is not supported - hint: provide the mmproj"}}, ServerRefusal,
     "images-refused"),
    (400, {"detail": "unknown option top_logprobs"}, ServerRefusal, "refused"),
    (302, "", ServerRefusal, "redirect"),
    (429, "", ServerFailure, "busy"),
    (503, {"error": {"message": "Loading model"}}, ServerFailure, "busy"),
    (500, [[[1]]], ServerFailure, "server-error"),
    (599, "x" * 5000, ServerFailure, "server-error"),
    (204, "", InvalidAnswer, "rubbish"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "code"), ERRORS)
def test_statuses(server: ChatHttpServer, status: int, body: object, kind: type[LanguageError], code: str) -> None:
    server.script.chat = respond(body, status)
    with pytest.raises(kind) as caught:
        client(server).complete("?", [JPEG])
    assert caught.value.code == code
    assert len(str(caught.value)) < 600


ANSWERS = [
    (json_answer("maybe"), "schema"),
    (json_answer("yes", 1.5), "schema"),
    (completion('{"answer": "yes"}'), "schema"),
    (completion("yes"), "schema"),
    (completion("[" * 100_000), "schema"),
    (completion('{"answer": "y', finish_reason="length"), "cut-short"),
    (completion(None), "no-answer"),
    ({"choices": []}, "no-answer"),
    ({"choices": [{"message": {"content": 3}}]}, "rubbish"),
    ("<html>", "rubbish"),
    ("\x00\xff", "rubbish"),
    ("[" * 100_000, "rubbish"),
    ("", "rubbish"),
]


@pytest.mark.parametrize(("body", "code"), ANSWERS)
def test_invalid_answers(server: ChatHttpServer, body: object, code: str) -> None:
    server.script.chat = respond(body)
    with pytest.raises(InvalidAnswer) as caught:
        client(server).complete("?", schema=SCHEMA)
    assert caught.value.code == code


def test_no_choice_is_an_invalid_answer(server: ChatHttpServer) -> None:
    server.script.chat = respond(completion("yesterday"))
    with pytest.raises(InvalidAnswer) as caught:
        client(server).complete("?", choices=["yes", "no"])
    assert caught.value.code == "schema"


def test_an_answer_without_end_is_limited_in_bytes(server: ChatHttpServer) -> None:
    server.script.chat = lambda handler: handler.trickle(b"data: {}\n" * 5000, 0.0)
    with pytest.raises(InvalidAnswer) as caught:
        client(server).complete("?")
    assert caught.value.code == "too-long"


def _trickle_head(handler: Handler) -> None:
    while not handler.server.closed.wait(0.02):
        handler.wfile.write(b"H")
        handler.wfile.flush()


SLOW = {
    "hung": lambda handler: handler.hang(),
    "slow body": lambda handler: handler.trickle(b" ", 0.02),
    "slow head": _trickle_head,
}


@pytest.mark.parametrize("chat", SLOW.values(), ids=SLOW.keys())
def test_an_answer_is_limited_in_time(server: ChatHttpServer, chat: Callable[[Handler], None]) -> None:
    server.script.chat = chat
    with pytest.raises(ServerFailure) as caught:
        client(server, model=MODEL).complete("?", deadline_s=0.3)
    assert caught.value.code == "too-slow"
    assert caught.value.hint


WITHOUT_END = SLOW | {"fast body": lambda handler: handler.trickle(b"data: {}\n" * 5000, 0.0)}


@pytest.mark.parametrize("name", WITHOUT_END)
def test_an_answer_without_end_leaves_no_task(
    server: ChatHttpServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.script.chat = WITHOUT_END[name]
    with pytest.raises(LanguageError) as caught:
        client(server, model=MODEL).complete("?", deadline_s=0.3 if name in SLOW else 60.0)
    assert caught.value.code == ("too-slow" if name in SLOW else "too-long")
    gc.collect()
    assert caplog.messages == []  # without a configured log, asyncio's messages would be printed to standard error


def test_a_server_that_never_accepts_is_limited_in_time() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # without `listen`
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with pytest.raises(ServerFailure) as caught:
            ChatServer(LanguageServer(url=url, timeout_s=5.0)).models()
        assert caught.value.code == "unreachable"


def test_a_response_that_is_not_http(server: ChatHttpServer) -> None:
    def greet(handler: Handler) -> None:
        handler.wfile.write(b"220 mail.example.com ESMTP\r\n\r\n")

    server.script.chat = greet
    with pytest.raises(InvalidAnswer) as caught:
        client(server, model=MODEL).complete("?")
    assert caught.value.code == "not-http"


def test_an_image_that_is_too_large_is_not_sent(server: ChatHttpServer) -> None:
    with pytest.raises(ServerRefusal) as caught:
        client(server).complete("?", [b"\xff" * 30_000_000])
    assert caught.value.code == "image-too-large"
    assert not server.requests


def test_a_new_model_of_the_server_is_found(server: ChatHttpServer) -> None:
    asking = client(server)
    asking.complete("?")
    server.script.models = respond({"data": [{"id": "new"}]})
    server.script.chat = respond({"error": {"message": "model not found"}}, 404)
    with pytest.raises(ServerRefusal):
        asking.complete("?")
    server.script.chat = respond(completion("yes"))
    asking.complete("?")
    assert [request.body["model"] for request in server.requests] == [MODEL, MODEL, "new"]


@pytest.mark.parametrize("body", [{"data": []}, {"data": [{"name": "x"}]}, "rubbish", {"data": None}])
def test_an_unreadable_list_of_models(server: ChatHttpServer, body: object) -> None:
    server.script.models = respond(body)
    with pytest.raises(InvalidAnswer):
        client(server).complete("?")


def test_threads_share_a_client(server: ChatHttpServer) -> None:
    def wait_for_the_others(handler: Handler) -> None:
        with started:
            started.notify_all()
        barrier.wait(60)
        handler.send(json_answer("yes"))

    started, barrier = threading.Condition(), threading.Barrier(4)
    server.script.chat = wait_for_the_others
    asking, answers = client(server, model=MODEL), []
    threads = [threading.Thread(target=lambda: answers.append(asking.complete("?", schema=SCHEMA))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4


def test_a_zero_deadline_fails_at_once(server: ChatHttpServer) -> None:
    began = time.monotonic()
    with pytest.raises(ServerFailure) as caught:
        client(server).complete("?", deadline_s=-1)
    assert caught.value.code == "too-slow"
    assert time.monotonic() - began < 30
