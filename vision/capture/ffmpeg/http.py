"""Requests to HTTP cameras, and the JPEGs in the responses.

This module reads JPEGs itself, because FFmpeg requires a certain content type and a correct boundary. FFmpeg reads all
other formats. It sends its own requests, because a playlist or a file needs several requests.
"""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Final
from urllib.parse import unquote, urlsplit

from vision.capture.diagnosis import explain_failure, explain_refusal, network_error
from vision.capture.jpeg_scanner import JpegScanner
from vision.capture.source import SkippedFrames
from vision.capture.tls import client_context
from vision.config import CameraConfig
from vision.config.fields import VERIFY
from vision.config.source_address import NETWORK
from vision.errors import SourceError
from vision.types import DropReason
from vision.version import version

SNAPSHOT_FPS: Final = 1.0
"""Default number of snapshot requests per second."""

_CHUNK_BYTES: Final = 1 << 18
_SEARCHED_BYTES: Final = 1 << 26  # a stream of JPEGs must contain a JPEG within this number of bytes
_START_OF_JPEG: Final = b"\xff\xd8"
_NO_VIDEO: Final = ("text/html", "application/json", "application/xml", "text/xml")


@dataclass(frozen=True, slots=True)
class Answer:
    """The open HTTP response of a camera, and the first bytes of the body."""

    response: HTTPResponse
    first: bytes

    @property
    def content_type(self) -> str:
        return self.response.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def has_end(self) -> bool:
        """True if the response announces its length, as for a file or a single image."""
        return self.response.headers.get("Content-Length") is not None

    @property
    def is_multipart(self) -> bool:
        """True if the response has several parts. Some cameras send such responses with a different content type."""
        return self.content_type.startswith("multipart/") or self.first.lstrip().startswith(b"--")

    @property
    def has_jpegs(self) -> bool:
        return self.is_multipart or self.first.startswith(_START_OF_JPEG)


def request(camera: CameraConfig) -> Answer:
    """Request the camera's address. Return the open response, and the first bytes of its body.

    Raises:
        SourceError: the camera does not respond, refuses the request, or sends neither video nor a JPEG; or the PEM
            file in the camera's setting `tls` cannot be used.
    """
    try:
        answer = _send_request(camera)
    except urllib.error.HTTPError as error:
        error.close()
        raise explain_refusal(camera, error.code, error.reason) from None
    except urllib.error.URLError as error:
        reason = error.reason if isinstance(error.reason, OSError) else OSError(str(error.reason))
        raise explain_failure(camera, reason) from None
    except OSError as error:
        raise explain_failure(camera, error) from None
    except (http.client.HTTPException, ValueError) as error:  # the text can contain the URL
        text = f"its answer is not HTTP ({type(error).__name__})"
        raise network_error(
            camera, ("not-a-camera", text, "check that this is the camera's address and port")
        ) from None
    is_other = answer.content_type.startswith(("image/", *_NO_VIDEO))
    if not answer.first or (is_other and not answer.has_jpegs):
        answer.response.close()
        received = answer.content_type if answer.first else "an empty answer"
        raise _no_video(camera, received)
    return answer


def _no_video(camera: CameraConfig, received: str) -> SourceError:
    text = f"expected video or JPEGs, received {received}"
    return network_error(camera, ("no-video", text, "look the address of the stream up in the camera's manual"))


def _send_request(camera: CameraConfig) -> Answer:
    response = _opener(camera).open(_request(camera), timeout=max(camera.open_timeout_s, camera.read_timeout_s))
    first = b""
    try:
        while len(first) < len(_START_OF_JPEG):
            chunk = response.read1(_CHUNK_BYTES)
            if not chunk:
                break
            first += chunk
    except BaseException:
        response.close()
        raise
    return Answer(response, first)


class _CloseRefusal(urllib.request.BaseHandler):
    """Handler that closes each response with status 401, because the password handlers leave the response open."""

    handler_order = 100  # before the password handlers

    def http_error_401(self, _request: object, answer: HTTPResponse, *_: object) -> None:
        answer.close()


def _opener(camera: CameraConfig) -> urllib.request.OpenerDirector:
    """Return a `urllib` opener that uses the camera's account, and checks certificates as `tls` specifies."""
    address = camera.address
    assert isinstance(address, NETWORK)
    handlers: list[urllib.request.BaseHandler] = [_CloseRefusal()]
    if address.url.startswith("https:") or camera.tls != VERIFY:
        handlers.append(urllib.request.HTTPSHandler(context=client_context(camera.tls)))
    account, at, _ = urlsplit(address.url).netloc.rpartition("@")
    if at:
        user, _, password = account.partition(":")
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, _without_account(address.url), unquote(user), unquote(password))
        handlers += [urllib.request.HTTPBasicAuthHandler(passwords), _DigestHandler(passwords)]
    return urllib.request.build_opener(*handlers)


class _DigestHandler(urllib.request.HTTPDigestAuthHandler):
    """Handler of Digest authentication that also supports SHA-256, which newer cameras require."""

    def get_algorithm_impls(self, algorithm: str) -> tuple[Callable[[str], str], Callable[[str, str], str]]:
        if algorithm.upper() != "SHA-256":
            return super().get_algorithm_impls(algorithm)

        def digest(text: str) -> str:
            return hashlib.sha256(text.encode()).hexdigest()

        return digest, lambda secret, data: digest(f"{secret}:{data}")


def _request(camera: CameraConfig) -> urllib.request.Request:
    address = camera.address
    assert isinstance(address, NETWORK)
    return urllib.request.Request(
        _without_account(address.url), headers={"User-Agent": f"vision/{version()}", "Accept": "*/*"}
    )


def _without_account(url: str) -> str:
    netloc = urlsplit(url).netloc
    return url.replace(netloc, netloc.rpartition("@")[2], 1)


class JpegConnection:
    """Connection that delivers the JPEGs of a stream, or polls an address that sends one JPEG per request."""

    def __init__(self, camera: CameraConfig, answer: Answer, skipped: SkippedFrames) -> None:
        self._camera = camera
        self._answer = answer
        self._skipped = skipped
        self._is_snapshot = answer.has_end and not answer.is_multipart
        self._interval_s = 1 / (camera.fps or SNAPSHOT_FPS)

    @property
    def fps(self) -> float | None:
        """The number of requests per second, or None if the camera determines the frame rate."""
        return 1 / self._interval_s if self._is_snapshot else None

    def packets(self, closing: threading.Event) -> Iterator[tuple[bytes, bool]]:
        """Yield each JPEG as it arrives, and a key-frame flag, which is always True. End when `closing` is set.

        Raises:
            SourceError: the camera ended the stream, refuses a request, or sends no JPEG.
        """
        due = time.monotonic()
        while True:
            frames = 0
            for jpeg in self._jpegs():
                frames += 1
                yield jpeg, True
            if frames != 1 or self._answer.is_multipart:
                raise SourceError(f"{self._camera.source}: the camera ended the stream", code="stream-ended")
            self._answer.response.close()
            due = max(due + self._interval_s, time.monotonic())
            if closing.wait(due - time.monotonic()):
                return
            self._answer = request(self._camera)
            if not self._answer.has_jpegs:
                raise _no_video(self._camera, self._answer.content_type)

    def close(self) -> None:
        self._answer.response.close()

    def _jpegs(self) -> Iterator[bytes]:
        """Yield the JPEGs of the current response, and count the damaged JPEGs as skipped.

        Raises:
            SourceError: the response fails, or contains no JPEG within 64 MiB.
        """
        scanner, counted, searched = JpegScanner(), 0, 0
        chunk = self._answer.first
        while chunk:
            jpegs = scanner.feed(chunk)
            counted = self._count_damaged(scanner.damaged, counted)
            yield from jpegs
            searched = 0 if jpegs else searched + len(chunk)
            if searched > _SEARCHED_BYTES:
                raise _no_video(self._camera, f"{self._answer.content_type} without a JPEG in {searched} bytes")
            chunk = self._read()
        yield from scanner.finish()
        self._count_damaged(scanner.damaged, counted)

    def _count_damaged(self, damaged: int, counted: int) -> int:
        if damaged > counted:
            self._skipped.add(DropReason.CORRUPT, damaged - counted)
        return damaged

    def _read(self) -> bytes:
        try:
            return self._answer.response.read1(_CHUNK_BYTES)
        except TimeoutError:
            text, hint = (
                f"no data for {self._camera.read_timeout_s:g} s",
                "check the network, or raise `read_timeout_s`",
            )
        except (OSError, http.client.HTTPException) as error:
            text, hint = f"the connection failed: {error}", "check the cable, network, and power of the camera"
        raise SourceError(f"{self._camera.source}: {text}", hint=hint, code="read") from None
