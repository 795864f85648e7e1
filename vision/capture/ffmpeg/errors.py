"""Diagnosis of a camera that FFmpeg could not open, by sending a request to the camera.

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
"""The code, the text, and the hint of an error."""


def named(name: str | Path, error: SourceError) -> SourceError:
    """Return a copy of a decoder's error whose text starts with the name of the source."""
    return SourceError(f"{name}: {error.args[0]}", hint=error.hint, code=error.code)


def explain_open(url: str, *, open_timeout_s: float, took_s: float) -> SourceError:
    """Send a request to a camera that FFmpeg could not open, and return an error with the probable cause.

    The scheme of `url` is rtsp, rtsps, http, or https. The call takes at most 2 s, or 0.5 s if FFmpeg reached its
    timeout, and longer if the lookup of the host name takes longer.
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
        return "no-answer", "no answer", "check the address, cable, and power of the camera, or raise `open_timeout_s`"
    except OSError as error:
        return "network", f"{error.strerror or error}", "check the address, cable, and power of the camera"
    return _explain_status(line, has_user=url.username is not None, late=late)


def _status_line(connection: socket.socket, url: SplitResult, host: str, port: int) -> str:
    """Send a request without user and password. Return the first line of the camera's answer."""
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
_NO_USER: Final = ("unauthorized", "the camera needs a user and password", "set `user` and `password` for this camera")
_NO_FRAME: Final = (
    "no-frame",
    "the camera answers, but no frame arrived in time",
    "raise `open_timeout_s`, or make the camera's key frames more frequent",
)
_CODEC: Final = ("codec", "the camera's stream cannot be decoded", "set the camera to H.264, H.265, or MJPEG")
_BY_STATUS: Final[Mapping[str, _Answer]] = {
    "401": (
        "unauthorized",
        "the camera refuses this user or password, or has no stream at this path",
        "in the URL, write @ as %40, : as %3A, / as %2F; look the path up in the camera's manual",
    ),
    "403": (
        "forbidden",
        "this user has no permission to view the stream",
        "give the user this permission in the camera's web page",
    ),
    "404": (
        "no-stream",
        "the camera has no stream at this path",
        "look the path up in the camera's manual or its web page",
    ),
    "453": ("busy", "the camera has no bandwidth left for another client", _VIEWERS),
    "503": ("busy", "the camera accepts no more clients", _VIEWERS),
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
    return "not-a-camera", text, "check that this is the camera's address and port"
