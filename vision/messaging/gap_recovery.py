"""Recovery of lost events: `GapRecovery` delivers each event once and in order. `ReplayClient` requests lost events.

ZeroMQ loses messages of PUB sockets while a subscriber is slow, not running, or connecting. Events are numbered across
all cameras and restarts, so the subscriber detects a missing number. It holds back the following events, sends a
request to the publisher, and continues with the reply. It also sends a request at the start, after a reconnection, and
every few seconds, because no gap in the numbers shows the loss of the newest event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import zmq

from vision.errors import ConfigError, MessageError
from vision.messaging import codec
from vision.messaging.curve import KeyPair
from vision.messaging.receive_guard import ReceiveGuard
from vision.messaging.replay_schema import ReplayReply, ReplayRequest
from vision.messaging.schema import EventMessage, NodeStatusMessage
from vision.messaging.sockets import check_address, reachable_address, set_common_options

EVENTS: Final = "events/"
MAX_MESSAGE_BYTES: Final = 16 << 20
"""Maximum size of a part of a message that a subscriber accepts."""

_MAX_HELD: Final = 10_000
_REPLY_TIMEOUT_S: Final = 2.0  # time after which the request is repeated
_IDLE_REQUEST_S: Final = 5.0  # time between two requests if no event seems to be missing
_SHORTEST_PAUSE_NS: Final = 20_000_000  # pause between two requests; doubled after each reply without new events
_LONGEST_PAUSE_NS: Final = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Gap:
    """A report that messages were lost, because the subscriber or the network was too slow, or the connection broke.

    If the subscription uses `since`, a gap in ``events/`` (all cameras) means that the publisher no longer stores these
    events. After a power failure of the publisher's machine, `lost` is an upper bound.
    """

    topic: str
    expected_seq: int
    got_seq: int

    @property
    def lost(self) -> int:
        return self.got_seq - self.expected_seq

    def __str__(self) -> str:
        return f"{self.topic}: lost {self.lost} messages (expected {self.expected_seq}, got {self.got_seq})"


@dataclass(frozen=True, slots=True)
class NewJournal:
    """A report that the publisher started a new journal, because the old journal was damaged or removed.

    Events of the old journal that this subscriber has not received are lost. Numbers restart at 1.
    """

    node: str
    old: str  # empty if unknown
    new: str

    def __str__(self) -> str:
        return f"{self.node}: events are stored in a new journal; events that only the old one contains are lost"


InOrder: TypeAlias = EventMessage | Gap | NewJournal


class GapRecovery:
    """The logic that orders events, and decides when to request missing events. It uses no sockets.

    It is not thread-safe.
    """

    def __init__(self, since: int, journal: str | None = None, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Start after the event with the number `since` in `journal`. If `since` is 0, request all stored events.

        `journal` is None if the journal is unknown.
        """
        self._last = since
        self._journal = journal
        self._confirmed = False  # True if a reply has confirmed that the publisher uses this journal
        self._held: dict[int, EventMessage] = {}
        self._clock = clock
        self._requested = False  # True if a request was sent, but its reply has not arrived
        self._request_at_ns = self._earliest_ns = clock()
        self._pause_ns = _SHORTEST_PAUSE_NS

    def live(self, event: EventMessage) -> Iterator[InOrder]:
        """Add a received event. Yield the events and reports that can then be delivered in order."""
        if event.number is None:
            yield event  # it is not stored, because the publisher's disk was full
            return
        if not self._confirmed or event.journal != self._journal:
            self.hurry()
            return
        if event.number <= self._last:
            return
        if len(self._held) < _MAX_HELD:
            self._held[event.number] = event
        yield from self._release()

    def replied(self, reply: ReplayReply, events: Sequence[EventMessage]) -> Iterator[InOrder]:
        """Add a reply and its events. Yield the events and reports that can then be delivered in order.

        Raises:
            MessageError: the reply reports an error. The next request is due after a pause.
        """
        self._requested = False
        last = self._last
        if reply.error is not None:
            self._slow_down()
            self._request_at_ns = self._earliest_ns
            raise MessageError(f"{reply.node} cannot send missed events: {reply.error}", code="replay-failed")
        if not self._confirmed and self._journal is None and self._last <= reply.newest:
            self._journal = reply.journal
        if self._journal != reply.journal:
            yield NewJournal(reply.node, self._journal or "", reply.journal)
            self._journal, self._last = reply.journal, 0
            self._held.clear()
            self._slow_down()
            self.hurry()
            return
        self._confirmed = True
        for event in events:
            if event.number is not None and event.number > self._last:
                yield from self._skip_to(event.number)
                yield event
                self._last = event.number
        if not reply.more and reply.newest > self._last:
            yield from self._skip_to(reply.newest + 1)
            self._last = reply.newest
        self._held = {number: event for number, event in self._held.items() if number > self._last}
        if self._last > last:
            self._pause_ns = _SHORTEST_PAUSE_NS
        else:
            self._slow_down()
        yield from self._release(more=reply.more)

    def _skip_to(self, number: int) -> Iterator[Gap]:
        """Yield a `Gap` for the missing events before event `number`, if any.

        If no event was processed before, yield nothing.
        """
        if number > self._last + 1 and self._last > 0:
            yield Gap(EVENTS, self._last + 1, number)

    def _release(self, *, more: bool = False) -> Iterator[EventMessage]:
        while (event := self._held.pop(self._last + 1, None)) is not None:
            yield event
            self._last += 1
        if self._held or more:
            self.hurry()
        elif not self._requested:
            self._request_at_ns = self._clock() + round(_IDLE_REQUEST_S * 1e9)

    # --- requests -----------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Make the next request for missing events due as soon as the pause after the previous request ends.

        Do nothing if a reply is pending.
        """
        if not self._requested:
            self._request_at_ns = min(self._request_at_ns, max(self._clock(), self._earliest_ns))

    def _slow_down(self) -> None:
        """Double the pause between requests, so that a publisher without new events receives few requests."""
        self._pause_ns = min(2 * self._pause_ns, _LONGEST_PAUSE_NS)
        self._earliest_ns = self._clock() + self._pause_ns

    def wait_ns(self) -> int:
        """Return the time in ns until the next request is due, or 0 if a request is due."""
        return max(0, self._request_at_ns - self._clock())

    def request(self) -> ReplayRequest:
        """Return the request to send. If no reply arrives within 2 s, the next request becomes due."""
        self._requested = True
        self._earliest_ns = self._clock() + self._pause_ns
        self._request_at_ns = self._clock() + round(_REPLY_TIMEOUT_S * 1e9)
        return ReplayRequest(since=self._last, journal=self._journal)


class ReplayClient:
    """Connection to the replay server of a publisher. It is not thread-safe.

    A poller can wait for `socket` from the start, although the socket is not connected until the address is known.
    """

    def __init__(
        self,
        recovery: GapRecovery,
        context: zmq.Context[zmq.Socket[bytes]],
        keepalive_s: int,
        address: str | None,
        *,
        guard: ReceiveGuard,
        keys: KeyPair | None = None,
    ) -> None:
        """Create the socket, and connect it to `address`. If `address` is None, `learn_address` connects the socket.

        `guard` watches the connections. `keys` are the keys for CURVE. None means that the publisher does not use
        CURVE.
        """
        self.recovery = recovery
        self.socket = context.socket(zmq.DEALER)
        if keys is not None:
            keys.use_as_client(self.socket)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self.socket.setsockopt(zmq.RCVHWM, 4)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)  # do not queue requests for a connection that does not exist
        self.guarded = guard.guard(self.socket, 2 * MAX_MESSAGE_BYTES, 0)
        self._keepalive_s = keepalive_s
        self._learns_address = address is None
        self._address = ""
        if address is not None:
            self._connect(address)

    def learn_address(self, status: NodeStatusMessage, publisher: str) -> None:
        """Connect to the replay address in a status message, unless the address was given to the constructor.

        If the replay address is only for binding, such as ``tcp://*:5556``, use the host of `publisher`, the address of
        the publisher. Raise `MessageError` if an address is needed, but the status contains no valid address.
        """
        if not self._learns_address:
            return
        if status.replay is None:
            hint = "configure `state_dir` and `publish: {replay: ...}` on the publisher, or subscribe without `since`"
            raise MessageError(f"{status.node} stores no events for requests", hint=hint, code="no-replay")
        address = reachable_address(status.replay, publisher)
        if address != self._address:
            try:
                check_address(address)
            except ConfigError as error:
                raise MessageError(f"{status.node}: replay {error.args[0]}", code="replay-address") from error
            self._connect(address)

    def _connect(self, address: str) -> None:
        if self._address:
            self.socket.disconnect(self._address)
        set_common_options(self.socket, address, self._keepalive_s)
        self.socket.connect(address)
        self._address = address

    def request_if_due(self) -> None:
        """Send a request if it is due and the socket is connected."""
        if self.recovery.wait_ns() <= 0 and self.socket.poll(0, zmq.POLLOUT):
            self.socket.send_multipart([b"", codec.encode(self.recovery.request())], zmq.NOBLOCK)

    def receive(self) -> Iterator[InOrder]:
        """Receive a reply. Yield the events and reports that can then be delivered in order.

        Raises:
            MessageError: the reply cannot be read, or reports an error.
        """
        header, *events = self.socket.recv_multipart()[1:] or [b""]
        self.guarded.read += 1
        reply = codec.decode_as(ReplayReply, header, "reply")
        return self.recovery.replied(reply, [codec.decode_as(EventMessage, event, "event") for event in events])
