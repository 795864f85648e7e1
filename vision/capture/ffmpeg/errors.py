"""Why a camera could not be opened, asked of the camera itself.

It is asked after the failure and not before: many cameras serve few connections, and a working
one must not be disturbed.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final
from urllib.parse import SplitResult, urlsplit

from vision.errors import SourceError, redact

_PORTS: Final = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_ANSWER_S: Final = 2.0
_ANSWER_LATE_S: Final = 0.5  # for a camera that has not answered for a whole timeout
_LINE_BYTES: Final = 512


def explain_open(url: str, *, open_timeout_s: float, took_s: float) -> SourceError:
    """Return the error for a URL (rtsp, rtsps, http, https) that FFmpeg could not open. Asks the camera.

    Takes at most 2 s, 0.5 s after a timeout, and longer if a host name cannot be looked up.
    """
    text, hint = _ask(urlsplit(url), late=took_s >= open_timeout_s)
    return SourceError(f"{redact(url)}: {text}", hint=hint, code="open")


def _ask(url: SplitResult, *, late: bool) -> tuple[str, str]:
    host = url.hostname or ""
    port = url.port or _PORTS[url.scheme]
    try:
        with socket.create_connection((host, port), _ANSWER_LATE_S if late else _ANSWER_S) as connection:
            line = _status_line(connection, url, host, port)
    except socket.gaierror:
        return f"unknown host {host!r}", "check the name, or write the address in numbers"
    except ConnectionRefusedError:
        return f"port {port} refuses connections", "is this the camera's address, and has it started yet?"
    except TimeoutError:
        return "no answer", "check address, cable and the camera's power, or raise `open_timeout_s`"
    except (OSError, ssl.SSLError) as error:
        return f"{error.strerror or error}", "check address, cable and the camera's power"
    return _explain_status(line, url, late=late)


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


_BY_STATUS: Final = {
    "403": ("this user may not see the stream", "give the user the right to watch, in the camera's web page"),
    "404": ("it has no stream of this path", "look the path up in the camera's manual or its web page"),
    "453": ("it has no bandwidth left for another client", "close other viewers, or use the camera's second stream"),
    "503": ("it serves no further client", "close other viewers, or use the camera's second stream"),
}


def _explain_status(line: str, url: SplitResult, *, late: bool) -> tuple[str, str]:
    code = line.split(" ")[1] if line.startswith(("RTSP/", "HTTP/")) and " " in line else ""
    if code == "401":
        return _explain_unauthorized(url)
    if code in _BY_STATUS:
        return _BY_STATUS[code]
    if late:
        return "it answers, but no frame came in time", "raise `open_timeout_s`, or make its key frames more frequent"
    if code == "200":
        return "it answers, but its stream cannot be decoded", "set the camera to H.264, H.265 or MJPEG"
    return f"it answers {line!r}" if line else "it answers nothing", "is this the camera's address and port?"


def _explain_unauthorized(url: SplitResult) -> tuple[str, str]:
    if url.username is None:
        return "it asks for user and password", "write them as user:${PASSWORD}@ before the host"
    return (
        "it refuses this user or password, or has no such stream",
        "in the URL write @ as %40, : as %3A, / as %2F; look the path up in the camera's manual",
    )
