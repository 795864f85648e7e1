"""Events again, for whoever asks: a socket beside the one that everything is published on.

A subscriber sends one part, a `vision.messaging.codec.ReplayRequest` in JSON, and is answered with a `ReplayReply`
in JSON and
then one part for each event, as it was published. REQ and DEALER sockets both do. The thread here reads the journal's
files, so that nobody who asks for much makes results wait.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

import zmq

from vision.errors import MessageError
from vision.messaging import codec
from vision.messaging.sockets import bound_socket, socket_file
from vision.state.events import EventLog

log = logging.getLogger(__name__)

_MOST_EVENTS: Final = 1000  # of one answer
_LARGEST_REQUEST_BYTES: Final = 4096
_ANSWERS: Final = 4  # that wait for one who does not read them; further ones are dropped


class ReplayServer:
    """Answers requests for the events of `event_log` until closed."""

    def __init__(
        self,
        bind: str,
        event_log: EventLog,
        *,
        node: str,
        encoding: codec.Encoding = "json",
        keepalive_s: int = 10,
    ) -> None:
        """
        Args:
            bind: ``tcp://127.0.0.1:5556``, ``tcp://*:5556``, ``ipc:///run/vision/events``; port ``*`` takes a free one.
            encoding: of the events; requests and the first part of answers are JSON.

        Raises:
            ConfigError: the address is wrong, in use, or not this machine's.
        """
        self._event_log = event_log
        self._node = node
        self._encoding = encoding
        self._context = zmq.Context()
        options = {zmq.SNDHWM: _ANSWERS, zmq.MAXMSGSIZE: _LARGEST_REQUEST_BYTES}
        try:
            self._socket = bound_socket(
                self._context, zmq.ROUTER, bind, key="publish.replay", keepalive_s=keepalive_s, options=options
            )
        except BaseException:
            self._context.term()
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._socket_file = socket_file(self.address)
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="replay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and free the address. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._context.term()  # wakes the thread, which closes its socket
        self._thread.join()
        if self._socket_file is not None and socket_file(self.address) == self._socket_file:
            self._socket_file[0].unlink()  # ZeroMQ leaves it

    def _serve(self) -> None:
        try:
            while True:
                *route, request = self._socket.recv_multipart()
                self._socket.send_multipart([*route, *self._answer(request)], zmq.NOBLOCK)
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close(linger=0)

    def _answer(self, payload: bytes) -> Sequence[bytes]:
        try:
            request = codec.decode_request(payload)
            since = request.since if request.journal in (None, self._event_log.journal) else 0
            page = self._event_log.read(since, limit=min(max(request.most, 1), _MOST_EVENTS))
            header = self._header(page.oldest, page.newest, more=page.more)
            return [codec.encode(header), *map(self._encoded, page.payloads)]
        except MessageError as error:
            return [codec.encode(self._header(0, 0, error=str(error)))]
        except OSError as error:
            log.error("cannot read the events that somebody asks for: %s", error)
            return [codec.encode(self._header(0, 0, error=f"cannot read the journal: {error.strerror}"))]

    def _header(self, oldest: int, newest: int, *, more: bool = False, error: str | None = None) -> codec.ReplayReply:
        return codec.ReplayReply(
            node=self._node, journal=self._event_log.journal, oldest=oldest, newest=newest, more=more, error=error
        )

    def _encoded(self, payload: bytes) -> bytes:
        """The journal keeps JSON."""
        if self._encoding == "json":
            return payload
        return codec.encode(codec.decode_event(payload), self._encoding)
