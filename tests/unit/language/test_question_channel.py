"""Tests of the connection from stages to the process that asks the language model.

The tests check which questions are sent again, abandoned, or rejected.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.messages.processes import wait_until
from vision.language.messages import Question, decode_question
from vision.language.question_channel import QuestionSender, receive_questions

pytestmark = pytest.mark.unit


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    question: Question
    images: tuple[bytes, ...]


def entry(name: str, *images: bytes, left_s: float = 60.0) -> Entry:
    asked = Question(
        id=name, purpose="verify", check="real", camera="gate", epoch=0, frame=0, at="2026-01-31T12:00:00.000000Z",
        at_monotonic_ns=0, facts={}, expires_ns=time.monotonic_ns() + int(left_s * 1e9),
        offsets_ms=[0] * len(images), cropped=False,
    )  # fmt: skip
    return Entry(asked, images)


class Sender:
    """Sender that records the sent questions and the abandoned questions."""

    def __init__(self) -> None:
        self.name = f"vision-test-{secrets.token_hex(8)}"
        self.sent: list[str] = []
        self.given_up: list[str] = []
        self.sender = QuestionSender[Entry](
            self.name,
            sent=lambda each: self.sent.append(each.question.id),
            given_up=lambda each: self.given_up.append(each.question.id),
        )


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = Sender()
    yield made
    made.sender.close(0.0)


class Process:
    """Receiving end of the connection. If the test closes it, the sender detects the end of a killed process."""

    def __init__(self, name: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{name}")
        self._listener.listen()
        self._connection, _ = self._listener.accept()
        self._listener.close()  # the next process can then use the name
        self._reader = self._connection.makefile("rb")

    def receive(self) -> str:
        """Return the id of the next question, without reading its images."""
        (size,) = struct.unpack("!I", self._reader.read(4))
        return decode_question(self._reader.read(size)).id

    def confirm(self) -> None:
        self._connection.sendall(b"\1")

    def end(self) -> None:
        self._reader.close()
        self._connection.close()


def test_a_question_that_was_not_confirmed_goes_to_the_next_process(sender: Sender) -> None:
    sender.sender.put(entry("1"))
    first = Process(sender.name)
    assert first.receive() == "1"
    first.end()
    second = Process(sender.name)
    assert second.receive() == "1"
    second.confirm()
    wait_until(lambda: sender.sent == ["1"], "the confirmation", 60)
    second.end()
    sender.sender.put(entry("2"))
    third = Process(sender.name)
    assert third.receive() == "2"
    third.confirm()
    wait_until(lambda: sender.sent == ["1", "2"], "the confirmation", 60)
    assert sender.given_up == []
    third.end()


def test_a_question_that_ends_each_process_is_given_up(sender: Sender) -> None:
    sender.sender.put(entry("1"))
    for _ in range(3):
        process = Process(sender.name)
        assert process.receive() == "1"
        process.end()
    wait_until(lambda: sender.given_up == ["1"], "the end of the attempts", 60)
    assert sender.sent == []


def test_a_question_that_expires_after_a_lost_connection_is_given_up(sender: Sender) -> None:
    sender.sender.put(entry("1", left_s=1.0))
    process = Process(sender.name)
    assert process.receive() == "1"
    process.end()
    wait_until(lambda: sender.given_up == ["1"], "the end of the attempts", 60)


def test_closing_does_not_wait_for_a_process_that_hangs(sender: Sender) -> None:
    for name in ("1", "2"):
        sender.sender.put(entry(name, bytes(4 << 20)))
    process = Process(sender.name)
    process.receive()
    sender.sender.close(0.0)
    assert sorted(sender.given_up) == ["1", "2"]
    process.end()


@pytest.mark.parametrize("has_process", [False, True])
def test_thread_without_questions_ends_by_itself(sender: Sender, has_process: bool) -> None:
    if has_process:
        receiving(sender.name)
        sender.sender.put(entry("1"))
        wait_until(lambda: sender.sent == ["1"], "the confirmation", 60)
    sender.sender._finished.set()
    sender.sender._thread.join(60)
    assert not sender.sender._thread.is_alive()


def receiving(name: str) -> queue.SimpleQueue[tuple[str, list[bytes]]]:
    found: queue.SimpleQueue[tuple[str, list[bytes]]] = queue.SimpleQueue()

    def add(question: Question, images: object) -> None:
        assert isinstance(images, list)
        found.put((question.id, images))

    threading.Thread(target=receive_questions, args=(name, add), daemon=True).start()
    return found


def test_images_arrive_unchanged(sender: Sender) -> None:
    images = (os.urandom(3 << 20), b"", os.urandom(1000))
    sender.sender.put(entry("1", *images))
    assert receiving(sender.name).get(timeout=60) == ("1", list(images))
    wait_until(lambda: sender.sent == ["1"], "the confirmation", 60)


@pytest.mark.parametrize("data", [b"", b"\0\0\0\3abc", b"\xff" * 8, b"\0\0\0\x64abc"])
def test_what_is_no_question_ends_only_its_connection(sender: Sender, data: bytes) -> None:
    found = receiving(sender.name)
    sender.sender.put(entry("1"))
    assert found.get(timeout=60)[0] == "1"
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(f"\0{sender.name}")
        other.sendall(data)
        other.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
    sender.sender.put(entry("2"))
    assert found.get(timeout=60)[0] == "2"


def test_connections_of_other_users_are_refused(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    found = receiving(sender.name)
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # both ends belong to a different user now
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(60)
        wait_until(lambda: other.connect_ex(f"\0{sender.name}") == 0, "the socket", 60)
        assert other.recv(1) == b""
    sender.sender.put(entry("1", left_s=0.2))
    wait_until(lambda: sender.given_up == ["1"], "the end of the attempts", 60)
    assert found.empty()
