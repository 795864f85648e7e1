"""Tests that the tables of docs/messages.md match the messages, and that its programs run against a publisher."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.messages import documents
from tests.messages.processes import REPOSITORY, Program, wait_until
from tests.messages.samples import CLASSES, crossed, found, node_status, result, tracked
from vision.messaging import codec, schema
from vision.messaging.publisher import Publisher
from vision.state.database import StateDatabase

NODE_MODULES = REPOSITORY / "build" / "node"


def test_field_tables_match_schema() -> None:
    assert documents.fields_on_page() == documents.fields_expected(), "run: python -m tests.messages.documents"
    assert documents.replay_on_page() == documents.replay_expected(), "run: python -m tests.messages.documents"


def test_json_schemas_match_messages() -> None:
    expected = {name: documents.schema_text(schema) for name, schema in documents.json_schemas().items()}
    assert {path.name: path.read_text() for path in documents.SCHEMAS.iterdir()} == expected, (
        "run: python -m tests.messages.documents"
    )


def test_example_is_valid_message() -> None:
    shown = documents.example()
    message = codec.decode(f"detections/{shown['camera']}", json.dumps(shown).encode())
    assert json.loads(codec.encode(message)) == shown
    assert isinstance(message, schema.DetectionsMessage)


def python_with_client(folder: Path) -> list[str | Path]:
    return [sys.executable, _write(folder, "client.py")]


def python_alone(folder: Path) -> list[str | Path]:
    return [sys.executable, _write(folder, "bare.py")]


def node(folder: Path) -> list[str | Path]:
    program = shutil.which("node")
    if program is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm (packages nodejs and npm)")
    if not (NODE_MODULES / "node_modules" / "zeromq").is_dir():
        NODE_MODULES.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(NODE_MODULES), "zeromq@6"]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        if installed.returncode != 0:
            pytest.skip(f"npm could not install zeromq@6: {installed.stderr.strip().splitlines()[-1:]}")
    (folder / "node_modules").symlink_to(NODE_MODULES / "node_modules")
    return [program, _write(folder, "subscribe.js")]


def c(folder: Path) -> list[str | Path]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (packages gcc and libc6-dev)")
    for header, package in (("zmq.h", "libzmq3-dev"), ("cjson/cJSON.h", "libcjson-dev")):
        if subprocess.run(
            [compiler, "-E", "-include", header, "-"], input=b"", capture_output=True, check=False
        ).returncode:
            pytest.skip(f"needs {header} (package {package})")
    source = _write(folder, "subscribe.c")
    program = source.with_suffix("")
    options = ["-Wall", "-Wextra", "-Werror", "-lzmq", "-lcjson"]
    subprocess.run([compiler, str(source), "-o", str(program), *options], check=True)
    return [program]


def _write(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text(documents.program(name))
    return path


@pytest.mark.parametrize("command", [python_with_client, python_alone, node, c], ids=lambda command: command.__name__)
def test_documented_subscribers_print_sent_messages(
    command: Callable[[Path], list[str | Path]], tmp_path: Path
) -> None:
    first = Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES)
    with Program([*command(tmp_path), first.address, "gate"]) as program:
        with first as publisher:
            wait_until(lambda: publisher.socket.joins == 1, "the program has subscribed")
            publisher.publish(result(index=17))
            publisher.publish(result(camera="gate2", index=1000))
            assert program.line() == "gate 17 person 0.8765 0.1 1.1 2.1 3.1"
            assert program.line() == "gate 17 car 0.1 4.1 5.1 6.1 7.1"

            program.send(signal.SIGSTOP)
            program.send(signal.SIGCONT)
            for _ in range(3):  # numbers that are not sent: lost messages
                publisher.numbering.header("detections/gate")
            publisher.publish(result(tracked(1), index=21))
            assert program.line() == "lost 3 of detections/gate"
            assert program.line() == "gate 21 person 0.8765 0.1 1.1 2.1 3.1"

        with Publisher(first.address, node="n", class_names=CLASSES) as restarted:
            wait_until(lambda: restarted.socket.joins == 1, "the program has subscribed again")
            for _ in range(9):
                restarted.numbering.header("detections/gate")
            restarted.publish(result(found(1), index=3))
            assert program.line() == "gate 3 person 0.8765 0.1 1.1 2.1 3.1"


def test_c_subscriber_reports_wrong_arguments(tmp_path: Path) -> None:
    command = [str(part) for part in c(tmp_path)]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "usage" in wrong.stderr
    nowhere = subprocess.run([*command, "nonsense", "gate"], capture_output=True, text=True, check=False)
    assert nowhere.returncode == 1
    assert os.strerror(errno.EINVAL) in nowhere.stderr


def test_documented_programs_print_missed_events(tmp_path: Path) -> None:
    state = StateDatabase(tmp_path / "state", boot="x")
    with (
        closing(state),
        Publisher("tcp://127.0.0.1:*", node="n", event_log=state.events, replay="tcp://127.0.0.1:*") as publisher,
    ):
        publisher.publish_status(node_status())
        event = replace(crossed(), data={"phase": "instant"})
        publisher.publish(result(events=(event,) * 3))
        command: list[str | Path] = [
            sys.executable,
            _write(tmp_path, "events.py"),
            publisher.address,
            tmp_path / "done",
        ]
        for first in (1, 5):  # the second run continues after the first
            with Program(command) as program:
                for number in range(first, first + 3):
                    assert program.line() == f"{number} gate line_crossed door instant"
                publisher.publish(result(events=(event,)))
                assert program.line() == f"{first + 3} gate line_crossed door instant"
                done = f"{state.events.journal} {first + 3}"
                wait_until(lambda done=done: (tmp_path / "done").read_text() == done, "the program stores the number")  # type: ignore[misc]
            publisher.publish(result(events=(event,) * 3))
        assert publisher.replay_address is not None
        with Program([sys.executable, _write(tmp_path, "missed.py"), publisher.replay_address, "9"]) as program:
            assert [program.line() for _ in range(2)] == [f"{number} gate line_crossed door" for number in (10, 11)]
            assert program.wait() == 0
