"""Durations, the file of a benchmark, and two of them beside each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.errors import ConfigError
from vision.performance.compare import comparability, compare, noise, verdict
from vision.performance.conditions import Clocks, Machine
from vision.performance.document import Bench, Case, DecodeCost, HostCosts, Row, load_bench
from vision.performance.samples import Durations


def row(case: Case, rate: float = 100.0, p99_ms: float = 10.0, **other: float) -> Row:
    times = Durations(1000, 8.0, 1.0, 5.0, 8.0, 9.0, p99_ms, 20.0)
    return Row(case, times, rate, 1.0, 0.0, 200.0, None, Clocks(cpu_mhz=2000.0), **other)


STAGE = Case("stage", "slots", 2, "fp16", 8)
PIPELINE = Case("pipeline", "full", 16, "fp16", 8)


def bench(*rows: Row, **other: object) -> Bench:
    given = {
        "model": "nanodet-g-416",
        "model_sha256": "ab" * 32,
        "input": "416x416",
        "backend": "TensorRT-RTX 1.6.1, NVIDIA H100 (sm_90), fp16",
        "slots": 3,
        "parallel": 2,
        "picture": "768x576 bgr",
        "seconds": 2.0,
        "measured_at": "2026-11-22T10:00:00Z",
        "machine": Machine("Xeon", 16, 128.0, "NVIDIA H100"),
        "versions": {"python": "3.12.3", "vision": "0.1.0"},
        "host": HostCosts(16.0, 0.1, 0.05, 0.05, 5, 30.0, (DecodeCost("path", 768, 576, 2.0, 0.5, 3.0),)),
        "rows": rows or (row(STAGE), row(PIPELINE, offered_per_s=150.0)),
    }
    return Bench(**(given | other))  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=500))
def test_durations_are_exact(durations_ns: list[int]) -> None:
    found = Durations.of(durations_ns)
    ms = np.array(durations_ns) / 1e6
    assert found.count == len(ms)
    assert (found.min_ms, found.max_ms) == (ms.min(), ms.max())
    assert found.mean_ms == pytest.approx(ms.mean())
    assert found.std_ms == pytest.approx(ms.std(), abs=1e-6)
    assert found.p50_ms in ms
    assert found.p99_ms in ms
    assert found.min_ms <= found.p50_ms <= found.p95_ms <= found.p99_ms <= found.max_ms
    assert found.quantile_ms(0) == found.min_ms
    assert found.quantile_ms(1) == found.max_ms


def test_no_durations() -> None:
    assert Durations.of([]).count == 0
    assert Durations.of([]).max_ms == 0.0
    assert Durations.constant(4.0).quantile_ms(0.7) == 4.0


def test_a_file_is_what_was_saved(tmp_path: Path) -> None:
    saved = bench()
    saved.save(tmp_path / "a.json")
    assert load_bench(tmp_path / "a.json") == saved
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == "vision.bench/1"


def test_fields_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    document = json.loads(bench().text())
    document["weather"] = "rain"
    document["rows"][0]["moon"] = "full"
    document["rows"][0]["clocks"]["npu_mhz"] = 1
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert load_bench(tmp_path / "a.json") == bench()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read"),
        ("not json", "is no benchmark"),
        ("[]", "expected a file of the schema"),
        ('{"schema": "vision.bench/2"}', "vision.bench/2"),
        ('{"schema": "vision.bench/1"}', "damaged"),
        ('{"schema": "vision.bench/1", "host": {}, "machine": {}, "rows": []}', "damaged"),
        ('{"schema": "vision.bench/1", "host": 5, "machine": {}, "rows": []}', "damaged"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        load_bench(path)


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        bench().save(tmp_path / "no" / "a.json")


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ({"model": "yolo"}, "model: 'nanodet-g-416' and 'yolo'"),
        ({"model_sha256": "cd" * 32}, "sha256"),
        ({"backend": "onnxruntime cpu fp32"}, "back-end"),
        ({"picture": "1920x1080 nv12"}, "picture"),
        ({"machine": Machine("Xeon", 16, 128.0, "NVIDIA H200")}, "machine, gpu: NVIDIA H100 and NVIDIA H200"),
        ({"machine": Machine("Xeon", 16, 128.0, "NVIDIA H100", power_mode="15W (1)")}, "power_mode"),
        ({"versions": {"python": "3.12.3", "vision": "0.1.0", "driver": "580"}}, "version, driver: none and 580"),
    ],
)
def test_what_cannot_be_compared(other: dict[str, object], fault: str) -> None:
    found = comparability(bench(), bench(**other))
    assert len(found.faults) == 1
    assert fault in found.faults[0]


def test_another_vision_is_what_comparing_is_for() -> None:
    other = bench(versions={"python": "3.12.3", "vision": "0.2.0"}, measured_at="2026-12-01T00:00:00Z")
    assert comparability(bench(), other).faults == ()


def test_the_precision_of_the_last_detector_does_not_matter() -> None:
    other = bench(backend="TensorRT-RTX 1.6.1, NVIDIA H100 (sm_90), fp32")
    assert comparability(bench(), other).faults == ()


@pytest.mark.parametrize(
    ("clocks", "cores", "doubt"),
    [
        (Clocks(cpu_mhz=1800.0), 16.0, "CPU clock: 2000 and 1800 MHz"),
        (Clocks(cpu_mhz=2000.0, throttled="power cap"), 16.0, "held down by power cap"),
        (Clocks(cpu_mhz=2000.0), 9.5, "9.5 of 16 cores could be had"),
    ],
)
def test_what_can_be_compared_with_care(clocks: Clocks, cores: float, doubt: str) -> None:
    other = bench(replace(row(STAGE), clocks=clocks), host=replace(bench().host, cores=cores))
    found = comparability(bench(), other)
    assert found.faults == ()
    assert len(found.doubts) == 1
    assert doubt in found.doubts[0]


def test_cases_meet_their_like() -> None:
    engine = Case("engine", "graph", 1, "fp16", 8)
    both, only_a, only_b = compare(bench(row(STAGE, 100), row(engine)), bench(row(STAGE, 150), row(PIPELINE)))
    assert [one.case for one in both] == [STAGE]
    assert both[0].rate_ratio == 1.5
    assert both[0].verdict == "faster"
    assert (only_a, only_b) == ((engine,), (PIPELINE,))


@pytest.mark.parametrize(
    ("rate", "p99", "expected"),
    [
        (1.0, 1.0, "same"),
        (1.029, 1.0, "same"),
        (0.972, 1.0, "same"),
        (1.04, 1.0, "faster"),
        (0.96, 1.0, "slower"),
        (1.0, 1.2, "same, p99 worse"),
        (1.0, 0.8, "same, p99 better"),
        (1.5, 2.0, "faster, p99 worse"),
        (float("inf"), 1.0, "faster"),
        (0.0, 1.0, "slower"),
    ],
)
def test_verdicts(rate: float, p99: float, expected: str) -> None:
    assert verdict(rate, p99, 0.03) == expected


def test_few_samples_that_scatter_prove_little() -> None:
    steady = row(STAGE)
    times = replace(steady.durations, count=10, std_ms=4.0)
    assert noise(steady, steady) == 0.03
    assert noise(steady, replace(steady, durations=times)) == pytest.approx(2 * 0.5 / 10**0.5, rel=0.01)


def test_nothing_over_nothing_is_the_same() -> None:
    both, _, _ = compare(bench(row(STAGE, 0.0)), bench(row(STAGE, 0.0)))
    assert both[0].verdict == "same"
    both, _, _ = compare(bench(row(STAGE, 0.0)), bench(row(STAGE, 5.0)))
    assert both[0].verdict == "faster"
