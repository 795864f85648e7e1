"""Tests of the verdicts in the events of a running program, which sends its questions to the server of llama.cpp."""

from __future__ import annotations

from pathlib import Path

from tests.language.conftest import KEY
from tests.language.llama_server import MODEL, LlamaServer
from tests.messages.processes import wait_until
from tests.unit.runtime.test_result_processes import RULE, running, site
from vision.messaging.schema import EventMessage


def test_event_gets_a_verdict_of_the_server(tmp_path: Path, llama: LlamaServer) -> None:
    # A grammar forces the model, which speaks no language, to one of the answers.
    server = {"url": llama.url, "api_key": KEY, "timeout_s": 60.0, "max_age_s": 120.0}
    server["extra_body"] = {"grammar": 'root ::= "yes" | "no"'}
    verify = {
        "name": "real",
        "names": ["visited"],
        "prompt": "Is it real?",
        "format": "token",
        "frames": 2,
        "crop": True,
    }
    config = site(tmp_path, processes=1, rules=[RULE], language=server, verify=[verify])
    with running(config) as program:

        def verdicts() -> list[EventMessage]:
            return [event for event in program.of(EventMessage) if event.verdict is not None]

        wait_until(lambda: bool(verdicts()), "a verdict", 60)
    first = {event.id: event for event in program.of(EventMessage) if event.amends is None}
    for event in verdicts():
        assert event.verdict is not None
        assert (event.verdict.check, event.verdict.model) == ("real", MODEL)
        assert event.verdict.answer in ("yes", "no")
        assert event.verdict.latency_ms > 0
        assert event.amends == first[event.id].seq
