"""RTSP server that sends the metadata of each camera to its clients."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from vision.outputs.onvif.rtp import CLOCK_HZ, PAYLOAD_TYPE, RtpStream
from vision.outputs.onvif.rtsp import (
    METHODS,
    Gate,
    Request,
    RequestError,
    Transport,
    choose_transport,
    description,
    read_request,
    response,
)

MOST_CLIENTS: Final = 32
TIMEOUT_S: Final = 60
"""Time in seconds within which a client must send a request or a receiver report."""

_GRACE_S: Final = 15.0
_SETUP_S: Final = 10.0  # time limit before SETUP, so that idle connections do not keep clients out
_HEAD_BYTES: Final = 16_384
_REPORT_S: Final = 5.0
_MOST_REFUSALS: Final = 5
_QUEUE_BYTES: Final = 512 * 1024
"""Maximum size of the packets that wait for one client."""

Greeting = Callable[[str], "tuple[bytes, int] | None"]
"""A function that returns the first document for a client of a camera, and the time of the document (ns, UTC)."""


class MetadataServer:
    """Server that sends each client the documents of one camera. Only the thread of its event loop may call methods."""

    def __init__(self, account: Sequence[str] | None, cameras: Iterable[str], greeting: Greeting) -> None:
        """Create the server.

        Args:
            account: user and password that clients must send. None means that clients need no account.
            cameras: ids of the initial cameras.
            greeting: see `Greeting`.
        """
        self.watched: frozenset[str] = frozenset()
        """Ids of the cameras that at least one client plays. Any thread can read this attribute."""
        self._account = account
        self._cameras = set(cameras)
        self._greeting = greeting
        self._clients: set[Client] = set()
        self._datagrams: Datagrams | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Serve clients until the task is canceled."""
        self._datagrams = await Datagrams.open(listener, self._heard)
        server = await asyncio.start_server(self._accept, sock=listener, limit=_HEAD_BYTES)
        try:
            while True:
                await asyncio.sleep(_REPORT_S)
                for client in tuple(self._clients):
                    client.check()
        finally:
            server.close()
            self._datagrams.close()

    def add_camera(self, camera: str) -> None:
        self._cameras.add(camera)

    def remove_camera(self, camera: str) -> None:
        """Refuse new clients of a camera, and disconnect its current clients."""
        self._cameras.discard(camera)
        for client in tuple(self._clients):
            if client.camera == camera:
                client.close()

    def deliver(self, camera: str, document: bytes, utc_ns: int) -> None:
        """Send a document to all clients that play a camera, except clients that are too slow.

        `utc_ns` is the time of the frame or event, in ns since 1970 (UTC).
        """
        for client in tuple(self._clients):
            if client.camera == camera:
                client.send(document, utc_ns)

    def has_camera(self, camera: str) -> bool:
        return camera in self._cameras

    def greeting(self, camera: str) -> tuple[bytes, int] | None:
        """Return the first document for a client of a camera, and its time in ns since 1970 (UTC).

        Return None if no document exists yet.
        """
        return self._greeting(camera)

    def update(self) -> None:
        """Update `watched`, the ids of the cameras that clients play, after a client has started or stopped playing."""
        self.watched = frozenset(client.camera for client in self._clients if client.is_playing)

    def _heard(self, address: tuple[Any, ...]) -> None:
        for client in self._clients:
            client.heard_from(address)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MOST_CLIENTS:
            writer.write(response(503, None))
            writer.close()
            return
        assert self._datagrams is not None
        client = Client(self, writer, Gate(self._account), self._datagrams)
        self._clients.add(client)
        try:
            await client.run(reader)
        except (OSError, EOFError, RequestError):
            pass  # the client has gone, or is not a client of RTSP
        finally:
            self._clients.discard(client)
            self.update()
            client.close()


class Datagrams(asyncio.DatagramProtocol):
    """Two UDP ports that all clients share: one for RTP, and one for RTCP."""

    def __init__(self, heard: Callable[[tuple[Any, ...]], None]) -> None:
        self._heard = heard
        self._transports: list[asyncio.DatagramTransport] = []
        self.ports: tuple[int, int] = (0, 0)

    @classmethod
    async def open(cls, listener: socket.socket, heard: Callable[[tuple[Any, ...]], None]) -> Datagrams:
        """Open the ports at the address of `listener`. `heard` receives the address of each sender."""
        datagrams = cls(heard)
        for _ in range(2):
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: datagrams, local_addr=(listener.getsockname()[0], 0), family=listener.family
            )
            datagrams._transports.append(transport)
        first, second = (transport.get_extra_info("sockname")[1] for transport in datagrams._transports)
        datagrams.ports = first, second
        return datagrams

    def close(self) -> None:
        for transport in self._transports:
            transport.close()

    def send(self, index: int, packet: bytes, address: tuple[Any, ...]) -> None:
        """Send a packet of RTP (`index` 0) or RTCP (1)."""
        self._transports[index].sendto(packet, address)

    def datagram_received(self, _data: bytes, address: tuple[Any, ...]) -> None:
        self._heard(address)

    def error_received(self, _error: Exception) -> None:
        """Ignore the error. It means that a client has closed its port."""


class Client:
    """One connection of a client, which can set up one session."""

    def __init__(self, server: MetadataServer, writer: asyncio.StreamWriter, gate: Gate, datagrams: Datagrams) -> None:
        self.camera = ""
        self.is_playing = False
        self._server = server
        self._writer = writer
        self._gate = gate
        self._datagrams = datagrams
        self._peer: tuple[Any, ...] = writer.get_extra_info("peername") or ("", 0)
        self._stream = RtpStream()
        self._transport: Transport | None = None
        self._session = secrets.token_hex(8)
        self._heard_s = time.monotonic()
        self._has_reported = False

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Respond to requests until the client ends the session, or has failed to authenticate too often.

        Raises:
            EOFError, OSError: the connection has ended.
            RequestError: a request is malformed. The client has received a response.
        """
        refusals = 0
        while not self._writer.is_closing():
            try:
                request = await read_request(reader)
            except RequestError as error:
                self._writer.write(response(error.status, None))
                raise
            self._heard_s = time.monotonic()
            if request is None:
                continue
            answer = self._answer(request)
            refusals = refusals + 1 if answer is None else 0
            self._writer.write(response(401, request, self._gate.challenge) if answer is None else answer)
            await self._writer.drain()
            if refusals == _MOST_REFUSALS or request.method == "TEARDOWN":
                return
            if request.method == "PLAY" and self._transport is not None:
                self._start()

    def _answer(self, request: Request) -> bytes | None:
        """Return the response to a request. Return None if the client must authenticate."""
        if request.method == "OPTIONS":  # does not need an account, so that clients can use it as a sign of life
            return response(200, request, {"Public": ", ".join(METHODS)})
        if not self._gate.permits(request):
            return None
        handlers: Mapping[str, Callable[[Request], bytes]] = {
            "DESCRIBE": self._describe,
            "SETUP": self._set_up,
            "PLAY": self._play,
            "GET_PARAMETER": lambda each: response(200, each, self._session_header()),
            "TEARDOWN": lambda each: response(200, each),
        }
        handler = handlers.get(request.method)
        if handler is None:
            return response(405, request, {"Allow": ", ".join(METHODS)})
        if (
            request.method != "DESCRIBE"
            and request.headers.get("session", self._session).split(";")[0] != self._session
        ):
            return response(454, request)
        return handler(request)

    def _session_header(self) -> dict[str, str]:
        return {} if self._transport is None else {"Session": f"{self._session};timeout={TIMEOUT_S}"}

    def _describe(self, request: Request) -> bytes:
        if not self._server.has_camera(request.path):
            return response(404, request)
        host = self._writer.get_extra_info("sockname")[0]
        sdp = description(request.path, host, PAYLOAD_TYPE, CLOCK_HZ)
        return response(200, request, {"Content-Base": f"{request.url.rstrip('/')}/"}, sdp)

    def _set_up(self, request: Request) -> bytes:
        camera = request.path.removesuffix("/metadata")
        if not self._server.has_camera(camera):
            return response(404, request)
        if self._transport is not None:
            return response(455 if self.is_playing else 459, request)
        transport = choose_transport(request.headers.get("transport", ""))
        if transport is None:
            return response(461, request)
        self.camera, self._transport = camera, transport
        if transport.is_tcp:
            chosen = f"RTP/AVP/TCP;unicast;interleaved={transport.rtp}-{transport.rtcp}"
        else:
            ports = self._datagrams.ports
            chosen = f"RTP/AVP;unicast;client_port={transport.rtp}-{transport.rtcp};server_port={ports[0]}-{ports[1]}"
        return response(200, request, {"Transport": chosen, **self._session_header()})

    def _play(self, request: Request) -> bytes:
        if self._transport is None:
            return response(455, request)
        url = request.url.rstrip("/").removesuffix("/metadata")
        stamp = self._stream.timestamp(time.time_ns())
        info = f"url={url}/metadata;seq={self._stream.sequence};rtptime={stamp}"
        return response(200, request, {**self._session_header(), "Range": "npt=now-", "RTP-Info": info})

    def _start(self) -> None:
        """Start playing. The first document contains the current values of the counters, if they are known."""
        if self.is_playing:
            return
        self.is_playing = True
        self._server.update()
        greeting = self._server.greeting(self.camera)
        if greeting is not None:
            self.send(*greeting)

    def send(self, document: bytes, utc_ns: int) -> None:
        """Send a document if the client plays, and is not too slow."""
        if not self.is_playing:
            return
        if self._writer.transport.get_write_buffer_size() > _QUEUE_BYTES:
            self._stream.skip(document)
            return
        for packet in self._stream.packets(document, utc_ns):
            self._send(0, packet)
        if not self._has_reported:  # receivers ignore a report that arrives before the first packet
            self._has_reported = True
            self._send(1, self._stream.report())

    def _send(self, index: int, packet: bytes) -> None:
        """Send a packet of RTP (`index` 0) or RTCP (1)."""
        assert self._transport is not None
        number = (self._transport.rtp, self._transport.rtcp)[index]
        if not self._transport.is_tcp:
            self._datagrams.send(index, packet, (self._peer[0], number, *self._peer[2:]))
        elif not self._writer.is_closing():
            self._writer.write(b"$" + bytes((number,)) + len(packet).to_bytes(2, "big") + packet)

    def heard_from(self, address: tuple[Any, ...]) -> None:
        """Count a datagram from a port of this client as a sign of life."""
        if self._transport is not None and not self._transport.is_tcp:
            ports = (self._transport.rtp, self._transport.rtcp)
            if address[0] == self._peer[0] and address[1] in ports:
                self._heard_s = time.monotonic()

    def check(self) -> None:
        """Close the connection if the client was silent for too long.

        Otherwise, send an RTCP sender report if the client plays.
        """
        limit_s = _SETUP_S if self._transport is None else TIMEOUT_S + _GRACE_S
        if time.monotonic() - self._heard_s > limit_s:
            self.close()
        elif self.is_playing:
            self._send(1, self._stream.report())

    def close(self) -> None:
        """Close the connection, without waiting for packets that the client has not read."""
        self.is_playing = False
        with contextlib.suppress(OSError):
            if self._writer.transport.get_write_buffer_size() > 0:
                self._writer.transport.abort()
            self._writer.close()
