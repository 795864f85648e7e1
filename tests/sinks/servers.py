"""Real brokers and servers for tests of sinks. Tests can kill them and restart them at the same address."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

_DEADLINE_S = 60.0

_WEBHOOK = """
import json, pathlib, ssl, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

log, mode = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status, location = json.loads(mode.read_text()) if mode.exists() else (204, "")
        if status < 300:
            with log.open("a") as file:
                file.write(json.dumps([dict(self.headers), body.decode()]) + "\\n")
        self.send_response(status)
        if location:
            self.send_header("location", location)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
if sys.argv[4:]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[4:])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"""

_KAFKA = """
import sys
from confluent_kafka import Producer

producer = Producer({"bootstrap.servers": "x", "test.mock.num.brokers": 1})
brokers = producer.list_topics(timeout=10).brokers.values()
print(",".join(f"{broker.host}:{broker.port}" for broker in brokers), flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    """Return a free TCP port on this machine."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """Server process on a fixed port of this machine. Its data in `folder` persists across restarts."""

    def __init__(self, folder: Path, command: Callable[[int, Path], Sequence[str | Path]]) -> None:
        self.port = free_port()
        self.folder = folder
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start the process, and wait until it accepts connections."""
        command = [str(part) for part in self._command(self.port, self.folder)]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        log.close()
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
                assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """Kill the process, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def program(name: str) -> str:
    """Return the path of an installed program. Skip the test if the program is not installed."""
    found = shutil.which(name) or shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def mosquitto(folder: Path, *, options: str = "allow_anonymous true") -> Server:
    """Return an MQTT broker (Mosquitto) that stores its data in `folder`."""
    path = program("mosquitto")

    def command(port: int, where: Path) -> Sequence[str | Path]:
        text = f"listener {port} 127.0.0.1\npersistence true\npersistence_location {where}/\nuser root\n"
        text += "autosave_on_changes true\nautosave_interval 1\nmax_queued_messages 0\n"
        (where / "mosquitto.conf").write_text(text + options + "\n")
        return [path, "-c", where / "mosquitto.conf"]

    return Server(folder, command)


def redis_server(folder: Path, *options: str, tls: bool = False) -> Server:
    """Return a Redis server that writes each change to disk."""
    path = program("redis-server")
    stored = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", *options]

    def command(port: int, where: Path) -> Sequence[str | Path]:
        ports = ["--port", "0", "--tls-port", str(port)] if tls else ["--port", str(port)]
        return [path, *ports, "--bind", "127.0.0.1", "--dir", where, *stored]

    return Server(folder, command)


def nats_server(folder: Path, *options: str | Path) -> Server:
    """Return a NATS server with JetStream."""
    path = program("nats-server")
    return Server(folder, lambda port, where: [path, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", where, *options])


def webhook_server(folder: Path, *certificate: Path) -> Server:
    """Return an HTTP server that stores each accepted request in a file. With a certificate, the server uses TLS."""
    return Server(
        folder,
        lambda port, where: [
            sys.executable,
            "-c",
            _WEBHOOK,
            str(port),
            where / "requests",
            where / "mode",
            *certificate,
        ],
    )


def answer_with(server: Server, status: int, location: str = "") -> None:
    """Make a webhook server respond to each request with the HTTP status `status`."""
    (server.folder / "mode").write_text(json.dumps([status, location]))


def requests_of(server: Server) -> list[tuple[dict[str, str], str]]:
    """Return the headers and the body of each request that a webhook server accepted."""
    path = server.folder / "requests"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        ({name.lower(): value for name, value in headers.items()}, body) for headers, body in map(json.loads, lines)
    ]


class KafkaCluster:
    """Kafka test broker of librdkafka, in a separate process. The broker stores messages in memory."""

    def __enter__(self) -> KafkaCluster:
        command = [sys.executable, "-c", _KAFKA]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")
