"""Tests of the GPU benchmarks: the network alone in lanes, and a timeline of the slots."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.opening import EMULATED
from vision.benchmark.bench import BenchSettings, measure
from vision.benchmark.gpu import DeviceTimeline, GpuLane, device_mib, require
from vision.benchmark.loops import measure_engine
from vision.benchmark.pipeline import NonClosingDetector, run_deployment, synthetic_deployment
from vision.benchmark.profile import ProfileSettings, profile_model, trace_slots
from vision.config import DetectConfig, load_model_spec, shipped_models
from vision.engine.trace import SpanRecorder
from vision.errors import ModelError
from vision.gpu.cuda import open_device
from vision.gpu.memory import allocated

pytestmark = pytest.mark.gpu

emulated = pytest.mark.skipif(not EMULATED, reason="needs an engine that can be told what to do")
real = pytest.mark.skipif(EMULATED, reason="needs a real GPU")


@pytest.fixture(autouse=True)
def gpu(device: object) -> None:
    """Open the GPU separately for each test, because a test may break the emulated GPU. Skip the test without a GPU."""
    open_device()


def engine(**other: Any) -> Any:
    from tests.emulator.engine import EmulatedEngine

    return EmulatedEngine(lambda images: {"output": images[:, 0, :3, :6]}, (64, 96), {"output": (3, 6)}, **other)


SHAPES = {"images": (2, 3, 64, 96)}


@emulated
@pytest.mark.parametrize("graph", [False, True])
def test_lane_runs_only_the_network(graph: bool) -> None:
    gc.collect()  # frees the memory of earlier tests
    before = allocated()
    with engine() as opened:
        with closing(GpuLane(opened, SHAPES, graph=graph)) as lane:
            runs = opened.runs
            for _ in range(3):
                lane.start()
            lane.finish()
            assert opened.runs == runs + 3
            assert allocated().device_bytes > before.device_bytes
        del lane
        gc.collect()
    assert opened.closed
    assert allocated().device_bytes == before.device_bytes


@emulated
def test_lanes_are_measured_in_parallel() -> None:
    with engine() as opened:
        lanes = [GpuLane(opened, SHAPES, graph=True) for _ in range(2)]
        found = measure_engine(lanes, 0.2)
        for lane in lanes:
            lane.close()
        lanes.clear()
        gc.collect()
    assert found.durations.count > 1
    assert found.frames_per_s > 0


@emulated
def test_engine_with_dynamic_outputs_is_not_measured_alone() -> None:
    gc.collect()  # frees the memory of earlier tests
    before = allocated()
    with engine() as opened:
        opened.outputs = (opened.outputs[0].__class__("output", "output", "float32", (-1, -1, 6), "device", False),)
        with pytest.raises(ModelError):
            GpuLane(opened, SHAPES, graph=False)
        gc.collect()
    assert allocated().device_bytes == before.device_bytes


@emulated
@pytest.mark.parametrize("steps", [False, True])
def test_time_line_has_the_slots(steps: bool) -> None:
    from tests.gpu.test_emulated_detector import assert_two_objects, frame, opened

    with closing(opened()) as detector:
        recorder = SpanRecorder()
        batches = [[frame(), frame()], [frame(), frame()]]
        slots: Any = detector.parts()[0]
        chains = [dict(slot.graphs) for slot in slots]
        with closing(DeviceTimeline(detector, steps=steps)) as timeline:
            trace_slots(detector, batches, 3, recorder, submit=timeline.submit)
            timeline.write_to(recorder)
        assert [slot.graphs for slot in slots] == chains
        chains.clear()
        lanes: dict[str, list[str]] = {}
        for span in recorder.spans():
            lanes.setdefault(span.lane, []).append(span.name)
        each = ["letterbox", "engine", "find_pairs", "objects"] if steps else ["batch of 2"]
        for slot in (0, 1):
            assert lanes[f"slot {slot} on the GPU"] == 3 * each
            assert lanes[f"slot {slot} copies"] == ["copy"] * 3
            assert lanes[f"slot {slot}"] == ["in flight"] * 3
        assert set(lanes["thread MainThread"]) == {"copy", "launch"}
        detector.submit(0, [frame()])  # the detector still works as before
        assert_two_objects(detector.wait(0, 10.0)[0])


@emulated
def test_program_runs_on_the_frames_of_the_stage() -> None:
    from tests.gpu.test_emulated_detector import frame, opened

    with closing(opened()) as detector:
        shown = [[frame(), frame()] for _ in range(detector.spec.batches_in_flight)]
        size_px = (shown[0][0].meta.width_px, shown[0][0].meta.height_px)
        ran = run_deployment(
            synthetic_deployment(2, 20.0, *size_px, "bgr"), 1.0, lambda *_: NonClosingDetector(detector, 2, shown)
        )
        assert ran.published_per_s > 0
        assert ran.objects_per_frame == 2
        detector.submit(0, shown[0])  # the slots of the detector are free again


def test_device_memory_is_counted() -> None:
    assert device_mib() >= 0


@real
def test_benchmark_measures_every_part() -> None:
    require()
    folder = shipped_models() / "nanodet-g-416"
    settings = BenchSettings("tensorrt", batches=(1, 4), precisions=("fp16",), batches_in_flight=(1, 2, 3), seconds=0.5)
    found = measure(folder, load_model_spec(folder), settings)
    assert {(row.case.mode, row.case.lanes) for row in found.rows_of("engine")} == {
        ("eager", 1), ("eager", 2), ("graph", 1), ("graph", 2),
    }  # fmt: skip
    assert all(row.frames_per_s > 0 and row.device_mib for row in found.rows)
    assert any(row.clocks.gpu_mhz for row in found.rows)
    rates: dict[Callable[..., Any] | tuple[Any, ...], float] = {
        (row.case.part, row.case.mode, row.case.lanes, row.case.batch): row.frames_per_s for row in found.rows
    }
    assert rates["stage", "slots", 3, 4] > rates["stage", "slots", 1, 4]
    assert all(row.rate_error is not None for row in found.rows)
    for batch in (1, 4):  # the program has as much to do with a frame as the stage
        stage, program = (
            [row.objects_per_frame for row in found.rows_of(part) if row.case.batch == batch]
            for part in ("stage", "pipeline")
        )
        assert min(stage) * 0.8 < min(program) <= max(program) < max(stage) * 1.2


@real
def test_profile_writes_a_time_line_of_kernels_and_batches(tmp_path: Path) -> None:
    require()
    folder = shipped_models() / "nanodet-g-416"
    settings = ProfileSettings(4, DetectConfig(backend="tensorrt"), runs=5, trace=tmp_path / "t.json")
    found = profile_model(folder, load_model_spec(folder), settings)
    assert found.runs == 5
    assert found.total_ms > 0
    assert np.isclose(sum(time.share for time in found.times), 1)
    assert any(found.layer_of(time.name) for time in found.times)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {"letterbox", "engine", "find_pairs", "objects", "batch of 4", "copy"} <= {each["name"] for each in events}
