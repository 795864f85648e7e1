"""Tests of the engine cache, with every reason to reject a cached plan."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.log_records import log_args
from tests.unit.engine_models import spec
from vision.engine.build import Built
from vision.engine.build_plan import BuildPlan
from vision.engine.cache import EngineCache, EngineKey, default_folder, foreign, key_of
from vision.engine.library import GpuDescription, Library
from vision.errors import Closed, ModelError
from vision.state.private_files import Untrusted, locked

ORIN = GpuDescription("Orin", (8, 7))
LIBRARY = Library(types.ModuleType("none"), "tensorrt", "10.3.0")
ONNX = b"the bytes of a model"

posix = pytest.mark.skipif(os.name != "posix", reason="modes of files")


def key(**changes: Any) -> EngineKey:
    made = key_of(ONNX, LIBRARY, ORIN, BuildPlan("fp16", 8), spec())
    return replace(made, **changes)


def built(plan: bytes = b"a plan", **more: Any) -> Built:
    values: dict[str, Any] = {
        "layers": 3,
        "profiles": (),
        "seconds": 1.5,
        "weights_bytes": 10,
        "activation_bytes": 20,
        "notes": ("careful",),
        "timing_cache": None,
    }
    return Built(plan=plan, **{**values, **more})


class Builder:
    """Builder that counts its calls and returns a plan."""

    def __init__(self, result: Built | None = None) -> None:
        self.result = result or built()
        self.timing_caches: list[bytes | None] = []

    def __call__(self, timing_cache: bytes | None) -> Built:
        self.timing_caches.append(timing_cache)
        return self.result

    @property
    def times(self) -> int:
        return len(self.timing_caches)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_engine_is_built_once_and_found_afterwards(cache: EngineCache) -> None:
    builder = Builder()
    first = cache.load_or_build("tiny", key(), builder)
    second = EngineCache(cache.folder).load_or_build("tiny", key(), builder)
    assert builder.times == 1
    assert first.built is builder.result
    assert second.built is None
    assert first.plan == second.plan == b"a plan"
    assert first.path == second.path
    assert first.path.name.startswith("tiny-fp16-b8-sm87-")


@pytest.mark.parametrize(
    "changes",
    [
        {"onnx_sha256": "0" * 64},
        {"version": "10.13.3"},
        {"flavour": "tensorrt-rtx"},
        {"gpu_name": "Orin Nano"},
        {"compute_capability": (11, 0)},
        {"settings": BuildPlan("fp32", 8)},
        {"settings": BuildPlan("fp16", 4)},
        {"settings": BuildPlan("fp16", 8, half_input=True)},
        {"settings": BuildPlan("fp16", 8, half_outputs=True)},
        {"settings": BuildPlan("fp16", 8, optimization_level=5)},
        {"settings": BuildPlan("fp16", 8, workspace_mib=512)},
        {"settings": BuildPlan("fp16", 8, on_dla=True)},
        {"profiles": ({"batch": [1, 8, 8]},)},
        {"input_hw": (640, 640)},
    ],
)
def test_every_part_of_the_key_changes_the_file_name(changes: dict[str, Any], cache: EngineCache) -> None:
    cache.load_or_build("tiny", key(), Builder())
    other = Builder(built(b"another"))
    assert cache.load_or_build("tiny", key(**changes), other).plan == b"another"
    assert other.times == 1
    assert len(cache.entries()) == 2


def test_profiles_of_the_spec_are_in_the_key() -> None:
    plain = key_of(ONNX, LIBRARY, ORIN, BuildPlan("fp16", 8), spec())
    given = key_of(ONNX, LIBRARY, ORIN, BuildPlan("fp16", 8), spec(profiles=[{"batch": [1, 4, 8]}]))
    assert plain.profiles == ()
    assert given.profiles[0]["batch"] == [1, 4, 8]
    assert plain.digest() != given.digest()


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """Change values in the JSON file of a plan."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("damage", "values"),
    [
        (lambda plan: plan.write_bytes(b"a pl"), ("4", "6")),
        (lambda plan: plan.write_bytes(b""), ("0", "6")),
        (lambda plan: plan.write_bytes(b"b plan"), ()),
        (lambda plan: plan.unlink(), ()),
        (lambda plan: plan.with_suffix(".json").unlink(), ()),
        (lambda plan: plan.with_suffix(".json").write_text("{"), ("JSON",)),
        (lambda plan: plan.with_suffix(".json").write_bytes(b"\xff\xfe"), ("JSON",)),
        (lambda plan: plan.with_suffix(".json").write_text("[]"), ("JSON",)),
        (lambda plan: plan.with_suffix(".json").write_text('{"x":' + "[" * 100_000), ("JSON",)),
        (lambda plan: rewrite(plan.with_suffix(".json"), {"schema": 99}), ("JSON",)),
        (lambda plan: rewrite(plan.with_suffix(".json"), {"key": None}), ("JSON",)),
        (
            lambda plan: rewrite(plan.with_suffix(".json"), {"key": key(gpu_name="Thor").as_json()}),
            ("gpu_name", "'Thor'", "'Orin'"),
        ),
    ],
)
def test_unusable_engine_is_rebuilt_with_the_reason_in_the_log(
    damage: Any, values: tuple[str, ...], cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    damage(cache.load_or_build("tiny", key(), Builder()).path)
    caplog.clear()
    plan, reason = cache.find("tiny", key())
    assert plan is None
    assert [value for value in values if value not in reason] == []
    again = Builder(built(b"a newer plan"))
    loaded = cache.load_or_build("tiny", key(), again)
    assert again.times == 1
    assert (loaded.path.name, reason) in log_args(caplog, "vision.engine.cache", logging.INFO)
    assert cache.find("tiny", key()) == (b"a newer plan", "")
    assert loaded.path.read_bytes() == b"a newer plan"


def test_changed_key_is_logged_with_old_and_new_values(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache.load_or_build("tiny", key(), Builder())
    cache.load_or_build("tiny", key(settings=BuildPlan("fp32", 1)), Builder())
    caplog.clear()
    cache.load_or_build("tiny", key(version="10.16.2"), Builder())
    assert "'10.3.0'" in caplog.text
    assert "'10.16.2'" in caplog.text


@posix
@pytest.mark.parametrize("suffix", [".engine", ".json"])
def test_file_writable_by_others_is_refused_and_replaced_by_force(suffix: str, cache: EngineCache) -> None:
    path = cache.load_or_build("tiny", key(), Builder()).path
    path.with_suffix(suffix).chmod(0o666)
    with pytest.raises(Untrusted) as caught:
        cache.load_or_build("tiny", key(), Builder())
    assert path.with_suffix(suffix).name in caught.value.args[0]
    assert cache.load_or_build("tiny", key(), Builder(built(b"clean")), force=True).plan == b"clean"
    assert cache.find("tiny", key())[0] == b"clean"


@posix
def test_folder_writable_by_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(Untrusted) as caught:
        EngineCache(folder)
    assert str(folder) in caught.value.args[0]


def test_force_builds_again(cache: EngineCache) -> None:
    cache.load_or_build("tiny", key(), Builder())
    again = Builder(built(b"second"))
    assert cache.load_or_build("tiny", key(), again, force=True).plan == b"second"


def test_failed_build_stores_nothing(cache: EngineCache) -> None:
    def fail(timing_cache: bytes | None) -> Built:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.load_or_build("tiny", key(), fail)
    assert cache.entries() == ()
    assert cache.load_or_build("tiny", key(), Builder()).plan == b"a plan"


def test_second_process_loads_the_engine_that_the_first_builds(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    """Two cache objects behave like two processes, because each has its own file descriptor for the lock."""
    caplog.set_level(logging.INFO)
    building, go_on = threading.Event(), threading.Event()
    builds: list[str] = []
    plans: list[bytes] = []

    def slow(timing_cache: bytes | None) -> Built:
        builds.append("built")
        building.set()
        assert go_on.wait(60)
        return built()

    def load() -> None:
        plans.append(EngineCache(cache.folder).load_or_build("tiny", key(), slow).plan)

    first = threading.Thread(target=load)
    first.start()
    assert building.wait(60)
    second = threading.Thread(target=load)
    second.start()
    deadline = time.monotonic() + 60
    (path,) = log_args(caplog, "vision.engine.cache", logging.INFO)[0][:1]
    while (path,) not in log_args(caplog, "vision.engine.cache", logging.INFO):  # the second thread waits
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go_on.set()
    first.join(60)
    second.join(60)
    assert builds == ["built"]
    assert plans == [b"a plan", b"a plan"]


def test_waiting_for_another_process_can_be_canceled(cache: EngineCache) -> None:
    building, go_on, cancel = threading.Event(), threading.Event(), threading.Event()

    def slow(timing_cache: bytes | None) -> Built:
        building.set()
        assert go_on.wait(60)
        return built()

    first = threading.Thread(target=lambda: cache.load_or_build("tiny", key(), slow))
    first.start()
    try:
        assert building.wait(60)
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(Closed):
            EngineCache(cache.folder).load_or_build("tiny", key(), Builder(), canceled=cancel.is_set)
    finally:
        go_on.set()
        first.join(60)


def test_timing_cache_is_shared_by_models_of_one_gpu_and_library(cache: EngineCache) -> None:
    cache.load_or_build("tiny", key(), Builder(built(timing_cache=b"timings")))
    same, other = Builder(), Builder()
    cache.load_or_build("large", key(onnx_sha256="1" * 64), same)
    cache.load_or_build("large", key(version="11.0"), other)
    assert same.timing_caches == [b"timings"]
    assert other.timing_caches == [None]


def test_entries_have_model_key_and_build_time(cache: EngineCache) -> None:
    cache.load_or_build("tiny", key(), Builder())
    (entry,) = cache.entries()
    assert (entry.model, entry.plan_bytes) == ("tiny", 6)
    assert entry.key["settings"]["precision"] == "fp16"
    assert entry.built_at.endswith("Z")
    assert entry.fault == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan: plan.write_bytes(b"x"),
        lambda plan: plan.with_suffix(".json").unlink(),
        lambda plan: plan.with_suffix(".json").write_text("{}"),
        pytest.param(lambda plan: plan.chmod(0o666), marks=posix),
    ],
    ids=["truncated", "no JSON", "damaged JSON", "writable"],
)
def test_damaged_entry_is_reported_and_pruned(damage: Any, cache: EngineCache) -> None:
    path = cache.load_or_build("tiny", key(), Builder()).path
    damage(path)
    fault = cache.entries()[0].fault
    assert fault
    gone = cache.prune(None, None)
    assert fault in gone[path.name]
    assert not path.exists()


def test_prune_removes_foreign_and_unused_engines(cache: EngineCache) -> None:
    keep = cache.load_or_build("keep", key(), Builder()).path
    upgraded = cache.load_or_build("old", key(version="8.6"), Builder()).path
    elsewhere = cache.load_or_build("thor", key(gpu_name="Thor", compute_capability=(11, 0)), Builder()).path
    unused = cache.load_or_build("unused", key(onnx_sha256="2" * 64), Builder()).path
    long_ago = time.time() - 100 * 86400
    os.utime(unused, (long_ago, long_ago))
    orphan = cache.path_of("orphan", key())
    orphan.with_suffix(".json").write_text("{}")
    orphan.with_suffix(".kernels").write_bytes(b"")
    cut_short, fresh = (cache.folder / f".{orphan.name}.{random}.tmp" for random in ("a_1", "b_2"))
    cut_short.write_bytes(b"")
    os.utime(cut_short, (long_ago, long_ago))
    fresh.write_bytes(b"")  # another process could be writing this file
    timings = cache.folder / f"{'0' * 20}.timing"
    timings.write_bytes(b"")
    os.utime(timings, (long_ago, long_ago))
    upgraded.with_suffix(".kernels").write_bytes(b"kernels")
    gone = cache.prune(LIBRARY, ORIN)
    parts = {
        upgraded.name: "8.6",
        elsewhere.name: "Thor",
        unused.name: "100 days",
        orphan.with_suffix(".json").name: "engine",
        orphan.with_suffix(".kernels").name: "engine",
        cut_short.name: "write",
        timings.name: "90 days",
    }
    assert gone.keys() == parts.keys()
    assert [name for name, part in parts.items() if part not in gone[name]] == []
    left = {path.name for path in cache.folder.iterdir()}
    assert left == {keep.name, keep.with_suffix(".json").name, keep.with_suffix(".lock").name, fresh.name}
    assert cache.prune(LIBRARY, ORIN) == {}


def test_prune_keeps_files_of_others(cache: EngineCache) -> None:
    """`--cache` can name any folder, such as a project with lock files or a folder with engines from trtexec."""
    theirs = {
        "package.json",
        "poetry.lock",
        "mine.engine",
        "notes.tmp",
        ".notes.engine.a.tmp",
        "my.kernels",
        "x.timing",
    }
    long_ago = time.time() - 1000 * 86400
    for name in theirs:
        (cache.folder / name).write_bytes(b"")
        os.utime(cache.folder / name, (long_ago, long_ago))
    assert cache.prune(LIBRARY, ORIN) == {}
    assert {path.name for path in cache.folder.iterdir()} == theirs
    assert cache.entries() == ()


def test_prune_keeps_engines_in_progress(cache: EngineCache) -> None:
    path = cache.load_or_build("tiny", key(), Builder()).path
    path.with_suffix(".json").unlink()  # the plan is stored, but its JSON file is not
    unbuilt = cache.path_of("other", key())
    with locked(path.with_suffix(".lock")), locked(unbuilt.with_suffix(".lock")):
        assert cache.prune(LIBRARY, ORIN) == {}
        assert path.exists()
        assert unbuilt.with_suffix(".lock").exists()
    assert set(cache.prune(LIBRARY, ORIN)) == {path.name, unbuilt.with_suffix(".lock").name}
    assert list(cache.folder.iterdir()) == []


def test_prune_keeps_engines_built_meanwhile(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache.load_or_build("tiny", key(version="8.6"), Builder()).path
    old = cache.entries()
    sidecar = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**sidecar, "built_at": "2030-01-01T00:00:00Z"}))
    monkeypatch.setattr(cache, "entries", lambda: old)
    assert cache.prune(LIBRARY, ORIN) == {}
    assert path.exists()


def test_unreadable_or_undeletable_files_are_reported(cache: EngineCache) -> None:
    path = cache.load_or_build("tiny", key(version="8.6"), Builder()).path
    path.with_suffix(".kernels").mkdir()
    with pytest.raises(ModelError) as caught:
        cache.prune(LIBRARY, ORIN)
    assert caught.value.code == "cache-file-not-removed"
    cache.folder.rename(cache.folder.with_name("away"))
    with pytest.raises(ModelError) as caught:
        cache.entries()
    assert caught.value.code == "cache-unreadable"


def test_plan_that_cannot_be_stored_is_used(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    path = cache.path_of("tiny", key())
    path.mkdir()  # like a full disk: the file cannot be replaced
    (path / "in the way").write_text("")
    path.with_suffix(".json").mkdir()
    path.with_suffix(".lock").mkdir()
    loaded = cache.load_or_build("tiny", key(), Builder(), force=True)
    assert loaded.plan == b"a plan"
    assert path.name in loaded.not_kept
    assert log_args(caplog, "vision.engine.cache") == [(loaded.not_kept,)]


def test_loading_counts_as_use(cache: EngineCache) -> None:
    path = cache.load_or_build("tiny", key(), Builder()).path
    long_ago = time.time() - 100 * 86400
    os.utime(path, (long_ago, long_ago))
    cache.load_or_build("tiny", key(), Builder())
    assert cache.prune(LIBRARY, ORIN) == {}


def test_engine_of_the_same_or_an_unknown_machine_is_not_foreign() -> None:
    assert foreign(key().as_json(), None, None) == ""
    assert foreign(key().as_json(), LIBRARY, ORIN) == ""


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"CACHE_DIRECTORY": "/var/cache/vision", "XDG_CACHE_HOME": "/x"}, "/var/cache/vision/engines"),
        ({"CACHE_DIRECTORY": "/var/cache/a:/var/cache/b"}, "/var/cache/a/engines"),
        ({"XDG_CACHE_HOME": "/home/u/.c"}, "/home/u/.c/vision/engines"),
        ({"XDG_CACHE_HOME": ""}, "/home/u/.cache/vision/engines"),
        ({}, "/home/u/.cache/vision/engines"),
    ],
)
def test_default_cache_folder_follows_the_environment(
    environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/u", **environment}.items():
        monkeypatch.setenv(name, value)
    assert default_folder() == Path(folder)
