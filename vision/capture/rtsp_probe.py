"""Probe that sends the requests OPTIONS, DESCRIBE, and SETUP to an RTSP camera, to find the refused request.

GStreamer and FFmpeg report most refusals with the same error. The probe does not send PLAY, so the camera sends no
video. If SETUP succeeds, the probe ends the session with TEARDOWN.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import SplitResult, unquote

_CHUNK_BYTES: Final = 65536
_MOST_BYTES: Final = 1 << 20
_CHALLENGE: Final = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_TRANSPORTS: Final = {
    "tcp": "RTP/AVP/TCP;unicast;interleaved=0-1",
    "udp": "RTP/AVP;unicast;client_port=50000-50001",
}

Transport = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response of the camera. `headers` contains pairs of a lowercase name and a value."""

    line: str  # the first line
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""

    @property
    def status(self) -> str:
        """The status code, such as "200", or an empty string if the response is neither RTSP nor HTTP."""
        return self.line.split(" ")[1] if self.line.startswith(("RTSP/", "HTTP/")) and " " in self.line else ""

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class RtspProbe:
    """Probe that sends requests over an open connection. All responses must arrive before `deadline_s` (monotonic).

    The methods raise `OSError` if a response is late or the connection fails.
    """

    def __init__(self, connection: socket.socket, url: SplitResult, address: str, deadline_s: float) -> None:
        """Create the probe. `url` contains the account and the path. `address` is the host and port for requests."""
        self._connection = connection
        self._deadline_s = deadline_s
        self._user, self._password = unquote(url.username or ""), unquote(url.password or "")
        self._target = f"rtsp://{address}{url.path}{f'?{url.query}' if url.query else ''}"
        self._number = 0
        self._challenge = ""  # the last request for authentication that this probe can answer
        self._received = b""

    def describe(self) -> Reply:
        """Request the description of the stream, and return the response.

        If the camera requests authentication that this probe supports, repeat the request with user and password.
        """
        reply = self._send("DESCRIBE", self._target, "Accept: application/sdp")
        challenges = reply.values("www-authenticate")
        self._challenge = next((one for one in challenges if _is_supported(one)), "")
        if reply.status == "401" and self._user and self._challenge:
            retry = self._send("DESCRIBE", self._target, "Accept: application/sdp")
            return retry if retry.status else reply
        return reply

    def options(self) -> Reply:
        return self._send("OPTIONS", self._target)

    def setup(self, description: str, transport: Transport) -> Reply:
        """Request the first video track over `transport`, and return the response.

        If the status is 200, end the new session.

        `description` is the SDP document of the stream.
        """
        reply = self._send("SETUP", _video_url(description, self._target), f"Transport: {_TRANSPORTS[transport]}")
        if reply.status == "200":
            session = next(iter(reply.values("session")), "").partition(";")[0]
            self._send("TEARDOWN", self._target, f"Session: {session}")
        return reply

    def _send(self, method: str, target: str, *headers: str) -> Reply:
        self._number += 1
        lines = [f"{method} {target} RTSP/1.0", f"CSeq: {self._number}", *headers, *self._authorization(method, target)]
        self._connection.settimeout(max(0.01, self._deadline_s - time.monotonic()))
        self._connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return self._read()

    def _authorization(self, method: str, target: str) -> list[str]:
        kind, _, rest = self._challenge.partition(" ")
        if not kind or not self._user:
            return []
        if kind.lower() == "basic":
            account = base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
            return [f"Authorization: Basic {account}"]
        given = {name.lower(): quoted or plain for name, quoted, plain in _CHALLENGE.findall(rest)}
        nonce, realm = given.get("nonce", ""), given.get("realm", "")
        response = _md5(f"{_md5(f'{self._user}:{realm}:{self._password}')}:{nonce}:{_md5(f'{method}:{target}')}")
        fields = {"username": self._user, "realm": realm, "nonce": nonce, "uri": target, "response": response}
        return ["Authorization: Digest " + ", ".join(f'{name}="{value}"' for name, value in fields.items())]

    def _read(self) -> Reply:
        """Return the next response, which is incomplete or empty if the camera closes the connection."""
        head = self._until(re.compile(rb"\r?\n\r?\n"))
        first, *lines = head.decode("latin-1").split("\n") if head else [""]
        pairs = (line.partition(":") for line in lines if ":" in line)
        headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
        reply = Reply(first.strip(), headers)
        length = next(iter(reply.values("content-length")), "0")
        body = self._exactly(int(length) if length.isdigit() else 0)
        return Reply(reply.line, headers, body.decode("latin-1"))

    def _until(self, end: re.Pattern[bytes]) -> bytes:
        while (found := end.search(self._received)) is None:
            if not self._receive():
                received, self._received = self._received, b""
                return received
        head, self._received = self._received[: found.start()], self._received[found.end() :]
        return head

    def _exactly(self, size: int) -> bytes:
        while len(self._received) < size and self._receive():
            pass
        body, self._received = self._received[:size], self._received[size:]
        return body

    def _receive(self) -> bool:
        """Receive more data. Return False if the connection has ended, or if 1 MiB or more is buffered."""
        self._connection.settimeout(max(0.01, self._deadline_s - time.monotonic()))
        data = self._connection.recv(_CHUNK_BYTES)
        self._received += data
        return bool(data) and len(self._received) < _MOST_BYTES


def only_other_digests(challenges: Sequence[str]) -> bool:
    """Return True if the camera accepts neither Basic nor Digest with MD5, for example if it requires SHA-256.

    Many versions of GStreamer and FFmpeg cannot log in to such a camera. `challenges` are the values of the camera's
    `WWW-Authenticate` headers. If there are none, return False.
    """
    return bool(challenges) and not any(_is_supported(one) for one in challenges)


def _is_supported(challenge: str) -> bool:
    algorithm = re.search(r'algorithm="?([\w-]+)', challenge, re.IGNORECASE)
    return challenge.lower().startswith("basic") or algorithm is None or algorithm[1].upper() == "MD5"


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _video_url(description: str, target: str) -> str:
    """Return the URL of the first video track of an SDP document, or else `target`, the URL of the stream."""
    _, _, video = description.partition("m=video")
    control = re.search(r"^a=control:(\S+)", video.partition("\nm=")[0], re.MULTILINE)
    if control is None or control[1] == "*":
        return target
    return control[1] if "://" in control[1] else f"{target.rstrip('/')}/{control[1]}"
