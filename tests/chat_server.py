"""Scripted server with the chat completions API, over real HTTP. The server can misbehave in many ways."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

MODEL: Final = "scripted-vlm"


def completion(content: str | None, **choice: Any) -> dict[str, Any]:
    """Return the body of a chat completion with one choice."""
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"} | choice]
    return {"object": "chat.completion", "model": MODEL, "choices": choices, "usage": {"completion_tokens": 3}}


def json_answer(answer: str, confidence: float = 0.9) -> dict[str, Any]:
    """Return the body of a response. The content is JSON with the fields `answer` and `confidence`."""
    return completion(json.dumps({"answer": answer, "confidence": confidence}))


class Handler(BaseHTTPRequestHandler):
    """Handler of one request."""

    protocol_version = "HTTP/1.1"
    server: ChatHttpServer

    def do_GET(self) -> None:
        self.server.script.models(self)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.received = Request(self.path, dict(self.headers), body, time.monotonic())
        with self.server.lock:
            self.server.requests.append(self.received)
        with contextlib.suppress(OSError):  # the client has given up
            self.server.script.chat(self)

    def send(self, body: object, status: int = 200) -> None:
        """Send a complete response. Text is sent as it is, everything else as JSON."""
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def trickle(self, part: bytes, pause_s: float) -> None:
        """Send `part` repeatedly, until the client or the server closes the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        while not self.server.closed.wait(pause_s):
            self.wfile.write(part)
            self.wfile.flush()

    def hang(self) -> None:
        """Wait without a response until the server is closed."""
        self.close_connection = True
        self.server.closed.wait()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        """Log nothing."""


@dataclass
class Request:
    """Request that the server has received."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at_s: float

    @property
    def content(self) -> Any:
        return self.body["messages"][0]["content"]

    @property
    def prompt(self) -> str:
        """Text of the request."""
        content = self.content
        return content if isinstance(content, str) else str(content[0]["text"])

    @property
    def images(self) -> int:
        """Number of images in the request."""
        return 0 if isinstance(self.content, str) else len(self.content) - 1


def _list_models(handler: Handler) -> None:
    handler.send({"object": "list", "data": [{"id": MODEL}, {"id": "second"}]})


def _say_yes(handler: Handler) -> None:
    handler.send(json_answer("yes"))


@dataclass
class Script:
    """Behavior of the server, which can be replaced while the server runs."""

    chat: Callable[[Handler], None] = _say_yes
    models: Callable[[Handler], None] = _list_models


@dataclass
class ChatHttpServer(ThreadingHTTPServer):
    """Running scripted server. `url` is the base URL of its API."""

    script: Script = field(default_factory=Script)
    port: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.closed = threading.Event()
        self.request_queue_size = 64
        super().__init__(("127.0.0.1", self.port), Handler)
        self.daemon_threads = True
        self.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections that the client closed."""


@contextlib.contextmanager
def chat_server(chat: Callable[[Handler], None] | None = None, *, port: int = 0) -> Iterator[ChatHttpServer]:
    """Run a scripted server in threads of this process until the end of the `with` block."""
    server = ChatHttpServer(Script() if chat is None else Script(chat), port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closed.set()
        server.shutdown()
        thread.join()
        server.server_close()
