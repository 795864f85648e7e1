"""`Selection` chooses the messages that a sink gets, limits the rate of the messages, and gives each message a key."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from vision.client import CountsMessage, DetectionsMessage, EventMessage, Item, NewJournal, NodeStatusMessage
from vision.messaging import codec
from vision.messaging.gap_recovery import EVENTS, Gap
from vision.messaging.schema import NODE, AnyMessage, CameraStatusMessage, ObjectMessage
from vision.outputs.sinks.delivery import MAX_PAYLOAD_BYTES, Outgoing
from vision.outputs.sinks.spool import Position

_MESSAGES: Final = (
    DetectionsMessage | EventMessage | CameraStatusMessage | CountsMessage | NodeStatusMessage | ObjectMessage
)


class Selection:
    """Converter of a subscription's items to messages for one sink. The converter is not thread-safe.

    The sink gets all events and all summaries of objects. For the other kinds, the sink gets the newest message of each
    topic at most once per interval. The status of a camera whose state has changed is sent immediately.

    Attributes:
        lost: number of events and summaries that did not arrive from the program, plus messages that are too large.
        position: journal and number of the newest event that was processed, or None before the first event.
        sequences: the newest processed summary of each topic of objects, as the instance of the publisher and the
            sequence number.
    """

    def __init__(
        self,
        kinds: Collection[str],
        cameras: Collection[str] | None,
        interval_s: float,
        *,
        position: Position | None = None,
        sequences: Mapping[str, tuple[str, int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lost = 0
        self.position = position
        self.sequences = dict(sequences or {})
        self._kinds = frozenset(kinds)
        self._cameras = None if cameras is None else frozenset(cameras)
        self._interval_s = interval_s
        self._clock = clock
        self._waiting: dict[str, AnyMessage] = {}  # newest message of each topic that was sent too recently
        self._due_s: dict[str, float] = {}  # time from which a topic can send again
        self._states: dict[str, str] = {}  # last sent state of each camera

    def add(self, item: Item) -> Iterator[Outgoing]:
        """Process an item of the subscription. Yield the messages that can be sent immediately.

        Iterate to the end, because the item is processed during the iteration.
        """
        if isinstance(item, Gap):
            self.lost += item.lost if item.topic == EVENTS else 0  # for objects, `_count_missing` counts them
        elif isinstance(item, NewJournal):
            self.position = Position(item.new, 0)
        elif isinstance(item, EventMessage):
            if item.journal is not None and item.number is not None:
                self.position = Position(item.journal, item.number)
            yield from self._chosen(item, is_state=False)
        elif isinstance(item, ObjectMessage):
            self._count_missing(item)
            yield from self._chosen(item, is_state=False)
        elif isinstance(item, _MESSAGES):
            yield from self._limited(item)

    def due(self) -> Iterator[Outgoing]:
        """Yield the newest waiting message of each topic whose interval since the previous message has passed."""
        now_s = self._clock()
        for topic in [topic for topic in self._waiting if self._due_s[topic] <= now_s]:
            yield from self._limited(self._waiting.pop(topic))

    def _limited(self, message: AnyMessage) -> Iterator[Outgoing]:
        topic, now_s = message.topic, self._clock()
        changed = isinstance(message, CameraStatusMessage) and self._states.get(topic) != message.state
        if now_s < self._due_s.get(topic, now_s) and not changed:
            self._waiting[topic] = message
            return
        self._waiting.pop(topic, None)
        self._due_s[topic] = now_s + self._interval_s
        if isinstance(message, CameraStatusMessage):
            self._states[topic] = message.state
        yield from self._chosen(message, is_state=True)

    def _chosen(self, message: AnyMessage, *, is_state: bool) -> Iterator[Outgoing]:
        kind, _, of = message.topic.partition("/")
        is_own = self._cameras is None or of == NODE or of in self._cameras
        if kind not in self._kinds or not is_own:
            return
        payload = codec.encode(message)
        if len(payload) > MAX_PAYLOAD_BYTES:
            self.lost += 1
            return
        yield Outgoing(key_of(message), message.topic, payload, is_state=is_state)

    def _count_missing(self, message: ObjectMessage) -> None:
        instance, seq = self.sequences.get(message.topic, (message.instance, message.seq - 1))
        if instance == message.instance:
            self.lost += max(0, message.seq - seq - 1)
        self.sequences[message.topic] = message.instance, message.seq


def key_of(message: AnyMessage) -> str:
    """Return a string that identifies a message, and that is the same each time the message is sent."""
    if isinstance(message, EventMessage) and message.number is not None:
        return f"{message.node}-{message.journal}-{message.number}"
    return f"{message.node}-{message.instance}-{message.topic.replace('/', '-')}-{message.seq}"
