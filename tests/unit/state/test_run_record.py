"""Tests that the record of a run states how the previous run ended."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.state.test_events import opened
from vision.errors import Closed, DeviceError
from vision.state import run_record
from vision.state.run_record import LastRun


def kill(folder: Path, boot: str = "boot-1") -> Path:
    """Start a run. Return a copy of its folder, which is equal to the folder of a killed process."""
    copy = folder.with_name(f"{folder.name}-copy")
    with opened(folder, boot=boot) as state:
        state.run.begin()
        shutil.copytree(folder, copy)
    return copy


def last_end(folder: Path, boot: str = "boot-1") -> str | None:
    with opened(folder, boot=boot) as state:
        last = state.run.begin()
        state.run.end("stop")
        return None if last is None else last.end


def test_first_run_follows_none(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        assert state.run.begin() is None


@pytest.mark.parametrize(
    ("error", "end"),
    [(None, "stop"), (Closed("stopped"), "stop"), (KeyboardInterrupt(), "stop"), (DeviceError("E-17"), "error")],
)
def test_end_in_order_is_recorded_with_its_time(tmp_path: Path, error: BaseException | None, end: str) -> None:
    def run() -> None:
        with opened(tmp_path) as state, state.run:
            state.run.begin()
            if error is not None:
                raise error

    before_ns = time.time_ns()
    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    with opened(tmp_path) as state:
        last = state.run.last
    assert last is not None
    assert last.end == end
    assert before_ns <= last.at_utc_ns <= time.time_ns()


@pytest.mark.parametrize(
    ("boots", "end"),
    [(("a", "a"), "crash"), (("a", "b"), "machine-restart"), (("", ""), "unknown"), (("a", ""), "unknown")],
)
def test_killed_run_is_told_from_a_restart_of_the_machine(tmp_path: Path, boots: tuple[str, str], end: str) -> None:
    assert last_end(kill(tmp_path / "state", boots[0]), boots[1]) == end


def test_start_that_fails_does_not_change_the_record(tmp_path: Path) -> None:
    folder = kill(tmp_path / "state")
    for _ in range(2):
        with pytest.raises(DeviceError), opened(folder) as state, state.run:
            raise DeviceError("the start failed before the run began")
    assert last_end(folder) == "crash"
    assert last_end(folder) == "stop"


def test_run_that_continues_is_recorded_once_per_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: now_s, time_ns=lambda: int(now_s * 1e9))
    monkeypatch.setattr(run_record, "time", clock)
    folder = tmp_path / "state"
    with opened(folder) as state:
        state.run.beat()
        assert state.query("SELECT * FROM runs") == []
        state.run.begin()
        for now_s in (30.0, 59.0, 60.0, 119.0):  # noqa: B007 - the clock reads it
            state.run.beat()
        shutil.copytree(folder, tmp_path / "copy")
    with opened(tmp_path / "copy") as state:
        assert state.run.last == LastRun("crash", 60_000_000_000)
