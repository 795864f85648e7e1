"""The process that sends the messages of the program to one sink.

A thread subscribes to the program like any other subscriber, and stores the messages on disk, in the `Spool`. The main
thread delivers them. If a message cannot be stored, the process ends, and the next process requests the missed events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from vision.client import Item, Subscription
from vision.errors import VisionError, redact, register_secret
from vision.messaging.curve import KeyPair
from vision.messaging.helper_process import show_life
from vision.messaging.schema import Kind
from vision.outputs.sinks.delivery import MAX_BATCH_BYTES, Outgoing, SinkSettings
from vision.outputs.sinks.selection import Selection
from vision.outputs.sinks.sender import Sender
from vision.outputs.sinks.spool import Position, Spool

log = logging.getLogger(__name__)

_BATCH: Final = 500  # maximum number of items whose messages are stored in one transaction
_WAIT_S: Final = 0.2
_STATUS_S: Final = 1.0
_DRAIN_S: Final = 0.3  # time at the end to receive the last messages, and again to deliver them
_QUEUE: Final = 2000  # maximum number of messages that wait for the thread


def write_line(content: Mapping[str, object]) -> None:
    """Send a line of JSON to the main process, over standard output. Do nothing if that process has ended."""
    with contextlib.suppress(OSError):  # the main process has ended
        sys.stdout.write(f"{json.dumps(content)}\n")
        sys.stdout.flush()


class LineHandler(logging.Handler):
    """Handler that sends log records to the main process, which logs them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send the level and the text of a log record to the main process."""
        write_line({"level": record.levelno, "text": record.getMessage()})


class Reader:
    """Subscriber to the program that stores the messages for the sink on disk, in a `Spool`."""

    def __init__(self, options: Mapping[str, Any], spool: Spool, settings: SinkSettings) -> None:
        """Create the reader. `vision.outputs.sinks.process.SinkProcess` creates the `options`.

        If the spool does not yet know the newest event that it has stored, start after the event that `options`
        contains as ``position``.
        """
        position = spool.position()
        if position is None and options["position"]:
            position = Position(*options["position"])
            spool.add([], position)
        self.selection = Selection(
            options["messages"],
            options["cameras"],
            options["interval_s"],
            position=position,
            sequences=spool.sequences(),
        )
        self._options = options
        self._spool = spool
        self._discover = _discovery(options, settings)
        self._stop = threading.Event()

    def run(self, stored: Callable[[], object]) -> None:
        """Store messages until `stop` is called. Call `stored` each time messages were stored.

        Raises:
            sqlite3.Error: a message cannot be stored.
            VisionError, OSError: the messages of the program cannot be received.
        """
        options, position = self._options, self.selection.position
        keys = KeyPair(*options["keys"]) if options["keys"] else None
        with_events = "events" in options["messages"]
        # The last status of a camera shows that it was removed. `Selection` does not send it if it is not configured.
        needed: list[Kind] = ["status"] if options["home_assistant"] else []
        subscription = Subscription(
            options["address"],
            kinds=list(dict.fromkeys([*options["messages"], *needed])),
            since=(position.journal, position.number) if with_events and position is not None else None,
            replay=options["replay"] if with_events else None,
            key=keys,
            silence_s=1e6,
            queue=_QUEUE,
        )
        with subscription:
            until_s = None
            while until_s is None or time.monotonic() < until_s:
                self._step(subscription, stored)
                if until_s is None and self._stop.is_set():
                    until_s = time.monotonic() + _DRAIN_S

    def stop(self) -> None:
        """Make `run` store the messages that arrive within 0.3 s, and then return."""
        self._stop.set()

    def _step(self, subscription: Subscription, stored: Callable[[], object]) -> None:
        """Wait for messages of the program, and store those that the sink gets in the spool, in one transaction."""
        messages: list[Outgoing] = []
        nbytes, wait_s = 0, _WAIT_S
        before = self.selection.position, dict(self.selection.sequences)
        for _ in range(_BATCH):
            item = subscription.receive(wait_s)
            if item is None:
                break
            new = [*self._discover(item), *self.selection.add(item)]
            messages += new
            nbytes += sum(len(message.payload) for message in new)
            if nbytes >= MAX_BATCH_BYTES:
                break
            wait_s = 0.0
        messages += self.selection.due()
        after = self.selection.position, self.selection.sequences
        if messages or before != after:
            self._spool.add(messages, *after)
            stored()


def _discovery(options: Mapping[str, Any], settings: SinkSettings) -> Callable[[Item], list[Outgoing]]:
    if not options["home_assistant"]:
        return lambda _item: []
    from vision.outputs.sinks.home_assistant import Discovery

    discovery = Discovery(settings, options["messages"], options["cameras"])
    return lambda item: list(discovery.add(item))


async def serve(options: Mapping[str, Any]) -> None:
    """Receive and deliver messages until standard input closes. Then end the process.

    If messages cannot be received or stored, end the process with the exit status 1.
    """
    settings = SinkSettings.of(options)
    try:
        spool = Spool(Path(options["spool"]), max_bytes=options["spool_bytes"], max_age_s=options["spool_age_s"])
        reader, sender = Reader(options, spool, settings), Sender(spool, settings)
    except (OSError, sqlite3.Error) as error:
        log.error("sink %s: messages cannot be stored in %s: %s", settings.name, options["spool"], error)
        os._exit(1)  # the program starts this process again
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            reader.run(lambda: loop.call_soon_threadsafe(sender.wake.set))
        except (VisionError, OSError, sqlite3.Error) as error:
            sender.last_error = redact(f"messages cannot be stored: {error}")
            write_line(_status(spool, reader, sender))
            os._exit(1)  # the program starts this process again

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    delivery = asyncio.create_task(sender.run())
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    show_life()  # from now on, the status shows it
    while not ended.done():
        write_line(_status(spool, reader, sender))
        await asyncio.wait([ended], timeout=_STATUS_S)
    reader.stop()
    await asyncio.to_thread(thread.join)
    sender.stop.set()
    sender.wake.set()
    await asyncio.wait([delivery], timeout=_DRAIN_S)
    write_line(_status(spool, reader, sender))
    os._exit(0)  # a library may have threads that wait for the far side


def _status(spool: Spool, reader: Reader, sender: Sender) -> dict[str, object]:
    return {
        "process": os.getpid(),
        "status": {
            "connected": sender.connected,
            "queued": spool.count,
            "queued_bytes": spool.nbytes,
            "sent": sender.sent,
            "lost": spool.lost + reader.selection.lost + sender.refused,
            "last_error": sender.last_error or None,
        },
    }


def main() -> None:
    """Run the process. The first line of standard input contains the options as JSON."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the program ends this process
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(sys.stdin.readline())
    for secret, shown in options["secrets"].items():
        register_secret(secret, shown=shown)
    logging.getLogger("vision.outputs").addHandler(LineHandler())
    logging.getLogger("vision.outputs").setLevel(logging.INFO)
    logging.getLogger("vision.outputs").propagate = False
    logging.lastResort = None
    asyncio.run(serve(options))
