"""The causes of a failed open, asked of the camera itself."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vision.capture.ffmpeg.errors import explain_open
from vision.errors import SourceError


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """Serve a port that answers every request with `answer`; None: with nothing."""
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
    ("scheme", "answer", "took_s", "message"),
    [
        ("rtsp", b"RTSP/1.0 401 Unauthorized\r\n\r\n", 0.1, "refuses this user or password(.|\n)*%40"),
        ("rtsp", b"RTSP/1.0 404 Not Found\r\n\r\n", 0.1, "no stream of this path"),
        ("rtsp", b"RTSP/1.0 403 Forbidden\r\n\r\n", 0.1, "may not see the stream"),
        ("rtsp", b"RTSP/1.0 453 Not Enough Bandwidth\r\n\r\n", 0.1, "no bandwidth left"),
        ("rtsp", b"RTSP/1.0 200 OK\r\n\r\n", 0.1, "cannot be decoded"),
        ("rtsp", b"RTSP/1.0 200 OK\r\n\r\n", 5.0, "no frame came in time(.|\n)*open_timeout_s"),
        ("rtsp", b"SSH-2.0-OpenSSH\r\n", 0.1, "it answers 'SSH-2.0-OpenSSH'"),
        ("rtsp", b"", 0.1, "it answers nothing"),
        ("rtsp", None, 5.0, "no answer"),
        ("http", b"HTTP/1.1 401 Unauthorized\r\n\r\n", 0.1, "refuses this user or password"),
        ("http", b"HTTP/1.1 404 Not Found\r\n\r\n", 0.1, "no stream of this path"),
        ("http", b"HTTP/1.1 503 Busy\r\n\r\n", 0.1, "serves no further client"),
        ("https", b"HTTP/1.1 200 OK\r\n\r\n", 0.1, "SSL|WRONG|record"),
        ("rtsps", b"RTSP/1.0 200 OK\r\n\r\n", 0.1, "SSL|WRONG|record"),
    ],
)
def test_open_failure_names_the_cause_without_secrets(
    scheme: str, answer: bytes | None, took_s: float, message: str
) -> None:
    with answering(answer) as port:
        url = f"{scheme}://admin:secret@127.0.0.1:{port}/live?channel=1"
        with pytest.raises(SourceError, match=message) as error:
            raise explain_open(url, open_timeout_s=5.0, took_s=took_s)
    assert "secret" not in str(error.value)
    assert f"{scheme}://***@127.0.0.1:{port}/live?channel=1" in str(error.value)


def test_open_failure_without_an_account_asks_for_one() -> None:
    with answering(b"RTSP/1.0 401 Unauthorized\r\n\r\n") as port:
        error = explain_open(f"rtsp://127.0.0.1:{port}/live", open_timeout_s=5.0, took_s=0.1)
    assert "it asks for user and password" in str(error)
