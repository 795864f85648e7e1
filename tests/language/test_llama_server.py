"""Tests of the language model client with the server of llama.cpp and a tiny model."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Sequence
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from tests.language.conftest import KEY, TinyModel
from tests.language.llama_server import MODEL, LlamaServer, llama_server
from tests.language.tiny_model import IMAGE_TOKENS
from vision.config.language import LanguageServer
from vision.errors import InvalidAnswer, LanguageError, ServerFailure, ServerRefusal
from vision.language.client import ChatServer

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "confidence": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["answer", "confidence"],
    "additionalProperties": False,
}
SHADES = range(0, 256, 60)


def client(server: LlamaServer, **keys: Any) -> ChatServer:
    return ChatServer(LanguageServer.model_validate({"url": server.url, "timeout_s": 60, "api_key": KEY, **keys}))


def jpegs(count: int) -> list[bytes]:
    scenes = (np.full((48, 64, 3), shade, np.uint8) for shade in SHADES[:count])
    return [cv2.imencode(".jpg", scene)[1].tobytes() for scene in scenes]


def failure(server: LlamaServer, images: Sequence[bytes] = (), prompt: str = "?", **keys: Any) -> LanguageError:
    with pytest.raises(LanguageError) as caught:
        client(server, **keys).complete(prompt, images, max_tokens=4)
    return caught.value


def test_server_names_its_model(llama: LlamaServer) -> None:
    assert client(llama).models() == (MODEL,)


@pytest.mark.parametrize("images", [0, 1, 4])
def test_answer_follows_the_schema(llama: LlamaServer, images: int) -> None:
    answer = client(llama).complete("Is the gate open?", jpegs(images), schema=SCHEMA)
    assert answer.parsed == json.loads(answer.text)
    assert set(answer.parsed) == {"answer", "confidence"}
    assert answer.model == MODEL
    assert answer.tokens is not None
    assert answer.tokens >= 15


def test_text_is_as_long_as_requested(llama: LlamaServer) -> None:
    answer = client(llama, extra_body={"ignore_eos": True}).complete("Describe the scene.", jpegs(1), max_tokens=7)
    assert answer.tokens == 7
    assert answer.parsed == answer.text


def test_word_comes_with_its_probability(llama: LlamaServer) -> None:
    # The model speaks no language: a grammar forces it to one of the words, whose first letters are improbable.
    asking = client(llama, extra_body={"grammar": 'root ::= "yes" | "no"', "top_logprobs": 260})
    answer = asking.complete("?", jpegs(1), choices=["yes", "no"])
    assert answer.parsed in ("yes", "no")
    assert answer.confidence is not None
    assert 0 < answer.confidence < 1


def test_answer_depends_on_the_image(llama: LlamaServer) -> None:
    asking = client(llama)
    texts = {asking.complete("What is this?", [jpeg], max_tokens=16).text for jpeg in jpegs(4)}
    assert len(texts) > 1


def test_word_that_is_no_choice_is_an_invalid_answer(llama: LlamaServer) -> None:
    with pytest.raises(InvalidAnswer) as caught:
        client(llama, extra_body={"grammar": 'root ::= "maybe"'}).complete("?", choices=["yes", "no"])
    assert caught.value.code == "schema"


def test_answer_that_is_cut_short_breaks_the_schema(llama: LlamaServer) -> None:
    with pytest.raises(InvalidAnswer) as caught:
        client(llama).complete("?", schema=SCHEMA, max_tokens=3)
    assert caught.value.code == "cut-short"


@pytest.mark.parametrize("key", [None, "key-of-another-server"])
def test_wrong_key_is_refused(llama: LlamaServer, key: str | None) -> None:
    error = failure(llama, api_key=key)
    assert isinstance(error, ServerRefusal)
    assert error.code == "wrong-key"


def test_server_of_one_model_ignores_the_name_of_the_model(llama: LlamaServer) -> None:
    # `vision llm check` therefore compares the name with the list of models.
    assert client(llama, model="another").complete("?", max_tokens=1).model == MODEL


def test_prompt_that_exceeds_the_context_is_refused(llama: LlamaServer) -> None:
    error = failure(llama, jpegs(1), "many words " * 2000)
    assert isinstance(error, ServerRefusal)
    assert error.code == "image-too-large"


def test_file_that_is_no_image_is_refused(llama: LlamaServer) -> None:
    error = failure(llama, [b"no image"])
    assert isinstance(error, ServerRefusal)
    assert client(llama).complete("?", jpegs(1), max_tokens=1).tokens == 1, "the server still works"


def test_option_with_an_invalid_value_is_refused(llama: LlamaServer) -> None:
    assert isinstance(failure(llama, extra_body={"grammar": "root ::= ("}), ServerRefusal)


def test_parallel_requests_are_all_answered(llama: LlamaServer) -> None:
    asking, answers = client(llama), []
    threads = [
        threading.Thread(target=lambda jpeg=jpeg: answers.append(asking.complete("?", [jpeg], schema=SCHEMA)))
        for jpeg in jpegs(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4


def test_model_without_a_projector_refuses_images(tiny_model: TinyModel) -> None:
    with llama_server(tiny_model.model) as text_only:
        assert client(text_only, api_key=None).complete("?", max_tokens=1).tokens == 1
        error = failure(text_only, jpegs(1), api_key=None)
    assert isinstance(error, ServerRefusal)
    assert error.code == "images-refused"


def test_frozen_server_is_too_slow(tiny_model: TinyModel) -> None:
    with llama_server(*tiny_model) as server:
        asking = client(server, model=MODEL)
        server.freeze()
        with pytest.raises(ServerFailure) as caught:
            asking.complete("?", jpegs(1), deadline_s=0.5)
        assert caught.value.code == "too-slow"


def test_killed_server_cannot_be_reached(tiny_model: TinyModel) -> None:
    with llama_server(*tiny_model) as server:
        asking = client(server)
        assert asking.complete("?", jpegs(1), max_tokens=1).tokens == 1
        server.kill()
        for _ in range(2):
            with pytest.raises(ServerFailure) as caught:
                asking.complete("?", jpegs(1))
            assert caught.value.code == "unreachable"


def test_server_that_is_killed_before_it_answers_is_an_error(tiny_model: TinyModel) -> None:
    with llama_server(*tiny_model) as server:
        asking = client(server, model=MODEL)
        errors: list[LanguageError] = []

        def ask() -> None:
            with pytest.raises(LanguageError) as caught:
                asking.complete("?", jpegs(1), deadline_s=60.0)
            errors.append(caught.value)

        server.freeze()  # the server then does not answer before it is killed
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        server.kill()
        thread.join(60)
    assert errors
    assert errors[0].code in ("unreachable", "not-http")


def test_image_needs_the_tokens_of_its_patches(llama: LlamaServer) -> None:
    def prompt_tokens(content: object) -> int:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        headers = {"Authorization": f"Bearer {KEY}"}
        reply = httpx.post(f"{llama.url}/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)
        return int(reply.json()["usage"]["prompt_tokens"])

    url = "data:image/jpeg;base64," + base64.b64encode(jpegs(1)[0]).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    text = {"type": "text", "text": "?"}
    assert prompt_tokens([text, image]) - prompt_tokens([text]) >= IMAGE_TOKENS
