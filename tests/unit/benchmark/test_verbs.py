"""Tests that run `vision build`, `bench`, `profile`, and `plan` as programs on a machine without a GPU."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError

from tests.unit.benchmark.test_files import STAGE, bench, row
from tests.unit.cli.in_process import call
from tests.unit.engine_models import needs_tensorrt
from vision.benchmark.bench import load_gpu
from vision.benchmark.document import load_bench
from vision.cli.bench import PRECISIONS
from vision.cli.options import (
    MAX_BATCH,
    MAX_BATCHES_IN_FLIGHT,
    parse_seconds,
    start_nvtx,
    values_parser,
)
from vision.config import DetectConfig, shipped_models
from vision.errors import VisionError
from vision.metrics import send_spans

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "vision.cli.main", "--log-level", "warning"]
MODEL = "nanodet-g-416"
INTEGERS = values_parser(range(1, 257), "whole numbers")
WORDS = values_parser(PRECISIONS, "precisions")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return call("--log-level", "warning", *arguments)


without_gpu = pytest.mark.skipif(load_gpu("auto")[0] is not None, reason="tests the behaviour without a GPU")


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (INTEGERS, "1,2,8", (1, 2, 8)),
        (INTEGERS, " 4 , 4 ", (4,)),
        (WORDS, "fp16,fp32", ("fp16", "fp32")),
        (parse_seconds, "2", 2.0),
        (parse_seconds, "0.5s", 0.5),
    ],
)
def test_arguments_are_parsed(parse: Callable[[str], object], text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (INTEGERS, "0"),
        (INTEGERS, "1,x"),
        (INTEGERS, ","),
        (WORDS, "fp17"),
        (parse_seconds, "0"),
        (parse_seconds, "soon"),
        (parse_seconds, "99999"),
    ],
)
def test_wrong_arguments_are_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse(text)


def test_benchmark_limits_equal_those_of_the_configuration() -> None:
    DetectConfig(max_batch=MAX_BATCH, batches_in_flight=MAX_BATCHES_IN_FLIGHT)
    with pytest.raises(ValidationError) as caught:
        DetectConfig(max_batch=MAX_BATCH + 1, batches_in_flight=MAX_BATCHES_IN_FLIGHT + 1)
    assert caught.value.error_count() == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", MODEL, "--batch", "many"),
        ("bench", MODEL, "--parts", "all"),
        ("profile",),
        ("profile", MODEL, "--precision", "fp17"),
        ("plan",),
        ("build",),
        ("build", MODEL, "--json"),
        ("build", MODEL, "--level", "9"),
        ("build", MODEL, "--max-batch", "0"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage: vision" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("bench", MODEL, "--batch", "300"), "300"),
        (("bench", MODEL, "--batches-in-flight", "9"), "--batches-in-flight'"),
        (("bench", MODEL, "--plot", "a.txt"), ".svg"),
        (("bench", MODEL, "--plot", "/no/such/a.svg"), "/no/such/a.svg"),
        (("bench", MODEL, "--json", "/no/such/a.json"), "/no/such/a.json"),
        (("bench", MODEL, "--json", "/"), os.strerror(errno.EISDIR)),
        (("bench", MODEL, "--source", "/no/such.mp4"), "/no/such.mp4"),
        (("bench", MODEL, "--source", "ftp://a/b"), "--source'"),
        (("bench", MODEL, "--source", "synthetic:9x9?moon=1"), "'moon'"),
        (("bench", "--compare", "a", "b", "--json", "c", "--plot", "d.svg"), "--plot"),
        (("bench", MODEL, "--compare", "a", "b"), "MODEL"),
        (("bench", MODEL, "--read", "a"), "MODEL"),
        (("build", "--for-gpu", "87", MODEL), "--for-gpu"),
        (("profile",), "MODEL"),
        (("profile", MODEL, "--batch", "300"), "256"),
        (("profile", MODEL, "--trace", "/no/such/t.json"), "/no/such/t.json"),
        (("profile", MODEL, "--trace", "/"), os.strerror(errno.EISDIR)),
        (("profile", MODEL, "--json", "/proc/p.json"), "/proc/p.json"),
        (("profile", "--config", "demo", "--batch", "9"), "--batch"),
    ],
)
def test_wrong_arguments_are_refused_before_measuring(arguments: tuple[str, ...], expected: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("bench", MODEL, "--source", "synthetic:101x77", "--format", "nv12"), "nv12"),
        (("bench", MODEL, "--backend", "onnxruntime", "--batch", "4", "--parts", "stage"), "onnxruntime"),
        (("bench", MODEL, "--backend", "onnxruntime", "--format", "nv12", "--parts", "stage"), "bgr"),
        (("bench", "nanodet-g-461"), "'nanodet-g-416'"),
        (("plan", "dmeo"), "demo"),
    ],
)
def test_wrong_input_ends_with_one_error(arguments: tuple[str, ...], expected: str) -> None:
    done = run(*arguments)
    assert done.returncode in (1, 78)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@without_gpu
@pytest.mark.parametrize(
    "arguments",
    [("build", MODEL), ("bench", MODEL, "--backend", "tensorrt"), ("profile", MODEL, "--backend", "tensorrt")],
)
def test_commands_that_need_a_gpu_print_a_hint(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode in (75, 78)  # 75 if only the driver is missing
    assert "hint:" in done.stderr


def run_into_full_disk(*arguments: str | Path, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)], env=environment, stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=100, check=False,
        )  # fmt: skip


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("schema",), ("models",), ("profile", MODEL, "--print-nsys")])
def test_full_disk_is_reported_in_one_line(arguments: tuple[str, ...], unbuffered: str) -> None:
    done = run_into_full_disk(*arguments, unbuffered=unbuffered)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert os.strerror(errno.ENOSPC) in done.stderr


# ------------------------------------------------------------------------------------------------ NVTX


def test_nvtx_is_enabled_by_flag_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvtx")
    from vision import metrics

    try:
        for asked, variable, expected in (
            (False, "", False),
            (False, "0", False),
            (False, "1", True),
            (True, "", True),
        ):
            send_spans(None)
            monkeypatch.setenv("VISION_NVTX", variable)
            start_nvtx(asked)
            assert (metrics.span("x") is not metrics.span("y")) is expected
    finally:
        send_spans(None)


def test_missing_nvtx_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(VisionError) as caught:
        start_nvtx(True)
    assert caught.value.code == "nvtx-missing"


def test_run_accepts_nvtx(tmp_path: Path) -> None:
    pytest.importorskip("nvtx")
    config = tmp_path / "camera.yaml"
    config.write_text(json.dumps(make_config(tmp_path)))
    done = run("run", config, "--for", "1s", "--nvtx")
    assert done.returncode == 0, done.stderr


def make_config(folder: Path) -> dict[str, object]:
    return {
        "cameras": [{"id": "gate", "source": "synthetic:160x120@20"}],
        "detect": {"backend": "fake"},
        "publish": {"bind": f"ipc://{folder}/out"},
    }


# ------------------------------------------------------------------------------------------------ build


def test_empty_cache_is_listed_and_pruned(tmp_path: Path) -> None:
    done = run("build", "--list", "--prune", "--cache", tmp_path / "engines")
    assert done.returncode == 0, done.stderr
    listed = run("build", "--list", "--json", "--cache", tmp_path / "engines")
    assert json.loads(listed.stdout)["engines"] == []


@needs_tensorrt
def test_engine_for_another_gpu_is_built_once_and_listed(tmp_path: Path) -> None:
    from vision.engine.library import supported_capabilities

    if (8, 9) not in supported_capabilities():
        pytest.skip("only TensorRT-RTX builds for a GPU that is not there")
    cache = tmp_path / "engines"
    build = ("build", MODEL, "--for-gpu", "RTX 4090:89", "--max-batch", "2", "--precision", "fp32", "--cache", cache)
    first = run(*build, "--list")
    assert first.returncode == 0, first.stderr
    assert "RTX 4090" in first.stdout
    (engine,) = cache.glob("*.engine")
    before = engine.stat().st_ino
    assert run(*build).returncode == 0
    assert engine.stat().st_ino == before, "it is not built again"


# ------------------------------------------------------------------------------------------------ bench


def test_bench_of_the_fake_back_end_writes_rows_and_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, plot = tmp_path / "a.json", tmp_path / "a.png"
    source = "synthetic:64x48?objects=5"  # more objects than the frames of synthetic cameras have
    small = ("--backend", "fake", "--batch", "4", "--batches-in-flight", "1,2", "--seconds", "0.1", "--source", source)
    done = run("bench", MODEL, *small, "--json", file, "--plot", plot)
    assert done.returncode == 0, done.stderr
    measured = load_bench(file)
    assert {row.case.part for row in measured.rows} == {"stage", "pipeline"}
    assert {(row.case.lanes, row.case.batch) for row in measured.rows_of("stage") if row.case.mode == "slots"} == {
        (1, 4), (2, 4),
    }  # fmt: skip
    assert [row.case.mode for row in measured.rows_of("pipeline")] == ["full", "half"]
    assert all(row.frames_per_s > 0 and row.rss_mib > 0 for row in measured.rows)
    assert all(row.objects_per_frame == 5 for row in measured.rows)
    assert all(row.rate_error is not None for row in measured.rows)
    assert measured.frame == "64x48 bgr"
    assert measured.source == source
    assert measured.settings["max_batch"] == 8  # the value of `vision run`, although no batch is so large
    assert measured.cores_available > 0
    assert "stage" in done.stdout
    assert len(done.stderr.splitlines()) >= len(measured.rows), "a line of progress for each row"
    assert plot.stat().st_size > 1000


def test_files_are_written_even_if_the_table_cannot_be_printed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, plot = tmp_path / "a.json", tmp_path / "a.png"
    small = ["--backend", "fake", "--batch", "1", "--batches-in-flight", "1", "--seconds", "0.05", "--parts", "stage"]
    assert run_into_full_disk("bench", MODEL, *small, "--json", file, "--plot", plot).returncode == 1
    assert len(load_bench(file).rows) == 2
    assert plot.stat().st_size > 1000


def test_table_is_printed_even_if_the_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(bench().text())
    done = run("bench", "--read", tmp_path / "a.json", "--json", "/dev/full")
    assert done.returncode == 75
    assert "/dev/full" in done.stderr
    assert os.strerror(errno.ENOSPC) in done.stderr
    assert "2 in flight" in done.stdout


def test_bench_of_onnxruntime_measures_the_formats_and_batches_it_supports(tmp_path: Path) -> None:
    done = run("bench", MODEL, "--backend", "onnxruntime", "--batch", "1,2", "--batches-in-flight", "2",
               "--seconds", "0.2", "--parts", "engine,stage", "--format", "bgrx", "--json", "-")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (tmp_path / "a.json").write_text(done.stdout)
    measured = load_bench(tmp_path / "a.json")  # standard output holds nothing but JSON
    assert measured.backend == "onnxruntime cpu fp32"
    engines = [(row.case.mode, row.case.lanes, row.case.batch) for row in measured.rows_of("engine")]
    assert engines == [("eager", 1, 1), ("eager", 2, 1), ("eager", 1, 2), ("eager", 2, 2)]
    assert {row.case.batch for row in measured.rows_of("stage")} == {1}
    assert measured.notes
    assert measured.frame == "768x576 bgrx"
    assert measured.rows_of("pipeline") == ()


def test_compare_prints_a_verdict(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(bench(row(STAGE, 100.0)).text())
    b.write_text(bench(row(STAGE, 150.0)).text())
    done = run("bench", "--compare", a, b)
    assert done.returncode == 0, done.stderr
    assert "1.500" in done.stdout
    assert "faster" in done.stdout


def test_compare_of_other_versions_exits_with_1(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(bench(row(STAGE, 100.0)).text())
    versions = {"python": "3.12.3", "vision": "0.1.0", "tensorrt": "11.4"}
    b.write_text(bench(row(STAGE, 150.0), versions=versions).text())
    done = run("bench", "--compare", a, b)
    assert done.returncode == 1
    assert "tensorrt" in done.stdout
    assert "11.4" in done.stdout
    assert "faster" not in done.stdout


# ------------------------------------------------------------------------------------------------ profile


@without_gpu
def test_profile_of_onnxruntime_writes_layers_and_a_time_line(tmp_path: Path) -> None:
    trace, file = tmp_path / "t.json", tmp_path / "p.json"
    done = run("profile", MODEL, "--batch", "2", "--runs", "3", "--top", "5", "--json", file, "--trace", trace)
    assert done.returncode == 0, done.stderr
    assert "Conv" in done.stdout
    assert "images 2x3x416x416" in done.stdout
    assert len([line for line in done.stdout.splitlines() if " Conv " in line]) <= 5
    profile = json.loads(file.read_text())
    assert profile["schema"] == "vision.profile/1"
    assert profile["runs"] == 3
    assert sum(each["share"] for each in profile["times"]) == pytest.approx(1.0)
    events = json.loads(trace.read_text())["traceEvents"]
    lanes = {each["args"]["name"] for each in events if each["name"] == "thread_name"}
    assert {"slot 0", "slot 1"} <= lanes
    threads = len(os.sched_getaffinity(0))
    (layers,) = [lane for lane in lanes if lane.startswith("layers")]
    assert layers.endswith(f"batch 2, {threads} threads")
    assert {each["args"]["frames"] for each in events if each["name"] == "in flight"} == {1}
    assert any(lane.startswith("thread detect-") for lane in lanes)
    assert {"preprocess", "network", "postprocess", "in flight"} <= {each["name"] for each in events}


def assert_command(text: str, *parts: str) -> None:
    """Check that one line of `text` contains all `parts`."""
    assert any(all(part in line for part in parts) for line in text.splitlines()), text


def test_profile_prints_the_command_for_nsight_systems() -> None:
    done = run("profile", MODEL, "--batch", "4", "--precision", "fp32", "--print-nsys")
    assert done.returncode == 0, done.stderr
    assert "nsys" in done.stdout
    assert_command(done.stdout, "bench", MODEL, "--parts stage", "--batch 4", "--precision fp32", "--nvtx")


def own_model(folder: Path) -> Path:
    """Return the folder of a user's own model. The path of this folder must be quoted in a shell command."""
    own = folder / "my models"
    own.mkdir()
    shutil.copytree(shipped_models() / MODEL, own / "mine")
    return own / "mine"


def test_printed_command_has_the_model_as_given(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    done = run("profile", model, "--print-nsys")
    assert done.returncode == 0, done.stderr
    assert_command(done.stdout, "bench", f"'{model}'")


def test_profile_uses_the_model_and_precision_of_the_configuration(tmp_path: Path) -> None:
    config = make_config(tmp_path) | {
        "model": str(own_model(tmp_path)),
        "detect": {"precision": "int8", "max_batch": 32},
    }
    (tmp_path / "camera.yaml").write_text(json.dumps(config))
    done = run("profile", "--config", tmp_path / "camera.yaml", "--batch", "32", "--print-nsys")
    assert done.returncode == 0, done.stderr
    assert_command(done.stdout, f"'{tmp_path}/my models/mine'", "--batch 32", "--precision int8")
    over = run("profile", MODEL, "--config", tmp_path / "camera.yaml", "--precision", "fp32", "--print-nsys")
    assert_command(over.stdout, MODEL, "--batch 1", "--precision fp32")


def test_profile_refuses_the_fake_back_end(tmp_path: Path) -> None:
    (tmp_path / "camera.yaml").write_text(json.dumps(make_config(tmp_path)))
    done = run("profile", "--config", tmp_path / "camera.yaml")
    assert done.returncode == 78
    assert "fake" in done.stderr


@needs_tensorrt
def test_printed_engine_equals_that_of_vision_run(tmp_path: Path) -> None:
    config = make_config(tmp_path) | {
        "detect": {"precision": "fp32", "max_batch": 4, "engine": {"optimization_level": 2}}
    }
    (tmp_path / "camera.yaml").write_text(json.dumps(config))
    usual, larger, configured = (
        run("profile", *arguments, "--print-trtexec")
        for arguments in ((MODEL,), (MODEL, "--batch", "16"), ("--config", tmp_path / "camera.yaml"))
    )
    assert f"{MODEL}-fp16-b8-" in usual.stdout
    assert f"{MODEL}-fp16-b16-" in larger.stdout
    assert f"{MODEL}-fp32-b4-" in configured.stdout
    assert_command(configured.stdout, f"vision build {MODEL} --config {tmp_path}/camera.yaml", "--max-batch 4", "fp32")
    if load_gpu("auto")[0] is None:
        assert usual.stdout.startswith("#"), "a comment: the path of the engine is an example"


@needs_tensorrt
def test_printed_build_has_the_folder_of_the_model(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    done = run("profile", model, "--print-trtexec")
    assert done.returncode == 0, done.stderr
    assert_command(done.stdout, "vision build", f"'{model}'", "--max-batch 8", "--precision fp16")


@needs_tensorrt
def test_profile_prints_the_commands_for_trtexec() -> None:
    done = run("profile", MODEL, "--batch", "8", "--print-trtexec")
    assert done.returncode == 0, done.stderr
    assert "--shapes=images:8x4x416x416" in done.stdout
    assert "--infStreams=2" in done.stdout
    assert_command(done.stdout, f"vision build {MODEL}", "--max-batch 8", "--precision fp16")
    as_it_is = run("profile", MODEL, "--batch", "8", "--precision", "fp32", "--print-trtexec")
    assert "--saveEngine=" in as_it_is.stdout


# ------------------------------------------------------------------------------------------------ plan


def test_plan_prints_and_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.benchmark.plan._SEARCH_LIMIT", 0.1)  # one more run
    config = tmp_path / "camera.yaml"
    config.write_text(json.dumps(make_config(tmp_path)))
    done = run("plan", config, "--seconds", "1", "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    assert "gate" in done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["schema"] == "vision.plan/1"
    assert plan["verdict"] in " ".join(done.stdout.split())
    assert plan["cameras"][0]["asked_fps"] == 20.0
    assert plan["published_fps"] == pytest.approx(20, rel=0.4)
    assert not (tmp_path / "out").exists()


def test_plan_of_a_missing_file_fails(tmp_path: Path) -> None:
    config = tmp_path / "camera.yaml"
    cameras = [{"id": "gate", "source": str(tmp_path / "missing.mp4")}]
    config.write_text(json.dumps(make_config(tmp_path) | {"cameras": cameras}))
    done = run("plan", config, "--seconds", "1")
    assert done.returncode in (1, 78)
    assert "missing.mp4" in done.stderr
