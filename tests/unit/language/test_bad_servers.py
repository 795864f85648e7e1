"""Test of `vision run` with a server that gives bad responses: the log, the counters, and the events."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.chat_server import MODEL, Handler, chat_server, json_answer
from tests.messages.processes import python
from tests.sinks.servers import free_port
from vision.client import EventMessage, NodeStatusMessage, Subscription

pytestmark = pytest.mark.integration

KEY = "key-of-the-test-5150"
_DEADLINE_S = 120.0
_WAITING, _FREE = "gate", "street"  # cameras whose events wait for the verdict, and do not wait


def _respond(body: object, status: int = 200) -> Callable[[Handler], None]:
    return lambda handler: handler.send(body, status)


BAD: dict[str, Callable[[Handler], None]] = {
    "wrong-key": _respond({"error": {"message": f"The API key {KEY} is invalid."}}, 401),
    "no-model": _respond({"error": {"message": f"The model `{MODEL}` does not exist."}}, 404),
    "schema": _respond(json_answer("perhaps")),
    "too-long": lambda handler: handler.trickle(b"data: {}\n" * 20_000, 0.0),
    "image-too-large": _respond({"error": {"message": "The image is too large."}}, 413),
}
ORDER = tuple(BAD)  # in this order, the server never fails three times in a row, so the breaker stays closed
TEXTS = {
    "wrong-key": "responds with 401: The API key *** is invalid.",
    "no-model": f"responds with 404: The model `{MODEL}` does not exist.",
    "schema": "expected an answer that matches the JSON schema; 'perhaps' is not one of ['yes', 'no']",
    "too-long": "expected at most 1048576 bytes",
    "image-too-large": "responds with 413: The image is too large.",
}


def _site(folder: Path, url: str) -> tuple[Path, str]:
    """Write camera.yaml. Return its path, and the address of the publisher."""
    zone = {"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]], "anchor": "center"}
    address = f"tcp://127.0.0.1:{free_port()}"
    check = {"names": ["visited"], "prompt": "Is it red?"}
    cameras = (_WAITING, _FREE)
    content = {
        "pipeline": "count",
        "detect": {"backend": "fake"},
        "cameras": [{"id": name, "source": "synthetic:160x120@30?objects=3"} for name in cameras],
        "analytics": {name: {"units": "fraction", "zones": [zone]} for name in cameras},
        "rules": [{"name": "visited", "when": "zone_entered left"}],
        "language": {"url": url, "model": MODEL, "api_key": "${LANGUAGE_KEY}", "parallel": 1, "timeout_s": 60},
        "verify": [
            check | {"name": "waits", "cameras": [_WAITING], "wait_s": 3600, "keep": ["yes"]},
            check | {"name": "amends", "cameras": [_FREE]},
        ],
        "publish": {"bind": address},
        "status": {"interval_s": 0.2},
    }
    path = folder / "camera.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, address


def test_bad_responses_are_logged_once_and_counted_and_leave_the_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGUAGE_KEY", KEY)
    codes = itertools.cycle(ORDER)
    asked: dict[tuple[str, str], str] = {}  # response to the question about each event, by camera and time

    def answer(handler: Handler) -> None:
        code = next(codes)
        facts = json.loads(handler.received.prompt.split("What is known: ")[1].split("\n")[0])
        asked[facts["camera"], facts["at"]] = code
        BAD[code](handler)

    events: list[EventMessage] = []
    counters: dict[str, int] = {}

    def published() -> Counter[tuple[str, str]]:
        """Return how many published events got each response, by camera and response."""
        known = [(event.camera, asked.get((event.camera, event.at), "")) for event in events]
        return Counter(each for each in known if each[1])

    with chat_server(answer) as server:
        path, address = _site(tmp_path, server.url)
        with python("-m", "vision", "run", path) as program, closing(
            Subscription(address, kinds=("events", "status"))
        ) as subscription:  # fmt: skip
            wanted = [(camera, code) for camera in (_WAITING, _FREE) for code in BAD]
            began_s = time.monotonic()
            while not (
                all(published()[each] >= 2 for each in wanted)
                and all(counters.get(f"language.errors.{code}", 0) >= 4 for code in BAD)
            ):
                assert time.monotonic() < began_s + _DEADLINE_S, (published(), counters, program.pending())
                item = subscription.receive(1.0)
                if isinstance(item, EventMessage) and item.kind == "rule":
                    events.append(item)
                elif isinstance(item, NodeStatusMessage):
                    counters = dict(item.counters)
            assert counters["language.events.timed_out"] >= 10
            program.send(signal.SIGTERM)
            assert program.wait() == 0
            log, minutes = "\n".join(program.pending()), int((time.monotonic() - began_s) / 60)
    assert {(event.verdict, event.amends) for event in events} == {(None, None)}
    assert len({event.id for event in events}) == len(events)
    assert not any(name.startswith("language.answers") for name in counters)
    assert KEY not in log
    for text in TEXTS.values():
        assert 1 <= log.count(text) <= 1 + minutes
    for line in (line for line in log.splitlines() if any(text in line for text in TEXTS.values())):
        assert server.url in line
        assert f"verify waits, camera {_WAITING}: " in line or f"verify amends, camera {_FREE}: " in line
