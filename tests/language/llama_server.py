"""HTTP server of llama.cpp, from the package `xllamacpp`, in a process that tests can kill and suspend.

Arguments of the program: the model, its projector for images (or an empty string), and the API key (or an empty
string).
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MODEL: Final = "tiny"
_START_S: Final = 60.0


class LlamaServer:
    """Running server. `url` is the base URL of its API."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.url = url
        self._process = process

    def freeze(self) -> None:
        """Suspend the process. Clients can then connect, but receive no response."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def llama_server(model: Path, projector: Path | None = None, key: str = "") -> Iterator[LlamaServer]:
    """Run a server until the end of the `with` block. Clients must send the API key `key`, unless it is empty."""
    command = [sys.executable, "-m", "tests.language.llama_server", str(model), str(projector or ""), key]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield LlamaServer(process, f"{_first_line(process)}/v1")
    finally:
        process.kill()
        process.communicate()


def _first_line(process: subprocess.Popen[str]) -> str:
    """Return the line that the server prints when it is ready."""
    assert process.stdout is not None
    end = time.monotonic() + _START_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < end and process.poll() is None:
            if selector.select(1.0):
                return process.stdout.readline().strip()
    raise AssertionError(f"the server did not start, exit code {process.poll()}")


def main() -> None:
    """Start the server, print its address, and serve until the process is killed."""
    import xllamacpp

    model, projector, key = sys.argv[1:]
    address = os.dup(1)
    os.dup2(2, 1)  # the library logs to standard output, too
    options = xllamacpp.CommonParams()
    options.model.path = model
    options.mmproj.path = projector
    options.model_alias = {MODEL}
    options.api_keys = [key] if key else []
    options.cpuparams.n_threads = 1  # more threads wait for each other actively, which disturbs other tests
    options.warmup = False
    options.port = 0
    server = xllamacpp.Server(options)
    os.write(address, f"{server.listening_address}\n".encode())
    signal.pause()


if __name__ == "__main__":
    main()
