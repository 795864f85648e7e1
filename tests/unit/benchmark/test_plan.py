"""Tests of `vision plan`: stand-in cameras, the load of each part, the search for the camera count, and the command."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.runtime.worker_children import worker_children
from vision.benchmark.conditions import CpuUse
from vision.benchmark.loops import Durations
from vision.benchmark.pipeline import DeploymentRun, in_flight, run_deployment
from vision.benchmark.plan import Capacity, busiest_part, find_capacity, make_plan, measure_loads, verdict
from vision.benchmark.stand_ins import encode_clip, phased_sources, repeated, stand_ins
from vision.benchmark.tables import print_plan
from vision.capture.open import open_source
from vision.config import AppConfig, CameraConfig
from vision.detect.fake import FakeDetector
from vision.errors import SourceError

UNREACHABLE = "rtsp://127.0.0.1:9/stream"
ATTEMPTS = 3
"""Number of plans in which other tests can use too much of the CPU. One plan without this suffices."""


def deployment(*sources: str, **other: object) -> AppConfig:
    cameras = [
        {"id": f"c{n}", "source": source, "open_timeout_s": 0.5}
        for n, source in enumerate(sources or ("synthetic:64x48@20",))
    ]
    return AppConfig.model_validate({"cameras": cameras, "detect": {"backend": "fake"}, **other})


# ------------------------------------------------------------------------------------------------ stand-ins


@pytest.mark.integration
def test_local_sources_run_as_they_are(tmp_path: Path) -> None:
    encode_clip(tmp_path / "own.mp4", 64, 48, 10.0, 0.5)
    config = deployment("synthetic:64x48@20", str(tmp_path / "own.mp4"))
    synthetic, file = stand_ins(config, 1.0, tmp_path)
    assert (synthetic.width_px, synthetic.height_px, synthetic.fps) == (64, 48, 20.0)
    assert synthetic.config == config.cameras[0]
    assert file.config == config.cameras[1].model_copy(update={"loop": True})
    assert file.fps == pytest.approx(10.0)
    assert not synthetic.phase
    assert not file.phase


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        stand_ins(deployment(str(tmp_path / "missing.mp4")), 1.0, tmp_path)
    assert "c0" in str(caught.value)


@pytest.mark.integration
def test_silent_camera_becomes_a_clip_of_the_configured_size(tmp_path: Path) -> None:
    camera = {"id": "gate", "source": UNREACHABLE, "open_timeout_s": 0.5, "max_fps": 5}
    config = AppConfig.model_validate({"cameras": [camera], "detect": {"backend": "fake"}})
    (gate,) = stand_ins(config, 0.2, tmp_path)
    assert (gate.width_px, gate.height_px, gate.fps, gate.asked_fps) == (1920, 1080, 25.0, 5.0)
    assert "gate" in gate.note
    source = open_source(gate.config, offline=True, pixel_formats=("bgr",))
    info = source.open()
    source.close()
    assert (info.width_px, info.height_px) == (1920, 1080)
    assert gate.config.max_fps == 5


@pytest.mark.integration
def test_cameras_of_one_size_share_a_clip(tmp_path: Path) -> None:
    cameras = stand_ins(deployment(UNREACHABLE, UNREACHABLE), 0.2, tmp_path)
    assert cameras[0].config.source == cameras[1].config.source
    assert len(list(tmp_path.glob("*.mp4"))) == 1


@pytest.mark.integration
@pytest.mark.parametrize("fps", [5.0, 12.5, 29.97])
def test_encoded_clip_has_the_rate_and_length_of_the_run(tmp_path: Path, fps: float) -> None:
    encode_clip(tmp_path / "clip.mp4", 320, 180, fps, 2.0)
    camera = CameraConfig(id="clip", source=str(tmp_path / "clip.mp4"), reader="ffmpeg")
    source = open_source(camera, offline=True, pixel_formats=("i420", "bgr"))
    assert source.open().fps == pytest.approx(fps, rel=1e-3)
    source.close()


def test_copies_of_a_camera_have_its_lines_and_zones() -> None:
    lines = {"c0": {"lines": [{"name": "door", "points": [[10, 20], [60, 20]]}]}}
    config = deployment("synthetic:64x48@20", "synthetic:64x48@10", analytics=lines, pipeline="count")
    cameras = stand_ins(config, 1.0, Path())
    assert [camera.id for camera in repeated(config, cameras, 5).cameras] == ["c0", "c1", "c0.2", "c1.2", "c0.3"]
    assert set(repeated(config, cameras, 5).analytics) == {"c0", "c0.2", "c0.3"}
    assert len(repeated(config, cameras, 1).cameras) == 1


def test_sources_with_a_phase_open_at_different_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("vision.benchmark.stand_ins.time.sleep", waits.append)
    config = deployment("synthetic:64x48@20", "synthetic:64x48@20?seed=1")
    first, second = stand_ins(config, 1.0, tmp_path)
    opener = phased_sources([replace(first, phase=True), second])
    for number in range(3):
        opener(first.config.model_copy(update={"id": f"copy{number}"}), offline=False, pixel_formats=("bgr",))
    opener(second.config, offline=False, pixel_formats=("bgr",))
    assert len(set(waits)) == len(waits) == 3
    assert all(0 < wait < 1 / 20 for wait in waits)


# ------------------------------------------------------------------------------------------------ loads


def test_shares_of_time_follow_the_number_of_batches_in_flight() -> None:
    assert in_flight([], 0, 100) == ()
    assert in_flight([(-50, 10), (20, 60), (40, 80), (95, 200), (300, 400)], 0, 100) == (0.75, 0.2)
    assert in_flight([(0, 100), (0, 100)], 0, 100) == (1.0, 1.0)


def run_result(
    busy: tuple[float, ...] = (0.1,), own: float = 0.1, threads: dict[str, float] | None = None
) -> DeploymentRun:
    return DeploymentRun(1.0, {}, Durations.of([]), CpuUse(own, 0.0), threads or {}, busy, 0.0)


@pytest.mark.parametrize(
    ("run", "parallel", "part"),
    [
        (run_result(busy=(0.95, 0.9)), 1, "detector"),
        (run_result(busy=(0.95, 0.1), own=1.9), 2, "CPU"),
        (run_result(busy=(0.95,), own=2.0), 1, "detector"),  # the detector computes on the CPU
        (run_result(threads={"results": 0.93}), 1, "results thread"),
        (run_result(threads={"inference": 0.93}), 1, "inference thread"),
        (run_result(threads={"camera-a": 0.2, "camera-b": 0.97}), 1, "camera thread"),
    ],
)
def test_busiest_part_is_the_bottleneck(run: DeploymentRun, parallel: int, part: str) -> None:
    loads = measure_loads(run, parallel, cores=2)
    assert busiest_part(loads).part == part
    assert [load.share for load in loads] == sorted((load.share for load in loads), reverse=True)
    assert part in verdict(loads, fits=False)
    assert part in verdict(loads, fits=True)


def test_busiest_camera_is_named() -> None:
    loads = {
        load.part: load for load in measure_loads(run_result(threads={"camera-a": 0.2, "camera-b": 0.3}), 1, cores=2)
    }
    load = loads["camera thread"]
    assert (load.share, load.detail[:1]) == (0.3, "b")


# ------------------------------------------------------------------------------------------------ capacity


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 12, 31])
@pytest.mark.parametrize("tried", [1, 4, 16])
def test_search_finds_the_limit(limit: int, tried: int) -> None:
    capacity = find_capacity(lambda count: count <= limit, tried, tried_fits=tried <= limit, max_steps=20)
    assert capacity == Capacity(limit, limit + 1)
    assert str(capacity) == str(limit)


def test_search_stops_after_its_steps() -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= 100

    capacity = find_capacity(fits, 8, tried_fits=True, max_steps=5)
    assert tried == [16, 32, 64, 128, 96]
    assert capacity == Capacity(96, 128)
    assert str(capacity) == "96 to 127"


def test_search_stops_when_time_is_up() -> None:
    assert find_capacity(lambda _: True, 3, tried_fits=True, time_left=lambda: False) == Capacity(3, None)


def test_search_has_an_upper_limit() -> None:
    capacity = find_capacity(lambda _: True, 100, tried_fits=True, max_steps=20)
    assert capacity == Capacity(256, None)


# ------------------------------------------------------------------------------------------------ the whole plan


@pytest.mark.integration
def test_plan_with_a_fast_detector_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.benchmark.plan._SEARCH_LIMIT", 0.6)  # few more runs, with up to 8 cameras
    outputs = {"state_dir": str(tmp_path / "state"), "archive": {"folder": str(tmp_path / "archive")}}
    config = deployment("synthetic:64x48@20", "synthetic:64x48@10", pipeline="track", **outputs)
    for _ in range(ATTEMPTS):
        steps: list[str] = []
        plan = make_plan(config, seconds=2.0, progress=steps.append)
        if plan.fits:
            break
    assert plan.fits
    assert plan.asked_fps == 30.0
    assert plan.published_fps == pytest.approx(30.0, rel=0.3)
    assert plan.capacity.fit >= 2
    assert [camera.camera for camera in plan.cameras] == ["c0", "c1"]
    assert re.search(r"\b2\b", steps[1]), "the duration of the run follows the step that opens the cameras"
    assert not list(tmp_path.iterdir()), "no state and no archive of the stand-ins"
    assert plan.memory is not None
    assert 0 < plan.memory.free_mib < plan.memory.total_mib
    document = plan.as_json()
    assert document["schema"] == "vision.plan/1"
    assert document["cameras"][0]["latency"]["count"] > 0
    assert {load["part"] for load in document["loads"]} >= {"detector", "results thread", "CPU"}


@pytest.mark.integration
def test_plan_with_a_slow_detector_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> FakeDetector:
        return FakeDetector(service_ns=50_000_000, max_batch=1)

    monkeypatch.setattr("vision.benchmark.plan.open_detector", slow)
    config = deployment(*(f"synthetic:64x48@10?seed={n}" for n in range(4)))
    plan = make_plan(config, seconds=1.0)
    assert not plan.fits
    assert plan.capacity.fit < 4
    assert sum(plan.dropped_fps.values()) > 0
    console = Console(file=StringIO(), width=100)
    print_plan(plan, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "superseded" in text
    assert plan.verdict in " ".join(text.split())


@pytest.mark.integration
def test_plan_with_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.benchmark.plan._SEARCH_LIMIT", 0.1)  # one more run, with copies of the cameras
    line = {"name": "middle", "points": [[640, 0], [640, 720]]}
    missing = {"id": "usb", "source": "/dev/video99", "width": 64, "height": 48, "fps": 10}  # becomes a clip
    cameras = [missing, {"id": "drawn", "source": "synthetic:1280x720@20?objects=2"}]
    config = AppConfig.model_validate(
        {
            "pipeline": "count",
            "processes": 2,
            "detect": {"backend": "fake"},
            "cameras": cameras,
            "analytics": {"drawn": {"lines": [line]}},
        }
    )
    for start_s in (3.0, 6.0, 12.0):
        monkeypatch.setattr("vision.benchmark.pipeline._WORKER_START_S", start_s)
        steps: list[str] = []
        plan = make_plan(config, seconds=2.0, progress=steps.append)
        if plan.published_fps + sum(plan.dropped_fps.values()) > 0:
            break
    loads = {load.part: load.share for load in plan.loads}
    assert loads.keys() >= {"capture worker", "result worker"}
    assert "camera thread" not in loads
    assert loads["capture worker"] > 0
    assert loads["result worker"] > 0
    assert plan.published_fps + sum(plan.dropped_fps.values()) > 0
    assert plan.rss_mib > 150  # five processes, each of which needs 30 MiB or more
    assert len(steps) == 3
    assert not worker_children()


@pytest.mark.integration
def test_run_measures_threads_and_drops() -> None:
    config = deployment(*(f"synthetic:64x48@200?seed={n}" for n in range(2)))

    def slow(*_: object, **__: object) -> FakeDetector:
        return FakeDetector(service_ns=20_000_000, max_batch=1)

    run = run_deployment(config, 1.0, slow)
    assert {"results", "inference", "camera-c0", "camera-c1"} <= set(run.threads)
    assert run.in_flight[0] > 0.5
    assert sum(run.dropped_per_s.values()) > run.published_per_s
    assert run.grabbed_per_s == pytest.approx(sum(run.dropped_per_s.values()) + run.published_per_s, rel=0.2)
