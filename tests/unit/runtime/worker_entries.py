"""Functions that the worker processes of tests execute, and a handler that records events of a worker."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from vision.errors import Closed, ConfigError
from vision.runtime.worker_channel import Message, WorkerChannel
from vision.runtime.worker_process import Worker

log = logging.getLogger("vision.tests.worker")


def echo(channel: WorkerChannel, setup: bytes) -> None:
    """Send back the setup, and then each received message with its descriptors."""
    channel.send(setup)
    channel.ready()
    while True:
        message = channel.receive(1.0)
        if message is not None:
            channel.send(message.data, message.fds, timeout_s=1.0)
            for fd in message.fds:
                os.close(fd)


def count_threads(channel: WorkerChannel, _setup: bytes) -> None:
    """Import NumPy. Send the number of threads of this process."""
    importlib.import_module("numpy")
    channel.send(str(len([*Path("/proc/self/task").iterdir()])).encode())
    echo(channel, b"")


def act(channel: WorkerChannel, setup: bytes) -> None:
    """Perform the action of each message: crash, hang, use memory, log, or ignore the stop."""
    channel.ready()
    kept = []
    while True:
        message = channel.receive(1.0)
        if message is None:
            continue
        match message.data.decode().split():
            case ["crash"]:
                log.error("last words")
                ctypes.string_at(0)
            case ["hang"]:
                ctypes.PyDLL(None).sleep(60)  # holds the GIL
            case ["allocate", mib]:
                kept.append(bytearray(os.urandom(1) * (int(mib) << 20)))
            case ["log", text]:
                log.warning("a line: %s", text)
            case ["raise"]:
                raise RuntimeError("a bug")
            case ["disconnect"]:
                os.close(channel.fileno())
                time.sleep(60)
            case ["linger"]:
                with contextlib.suppress(Closed):
                    while True:
                        channel.receive(1.0)
                time.sleep(60)


def wait_for_message(channel: WorkerChannel, _setup: bytes) -> None:
    """Report readiness after the first message."""
    while channel.receive(1.0) is None:
        pass
    echo(channel, b"")


def refuse(channel: WorkerChannel, setup: bytes) -> None:
    """Fail before the worker reports readiness."""
    raise ConfigError("no such model", hint="choose another model", code="no-model")


def flood(channel: WorkerChannel, setup: bytes) -> None:
    """Log far more lines than fit into a socket buffer, and then report the end."""
    channel.ready()
    for number in range(5000):
        log.info("line %d", number)
    channel.send(b"end", timeout_s=30.0)
    while True:
        channel.receive(1.0)


@dataclass
class Recorded:
    """Handler that records the events of a worker."""

    starts: int = 0
    messages: list[Message] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    first: tuple[bytes, ...] = ()  # sent to each new process

    def started(self, worker: Worker) -> None:
        self.starts += 1
        for data in self.first:
            assert worker.send(data)

    def received(self, worker: Worker, message: Message) -> None:
        self.messages.append(message)

    def lost(self, worker: Worker, reason: str) -> None:
        self.ends.append(reason)
