"""`EventDesk`, which stores and publishes the events and counters that result workers send to the main process."""

from __future__ import annotations

from collections.abc import Sequence

from vision.messaging.publisher import Publisher
from vision.runtime.result_messages import Answer
from vision.state.counters import CameraCounters, CounterRow
from vision.state.database import StateDatabase, counter_statement


class _Memory:
    """A `vision.state.counters.CounterStore` that stores nothing. `CameraCounters` keeps the counters in memory."""

    def load_counters(self, _camera_id: str) -> list[CounterRow]:
        return []

    def store_counters(self, _rows: Sequence[CounterRow]) -> bool:
        return True


class EventDesk:
    """Receiver of the workers' events and counters.

    It stores both in one transaction, and then publishes the events.
    """

    def __init__(self, publisher: Publisher, state: StateDatabase | None) -> None:
        self._publisher = publisher
        self._state = state
        self._counters: dict[str, CameraCounters] = {}

    def rows(self, camera_ids: Sequence[str]) -> list[CounterRow]:
        """Return all counters of these cameras, as rows (camera id, name, key, value)."""
        return [
            (camera_id, name, key, value)
            for camera_id in camera_ids
            for (name, key), value in self._of(camera_id).counts().items()
        ]

    def forget(self, camera_id: str) -> None:
        """Forget a removed camera. The database keeps the counters of the camera."""
        self._counters.pop(camera_id, None)

    def worker_ended(self, camera_ids: Sequence[str]) -> None:
        """Publish the ends of the open states of these cameras, because their result worker has ended."""
        self._publisher.worker_ended(camera_ids)

    def take(self, answer: Answer) -> None:
        """Store the counters and events in a worker's answer. Then publish the events and the object summaries."""
        for camera_id, name, key, value in answer.counters:
            self._of(camera_id).set(name, key, value)
        changed = [row for counters in self._counters.values() for row in counters.changed()]
        if answer.events:
            also = [counter_statement(changed)] if changed else []
            if self._publisher.publish_events(answer.events, also):
                for counters in self._counters.values():
                    counters.written()
        elif changed:
            for counters in self._counters.values():
                counters.flush()
        self._publisher.publish_objects(answer.objects)

    def _of(self, camera_id: str) -> CameraCounters:
        if camera_id not in self._counters:
            self._counters[camera_id] = CameraCounters(self._state or _Memory(), camera_id)
        return self._counters[camera_id]
