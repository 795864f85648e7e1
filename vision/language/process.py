"""`LanguageProcess` supervises the process that asks the language model, and publishes events with the answers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import msgspec
import zmq

from vision.config.app import AppConfig
from vision.errors import Closed, ConfigError, registered_secrets
from vision.language.held_events import HeldEvents
from vision.language.ledger import Ledger
from vision.language.messages import (
    LogLine,
    Outcome,
    Received,
    Statement,
    Totals,
    TrueStatement,
    Unasked,
    decode_line,
    failures_address,
)
from vision.language.open_questions import OpenQuestions
from vision.messaging.helper_process import HelperProcess
from vision.messaging.schema import EventMessage

log = logging.getLogger(__name__)

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vision.language.program import main; main()"
)
_PACKAGES: Final = ("httpx", "jsonschema")
_SILENT_S: Final = 30.0  # time without a line after which the process counts as hanging
_POLL_S: Final = 1.0
_MOST_WAITING: Final = 4096  # answers and amendments that wait for the thread
_STOP_S: Final = 2.0

_Work: TypeAlias = "list[EventMessage] | Unasked | Outcome | Statement"


class PublishesLate(Protocol):
    """A publisher that can also publish the events that the gate has held."""

    def publish_late(self, events: Sequence[EventMessage]) -> None:
        """Publish events without passing them to the gate again."""


class LanguageProcess:
    """The process that asks the language model, and the thread that publishes events because of its answers.

    The class is the `EventGate` of the publisher. `address` is the name of the socket to which stages send questions.
    If a stage cannot send a question, the stage reports this to `failures_address(address)`, which a second thread of
    this class reads. If the process ends, the questions that it has not answered are lost, and the events of these
    questions stop waiting. The same applies to the questions of a result worker that ends. The next process does not
    check the statements that count as true.
    """

    def __init__(self, config: AppConfig) -> None:
        """Check the requirements. `start` starts the process and the threads.

        Raises:
            ConfigError: a package is missing, or the folder of the ledger cannot be used.
            Unavailable: the folder of the ledger cannot be used at present.
        """
        assert config.language is not None
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            hint = "pip install 'vision-streams[language]'"
            raise ConfigError(f"language: the package {missing[0]} is missing", hint=hint, code="package-missing")
        self._config = config
        self._ledger: Ledger | None = None
        if (checked := self._open_ledger()) is not None:
            checked.close()
        self.address = f"vision-{secrets.token_hex(16)}"
        self._held = HeldEvents(config.verify, config.describe)
        self._counts = Counter[str](), Totals(counters={}, gauges={})  # of the earlier processes, and of this one
        self._open = OpenQuestions(config.verify, config.describe)
        self._heard_s = time.monotonic()
        self._work: queue.Queue[_Work | None] = queue.Queue(_MOST_WAITING)
        self._discarded = 0
        self._publisher: PublishesLate | None = None
        self._error: Exception | None = None
        self._true: dict[tuple[str, str], TrueStatement] = {}  # by the name of the entry and the camera
        program = ["-I", "-c", _PROGRAM, json.dumps(sys.path)]
        self._process = HelperProcess("language", program, self._options(), on_line=self._read, on_end=self._forget)
        self._thread = threading.Thread(target=self._publish, name="verdicts", daemon=True)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def start(self, publisher: PublishesLate) -> None:
        """Start the process and the threads. Events are published through `publisher`.

        Raises:
            ConfigError: the folder of the ledger cannot be used.
            Unavailable: the folder of the ledger cannot be used at present.
            OSError: the process cannot be started.
        """
        self._publisher = publisher
        self._ledger = self._open_ledger()
        self._context = zmq.Context()
        failures = self._context.socket(zmq.PULL)
        try:
            failures.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
            failures.bind(failures_address(self.address))
        except zmq.ZMQError:
            failures.close()  # `close` waits until the socket is closed
            raise
        threading.Thread(target=self._receive, args=(failures,), name="failed-questions", daemon=True).start()
        self._process.start()
        self._thread.start()

    def admit(self, events: Sequence[EventMessage]) -> Sequence[EventMessage]:
        """Return the events to publish immediately. Hold or discard the other events, as `HeldEvents.admit` does.

        Raises:
            Exception: the thread failed with this exception when it published events.
        """
        if self._error is not None:
            raise self._error
        self._open.add(events)
        return self._held.admit(events)

    def waiting(self, events: Sequence[EventMessage]) -> Sequence[EventMessage]:
        """Return those of `events` that wait for a verdict, and that are published if no verdict arrives."""
        return self._held.waiting_of(events)

    def dropped(self) -> Sequence[str]:
        """Return the ids of the events that were dropped since the previous call."""
        return self._held.dropped()

    def sent(self, events: Sequence[EventMessage]) -> None:
        """Keep published events for later amendments. Publish the amendments for answers that have already arrived."""
        amendments = self._held.sent(events)
        if amendments:
            self._add(amendments)

    def worker_ended(self, cameras: Collection[str]) -> None:
        """Abandon the questions that the result worker of these cameras had when it ended."""
        self._open.worker_ended(cameras)
        self._add([])  # wakes the thread

    def counters(self) -> dict[str, int]:
        """Return the counters of the process and of the held events, by name."""
        earlier, totals = self._counts
        counters = earlier + Counter(totals.counters)
        counters["lost"] = self._open.lost
        own = {f"events.{name}": count for name, count in self._held.counters.items()}
        own |= {"events.waiting": self._held.waiting(), "events.discarded": self._discarded}
        own["restarts"] = self._process.restarts
        if self._ledger is not None:
            own["ledger_lost"] = counters["ledger_lost"] + self._ledger.lost + self._held.forgotten
        return {f"language.{name}": int(value) for name, value in {**counters, **totals.gauges, **own}.items()}

    def close(self) -> None:
        """End the process. Publish or drop the events that still wait, as `on_timeout` states. Idempotent."""
        self._process.close()
        if self._context is not None:
            self._context.term()  # ends `_receive`
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):  # the thread hangs in the publisher
                self._work.put(None, timeout=_STOP_S)
            self._thread.join(_STOP_S)

    def _options(self) -> dict[str, object]:
        """Return the options of the next process."""
        assert self._config.language is not None
        return {
            "address": self.address,
            "language": self._config.language.model_dump(mode="json"),
            "verify": [entry.model_dump(mode="json", exclude_unset=True) for entry in self._config.verify],
            "describe": [entry.model_dump(mode="json", exclude_unset=True) for entry in self._config.describe],
            "secrets": registered_secrets(),
            "true_statements": msgspec.to_builtins(list(self._true.values())),
        }

    def _open_ledger(self) -> Ledger | None:
        config = self._config.language
        if config is None or config.ledger is None:
            return None
        return Ledger(Path(config.ledger), max_bytes=config.ledger_mb * 1_000_000)

    def _read(self, text: str) -> None:
        """Handle a line that the process printed. The thread that supervises the process calls this method."""
        self._heard_s = time.monotonic()
        try:
            line = decode_line(text)
        except msgspec.MsgspecError:
            return
        if isinstance(line, Totals):
            self._counts = self._counts[0], line
        elif isinstance(line, LogLine):
            log.log(logging.WARNING if line.is_problem else logging.INFO, "language: %s", line.text)
        elif isinstance(line, Received):
            self._open.received(line.subject)
        else:
            if isinstance(line, Outcome):
                self._open.answered(line.id, line.purpose)
            elif isinstance(line, Unasked):
                self._open.answered(line.subject.id, line.subject.purpose)
            else:
                name, camera = line.event.name, line.event.camera
                self._true[name, camera] = TrueStatement(check=name, camera=camera, until_s=line.until_s)
            self._add(line)

    def _forget(self) -> None:
        """Abandon the questions of the process that ended. Tell the next process which statements count as true.

        The thread that calls `_read` calls this method.
        """
        earlier, totals = self._counts
        self._counts = earlier + Counter(totals.counters), Totals(counters={}, gauges={})
        for subject in self._open.process_ended():
            self._add(Unasked(subject=subject, reason="process-ended"))
        self._process.update(self._options())

    def _receive(self, failures: zmq.Socket[bytes]) -> None:
        """Handle the questions that stages could not send. A thread calls this method."""
        with contextlib.suppress(zmq.ContextTerminated), contextlib.closing(failures):
            while True:
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    if isinstance(line := decode_line(failures.recv().decode()), Unasked):
                        self._open.remove(line.subject)
                        self._add(line)

    def _add(self, work: _Work) -> None:
        """Pass `work` to the thread that publishes events. If its queue is full, discard and count `work`."""
        try:
            self._work.put_nowait(work)
        except queue.Full:
            self._discarded += 1

    def _publish(self) -> None:
        """Publish events and write to the ledger until `close` is called. A thread runs this method."""
        with contextlib.nullcontext() if self._ledger is None else contextlib.closing(self._ledger):
            self._publish_all()

    def _publish_all(self) -> None:
        is_open = True
        while is_open:
            events: list[EventMessage] = []
            with contextlib.suppress(queue.Empty):
                work = self._work.get(timeout=self._pause_s())
                is_open = work is not None
                if isinstance(work, Unasked):
                    events += self._not_asked(work)
                elif isinstance(work, Outcome):
                    events += self._held.answered(work)
                elif isinstance(work, Statement):
                    events.append(work.event)
                elif work is not None:
                    events += work
            events += self._lost_with_workers()
            events += self._held.expired() if is_open else self._held.release()
            self._send(events)
            self._record()
            self._check_process()
        self._send(self._held.expired())  # ends that have waited for the last starts

    def _lost_with_workers(self) -> list[EventMessage]:
        """Abandon the questions that ended with a result worker. Return the events that no longer wait."""
        subjects = self._open.given_up()
        return [
            event for subject in subjects for event in self._not_asked(Unasked(subject=subject, reason="worker-ended"))
        ]

    def _not_asked(self, unasked: Unasked) -> list[EventMessage]:
        """Record in the ledger that a question gets no answer. Return the events to publish without this answer."""
        subject = unasked.subject
        if self._ledger is not None:
            about = {"id": subject.id, "check": subject.check, "camera": subject.camera, "at": subject.at}
            about |= {"kind": subject.kind, "name": subject.name}
            self._ledger.write({**about, "unasked": unasked.reason}, [])
        if not subject.id:
            return []
        return self._held.answered(Outcome(id=subject.id, purpose=subject.purpose, error=unasked.reason))

    def _send(self, events: Sequence[EventMessage]) -> None:
        if not events and not self._held.has_dropped():
            return
        assert self._publisher is not None
        try:
            self._publisher.publish_late(events)
        except Closed:  # because the program ends
            pass
        except Exception as error:  # noqa: BLE001 - `admit` raises it
            self._error = error

    def _record(self) -> None:
        """Write a line to the ledger for each event that was dropped without a verdict."""
        for each in self._held.unanswered():
            if self._ledger is not None:
                event = each.event
                about = {"id": event.id or "", "check": each.check, "camera": event.camera, "at": event.at}
                self._ledger.write({**about, "kind": event.kind, "name": event.name, "dropped": each.reason}, [])

    def _pause_s(self) -> float:
        now_s = time.monotonic()
        times_s = [each for each in (self._held.next_s(), self._open.next_s()) if each is not None]
        return max(0.0, min([now_s + _POLL_S, *times_s]) - now_s)

    def _check_process(self) -> None:
        """Kill the process if it hangs, so that a new process is started."""
        if time.monotonic() - self._heard_s > _SILENT_S:
            log.warning("language: the process prints nothing for %.0f s, and is started again", _SILENT_S)
            self._heard_s = time.monotonic()
            self._process.kill()

    def __enter__(self) -> LanguageProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
