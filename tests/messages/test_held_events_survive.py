"""Tests that an event that waits for a verdict is not lost if the program is killed: the next start publishes it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.messages.processes import python, wait_until
from tests.messages.samples import result
from tests.messages.test_open_states import opened, stored
from vision.config import AppConfig
from vision.language.process import LanguageProcess
from vision.messaging.publisher import Publisher
from vision.state.database import StateDatabase
from vision.types import Event

KILLED = """
import sys, time
from tests.messages.samples import result
from tests.messages.test_held_events_survive import alarm, publishing
with publishing(sys.argv[1], sys.argv[2]) as (publisher, _, database):
    events = (alarm("waits"), alarm("lasts", "begin"), alarm("drops"), alarm("now", id_=""))
    publisher.publish(result(events=events))
    print("published", flush=True)
    time.sleep(600)
"""


def alarm(name: str, phase: str = "instant", id_: str | None = None) -> Event:
    data = {"phase": phase, "class": "person"}
    return Event("rule", name, "gate", None, 5_000_000_000, data, id=f"id-{name}" if id_ is None else id_)


@contextmanager
def publishing(
    folder: Path | str, bind: str, wait_s: float = 3600
) -> Iterator[tuple[Publisher, LanguageProcess, StateDatabase]]:
    """Open a publisher whose events wait for a verdict. Without a verdict, the publisher drops the event `drops`."""
    drops: dict[str, Any] = {"name": "drops", "names": ["drops"], "on_timeout": "drop"}
    waits: dict[str, Any] = {"name": "waits", "keep": ["yes"]}
    content = {
        "pipeline": "count",
        "cameras": [{"id": "gate", "source": "synthetic:64x48"}],
        "language": {"url": "http://127.0.0.1:9/v1"},
        "verify": [each | {"prompt": "?", "wait_s": wait_s} for each in (drops, waits)],
    }
    process = LanguageProcess(AppConfig.model_validate(content))
    with (
        closing(opened(folder)) as database,
        Publisher(bind, node="n", event_log=database.events, gate=process) as publisher,
        process,
    ):
        process.start(publisher)
        yield publisher, process, database


def names(database: StateDatabase) -> list[tuple[str, str]]:
    return [(event.name, event.data["phase"]) for event in stored(database)]


@pytest.mark.integration
def test_next_start_publishes_the_events_that_waited_in_a_killed_program(tmp_path: Path) -> None:
    state, bind = tmp_path / "state", f"ipc://{tmp_path}/out"
    with python("-c", KILLED, state, bind) as program:
        program.wait_line(lambda line: line == "published")
        program.send(signal.SIGKILL)
        program.wait()
    restored = [("lasts", "begin"), ("lasts", "end"), ("waits", "instant")]
    with closing(opened(state)) as database, Publisher(bind, node="n", event_log=database.events) as again:
        assert names(database) == [("now", "instant")]
        again.publish(result(events=(alarm("later", id_=""),)))
        first, *others, last = names(database)
        assert (first, sorted(others), last) == (("now", "instant"), restored, ("later", "instant"))
        assert others.index(("lasts", "begin")) + 1 == others.index(("lasts", "end"))
        assert database.events.held() == []
    with closing(opened(state)) as database, Publisher(bind, node="n", event_log=database.events) as again:
        again.publish(result(events=(alarm("last", id_=""),)))
        assert len(names(database)) == 6  # no event is published twice


@pytest.mark.integration
def test_events_that_wait_no_more_are_not_published_again(tmp_path: Path) -> None:
    with publishing(tmp_path / "state", f"ipc://{tmp_path}/out", wait_s=0.5) as (publisher, process, database):
        publisher.publish(result(events=(alarm("waits"), alarm("drops"))))
        wait_until(lambda: names(database) == [("waits", "instant")], "the event after `wait_s`")
        wait_until(lambda: process.counters()["language.events.dropped"] == 1, "the dropped event")
        assert database.events.held() == []


@pytest.mark.integration
def test_an_event_that_was_dropped_because_of_its_verdict_is_not_published_again(tmp_path: Path) -> None:
    with publishing(tmp_path / "state", f"ipc://{tmp_path}/out") as (publisher, process, database):
        publisher.publish(result(events=(alarm("waits"),)))
        assert len(database.events.held()) == 1
        process._read(
            '{"type":"outcome","id":"id-waits","purpose":"verify",'
            '"verdict":{"check":"waits","answer":"no","model":"m","latency_ms":1.0}}'
        )
        wait_until(lambda: process.counters()["language.events.dropped"] == 1, "the dropped event")
        wait_until(lambda: database.events.held() == [], "the end of the wait")
        assert names(database) == []
