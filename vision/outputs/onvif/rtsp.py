"""The requests and responses of RTSP 1.0 (RFC 2326) that the metadata server needs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

METHODS: Final = ("OPTIONS", "DESCRIBE", "SETUP", "PLAY", "GET_PARAMETER", "TEARDOWN")

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    454: "Session Not Found",
    455: "Method Not Valid in This State",
    459: "Aggregate Operation Not Allowed",
    461: "Unsupported Transport",
    503: "Service Unavailable",
    505: "RTSP Version Not Supported",
}
_MOST_HEADERS: Final = 64
_LARGEST_BODY: Final = 16_384
_FIELD: Final = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,]+))')
_REALM: Final = "vision"
_PORTS: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_LOWEST_PORT: Final = 1024


class RequestError(Exception):
    """A request is malformed. `status` is the status of the response, after which the connection is closed."""

    def __init__(self, status: int) -> None:
        super().__init__(_REASONS[status])
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request of a client. The names in `headers` are lowercase."""

    method: str
    url: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        """The decoded path of the URL, without slashes at its ends, or an empty string if the URL is malformed."""
        try:
            return unquote(urlsplit(self.url).path).strip("/")
        except ValueError:
            return ""


@dataclass(frozen=True, slots=True)
class Transport:
    """Transport of the packets: the connection that carries the requests, or datagrams to two ports of the client."""

    is_tcp: bool
    rtp: int
    """Channel of the connection, or port of the client."""
    rtcp: int


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Return the next request. Return None if the client sends a packet, such as an RTCP receiver report.

    Raises:
        RequestError: the request is malformed or too large.
        EOFError, OSError: the connection has ended.
    """
    first = await reader.readexactly(1)
    if first == b"$":
        _, length = await reader.readexactly(1), await reader.readexactly(2)
        await reader.readexactly(int.from_bytes(length, "big"))
        return None
    try:
        head = first + await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise RequestError(400) from error
    line, *lines = head.decode("latin-1").strip().split("\r\n")
    if len(lines) > _MOST_HEADERS:
        raise RequestError(400)
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("RTSP/"):
        raise RequestError(400)
    if words[2] != "RTSP/1.0":
        raise RequestError(505)
    pairs = (each.partition(":") for each in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    length_text = headers.get("content-length", "0")
    if not re.fullmatch(r"\d{1,5}", length_text) or int(length_text) > _LARGEST_BODY:
        raise RequestError(400)
    await reader.readexactly(int(length_text))
    return Request(words[0], words[1], headers)


def response(status: int, request: Request | None, headers: Mapping[str, str] | None = None, body: str = "") -> bytes:
    """Return a response to `request`, which is None if the request could not be read."""
    lines = [f"RTSP/1.0 {status} {_REASONS[status]}"]
    number = "" if request is None else request.headers.get("cseq", "")
    if re.fullmatch(r"\d{1,10}", number):
        lines.append(f"CSeq: {number}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines += ["Content-Type: application/sdp", f"Content-Length: {len(body.encode())}"]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def description(camera: str, host: str, payload_type: int, clock_hz: int) -> str:
    """Return the SDP document that describes the metadata of a camera. `host` is the IP address of this server."""
    kind = "IP6" if ":" in host else "IP4"
    lines = (
        "v=0",
        f"o=- 1 1 IN {kind} {host}",
        f"s={camera}",
        f"c=IN {kind} {'::' if kind == 'IP6' else '0.0.0.0'}",
        "t=0 0",
        "a=control:*",
        "a=range:npt=now-",
        f"m=application 0 RTP/AVP {payload_type}",
        f"a=rtpmap:{payload_type} vnd.onvif.metadata/{clock_hz}",
        "a=control:metadata",
    )
    return "".join(f"{line}\r\n" for line in lines)


def choose_transport(header: str) -> Transport | None:
    """Return the first supported transport in a `Transport` header. Return None if no transport is supported."""
    for offer in header.split(","):
        protocol, *options = (option.strip() for option in offer.split(";"))
        values = dict(option.partition("=")[::2] for option in options)
        if "multicast" in values:
            continue
        is_tcp = protocol.upper() == "RTP/AVP/TCP"
        if not is_tcp and protocol.upper() not in ("RTP/AVP", "RTP/AVP/UDP"):
            continue
        ports = _PORTS.fullmatch(values.get("interleaved" if is_tcp else "client_port", "0-1" if is_tcp else ""))
        if ports is None:
            continue
        first = int(ports[1])
        second = first + 1 if ports[2] is None else int(ports[2])
        lowest, highest = (0, 255) if is_tcp else (_LOWEST_PORT, 65_535)
        if lowest <= min(first, second) and max(first, second) <= highest and first != second:
            return Transport(is_tcp, first, second)
    return None


class Gate:
    """Access check of one connection. It verifies the user and the password with HTTP Digest authentication."""

    def __init__(self, account: Sequence[str] | None) -> None:
        """Create the gate. `account` consists of the user and the password.

        If `account` is None, permit every request.
        """
        self._account = account
        self._nonce = secrets.token_hex(16)

    @property
    def challenge(self) -> Mapping[str, str]:
        """The header that asks the client to authenticate."""
        return {"WWW-Authenticate": f'Digest realm="{_REALM}", nonce="{self._nonce}", algorithm=MD5'}

    def permits(self, request: Request) -> bool:
        """Return True if no account is required, or if the request proves that the client knows the password."""
        if self._account is None:
            return True
        kind, _, rest = request.headers.get("authorization", "").partition(" ")
        given = {name.lower(): quoted or plain for name, quoted, plain in _FIELD.findall(rest)}
        user, password = self._account
        secret, request_digest = _md5(f"{user}:{_REALM}:{password}"), _md5(f"{request.method}:{given.get('uri', '')}")
        expected = _md5(f"{secret}:{self._nonce}:{request_digest}")
        fits = kind.lower() == "digest" and given.get("username") == user and given.get("nonce") == self._nonce
        return hmac.compare_digest(given.get("response", "").encode(), expected.encode()) and fits


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
