"""Subscriber to the program under test, which records the messages that the checks need."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import Final

from vision.benchmark.chaos.record import EventSeen, FrameSeen, Record, StatusSeen
from vision.client import (
    CameraStatusMessage,
    DetectionsMessage,
    EventMessage,
    Gap,
    Item,
    NewJournal,
    Problem,
    Subscription,
)
from vision.messaging.schema import KINDS

_QUEUE: Final = 100_000  # maximum number of messages that wait for the observer
_NS_PER_S: Final = 1e9


class Observer:
    """Recorder of a publisher's messages, in a thread. The recording continues after restarts of the publisher."""

    def __init__(self, address: str, replay: str, record: Record) -> None:
        self._record = record
        self._address, self._replay = address, replay
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self.last_ns: dict[str, int] = {}  # monotonic time of the last detections message, by camera
        self.newest = 0  # number of the newest event; 0 before the first event

    def start(self) -> None:
        """Start the thread, which connects to the publisher."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, and wait for its end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        subscription = Subscription(
            self._address, kinds=KINDS, since=0, replay=self._replay, silence_s=1e6, queue=_QUEUE
        )
        with closing(subscription):
            while not self._stop.is_set():
                item = subscription.receive(0.2)
                if item is not None:
                    self.add(item, time.monotonic_ns())

    def add(self, item: Item, now_ns: int) -> None:
        """Record one message or report that was received at `now_ns` (monotonic clock)."""
        record = self._record
        match item:
            case DetectionsMessage():
                record.frames.append(_frame(item, now_ns))
                self.last_ns[item.camera] = now_ns
            case CameraStatusMessage():
                record.statuses.append(_status(item))
            case EventMessage():
                record.events.append(EventSeen(item.camera, item.kind, item.name, item.journal, item.number))
                self.newest = max(self.newest, item.number or 0)
            case NewJournal() | Problem():
                record.reports.append(str(item))
            case Gap() if item.topic.startswith("events"):
                record.reports.append(str(item))
            case _:
                pass


def _frame(message: DetectionsMessage, now_ns: int) -> FrameSeen:
    times = message.timing_ms
    return FrameSeen(
        now_ns,
        message.captured_monotonic_ns,
        message.camera,
        message.instance,
        message.seq,
        message.epoch,
        message.frame,
        sum(message.dropped_before.values()),
        times.wait,
        times.infer,
        times.publish,
        times.total,
    )


def _status(message: CameraStatusMessage) -> StatusSeen:
    at_ns, retry_s = message.at_monotonic_ns, message.next_retry_in_s
    return StatusSeen(
        at_ns,
        message.camera,
        message.instance,
        message.state,
        at_ns - int(message.state_for_s * _NS_PER_S),
        None if retry_s is None else at_ns + int(retry_s * _NS_PER_S),
        message.grabbed,
        message.published,
        sum(message.dropped.values()),
    )
