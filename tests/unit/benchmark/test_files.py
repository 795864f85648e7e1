"""Tests of durations, benchmark files, comparisons of two benchmark files, and tables."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.paths import ROOT
from vision.benchmark.compare import comparability, compare, noise, verdict
from vision.benchmark.conditions import Clocks, Machine
from vision.benchmark.document import Bench, Case, Row, check_writable, load_bench
from vision.benchmark.loops import Durations, relative_error
from vision.benchmark.tables import print_bench, print_comparison
from vision.errors import ConfigError


def row(case: Case, rate: float = 100.0, p99_ms: float = 10.0, **other: float) -> Row:
    times = Durations(1000, 8.0, 1.0, 5.0, 8.0, 9.0, p99_ms, 20.0, 9.0, 20.0)
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
        "frame": "768x576 bgr",
        "seconds": 2.0,
        "measured_at": "2026-11-22T10:00:00Z",
        "machine": Machine("Xeon", 16, 128.0, "NVIDIA H100"),
        "versions": {"python": "3.12.3", "vision": "0.1.0"},
        "cores_available": 16.0,
        "source": "vtest.mp4",
        "rows": rows or (row(STAGE), row(PIPELINE, offered_per_s=150.0)),
    }
    return Bench(**(given | other))  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=500))
def test_durations_have_exact_statistics(durations_ns: list[int]) -> None:
    found = Durations.of(durations_ns)
    ms = np.array(durations_ns) / 1e6
    assert found.count == len(ms)
    assert (found.min_ms, found.max_ms) == (ms.min(), ms.max())
    assert found.mean_ms == pytest.approx(ms.mean())
    assert found.std_ms == pytest.approx(ms.std(), abs=1e-6)
    assert found.p50_ms in ms
    assert found.p99_ms in ms
    assert found.min_ms <= found.p50_ms <= found.p95_ms <= found.p99_ms <= found.max_ms


def test_durations_without_samples_are_zero() -> None:
    assert Durations.of([]).count == 0
    assert Durations.of([]).max_ms == 0.0


def test_written_file_is_read_back(tmp_path: Path) -> None:
    saved = bench()
    (tmp_path / "a.json").write_text(saved.text())
    assert load_bench(tmp_path / "a.json") == saved
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == "vision.bench/1"


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    document = json.loads(bench().text())
    document["weather"] = "rain"
    document["rows"][0]["moon"] = "full"
    document["rows"][0]["clocks"]["npu_mhz"] = 1
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert load_bench(tmp_path / "a.json") == bench()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, ""),
        ("not json", "no-benchmark"),
        ("[]", "no-benchmark"),
        ('{"schema": "vision.bench/2"}', "no-benchmark"),
        ('{"schema": "vision.bench/1", "model": 1e999}', "no-benchmark"),
        ('{"schema": "vision.bench/1"}', "no-benchmark"),
        ('{"schema": "vision.bench/1", "machine": {}, "rows": []}', "no-benchmark"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, code: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_bench(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def damage(document: Any, keys: tuple[str | int, ...], value: object) -> None:
    for key in keys[:-1]:
        document = document[key]
    document[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "path"),
    [
        (("rows", 0, "case", "part"), "foo", "$.rows[...].case.part"),
        (("rows", 1, "frames_per_s"), "12", "$.rows[...].frames_per_s"),
        (("rows", 0, "durations", "p99_ms"), None, "$.rows[...].durations.p99_ms"),
        (("rows", 0, "durations", "count"), 1.5, "$.rows[...].durations.count"),
        (("rows", 0, "clocks", "gpu_mhz"), True, "$.rows[...].clocks.gpu_mhz"),
        (("rows", 0, "case", "batch"), 0, "$.rows[...].case.batch"),
        (("rows",), {}, "$.rows"),
        (("versions",), [], "$.versions"),
        (("versions", "python"), 3, "$.versions[...]"),
        (("frame",), "odd", "$.frame"),
        (("frame",), "0x576 bgr", "$.frame"),
        (("notes",), ["a", 5], "$.notes[...]"),
    ],
)
def test_damaged_field_is_named(tmp_path: Path, keys: tuple[str | int, ...], value: object, path: str) -> None:
    document = json.loads(bench().text())
    damage(document, keys, value)
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError) as caught:
        load_bench(tmp_path / "a.json")
    assert f"`{path}`" in re.sub(r"\[\d+\]", "[...]", str(caught.value))


def test_committed_results_are_read(tmp_path: Path) -> None:
    results = ROOT / "tests" / "perf" / "results"
    documents = [json.loads(file.read_text())["figures"] for file in results.glob("*/bench_*.json")]
    assert documents
    for document in documents:
        (tmp_path / "a.json").write_text(json.dumps(document))
        assert len(load_bench(tmp_path / "a.json").rows) == len(document["rows"])


def test_check_writable_refuses_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "not-yet.json")
    for path in (tmp_path / "new.json", tmp_path / "there.json", tmp_path / "link.json", Path("-"), Path("/dev/null")):
        check_writable(path)
    assert (tmp_path / "there.json").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"there.json", "link.json"}
    for path in (tmp_path, tmp_path / "no" / "a.json", Path("/proc/a.json"), Path("/dev/null/a.json")):
        with pytest.raises(ConfigError) as caught:
            check_writable(path)
        assert caught.value.code == "not-writable"


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ({"model": "yolo"}, "model: 'nanodet-g-416' and 'yolo'"),
        ({"model_sha256": "cd" * 32}, "sha256"),
        ({"backend": "onnxruntime cpu fp32"}, "back-end"),
        ({"frame": "1920x1080 nv12"}, "frame"),
        ({"source": "street.mp4"}, "source: 'vtest.mp4' and 'street.mp4'"),
        ({"machine": Machine("Xeon", 16, 128.0, "NVIDIA H200")}, "machine, gpu: NVIDIA H100 and NVIDIA H200"),
        ({"machine": Machine("Xeon", 16, 128.0, "NVIDIA H100", power_mode="15W (1)")}, "power_mode"),
        ({"versions": {"python": "3.12.3", "vision": "0.1.0", "driver": "580"}}, "version, driver: none and 580"),
    ],
)
def test_other_conditions_are_not_comparable(other: dict[str, object], fault: str) -> None:
    found = comparability(bench(), bench(**other))
    assert len(found.faults) == 1
    assert fault in found.faults[0]


def test_other_version_of_vision_is_comparable() -> None:
    other = bench(versions={"python": "3.12.3", "vision": "0.2.0"}, measured_at="2026-12-01T00:00:00Z")
    assert comparability(bench(), other).faults == ()


def test_precision_of_the_last_detector_is_not_compared() -> None:
    other = bench(backend="TensorRT-RTX 1.6.1, NVIDIA H100 (sm_90), fp32")
    assert comparability(bench(), other).faults == ()


@pytest.mark.parametrize(
    ("clocks", "cores", "doubt"),
    [
        (Clocks(cpu_mhz=1800.0), 16.0, "CPU clock: 2000 and 1800 MHz"),
        (Clocks(cpu_mhz=2000.0, throttled="power cap"), 16.0, "throttled (power cap)"),
        (Clocks(cpu_mhz=2000.0), 9.5, "9.5 of 16 cores were available"),
    ],
)
def test_other_clocks_and_busy_cores_are_doubts(clocks: Clocks, cores: float, doubt: str) -> None:
    other = bench(replace(row(STAGE), clocks=clocks), cores_available=cores)
    found = comparability(bench(), other)
    assert found.faults == ()
    assert len(found.doubts) == 1
    assert doubt in found.doubts[0]


def test_compare_matches_equal_cases() -> None:
    engine = Case("engine", "graph", 1, "fp16", 8)
    both, only_a, only_b = compare(bench(row(STAGE, 100), row(engine)), bench(row(STAGE, 150), row(PIPELINE)))
    assert [one.case for one in both] == [STAGE]
    assert both[0].rate_ratio == 1.5
    assert both[0].verdict == "faster"
    assert (only_a, only_b) == ((engine,), (PIPELINE,))


@pytest.mark.parametrize(
    ("rate", "p99", "by_chance", "expected"),
    [
        (1.0, 1.0, False, "same"),
        (1.029, 1.0, False, "same"),
        (0.972, 1.0, False, "same"),
        (1.04, 1.0, False, "faster"),
        (0.96, 1.0, False, "slower"),
        (1.0, 1.2, False, "same, p99 worse"),
        (1.0, 0.8, False, "same, p99 better"),
        (1.0, 1.2, True, "same"),
        (1.5, 2.0, False, "faster, p99 worse"),
        (float("inf"), 1.0, False, "faster"),
        (0.0, 1.0, False, "slower"),
        (1.5, None, False, "faster"),
        (None, 2.0, False, "p99 worse"),
        (None, 1.0, False, ""),
    ],
)
def test_verdict_of_throughput_and_p99(rate: float | None, p99: float | None, by_chance: bool, expected: str) -> None:
    assert verdict(rate, 0.03, p99, by_chance=by_chance) == expected


def test_noise_grows_with_the_errors_of_the_rates() -> None:
    steady, shaky = row(STAGE, rate_error=0.001), row(STAGE, rate_error=0.04)
    assert noise(steady, steady) == 0.03
    assert noise(steady, shaky) == pytest.approx(0.12, rel=0.01)


def test_compare_handles_zero_throughput() -> None:
    both, _, _ = compare(bench(row(STAGE, 0.0)), bench(row(STAGE, 0.0)))
    assert both[0].verdict == "same"
    both, _, _ = compare(bench(row(STAGE, 0.0)), bench(row(STAGE, 5.0)))
    assert both[0].verdict == "faster"


def test_few_samples_have_no_p99_ratio() -> None:
    rows = (row(STAGE, p99_ms=10.0), row(STAGE, p99_ms=90.0))
    few = [replace(one, durations=replace(one.durations, count=199)) for one in rows]
    (one,), _, _ = compare(bench(few[0]), bench(few[1]))
    assert (one.p99_ratio, one.verdict, one.count) == (None, "same", 199)


def test_p99_verdict_needs_more_than_chance() -> None:
    def measured(slow: int, slow_ms: float) -> Row:
        times = Durations.of([10_000_000] * (1000 - slow) + [round(slow_ms * 1e6)] * slow)
        return replace(row(STAGE), durations=times)

    for slow, expected in ((12, "same"), (40, "same, p99 worse")):  # 12 of 1000 can be chance: 10 determine the p99
        (one,), _, _ = compare(bench(measured(0, 0.0)), bench(measured(slow, 20.0)))
        assert one.p99_ratio == 2.0
        assert one.verdict == expected


def test_dependent_samples_widen_the_limits_of_p99() -> None:
    late = [10_000_000] * 970 + [20_000_000] * 30
    alone, together = Durations.of(late), Durations.of(late, independent=100)
    assert (alone.p99_low_ms, alone.p99_high_ms) == (20.0, 20.0)
    assert (together.p99_low_ms, together.p99_high_ms) == (10.0, 20.0)


def test_half_load_has_no_rate_ratio() -> None:
    half = replace(PIPELINE, mode="half")
    (one,), _, _ = compare(bench(row(half, 50.0)), bench(row(half, 90.0)))
    assert (one.rate_ratio, one.verdict) == (None, "")


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "narrow": lambda random, n: random.gamma(100, 0.01, n),
    "wide": lambda random, n: random.gamma(25, 0.04, n),
    "long tail": lambda random, n: random.lognormal(0, 0.5, n),
    "rare pauses": lambda random, n: 1 + 0.02 * random.standard_normal(n) + 5 * (random.random(n) < 0.01),
}


@pytest.mark.integration
@pytest.mark.parametrize("count", [20, 80, 400])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_equal_distributions_rarely_get_a_verdict(name: str, count: int) -> None:
    random = np.random.default_rng(7)

    def measured() -> Row:
        times_ns = (DISTRIBUTIONS[name](random, count) * 25e6).astype(int).tolist()
        times = Durations.of(times_ns)
        return replace(row(STAGE, 1e3 / times.mean_ms), durations=times, rate_error=relative_error(times_ns))

    rounds = 1000
    said = [compare(bench(measured()), bench(measured()))[0][0].verdict for _ in range(rounds)]
    assert sum("p99" in each for each in said) <= 0.05 * rounds
    assert sum(not each.startswith("same") for each in said) <= 0.05 * rounds


def test_relative_error_of_a_mean_considers_dependent_samples() -> None:
    assert relative_error([]) is None
    assert relative_error([5]) is None
    assert relative_error([0, 0]) is None
    assert relative_error([4, 4, 4]) == 0
    assert relative_error([1, 3]) == pytest.approx(0.5)
    # A cause that slows many samples in a row counts once: 10 slow and 10 fast samples are hardly more than two.
    in_turn, in_a_row = [1.0, 3.0] * 10, [1.0] * 10 + [3.0] * 10
    assert relative_error(in_turn) == 0
    assert (relative_error(in_a_row) or 0) > 0.15


# ------------------------------------------------------------------------------------------------ tables


def printed(*rows: Row, **other: object) -> str:
    file = io.StringIO()
    print_bench(bench(*rows, **other), Console(file=file, width=80))
    return file.getvalue()


def wide(part: Any, mode: str, lanes: int, precision: str = "fp16", **other: float) -> Row:
    one = row(Case(part, mode, lanes, precision, 256), 27428.4, **other)
    times = Durations(16000, 0.123, 0.123, 0.123, 0.123, 1234.0, 1234.0, 1234.0, 1234.0, 1234.0)
    return replace(one, durations=times, device_mib=12345.0, rss_mib=12345.0, cores_others=9.0)


def test_tables_fit_80_columns() -> None:
    rows = [
        wide("engine", "graph", 2),
        wide("stage", "alone", 8),
        wide("pipeline", "full", 32, offered_per_s=27428.4, dropped_per_s=1234.0, objects_per_frame=100.0),
    ]
    text = printed(*rows, *(replace(one, case=replace(one.case, precision="fp32")) for one in rows))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for case in ("2 streams, graph*", "1 of 8, paused*", "full, 32 cameras*"):
        assert text.count(case) == 4  # times and conditions, of two precisions
    for title in ("network alone, fp16: ", "network alone, fp32: ", "whole program, fp32: "):
        assert text.count(title) == 2
    assert text.count("16000") == 6  # samples


def test_clocks_are_one_line_with_ranges() -> None:
    rows = [replace(row(replace(STAGE, batch=n)), clocks=Clocks(2000.0, 1980.0, load=n / 10)) for n in (1, 2, 4)]
    text = printed(*rows)
    assert text.count("MHz") == 2
    (line,) = [line for line in text.splitlines() if "MHz" in line]
    assert [part for part in ("2000 MHz", "1980 MHz", "0.1", "0.4") if part not in line] == []


def test_p99_of_few_samples_is_not_printed() -> None:
    times = Durations(199, 8.0, 1.0, 5.0, 8.0, 9.0, 10.7, 20.0, 9.0, 20.0)
    assert "10.7" not in printed(replace(row(STAGE), durations=times))
    assert "10.7" in printed(replace(row(STAGE), durations=replace(times, count=200)))


def test_objects_per_frame_are_printed() -> None:
    text = printed(row(STAGE, objects_per_frame=9.2), row(PIPELINE, objects_per_frame=8.7))
    assert "9.2" in text
    assert "8.7" in text


def test_heading_has_a_precision_only_if_there_is_one() -> None:
    both = (row(STAGE), row(replace(STAGE, precision="fp32")))
    assert "(sm_90);" in printed(*both, backend="TensorRT-RTX 1.6.1, NVIDIA H100 (sm_90), fp32")
    assert "(sm_90), fp16;" in printed(row(STAGE))


def test_rows_with_other_busy_programs_are_marked() -> None:
    busy, quiet = replace(row(STAGE), cores_others=1.7), replace(row(STAGE), cores_others=1.5)
    able = comparability(bench(quiet), bench(busy, quiet))
    (doubt,) = able.doubts
    assert "1.7" in doubt
    assert "1 of 2" in doubt
    file = io.StringIO()
    print_comparison(able, compare(bench(quiet), bench(busy)), ("a.json", "b.json"), Console(file=file, width=80))
    assert "2 in flight*" in file.getvalue()
    assert comparability(bench(quiet), bench(quiet)).doubts == ()
    assert "2 in flight*" not in printed(quiet)


def test_last_line_is_the_result() -> None:
    rows = [row(replace(STAGE, lanes=lanes), rate) for lanes, rate in ((1, 15.0), (2, 24.0), (3, 22.0))]
    alone = row(Case("stage", "alone", 3, "fp16", 8), 99.0)
    last = printed(*rows, alone, row(PIPELINE, 9.0)).rstrip().rpartition("\n\n")[2]
    last = " ".join(last.split())
    assert [part for part in ("15", "24", "2 in flight", "batch 8") if part not in last] == []


def test_file_without_rows_is_printed() -> None:
    file = io.StringIO()
    print_bench(replace(bench(), rows=()), Console(file=file, width=80))
    assert "nanodet-g-416" in file.getvalue()


def test_result_without_a_stage_has_the_rate_of_the_program() -> None:
    assert "9 frames/s" in printed(row(PIPELINE, 9.0))
