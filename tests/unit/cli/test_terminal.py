"""Tests that the live tables and progress bars of `vision run` and `vision eval` never overwrite log lines."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contract.streams import motion_jpeg_server
from tests.unit.cli.pseudo_terminal import PseudoTerminal, pseudo_terminal
from tests.unit.cli.test_main import COMMAND, SYNTHETIC, write_config
from tests.unit.evaluation_tables import needs_trackeval, synthetic_rows
from vision.drawing.test_pattern import FAKE_CLASSES

pytestmark = pytest.mark.integration

UNTIL_SECOND_WARNING_S = 6


@pytest.fixture
def dead_source() -> Iterator[str]:
    """Yield an RTSP address at which no server listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"rtsp://127.0.0.1:{closed.getsockname()[1]}/x"


def run_config(folder: Path, dead_source: str) -> list[str]:
    cameras = [{"id": "yard", "source": SYNTHETIC}, {"id": "gate", "source": dead_source}]
    return [*COMMAND, "run", str(write_config(folder, cameras=cameras, status={"interval_s": 0.5}))]


def count(terminal: PseudoTerminal, pattern: str) -> int:
    return len(re.findall(pattern, "\n".join(terminal.lines)))


def test_warnings_stay_in_the_scroll_back(tmp_path: Path, dead_source: str) -> None:
    with pseudo_terminal(run_config(tmp_path, dead_source)) as terminal:
        terminal.read_until("backing-off")
        terminal.read_for(UNTIL_SECOND_WARNING_S)
        assert terminal.interrupt() == 0
        assert count(terminal, r"WARNING +camera gate") >= 2
        assert count(terminal, "Ctrl-C") == 1
        assert count(terminal, "vision, up") == 1, "\n".join(terminal.lines)
        assert count(terminal, "│ yard") == 1
        assert not terminal.cursor_hidden


def test_narrower_terminal_shows_one_whole_table(tmp_path: Path, dead_source: str) -> None:
    with pseudo_terminal(run_config(tmp_path, dead_source)) as terminal:
        terminal.read_until("backing-off")
        terminal.resize(90, 30)
        terminal.read_for(2)
        assert terminal.interrupt() == 0
        screen = "\n".join(terminal.lines[-30:])
        assert screen.count("vision, up") <= 2, screen  # at most one old copy, in the scroll-back
        assert count(terminal, r"WARNING +camera gate") >= 1


@pytest.mark.parametrize("columns", [60, 120])
def test_lost_camera_shows_its_warning_reason_and_retry(tmp_path: Path, columns: int) -> None:
    with ExitStack() as camera:
        address = camera.enter_context(motion_jpeg_server())
        cameras = [{"id": "gate", "source": f"{address}?fps=20"}]
        config = write_config(tmp_path, cameras=cameras, status={"interval_s": 0.5})
        with pseudo_terminal([*COMMAND, "run", str(config)], columns) as terminal:
            terminal.read_until("streaming")
            camera.close()
            screen, deadline_s = "", time.monotonic() + 60
            while not re.search(r"gate: backing-off, .* \d+ s: +\S+", " ".join(screen.split())):
                assert time.monotonic() < deadline_s, screen
                terminal.read_for(0.3)
                screen = "\n".join(terminal.screen)
            assert terminal.interrupt() == 0
    assert re.search(r"WARNING +camera gate", screen), screen
    assert screen.count("vision, up") == 1, screen


@needs_trackeval
def test_log_lines_do_not_mix_with_the_progress_bar(tmp_path: Path) -> None:
    source = "synthetic:320x240@5?frames=400&objects=6&seed=0"
    truth = tmp_path / "gt.txt"
    truth.write_text("".join(f"{row}\n" for row in synthetic_rows(source, FAKE_CLASSES.index("green"))))
    config = write_config(tmp_path, source=source, pipeline="track")
    arguments = ["--log-level", "debug", "eval", str(config), "--truth", str(truth), "--class", "green"]
    with pseudo_terminal([*COMMAND, *arguments]) as terminal:
        terminal.read_until("/400", 90)
        terminal.read_until("MOTA", timeout_s=90)
        terminal.read_for(1)
        lines = terminal.lines
        assert terminal.process.wait(60) == 0
    records = [line for line in lines if re.search(r"\b(DEBUG|INFO|WARNING)\b", line)]
    assert any("connected" in record for record in records)
    assert not any("━" in record or "/400" in record for record in records), records
