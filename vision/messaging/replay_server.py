"""Server that sends missed events on request, through a separate socket.

A request is one part: a `ReplayRequest` in JSON (`vision.messaging.replay_schema`). The reply is a `ReplayReply` in
JSON and one part for each event, as it was published. REQ and DEALER sockets both work. The server reads the event log
in its own thread, so large requests do not delay results.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Final

import zmq

from vision.errors import MessageError
from vision.messaging import codec
from vision.messaging.curve import KeyFolder
from vision.messaging.exposed_port import PortLimits
from vision.messaging.replay_schema import ReplayReply, ReplayRequest
from vision.messaging.schema import Encoding, EventMessage
from vision.messaging.sockets import BoundSocket
from vision.state.events import EventLog

log = logging.getLogger(__name__)

_MAX_EVENTS: Final = 1000  # maximum in one reply
_MAX_BYTES: Final = 65_536  # maximum size of the events in one reply, unless it contains only one
_PAUSE: Final = 3.0  # pause after each reply, as a multiple of its duration, so that other threads get the GIL
_OPTIONS: Final = {
    zmq.RCVHWM: 10,
    zmq.SNDHWM: 2,  # replies that wait for a slow subscriber; further replies are dropped
    zmq.MAXMSGSIZE: 4096,
}


class ReplayServer:
    """Server that handles requests for events of `event_log` in its own thread, until `close` is called."""

    def __init__(
        self,
        bind: str | None,
        event_log: EventLog,
        *,
        node: str,
        encoding: Encoding,
        keepalive_s: int,
        max_clients: int | None = None,
        keys: KeyFolder | None = None,
    ) -> None:
        """Bind the socket to `bind`, and start the thread. The events in replies have the encoding `encoding`.

        If `bind` is None, use an address that only processes of this user can reach.

        `max_clients` and `keys` have the meaning of `max_subscribers` and `keys` of a `Publisher`.

        Raises:
            ConfigError, Unavailable, Untrusted: the address cannot be bound, or `keys` cannot be used; see
                `BoundSocket`.
        """
        self._event_log = event_log
        self._node = node
        self._encoding = encoding
        limits = PortLimits(max_clients, subscribes=False) if bind and max_clients else None
        self._socket = BoundSocket(
            zmq.ROUTER,
            bind or f"ipc://@vision-{secrets.token_hex(8)}",
            key="publish.replay",
            keepalive_s=keepalive_s,
            options=_OPTIONS if bind else {**_OPTIONS, zmq.IPC_FILTER_UID: os.getuid()},
            limits=limits,
            keys=keys,
        )
        self.address, self.internal_address = self._socket.address, self._socket.internal_address
        self._thread = threading.Thread(target=self._serve, name="replay", daemon=True)
        self._thread.start()

    def counters(self) -> dict[str, int]:
        """Return the counters of the port by name."""
        return self._socket.counters()

    def close(self) -> None:
        """End the thread and free the address."""
        self._socket.interrupt()
        self._thread.join()

    def _serve(self) -> None:
        with self._socket.zmq as sock:
            try:
                while True:
                    *route, request = sock.recv_multipart()
                    began = time.monotonic()
                    sock.send_multipart([*route, *self._reply(request)], zmq.NOBLOCK)
                    time.sleep(_PAUSE * (time.monotonic() - began))
            except zmq.ContextTerminated:
                return

    def _reply(self, payload: bytes) -> Sequence[bytes]:
        try:
            request = codec.decode_as(ReplayRequest, payload, "request")
            since = request.since if request.journal in (None, self._event_log.journal) else 0
            page = self._event_log.read(since, limit=min(max(request.limit, 1), _MAX_EVENTS), max_bytes=_MAX_BYTES)
            header = self._header(page.oldest, page.newest, more=page.more)
            return [codec.encode(header), *map(self._encoded, page.payloads)]
        except MessageError as error:
            return [codec.encode(self._header(0, 0, error=str(error.args[0])))]
        except OSError as error:
            log.error("cannot read the requested events: %s", error)
            return [codec.encode(self._header(0, 0, error=f"cannot read the journal: {error.strerror}"))]

    def _header(self, oldest: int, newest: int, *, more: bool = False, error: str | None = None) -> ReplayReply:
        return ReplayReply(
            node=self._node, journal=self._event_log.journal, oldest=oldest, newest=newest, more=more, error=error
        )

    def _encoded(self, payload: bytes) -> bytes:
        """Convert a stored event from JSON to the encoding of the publisher, and return it."""
        if self._encoding == "json":
            return payload
        return codec.encode(codec.decode_as(EventMessage, payload, "stored event"), self._encoding)
