"""Tests that each helper process receives the latest options, even if the options change while it runs."""

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


@contextmanager
def running(program: str, lines: list[str]) -> Iterator[HelperProcess]:
    process = HelperProcess(
        "echo", ["-I", "-c", program], {"value": "first"}, on_line=lambda line: lines.append(line.strip()), stop_s=0.1
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
