"""From a benchmark's file, or from what is measured now, to a plan of a site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_performance_files import bench, row
from vision.config import SiteConfig
from vision.errors import ConfigError
from vision.performance.conditions import CpuUse, Machine, ThisSystem, file_sha256, machine
from vision.performance.document import Bench, Case, HostCosts, Row
from vision.performance.model import CameraForecast, Forecast
from vision.performance.pipeline import CameraRun, SiteRun
from vision.performance.plan import Check, checks, costs_of, make_plan, verify
from vision.performance.samples import Durations

MODEL = Path(__file__).parents[2] / "models" / "nanodet-g-416" / "nanodet-g-416.onnx"


def site(*sources: str, **other: object) -> SiteConfig:
    cameras = [{"id": f"c{n}", "source": source} for n, source in enumerate(sources or ("synthetic:64x48@20",))]
    return SiteConfig.model_validate({"cameras": cameras, "detect": {"backend": "fake"}, **other})


def stage(mode: str, precision: str, batch: int, *, rate: float, ms: float, busy: float, others: float = 0.0) -> Row:
    made = row(Case("stage", mode, 3, precision, batch), rate)
    return replace(made, durations=Durations.constant(ms), cores_busy=busy, cores_others=others)


def gpu_bench(**other: object) -> Bench:
    rows = [
        replace(stage(mode, precision, batch, rate=rate * batch, ms=ms, busy=0.5), device_mib=500.0)
        for precision, rate in (("fp16", 1000.0), ("fp32", 400.0))
        for batch in (1, 4, 8)
        for mode, ms in (("slots", 6.0), ("alone", 3.0))
    ]
    return bench(*rows, **other)


def test_costs_from_a_file() -> None:
    costs = costs_of(gpu_bench(), site(detect={"precision": "fp16", "max_batch": 8}))
    assert costs.gpu
    assert costs.detector.max_batch == 8
    assert costs.detector.parallel == 2
    assert costs.detector.batches[4].interval_ms == pytest.approx(1.0)
    assert costs.detector.batches[4].alone_ms == 3.0
    assert costs.detector.cores == 0.5
    assert costs.detector.picture_bytes == 768 * 576 * 3
    assert costs.host.copy_gb_per_s == 30.0
    assert costs_of(gpu_bench(), site(detect={"precision": "fp32"})).detector.batches[1].interval_ms == 2.5


def test_a_smaller_max_batch_uses_smaller_batches() -> None:
    assert set(costs_of(gpu_bench(), site(detect={"max_batch": 5})).detector.batches) == {1, 4}


def test_what_others_added_on_a_cpu_is_taken_away() -> None:
    rows = [
        stage("slots", "fp32", 1, rate=10.0, ms=300.0, busy=1.0, others=1.0),
        stage("alone", "fp32", 1, rate=8.0, ms=120.0, busy=1.0),
    ]
    here = Machine("Xeon", 2, 8.0)
    made = bench(*rows, machine=here, backend="onnxruntime cpu fp32", host=HostCosts(1.0, 0.1, 0.1, 0.1, 5))
    costs = costs_of(made, site(detect={"precision": "fp16"}))  # a CPU has no choice of precision
    assert not costs.gpu
    assert costs.detector.cores == 2.0
    assert costs.detector.batches[1].interval_ms == pytest.approx(50.0)  # twice as fast with both cores
    assert costs.detector.batches[1].alone_ms == pytest.approx(120.0)
    assert costs_of(made, site(detect={"threads": 1})).detector.cores == 1.0


@pytest.mark.parametrize(
    "detect", [{"precision": "bf16"}, {"precision": "fp16", "slots": 5}], ids=["no such precision", "no such slots"]
)
def test_a_file_without_what_is_asked_for(detect: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="the benchmark has no stage"):
        costs_of(gpu_bench(), site(detect=detect))


def test_a_file_without_any_stage() -> None:
    with pytest.raises(ConfigError, match="no stage at all"):
        costs_of(bench(row(Case("engine", "graph", 1, "fp16", 1))), site())


def test_a_file_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="machine, gpu"):
        make_plan(site(), gpu_bench())
    here = gpu_bench(machine=machine(ThisSystem()))
    with pytest.raises(ConfigError, match="another file of it"):
        make_plan(site(), here)


def test_a_plan_from_a_file() -> None:
    here = gpu_bench(machine=machine(ThisSystem()), model_sha256=file_sha256(MODEL))
    plan = make_plan(site("synthetic:64x48@20", "synthetic:64x48@20", detect={"precision": "fp16"}), here)
    assert plan.forecast.published_per_s == pytest.approx(40, rel=0.05)
    assert plan.costs.source == "benchmark of 2026-11-22T10:00:00Z"
    assert any("768x576 bgr" in note for note in plan.notes)
    assert {load.resource for load in plan.loads} == {"decode", "detector", "copy", "results thread"}
    assert plan.as_json()["forecast"]["cameras"][0]["camera_id"] == "c0"


def test_a_plan_from_what_is_measured_now_and_whether_it_is_so() -> None:
    said: list[str] = []
    config = site("synthetic:64x48@20", "/no/such/file.mp4")
    plan = make_plan(config, None, seconds=0.2, say=said.append)
    assert said == ["cameras", "detector", "threads", "rehearsal"]
    assert plan.demands[0].fps == 20.0
    assert "c1" in plan.notes[0]
    assert plan.costs.source == "measured now"
    found = {check.what: check for check in verify(config, plan, 2.0)}
    assert found["c0: frames/s"].measured == pytest.approx(20, rel=0.3)
    assert found["c0: frames/s"].planned == pytest.approx(20, rel=0.3)
    assert found["c1: frames/s"].measured == 0


def test_errors_of_a_plan() -> None:
    assert Check("x", 10, 12, 10).error == pytest.approx(0.2)
    assert Check("x", 10, 0, 0).error == 0
    assert Check("x", 10, 1, 0).error == float("inf")


def test_figures_of_a_plan_meet_those_of_the_run() -> None:
    slow, fast = Durations.constant(20.0), Durations.constant(10.0)
    planned = Forecast((CameraForecast("a", 30, 20, 10, slow),), 1.0, 0.5, 0.1, 1.0)
    then = Forecast((CameraForecast("a", 30, 25, 5, fast),), 1.0, 0.5, 0.1, 1.0)
    ran = SiteRun(10.0, {"a": CameraRun(24, 6, fast)}, fast, CpuUse(1.0, 0.0), 3.0)
    found = {check.what: (check.planned, check.then, check.measured) for check in checks(planned, then, ran)}
    assert found == {
        "frames/s": (20, 25, 24),
        "drops/s": (10, 5, 6),
        "a: frames/s": (20, 25, 24),
        "a: drops/s": (10, 5, 6),
        "a: p50 ms": (20, 10, 10),
        "a: p99 ms": (20, 10, 10),
    }
