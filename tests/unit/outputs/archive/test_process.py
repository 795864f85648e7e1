"""Tests that `vision run` writes the archive in a separate process, and that the archive survives crashes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

from tests.rejudge import rejudge
from vision.config import load_config
from vision.evaluation.whatif.difference import compare
from vision.evaluation.whatif.judge import Judge
from vision.outputs.archive.reader import Archive

pytestmark = pytest.mark.integration

DEADLINE_S = 60.0


def configuration(folder: Path) -> Path:
    zone = {"name": "area", "polygon": [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]], "anchor": "center"}
    line = {"name": "door", "points": [[0.5, 0], [0.5, 1]], "anchor": "center"}
    config = {
        "detect": {"backend": "fake"},
        "track": {"low_score": 0.1, "high_score": 0.2, "new_score": 0.2},
        "cameras": [{"id": "gate", "source": "synthetic:640x480@20?objects=8"}],
        "analytics": {"gate": {"units": "fraction", "lines": [line], "zones": [{**zone, "dwell_s": 1}]}},
        "rules": [{"name": "stay", "when": "dwelling area for 2s", "cooldown": "1s"}],
        "archive": {"folder": "archive"},
        "state_dir": "state",
        "publish": {"bind": f"ipc://{folder}/out", "replay": f"ipc://{folder}/replay"},
    }
    path = folder / "camera.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def wait_for(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, "the condition was not met"
        time.sleep(0.1)


def frames(folder: Path) -> int:
    if not (folder / "archive" / "live.sqlite").exists():
        return 0
    return sum(1 for _ in Archive(folder / "archive").frames("gate", 0, 1 << 61))


def has_frames(folder: Path, number: int) -> bool:
    return frames(folder) >= number


def run(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "vision.cli.main", "run", str(path)], cwd=path.parent)


def stop(program: subprocess.Popen[bytes]) -> None:
    program.send_signal(signal.SIGTERM)
    assert program.wait(DEADLINE_S) == 0


def assert_whatif_repeats_the_run(path: Path) -> int:
    archive, config = Archive(path.parent / "archive"), load_config(path, {})
    names = archive.class_names("gate", 0, 1 << 61)
    classes = [names.get(number, "") for number in range(max(names) + 1)]
    published = archive.events("gate", 0, 1 << 61)
    judgment = rejudge(archive, Judge(config, "gate", classes), "gate", 0, 1 << 61)
    assert compare("gate", published, judgment.events).equal
    return len(published)


def test_two_runs_are_repeated_bit_for_bit(tmp_path: Path) -> None:
    path = configuration(tmp_path)
    for wanted in (60, 120):  # the counters of the second run continue, because of `state_dir`
        program = run(path)
        wait_for(partial(has_frames, tmp_path, wanted))
        stop(program)
    assert Archive(tmp_path / "archive").gaps("gate", 0, 1 << 61) == []
    assert assert_whatif_repeats_the_run(path) > 4
    found = Archive(tmp_path / "archive").counts("gate", 0, 1 << 61)
    assert {each.instance for each in found} == {each.instance for each in found[:1] + found[-1:]}


def test_removed_archive_is_created_again(tmp_path: Path) -> None:
    path = configuration(tmp_path)
    program = run(path)
    wait_for(lambda: frames(tmp_path) > 20)
    (tmp_path / "archive").rename(tmp_path / "removed")
    wait_for(lambda: frames(tmp_path) > 20)
    stop(program)


def test_killed_process_is_replaced_and_leaves_a_gap(tmp_path: Path) -> None:
    path = configuration(tmp_path)
    program = run(path)
    wait_for(lambda: frames(tmp_path) > 20)
    (writer,) = [
        each for each in psutil.Process(program.pid).children() if "archive.writer" in " ".join(each.cmdline())
    ]
    os.kill(writer.pid, signal.SIGKILL)
    before = frames(tmp_path)
    wait_for(lambda: frames(tmp_path) > before + 20)
    stop(program)
    gaps = Archive(tmp_path / "archive").gaps("gate", 0, 1 << 61)
    missing = {gap.kind: gap.messages for gap in gaps}
    assert len(missing) == len(gaps) and missing.keys() <= {"detections", "counts"}
    with closing(sqlite3.connect(tmp_path / "archive" / "live.sqlite")) as rows:
        (last,) = rows.execute("SELECT seq FROM last_messages WHERE topic = 'detections/gate'").fetchone()
    assert missing["detections"] > 0 and frames(tmp_path) + missing["detections"] == last
    events = Archive(tmp_path / "archive").events("gate", 0, 1 << 61)
    numbers = [(each.epoch, each.frame, each.event.kind, each.event.name, each.event.track_id) for each in events]
    assert len(set(numbers)) == len(numbers)  # events that were requested again are not stored twice
