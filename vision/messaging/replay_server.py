"""Server that sends missed events again on request, on a separate socket.

A request is one part: a `vision.messaging.schema.ReplayRequest` in JSON. The reply is a `ReplayReply` in JSON and
one part for each event, as it was published. REQ and DEALER sockets both work. The server reads the event log in its
own thread, so large requests do not delay results.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

import zmq

from vision.errors import MessageError
from vision.messaging import codec
from vision.messaging.schema import Encoding, EventMessage, ReplayReply, ReplayRequest
from vision.messaging.sockets import BoundSocket
from vision.state.events import EventLog

log = logging.getLogger(__name__)

_MAX_EVENTS: Final = 1000  # maximum in one reply
_OPTIONS: Final = {
    zmq.SNDHWM: 4,  # replies that wait for a slow subscriber; further replies are dropped
    zmq.MAXMSGSIZE: 4096,
}


class ReplayServer:
    """Answers requests for events of `event_log` on a separate thread, until closed."""

    def __init__(self, bind: str, event_log: EventLog, *, node: str, encoding: Encoding, keepalive_s: int) -> None:
        """Bind the socket to `bind`, and start the thread. The events in replies have the encoding `encoding`.

        Raises:
            ConfigError, Unavailable: the address cannot be bound; see `BoundSocket`.
        """
        self._event_log = event_log
        self._node = node
        self._encoding = encoding
        self._socket = BoundSocket(zmq.ROUTER, bind, key="publish.replay", keepalive_s=keepalive_s, options=_OPTIONS)
        self.address = self._socket.address
        self._thread = threading.Thread(target=self._serve, name="replay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and free the address."""
        self._socket.interrupt()
        self._thread.join()

    def _serve(self) -> None:
        with self._socket.zmq as sock:
            try:
                while True:
                    *route, request = sock.recv_multipart()
                    sock.send_multipart([*route, *self._reply(request)], zmq.NOBLOCK)
            except zmq.ContextTerminated:
                return

    def _reply(self, payload: bytes) -> Sequence[bytes]:
        try:
            request = codec.decode_as(ReplayRequest, payload, "request")
            since = request.since if request.journal in (None, self._event_log.journal) else 0
            page = self._event_log.read(since, limit=min(max(request.limit, 1), _MAX_EVENTS))
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
