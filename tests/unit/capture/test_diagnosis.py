"""Tests of the diagnosis of cameras that cannot be opened."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vision.capture.diagnosis import explain_open
from vision.config import CameraConfig


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """Open a port that responds to requests with `answer`, or never if `answer` is None. Yield the port."""
    released = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if answer is None:
                released.wait(30)
                return
            self.request.recv(4096)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        released.set()
        server.shutdown()
        thread.join()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("scheme", "answer", "late", "code"),
    [
        ("rtsp", b"RTSP/1.0 401 Unauthorized\r\n\r\n", False, "unauthorized"),
        ("rtsp", b"RTSP/1.0 404 Not Found\r\n\r\n", False, "no-stream"),
        ("rtsp", b"RTSP/1.0 403 Forbidden\r\n\r\n", False, "forbidden"),
        ("rtsp", b"RTSP/1.0 453 Not Enough Bandwidth\r\n\r\n", False, "busy"),
        ("rtsp", b"RTSP/1.0 200 OK\r\n\r\n", False, "codec"),
        ("rtsp", b"RTSP/1.0 200 OK\r\n\r\n", True, "no-frame"),
        ("rtsp", b"SSH-2.0-OpenSSH\r\n", False, "not-a-camera"),
        ("rtsp", b"", False, "not-a-camera"),
        ("rtsp", None, True, "no-answer"),
        ("http", b"HTTP/1.1 401 Unauthorized\r\n\r\n", False, "unauthorized"),
        ("http", b"HTTP/1.1 404 Not Found\r\n\r\n", False, "no-stream"),
        ("http", b"HTTP/1.1 503 Busy\r\n\r\n", False, "busy"),
        ("https", b"HTTP/1.1 200 OK\r\n\r\n", False, "tls"),
        ("rtsps", b"RTSP/1.0 200 OK\r\n\r\n", False, "tls"),
    ],
)
def test_open_failure_names_the_cause_without_secrets(
    scheme: str, answer: bytes | None, code: str, *, late: bool
) -> None:
    with answering(answer) as port:
        url = f"{scheme}://admin:secret@127.0.0.1:{port}/live?channel=1"
        error = explain_open(CameraConfig(id="gate", source=url), late=late)
    assert error.code == code
    assert "secret" not in str(error)
    assert f"{scheme}://***@127.0.0.1:{port}/live?channel=1" in str(error)


def test_open_failure_without_an_account_asks_for_one() -> None:
    with answering(b"RTSP/1.0 401 Unauthorized\r\n\r\n") as port:
        error = explain_open(CameraConfig(id="gate", source=f"rtsp://127.0.0.1:{port}/live"), late=False)
    assert error.code == "unauthorized"
    assert "`password`" in error.hint
