"""Tests that the event `started` of a real program states how the previous run ended."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.messages.processes import Program, python, wait_until

FAILS = """
from vision.pipelines import pipeline_with

def stage(result):
    raise RuntimeError("E-17")

build = pipeline_with([stage])
"""


def start(folder: Path, pipeline: str, *options: str) -> Program:
    config = folder / "camera.yaml"
    config.write_text(f"""
pipeline: {pipeline}
detect: {{backend: fake}}
cameras: [{{id: a, source: "synthetic:320x240@20?seed=1"}}]
state_dir: state
publish: {{bind: "ipc://{folder}/out"}}
""")
    return python("-m", "vision", "run", config, *options)


def started(folder: Path) -> list[dict[str, Any]]:
    """Return the data of all `started` events in the journal."""
    database = folder / "state" / "state.db"
    if not database.exists():
        return []
    with closing(sqlite3.connect(database)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone():
            return []
        payloads = [payload for (payload,) in connection.execute("SELECT payload FROM events ORDER BY number")]
    return [event["data"] for event in map(json.loads, payloads) if event["kind"] == "started"]


def test_started_says_how_the_last_run_ended(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    with start(tmp_path, "detect", "--for", "1s") as program:
        assert program.wait() == 0
    with start(tmp_path, "detect") as program:
        wait_until(lambda: len(started(tmp_path)) == 2, "the second run starts")
        program.send(signal.SIGKILL)
        program.wait()
    with start(tmp_path, "fails.py") as program:
        assert program.wait() == 1
    with start(tmp_path, "detect", "--for", "1s") as program:
        assert program.wait() == 0
    found = started(tmp_path)
    assert [data.get("after") for data in found] == [None, "stop", "crash", "error"]
    ends = [data["ended_at"] for data in found[1:]]
    assert ends == sorted(ends)
