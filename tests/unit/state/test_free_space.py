"""Tests that snapshots, recordings, and videos leave free space, and that only the program's group can read them."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import closing
from pathlib import Path

import pytest

from tests.log_records import log_args
from tests.small_disk import small_disk
from tests.unit.stages.test_snapshots import frame, result, stage
from vision.messaging.recorder import Recorder
from vision.stages.video_encoder import open_encoder
from vision.state.database import StateDatabase
from vision.state.free_space import FreeSpace

MEBIBYTE = 2**20


def use(folder: Path, nbytes: int) -> None:
    """Use `nbytes` of the disk, as another program would."""
    (folder / "other").write_bytes(bytes(nbytes))


@pytest.mark.integration
def test_reserve_is_a_share_of_the_disk(tmp_path: Path) -> None:
    now_s = [0.0]
    with small_disk(tmp_path / "disk", 4 * 1024) as folder:
        space = FreeSpace(folder, clock=lambda: now_s[0])
        assert not space.is_low()
        use(folder, 4 * MEBIBYTE - 150_000)
        assert not space.is_low()  # the disk is asked once per second
        assert space.is_low(now=True)
        use(folder, 3 * MEBIBYTE)
        now_s[0] += 1.5
        assert not space.is_low()


@pytest.mark.integration
def test_recording_leaves_the_reserve_and_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    with small_disk(tmp_path / "disk", 4 * 1024) as folder, closing(Recorder(folder / "results.jsonl")) as recorder:
        recorder._space = FreeSpace(folder, clock=lambda: now_s[0])
        use(folder, 3 * MEBIBYTE)
        for _ in range(12):
            recorder.write(bytes(100_000))
            now_s[0] += 1.5
        assert recorder.lost >= 2
        assert recorder.written + recorder.lost == 12
        disk = os.statvfs(folder)
        assert disk.f_bavail * disk.f_frsize > 0.05 * 4 * MEBIBYTE - 110_000
        lost = recorder.lost
        use(folder, MEBIBYTE)
        recorder.write(b"{}")
        assert recorder.lost == lost
    assert log_args(caplog, "vision.messaging.recorder", logging.ERROR)


def take(folder: Path, index: int, nbytes: int) -> dict[str, int]:
    """Write one snapshot of `nbytes` bytes. Return the counters of the stage."""
    with stage(folder, encode=lambda *_: bytes(nbytes)) as snapshots:
        snapshots.with_frame(result(frame(index), "line_crossed"), frame(index))
        snapshots.close()
        return snapshots.counters()


@pytest.mark.integration
def test_snapshots_make_room_for_others(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * 1024) as folder:
        for index in range(5):
            assert take(folder / "s", index, 400_000)["snapshots.files"] == index + 1
        use(folder, 2 * MEBIBYTE)
        counters = take(folder / "s", 9, 1000)
        assert counters["snapshots.written"] == 1
        assert 1 <= counters["snapshots.files"] < 6
        assert not FreeSpace(folder).is_low()


@pytest.mark.integration
def test_snapshot_is_not_written_to_a_disk_that_others_fill(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * 1024) as folder:
        use(folder, 4 * MEBIBYTE - 150_000)
        assert take(folder / "s", 1, 1000)["snapshots.failed"] == 1


def test_only_the_group_of_the_program_can_read_the_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(StateDatabase(tmp_path / "state")) as state:
            assert state.events.append([b"{}"])
            with closing(Recorder(tmp_path / "results.jsonl")) as recorder:
                recorder.write(b"{}")
            with stage(tmp_path / "s") as snapshots:
                snapshots.with_frame(result(frame(1), "line_crossed"), frame(1))
            with open_encoder(tmp_path / "a.mp4", 64, 48) as encoder:
                encoder.write(frame(1).pixels, 0.0)
            paths = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o640}, modes
    assert len(modes) >= 6
