"""A scripted server of a language model in its own process. The server can misbehave, and can be killed and restarted.

`ServerProcess` starts and controls the process `python -m tests.perf.language_server PORT`. The process reads the name
of its next behavior from each line of standard input. For each request, it prints the name of its current behavior.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final

import httpx

from tests.chat_server import Handler, chat_server, completion, json_answer

WORKS: Final = "works"
_AFTER: Final = "answers after "  # followed by the time in seconds
_START_S: Final = 30.0


def _break_connection(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def _trickle(handler: Handler) -> None:
    handler.trickle(b" ", 0.05)


def _send_without_end(handler: Handler) -> None:
    handler.trickle(b"data: {}\n" * 10_000, 0.05)


def _answer_late(handler: Handler) -> None:
    time.sleep(random.uniform(0.3, 3.0))
    handler.send(json_answer("no"))


FAULTS: Final[Mapping[str, Callable[[Handler], None]]] = {
    "hangs": lambda handler: handler.hang(),
    "slow": _answer_late,
    "wrong key": lambda handler: handler.send({"error": {"message": "invalid key"}}, 401),
    "no model": lambda handler: handler.send({"error": {"message": "model not found"}}, 404),
    "image too large": lambda handler: handler.send("", 413),
    "busy": lambda handler: handler.send("", 429),
    "server error": lambda handler: handler.send({"error": "out of memory"}, 500),
    "wrong answer": lambda handler: handler.send(json_answer("perhaps")),
    "rubbish": lambda handler: handler.send("\x00\x01{[" * 1000),
    "no answer": lambda handler: handler.send(completion(None)),
    "broken connection": _break_connection,
    "byte by byte": _trickle,
    "without end": _send_without_end,
}
"""Faults of the server, by name."""


class ServerProcess:
    """Server process, and the requests that the server has received."""

    def __init__(self, behavior: str = WORKS) -> None:
        """Start the server. `behavior` is `WORKS`, the name of a fault, or a result of `answers_after`."""
        self.met: Counter[str] = Counter()
        """Number of received requests for each behavior of the server."""
        self._port = 0
        self.start(behavior)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self, behavior: str = WORKS) -> None:
        """Start the process on the same port as before, and wait until it responds."""
        command = [sys.executable, "-m", "tests.perf.language_server", str(self._port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        self._reader = threading.Thread(target=self._read, args=(self._process,))
        self._reader.start()
        self.behave(behavior)
        httpx.get(f"{self.url}/models", timeout=_START_S).raise_for_status()

    def behave(self, behavior: str) -> None:
        """Change the behavior of the server for all following requests."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{behavior}\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """Kill the process, so that the machine refuses connections to its port. `start` restarts the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.met[line.strip()] += 1

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


def answers_after(seconds: float) -> str:
    """Return the behavior of a server that works normally and needs `seconds` for each answer."""
    return f"{_AFTER}{seconds}"


def _respond(behavior: str, handler: Handler) -> None:
    if behavior in FAULTS:
        FAULTS[behavior](handler)
        return
    if behavior.startswith(_AFTER):
        time.sleep(float(behavior.removeprefix(_AFTER)))
    handler.send(json_answer("yes"))


def main() -> None:
    """Serve requests until standard input closes."""
    behavior, lock = WORKS, threading.Lock()

    def chat(handler: Handler) -> None:
        now = behavior
        with lock:
            handler.server.requests.clear()  # with their images
            print(now, flush=True)
        _respond(now, handler)

    with chat_server(chat, port=int(sys.argv[1])) as server:
        print(server.server_address[1], flush=True)
        for line in sys.stdin:
            behavior = line.strip()


if __name__ == "__main__":
    main()
