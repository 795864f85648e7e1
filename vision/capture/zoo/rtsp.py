"""RTSP server of a synthetic camera, which responds to requests and starts the stream."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from vision.capture.zoo.persona import RtspStream
from vision.capture.zoo.playback import Host, Link, Playback
from vision.capture.zoo.rtp import RtpSender
from vision.capture.zoo.sdp import base_of, describe, video_index

_REASONS: Final = {
    200: "OK",
    302: "Moved Temporarily",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    453: "Not Enough Bandwidth",
    454: "Session Not Found",
    461: "Unsupported Transport",
    501: "Not Implemented",
    503: "Service Unavailable",
}
_MOVED: Final = "/moved"
_SESSION: Final = "12345678"
_SESSION_MARGIN: Final = 1.5  # of the announced timeout, as cameras grant it
_ASK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client. The names of `headers` are in lower case."""

    method: str
    url: str
    headers: dict[str, str]


async def serve_rtsp(host: Host, reader: asyncio.StreamReader, link: Link) -> None:
    """Respond to the requests of one connection until the connection or its session ends.

    Raises:
        OSError: the client closed the connection during a response.
        IncompleteReadError: the client closed the connection within a request.
    """
    connection = RtspConnection(host, link)
    try:
        await connection.serve(reader)
    finally:
        await connection.stop()


REPORT: Final = "report"
"""The method of the `Request` that stands for an RTCP report of the client."""


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Return the next request or RTCP report, or None at the end of the connection.

    If the client sends something else, such as TLS, the method of the returned request is empty.

    Raises:
        IncompleteReadError: the connection ended within a request.
    """
    while True:
        first = await reader.read(1)
        if not first:
            return None
        if first == b"$":
            header = await reader.readexactly(3)
            await reader.readexactly(int.from_bytes(header[1:], "big"))
            return Request(REPORT, "", {})
        if first.isspace():
            continue
        if not first.isalpha():  # not RTSP or HTTP, but for example TLS
            return Request("", "", {})
        text = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first_line, *lines = text.strip().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if int(headers.get("content-length", 0)):
            await reader.readexactly(int(headers["content-length"]))
        method, url, *_ = [*first_line.split(" "), "", ""]
        if method.startswith("RTSP/"):  # a response to the camera's own request
            continue
        return Request(method, url, headers)


class RtspConnection:
    """The RTSP connection of one client: receives requests, responds to them, and plays the stream after PLAY."""

    def __init__(self, host: Host, link: Link) -> None:
        stream = host.persona.stream
        assert isinstance(stream, RtspStream)
        self._host = host
        self._stream = stream
        self._server = host.persona.server
        self._link = link
        self._channels = 0, 1
        self._udp: UdpPair | None = None
        self._pairs: list[UdpPair] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Respond to requests until the connection or the session ends.

        Raises:
            OSError: the client closed the connection during a response.
            IncompleteReadError: the client closed the connection within a request.
        """
        timeout_s = self._server.session_timeout_s * _SESSION_MARGIN
        alive_s = time.monotonic()
        while True:
            try:
                request = await asyncio.wait_for(read_request(reader), alive_s + timeout_s - time.monotonic())
            except asyncio.TimeoutError:
                return  # the session has expired
            if request is None:
                return
            if not request.method:
                await self._answer(request, 400)
                return
            if request.method != REPORT or self._server.reports_keep_alive:
                alive_s = time.monotonic()
            if request.method != REPORT and not await self._handle(request):
                return

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for pair in self._pairs:
            pair.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _is_video(self, url: str) -> bool:
        """Return True if the URL of a SETUP request names the video track that the camera plays, or no track."""
        track = re.search(r"trackID=(\d+)", url)
        return track is None or int(track[1]) == video_index(self._stream)

    async def _handle(self, request: Request) -> bool:
        """Respond to one request. Return False if the connection must end."""
        server = self._server
        if request.method != "OPTIONS" and (challenges := self._host.gate.challenges(request.method, request.headers)):
            await self._answer(request, 401, *(f"WWW-Authenticate: {challenge}" for challenge in challenges))
            return True
        match request.method:
            case "OPTIONS":
                offers = ", GET_PARAMETER" if server.offers_get_parameter else ""
                methods = f"Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN{offers}"
                await self._answer(request, *((200, methods) if server.options else (501,)))
            case "DESCRIBE":
                await self._describe(request)
            case "SETUP":
                await self._setup(request)
            case "PLAY":
                await self._play(request)
            case "GET_PARAMETER" | "SET_PARAMETER":
                await self._answer(request, 200 if server.get_parameter == "yes" else 501, self._session())
                return server.get_parameter != "closes"
            case "TEARDOWN":
                await self._answer(request, 200)
                return False
            case _:
                await self._answer(request, 501)
        return True

    async def _answer(self, request: Request, status: int, *headers: str, body: bytes = b"") -> None:
        style = self._server.style
        lines = [f"RTSP/1.0 {status} {_REASONS[status]}", f"CSeq: {request.headers.get('cseq', '0')}", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        if style == "lower-case":
            lines[1:] = [f"{name.lower()}:{value.strip()}" for name, _, value in (x.partition(":") for x in lines[1:])]
        end = "\n" if style == "line-feeds" else "\r\n"
        await self._link.answer((end.join(lines) + end * 2).encode() + body, self._server.delay_s)

    def _session(self) -> str:
        return f"Session: {_SESSION};timeout={self._server.session_timeout_s}{self._server.session_suffix}"

    async def _describe(self, request: Request) -> None:
        path = urlsplit(request.url).path.rstrip("/")
        if self._server.redirect and path != _MOVED:
            await self._answer(request, 302, f"Location: rtsp://127.0.0.1:{self._host.port}{_MOVED}")
            return
        expected = urlsplit(self._host.persona.path).path.rstrip("/")
        status = self._server.status if path in (expected, _MOVED) else 404
        if status != 200:
            await self._answer(request, status)
            return
        base = base_of(self._stream, request.url)
        headers = ["Content-Type: application/sdp", *([f"Content-Base: {base}"] if base is not None else [])]
        end = "\n" if self._server.style == "line-feeds" else "\r\n"
        await self._answer(request, 200, *headers, body=describe(self._stream, request.url, end))

    async def _setup(self, request: Request) -> None:
        wanted = request.headers.get("transport", "")
        kind = "tcp" if "RTP/AVP/TCP" in wanted else "udp"
        if kind not in self._server.transports:
            await self._answer(request, 461)
            return
        if kind == "tcp":
            channels = re.search(r"interleaved=(\d+)-(\d+)", wanted)
            first = int(channels[1]) + self._server.channels if channels else 0
            if self._is_video(request.url):
                self._channels = first, first + 1
            transport = f"RTP/AVP/TCP;unicast;interleaved={first}-{first + 1}"
        else:
            ports = re.search(r"client_port=(\d+)-(\d+)", wanted)
            if ports is None:
                await self._answer(request, 461)
                return
            pair = await UdpPair.open(int(ports[1]), int(ports[2]))
            self._pairs.append(pair)
            if self._is_video(request.url):
                self._udp = pair
            server_ports = f"{pair.ports[0]}-{pair.ports[1]}"
            transport = f"RTP/AVP;unicast;client_port={ports[1]}-{ports[2]};server_port={server_ports}"
        await self._answer(request, 200, f"Transport: {transport}", self._session())

    async def _play(self, request: Request) -> None:
        early = None
        if self._server.early:
            early = self._start()
            await asyncio.sleep(1.5 / self._stream.fps)
        await self._answer(request, 200, self._session(), "Range: npt=0.000-")
        if early is not None:
            early.damaged.update(range(len(early.sent) + 1))  # a client may discard them
        elif not self._tasks and self._server.plays:
            self._start()
        if self._server.asks:
            self._tasks.append(asyncio.create_task(self._ask()))

    def _start(self) -> Playback:
        playback = self._host.streaming()
        playback.transport = "tcp" if self._udp is None else "udp"
        sender = RtpSender(
            self._stream, playback, self._send, loses=self._host.fault == "loss", disturbance=self._host.disturbance
        )
        self._tasks.append(asyncio.create_task(self._run(sender)))
        return playback

    async def _run(self, sender: RtpSender) -> None:
        with suppress(OSError):
            await sender.run()

    async def _send(self, kind: int, packet: bytes) -> None:
        if self._udp is None:
            await self._link.send(b"$" + bytes([self._channels[kind]]) + len(packet).to_bytes(2, "big") + packet)
        elif not self._link.is_stalled:
            self._udp.send(kind, packet)

    async def _ask(self) -> None:
        """Send a request to the client every second, as some cameras do to check that the client is still connected."""
        number = 1
        with suppress(OSError):
            while True:
                await asyncio.sleep(_ASK_EVERY_S)
                url = self._host.address
                await self._link.send(f"OPTIONS {url} RTSP/1.0\r\nCSeq: {number}\r\n\r\n".encode())
                number += 1


class UdpPair:
    """The two UDP ports of a camera, for RTP and RTCP, connected to the two ports of one client."""

    def __init__(self, transports: list[asyncio.DatagramTransport]) -> None:
        self._transports = transports
        self.ports = [transport.get_extra_info("sockname")[1] for transport in transports]

    @staticmethod
    async def open(rtp_port: int, rtcp_port: int) -> UdpPair:
        """Open two free ports, and return them. The client receives on `rtp_port` and `rtcp_port` of 127.0.0.1."""
        loop = asyncio.get_running_loop()
        made: list[asyncio.DatagramTransport] = []
        try:
            for port in (rtp_port, rtcp_port):
                transport, _ = await loop.create_datagram_endpoint(
                    asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0), remote_addr=("127.0.0.1", port)
                )
                made.append(transport)
        except BaseException:
            for transport in made:
                transport.close()
            raise
        return UdpPair(made)

    def send(self, kind: int, packet: bytes) -> None:
        self._transports[kind].sendto(packet)

    def close(self) -> None:
        for transport in self._transports:
            transport.close()
