"""`vision watch`: what the board sums up, and the two ways in which it is shown."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import sys
import threading
import time
from dataclasses import replace

import msgspec
import pytest

from tests.messages.processes import python, wait_until
from tests.messages.samples import CLASSES, TIMING, camera_status, found, node_status, published, result
from vision.cli.watch import Board, Row, lines, table, watch
from vision.client import Gap, Restart, Silence
from vision.errors import ConfigError
from vision.messaging import codec, schema
from vision.messaging.publisher import Publisher

START_NS = 100_000_000_000


def message(
    camera: str = "gate", *, n: int = 2, captured_ns: int = START_NS, boot: str | None = None
) -> schema.DetectionsMessage:
    one = result(found(n), camera=camera)
    one = replace(one, meta=replace(one.meta, captured_ns=captured_ns))
    header = codec.Numbering("n").header(f"detections/{camera}")
    return codec.detections(header if boot is None else header | {"boot": boot}, one, CLASSES)


def test_rates_and_latencies_are_of_the_last_seconds() -> None:
    board = Board("tcp://x:1", START_NS)
    for i in range(100):  # 10 a second, each seen 10, 11, 12, ... ms after its capture
        captured_ns = START_NS + i * 100_000_000
        board.add(message(captured_ns=captured_ns), captured_ns + (10 + i) * 1_000_000, 0)
    assert board.rows(START_NS + 10_000_000_000) == [Row("gate", "?", 10.0, 84.0, 109.0, 2, 0, 300)]
    assert board.rows(START_NS + 60_000_000_000) == [Row("gate", "?", 0.0, None, None, 2, 0, 300)]


def test_each_camera_has_its_row_with_what_was_lost_and_dropped() -> None:
    board = Board("tcp://x:1", START_NS)
    for item in (
        message("yard", n=5),
        message("gate"),
        Gap("detections/gate", 5, 9),
        Gap("status/gate", 5, 9),  # no frame was lost with it
        Gap("detections/gate", 20, 21),
        published(camera_status("gate", state="frozen", dropped={"stale": 4, "max_fps": 3})),
    ):
        board.add(item, START_NS + 1_000_000_000, 0)
    gate, yard = board.rows(START_NS + 1_000_000_000)
    assert gate == Row("gate", "frozen", 1.0, 1000.0, 1000.0, 2, 5, 7)
    assert yard == Row("yard", "?", 1.0, 1000.0, 1000.0, 5, 0, 3)


@pytest.mark.parametrize(("boot", "words"), [(None, "monotonic clock"), ("elsewhere", "UTC")])
def test_the_clock_behind_the_latency_is_told(boot: str | None, words: str) -> None:
    board = Board("tcp://x:1", START_NS)
    board.add(message(boot=boot), START_NS, time.time_ns())
    assert words in board.clock


def test_the_note_tells_what_is_wrong_until_a_message_comes() -> None:
    board = Board("tcp://x:1", START_NS)
    assert board.note == "waiting for messages from tcp://x:1"
    board.add(Silence("tcp://x:1", 5.0, False), START_NS, 0)
    assert board.note.startswith("no messages from tcp://x:1 for 5 s: is `vision run` running")
    board.add(Restart("n", "a", "b"), START_NS, 0)
    assert board.note == "n: the publisher was restarted"
    board.add(published(node_status()), START_NS, 0)
    assert (board.note, board.messages) == ("", 1)
    assert board.title == "node-1: fake on fake cpu, up 1 s, tcp://x:1"
    slow = schema.DetectorStatus(
        batches_in_flight=2, max_batch=8, graphs=False, graphs_off="the model's outputs\x1b[2J"
    )
    board.add(published(msgspec.structs.replace(node_status(), detector=slow)), START_NS, 0)
    assert board.title == "node-1: fake on fake cpu, up 1 s, no CUDA graphs: the model's outputs?[2J, tcp://x:1"


def test_table_and_lines_say_the_same() -> None:
    from rich.console import Console

    board = Board("tcp://x:1", START_NS)
    board.add(message("[gate]"), START_NS + 31_000_000, 0)
    board.add(published(camera_status("[gate]", state="streaming\x1b[2J")), START_NS, 0)
    now_ns = START_NS + 2_000_000_000
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(table(board, now_ns))
    text = re.sub(r"[│ ]+", " ", console.export_text())
    assert "\x1b" not in text
    assert "[gate] streaming?[2J 0.5 31.0 31.0 2 0 2" in text
    assert list(lines(board, now_ns)) == [
        "[gate]: streaming?[2J, 0.5 frames/s, p50 31.0 ms, p99 31.0 ms, 2 objects, 0 lost, 2 dropped"
    ]


def publish_until(stop: threading.Event, publisher: Publisher) -> threading.Thread:
    def run() -> None:
        while not stop.wait(0.01):
            publisher.publish(result(timing=TIMING))
            publisher.publish_status(camera_status())

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.integration
def test_lines_come_where_there_is_no_terminal() -> None:
    out, stop = io.StringIO(), threading.Event()
    with Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES) as publisher:
        thread = publish_until(stop, publisher)
        assert watch(publisher.address, for_s=0.7, out=out, line_interval_s=0.2) == 0
        stop.set()
        thread.join()
    printed = out.getvalue().splitlines()
    assert printed[0] == f"waiting for messages from {publisher.address}"
    assert any("by the monotonic clock" in line for line in printed)
    assert re.fullmatch(
        r"gate: streaming, [\d.]+ frames/s, p50 [\d.]+ ms, p99 [\d.]+ ms, 2 objects, 0 lost, 2 dropped", printed[-1]
    )


@pytest.mark.integration
def test_silence_is_told_and_is_a_failure_when_a_time_was_given() -> None:
    out = io.StringIO()
    assert watch("tcp://127.0.0.1:9", for_s=0.5, out=out, silence_s=0.2) == 1
    assert "is `vision run` running, and is its publish.bind reachable from here?" in out.getvalue()


def test_a_bad_address_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean tcp://127\.0\.0\.1:9"):
        watch("127.0.0.1:9", out=io.StringIO())


WATCH = "import sys; from vision.cli.watch import watch; sys.exit(watch(sys.argv[1], line_interval_s=0.2))"


@pytest.mark.integration
def test_ctrl_c_is_a_good_end() -> None:
    with python("-c", WATCH, "tcp://127.0.0.1:9") as program:
        program.wait_line(lambda line: line.startswith("waiting for messages"))
        program.send(signal.SIGINT)
        assert program.wait() == 0
        assert program.pending() == []


@pytest.mark.integration
def test_a_terminal_gets_a_table() -> None:
    with Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES) as publisher:
        try:
            pid, terminal = pty.fork()
        except OSError as error:
            pytest.skip(f"needs a terminal: {error}")
        if pid == 0:
            os.environ.update(TERM="xterm", COLUMNS="120")
            os.execv(sys.executable, [sys.executable, "-c", WATCH, publisher.address])
        screen = b""

        def shown() -> bool:
            nonlocal screen
            publisher.publish(result())
            publisher.publish_status(camera_status())
            if select.select([terminal], [], [], 0.05)[0]:
                screen += os.read(terminal, 65536)
            return b"streaming" in screen and b"p99 ms" in screen

        try:
            wait_until(shown, "the table is shown")
            os.kill(pid, signal.SIGINT)
            wait_until(lambda: _ended(pid, terminal), "the program has ended")
        finally:
            os.close(terminal)


def _ended(pid: int, terminal: int) -> bool:
    if select.select([terminal], [], [], 0.05)[0]:
        try:
            os.read(terminal, 65536)
        except OSError:
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            return True
    return False


def test_a_camera_that_is_down_has_a_reason_and_a_retry() -> None:
    board = Board("tcp://127.0.0.1:5555", START_NS)
    board.add(
        published(camera_status("gate", state="backing-off", last_error="refused\nmore", next_retry_in_s=4.2)),
        START_NS,
        0,
    )
    assert board.troubles() == ["gate: backing-off, retry in 4 s: refused"]
    board.add(published(camera_status("gate", state="streaming")), START_NS, 0)
    assert board.troubles() == []
