"""Tests of event snapshots: they show the right frame, their files are complete, and their limits apply."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.frame_buffers import frame_on_device
from tests.log_records import log_args
from tests.messages.processes import wait_until
from tests.unit.state.faults import file_size_limit
from vision.config.app import SnapshotConfig
from vision.detect.reference.crops import JpegEncoder
from vision.errors import ConfigError, VisionError
from vision.stages.snapshots import SnapshotStage
from vision.types import Detections, Event, Frame, FrameMeta, PixelFormat, Result, Timing, frame_shape

UTC_NS = 1_700_000_000_123_456_789


def frame(index: int = 0, *, camera: str = "gate", level: int = 0, pixel_format: PixelFormat = "bgr") -> Frame:
    meta = FrameMeta(camera, index, 2, 10**9 * index, UTC_NS + 10**9 * index, 64, 48)
    return Frame.wrap(meta, np.full(frame_shape(48, 64, pixel_format), level, np.uint8), pixel_format)


def result(snapshot_stage: Frame, *kinds: str) -> Result:
    events = tuple(Event(kind, "door", snapshot_stage.meta.camera_id, 1, 0) for kind in kinds)
    return Result(snapshot_stage.meta, Detections.empty(), Timing(0, 0, 0), events=events)


def size_and_name(snapshot_stage: Frame, _result: Result) -> bytes:
    """Return 1000 bytes that contain the frame number, instead of a JPEG."""
    return b"%1000d" % snapshot_stage.meta.index


def jpeg(snapshot_stage: Frame, _result: Result) -> bytes:
    return JpegEncoder().encode(snapshot_stage)


def stage(
    folder: Path,
    *,
    encode: Callable[[Frame, Result], bytes] = size_and_name,
    lossless: bool = True,
    max_bytes: int = 10**9,
    **config: Any,
) -> closing[SnapshotStage]:
    checked = SnapshotConfig(folder=str(folder), **config).model_copy(update={"max_mb": max_bytes / 1_000_000})
    return closing(SnapshotStage(checked, encode, lossless=lossless))


def take(snapshot_stage: SnapshotStage, index: int, *kinds: str) -> list[str]:
    shown = frame(index)
    return [
        event.snapshot for event in snapshot_stage.with_frame(result(shown, *kinds or ("line_crossed",)), shown).events
    ]


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("pixel_format", ["bgr", "nv12"])
def test_event_has_the_path_of_its_snapshot(tmp_path: Path, pixel_format: PixelFormat) -> None:
    shown = frame(17, level=200, pixel_format=pixel_format)
    with stage(tmp_path / "made" / "here", encode=jpeg) as snapshot_stage:
        after = snapshot_stage.with_frame(result(shown, "line_crossed", "zone_entered"), shown)
        shown.pixels[:] = 0  # the lease has ended, the buffer is written again
    (path,) = {event.snapshot for event in after.events}
    assert path == f"{tmp_path}/made/here/gate-20231114T221337.123Z-2-17.jpg"
    image = np.asarray(cv2.imread(path), int)
    assert image.shape == (48, 64, 3)
    expected = (200, 200, 200) if pixel_format == "bgr" else image[0, 0]
    assert np.abs(image - expected).max() <= 2
    assert image.max() > 100


def test_only_the_configured_kinds_get_snapshots(tmp_path: Path) -> None:
    with stage(tmp_path, kinds=("rule",)) as snapshot_stage:
        assert take(snapshot_stage, 0, "line_crossed", "zone_left") == ["", ""]
        first, second = take(snapshot_stage, 1, "line_crossed", "rule")
    assert first == ""
    assert written(tmp_path) == [Path(second).name]


def test_without_events_no_frame_is_copied(tmp_path: Path) -> None:
    with stage(tmp_path) as snapshot_stage:
        shown = frame()
        before = result(shown)
        assert snapshot_stage.with_frame(before, shown) is before
    assert written(tmp_path) == []


@pytest.mark.parametrize("limit", [{"max_files": 5}, {"max_bytes": 5999}])
def test_oldest_snapshots_are_deleted(tmp_path: Path, limit: dict[str, Any]) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x" * 10_000)
    with stage(tmp_path, **limit) as snapshot_stage:
        paths = [take(snapshot_stage, index)[0] for index in range(20)]
    assert written(tmp_path) == sorted(["holiday.jpg", *(Path(path).name for path in paths[-5:])])


def test_snapshots_of_earlier_runs_count(tmp_path: Path) -> None:
    with stage(tmp_path) as snapshot_stage:
        first = [take(snapshot_stage, index)[0] for index in range(10)]
    for age, path in enumerate(reversed(first)):
        os.utime(path, ns=(10**18 - age * 10**9,) * 2)
    (tmp_path / ".gate-20231114T221337.123Z-2-17.jpg.part").write_bytes(b"half")
    with stage(tmp_path, max_files=4) as snapshot_stage:
        assert written(tmp_path) == sorted(Path(path).name for path in first[-4:])
        (last,) = take(snapshot_stage, 11)
    assert written(tmp_path) == sorted(Path(path).name for path in (*first[-3:], last))


def test_snapshot_larger_than_the_limit_is_kept_alone(tmp_path: Path) -> None:
    with stage(tmp_path, max_bytes=10) as snapshot_stage:
        paths = [take(snapshot_stage, index)[0] for index in range(3)]
    assert written(tmp_path) == [Path(paths[-1]).name]


def test_snapshot_of_the_same_frame_replaces_the_file(tmp_path: Path) -> None:
    with stage(tmp_path, max_files=2) as snapshot_stage:
        for index in (0, 1, 1, 1):
            take(snapshot_stage, index)
    assert len(written(tmp_path)) == 2
    assert snapshot_stage.counters()["snapshots.files"] == 2


def test_events_that_come_too_fast_are_counted_as_skipped(tmp_path: Path) -> None:
    go = threading.Event()

    def slow(shown: Frame, result: Result) -> bytes:
        go.wait(60)
        return size_and_name(shown, result)

    with stage(tmp_path, encode=slow, lossless=False) as snapshot_stage:
        paths = [take(snapshot_stage, index)[0] for index in range(10)]
        assert [bool(path) for path in paths] == [True] * 4 + [False] * 6
        go.set()
        wait_until(lambda: snapshot_stage.counters()["snapshots.written"] == 4, "all are written")
        assert take(snapshot_stage, 11) != [""]
    assert snapshot_stage.counters() == {
        "snapshots.written": 5, "snapshots.skipped": 6, "snapshots.failed": 0, "snapshots.stopped": 0,
            "snapshots.files": 5,
    }  # fmt: skip


def test_offline_run_writes_a_snapshot_for_every_event(tmp_path: Path) -> None:
    with stage(tmp_path) as snapshot_stage:
        paths = [take(snapshot_stage, index)[0] for index in range(200)]
    assert written(tmp_path) == sorted(Path(path).name for path in paths)
    assert all(int(Path(path).read_bytes()) == index for index, path in enumerate(paths))


def test_snapshot_memory_is_reused(tmp_path: Path) -> None:
    with stage(tmp_path) as snapshot_stage:
        for index in range(8):
            take(snapshot_stage, index)
        wait_until(lambda: snapshot_stage.counters()["snapshots.written"] == 8, "all are written")
        shots = [snapshot_stage._worker._free.get() for _ in range(4)]
        before = {shot.memory.ctypes.data for shot in shots}
        for shot in shots:
            snapshot_stage._worker._free.put(shot)
        for index in range(8, 40):
            take(snapshot_stage, index)
        wait_until(lambda: snapshot_stage.counters()["snapshots.written"] == 40, "all are written")
        shots = [snapshot_stage._worker._free.get() for _ in range(4)]
        assert {shot.memory.ctypes.data for shot in shots} == before
        assert all(shot.content is None for shot in shots)
        for shot in shots:
            snapshot_stage._worker._free.put(shot)


def test_full_disk_is_logged_once_and_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with stage(tmp_path) as snapshot_stage:
        with file_size_limit(100):
            for index in range(3):
                take(snapshot_stage, index)
            wait_until(lambda: snapshot_stage.counters()["snapshots.failed"] == 3, "three have failed")
        assert written(tmp_path) == []
        take(snapshot_stage, 4)
        wait_until(lambda: snapshot_stage.counters()["snapshots.written"] == 1, "there is room again")
    assert len(log_args(caplog, "vision.stages.snapshots", logging.ERROR)) == 1
    assert len(log_args(caplog, "vision.stages.snapshots", logging.INFO)) == 1


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_unusable_snapshot_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        stage(tmp_path / name)
    assert caught.value.code == "snapshot-folder"


def test_encoder_failure_is_raised(tmp_path: Path) -> None:
    def fail(_frame: Frame, _result: Result) -> bytes:
        raise ValueError("E-17")

    with stage(tmp_path, encode=fail) as snapshot_stage:
        take(snapshot_stage, 0)
        wait_until(lambda: snapshot_stage._worker._error is not None, "it has failed")
        with pytest.raises(VisionError) as caught:
            take(snapshot_stage, 1)
    assert "E-17" in str(caught.value)


def test_gpu_frame_is_copied_for_a_snapshot(tmp_path: Path) -> None:
    shown = frame(level=200)
    with stage(tmp_path, encode=jpeg) as snapshot_stage:
        after = snapshot_stage.with_frame(result(shown, "rule"), frame_on_device(shown))
    image = np.asarray(cv2.imread(after.events[0].snapshot), int)
    assert np.abs(image - 200).max() <= 2
