"""Pass mutated input to the readers of files, messages, and requests, which must reject it with a `VisionError`.

python -m tests.soak.fuzz {config,wire,http,truth} [--seconds 600] [--seed 1]

The program changes valid input at random. The input comes from the repository and from a running `vision run`. An input
counts as a bug if it causes an exception other than `VisionError`, takes longer than 10 s, or makes a server fail. The
program prints these inputs.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import itertools
import json
import random
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np
import psutil
import zmq

from tests.messages.processes import Program, wait_until
from tests.messages.samples import CLASSES, crossed, node_status, result
from tests.paths import ROOT
from vision.analytics.count_accuracy import SCHEMA
from vision.client import Gap, Subscription, read_recording
from vision.config import load_config, load_model_spec
from vision.config.analytics import LineConfig
from vision.errors import VisionError
from vision.evaluation.count_errors import check_accuracy_file
from vision.evaluation.crossings import timed_crossings
from vision.evaluation.language.labels import read_labels
from vision.evaluation.mot import read_truth
from vision.evaluation.passes import Video
from vision.evaluation.tracks import match_frames
from vision.messaging import codec
from vision.messaging.publisher import Publisher
from vision.messaging.replay_schema import ReplayReply
from vision.messaging.schema import Encoding

LONGEST_S: Final = 10.0
_LONGEST_INPUT: Final = 100_000  # bytes
_MOST_BUGS: Final = 20  # that are printed
_WORDS: Final = (
    *(b"0", b"-1", b"1e308", b"-1e400", b"nan", b".inf", b"9223372036854775808", b"0x7f", b"1_0", b"1:30", b"null"),
    *(b"true", b"''", b'""', b"[]", b"{}", b"[[", b"}", b"&a", b"*a", b"<<: *a", b"!!python/object:os.system", b"---"),
    *(b"|", b">", b"#", b"\t", b"\r", b"\x00", b"\xff\xfe", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"%", b"${HOME}"),
    *(
        b"../" * 9,
        b"/dev/zero",
        b"/proc/self/mem",
        b"rtsp://a:b@[::1",
        b"tcp://*:0",
        b"a" * 300,
        b"1" * 400,
        b"=",
        b"?",
    ),
    *(b"~", b"${X}", b";", b",", b"?"),
)


class TooSlow(BaseException):
    """An input took longer than `LONGEST_S`. Handlers of `Exception` do not catch this error."""


def _alarm(_number: int, _frame: FrameType | None) -> None:
    raise TooSlow


class Mutator:
    """Generator of inputs, which changes valid inputs at random."""

    def __init__(self, inputs: Sequence[bytes], seed: int) -> None:
        self._inputs = inputs
        self._choice = random.Random(seed)

    def next(self) -> bytes:
        """Return a valid input with one or several random changes."""
        data = self._choice.choice(self._inputs)
        for _ in range(self._choice.choice((1, 1, 1, 2, 3, 8))):
            data = self._changed(data)[:_LONGEST_INPUT]
        return data

    def _changed(self, data: bytes) -> bytes:
        choice = self._choice
        start, end = sorted((choice.randint(0, len(data)), choice.randint(0, len(data))))
        end = min(end, start + choice.choice((1, 2, 8, 1000)))
        way = choice.randrange(12)
        if way == 0:
            return self._lines(data)
        if way < 4:
            return self._values(data, start)
        other = choice.choice(self._inputs)
        at = choice.randint(0, len(other))
        inserted = (
            b"",
            bytes([choice.randrange(256)]),
            data[start:end] * choice.choice((2, 3, 50)),
            choice.choice(_WORDS),
            other[at : at + choice.choice((4, 40, 400))],
            choice.randbytes(choice.choice((1, 4, 30))),
        )
        return data[:start] if way == 4 else data[:start] + choice.choice(inserted) + data[end:]

    def _values(self, data: bytes, start: int) -> bytes:
        """Replace a random number, string, or name after the offset `start`."""
        found = list(re.finditer(rb"-?\d[\d.]*|\"[^\"]*\"|[A-Za-z_]+", data[start : start + 2000]))
        if not found:
            return data
        value = self._choice.choice(found)
        return data[: start + value.start()] + self._choice.choice(_WORDS) + data[start + value.end() :]

    def _lines(self, data: bytes) -> bytes:
        """Remove, repeat, move, or indent a random line."""
        choice, lines = self._choice, data.split(b"\n")
        at = choice.randrange(len(lines))
        line = lines.pop(at)
        match choice.randrange(4):
            case 0:
                return b"\n".join(lines)
            case 1:
                lines[at:at] = [line] * choice.choice((2, 20))
            case 2:
                lines.insert(choice.randint(0, len(lines)), line)
            case _:
                lines.insert(at, b" " * choice.randrange(9) + line.lstrip())
        return b"\n".join(lines)


class Bugs:
    """Inputs that caused bugs, one for each place in the code, and the number of all inputs."""

    def __init__(self) -> None:
        self.inputs = 0
        self.refused: Counter[str] = Counter()
        self.found: dict[str, str] = {}

    @contextmanager
    def watching(self, data: bytes) -> Iterator[None]:
        """Run the code for one input. Record an exception other than `VisionError`, or a timeout, as a bug."""
        self.inputs += 1
        signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
        try:
            yield
            self.refused["accepted"] += 1
        except VisionError as error:
            self.refused[error.code or type(error).__name__] += 1
        except TooSlow:
            self.add(f"longer than {LONGEST_S:.0f} s", data)
        except Exception as error:  # noqa: BLE001 - recorded as a bug
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.add(f"{type(error).__name__} in {last.filename}:{last.lineno}: {str(error)[:200]}", data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def add(self, text: str, data: bytes) -> None:
        """Record an input that caused a bug."""
        key = re.sub(r": .*", "", text)
        if key not in self.found and len(self.found) < _MOST_BUGS:
            self.found[key] = f"{text}: {base64.b64encode(data[:3000]).decode()}"


# --- files ------------------------------------------------------------------------------------------------------------


def fuzz_files(readers: dict[str, Callable[[Path], object]], inputs: Sequence[bytes], end_s: float, seed: int) -> Bugs:
    """Write changed inputs to files, and read each file with the reader for its name. Return the bugs."""
    bugs, mutator = Bugs(), Mutator(inputs, seed)
    names = itertools.cycle(readers)
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end_s:
            name, data = next(names), mutator.next()
            path = Path(folder) / name
            path.write_bytes(data)
            with bugs.watching(data):
                readers[name](path)
    return bugs


def fuzz_config(end_s: float, seed: int) -> Bugs:
    """Read changed camera.yaml and model.yaml files until `end_s` on the monotonic clock. Return the bugs."""
    paths = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "models").glob("*/model.yaml")]
    paths += (ROOT / "tests").rglob("*.yaml")
    documents = [block.encode() for page in (ROOT / "docs").glob("*.md") for block in _yaml_blocks(page)]
    readers: dict[str, Callable[[Path], object]] = {
        "camera.yaml": lambda path: load_config(path, {"X": "secret-value"}),
        "model.yaml": lambda path: load_model_spec(path.parent),
    }
    return fuzz_files(readers, [*(path.read_bytes() for path in paths), *documents], end_s, seed)


def _yaml_blocks(page: Path) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def fuzz_truth(end_s: float, seed: int) -> Bugs:
    """Read changed ground-truth files, and compute the metrics of `vision eval` for the accepted files."""
    rows = [
        f"{frame},{track},{frame * 3},{track * 9},20,40,1,-1,-1,-1" for frame in range(1, 40) for track in (1, 2, 3)
    ]
    label = {"true": True, "camera": "gate", "kind": "rule", "name": "a", "box": [1, 2, 3, 4], "frames": ["a.jpg"]}
    labels = [json.dumps(label | {"true": is_true}).encode() for is_true in (True, False)]
    clips = {"schema": SCHEMA, "clips": {"a": {"door": {"in": [[3, 1, 0], [4, 0, 0]]}}}}
    inputs = ["\n".join(rows).encode(), b"\n".join(labels), json.dumps(clips).encode()]
    with tempfile.TemporaryDirectory() as folder:
        inputs += [parts[1] for parts in _published(Path(folder)) if parts[0].startswith(b"detections/")]
    line = LineConfig(name="door", points=((30.0, 0.0), (30.0, 200.0)))

    def evaluate(path: Path) -> None:
        truth = read_truth(path)
        frames = int(truth.boxes.frames.max(initial=1))
        truth.check_length(1000, "the video")
        match_frames(truth.boxes, truth.boxes, frames)
        list(timed_crossings(line, "pixels", truth.boxes, Video("a", frames, 640, 480, 0.04)))

    readers: dict[str, Callable[[Path], object]] = {
        "gt.txt": evaluate,
        "labels.jsonl": read_labels,
        "accuracy.json": check_accuracy_file,
        "recorded.jsonl": lambda path: list(read_recording(path)),
    }
    return fuzz_files(readers, inputs, end_s, seed)


# --- messages ---------------------------------------------------------------------------------------------------------


def _published(folder: Path) -> list[list[bytes]]:
    """Return the parts of published messages of all kinds, in both encodings."""
    found = []
    encodings: tuple[Encoding, ...] = ("json", "msgpack")
    for encoding in encodings:
        bind = f"ipc://{folder}/{encoding}"
        with (
            Publisher(bind, node="n", class_names=CLASSES, encoding=encoding) as publisher,
            zmq.Context() as context,
            context.socket(zmq.SUB) as received,
        ):
            received.setsockopt(zmq.RCVTIMEO, 2000)
            received.subscribe(b"")
            received.connect(bind)
            time.sleep(1.0)
            publisher.publish(result(events=(crossed(),)))
            publisher.publish_status(node_status())
            with suppress(zmq.Again):
                while True:
                    found.append(received.recv_multipart())
    return found


def fuzz_wire(end_s: float, seed: int) -> Bugs:
    """Decode changed messages, and send them to a subscriber, whose replay server sends changed replies."""
    bugs, choice = Bugs(), random.Random(seed)
    with tempfile.TemporaryDirectory() as name, zmq.Context() as context:
        messages = _published(Path(name))
        topics = [parts[0].decode() for parts in messages]
        reply = ReplayReply(node="n", journal="j", oldest=1, newest=9, more=True)
        events = [parts[1] for parts in messages if parts[0].startswith(b"events/")]
        payloads = Mutator([parts[1] for parts in messages] + [codec.encode(reply)], seed)
        replies = Mutator([codec.encode(reply), codec.encode(reply, "msgpack")], seed)
        out, replay = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        with out, replay:
            out.bind(f"ipc://{name}/out")
            replay.bind(f"ipc://{name}/replay")
            while time.monotonic() < end_s:
                for _ in range(2000):
                    topic, data = choice.choice(topics), payloads.next()
                    with bugs.watching(data):
                        message = codec.decode(topic, data)
                        codec.check_values(topic, message)
                        str(message)
                    with bugs.watching(data):
                        codec.decode_as(ReplayReply, data, "reply")
                _subscribe(bugs, Path(name), (out, replay), (topics, payloads, replies, events), choice)
    return bugs


def _subscribe(bugs: Bugs, folder: Path, sockets: Any, inputs: Any, choice: random.Random) -> None:
    """Send changed messages to a new subscriber. Only a `MessageError` may end the subscription."""
    (out, replay), (topics, payloads, replies, events) = sockets, inputs
    subscription = Subscription(
        f"ipc://{folder}/out",
        kinds=("detections", "events", "status", "counts"),
        since=0,
        replay=f"ipc://{folder}/replay",
        silence_s=1e6,
    )
    data = b""
    with closing(subscription):
        for _ in range(1000):
            topic, data = choice.choice(topics).encode(), payloads.next()
            parts = [[topic, data], [topic], [data], [topic, data, data], [payloads.next()[:200], data]]
            out.send_multipart(parts[choice.choice((0, 0, 0, 1, 2, 3, 4))])
            while replay.poll(0):
                asked = replay.recv_multipart()
                more = [choice.choice(events) if choice.random() < 0.5 else payloads.next() for _ in range(3)]
                replay.send_multipart([*asked[:-1], replies.next(), *more[: choice.randrange(4)]])
            with bugs.watching(data):
                item = subscription.receive(0.0)
                if item is not None and not isinstance(item, Gap):
                    str(item)


# --- HTTP -------------------------------------------------------------------------------------------------------------

_PATHS: Final = (
    *("/livez", "/readyz", "/healthz", "/metrics", "/", "/api/state", "/api/health", "/api/events?camera=a&limit=5"),
    *("/api/history?camera=a&since=1h&step=60", "/api/editor/a", "/api/editor/a/check", "/api/editor/a/estimate"),
    *("/api/still/a", "/api/live", "/api/snapshots/a.jpg", "/api/recordings/a/b.mp4", "/static/x/app.js"),
)
_CONFIG: Final = """
pipeline: count
detect: {backend: fake}
cameras: [{id: a, source: "synthetic:160x120@10?objects=3&seed=1"}]
analytics: {a: {units: fraction, lines: [{name: door, points: [[0.5, 0], [0.5, 1]]}]}}
state_dir: FOLDER/state
archive: {folder: FOLDER/archive}
publish: {bind: "ipc://FOLDER/out"}
http: {bind: "127.0.0.1:HTTP"}
page: {bind: "127.0.0.1:PAGE"}
"""


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _requests() -> list[bytes]:
    """Return valid HTTP requests for all paths of the servers."""
    found = []
    body = json.dumps({"analytics": {"lines": [{"name": "door", "points": [[1, 2], [3, 4]]}], "zones": []}}).encode()
    for path in _PATHS:
        head = f"{{}} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nRange: bytes=0-9\r\nCookie: a=b\r\n"
        found.append((head.format("GET") + "Connection: close\r\n\r\n").encode())
        typed = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        found.append((head.format("POST") + typed).encode() + body)
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        found.append((head.format("GET") + upgrade + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").encode())
    return found


def _send(port: int, data: bytes) -> bytes:
    """Send bytes. Return the first part of the response, or empty bytes if there is no response."""
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST_S) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(4096)
        except (ConnectionError, TimeoutError):
            return b""


def _is_ready(port: int, path: str) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_S)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except OSError:
            return False


def fuzz_http(end_s: float, seed: int) -> Bugs:
    """Send changed requests to the HTTP server and the page of a running program. No process of the program may end."""
    bugs, mutator = Bugs(), Mutator(_requests(), seed)
    ports = (_free_port(), _free_port())
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="vf-", dir="/tmp"))
        config = Path(name) / "camera.yaml"
        text = _CONFIG.replace("FOLDER", name).replace("HTTP", str(ports[0])).replace("PAGE", str(ports[1]))
        config.write_text(text)
        program = stack.enter_context(
            Program([sys.executable, "-m", "vision", "--log-level", "warning", "run", config])
        )
        wait_until(lambda: _is_ready(ports[0], "/healthz") and _is_ready(ports[1], "/api/state"), "the servers", 120)
        processes = {child.pid for child in psutil.Process(program.pid).children()}
        for port in itertools.cycle(ports):
            if time.monotonic() > end_s:
                break
            data = mutator.next()
            with bugs.watching(data):
                response = _send(port, data)
            bugs.refused[response[9:12].decode(errors="replace")] += 1
            if response[9:12] == b"500":
                bugs.add("the response 500", data)
        ready = [_is_ready(ports[0], "/healthz"), _is_ready(ports[1], "/api/state")]
        left = {child.pid for child in psutil.Process(program.pid).children()}
        program.send(signal.SIGTERM)
        code = program.wait(60)
        lines = program.pending()
        if not all(ready) or processes - left or code:
            bugs.add(
                f"servers {ready}, processes {sorted(processes - left)} ended, exit code {code}: {lines[-5:]}", b""
            )
        tracebacks = [at for at, line in enumerate(lines) if line.startswith("Traceback")]
        for start, end in itertools.pairwise([*tracebacks, len(lines)]):
            raised = next((line for line in lines[start + 1 : end] if not line.startswith(" ")), "")
            bugs.add(f"{raised.partition(':')[0]} in the log: {' | '.join(lines[start:end])[-1500:]}", b"")
    return bugs


TARGETS: Final = {"config": fuzz_config, "wire": fuzz_wire, "http": fuzz_http, "truth": fuzz_truth}


def main() -> int:
    """Print the result as JSON. Return 1 if there are bugs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _alarm)
    np.seterr(all="ignore")
    bugs = TARGETS[arguments.target](time.monotonic() + arguments.seconds, arguments.seed)
    found = {
        "target": arguments.target,
        "inputs": bugs.inputs,
        "bugs": [*bugs.found.values()],
        "outcomes": bugs.refused,
    }
    print(json.dumps(found, indent=1))
    return int(bool(bugs.found))


if __name__ == "__main__":
    sys.exit(main())
