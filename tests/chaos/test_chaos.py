"""Test of `vision chaos` with three cameras and a few faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.paths import ROOT

CHAOS = [sys.executable, "-m", "vision", "chaos", "--cameras", "3"]
FAULTS = "camera-down,worker-kill,disk-full"


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start `vision chaos` with its files below `folder`."""
    return subprocess.Popen(
        [*CHAOS, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)}
    )


@pytest.mark.timeout(300)
def test_program_survives_a_short_run(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with start(tmp_path, "--minutes", "0.1", "--seed", "4", "--faults", FAULTS, "--json", str(report)) as command:
        _, errors = command.communicate(timeout=240)
    found = json.loads(report.read_text(encoding="utf-8"))
    problems = [check for check in found["checks"] if check["result"] == "broken"]
    assert problems == [], errors
    assert command.returncode == 0
    assert {fault["kind"] for fault in found["faults"] if not fault["left_out"]} == set(FAULTS.split(","))
    assert found["frames"] > 100
    assert found["events"] > 3
    assert not list(tmp_path.glob("vision-chaos-*"))


@pytest.mark.timeout(300)
def test_ctrl_c_ends_every_fault(tmp_path: Path) -> None:
    with start(tmp_path, "--minutes", "0.2", "--seed", "1", "--faults", "process-stop") as command:
        assert command.stderr is not None
        while "#2" not in command.stderr.readline():
            assert command.poll() is None
        processes = psutil.Process(command.pid).children(recursive=True)
        assert any(process.status() == psutil.STATUS_STOPPED for process in processes)
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 1
        deadline_s = time.monotonic() + 60
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    assert not list(tmp_path.glob("vision-chaos-?*/data"))
