"""`vision run` in a real terminal: the live table never overwrites log lines."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.pseudo_terminal import PseudoTerminal, pseudo_terminal
from tests.unit.cli.test_main import COMMAND, SYNTHETIC, write_config

pytestmark = pytest.mark.integration

UNTIL_SECOND_WARNING_S = 6


@pytest.fixture
def dead_source() -> Iterator[str]:
    """Yield an RTSP address where nothing listens."""
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
        terminal.read_until("backing-off, retry in")
        terminal.read_for(UNTIL_SECOND_WARNING_S)
        assert terminal.interrupt() == 0
        assert count(terminal, r"WARNING +camera gate") >= 2
        assert count(terminal, "publishing on") == 1
        assert count(terminal, "stopping; press Ctrl-C") == 1
        assert count(terminal, "vision, up") == 1, "\n".join(terminal.lines)
        assert count(terminal, "│ yard") == 1
        assert not terminal.cursor_hidden


def test_a_narrower_terminal_shows_one_whole_table(tmp_path: Path, dead_source: str) -> None:
    with pseudo_terminal(run_config(tmp_path, dead_source)) as terminal:
        terminal.read_until("backing-off, retry in")
        terminal.resize(90, 30)
        terminal.read_for(2)
        assert terminal.interrupt() == 0
        screen = "\n".join(terminal.lines[-30:])
        assert screen.count("vision, up") <= 2, screen  # at most one old copy, in the scroll-back
        assert count(terminal, r"WARNING +camera gate") >= 1
