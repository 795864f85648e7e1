"""Tests of the configuration for a run of `vision chaos`, and of the faults that the run causes inside the program."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from vision.benchmark.chaos.harness import source_that_hangs, stuck_file
from vision.benchmark.chaos.settings import demo, of_user, write_config
from vision.benchmark.stand_ins import StandIn
from vision.config import AppConfig, CameraConfig, load_config, load_config_text

BIND, REPLAY = "tcp://127.0.0.1:5001", "tcp://127.0.0.1:5002"
USER = """
pipeline: count
cameras:
  - {id: gate, source: "rtsp://192.0.2.1/a", user: viewer, password: "${SECRET}", max_fps: 7, max_frame_age_s: 0.4}
  - {id: desk, source: "rtsps://192.0.2.2/b", tls: accept-any}
analytics:
  gate: {reset_at: ["00:00"], lines: [{name: door, points: [[1, 2], [300, 400]]}]}
rules: [{name: often, when: line_crossed door, cooldown: 5s}]
snapshots: {folder: /var/lib/elsewhere, max_files: 7}
state_dir: /var/lib/vision
http: {bind: "127.0.0.1:9102"}
publish: {bind: "tcp://*:5555", insecure: true, queue: 3}
status: {interval_s: 60}
hang_s: 30
"""


def written(folder: Path, cameras: int) -> AppConfig:
    """Return the configuration that `vision run` reads in a chaos run with the user's configuration `USER`."""
    config = load_config_text(USER, {"SECRET": "hidden-word"})
    stand_ins = [StandIn(camera.id, "", 641, 361, 5.0, camera, phase=True) for camera in config.cameras]
    subject = of_user(config, stand_ins, cameras)
    assert {(each.width_px, each.height_px, each.fps) for each in subject.cameras} == {(640, 360, 10.0)}
    addresses = {camera.camera_id: f"rtsp://127.0.0.1/{camera.camera_id}" for camera in subject.cameras}
    return load_config(write_config(subject, addresses, folder, folder / "data", bind=BIND, replay=REPLAY), {})


def test_run_keeps_the_analytics_but_nothing_outside_the_run(tmp_path: Path) -> None:
    config = load_config_text(USER, {"SECRET": "hidden-word"})
    found = written(tmp_path, 3)
    assert [camera.id for camera in found.cameras] == ["gate", "desk", "gate-copy-2"]
    assert [camera.source for camera in found.cameras] == [f"rtsp://127.0.0.1/{camera.id}" for camera in found.cameras]
    gate = found.cameras[0]
    assert (gate.user, gate.password, gate.max_fps, gate.max_frame_age_s) == (None, None, 7, 0.4)
    assert found.cameras[1].tls == "verify"
    assert set(found.analytics) == {"gate", "gate-copy-2"}
    assert found.analytics["gate"].lines == config.analytics["gate"].lines
    assert found.analytics["gate"].reset_at == ()
    assert found.rules == config.rules
    assert found.http is None
    assert (found.publish.bind, found.publish.replay, found.publish.curve) == (BIND, REPLAY, None)
    assert found.snapshots is not None
    assert found.snapshots.max_files == 7
    assert all(Path(path).is_relative_to(tmp_path) for path in (found.snapshots.folder, str(found.state_dir)))
    assert found.pipeline == str(tmp_path / "pipeline.py")
    assert "'count'" in (tmp_path / "pipeline.py").read_text()
    assert "hidden-word" not in (tmp_path / "camera.yaml").read_text()


@pytest.mark.parametrize("cameras", [1, 2])
def test_fewer_cameras_than_configured(tmp_path: Path, cameras: int) -> None:
    assert len(written(tmp_path, cameras).cameras) == cameras


def test_demo_counts_on_every_camera() -> None:
    subject = demo(8)
    assert len(subject.config.cameras) == len(subject.cameras) == 8
    assert set(subject.config.analytics) == {camera.camera_id for camera in subject.cameras}


def test_call_hangs_while_the_file_exists(tmp_path: Path) -> None:
    camera = CameraConfig.model_validate({"id": "a", "source": "synthetic:64x48@50"})
    grabbed: list[object] = []
    with closing(source_that_hangs(tmp_path)(camera, offline=True, pixel_formats=("bgr",))) as source:
        source.open()
        assert source.grab(1.0) is not None
        stuck_file(tmp_path, "a").touch()
        thread = threading.Thread(target=lambda: grabbed.append(source.grab(1.0)))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        stuck_file(tmp_path, "a").unlink()
        thread.join(60)
    assert grabbed != [None]
