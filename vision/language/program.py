"""The process that asks the language model.

The process is separate, so that no server and no answer can delay or end the program. It receives questions over a
socket, and prints lines (`vision.language.messages`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from vision.config.language import DescribeConfig, LanguageConfig, VerifyConfig
from vision.errors import VisionError, register_secret
from vision.language.asker import Asker
from vision.language.ledger import Ledger
from vision.language.messages import Line, LogLine, TrueStatement, encode_line
from vision.language.question_channel import receive_questions

_TOTALS_S: Final = 0.5
_NICENESS: Final = 10  # detection comes first on the CPU
_M_ARENA_MAX, _HEAPS = -8, 2  # option of `mallopt` in glibc


class _Output:
    """Standard output, to which several threads print complete lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def report(self, line: Line) -> None:
        text = encode_line(line)
        try:
            with self._lock:
                print(text, flush=True)
        except OSError:  # the program has ended
            os._exit(1)


def serve(options: Mapping[str, Any]) -> None:
    """Ask the server the questions that stages send, until standard input closes. Then end the process.

    `vision.language.process.LanguageProcess` creates the `options`.
    """
    os.nice(_NICENESS)
    _share_heaps()
    for number in (signal.SIGINT, signal.SIGTERM):  # the program ends this process
        signal.signal(number, signal.SIG_IGN)
    for secret, shown in options["secrets"].items():
        register_secret(secret, shown=shown)
    config = LanguageConfig.model_validate(options["language"])
    entries: list[VerifyConfig | DescribeConfig] = [VerifyConfig.model_validate(each) for each in options["verify"]]
    entries += [DescribeConfig.model_validate(each) for each in options["describe"]]
    output = _Output()
    true_statements = msgspec.convert(options["true_statements"], list[TrueStatement])
    ledger = _open_ledger(config, output)
    asker = Asker(config, entries, output.report, ledger=ledger, true_statements=true_statements)
    asker.start(lambda: os._exit(1))
    for work in (_receive, _send_totals):
        threading.Thread(target=_run, args=(work, options["address"], asker, output), daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def _share_heaps() -> None:
    """Let all threads share two heaps. By default, each thread has its own heap, which keeps the memory of answers."""
    with contextlib.suppress(AttributeError):  # the C library is not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _HEAPS)


def _open_ledger(config: LanguageConfig, output: _Output) -> Ledger | None:
    if config.ledger is None:
        return None
    try:
        return Ledger(Path(config.ledger), max_bytes=config.ledger_mb * 1_000_000)
    except VisionError as error:  # the program has checked the folder, so the disk has changed since
        output.report(LogLine(text=str(error), is_problem=True))
        return None


def _run(work: Any, address: str, asker: Asker, output: _Output) -> None:
    try:
        work(address, asker, output)
    finally:
        os._exit(1)  # the program starts this process again


def _receive(address: str, asker: Asker, _output: _Output) -> None:
    receive_questions(address, asker.add)


def _send_totals(_address: str, asker: Asker, output: _Output) -> None:
    while True:
        output.report(asker.totals())
        time.sleep(_TOTALS_S)


def main() -> None:
    """Run the process. The first line of standard input contains the options as JSON."""
    serve(json.loads(sys.stdin.readline()))
