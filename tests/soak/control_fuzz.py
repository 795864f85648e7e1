"""Send hostile requests to the control socket of a real program, which must neither crash nor hang.

python -m tests.soak.control_fuzz [--minutes 10] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.messages.processes import Program, wait_until
from vision.messaging.control_protocol import LENGTH_BYTES, StatusReply, StatusRequest, ask, find_socket

_WORDS = [
    "id",
    "source",
    "lines",
    "zones",
    "name",
    "points",
    "polygon",
    "units",
    "a",
    "b",
    "x",
    "",
    "../etc/passwd",
    "${HOME}",
]
_KINDS = ["status", "reload", "add-camera", "remove-camera", "set-analytics", "exec"]
_CONFIG = """
pipeline: count
detect: {backend: fake}
cameras:
  - {id: a, source: "synthetic:160x120@10?objects=3&seed=1"}
  - {id: b, source: "synthetic:160x120@10?objects=3&seed=2"}
publish: {bind: "ipc://FOLDER/out"}
status: {interval_s: 0.2}
"""


def value(choice: random.Random, depth: int = 0) -> Any:
    """Return a random JSON value, often with configuration keys."""
    kind = choice.randrange(8 if depth < 4 else 5)
    if kind < 2:
        return choice.choice(_WORDS)
    if kind < 5:
        return choice.choice([None, True, -1, 0, 0.5, 1e308, 2**63, choice.random(), "\ud83d\ude00", "x" * 1000])
    if kind < 6:
        return [value(choice, depth + 1) for _ in range(choice.randrange(5))]
    return {choice.choice(_WORDS): value(choice, depth + 1) for _ in range(choice.randrange(5))}


def payload(choice: random.Random) -> bytes:
    """Return random data for one connection: random bytes, or a request with random field values."""
    if choice.random() < 0.2:
        return choice.randbytes(choice.randrange(300))
    request = {"request": choice.choice(_KINDS)}
    for key in ("id", "camera", "analytics", "config"):
        if choice.random() < 0.5:
            request[key] = value(choice)
    if request["request"] == "add-camera" and choice.random() < 0.5:
        camera = {"id": choice.choice("cde"), "source": "synthetic:160x120@10?objects=2"}
        request = {"request": "add-camera", "camera": camera}  # type: ignore[dict-item]
    data = json.dumps(request).encode()
    data = len(data).to_bytes(LENGTH_BYTES, "big") + data
    return data[: choice.randrange(len(data))] if choice.random() < 0.2 else data


def send(path: Path, data: bytes) -> str:
    """Send bytes. Return the kind of the reply, or the reason for the missing reply."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.settimeout(60)
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: sock.recv(65536), b""))
        except ConnectionError:
            return "connection closed"
    if not received:
        return "no reply"
    reply = json.loads(received[LENGTH_BYTES:])
    return f"{reply['reply']} {reply.get('code', '')}".strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder, choice, kinds = (
        Path(tempfile.mkdtemp(prefix="vf-", dir="/tmp")),
        random.Random(arguments.seed),
        Counter[str](),
    )
    os.environ["RUNTIME_DIRECTORY"] = str(folder)
    config = folder / "camera.yaml"
    config.write_text(_CONFIG.replace("FOLDER", str(folder)))
    with Program([sys.executable, "-m", "vision", "--log-level", "error", "run", config]) as program:
        wait_until(lambda: any(folder.glob("*.control")), "the control socket", 60)
        path, end_s = find_socket(config), time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < end_s:
            kinds[send(path, payload(choice))] += 1
        status = ask(path, StatusRequest())
        assert isinstance(status, StatusReply) and status.node.rates["published"] > 0, status
        program.send(signal.SIGTERM)
        code = program.wait(60)
        bugs = [line for line in program.pending() if "Traceback" in line or "unexpected exception" in line]
    shutil.rmtree(folder)
    print(json.dumps({"connections": kinds.total(), "exit_code": code, "bugs": bugs, "replies": kinds}, indent=1))
    return int(bool(code or bugs or kinds["error control-bug"]))


if __name__ == "__main__":
    sys.exit(main())
