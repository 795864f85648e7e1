"""Frame latency of the detector while the server of a language model is busy on the same GPU.

    python -m tests.perf.busy_language_model CLIP --cameras 8 32 --rounds 2 --seconds 10 --json result.json
    python -m tests.perf.busy_language_model CLIP --cameras 2 --device cpu --reader ffmpeg --service-ms 5

The model has random weights (`tests.perf.random_language_model`), and the server is `transformers serve`. The Python of
`--server-python` must have the package `transformers[serving]`. Each round measures real streams
(`tests.perf.real_streams`) first while the server is idle, and then while the server is busy: `verify` asks a question
about every event, and clients continuously ask questions about images. The server processes one request at a time.

The model's answers have no meaning. The questions of `verify` use `logit_bias` to allow only the tokens "yes" and "no",
so that every answer is a verdict. The command prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.perf.deployment import ROOT
from tests.perf.real_streams import SPARE_S, Run, measure, prepare
from vision.benchmark.language import sample_images
from vision.config.language import LanguageServer
from vision.errors import LanguageError, ServerFailure
from vision.language.client import ChatServer

_START_S: Final = 300.0  # timeout of the first answer
_POLL_S: Final = 0.5
_STOP_S: Final = 20.0
_TIMEOUT_S: Final = 20.0  # of one answer
_PARALLEL: Final = 4  # questions about events that are sent at the same time
_IMAGES: Final = 64
_MAX_IMAGE_PX: Final = 768
_BIAS: Final = 100.0  # makes every other token impossible
_IDLE, _BUSY = "idle", "busy"
_DESCRIBE: Final = "Describe this image in detail."
_QUESTION: Final = "Is a person visible?"
_PACKAGES: Final = ("vision-streams", "numpy", "av", "httpx", "onnxruntime", "tensorrt-rtx-cu13-bindings")


@dataclass
class _Answers:
    """Answers and errors that the clients have received."""

    done: list[tuple[float, float, int]] = field(default_factory=list)  # time in s, latency in ms, tokens
    errors: Counter[str] = field(default_factory=Counter)  # by code

    def summary(self, begin_s: float, seconds: float) -> dict[str, Any]:
        """Return the measurements of the requests that ended between `begin_s` and `seconds` after `begin_s`."""
        during = [each for each in self.done if begin_s <= each[0] < begin_s + seconds]
        latencies_ms = [latency_ms for _, latency_ms, _ in during]
        p50, p95 = np.percentile(latencies_ms, [50, 95]).round(1).tolist() if during else (None, None)
        return {
            "requests": len(during),
            "tokens_per_s": round(sum(tokens for _, _, tokens in during) / seconds, 1),
            "latency_ms": {"p50": p50, "p95": p95},
            "errors_of_the_whole_run": dict(self.errors),
        }


# --- the server -------------------------------------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}


def _write_model(python: str, folder: Path, device: str) -> dict[str, Any]:
    command = [python, "-m", "tests.perf.random_language_model", str(folder), "--device", device]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True, check=True)
    written: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return written


@contextmanager
def _serving(python: str, folder: Path, device: str) -> Iterator[tuple[LanguageServer, float]]:
    """Run the server. Yield its address, and the seconds until its first answer to a question about an image."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--device", device, "--dtype", "auto", "--host", "127.0.0.1", "--port", str(port)]
    server = LanguageServer(url=f"http://127.0.0.1:{port}/v1", model=str(folder), timeout_s=_TIMEOUT_S)
    began_s = time.monotonic()
    with subprocess.Popen(command, env=_environment(), stdout=sys.stderr) as process:
        try:
            _wait(ChatServer(server), process, began_s + _START_S)
            yield server, round(time.monotonic() - began_s, 1)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(server: ChatServer, process: subprocess.Popen[bytes], until_s: float) -> None:
    """Wait until the server answers a question about an image.

    Raises:
        RuntimeError: the process of the server ended.
        ServerFailure: the server answered with an error, or was not reachable until `until_s` on the monotonic clock.
    """
    image = next(sample_images(1, _MAX_IMAGE_PX)).jpeg
    while True:
        try:
            server.complete(_DESCRIBE, [image], max_tokens=1)
            return
        except ServerFailure as error:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {process.returncode}") from error
            if error.code != "unreachable" or time.monotonic() > until_s:
                raise
        time.sleep(_POLL_S)


# --- the clients, in a separate process, because they would delay the receipt of the messages -------------------------


@contextmanager
def _asking(server: LanguageServer, clients: int, tokens: int) -> Iterator[_Answers]:
    """Keep the server busy with clients in another process. Fill the yielded object with their answers at the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_ask_until_told, args=(theirs, server, clients, tokens), daemon=True)
    process.start()
    theirs.close()
    answers = _Answers()
    try:
        ours.recv()
        yield answers
        ours.send("end")
        received: _Answers = ours.recv()
        answers.done, answers.errors = received.done, received.errors
    finally:
        process.terminate()
        process.join()


def _ask_until_told(pipe: Connection, server: LanguageServer, clients: int, tokens: int) -> None:
    images = [sample.jpeg for sample in sample_images(_IMAGES, _MAX_IMAGE_PX)]
    answers, end = _Answers(), threading.Event()
    threads = [
        threading.Thread(target=_ask, args=(server, images[number::clients], tokens, answers, end))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    pipe.send("started")
    pipe.recv()
    end.set()
    for thread in threads:
        thread.join()
    pipe.send(answers)


def _ask(server: LanguageServer, images: Sequence[bytes], tokens: int, answers: _Answers, end: threading.Event) -> None:
    chat, asked = ChatServer(server), 0
    while not end.is_set():
        try:
            answer = chat.complete(_DESCRIBE, [images[asked % len(images)]], max_tokens=tokens)
            answers.done.append((time.monotonic(), answer.latency_ms, answer.tokens or 0))
        except LanguageError as error:
            answers.errors[error.code] += 1
            time.sleep(_POLL_S)
        asked += 1


# --- the rounds -------------------------------------------------------------------------------------------------------


def _with_questions(server: LanguageServer, tokens: dict[str, int]) -> dict[str, Any]:
    """Return the keys of camera.yaml that make the server verify every event."""
    language = {
        "url": server.url,
        "model": server.model,
        "parallel": _PARALLEL,
        "timeout_s": _TIMEOUT_S,
        "extra_body": {"logit_bias": {str(token): _BIAS for token in tokens.values()}, "max_tokens": 1},
    }
    entry = {"name": "person", "prompt": _QUESTION, "format": "token", "answers": list(tokens)}
    return {"language": language, "verify": [entry]}


def _busy(clips: Sequence[Path], cameras: int, run: Run, server: LanguageServer, options: Any) -> dict[str, Any]:
    with _asking(server, options.clients, options.answer_tokens) as answers:
        measured = measure(clips, cameras, run)
    return measured | {"clients": answers.summary(measured["begin_s"], run.seconds)}


def _versions() -> dict[str, str]:
    known = {each.name.lower() for each in metadata.distributions()}
    return {name: metadata.version(name) for name in _PACKAGES if name in known}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every round, and return the results. After each measurement, write the results so far to a file."""
    began_s = time.monotonic()
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    with tempfile.TemporaryDirectory() as name:
        clips = prepare(options.clip.absolute(), Path(name), options.seconds + SPARE_S, None)
        folder = Path(name) / "model"
        model = _write_model(options.server_python, folder, options.device)
        result: dict[str, Any] = {"settings": settings, "versions": _versions(), "model": model, "rounds": []}
        with _serving(options.server_python, folder, options.device) as (server, start_s):
            result["server_start_s"] = start_s
            for number, cameras, load in product(range(options.rounds), options.cameras, (_IDLE, _BUSY)):
                about = {"round": number, "server": load, "at_s": round(time.monotonic() - began_s, 1)}
                print(f"{cameras} cameras: {about}", file=sys.stderr, flush=True)
                if load == _IDLE:
                    measured = measure(clips, cameras, _run(options, {}))
                else:
                    run = _run(options, _with_questions(server, model["answer_tokens"]))
                    measured = _busy(clips, cameras, run, server, options)
                result["rounds"].append(about | measured)
                result["total_s"] = round(time.monotonic() - began_s, 1)
                if options.json is not None:
                    options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _run(options: argparse.Namespace, top: dict[str, Any]) -> Run:
    return Run(
        seconds=options.seconds,
        reader=options.reader,
        detect={"backend": options.backend, "max_batch": options.max_batch},
        service_ms=options.service_ms,
        overload=None,
        objects=options.objects,
        processes=None,
        kill_s=None,
        kill="",
        top=top,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backends = ("auto", "tensorrt", "onnxruntime", "fake")
    add = parser.add_argument
    add("clip", type=Path, help="H.264 file that each camera plays")
    add("--cameras", type=int, nargs="+", default=[8, 32], help="numbers of cameras. Default: %(default)s")
    add("--rounds", type=int, default=2, help="rounds without and with load. Default: %(default)s")
    add("--seconds", type=float, default=10.0, help="duration of a measurement. Default: %(default)g")
    add("--clients", type=int, default=2, help="clients that ask all the time. Default: %(default)s")
    add("--answer-tokens", type=int, default=32, help="tokens of each of their answers. Default: %(default)s")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="device of the model. Default: %(default)s")
    add("--server-python", default=sys.executable, help="Python that runs the server. Default: this one")
    add("--reader", choices=("nvdec", "ffmpeg"), default="nvdec", help="decoder. Default: %(default)s")
    add("--backend", choices=backends, default="auto", help="back-end of the detector. Default: %(default)s")
    add("--max-batch", type=int, default=32, help="largest batch. Default: %(default)s")
    add("--service-ms", type=float, help="use a stand-in detector with this duration of a batch")
    add("--objects", type=int, default=6, help="objects of the stand-in. Default: %(default)s")
    add("--json", type=Path, help="file for the result, which is written after each measurement")
    return parser


if __name__ == "__main__":
    print(json.dumps(compare(_parser().parse_args()), indent=1))
