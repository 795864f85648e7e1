"""`vision build`, `bench`, `profile` and `plan` as their users start them, on a machine without a GPU."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.engine_models import needs_tensorrt
from tests.unit.test_performance_files import STAGE, bench, row
from vision.errors import DeviceMissing, VisionError
from vision.metrics import send_spans
from vision.performance.document import load_bench
from vision.performance.verbs import PRECISIONS, duration, listed, positive, start_nvtx

COMMAND = [sys.executable, "-m", "vision.cli", "--log-level", "warning"]
MODEL = "nanodet-g-416"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False)


def has_gpu() -> bool:
    try:
        from vision.performance import gpu

        gpu.require()
    except DeviceMissing:
        return False
    return True


without_gpu = pytest.mark.skipif(has_gpu(), reason="says what happens without a GPU")


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (listed(positive), "1,2,8", (1, 2, 8)),
        (listed(positive), " 4 , 4 ", (4,)),
        (listed(str, PRECISIONS), "fp16,fp32", ("fp16", "fp32")),
        (duration, "2", 2.0),
        (duration, "0.5s", 0.5),
    ],
)
def test_arguments(parse: Callable[[str], object], text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (listed(positive), "0"),
        (listed(positive), "1,x"),
        (listed(positive), ","),
        (listed(str, PRECISIONS), "fp17"),
        (duration, "0"),
        (duration, "soon"),
        (duration, "99999"),
    ],
)
def test_wrong_arguments(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", MODEL, "--batch", "many"),
        ("bench", MODEL, "--parts", "all"),
        ("profile",),
        ("profile", MODEL, "--precision", "fp17"),
        ("plan",),
        ("build", MODEL, "--level", "9"),
        ("build", MODEL, "--max-batch", "0"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: vision" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("bench",), "which model?"),
        (("build",), "nothing to do"),
        (("build", "--for-gpu", "87", MODEL), "expected a name and a compute capability"),
        (("bench", MODEL, "--plot", "a.txt"), "ends in .svg"),
        (("bench", MODEL, "--source", "/no/such.mp4", "--backend", "fake"), "/no/such.mp4"),
        (("profile", MODEL, "--trace", "/no/such/folder/t.json"), "there is no folder /no/such/folder"),
        (("bench", "nanodet-g-461"), "did you mean 'nanodet-g-416'"),
        (("plan", "dmeo"), "demo"),
        (("plan", "demo", "--bench", "/no/such.json"), "cannot be read"),
    ],
)
def test_what_is_refused_at_once(arguments: tuple[str, ...], expected: str) -> None:
    done = run(*arguments)
    assert done.returncode in (1, 78)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@without_gpu
@pytest.mark.parametrize(
    "arguments",
    [("build", MODEL), ("bench", MODEL, "--backend", "tensorrt"), ("profile", MODEL, "--backend", "tensorrt")],
)
def test_what_needs_a_gpu_says_what_is_missing(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 78
    assert "hint:" in done.stderr


# ------------------------------------------------------------------------------------------------ NVTX


def test_nvtx_is_switched_on_by_flag_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_nvtx_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(VisionError, match="not installed"):
        start_nvtx(True)


def test_a_run_with_nvtx(tmp_path: Path) -> None:
    pytest.importorskip("nvtx")
    config = tmp_path / "camera.yaml"
    config.write_text(json.dumps(site_of(tmp_path)))
    done = run("run", config, "--for", "1s", "--nvtx")
    assert done.returncode == 0, done.stderr


def site_of(folder: Path) -> dict[str, object]:
    return {
        "cameras": [{"id": "gate", "source": "synthetic:160x120@20"}],
        "detect": {"backend": "fake"},
        "publish": {"bind": f"ipc://{folder}/out"},
    }


# ------------------------------------------------------------------------------------------------ build


def test_an_empty_cache_is_listed_and_pruned(tmp_path: Path) -> None:
    done = run("build", "--list", "--prune", "--cache", tmp_path / "engines")
    assert done.returncode == 0, done.stderr
    assert "nothing to remove" in done.stdout
    assert "precision" in done.stdout


@needs_tensorrt
def test_an_engine_for_another_gpu_is_built_listed_and_found_again(tmp_path: Path) -> None:
    from vision.engine.library import supported_capabilities

    if (8, 9) not in supported_capabilities():
        pytest.skip("only TensorRT-RTX builds for a GPU that is not there")
    cache = tmp_path / "engines"
    build = ("build", MODEL, "--for-gpu", "RTX 4090:89", "--max-batch", "2", "--precision", "fp32", "--cache", cache)
    first = run(*build, "--list")
    assert first.returncode == 0, first.stderr
    assert "RTX 4090" in first.stdout
    assert len(list(cache.glob("*.engine"))) == 1
    again = run(*build)
    assert "already built" in again.stdout


# ------------------------------------------------------------------------------------------------ bench


def test_bench_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, plot = tmp_path / "a.json", tmp_path / "a.png"
    small = ("--backend", "fake", "--batch", "4", "--slots", "1,2", "--seconds", "0.1", "--source", "synthetic:64x48")
    done = run("bench", MODEL, *small, "--json", file, "--plot", plot)
    assert done.returncode == 0, done.stderr
    found = load_bench(file)
    assert {row.case.part for row in found.rows} == {"stage", "pipeline"}
    assert {(row.case.lanes, row.case.batch) for row in found.rows_of("stage") if row.case.mode == "slots"} == {
        (1, 4), (2, 4),
    }  # fmt: skip
    assert [row.case.mode for row in found.rows_of("pipeline")] == ["full", "half"]
    assert all(row.frames_per_s > 0 and row.rss_mib > 0 for row in found.rows)
    assert all(row.objects_per_frame == 3 for row in found.rows_of("stage"))
    assert found.picture == "64x48 bgr"
    assert found.host.results_ms > 0
    assert "stage" in done.stdout
    assert "measuring stage 1 slot, fp32, batch 4" in done.stderr
    assert plot.stat().st_size > 1000


def test_bench_with_onnxruntime(tmp_path: Path) -> None:
    done = run("bench", MODEL, "--backend", "onnxruntime", "--batch", "1,2", "--slots", "2", "--seconds", "0.2",
               "--parts", "engine,stage", "--format", "nv12", "--json", "-")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (tmp_path / "a.json").write_text(done.stdout)
    found = load_bench(tmp_path / "a.json")  # standard output holds nothing but JSON
    assert found.backend == "onnxruntime cpu fp32"
    engines = [(row.case.mode, row.case.lanes, row.case.batch) for row in found.rows_of("engine")]
    assert engines == [("eager", 1, 1), ("eager", 2, 1), ("eager", 1, 2), ("eager", 2, 2)]
    assert {row.case.batch for row in found.rows_of("stage")} == {1}
    assert any("no batches of more than 1" in note for note in found.notes)
    assert found.picture == "768x576 nv12"
    assert found.rows_of("pipeline") == ()


def test_compare_says_what_is_faster(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    bench(row(STAGE, 100.0)).save(a)
    bench(row(STAGE, 150.0)).save(b)
    done = run("bench", "--compare", a, b)
    assert done.returncode == 0, done.stderr
    assert "1.500" in done.stdout
    assert "faster" in done.stdout


def test_compare_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    bench(row(STAGE, 100.0)).save(a)
    bench(row(STAGE, 150.0), versions={"python": "3.12.3", "vision": "0.1.0", "tensorrt": "11.4"}).save(b)
    done = run("bench", "--compare", a, b)
    assert done.returncode == 1
    assert "not comparable: version, tensorrt: none and 11.4" in done.stdout
    assert "faster" not in done.stdout


# ------------------------------------------------------------------------------------------------ profile


@without_gpu
def test_profile_of_a_laptop(tmp_path: Path) -> None:
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
    assert {"slot 0", "slot 1", "layers, mean of all runs"} <= lanes
    assert any(lane.startswith("thread detect-") for lane in lanes)
    assert {"preprocess", "network", "postprocess", "in flight"} <= {each["name"] for each in events}


def test_profile_prints_the_command_for_nsight_systems() -> None:
    done = run("profile", MODEL, "--batch", "4", "--precision", "fp32", "--print-nsys")
    assert done.returncode == 0, done.stderr
    assert "nsys profile" in done.stdout or "nsys" in done.stdout
    assert f"bench {MODEL} --parts stage --batch 4 --precision fp32 --seconds 5 --nvtx" in done.stdout


@needs_tensorrt
def test_profile_prints_the_commands_for_trtexec() -> None:
    done = run("profile", MODEL, "--batch", "8", "--print-trtexec")
    assert done.returncode == 0, done.stderr
    assert "--shapes=images:8x4x416x416" in done.stdout
    assert "--infStreams=2" in done.stdout
    assert f"`vision build {MODEL} --max-batch 8 --precision fp16` (this tool would build" in done.stdout
    as_it_is = run("profile", MODEL, "--batch", "8", "--precision", "fp32", "--print-trtexec")
    assert "--saveEngine=" in as_it_is.stdout


# ------------------------------------------------------------------------------------------------ plan


def test_plan_and_whether_it_is_so(tmp_path: Path) -> None:
    config = tmp_path / "camera.yaml"
    config.write_text(json.dumps(site_of(tmp_path)))
    done = run("plan", config, "--seconds", "0.2", "--verify", "2", "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    assert "gate" in done.stdout
    assert "Nothing limits." in done.stdout or "limit" in done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["schema"] == "vision.plan/1"
    assert plan["demands"][0]["fps"] == 20.0
    checks = {each["what"]: each for each in plan["checks"]}
    assert checks["frames/s"]["measured"] == pytest.approx(20, rel=0.4)
    assert not (tmp_path / "out").exists()
