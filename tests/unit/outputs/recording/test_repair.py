"""Tests of the index after crashes, file deletions, and damage, and of the limits of the folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.small_disk import small_disk
from tests.unit.outputs.recording.streams import coded, decoded, packets
from tests.unit.outputs.recording.test_camera_recorder import Desk
from tests.unit.state.test_free_space import use
from vision.errors import ConfigError
from vision.outputs.recording.index import FILE, DamagedIndex, RecordingIndex, open_for_reading
from vision.outputs.recording.recorder import open_or_replace
from vision.outputs.recording.repair import find_differences, repair

COUNT = 3


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Desk]:
    """Yield a recorder that has written three files of a continuous recording, which last 10 s each."""
    with closing(RecordingIndex(tmp_path / "state")) as index:
        desk = Desk(tmp_path / "recordings", index, mode="continuous", file_s=10)
        desk.play(packets(coded(frames=100 * COUNT)))
        desk.camera.close()
        yield desk


def faults(desk: Desk, *, thorough: bool = True) -> list[tuple[str, str]]:
    found = find_differences(desk.index, desk.folder, thorough=thorough)
    return [(each.fault, each.name) for each in found]


def repaired(desk: Desk) -> None:
    repair(desk.index, desk.folder, find_differences(desk.index, desk.folder, thorough=True))
    assert faults(desk) == []


def test_complete_recording_fits(recorded: Desk) -> None:
    assert len(recorded.index.files()) == COUNT
    assert faults(recorded) == []


def test_deleted_file_is_removed_from_the_index(recorded: Desk) -> None:
    name = recorded.index.files()[1].name
    (recorded.folder / name).unlink()
    assert faults(recorded) == [("missing", name)]
    repaired(recorded)
    assert name not in [file.name for file in recorded.index.files()]


def test_unlisted_files_are_added_with_their_times(recorded: Desk) -> None:
    before = recorded.index.files()
    for file in before:
        recorded.index.remove_file(file.name)
    assert {fault for fault, _ in faults(recorded)} == {"unlisted"}
    repaired(recorded)
    after = recorded.index.files()
    assert [(file.name, file.frames, file.nbytes) for file in after] == [
        (file.name, file.frames, file.nbytes) for file in before
    ]
    assert len({file.recording for file in after}) == 1
    for old, new in zip(before, after, strict=True):
        assert abs(new.start_utc_ns - old.start_utc_ns) < 1_000_000
        assert abs(new.end_utc_ns - old.end_utc_ns) < 110_000_000


def test_other_files_are_left_alone(recorded: Desk) -> None:
    other = recorded.folder / "gate" / "holiday.mp4"
    other.write_bytes(b"mine")
    repaired(recorded)
    assert other.read_bytes() == b"mine"


def test_shortened_file_keeps_what_can_be_read(recorded: Desk) -> None:
    file = recorded.index.files()[1]
    path = recorded.folder / file.name
    os.truncate(path, file.nbytes // 2)
    assert faults(recorded) == [("size", file.name)]
    repaired(recorded)
    kept = recorded.index.files()[1]
    assert 20 <= kept.frames < file.frames
    assert kept.nbytes < file.nbytes // 2  # without the incomplete fragment
    assert len(decoded(path).times_s) == kept.frames
    assert kept.end_utc_ns < file.end_utc_ns


def test_unreadable_file_is_deleted(recorded: Desk) -> None:
    file = recorded.index.files()[1]
    (recorded.folder / file.name).write_bytes(bytes(file.nbytes))
    assert faults(recorded) == [("unreadable", file.name)]
    repaired(recorded)
    assert not (recorded.folder / file.name).exists()


def test_damaged_index_is_created_again_from_the_files(recorded: Desk, tmp_path: Path) -> None:
    before = [file.name for file in recorded.index.files()]
    recorded.index.close()
    path = tmp_path / "state" / FILE
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ConfigError) as raised:
        open_for_reading(tmp_path / "state")
    assert raised.value.code == "index-damaged"
    with pytest.raises(DamagedIndex):
        RecordingIndex(tmp_path / "state")
    with closing(open_or_replace(tmp_path / "state")) as index:
        repair(index, recorded.folder, find_differences(index, recorded.folder, thorough=False))
        assert [file.name for file in index.files()] == before
    assert len(list((tmp_path / "state").glob(f"{FILE}.damaged-*"))) == 1


def test_reader_sees_the_index_while_it_is_written(recorded: Desk, tmp_path: Path) -> None:
    with closing(open_for_reading(tmp_path / "state")) as reader:
        assert len(reader.recordings("gate")) == 1
        assert reader.recordings("yard") == []
        last = reader.files()[-1]
        assert len(reader.recordings(None, last.end_utc_ns)) == 1
        assert reader.recordings(None, last.end_utc_ns + 1) == []


def test_missing_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        open_for_reading(tmp_path)
    assert raised.value.code == "no-recordings"


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"max_gb": 25_000e-9}, {"max_days": 85 / 86_400}])
def test_oldest_files_are_deleted(tmp_path: Path, limit: dict[str, float]) -> None:
    """The clock of the store is set to 100 s after the start of the first file."""
    with closing(RecordingIndex(tmp_path / "state")) as index:
        desk = Desk(tmp_path / "recordings", index, mode="continuous", file_s=10, **limit)
        desk.play(packets(coded(frames=300)))
        desk.camera.close()
        sizes = [file.nbytes for file in index.files()]
        if "max_gb" in limit:
            desk.store.clean(now=True)
            assert sum(file.nbytes for file in index.files()) <= 25_000 < sum(sizes) + sizes[0]
        else:
            desk.store.clean(now=True)
            assert [file.name.rsplit("-", 1)[1] for file in index.files()] == ["2.mp4", "3.mp4"]
        assert faults(desk) == []
        assert desk.store.deleted > 0


@pytest.mark.integration
def test_full_disk_makes_room_and_leaves_the_reserve(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * 1024) as disk, closing(RecordingIndex(tmp_path / "state")) as index:
        desk = Desk(disk / "recordings", index, mode="continuous", file_s=10)
        desk.play(packets(coded(frames=300)))
        use(disk, 4_100_000)
        desk.store.clean(now=True)
        assert desk.store.deleted > 0
        desk.play(packets(coded(frames=100), connection=2, start_s=40))
        assert desk.camera.failures > 0
        use(disk, 0)
        desk.play(packets(coded(frames=100), connection=3, start_s=60))
        desk.camera.close()
        assert decoded(disk / "recordings" / index.files()[-1].name).numbers[:50] == list(range(50))
        assert faults(desk) == []


@pytest.mark.integration
def test_open_file_does_not_grow_into_the_reserve(tmp_path: Path) -> None:
    """Nothing can be deleted, because the only recording is still being written."""
    with small_disk(tmp_path / "disk", 4 * 1024) as disk, closing(RecordingIndex(tmp_path / "state")) as index:
        desk = Desk(disk / "recordings", index, mode="continuous", file_s=3600)
        arriving = packets(coded(frames=400))
        desk.play(arriving[:100])
        stopped = [desk.camera.is_stopped]
        use(disk, 4_100_000)
        desk.store.clean(now=True)
        desk.play(arriving[100:200])
        stopped.append(desk.camera.is_stopped)
        assert sum(file.frames for file in index.files()) <= 101
        use(disk, 0)
        desk.play(arriving[200:])
        stopped.append(desk.camera.is_stopped)
        assert stopped == [False, True, False]
        desk.camera.close()
        assert decoded(disk / "recordings" / index.files()[-1].name).numbers[-1] == 399 % 64


# --- kills ------------------------------------------------------------------------------------------------------------

WRITER = "from tests.unit.outputs.recording.killed_writer import main; main()"


@pytest.mark.integration
def test_killed_writer_leaves_a_readable_index(tmp_path: Path) -> None:
    """The test kills the writer twice. tests/soak/recording_kills.py kills it as often as requested."""
    for kill in range(2):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05 + 0.07 * kill)
            process.send_signal(signal.SIGKILL)
        with closing(RecordingIndex(tmp_path)) as index:  # raises an error if it is damaged
            folder = tmp_path / "recordings"
            repair(index, folder, find_differences(index, folder, thorough=False))
            assert find_differences(index, folder, thorough=True) == []
