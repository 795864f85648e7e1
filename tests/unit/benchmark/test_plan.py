"""From a benchmark's file, or from what is measured now, to a plan of a site."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from rich.console import Console

from tests.paths import ROOT
from tests.unit.benchmark.test_files import bench, row
from vision.benchmark.conditions import CpuUse, Machine, ThisSystem, file_sha256, machine
from vision.benchmark.demand import demands
from vision.benchmark.document import Bench, Case, HostCosts, Row
from vision.benchmark.model import CameraForecast, Forecast
from vision.benchmark.pipeline import CameraRun, SiteRun
from vision.benchmark.plan import (
    Check,
    checks,
    costs_of,
    default_slots,
    machine_cores,
    make_plan,
    measure_detector,
    resolved,
    verify,
)
from vision.benchmark.samples import Durations
from vision.benchmark.tables import print_checks, print_plan
from vision.config import AppConfig, CameraConfig, DetectConfig
from vision.detect.detector import SLOTS_GPU, SLOTS_INTEGRATED
from vision.detect.fake import FakeDetector
from vision.detect.open import open_detector
from vision.errors import EXIT_RUNTIME, EXIT_USAGE, ConfigError, SourceError
from vision.runtime.builder import find_model
from vision.types import Frame

MODEL = ROOT / "models" / "nanodet-g-416" / "nanodet-g-416.onnx"


def site(*sources: str, **other: object) -> AppConfig:
    cameras = [{"id": f"c{n}", "source": source} for n, source in enumerate(sources or ("synthetic:64x48@20",))]
    return AppConfig.model_validate({"cameras": cameras, "detect": {"backend": "fake"}, **other})


def stage(
    mode: str, precision: str, batch: int, *, rate: float, ms: float, busy: float, others: float = 0.0, slots: int = 3
) -> Row:
    made = row(Case("stage", mode, slots, precision, batch), rate)
    return replace(made, durations=Durations.constant(ms), cores_busy=busy, cores_others=others)


def gpu_bench(slots: int = 4, **other: object) -> Bench:
    rows = [
        replace(stage(mode, precision, batch, rate=rate * batch, ms=ms, busy=0.5, slots=slots), device_mib=500.0)
        for precision, rate in (("fp16", 1000.0), ("fp32", 400.0))
        for batch in (1, 4, 8)
        for mode, ms in (("slots", 6.0), ("alone", 3.0))
    ]
    return bench(*rows, **{"slots": slots, "parallel": slots - 1, **other})


def here(made: Bench) -> Bench:
    """The same, as if it were of this machine and of the shipped model."""
    return replace(made, machine=machine(ThisSystem()), model_sha256=file_sha256(MODEL))


def test_costs_from_a_file() -> None:
    costs = costs_of(gpu_bench(), site(detect={"precision": "fp16", "max_batch": 8}))
    assert costs.gpu
    assert costs.detector.max_batch == 8
    assert (costs.detector.slots, costs.detector.parallel) == (4, 3)
    assert costs.detector.batches[4].interval_ms == pytest.approx(1.0)
    assert costs.detector.batches[4].alone_ms == 3.0
    assert costs.detector.cores == 0.5
    assert costs.detector.frame_bytes == 768 * 576 * 3
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


def test_others_who_were_there_for_a_moment_do_not_fill_the_plan() -> None:
    rows = [stage(mode, "fp32", 1, rate=10.0, ms=100.0, busy=1.0) for mode in ("slots", "alone")]
    rows += [stage("slots", "fp32", 1, rate=10.0, ms=100.0, busy=1.0, others=1.9, slots=1)]
    made = bench(
        *rows, machine=Machine("Xeon", 2, 8.0), backend="onnxruntime cpu fp32", host=HostCosts(0.1, 0, 0, 0, 5)
    )
    assert costs_of(made, site()).host.cores == 2.0


JETSON = Machine("Orin", 8, 16.0, jetson="Orin Nano, L4T 36.4.7")
NO_STAGE = bench(row(Case("engine", "graph", 1, "fp32", 1)), backend="onnxruntime cpu fp32")
LARGE = gpu_bench(rows=tuple(stage(mode, "fp16", 16, rate=1, ms=1, busy=1, slots=4) for mode in ("slots", "alone")))


@pytest.mark.parametrize(
    ("made", "detect", "hint"),
    [
        (gpu_bench(), {"precision": "bf16"}, "--backend tensorrt --precision bf16 --json"),
        (gpu_bench(), {"precision": "fp16", "batches_in_flight": 5}, "--backend tensorrt --slots 5 --json"),
        (gpu_bench(slots=3), {"precision": "fp16"}, "--backend tensorrt --slots 4 --json"),
        (gpu_bench(slots=4, machine=JETSON), {"precision": "fp16"}, "--backend tensorrt --slots 3 --json"),
        (gpu_bench(slots=3), {"precision": "bf16"}, "--precision bf16 --slots 4 --json"),
        (NO_STAGE, {}, "--backend onnxruntime --parts engine,stage,pipeline --json"),
        (LARGE, {"precision": "fp16"}, "--backend tensorrt --batch 1,2,4,8 --json"),
    ],
    ids=["precision", "slots", "usual slots", "usual slots of a Jetson", "both", "no stage", "batches too large"],
)
def test_what_a_file_lacks_is_said_and_how_to_get_it(made: Bench, detect: dict[str, object], hint: str) -> None:
    with pytest.raises(ConfigError, match="the benchmark has no stage") as caught:
        costs_of(made, site(detect=detect))
    assert hint in caught.value.hint


def test_a_file_with_more_slots_than_usual_is_read_where_the_usual_ones_are() -> None:
    usual, more = gpu_bench(slots=4), gpu_bench(slots=6)
    both = replace(more, rows=usual.rows + more.rows)
    costs = costs_of(both, site(detect={"precision": "fp16"}))
    assert (costs.detector.slots, costs.detector.parallel) == (4, 3)
    assert costs_of(both, site(detect={"precision": "fp16", "batches_in_flight": 6})).detector.slots == 6


@pytest.mark.parametrize("backend", ["fake", "onnxruntime"])
def test_the_usual_slots_are_those_of_the_detector(backend: str) -> None:
    folder, spec = find_model(site())
    with closing(open_detector(folder, spec, DetectConfig.model_validate({"backend": backend}))) as detector:
        assert default_slots(bench(backend=detector.spec.name)) == detector.spec.batches_in_flight


def test_the_usual_slots_are_those_of_tensorrt() -> None:
    assert default_slots(gpu_bench()) == SLOTS_GPU
    assert default_slots(gpu_bench(machine=JETSON)) == SLOTS_INTEGRATED


def test_a_file_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="machine, gpu"):
        make_plan(site(), gpu_bench())
    with pytest.raises(ConfigError, match="another file of it"):
        make_plan(site(), gpu_bench(machine=machine(ThisSystem())))


@pytest.mark.parametrize(
    ("name", "backend", "fault"),
    [
        ("fake", "onnxruntime", "fake, and onnxruntime of"),
        ("onnxruntime cpu fp32", "fake", "onnxruntime, and fake of"),
        ("onnxruntime cpu fp32", "tensorrt", "onnxruntime, and tensorrt of"),
        ("TensorRT-RTX 1.6.1, NVIDIA H100 (sm_90), fp16", "onnxruntime", "tensorrt, and onnxruntime of"),
        ("fake", "auto", "of `detect: {backend: auto}`"),
    ],
)
def test_a_file_of_another_back_end_is_refused(name: str, backend: str, fault: str) -> None:
    with pytest.raises(ConfigError, match="something else: back-end") as caught:
        make_plan(site(detect={"backend": backend}), here(bench(backend=name)))
    assert fault in str(caught.value)
    assert f"--backend {resolved(backend)} " in caught.value.hint


def test_a_plan_from_a_file() -> None:
    detect = {"backend": "tensorrt", "precision": "fp16"}
    plan = make_plan(site("synthetic:64x48@20", "synthetic:64x48@20", detect=detect), here(gpu_bench()), seconds=0.3)
    assert plan.forecast.published_per_s == pytest.approx(40, rel=0.05)
    assert plan.costs.source == "benchmark of 2026-11-22T10:00:00Z"
    assert plan.costs.host.handover.frame.count > 0
    assert any("768x576 bgr" in note for note in plan.notes)
    assert {load.resource for load in plan.loads} == {"decode", "detector", "copy", "results thread"}
    assert plan.as_json()["forecast"]["cameras"][0]["camera_id"] == "c0"


def test_a_plan_from_what_is_measured_now_and_whether_it_is_so() -> None:
    said: list[str] = []
    config = site("synthetic:64x48@20")
    away = CameraConfig(id="c1", source="rtsp://127.0.0.1:1/x", open_timeout_s=1, reader="opencv")
    config = config.model_copy(update={"cameras": (*config.cameras, away)})
    plan = make_plan(config, None, seconds=0.2, say=said.append)
    assert said == ["cameras", "detector", "threads", "hand-overs", "rehearsal"]
    assert plan.demands[0].fps == 20.0
    assert "c1" in plan.notes[0]
    assert plan.costs.source == "measured now"
    assert plan.costs.detector.cores < 2 * machine_cores()
    assert plan.costs.host.handover.frame.count > 0
    assert plan.forecast.cameras[0].latency.p50_ms > plan.costs.host.handover.frame.ms[0]
    found = {check.what: check for check in verify(config, plan, 2.0)}
    assert found["c0: frames/s"].measured == pytest.approx(20, rel=0.3)
    assert found["c0: frames/s"].planned == pytest.approx(20, rel=0.3)
    assert found["c1: frames/s"].measured == 0
    assert found["p99 ms"].measured == found["c0: p99 ms"].measured > 0


def test_detection_is_measured_with_frames_as_the_cameras_send_them() -> None:
    class Formats(FakeDetector):
        """Keeps which formats it was given."""

        seen: ClassVar[set[str]] = set()

        def submit(self, slot: int, frames: Sequence[Frame]) -> None:
            self.seen.update(frame.pixel_format for frame in frames)
            super().submit(slot, frames)

    wanted = demands(site(*["synthetic:64x48@20?format=nv12"] * 2).cameras, ("bgr", "nv12"))
    with closing(Formats()) as detector:
        cost, _ = measure_detector(detector, [np.zeros((72, 64), np.uint8)], wanted, 0.01, threads=None)
    assert Formats.seen == {"nv12"}
    assert cost.frame_bytes == 72 * 64


def test_a_detector_beside_the_cpu_is_not_taken_for_one_that_wants_all_of_it() -> None:
    wanted = demands(site("synthetic:64x48@20").cameras, ("bgr",))
    with closing(FakeDetector(service_ns=5_000_000)) as detector:
        cost, _ = measure_detector(detector, [np.zeros((48, 64, 3), np.uint8)], wanted, 0.1, threads=None)
    assert cost.cores < 0.9 * machine_cores()
    assert cost.batches[1].alone_ms >= 5.0  # whatever others do on this machine


def test_a_recording_that_is_not_there_is_no_camera_to_be_assumed() -> None:
    with pytest.raises(SourceError) as caught:
        make_plan(site("/no/such/file.mp4", "synthetic:64x48", __file__), None)
    assert "c0: " in str(caught.value)
    assert "c2: " in str(caught.value)
    assert "c1: " not in str(caught.value)


def test_errors_of_a_plan() -> None:
    check = Check("x", 15, 12, 10)
    assert check.as_json() == {
        "what": "x",
        "planned": 15,
        "then": 12,
        "measured": 10,
        "error": pytest.approx(0.5),
        "error_then": pytest.approx(0.2),
    }
    assert Check("x", 0, 1, 0).error == 0
    assert Check("x", 0, 1, 0).error_then is None  # and no number that JSON does not know


def test_figures_of_a_plan_meet_those_of_the_run() -> None:
    slow, fast = Durations.constant(20.0), Durations.constant(10.0)
    planned = Forecast((CameraForecast("a", 30, 20, 10, slow),), Durations.constant(21.0), 1.0, 0.5, 0.1, 1.0)
    then = Forecast((CameraForecast("a", 30, 25, 5, fast),), Durations.constant(11.0), 1.0, 0.5, 0.1, 1.0)
    ran = SiteRun(10.0, {"a": CameraRun(24, 6, fast)}, Durations.constant(12.0), CpuUse(1.0, 0.0), 3.0)
    found = {check.what: (check.planned, check.then, check.measured) for check in checks(planned, then, ran)}
    assert found == {
        "frames/s": (20, 25, 24),
        "drops/s": (10, 5, 6),
        "p50 ms": (21, 11, 12),
        "p99 ms": (21, 11, 12),
        "a: frames/s": (20, 25, 24),
        "a: drops/s": (10, 5, 6),
        "a: p50 ms": (20, 10, 10),
        "a: p99 ms": (20, 10, 10),
    }


# ------------------------------------------------------------------------------------------------ the verb


def config_file(folder: Path, source: str) -> Path:
    """A site on the fake back-end."""
    path = folder / "camera.yaml"
    path.write_text(json.dumps({"cameras": [{"id": "a", "source": source}], "detect": {"backend": "fake"}}))
    return path


def plan_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vision.cli.main", "plan", *map(str, arguments), "--seconds", "0.2"]


def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    command = plan_command(config_file(tmp_path, "synthetic:64x48"), "--json", tmp_path / "no" / "plan.json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_USAGE
    assert "cannot be written" in done.stderr
    assert "measuring" not in done.stderr


def test_the_plan_is_written_before_it_is_verified(tmp_path: Path) -> None:
    written = tmp_path / "plan.json"
    command = plan_command(config_file(tmp_path, "synthetic:64x48"), "--verify", 600, "--json", written)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline_s = time.monotonic() + 60
            while not written.exists() and process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.1)
            assert written.exists()
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
    assert code == 128 + signal.SIGINT
    plan = json.loads(written.read_text())
    assert plan["forecast"]["latency"]["count"] > 0
    assert "checks" not in plan


def test_a_recording_that_is_not_there_ends_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        plan_command(config_file(tmp_path, str(tmp_path / "none.mp4"))), capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_RUNTIME
    assert "none.mp4" in done.stderr


def test_what_is_printed_of_a_plan_and_of_a_run_beside_it() -> None:
    console = Console(file=StringIO(), width=200)
    plan = make_plan(site("synthetic:64x48@20"), None, seconds=0.1)
    print_plan(plan, console)
    print_checks([Check("p99 ms", 15, 12, 10), Check("drops/s", 1, 1, 0)], console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    of_all = next(line.split() for line in printed.splitlines() if line.startswith("all "))
    assert of_all[-2:] == [f"{plan.forecast.latency.p50_ms:.1f}", f"{plan.forecast.latency.p99_ms:.1f}"]
    lines = [line.split() for line in printed.splitlines()]
    assert ["p99", "ms", "15", "10", "+50%", "12", "+20%"] in lines
    assert ["drops/s", "1", "0", "-", "1", "-"] in lines
