"""Tests of `vision watch`: its totals, its table in a terminal, and its lines without a terminal."""

from __future__ import annotations

import io
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec
import pytest
from msgspec.structs import replace
from rich.console import Console

from tests.messages.processes import python
from tests.messages.samples import CLASSES, camera_status, crossed, found, node_status, published, result
from tests.unit.cli.pseudo_terminal import PseudoTerminal, pseudo_terminal
from vision.cli.status_view import describe_outage
from vision.cli.watch import _CLOCKS, Board, lines, render, watch_address
from vision.client import Gap, Restart, Silence
from vision.errors import ConfigError
from vision.messaging import codec, schema
from vision.messaging.publisher import Publisher
from vision.types import Counts

START_NS = 100_000_000_000


def message(
    camera: str = "gate", *, n: int = 2, captured_ns: int = START_NS, boot: str | None = None
) -> schema.DetectionsMessage:
    one = result(found(n), camera=camera)
    one = replace(one, meta=replace(one.meta, captured_ns=captured_ns))
    header = codec.Numbering("n").header(f"detections/{camera}")
    return codec.detections(header if boot is None else header | {"boot": boot}, one, CLASSES, captured_ns + 27_800_000)


def cells(board: Board, seconds: int) -> list[list[str]]:
    return [list(row.values()) for row in board.rows(START_NS + seconds * 1_000_000_000)]


def text_of(board: Board, width: int, now_ns: int = START_NS) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(render(board, now_ns, width))
    return console.export_text()


def test_rates_and_latencies_are_of_the_last_seconds() -> None:
    board = Board("tcp://x:1", START_NS)
    for i in range(100):  # 10 a second, each seen 10, 11, 12, ... ms after its capture
        captured_ns = START_NS + i * 100_000_000
        board.add(message(captured_ns=captured_ns), captured_ns + (10 + i) * 1_000_000, 0)
    assert cells(board, 10) == [["gate", "?", "10.0", "84.0", "109.0", "2", "0", "300"]]
    assert cells(board, 60) == [["gate", "?", "0.0", "-", "-", "2", "0", "300"]]


def test_each_camera_has_a_row_with_lost_and_dropped_frames() -> None:
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
    gate, yard = cells(board, 1)
    assert gate == ["gate", "frozen", "1.0", "1000.0", "1000.0", "2", "5", "7"]
    assert yard == ["yard", "?", "1.0", "1000.0", "1000.0", "5", "0", "3"]


@pytest.mark.parametrize(("boot", "clock"), [(None, "monotonic"), ("elsewhere", "utc")])
def test_clock_of_the_latency_is_shown(boot: str | None, clock: str) -> None:
    board = Board("tcp://x:1", START_NS)
    board.add(message(boot=boot), START_NS, time.time_ns())
    assert board.clock == _CLOCKS[clock]


def test_note_describes_the_problem_until_a_message_comes() -> None:
    board = Board("tcp://x:1", START_NS)
    assert "tcp://x:1" in board.note
    for problem in (Silence("tcp://x:1", 5.0, False), Restart("n", "a", "b")):
        board.add(problem, START_NS, 0)
        assert board.note == str(problem)
    board.add(published(node_status()), START_NS, 0)
    assert (board.note, board.messages) == ("", 1)
    assert board.title.startswith("node-1: ")
    assert "tcp://x:1" in board.title
    slow = schema.DetectorStatus(
        batches_in_flight=2, max_batch=8, graphs=False, graphs_off="the model's outputs\x1b[2J"
    )
    board.add(published(msgspec.structs.replace(node_status(), detector=slow)), START_NS, 0)
    assert "outputs?[2J" in board.title


def test_table_and_lines_have_the_same_figures() -> None:
    board = Board("tcp://x:1", START_NS)
    board.add(message("[gate]"), START_NS + 31_000_000, 0)
    board.add(published(camera_status("[gate]", state="streaming\x1b[2J")), START_NS, 0)
    now_ns = START_NS + 2_000_000_000
    text = re.sub(r"[│ ]+", " ", text_of(board, 100, now_ns))
    assert "\x1b" not in text
    assert "[gate] streaming?[2J 0.5 31.0 31.0 2 0 2" in text
    (line,) = lines(board, now_ns)
    assert re.findall(r"\d+\.?\d*(?= )", line.replace("p50 ", "").replace("p99 ", "")) == [
        "0.5",
        "31.0",
        "31.0",
        "2",
        "0",
        "2",
    ]
    assert line.startswith("[gate]: streaming?[2J")


def publish_until(stop: threading.Event, publisher: Publisher) -> threading.Thread:
    def run() -> None:
        while not stop.wait(0.01):
            publisher.publish(result())
            publisher.publish_status(camera_status())

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.integration
def test_lines_are_printed_without_a_terminal() -> None:
    out, stop = io.StringIO(), threading.Event()
    with Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES) as publisher:
        thread = publish_until(stop, publisher)
        assert watch_address(publisher.address, for_s=0.7, out=out, line_interval_s=0.2) == 0
        stop.set()
        thread.join()
    printed = out.getvalue().splitlines()
    assert publisher.address in printed[0]
    assert _CLOCKS["monotonic"] in printed
    assert re.fullmatch(
        r"gate: streaming, [\d.]+ frames/s, p50 [\d.]+ ms, p99 [\d.]+ ms, 2 objects, 0 lost, 2 dropped", printed[-1]
    )


@pytest.mark.integration
def test_silence_during_a_limited_time_is_a_failure() -> None:
    out = io.StringIO()
    assert watch_address("tcp://127.0.0.1:9", for_s=1.5, out=out, silence_s=0.2) == 1
    assert re.search(r"no messages from tcp://127\.0\.0\.1:9 for \d s", out.getvalue())


def test_wrong_address_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        watch_address("127.0.0.1:9", out=io.StringIO())
    assert "tcp://127.0.0.1:9" in str(caught.value)


WATCH = (
    "import sys; from vision.cli.watch import watch_address; sys.exit(watch_address(sys.argv[1], line_interval_s=0.2))"
)


@pytest.mark.integration
def test_ctrl_c_exits_with_0() -> None:
    with python("-c", WATCH, "tcp://127.0.0.1:9") as program:
        program.wait_line(lambda line: "tcp://127.0.0.1:9" in line)
        program.send(signal.SIGINT)
        assert program.wait() == 0
        assert program.pending() == []


STATUSES = (
    camera_status(state="streaming"),
    camera_status("yard", state="backing-off", last_error="connection refused", next_retry_in_s=4.0),
    codec.counts("gate", Counts({"door": {"in": 7, "out": 2}}, {"queue": {"entered": 3}}, {"queue": 3}), 0, 0),
)


@contextmanager
def watched(columns: int) -> Iterator[PseudoTerminal]:
    """Run `vision watch` in a terminal while a publisher sends all kinds of messages. Yield the terminal."""
    with Publisher("tcp://127.0.0.1:*", node="n", class_names=CLASSES) as publisher, ThreadPoolExecutor() as pool:
        stop = threading.Event()

        def publish() -> None:
            while not stop.wait(0.05):
                frame = result(events=(crossed(),))
                publisher.publish(replace(frame, meta=replace(frame.meta, captured_ns=time.monotonic_ns())))
                for status in STATUSES:
                    publisher.publish_status(status)

        with pseudo_terminal([sys.executable, "-c", WATCH, publisher.address], columns) as terminal:
            pool.submit(publish)
            try:
                terminal.read_until("line_crossed", timeout_s=60)
                terminal.read_for(0.5)
                yield terminal
            finally:
                stop.set()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        (50, {"lines and zones", "lost", "dropped", "p50 ms", "p99 ms"}),
        (80, {"lost", "dropped", "p99 ms"}),
        (120, set()),
    ],
)
def test_terminal_shows_whole_columns_events_counts_and_outages(columns: int, left_out: set[str]) -> None:
    with watched(columns) as terminal:
        screen = "\n".join(terminal.lines)
        assert terminal.interrupt() == 0
    names = {"camera", "state", "frames/s", "objects", "lines and zones", "p50 ms", "dropped", "lost", "p99 ms"}
    assert {name for name in names if name not in screen} == left_out, screen
    text = " ".join(screen.split())  # long lines are folded
    assert f"yard: {describe_outage(STATUSES[1])}" in text
    assert "door 7" in text
    assert "line_crossed door" in text
    assert "…" not in screen.partition("yard:")[0], screen


@pytest.mark.integration
def test_resized_terminal_shows_one_table() -> None:
    with watched(120) as terminal:
        for columns in (60, 100):
            terminal.resize(columns, 30)
            terminal.read_for(1.5)
            screen = "\n".join(terminal.screen)
            assert screen.count("frames/s") == 1, screen
            assert screen.count("yard: backing-off") == 1, screen
        assert terminal.interrupt() == 0


def test_camera_that_is_down_has_a_reason_and_a_retry() -> None:
    board = Board("tcp://127.0.0.1:5555", START_NS)
    down = camera_status("gate", state="backing-off", last_error="refused\nmore", next_retry_in_s=4.2)
    board.add(published(down), START_NS, 0)
    assert board.outages() == {"gate": describe_outage(down)}
    board.add(published(camera_status("gate", state="streaming")), START_NS, 0)
    assert board.outages() == {}
