"""Tests of `vision llm check` with the server of llama.cpp, and with a scripted server that gives correct answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.chat_server import Handler, chat_server, completion
from tests.language.conftest import KEY, TinyModel
from tests.language.llama_server import MODEL, LlamaServer, llama_server
from vision.benchmark.language import QUESTION, check_server, sample_images
from vision.cli.main import main
from vision.config.language import LanguageServer
from vision.errors import ServerFailure

VARIABLE = "LANGUAGE_KEY"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def check(server: Any, *options: str) -> int:
    return main(["llm", "check", server.url, "--requests", "4", *options])


def shows_something(jpeg: bytes) -> bool:
    """Check that an image has one of the two expected sizes. Return True if the image has more than one color."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    assert image.shape in ((240, 320), (576, 768))
    return float(np.std(image)) > 10


def sees_people(handler: Handler) -> bool:
    with handler.server.lock:
        url = handler.server.requests[-1].content[1]["image_url"]["url"]
    return shows_something(base64.b64decode(url.partition(",")[2]))


def answer_rightly(handler: Handler) -> None:
    """Send the correct answer, like a model that can see images."""
    with handler.server.lock:
        body = handler.server.requests[-1].body
    word = "yes" if sees_people(handler) else "no"
    content = json.dumps({"answer": word}) if "response_format" in body else word
    handler.send(completion(content, model=MODEL) | {"usage": {"completion_tokens": body["max_tokens"]}})


def always_yes(handler: Handler) -> None:
    with handler.server.lock:
        body = handler.server.requests[-1].body
    handler.send(completion('{"answer": "yes"}' if "response_format" in body else "yes"))


def test_images_differ_and_have_the_size() -> None:
    samples = list(sample_images(6, 320))
    assert [sample.right for sample in samples] == ["yes", "no"] * 3
    assert len({sample.jpeg for sample in samples}) == 6
    assert all(shows_something(sample.jpeg) == (sample.right == "yes") for sample in samples)


def test_server_that_sees_images_works(capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(answer_rightly) as server:
        assert check(server, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert check(server) == 0
    assert document["schema"] == "vision.llm-check/1"
    assert document["works"] is True
    assert document["words"]["right"] == document["json"]["right"] == 4
    assert document["words"]["durations"]["p50_ms"] > 0
    questions = [request for request in server.requests if request.prompt == QUESTION]
    assert len({request.content[1]["image_url"]["url"] for request in questions[:9]}) == 9, "no image is sent twice"


def test_model_that_always_says_yes_does_not_work(capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(always_yes) as server:
        assert check(server, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["words"]["right"], document["words"]["wrong"]) == (2, 2)
    assert document["notes"]


def test_model_that_speaks_no_language_is_measured(llama: LlamaServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(llama, "--key", VARIABLE, "--model", MODEL, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == [MODEL]
    answers = document["json"]
    assert answers["right"] + answers["wrong"] == 4, "the grammar of the server enforces the schema"
    assert answers["durations"]["p95_ms"] >= answers["durations"]["p50_ms"] > 0
    assert sum(document["words"]["invalid"].values()) + document["words"]["right"] + document["words"]["wrong"] == 4


@pytest.mark.parametrize("options", [("--key", VARIABLE, "--model", "another"), ()])
def test_refusal_is_a_configuration_error(llama: LlamaServer, options: tuple[str, ...]) -> None:
    assert check(llama, *options) == 78


def test_model_without_images_is_a_configuration_error(tiny_model: TinyModel) -> None:
    with llama_server(tiny_model.model) as server:
        assert check(server) == 78


def test_server_that_does_not_run_is_a_temporary_failure(tiny_model: TinyModel) -> None:
    with llama_server(*tiny_model) as server:
        server.kill()
        assert check(server) == 75


def test_frozen_server_is_a_temporary_failure(tiny_model: TinyModel) -> None:
    with llama_server(*tiny_model) as server:
        server.freeze()
        with pytest.raises(ServerFailure) as caught:
            check_server(LanguageServer(url=server.url, timeout_s=0.5), 2)
    assert caught.value.code == "too-slow"
    assert caught.value.exit_code == 75


def test_failures_between_the_answers_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def fail_sometimes(handler: Handler) -> None:
        with handler.server.lock:
            number = len(handler.server.requests)
        if number in (3, 7):
            handler.send({"error": {"message": "out of memory"}}, 500)
        else:
            answer_rightly(handler)

    with chat_server(fail_sometimes) as server:
        assert check(server, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["words"]["invalid"] == document["json"]["invalid"] == {"server-error": 1}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ftp://127.0.0.1/v1"], 2),
        (["http://user:secret@127.0.0.1:9/v1"], 2),
        (["http://127.0.0.1:9/v1", "--requests", "1"], 2),
        (["http://127.0.0.1:9/v1", "--key", "NO_SUCH_VARIABLE"], 78),
    ],
)
def test_invalid_arguments(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llm", "check", *arguments]) == code
    assert "secret" not in capsys.readouterr().err


def test_server_of_a_configuration_is_checked(tmp_path: Path, llama: LlamaServer) -> None:
    config = tmp_path / "camera.yaml"
    cameras = "cameras: [{id: gate, source: 'synthetic:64x48@5'}]\n"
    config.write_text(cameras)
    assert main(["llm", "check", str(config)]) == 78
    language = f"language: {{url: '{llama.url}', api_key: '${{LANGUAGE_KEY}}', model: %s}}\n"
    config.write_text(cameras + language % MODEL)
    assert main(["llm", "check", str(config), "--requests", "2"]) == 1, "the tiny model cannot answer"
    config.write_text(cameras + language % "another")
    assert main(["llm", "check", str(config), "--requests", "2"]) == 78
    assert main(["llm", "check", str(config), "--model", MODEL]) == 2


def test_server_of_something_else_is_an_error() -> None:
    page: Callable[[Handler], None] = lambda handler: handler.send("<html>a camera</html>")  # noqa: E731
    with chat_server(page) as server:
        server.script.models = page
        assert check(server) == 1
