"""Tests of the RTSP server with many clients, with slow and silent clients, and with malformed requests."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import struct
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any, ClassVar

import pytest

from tests.messages.samples import HEADER
from vision.messaging.exposed_port import listen
from vision.messaging.schema import CountsMessage
from vision.messaging.times import rfc3339
from vision.outputs.onvif import server as server_module
from vision.outputs.onvif.program import Documents
from vision.outputs.onvif.rtsp import Request, Transport, choose_transport, response
from vision.outputs.onvif.server import MOST_CLIENTS, MetadataServer

DOCUMENT = b"<d>" + b"x" * 5000 + b"</d>"
WAIT_S = 60.0
ACCOUNT = ("recorder", "gate-secret-1")
Body = Callable[[MetadataServer, int], Coroutine[Any, Any, None]]


def with_server(body: Body, account: tuple[str, str] | None = None) -> None:
    """Start a server for the metadata of camera `gate`, and run `body` with the server and its port."""

    async def run() -> None:
        listener, address = listen("tcp://127.0.0.1:*")
        server = MetadataServer(account, ["gate"], lambda _: None)
        task = asyncio.create_task(server.serve(listener))
        try:
            await asyncio.wait_for(body(server, int(address.rpartition(":")[2])), WAIT_S)
        finally:
            for client in Connection.opened:
                client.writer.close()
                await asyncio.gather(client.writer.wait_closed(), return_exceptions=True)
            Connection.opened.clear()
            while server._clients:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.05)  # closes the transports

    asyncio.run(run())


class Connection:
    """Client that sends requests unchanged."""

    opened: ClassVar[list[Connection]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, buffer_bytes: int = 1 << 20) -> Connection:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.connect(("127.0.0.1", port))
        connection = cls(*await asyncio.open_connection(sock=sock, limit=1 << 16))
        cls.opened.append(connection)
        return connection

    async def ask(self, method: str, path: str = "/gate", **headers: str) -> tuple[int, str]:
        """Send a request. Return the status and the headers of the response."""
        lines = [f"{method} rtsp://127.0.0.1{path} RTSP/1.0", "CSeq: 1"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return await self.send("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def send(self, data: bytes) -> tuple[int, str]:
        self.writer.write(data)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"Content-Length: (\d+)", head)
        body = (await self.reader.readexactly(int(length[1]))).decode() if length else ""
        return int(head.split()[1]), head + body

    async def play(self) -> None:
        """Set up the metadata stream over this connection, and start to receive it."""
        status, head = await self.ask("SETUP", "/gate/metadata", Transport="RTP/AVP/TCP;unicast;interleaved=2-3")
        assert status == 200
        session = re.search(r"Session: (\w+);timeout=60", head)
        assert session is not None
        status, _ = await self.ask("PLAY", Session=session[1])
        assert status == 200

    async def packet(self) -> tuple[int, int, bytes]:
        """Return the channel, the sequence number, and the payload of the next RTP packet."""
        while True:
            marker, channel, length = struct.unpack("!cBH", await self.reader.readexactly(4))
            assert marker == b"$"
            data = await self.reader.readexactly(length)
            if channel == 2:
                return channel, int.from_bytes(data[2:4], "big"), data[12:]


def test_a_slow_client_loses_documents_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_QUEUE_BYTES", 1 << 16)

    async def body(server: MetadataServer, port: int) -> None:
        slow, quick = await Connection.open(port, 4096), await Connection.open(port)
        await slow.play()
        await quick.play()
        while not server.watched or len(server._clients) < 2:
            await asyncio.sleep(0.01)
        packets = -(-len(DOCUMENT) // 1400)
        numbers: list[int] = []
        for index in range(400):
            server.deliver("gate", DOCUMENT, index)
            numbers += [(await quick.packet())[1] for _ in range(packets)]
        assert all((second - first) % 65536 == 1 for first, second in pairwise(numbers))
        queued = max(each._writer.transport.get_write_buffer_size() for each in server._clients)
        assert queued < 2 * server_module._QUEUE_BYTES
        first = (await slow.packet())[1]
        received = 1
        while True:  # until the gap
            number = (await slow.packet())[1]
            if (number - first) % 65536 != received:
                break
            received += 1
            server.deliver("gate", DOCUMENT, 1)
        assert received < 400 * packets

    with_server(body)


def test_limits_the_number_of_clients() -> None:
    async def body(server: MetadataServer, port: int) -> None:
        clients = [await Connection.open(port) for _ in range(MOST_CLIENTS)]
        for each in clients:
            assert (await each.ask("OPTIONS"))[0] == 200
        refused = await Connection.open(port)
        assert (await refused.reader.read()).startswith(b"RTSP/1.0 503 ")
        assert (await clients[0].ask("TEARDOWN"))[0] == 200
        assert await clients[0].reader.read() == b""
        assert (await (await Connection.open(port)).ask("OPTIONS"))[0] == 200

    with_server(body)


def test_closes_silent_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_REPORT_S", 0.05)
    monkeypatch.setattr(server_module, "_SETUP_S", 0.2)

    async def body(server: MetadataServer, port: int) -> None:
        silent, playing = await Connection.open(port), await Connection.open(port)
        silent.writer.write(b"OPTIONS * RTSP/1.0\r\nCSeq: ")  # never completed
        await playing.play()
        assert await silent.reader.read() == b""
        server.deliver("gate", DOCUMENT, 1)
        await playing.packet()

    with_server(body)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"OPTIONS * RTSP/2.0\r\n\r\n", 505),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01" + b"\0" * 40 + b"\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\n" + b"X: 1\r\n" * 100 + b"\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nContent-Length: 99999999\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nContent-Length: -1\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nCSeq: 1\nX: y\r\n\r\n", 200),
        (b"$\x01\x00\x04abcdOPTIONS * RTSP/1.0\r\nCSeq: 7\r\n\r\n", 200),
        (b"ANNOUNCE rtsp://h/gate RTSP/1.0\r\n\r\n", 405),
        (b"DESCRIBE rtsp://h/gate RTSP/1.0\r\n\r\n", 200),
        (b"DESCRIBE rtsp://h/yard RTSP/1.0\r\n\r\n", 404),
        (b"DESCRIBE rtsp://h/../etc/passwd RTSP/1.0\r\n\r\n", 404),
        (b"DESCRIBE rtsp://[bad RTSP/1.0\r\n\r\n", 404),
        (b"PLAY rtsp://h/gate RTSP/1.0\r\n\r\n", 455),
        (b"SETUP rtsp://h/gate/metadata RTSP/1.0\r\n\r\n", 461),
        (b"SETUP rtsp://h/yard/metadata RTSP/1.0\r\nTransport: RTP/AVP/TCP\r\n\r\n", 404),
        (b"SETUP rtsp://h/gate RTSP/1.0\r\nTransport: RTP/AVP;unicast;client_port=22-23\r\n\r\n", 461),
        (b"SETUP rtsp://h/gate RTSP/1.0\r\nTransport: RTP/AVP;unicast;client_port=70000\r\n\r\n", 461),
        (b"SETUP rtsp://h/gate RTSP/1.0\r\nTransport: RTP/AVP;multicast\r\n\r\n", 461),
        (b"SETUP rtsp://h/gate RTSP/1.0\r\nTransport: RTP/AVP/TCP\r\nSession: f00\r\n\r\n", 454),
    ],
)
def test_answers_any_request(data: bytes, status: int) -> None:
    async def body(server: MetadataServer, port: int) -> None:
        client, other = await Connection.open(port), await Connection.open(port)
        assert (await client.send(data))[0] == status
        assert (await other.ask("OPTIONS"))[0] == 200

    with_server(body)


def test_requires_the_digest_of_the_account() -> None:
    def authorization(method: str, nonce: str, password: str) -> str:
        def md5(text: str) -> str:
            return hashlib.md5(text.encode()).hexdigest()

        uri = "rtsp://127.0.0.1/gate"
        digest = md5(f"{md5(f'{ACCOUNT[0]}:vision:{password}')}:{nonce}:{md5(f'{method}:{uri}')}")
        return f'Digest username="{ACCOUNT[0]}", realm="vision", nonce="{nonce}", uri="{uri}", response="{digest}"'

    async def body(server: MetadataServer, port: int) -> None:
        client = await Connection.open(port)
        assert (await client.ask("OPTIONS"))[0] == 200
        status, head = await client.ask("DESCRIBE")
        nonce = re.search(r'nonce="(\w+)"', head)
        assert status == 401
        assert nonce is not None
        right = authorization("DESCRIBE", nonce[1], ACCOUNT[1])
        assert (await client.ask("DESCRIBE", Authorization=right))[0] == 200
        assert (await client.ask("SETUP", Authorization=right, Transport="RTP/AVP/TCP"))[0] == 401  # other method
        assert (await client.ask("GET_PARAMETER"))[0] == 401
        for _ in range(2):
            wrong = authorization("DESCRIBE", nonce[1], "wrong")
            assert (await client.ask("DESCRIBE", Authorization=wrong))[0] == 401
        assert (await client.ask("DESCRIBE", Authorization="Basic cmVjb3JkZXI6Z2F0ZS1zZWNyZXQtMQ=="))[0] == 401
        assert await client.reader.read() == b""  # closed after five refusals
        other = await Connection.open(port)
        assert (await other.ask("DESCRIBE", Authorization=right))[0] == 401  # each connection has its own nonce

    with_server(body, ACCOUNT)


def test_a_removed_camera_disconnects_its_clients() -> None:
    async def body(server: MetadataServer, port: int) -> None:
        client = await Connection.open(port)
        await client.play()
        server.remove_camera("gate")
        assert await client.reader.read() == b""
        assert (await (await Connection.open(port)).ask("DESCRIBE"))[0] == 404
        server.add_camera("gate")
        assert (await (await Connection.open(port)).ask("DESCRIBE"))[0] == 200

    with_server(body)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("RTP/AVP/TCP;unicast;interleaved=4-5", Transport(True, 4, 5)),
        ("RTP/AVP/TCP;unicast", Transport(True, 0, 1)),
        ("RTP/AVP;multicast,RTP/AVP/UDP;unicast;client_port=5000-5001", Transport(False, 5000, 5001)),
        ("rtp/avp; client_port=5000", Transport(False, 5000, 5001)),
        ("RTP/SAVP;client_port=5000-5001", None),
        ("RTP/AVP/TCP;interleaved=300-301", None),
        ("RTP/AVP;client_port=5000-5000", None),
        ("", None),
        (";,=;", None),
    ],
)
def test_chooses_a_transport(header: str, expected: Transport | None) -> None:
    assert choose_transport(header) == expected


def test_headers_of_requests_cannot_add_headers_to_responses() -> None:
    request = Request("OPTIONS", "*", {"cseq": "1\r\nX: y"})
    assert b"X: y" not in response(200, request)


def test_clients_that_came_before_the_first_counts_receive_them() -> None:
    documents = Documents(None, ("gate",))
    documents.server.watched = frozenset({"gate"})
    counts = CountsMessage(**HEADER, camera="gate", at=rfc3339(0), at_monotonic_ns=1, lines={}, zones={})
    assert documents.action(counts) is not None
    assert documents.action(counts) is None  # later counts are events of lines and zones
    greeting = documents.greeting("gate")
    assert greeting is not None
    assert greeting[1] == 0
