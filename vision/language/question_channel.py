"""The connection over which stages send questions to the process that asks the language model.

The connection is a Unix stream socket with an abstract name. The process first reports each question to the program,
and then confirms the question to the stage. If the process ends before the confirmation, the stage sends the question
to the next process. Therefore, the program always knows which questions the process has: the reported questions without
an outcome.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from io import BufferedReader
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from vision.language.fair_queue import FairQueue
from vision.language.messages import LARGEST_IMAGE_BYTES, Question, decode_question, encode_question

_SIZE: Final = struct.Struct("!I")
_CREDENTIALS: Final = struct.Struct("3i")
_RECEIVED: Final = b"\1"
_LARGEST_HEADER_BYTES: Final = 1 << 20
_QUEUED: Final = 64  # questions of one stage that wait while the process receives none
_RETRY_S: Final = 0.05
_IDLE_S: Final = 0.2  # time after which an idle thread checks whether it must end
_MOST_FAILURES: Final = 3  # connections that one question can lose, because it could be what ends the process


class Sendable(Protocol):
    """A question with its images, which are JPEG files."""

    @property
    def question(self) -> Question: ...

    @property
    def images(self) -> Sequence[bytes]: ...


_S = TypeVar("_S", bound=Sendable)


class QuestionSender(Generic[_S]):
    """Sender of questions to the process that asks the language model.

    A thread takes the questions from a `FairQueue`.
    """

    def __init__(self, name: str, *, sent: Callable[[_S], None], given_up: Callable[[_S], None]) -> None:
        """Start the thread.

        Args:
            name: name of the socket of the process that asks the language model. This process can be absent.
            sent: function that receives each question that the process has confirmed. The thread calls this function.
            given_up: function that receives each question that was displaced, has expired, or could not be sent. Both
                the thread and `put` call this function.
        """
        self._path = _path(name)
        self._sent, self._given_up = sent, given_up
        self._queue: FairQueue[_S] = FairQueue(most=_QUEUED)
        self._finished, self._closed = threading.Event(), threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="questions", daemon=True)
        self._thread.start()

    def put(self, entry: _S) -> None:
        """Queue a question for the thread, without waiting.

        Pass the questions that this question displaces to `given_up`.
        """
        for displaced in self._queue.put(entry.question.camera, entry):
            self._given_up(displaced)

    def remove(self, camera: str, entry: _S) -> bool:
        """Remove a question.

        Return False if the question is no longer in the queue, for example because it was sent.
        """
        return self._queue.remove(camera, entry)

    def close(self, timeout_s: float) -> None:
        """Send the waiting questions for at most `timeout_s` seconds, abandon the rest, and stop. Idempotent."""
        self._finished.set()
        self._thread.join(timeout_s)
        self._closed.set()
        if (opened := self._socket) is not None:
            with contextlib.suppress(OSError):  # it is closed already
                opened.shutdown(socket.SHUT_RDWR)  # ends a call that waits for the process
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set() and not (self._finished.is_set() and not len(self._queue)):
            if self._connected() is None:
                self._wait_for_process()
            elif (entry := self._queue.take(_IDLE_S)) is not None:
                self._send(entry)
        while (entry := self._queue.take(0)) is not None:
            self._given_up(entry)
        self._disconnect()

    def _wait_for_process(self) -> None:
        """Abandon the questions that have expired, and pause before the next attempt to connect to the process."""
        while (expired := self._queue.take_expired()) is not None:
            self._given_up(expired)
        self._closed.wait(_RETRY_S)

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket | None:
        """Return the connection to the process, and open it if necessary. Return None if the process is absent."""
        if self._socket is None:
            opened = socket.socket(socket.AF_UNIX)
            try:
                opened.connect(self._path)
                if not _is_own(opened):
                    raise OSError("the socket belongs to a different user")
            except OSError:
                opened.close()
            else:
                self._socket = opened
        return self._socket

    def _send(self, entry: _S) -> None:
        """Send a question, and repeat this until the process confirms the question.

        Abandon the question if it expires, or if `_MOST_FAILURES` attempts fail.
        """
        failures = 0
        while failures < _MOST_FAILURES and not self._closed.is_set():
            if entry.question.expires_ns <= time.monotonic_ns():
                break
            if (connection := self._connected()) is None:
                self._wait_for_process()
                continue
            try:
                for part in (encode_question(entry.question), *entry.images):
                    connection.sendall(_SIZE.pack(len(part)))
                    connection.sendall(part)
                if connection.recv(1) == _RECEIVED:
                    self._sent(entry)
                    return
            except OSError:
                pass
            failures += 1
            self._disconnect()
        self._given_up(entry)


def receive_questions(name: str, add: Callable[[Question, Sequence[bytes]], None]) -> None:
    """Pass each question that stages send to the socket `name`, with its images, to `add`. Never return.

    Several threads call `add`, one for each stage. Ignore connections of other users.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(_path(name))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection, add), daemon=True).start()


def _serve(connection: socket.socket, add: Callable[[Question, Sequence[bytes]], None]) -> None:
    with connection, connection.makefile("rb") as reader, contextlib.suppress(OSError, EOFError, msgspec.MsgspecError):
        while _is_own(connection):
            question = decode_question(_part(reader, _LARGEST_HEADER_BYTES))
            images = [_part(reader, LARGEST_IMAGE_BYTES) for _ in question.offsets_ms]
            add(question, images)
            connection.sendall(_RECEIVED)


def _part(reader: BufferedReader, most_bytes: int) -> bytes:
    """Return the next part of a message. Raise `EOFError` if the connection ends, or if the part is too large."""
    size = reader.read(_SIZE.size)
    if len(size) < _SIZE.size or (number := _SIZE.unpack(size)[0]) > most_bytes:
        raise EOFError
    part = reader.read(number)
    if len(part) < number:
        raise EOFError
    return part


def _is_own(connection: socket.socket) -> bool:
    """Return True if the other end of a connection belongs to a process of this user."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1]) == os.getuid()


def _path(name: str) -> str:
    return f"\0{name}"
