"""Tests of `Asker`: answers, limits, the circuit breaker, the ledger, and errors that are logged and counted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import MODEL, ChatHttpServer, Handler, chat_server, completion, json_answer
from tests.messages.processes import wait_until
from vision.config.language import DescribeConfig, LanguageConfig, VerifyConfig
from vision.language.asker import Asker
from vision.language.breaker import CircuitBreaker
from vision.language.ledger import Ledger
from vision.language.messages import (
    Line,
    LogLine,
    Outcome,
    Question,
    Statement,
    Unasked,
    decode_line,
    decode_question,
    encode_line,
    encode_question,
)

pytestmark = pytest.mark.unit

VERIFY = VerifyConfig(name="real", prompt="Is it a person?")
TOKEN = VerifyConfig(name="token", prompt="Is it a person?", format="token")
DESCRIBE = DescribeConfig(name="words")
WATCH = DescribeConfig(name="open", statement="The gate is open.", every_s=1.0)
WATCH_TOKEN = DescribeConfig(name="shut", statement="The gate is shut.", every_s=1.0, format="token")


def question(check: str = "real", id_: str = "1", camera: str = "gate", *, left_s: float = 60.0) -> Question:
    return Question(
        id=id_, purpose="verify", check=check, camera=camera, epoch=0, frame=3, at="2026-01-31T12:00:00.000000Z",
        at_monotonic_ns=5, facts={"kind": "rule", "name": "intruder", "class": "person"},
        expires_ns=time.monotonic_ns() + int(left_s * 1e9), offsets_ms=[0], cropped=False,
    )  # fmt: skip


class Asking:
    """Asker whose method `ask_next` the test calls for each question, and the lines that the asker reports."""

    def __init__(
        self, server: ChatHttpServer, *, ledger: Ledger | None = None, pauses: bool = True, **keys: Any
    ) -> None:
        self.lines: list[Line] = []
        options: dict[str, Any] = {"model": MODEL, "timeout_s": 60.0} | keys
        config = LanguageConfig(url=server.url, **options)
        random_part = 0.5 if pauses else -0.5  # a pause has a length of 0.5 + `random_part` s, and longer ones follow
        self.breaker = CircuitBreaker(config.timeout_s, random_part=lambda: random_part)
        entries: list[VerifyConfig | DescribeConfig] = [VERIFY, TOKEN, DESCRIBE, WATCH, WATCH_TOKEN]
        self.asker = Asker(config, entries, self.lines.append, ledger=ledger, breaker=self.breaker)

    def ask(self, asked: Question, images: tuple[bytes, ...] = (b"jpeg",)) -> None:
        before = len(self.outcomes())
        self.asker.add(asked, images)
        if len(self.outcomes()) == before:
            self.asker.ask_next()

    def outcomes(self) -> list[Outcome]:
        """Outcomes of the questions. The outcome of a question that was not asked is an error with the reason."""
        return [
            line
            if isinstance(line, Outcome)
            else Outcome(id=line.subject.id, purpose=line.subject.purpose, error=line.reason)
            for line in self.lines
            if isinstance(line, Outcome | Unasked)
        ]

    def logs(self) -> list[str]:
        return [line.text for line in self.lines if isinstance(line, LogLine)]

    def counters(self) -> dict[str, int]:
        return dict(self.asker.totals().counters)


def respond(body: object, status: int = 200) -> Callable[[Handler], None]:
    return lambda handler: handler.send(body, status)


def test_a_verdict_and_its_prompt() -> None:
    with chat_server(respond(json_answer("no", 0.25))) as server:
        asking = Asking(server)
        asking.ask(question())
    (outcome,) = asking.outcomes()
    assert outcome.verdict is not None
    assert (outcome.id, outcome.verdict.answer, outcome.verdict.confidence) == ("1", "no", 0.25)
    assert asking.counters() == {"requests": 1, "answers.real.no": 1}
    (request,) = server.requests
    assert request.images == 1
    for part in ("Is it a person?", '"camera":"gate"', '"name":"intruder"', '"class":"person"'):
        assert part in request.prompt


def test_a_token_a_description_and_a_statement() -> None:
    with chat_server(respond(completion("Yes"))) as server:
        asking = Asking(server)
        asking.ask(question("token"))
        server.script.chat = respond(completion(" A dog runs. "))
        asking.ask(question("words"))
        for word in ("no", "yes"):
            server.script.chat = respond(json_answer(word))
            asking.ask(question("open", ""))
        asking.asker.add(question("open", ""), (b"jpeg",))  # is not asked, because the statement is true
        asking.ask(question("open", "", camera="yard"))
    token, described = asking.outcomes()
    assert token.verdict is not None
    assert token.verdict.answer == "yes"
    assert described.description is not None
    assert described.description.text == "A dog runs."
    statements = [line.event for line in asking.lines if isinstance(line, Statement)]
    assert [(event.camera, event.kind, event.name, event.frame) for event in statements] == [
        ("gate", "statement", "open", 3),
        ("yard", "statement", "open", 3),
    ]
    assert asking.counters()["requests"] == 5


def test_a_server_that_refuses_schemas_can_check_a_statement() -> None:
    def refuse_schemas(handler: Handler) -> None:
        refused = "response_format" in handler.server.requests[-1].body
        handler.send({"error": "unsupported schema"} if refused else completion(words.pop(0)), 400 if refused else 200)

    words = ["No", "Yes"]
    with chat_server(refuse_schemas) as server:
        asking = Asking(server)
        asking.ask(question("open", ""))
        for _ in range(2):
            asking.ask(question("shut", ""))
    assert asking.counters() == {"requests": 3, "errors.refused": 1, "answers.shut.no": 1, "answers.shut.yes": 1}
    (statement,) = [line.event for line in asking.lines if isinstance(line, Statement)]
    assert (statement.name, statement.data["statement"]) == ("shut", "The gate is shut.")
    assert statement.verdict is not None
    assert statement.verdict.answer == "yes"
    assert "Answer with one word: yes, no" in server.requests[-1].prompt


BAD = {
    "wrong-key": respond({"error": {"message": "Invalid API Key"}}, 401),
    "no-model": respond({"error": {"message": "The model `x` does not exist."}}, 404),
    "schema": respond(json_answer("perhaps")),
    "image-too-large": respond("", 413),
    "too-long": lambda handler: handler.trickle(b"data: {}\n" * 20_000, 0.0),
    "too-slow": lambda handler: handler.hang(),
    "rubbish": respond("<html>"),
    "no-answer": respond(completion(None)),
    "cut-short": respond(completion('{"answer": ', finish_reason="length")),
    "not-http": lambda handler: handler.wfile.write(b"no HTTP\r\n\r\n"),
    "server-error": respond({"error": "out of memory"}, 500),
    "busy": respond("", 503),
}


@pytest.mark.parametrize("code", BAD)
def test_each_error_has_one_log_line_a_counter_and_an_outcome(code: str) -> None:
    with chat_server(BAD[code]) as server:
        asking = Asking(server, timeout_s=0.3 if code == "too-slow" else 60.0)
        for number in range(2):
            asking.ask(question(id_=str(number)))
    assert [(each.id, each.error, each.verdict) for each in asking.outcomes()] == [("0", code, None), ("1", code, None)]
    (text,) = asking.logs()
    for part in ("verify real, camera gate: ", server.url, "\n  hint: "):
        assert part in text
    assert asking.counters() == {"requests": 2, f"errors.{code}": 2}


@pytest.mark.parametrize(("code", "opens"), [("server-error", True), ("wrong-key", True), ("too-long", True),
                                             ("schema", False), ("image-too-large", False)])  # fmt: skip
def test_the_breaker_opens_only_if_the_server_fails(code: str, opens: bool) -> None:
    with chat_server(BAD[code]) as server:
        asking = Asking(server)
        for number in range(4):
            asking.ask(question(id_=str(number)))
    assert asking.breaker.is_open == opens
    assert asking.outcomes()[-1].error == ("breaker-open" if opens else code)
    assert len(server.requests) == (3 if opens else 4)
    assert asking.asker.totals().gauges["breaker_open"] == opens


def _trickle_head(handler: Handler) -> None:
    while not handler.server.closed.wait(0.02):
        handler.wfile.write(b"H")
        handler.wfile.flush()


def _trickle_responses(handler: Handler) -> None:
    while not handler.server.closed.wait(0.02):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        handler.wfile.flush()


WITHOUT_END: dict[str, Callable[[Handler], None]] = {
    "hung": lambda handler: handler.hang(),
    "slow body": lambda handler: handler.trickle(b" ", 0.02),
    "slow head": _trickle_head,
    "informational responses": _trickle_responses,
}


@pytest.mark.parametrize("chat", WITHOUT_END.values(), ids=WITHOUT_END.keys())
def test_a_server_without_answers_opens_the_breaker_also_with_short_deadlines(chat: Callable[[Handler], None]) -> None:
    with chat_server(chat) as server:
        asking = Asking(server, timeout_s=0.5)
        for number in range(50):
            if not asking.breaker.is_open:
                asking.ask(question(id_=str(number), left_s=0.2))
    assert asking.breaker.is_open
    assert {each.error for each in asking.outcomes()} <= {"too-slow", "expired"}


def test_short_deadlines_alone_do_not_open_the_breaker() -> None:
    with chat_server(WITHOUT_END["hung"]) as server:
        asking = Asking(server)
        for number in range(4):
            asking.ask(question(id_=str(number), left_s=0.05))
    assert not asking.breaker.is_open
    assert {each.error for each in asking.outcomes()} <= {"too-slow", "expired"}


def test_an_open_breaker_stays_open_after_a_short_probe_without_an_answer() -> None:
    with chat_server(BAD["server-error"]) as server:
        asking = Asking(server, pauses=False)
        for number in range(3):
            asking.ask(question(id_=str(number)))
        server.script.chat = WITHOUT_END["hung"]
        while len(server.requests) == 3:
            asking.ask(question(id_="short", left_s=0.3))
    assert asking.outcomes()[-1].error == "too-slow"
    assert asking.breaker.is_open


def test_the_log_says_when_the_breaker_opens_and_closes() -> None:
    with chat_server(BAD["server-error"]) as server:
        asking = Asking(server, pauses=False)
        found = []
        for number in range(6):
            if number == 4:
                server.script.chat = respond(json_answer("yes"))
            asking.ask(question(id_=str(number)))
            lines = [line for line in asking.lines if isinstance(line, LogLine) and not line.is_problem]
            found.append((len(lines), asking.breaker.is_open))
    assert found == [(0, False), (0, False), (1, True), (1, True), (2, False), (2, False)]


def test_questions_that_are_too_old_or_displaced_are_not_asked() -> None:
    with chat_server() as server:
        asking = Asking(server, queue=2)
        asking.ask(question(left_s=-1.0))
        for number in range(4):
            asking.asker.add(question(id_=f"q{number}"), (b"jpeg",))
        asking.asker.ask_next()
        asking.asker.add(question("unknown", "u"), ())
    found = {each.id: each.error for each in asking.outcomes()}
    assert found == {"1": "expired", "q0": "queue-full", "q1": "queue-full", "q3": "", "u": "unknown-check"}
    assert len(server.requests) == 1


def test_images_that_wait_are_limited_and_a_small_camera_keeps_its_own() -> None:
    with chat_server() as server:
        asking = Asking(server)
        asking.asker.add(question(id_="other", camera="yard"), (bytes(1000),))
        for number in range(40):
            asking.asker.add(question(id_=f"q{number}"), (bytes(2 << 20), bytes(1 << 20)))
            assert asking.asker.totals().gauges["queue_bytes"] <= 64 << 20
    assert [(each.id, each.error) for each in asking.outcomes()] == [(f"q{n}", "queue-full") for n in range(19)]
    assert asking.asker.totals().gauges["queue_bytes"] == 21 * (3 << 20) + 1000


def test_the_ledger_keeps_questions_and_answers(tmp_path: Path) -> None:
    with chat_server() as server, closing(Ledger(tmp_path, max_bytes=10**6)) as ledger:
        asking = Asking(server, ledger=ledger)
        asking.ask(question())
        server.script.chat = respond("", 500)
        asking.ask(question(id_="2"), (b"one", b"two"))
    entries = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(each["id"], each.get("answer"), each.get("error")) for each in entries] == [
        ("1", "yes", None), ("2", None, "server-error"),
    ]  # fmt: skip
    assert entries[0]["model"] == MODEL
    assert entries[0]["prompt"] == server.requests[0].prompt
    assert [len(each["images_sha256"]) for each in entries] == [1, 2]


RESPONSES: dict[str, tuple[Callable[[Handler], None], str]] = {
    "schema": (respond(json_answer("perhaps")), '{"answer": "perhaps", "confidence": 0.9}'),
    "no JSON": (respond(completion("Yes, at rtsp://me:secret@gate/1")), "Yes, at rtsp://***@gate/1"),
    "long": (respond(completion("x" * 9000)), "x" * 2000),
    "no answer": (respond('{"choices": []}'), '{"choices": []}'),
    "rubbish": (respond("<html>"), "<html>"),
    "refused": (respond("<p>rtsp://me:secret@gate/1</p>", 500), "<p>rtsp://***@gate/1</p>"),
    "too long": (lambda handler: handler.trickle(b"data: {}\n" * 20_000, 0.0), ("data: {}\n" * 223)[:2000]),
    "too slow": (lambda handler: handler.hang(), ""),
}


@pytest.mark.parametrize(("chat", "response"), RESPONSES.values(), ids=RESPONSES.keys())
@pytest.mark.parametrize("configured", [MODEL, None])
def test_the_ledger_keeps_the_model_and_the_response_of_an_error(
    tmp_path: Path, chat: Callable[[Handler], None], response: str, configured: str | None
) -> None:
    with chat_server(chat) as server, closing(Ledger(tmp_path, max_bytes=10**6)) as ledger:
        Asking(server, ledger=ledger, model=configured, timeout_s=60.0 if response else 0.5).ask(question())
    (entry,) = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert entry["error"]
    assert (entry["model"], entry.get("response", "")) == (MODEL, response)


def test_the_ledger_keeps_the_name_that_the_server_gives_to_the_model(tmp_path: Path) -> None:
    with chat_server(BAD["schema"]) as server, closing(Ledger(tmp_path, max_bytes=10**6)) as ledger:
        Asking(server, ledger=ledger, model="alias").ask(question())
    assert json.loads((tmp_path / "ledger.jsonl").read_text())["model"] == MODEL


def test_lines_and_questions_survive_encoding() -> None:
    lines: list[Line] = [Outcome(id="1", purpose="verify", error="busy"), LogLine(text="ü\n", is_problem=True)]
    for line in lines:
        text = encode_line(line)
        assert "\n" not in text
        assert decode_line(text) == line
    asked = question()
    assert decode_question(encode_question(asked)) == asked


def test_a_server_that_refuses_parallel_requests_answers_every_question() -> None:
    one = threading.Lock()

    def answer_one(handler: Handler) -> None:
        if not one.acquire(blocking=False):
            handler.send("", 429)
            return
        try:
            time.sleep(0.05)
        finally:
            one.release()
        handler.send(json_answer("yes"))

    failed = threading.Event()
    with chat_server(answer_one) as server:
        asking = Asking(server)
        for number in range(60):
            asking.asker.add(question(id_=str(number), camera=f"c{number % 5}"), (b"jpeg",))
        asking.asker.start(failed.set)
        wait_until(lambda: len(asking.outcomes()) == 60, "the outcomes", 60)
    assert {outcome.error for outcome in asking.outcomes()} == {""}
    assert len({outcome.id for outcome in asking.outcomes()}) == 60
    assert asking.counters()["requests"] > 60  # the server has refused some of them
    assert not asking.breaker.is_open
    assert asking.logs() == []
    assert not failed.is_set()
