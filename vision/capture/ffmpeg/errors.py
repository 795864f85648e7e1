"""Diagnosis of a camera that could not be opened, by a request to the camera itself.

The request is sent only after the failure, because many cameras serve few connections.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

from vision.errors import SourceError

_PORTS: Final = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_ANSWER_S: Final = 2.0
_ANSWER_LATE_S: Final = 0.5  # for a camera that has not answered within a whole timeout
_LINE_BYTES: Final = 512

_Answer: TypeAlias = tuple[str, str, str]
"""The code of an error, and the text and hint for the operator."""


def named(name: str | Path, error: SourceError) -> SourceError:
    """Return a decoder's error with the name of its source."""
    return SourceError(f"{name}: {error.args[0]}", hint=error.hint, code=error.code)


def explain_open(url: str, *, open_timeout_s: float, took_s: float) -> SourceError:
    """Return the error for a URL (rtsp, rtsps, http, https) that FFmpeg could not open. Asks the camera.

    Takes at most 2 s, 0.5 s after a timeout, and longer if a host name cannot be looked up.
    """
    code, text, hint = _ask(urlsplit(url), late=took_s >= open_timeout_s)
    return SourceError(f"{url}: {text}", hint=hint, code=code)


def _ask(url: SplitResult, *, late: bool) -> _Answer:
    host = url.hostname or ""
    port = url.port or _PORTS[url.scheme]
    try:
        with socket.create_connection((host, port), _ANSWER_LATE_S if late else _ANSWER_S) as connection:
            line = _status_line(connection, url, host, port)
    except socket.gaierror:
        return "unknown-host", f"unknown host {host!r}", "check the name, or use the IP address"
    except ConnectionRefusedError:
        return "refused", f"port {port} refuses connections", "check the camera's address, and that it has started"
    except TimeoutError:
        return "no-answer", "no answer", "check address, cable and the camera's power, or raise `open_timeout_s`"
    except OSError as error:
        return "network", f"{error.strerror or error}", "check address, cable and the camera's power"
    return _explain_status(line, has_user=url.username is not None, late=late)


def _status_line(connection: socket.socket, url: SplitResult, host: str, port: int) -> str:
    """Return the first line of the camera's answer to a request without user and password."""
    if url.scheme in ("rtsps", "https"):
        context = ssl.create_default_context()  # FFmpeg does not check certificates either; this sends no secret
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection, server_hostname=host)
    with connection:
        connection.sendall(_request(url, host, port))
        return connection.recv(_LINE_BYTES).decode("latin-1").partition("\r\n")[0].strip()


def _request(url: SplitResult, host: str, port: int) -> bytes:
    query = f"?{url.query}" if url.query else ""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if url.scheme in ("http", "https"):
        return f"GET {url.path or '/'}{query} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode()
    target = f"rtsp://{address}{url.path}{query}"
    return f"DESCRIBE {target} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n".encode()


_VIEWERS: Final = "close other viewers, or use the camera's second stream"
_NO_USER: Final = ("unauthorized", "it needs a user and password", "set `user` and `password` for this camera")
_NO_FRAME: Final = (
    "no-frame",
    "it answers, but no frame came in time",
    "raise `open_timeout_s`, or make its key frames more frequent",
)
_CODEC: Final = ("codec", "it answers, but its stream cannot be decoded", "set the camera to H.264, H.265 or MJPEG")
_BY_STATUS: Final[Mapping[str, _Answer]] = {
    "401": (
        "unauthorized",
        "it refuses this user or password, or has no such stream",
        "in the URL write @ as %40, : as %3A, / as %2F; look the path up in the camera's manual",
    ),
    "403": (
        "forbidden",
        "this user may not see the stream",
        "give the user the right to watch, in the camera's web page",
    ),
    "404": (
        "no-stream",
        "it has no stream of this path",
        "look the path up in the camera's manual or its web page",
    ),
    "453": ("busy", "it has no bandwidth left for another client", _VIEWERS),
    "503": ("busy", "it serves no further client", _VIEWERS),
}


def _explain_status(line: str, *, has_user: bool, late: bool) -> _Answer:
    status = line.split(" ")[1] if line.startswith(("RTSP/", "HTTP/")) and " " in line else ""
    if status == "401" and not has_user:
        return _NO_USER
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if late:
        return _NO_FRAME
    if status == "200":
        return _CODEC
    text = f"the camera answers {line!r}" if line else "the camera sends an empty answer"
    return "not-a-camera", text, "is this the camera's address and port?"
