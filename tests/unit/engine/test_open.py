"""Tests of opening engines from a model folder, and of `vision build`, with real builds on the CPU."""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import threading
from pathlib import Path

import onnx
import pytest
from rich.console import Console

from tests.log_records import log_args
from tests.unit.engine_models import convolution, needs_no_gpu, needs_rtx, plan, spec
from vision.cli.build import Bars, build_engine, print_engines, print_pruned
from vision.config import DetectConfig, ModelSpec
from vision.engine.build import BuildOptions
from vision.engine.build_plan import resolve
from vision.engine.cache import EngineCache
from vision.engine.library import GpuDescription
from vision.engine.open import load_or_build, open_engine, read_onnx
from vision.engine.progress import Phase
from vision.errors import Closed, DeviceMissing, ModelError
from vision.state.private_files import sha256_of

AMPERE = GpuDescription("NVIDIA RTX A4000", (8, 6))
ORIN = GpuDescription("Orin", (8, 7))
AHEAD = BuildOptions(ahead_of_time=True)
DETECT = DetectConfig.model_validate({"precision": "fp32", "max_batch": 2})


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, ModelSpec]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    onnx = convolution()
    (folder / "tiny.onnx").write_bytes(onnx)
    return folder, spec(sha256=sha256_of(onnx))


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


# ------------------------------------------------------------------------------------------------ the ONNX file


def test_onnx_is_read_and_checked(model: tuple[Path, ModelSpec]) -> None:
    folder, described = model
    assert read_onnx(folder, described) == convolution()


def test_onnx_with_another_sha256_is_refused(model: tuple[Path, ModelSpec]) -> None:
    folder, described = model
    (folder / "tiny.onnx").write_bytes(convolution(seed=7))
    with pytest.raises(ModelError) as caught:
        read_onnx(folder, described)
    assert caught.value.code == "model-sha256"


def test_external_weights_are_part_of_the_model(model: tuple[Path, ModelSpec]) -> None:
    folder, _ = model
    loaded = onnx.load_model_from_string(convolution())
    onnx.save_model(loaded, folder / "tiny.onnx", save_as_external_data=True, location="w", size_threshold=0)
    first = read_onnx(folder, spec())
    (folder / "w").write_bytes(bytes((folder / "w").stat().st_size))
    assert read_onnx(folder, spec()) != first, "its hash is the engine's key"


def test_missing_onnx_is_named(model: tuple[Path, ModelSpec]) -> None:
    folder, described = model
    (folder / "tiny.onnx").unlink()
    with pytest.raises(ModelError) as caught:
        read_onnx(folder, described)
    assert caught.value.code == "model-missing"


def test_missing_sha256_is_a_warning(model: tuple[Path, ModelSpec], caplog: pytest.LogCaptureFixture) -> None:
    read_onnx(model[0], spec())
    digest = hashlib.sha256((model[0] / "tiny.onnx").read_bytes()).hexdigest()
    ((*_, logged),) = log_args(caplog, "vision.config.model_file")
    assert logged == digest


# ------------------------------------------------------------------------------------------------ plan and engine


@needs_rtx
def test_plan_is_built_once(
    model: tuple[Path, ModelSpec], cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chosen = plan("fp32", 2)
    first = load_or_build(*model, AMPERE, chosen, AHEAD, cache=cache)
    second = load_or_build(*model, AMPERE, chosen, AHEAD, cache=cache)
    assert first.built is not None
    assert second.built is None
    assert first.plan == second.plan
    assert log_args(caplog, "vision.engine.progress", logging.INFO), "without a listener the log has the progress"


@needs_rtx
def test_input_type_is_part_of_the_key(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    for half_input in (True, False):
        chosen = plan("fp16", 2, half_input=half_input)
        assert load_or_build(*model, AMPERE, chosen, AHEAD, cache=cache).built is not None
    assert {entry.key["settings"]["half_input"] for entry in cache.entries()} == {True, False}


@needs_rtx
def test_changed_model_is_rebuilt(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    folder, _ = model
    load_or_build(folder, spec(), AMPERE, plan("fp32", 2), AHEAD, cache=cache)
    (folder / "tiny.onnx").write_bytes(convolution(seed=1))
    again = load_or_build(folder, spec(), AMPERE, plan("fp32", 2), AHEAD, cache=cache)
    assert again.built is not None
    assert len(cache.entries()) == 2


@needs_rtx
def test_build_cancelled_before_its_start_stores_nothing(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Closed):
        load_or_build(*model, AMPERE, plan("fp32", 2), BuildOptions(ahead_of_time=True, cancel=cancel), cache=cache)
    assert cache.entries() == ()


@pytest.mark.engine
@needs_rtx
@needs_no_gpu
def test_engine_that_does_not_load_is_rebuilt_once(
    model: tuple[Path, ModelSpec],
    cache: EngineCache,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without a driver, no engine loads. A newly built engine fails immediately. A cached engine is rebuilt once."""
    caplog.set_level(logging.INFO)
    for attempt, again in enumerate((False, True)):
        caplog.clear()
        with pytest.raises(ModelError) as caught:
            open_engine(*model, AMPERE, resolve(DETECT, model[1]), BuildOptions(), cache_folder=cache.folder)
        assert caught.value.code == "engine-not-loaded"
        assert bool(log_args(caplog, "vision.engine.open")) == again, attempt
    assert len(cache.entries()) == 1


# ------------------------------------------------------------------------------------------------ vision build


def console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=250, force_terminal=False), text


@needs_rtx
def test_build_prints_the_engine_and_its_path(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    out, text = console()
    build_engine(*model, DETECT, AMPERE, cache, out)
    output = text.getvalue()
    for part in ("tiny, fp32", "NVIDIA RTX A4000", "TensorRT-RTX", "profile 0", "1x3x16x16 .. 2x3x16x16"):
        assert part in output
    assert str(cache.folder) in output


@needs_rtx
def test_names_with_brackets_are_not_markup(model: tuple[Path, ModelSpec], tmp_path: Path) -> None:
    folder = tmp_path / "a[/b]" / "[bold]c"
    for again in (False, True):
        out, text = console()
        engines = EngineCache(folder)
        if again:
            print_pruned(engines, AMPERE, out)
        build_engine(*model, DETECT, AMPERE, engines, out)
        print_engines(engines.entries(), AMPERE, out)
        assert "a[/b]/[bold]c/tiny-fp32" in text.getvalue()


@needs_rtx
def test_engine_that_cannot_be_kept_is_an_error_of_build(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    path = load_or_build(*model, AMPERE, plan("fp32", 2), AHEAD, cache=cache).path
    path.unlink()
    path.mkdir()  # like a full disk: the file cannot be replaced
    (path / "in the way").write_text("")
    with pytest.raises(ModelError) as caught:
        build_engine(*model, DETECT, AMPERE, cache, console()[0], force=True)
    assert caught.value.code == "engine-not-kept"


@pytest.mark.engine
@needs_rtx
def test_built_engine_is_rebuilt_only_by_force(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    def built_again(*, force: bool) -> bool:
        before = [path.stat().st_ino for path in cache.folder.glob("*.engine")]
        build_engine(*model, DETECT, AMPERE, cache, console()[0], force=force)
        return [path.stat().st_ino for path in cache.folder.glob("*.engine")] != before

    assert built_again(force=False)
    assert not built_again(force=False)
    assert built_again(force=True)


@needs_rtx
def test_every_detect_key_is_used(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    out, _ = console()
    detect = DetectConfig.model_validate({"precision": "bf16", "max_batch": 5, "engine": {"optimization_level": 2}})
    build_engine(*model, detect, AMPERE, cache, out)
    (entry,) = cache.entries()
    settings = entry.key["settings"]
    assert (settings["precision"], settings["max_batch"], settings["optimization_level"]) == ("bf16", 5, 2)


@needs_rtx
def test_listed_engine_for_another_gpu_is_pruned(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    out, _ = console()
    build_engine(*model, DETECT, AMPERE, cache, out)
    out, text = console()
    print_engines(cache.entries(), ORIN, out)
    assert "RTX A4000" in text.getvalue()
    assert "Orin" in text.getvalue()
    assert "fp32" in text.getvalue()
    out, text = console()
    print_pruned(cache, AMPERE, out)
    print_engines(cache.entries(), AMPERE, out)
    assert len(cache.entries()) == 1
    assert "usable" in text.getvalue()
    out, text = console()
    print_pruned(cache, ORIN, out)
    assert "tiny-fp32-b2-sm86" in text.getvalue()
    assert cache.entries() == ()


def test_building_needs_a_gpu_and_listing_does_not(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    out, text = console()
    print_engines(cache.entries(), None, out)
    assert len(text.getvalue().splitlines()) == 1
    with pytest.raises(DeviceMissing):
        build_engine(*model, DETECT, None, cache, out)


def test_bars_show_open_phases_and_no_others() -> None:
    text = io.StringIO()
    with Bars(Console(file=text, width=120, force_terminal=True, color_system=None)) as bars:
        bars.parsed(133)
        bars.progress((Phase("build", 0, 1, 6), Phase("timing tactics", 1, 30, 120)))
        shown = [task.description for task in bars.progress_bars.tasks]
        assert shown == ["build", "  timing tactics"]
        assert [(task.completed, task.total) for task in bars.progress_bars.tasks] == [(1, 6), (30, 120)]
        bars.progress((Phase("build", 0, 2, 6),))
        assert [task.description for task in bars.progress_bars.tasks] == ["build"]
        bars.built(2 << 20)
        assert bars.progress_bars.tasks == []
    assert "133" in text.getvalue()
    assert "2.0 MiB" in text.getvalue()


def build_in_another_process(folder: Path, cache: Path, results: multiprocessing.Queue[bool]) -> None:
    described = spec(sha256=sha256_of(convolution()))
    loaded = load_or_build(folder, described, AMPERE, plan("fp32", 2), AHEAD, cache=EngineCache(cache))
    results.put(loaded.built is not None)


@pytest.mark.engine
@needs_rtx
def test_only_one_of_three_processes_builds(model: tuple[Path, ModelSpec], cache: EngineCache) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (model[0], cache.folder, results)
    processes = [context.Process(target=build_in_another_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    built = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(built) == [False, False, True]
    assert [process.exitcode for process in processes] == [0, 0, 0]
    results.close()
