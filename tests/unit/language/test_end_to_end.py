"""Tests of the verdicts, descriptions, and statements of a running program with a scripted server over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.chat_server import MODEL, ChatHttpServer, Handler, chat_server, completion, json_answer
from tests.messages.processes import wait_until
from tests.unit.language.test_process import undocumented
from tests.unit.runtime.test_result_processes import RULE, Running, running, site
from vision.client import Subscription
from vision.config import AppConfig
from vision.language.messages import LARGEST_IMAGE_BYTES
from vision.language.process import LanguageProcess
from vision.messaging import codec
from vision.messaging.publisher import Publisher
from vision.messaging.schema import EventMessage
from vision.runtime.builder import open_state
from vision.stages.inquiries import InquiryStage
from vision.types import Detections, Event, Frame, FrameMeta, Result, Timing

pytestmark = pytest.mark.integration

QUESTION = "Is the object red?"
CHECK = {"name": "real", "names": ["visited"], "prompt": QUESTION}


def asking(folder: Path, server: ChatHttpServer, *, processes: int = 1, **top: Any) -> AppConfig:
    """Return a configuration with a rule that reports each object that enters a zone."""
    language = {"url": server.url, "parallel": 4, "timeout_s": 60.0, "max_age_s": 120.0} | top.pop("language", {})
    return site(folder, processes=processes, **({"rules": [RULE]} | top), language=language)


def events(program: Running, kind: str = "rule") -> list[EventMessage]:
    return [event for event in program.of(EventMessage) if event.kind == kind]


def first_messages(program: Running) -> list[EventMessage]:
    return [event for event in events(program) if event.amends is None]


def amendments(program: Running) -> list[EventMessage]:
    return [event for event in program.of(EventMessage) if event.amends is not None]


def counters(program: Running) -> dict[str, int]:
    return program.reports[-1].node.counters if program.reports else {}


def is_counted(program: Running, name: str, least: int = 1) -> Callable[[], bool]:
    return lambda: counters(program).get(f"language.{name}", 0) >= least


def language_process() -> psutil.Process:
    found = [each for each in psutil.Process().children() if any("vision.language" in part for part in each.cmdline())]
    return found[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_verdict_amends_its_event(tmp_path: Path, processes: int) -> None:
    state_dir, ledger = str(tmp_path / "state"), str(tmp_path / "ledger")
    describe = {"name": "words", "names": ["visited"], "cameras": ["c0"], "crop": True}
    with chat_server(_answer_each) as server, ExitStack() as resources:
        config = asking(
            tmp_path, server, processes=processes, verify=[CHECK | {"frames": 2, "spacing_s": 0.1}],
            describe=[describe], state_dir=state_dir, language={"ledger": ledger},
        )  # fmt: skip
        with running(config, state=open_state(config, resources)) as program:
            wait_until(lambda: {each.camera for each in amendments(program)} == {"c0", "c1", "c2"}, "verdicts", 60)
            wait_until(lambda: any(each.description for each in amendments(program)), "a description", 60)
            wait_until(is_counted(program, "answers.real.yes"), "the counter", 60)
            requests = list(server.requests)
    assert program.failure is None
    assert undocumented(counters(program)) == []
    known = {event.id: event for event in first_messages(program)}
    for amendment in amendments(program):
        assert amendment.id is not None
        first = known[amendment.id]
        assert (amendment.amends, first.verdict, first.description) == (first.seq, None, None)
        assert (amendment.kind, amendment.at, amendment.data) == (first.kind, first.at, first.data)
        assert amendment.verdict or amendment.description
        if amendment.verdict is not None:
            assert (amendment.verdict.answer, amendment.verdict.confidence) == ("yes", 0.9)
            assert (amendment.verdict.check, amendment.verdict.model) == ("real", MODEL)
    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as database:
        stored = [json.loads(payload) for (payload,) in database.execute("SELECT payload FROM events")]
    assert [each["number"] for each in stored] == list(range(1, len(stored) + 1))
    assert any("verdict" in each for each in stored)
    question = next(each for each in requests if each.prompt.startswith(QUESTION))
    assert question.images == 2
    assert '"name":"visited"' in question.prompt
    entries = [json.loads(line) for line in (tmp_path / "ledger" / "ledger.jsonl").read_text().splitlines()]
    answered = {entry["id"]: entry for entry in entries if entry["check"] == "real"}
    sent = {_hashes(each.content): each.prompt for each in requests if each.images == 2}
    assert any(sent.get(tuple(entry["images_sha256"])) == entry["prompt"] for entry in answered.values())


def _answer_each(handler: Handler) -> None:
    is_description = "response_format" not in handler.server.requests[-1].body
    handler.send(completion("A red object.") if is_description else json_answer("yes"))


def _hashes(content: Any) -> tuple[str, ...]:
    images = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in content[1:]]
    return tuple(hashlib.sha256(image).hexdigest() for image in images)


@pytest.mark.parametrize("processes", [1, 2])
def test_events_that_wait_are_published_or_dropped(tmp_path: Path, processes: int) -> None:
    def answer(handler: Handler) -> None:
        is_first = '"camera":"c0"' in handler.server.requests[-1].prompt
        handler.send(json_answer("yes" if is_first else "no"))

    with chat_server(answer) as server:
        verify = [CHECK | {"wait_s": 100, "keep": ["yes"]}]
        config = asking(tmp_path, server, processes=processes, verify=verify, language={"parallel": 1})
        with running(config) as program:
            wait_until(is_counted(program, "events.dropped"), "a dropped event", 60)
            wait_until(lambda: len(events(program)) > 0, "a published event", 60)
    assert {event.camera for event in events(program) if event.verdict} == {"c0"}
    assert {event.verdict.answer for event in events(program) if event.verdict} == {"yes"}
    assert not amendments(program)


def test_a_dropped_event_starts_the_cooldown_of_its_rule(tmp_path: Path) -> None:
    with chat_server(lambda handler: handler.send(json_answer("no"))) as server:
        verify, rules = [CHECK | {"wait_s": 100, "keep": ["yes"]}], [RULE | {"cooldown": "1h"}]
        with running(asking(tmp_path, server, verify=verify, rules=rules)) as program:
            wait_until(is_counted(program, "events.dropped", 3), "an event of each camera is dropped", 60)
            entered = Counter(event.camera for event in events(program, "zone_entered"))
            wait_until(
                lambda: all(
                    Counter(event.camera for event in events(program, "zone_entered"))[camera] >= entered[camera] + 2
                    for camera in ("c0", "c1", "c2")
                ), "further events of each camera", 60,
            )  # fmt: skip
            dropped = counters(program)["language.events.dropped"]
    assert (program.failure, dropped, len(server.requests)) == (None, 3, 3)
    assert not events(program)


@pytest.mark.parametrize(("on_timeout", "is_sent"), [("send", True), ("drop", False)])
def test_a_server_that_hangs_delays_only_waiting_events(tmp_path: Path, on_timeout: str, is_sent: bool) -> None:
    with chat_server(lambda handler: handler.hang()) as server:
        verify = [CHECK | {"wait_s": 0.2, "on_timeout": on_timeout}]
        with running(asking(tmp_path, server, verify=verify)) as program:
            wait_until(is_counted(program, "events.timed_out", 3), "timeouts", 60)
            wait_until(lambda: len(events(program, "zone_entered")) > 3, "other events", 60)
    assert program.failure is None
    assert bool(events(program)) == is_sent
    assert all(event.verdict is None for event in program.of(EventMessage))


@pytest.mark.parametrize("wait_s", [None, 3600])
def test_events_about_which_the_server_is_not_asked_are_in_the_ledger(tmp_path: Path, wait_s: int | None) -> None:
    """Make the server fail until the breaker opens. The ledger must contain the next events, which do not wait."""
    with chat_server(lambda handler: handler.send({"error": "out of memory"}, 500)) as server:
        language = {"ledger": str(tmp_path / "ledger"), "parallel": 1}
        verify = [CHECK] if wait_s is None else [CHECK | {"wait_s": wait_s}]
        with running(asking(tmp_path, server, verify=verify, language=language)) as program:
            wait_until(is_counted(program, "errors.breaker-open", 3), "questions that are not asked", 60)
    assert program.failure is None
    lines = [json.loads(line) for line in (tmp_path / "ledger" / "ledger.jsonl").read_text().splitlines()]
    unasked = {line["id"]: line for line in lines if line.get("unasked") == "breaker-open"}
    published = {event.id: event for event in first_messages(program)}
    assert len(unasked) >= 3
    for id_, line in unasked.items():
        event = published[id_]
        about = {"camera": event.camera, "at": event.at, "kind": event.kind, "name": event.name, "check": "real"}
        assert {key: line[key] for key in about} == about


def test_waiting_events_are_published_at_the_end(tmp_path: Path) -> None:
    with (
        chat_server(lambda handler: handler.hang()) as server,
        running(asking(tmp_path, server, verify=[CHECK | {"wait_s": 600}])) as program,
    ):
        wait_until(is_counted(program, "events.waiting"), "a waiting event", 60)
        assert not events(program)
    assert program.failure is None


def test_a_statement_is_watched_until_it_is_true(tmp_path: Path) -> None:
    def answer(handler: Handler) -> None:
        handler.send(json_answer("yes" if len(handler.server.requests) > 4 else "no"))

    watch = {"name": "open", "statement": "The gate is open.", "every_s": 0.1, "cameras": ["c1"]}
    with chat_server(answer) as server:
        top: dict[str, Any] = {"pipeline": "detect", "analytics": {}, "rules": [], "language": {"parallel": 1}}
        config = asking(tmp_path, server, describe=[watch], **top)
        with running(config) as program:
            wait_until(lambda: bool(events(program, "statement")), "the statement is true", 60)
            asked = len(server.requests)
            wait_until(lambda: program.cameras()["c1"].published > 100, "more frames", 60)
            assert len(server.requests) == asked
    (event,) = events(program, "statement")
    assert (event.camera, event.name, event.data["statement"]) == ("c1", "open", "The gate is open.")
    assert event.verdict is not None
    assert event.verdict.answer == "yes"


def test_a_killed_process_does_not_repeat_a_true_statement(tmp_path: Path) -> None:
    watches = [
        {"name": name, "statement": "The gate is open.", "every_s": 0.1, "cameras": ["c1"]}
        for name in ("once", "later", "again")
    ]
    watches[1]["again_after_s"], watches[2]["again_after_s"] = 3600, 0.1
    with chat_server(lambda handler: handler.send(json_answer("yes"))) as server:
        top: dict[str, Any] = {"pipeline": "detect", "analytics": {}, "rules": []}

        def published() -> Counter[str]:
            return Counter(event.name for event in events(program, "statement"))

        def is_published_again(most: int) -> Callable[[], bool]:
            return lambda: published()["again"] > most

        with running(asking(tmp_path, server, describe=watches, **top)) as program:
            for kill in range(2):
                wait_until(lambda: len(published()) == 3, "the statements", 60)
                os.kill(language_process().pid, signal.SIGKILL)
                wait_until(is_counted(program, "restarts", kill + 1), "the restart", 60)
                wait_until(is_published_again(published()["again"] + 2), "answers of the new process", 60)
    assert (published()["once"], published()["later"]) == (1, 1)
    assert program.failure is None


def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    with chat_server() as server, running(asking(tmp_path, server, verify=[CHECK])) as program:
        wait_until(lambda: bool(amendments(program)), "a verdict", 60)
        os.kill(language_process().pid, signal.SIGKILL)
        wait_until(is_counted(program, "restarts"), "the restart", 60)
        before = len(amendments(program))
        wait_until(lambda: len(amendments(program)) > before, "another verdict", 60)
    assert program.failure is None


@pytest.mark.parametrize("on_timeout", ["send", "drop"])
def test_a_killed_process_ends_the_wait_of_its_events(tmp_path: Path, on_timeout: str) -> None:
    """Repeatedly kill the process that asks while the server hangs. Each event must be published once, or dropped."""
    with chat_server(lambda handler: handler.hang()) as server:
        verify = [CHECK | {"wait_s": 3600, "on_timeout": on_timeout}]
        config = asking(tmp_path, server, verify=verify, language={"ledger": str(tmp_path / "ledger")})
        with running(config) as program:
            for kill in range(3):
                wait_until(
                    is_counted(program, "events.held", 1 + counters(program).get("language.lost", 0)), "events", 60
                )
                wait_until(lambda: len(server.requests) > 0, "a request", 60)
                server.requests.clear()
                os.kill(language_process().pid, signal.SIGKILL)
                wait_until(is_counted(program, "restarts", kill + 1), "the restart", 60)
                wait_until(is_counted(program, "events.timed_out", kill + 1), "the end of the wait", 60)
            lost = counters(program)["language.lost"]
            published = [each.id for each in events(program)]
    assert program.failure is None
    lines = [json.loads(line) for line in (tmp_path / "ledger" / "ledger.jsonl").read_text().splitlines()]
    ended = [line["id"] for line in lines if line.get("unasked") == "process-ended"]
    assert len(ended) == len(set(ended)) >= lost >= 3
    if on_timeout == "send":
        assert len(published) == len(set(published)) >= 3
        assert set(published) <= set(ended)
    else:
        assert not published
        assert {line["id"] for line in lines if line.get("dropped") == "process-ended"} == set(ended)


@pytest.mark.parametrize("waiting", [{}, {"wait_s": 3600}, {"wait_s": 3600, "on_timeout": "drop"}])
def test_a_killed_result_worker_loses_no_event_that_waits(tmp_path: Path, waiting: dict[str, Any]) -> None:
    """Kill a result worker whose questions lack images, so that the next processes do not know these questions.

    The events of these questions must not wait for an hour. Each zone entry must have the event of the rule that
    reports it.
    """
    with chat_server() as server, ExitStack() as resources:
        verify, state_dir = [CHECK | waiting | {"frames": 16, "spacing_s": 60}], str(tmp_path / "state")
        language = {"ledger": str(tmp_path / "ledger"), "max_age_s": 3600}
        config = asking(tmp_path, server, processes=2, verify=verify, state_dir=state_dir, language=language)
        with running(config, state=open_state(config, resources)) as program:
            wait_until(
                lambda: len({each.camera for each in events(program, "zone_entered")}) == 3, "events of all cameras", 60
            )
            program.workers()[0].kill()  # of the cameras c0 and c2
            wait_until(is_counted(program, "lost", 2), "the lost questions", 60)
            wait_until(lambda: any(each.epoch for each in program.of(EventMessage)), "events of the new worker", 60)
            asked = len(server.requests)
    assert (program.failure, asked) == (None, 0)
    lines = [json.loads(line) for line in (tmp_path / "ledger" / "ledger.jsonl").read_text().splitlines()]
    ended = {line["id"]: line for line in lines if line.get("unasked") == "worker-ended"}
    assert {line["camera"] for line in ended.values()} == {"c0", "c2"}
    published = {each.id for each in events(program)}
    if waiting.get("on_timeout") == "drop":
        assert {line["id"] for line in lines if line.get("dropped") == "worker-ended"} == set(ended)
        assert not published & set(ended)
    else:
        assert ended.keys() <= published  # before the end of the program, which publishes all events that wait
        assert _stored(tmp_path, "rule") == _stored(tmp_path, "zone_entered")


def _stored(folder: Path, kind: str) -> Counter[tuple[str, int, int, int | None]]:
    """Return the frame and the track of each stored event of the kind `kind`."""
    with closing(sqlite3.connect(folder / "state" / "state.db")) as database:
        stored = [json.loads(payload) for (payload,) in database.execute("SELECT payload FROM events")]
    return Counter((e["camera"], e["epoch"], e["frame"], e.get("track_id")) for e in stored if e["kind"] == kind)


class SlowPublisher(Publisher):
    """Publisher that waits before it publishes late events, as with a slow disk."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys)
        self.begins, self.proceeds = threading.Event(), threading.Event()

    def publish_late(self, events: Sequence[EventMessage]) -> None:
        self.begins.set()
        assert self.proceeds.wait(60)
        super().publish_late(events)


@pytest.mark.parametrize("is_closed", [False, True])
def test_the_end_of_a_state_is_never_published_before_its_start(tmp_path: Path, is_closed: bool) -> None:
    content = {
        "pipeline": "count",
        "cameras": [{"id": "gate", "source": "synthetic:64x48"}],
        "language": {"url": "http://127.0.0.1:9/v1"},
        "verify": [{"name": "real", "prompt": "?", "wait_s": 0.01}],
    }
    meta = FrameMeta("gate", 3, 0, 1, 10**18, 64, 48)
    none = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))
    result = Result(meta, none, Timing(0, 0, 0))
    phases = [("begin", "1"), ("end", "")]
    begin, end = (
        codec.event(codec.UNNUMBERED, Event("rule", "open", "gate", None, 1, {"phase": phase}, id=id_), result)
        for phase, id_ in phases
    )
    with ExitStack() as resources:
        process = LanguageProcess(AppConfig.model_validate(content))
        publisher = SlowPublisher(f"ipc://{tmp_path}/out", node="n", gate=process)
        resources.enter_context(publisher)
        subscription = resources.enter_context(Subscription(publisher.address, kinds=("events",)))
        wait_until(lambda: publisher.socket.joins > 0, "the subscriber joins")
        with process:
            process.start(publisher)
            publisher.publish_events([begin])
            assert publisher.begins.wait(60)
            publisher.publish_events([end])
            publisher.proceeds.set()
            if not is_closed:
                received = [_next(subscription), _next(subscription)]
        if is_closed:
            received = [_next(subscription), _next(subscription)]
    assert [each.data["phase"] for each in received] == ["begin", "end"]


def _next(subscription: Subscription) -> EventMessage:
    while not isinstance(item := subscription.receive(60), EventMessage):
        assert item is not None
    return item


class Published:
    """Receiver of the late events that the process publishes."""

    def __init__(self) -> None:
        self.events: list[EventMessage] = []

    def publish_late(self, events: Sequence[EventMessage]) -> None:
        self.events += events


def _resident_mib() -> float:
    return sum(each.memory_info().rss for each in (psutil.Process(), language_process())) / 2**20


def test_memory_stays_flat_if_large_images_wait_for_a_server_that_hangs() -> None:
    content = {
        "pipeline": "count",
        "cameras": [{"id": f"c{number}", "source": "synthetic:64x48"} for number in range(4)],
        "verify": [{"name": "real", "prompt": "?"}],
    }
    none = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))
    jpeg = np.random.default_rng(0).integers(0, 256, LARGEST_IMAGE_BYTES, np.uint8)
    with chat_server(lambda handler: handler.hang()) as server:
        config = AppConfig.model_validate(content | {"language": {"url": server.url, "max_age_s": 3600}})
        with LanguageProcess(config) as process:
            process.start(Published())
            asks = InquiryStage(config, process.address, lambda _frame, _box: jpeg.tobytes())
            with closing(asks):
                resident_mib = []
                for number in range(120):
                    meta = FrameMeta(f"c{number % 4}", number, 0, number, 10**18, 64, 48)
                    event = Event("rule", "intruder", meta.camera_id, None, 1)
                    frame = Frame.wrap(meta, np.zeros((48, 64, 3), np.uint8), "bgr")
                    asks.with_frame(Result(meta, none, Timing(0, 0, 0), events=(event,)), frame)
                    least = number + 1
                    wait_until(lambda: asks.counters()["language.questions.sent"] >= least, "the question", 60)  # noqa: B023
                    resident_mib.append(_resident_mib())
                wait_until(lambda: process.counters()["language.errors.queue-full"] >= 100, "the limit", 60)
                assert process.counters()["language.queue_bytes"] <= 64 << 20
    assert max(resident_mib[60:]) - max(resident_mib[30:60]) < 16
    assert max(resident_mib) - resident_mib[0] < 64 + 48  # the images that wait, and those of one request


@pytest.mark.parametrize("on_timeout", ["send", "drop"])
def test_an_event_whose_image_is_too_large_does_not_wait(tmp_path: Path, on_timeout: str) -> None:
    content = {
        "pipeline": "count",
        "cameras": [{"id": "gate", "source": "synthetic:64x48"}],
        "language": {"url": "http://127.0.0.1:9/v1", "ledger": str(tmp_path)},
        "verify": [{"name": "real", "prompt": "?", "wait_s": 3600, "on_timeout": on_timeout}],
    }
    config, published = AppConfig.model_validate(content), Published()
    meta = FrameMeta("gate", 3, 0, 1, 10**18, 64, 48)
    frame = Frame.wrap(meta, np.zeros((48, 64, 3), np.uint8), "bgr")
    none = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))
    result = Result(meta, none, Timing(0, 0, 0), events=(Event("rule", "intruder", "gate", None, 1),))
    with LanguageProcess(config) as process:
        process.start(published)
        with closing(
            InquiryStage(config, process.address, lambda _frame, _box: bytes(LARGEST_IMAGE_BYTES + 1))
        ) as asks:
            asked = asks.with_frame(result, frame)
            event = codec.event(codec.UNNUMBERED, asked.events[0], asked)
            admitted = list(process.admit([event]))
            wait_until(lambda: process.counters()["language.events.timed_out"] == 1, "the end of the wait", 60)
    assert [*admitted, *published.events] == ([event] if on_timeout == "send" else [])
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    expected: dict[str, Any] = {
        "id": event.id, "check": "real", "camera": "gate", "at": event.at, "kind": "rule", "name": "intruder",
        "dropped": "image-failed", "images_sha256": [],
    }  # fmt: skip
    unasked = {("unasked" if key == "dropped" else key): value for key, value in expected.items()}
    assert lines == ([unasked, expected] if on_timeout == "drop" else [unasked])
