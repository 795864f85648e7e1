"""Diagnosis of network cameras: functions that find out why a connection failed, and describe the cause and a remedy.

Requests for the diagnosis are sent only after the failure, because many cameras accept few connections at a time.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

from vision.capture.rtsp_probe import RtspProbe, Transport, only_other_digests
from vision.capture.tls import client_context
from vision.config import CameraConfig
from vision.config.source_address import NETWORK, has_account
from vision.errors import SourceError

_PORTS: Final = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_ANSWER_S: Final = 2.0
_ANSWER_LATE_S: Final = 0.5  # for a camera that has not answered within a whole timeout
_LINE_BYTES: Final = 512

Answer: TypeAlias = tuple[str, str, str]
"""The code, the text, and the hint of an error."""


def named(name: str | Path, error: SourceError) -> SourceError:
    """Return a copy of an error, with the name of the source at the start of the text."""
    return SourceError(f"{name}: {error.args[0]}", hint=error.hint, code=error.code)


def explain_open(camera: CameraConfig, *, late: bool) -> SourceError:
    """Send requests to a network camera that a library could not open. Return an error with the probable cause.

    Connecting, the TLS handshake, and the responses can each take 2 s. If `late` is True, the library has already
    reached its timeout, and this limit is 0.5 s. The time for the lookup of the host name is not limited.
    """
    address = camera.address
    assert isinstance(address, NETWORK)
    url = urlsplit(address.url)
    try:
        answer = _ask(camera, url, late=late)
    except OSError as error:
        answer = _explain_os_error(error, url)
    return network_error(camera, answer)


def explain_failure(camera: CameraConfig, error: OSError) -> SourceError:
    """Return the error for a connection to a network camera that failed with `error`."""
    address = camera.address
    assert isinstance(address, NETWORK)
    return network_error(camera, _explain_os_error(error, urlsplit(address.url)))


def explain_refusal(camera: CameraConfig, status: int, reason: str) -> SourceError:
    """Return the error for a camera that refuses an HTTP request with this status and reason."""
    line = f"HTTP/1.1 {status} {reason}"
    return network_error(camera, _explain_status(line, has_account(camera.address), late=False))


def network_error(camera: CameraConfig, answer: Answer) -> SourceError:
    """Return an error with the code, text, and hint of `answer`. The text starts with the camera's address."""
    code, text, hint = answer
    return SourceError(f"{camera.source}: {text}", hint=hint, code=code)


def _explain_os_error(error: OSError, url: SplitResult) -> Answer:
    import ssl  # imported late to save memory, as in `vision.config.tls`

    port = url.port or _PORTS[url.scheme]
    match error:
        case socket.gaierror():
            return "unknown-host", f"unknown host {url.hostname!r}", "check the name, or use the IP address"
        case ConnectionRefusedError():
            return (
                "refused",
                f"port {port} refuses connections",
                "check the camera's address, and that it has started",
            )
        case ssl.SSLCertVerificationError():
            return (
                "certificate",
                f"the camera's certificate is not trusted: {error.verify_message}",
                "set `tls` to a PEM file with the certificate of the camera or of its issuer, or to accept-any",
            )
        case ssl.SSLError():
            reason = (error.reason or "").replace("_", " ").lower()
            return "tls", f"TLS failed on port {port}: {reason or error}", f"is port {port} the port of {url.scheme}?"
        case TimeoutError():
            return (
                "no-answer",
                "no answer",
                "check the address, cable, and power of the camera, or raise `open_timeout_s`",
            )
    return "network", f"{error.strerror or error}", "check the address, cable, and power of the camera"


def _ask(camera: CameraConfig, url: SplitResult, *, late: bool) -> Answer:
    """Connect to the camera at `url`, and send requests until the camera refuses one. Explain the refusal.

    Return the code, text, and hint of the error to raise. If the camera refuses no request, they describe the most
    probable other cause. The first request contains no password. `explain_open` describes `late`.

    Raises:
        OSError: the camera cannot be reached, closes the connection, or does not answer in time.
    """
    host, port = url.hostname or "", url.port or _PORTS[url.scheme]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    answer_s = _ANSWER_LATE_S if late else _ANSWER_S
    deadline_s = time.monotonic() + answer_s
    with socket.create_connection((host, port), answer_s) as plain:
        encrypted = url.scheme in ("rtsps", "https")
        context = client_context(camera.tls) if encrypted else None
        connection = plain if context is None else context.wrap_socket(plain, server_hostname=host)
        with connection:
            if url.scheme in ("rtsp", "rtsps"):
                return _ask_rtsp(camera, RtspProbe(connection, url, address, deadline_s), late=late)
            query = f"?{url.query}" if url.query else ""
            connection.sendall(f"GET {url.path or '/'}{query} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
            line = connection.recv(_LINE_BYTES).decode("latin-1").partition("\r\n")[0].strip()
    return _explain_status(line, has_account(camera.address), late=late)


def _ask_rtsp(camera: CameraConfig, probe: RtspProbe, *, late: bool) -> Answer:
    described = probe.describe()
    challenges = described.values("www-authenticate")
    if described.status == "401" and has_account(camera.address) and only_other_digests(challenges):
        return _OTHER_DIGEST
    if described.status == "200" and described.body:
        with suppress(OSError):  # if a later answer is late or missing, the answer to DESCRIBE shows the cause
            refusal = _refused_step(camera, probe, described.body)
            if refusal is not None:
                return refusal
    return _explain_status(described.line, has_account(camera.address), late=late)


def _refused_step(camera: CameraConfig, probe: RtspProbe, description: str) -> Answer | None:
    """Return the cause if the stream has no video, or if the camera refuses a step after DESCRIBE.

    Otherwise, return None.

    `description` is the SDP document of the stream.
    """
    if "m=video" not in description:
        return "no-video", "the camera's stream contains no video", "choose a different stream of this camera"
    options = probe.options()
    reply = probe.setup(description, camera.transport)
    if reply.status == "461":
        other: Transport = "udp" if camera.transport == "tcp" else "tcp"
        accepted = probe.setup(description, other).status == "200"
        hint = f"set `transport: {other}`" if accepted else "enable RTP over TCP or UDP in the camera's settings"
        return "transport", f"the camera refuses to send over {camera.transport.upper()}", hint
    if options.status and options.status != "200":
        return "refused-request", f"the camera answers OPTIONS with {options.line!r}", "set `reader: gstreamer`"
    return None


_VIEWERS: Final = "close other viewers, or use the camera's second stream"
_NO_USER: Final = ("unauthorized", "the camera needs a user and password", "set `user` and `password` for this camera")
_OTHER_DIGEST: Final = (
    "digest-algorithm",
    "the camera accepts passwords only with a Digest algorithm that is not supported, such as SHA-256",
    "allow Digest with MD5 in the camera's security settings",
)
_NO_FRAME: Final = (
    "no-frame",
    "the camera answers, but no frame arrived in time",
    "raise `open_timeout_s`, or make the camera's key frames more frequent",
)
_CODEC: Final = ("codec", "the camera's stream cannot be decoded", "set the camera to H.264, H.265, or MJPEG")
_BY_STATUS: Final[Mapping[str, Answer]] = {
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


def _explain_status(line: str, has_user: bool, *, late: bool) -> Answer:
    status = line.split(" ")[1] if line.startswith(("RTSP/", "HTTP/")) and " " in line else ""
    if status == "401" and not has_user:
        return _NO_USER
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if late:
        return _NO_FRAME
    if status == "200":
        return _CODEC
    if status.startswith("5"):
        return "camera-error", f"the camera answers {line!r}", "the camera itself has failed: restart it"
    text = f"the camera answers {line!r}" if line else "the camera sends an empty answer"
    return "not-a-camera", text, "check that this is the camera's address and port"
