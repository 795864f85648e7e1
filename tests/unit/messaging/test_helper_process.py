"""Tests that each helper process receives the latest options, and is replaced if it hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.messages.processes import wait_until
from vision.messaging.helper_process import HelperProcess

pytestmark = pytest.mark.integration

WAIT_S = 60.0
READS_ALL = "import json, sys\nfor line in sys.stdin: print(json.loads(line)['value'], flush=True)"
READS_ONE = "import json, sys, time\nprint(json.loads(sys.stdin.readline())['value'], flush=True)\ntime.sleep(1e6)"
SILENT_FIRST = "import time\ntime.sleep(4)\nprint('first\\n\\nla', end='', flush=True)\ntime.sleep(1)\n"
ENDS_LINE = "print('st', flush=True)\ntime.sleep(1e6)"


@contextmanager
def running(program: str, lines: list[str], silent_s: float | None = None) -> Iterator[HelperProcess]:
    process = HelperProcess(
        "echo", ["-I", "-c", program], {"value": "first"}, on_line=lines.append, stop_s=0.1, silent_s=silent_s
    )
    with closing(process):
        process.start()
        wait_until(lambda: lines == ["first"], "the first line", WAIT_S)
        yield process


def test_running_process_and_the_next_one_get_new_options() -> None:
    lines: list[str] = []
    with running(READS_ALL, lines) as process:
        process.update({"value": "second"})
        wait_until(lambda: lines == ["first", "second"], "the second line", WAIT_S)
        process.kill()
        wait_until(lambda: lines == ["first", "second", "second"], "the line of the next process", WAIT_S)
        assert process.restarts == 1
    process.update({"value": "third"})  # has no effect


def test_process_that_does_not_read_is_replaced() -> None:
    lines: list[str] = []
    with running(READS_ONE, lines) as process:
        for _ in range(100):
            process.update({"value": "other", "padding": "x" * 10_000})
            if process.restarts:
                break
        wait_until(lambda: lines[1:2] == ["other"], "the line of the next process", WAIT_S)
        assert process.restarts


def test_silent_process_is_replaced_only_after_its_first_line() -> None:
    lines: list[str] = []
    with running(SILENT_FIRST + ENDS_LINE, lines, silent_s=3.0) as process:
        assert process.restarts == 0
        wait_until(lambda: lines == ["first", "last", "first"], "the line of the next process", WAIT_S)
        assert process.restarts == 1
