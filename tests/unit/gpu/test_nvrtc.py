"""Tests of the cache of compiled kernels, and of kernel arguments."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.log_records import log_args
from vision.errors import DeviceError, ModelError
from vision.gpu.nvrtc import Source, compile_cubin, pack

SOURCE = Source(
    "test.cu", '#include "h.cuh"\nextern "C" __global__ void f(int* x) { *x = N; }', {"h.cuh": ""}, {"N": 1}
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


def test_kernel_is_compiled_once(cache: Path) -> None:
    first = compile_cubin(SOURCE, "sm_87", cache)
    (file,) = cache.iterdir()
    written_ns = file.stat().st_mtime_ns
    assert compile_cubin(SOURCE, "sm_87", cache) == first
    assert [each.stat().st_mtime_ns for each in cache.iterdir()] == [written_ns]


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(SOURCE, definitions={"N": 2}),
        dataclasses.replace(SOURCE, text=SOURCE.text + "\n"),
        dataclasses.replace(SOURCE, headers={"h.cuh": "\n"}),
    ],
    ids=["definition", "text", "header"],
)
def test_changed_source_is_cached_in_a_new_file(cache: Path, other: Source) -> None:
    compile_cubin(SOURCE, "sm_87", cache)
    compile_cubin(other, "sm_87", cache)
    assert len(list(cache.iterdir())) == 2


def test_each_architecture_is_cached_in_a_separate_file(cache: Path) -> None:
    assert compile_cubin(SOURCE, "sm_87", cache) != compile_cubin(SOURCE, "sm_90", cache)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 5000], ids=["empty", "cut off", "other"])
def test_damaged_file_is_replaced(cache: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    good = compile_cubin(SOURCE, "sm_87", cache)
    (file,) = cache.iterdir()
    file.write_bytes(damage)
    assert compile_cubin(SOURCE, "sm_87", cache) == good
    assert log_args(caplog, "vision.state.private_files") == [(file,)]
    assert file.read_bytes()[32:] == good


@pytest.mark.parametrize("what", ["folder", "file"])
def test_files_writable_by_others_are_refused(cache: Path, what: str) -> None:
    compile_cubin(SOURCE, "sm_87", cache)
    path = cache if what == "folder" else next(cache.iterdir())
    path.chmod(0o777)
    with pytest.raises(ModelError) as caught:
        compile_cubin(SOURCE, "sm_87", cache)
    assert path.name in caught.value.args[0]


def test_unusable_cache_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("in the way")
    with pytest.raises(ModelError):
        compile_cubin(SOURCE, "sm_87", tmp_path / "kernels")


def test_compile_error_contains_the_compiler_output() -> None:
    with pytest.raises(DeviceError) as caught:
        compile_cubin(dataclasses.replace(SOURCE, text="nonsense"), "sm_87")
    assert caught.value.code == "kernel-not-compiled"
    assert "nonsense" in caught.value.args[0]
    with pytest.raises(DeviceError) as caught:
        compile_cubin(SOURCE, "sm_1")
    assert caught.value.code == "kernel-not-compiled"


def test_headers_in_the_same_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text("a")
    (tmp_path / "b.cuh").write_text("b")
    (tmp_path / "c.txt").write_text("c")
    assert Source.read(tmp_path / "a.cu", {"X": 1}) == Source("a.cu", "a", {"b.cuh": "b"}, {"X": 1})


STRUCT = np.dtype([("a", np.float32), ("b", np.uint64)])


@pytest.mark.parametrize(
    ("argument", "size"),
    [(5, 8), (1 << 63, 8), (np.float32(1), 4), (np.uint32(1), 4), (np.zeros((), STRUCT), STRUCT.itemsize)],
)
def test_arguments_have_the_size_of_the_kernel_parameter(argument: object, size: int) -> None:
    assert pack(argument).nbytes == size


def test_arguments_are_copied() -> None:
    given = np.zeros((), STRUCT)
    packed = pack(given)
    given["a"] = 1
    assert packed["a"] == 0


@pytest.mark.parametrize("argument", [True, 1.5, "x", np.zeros(3, np.float32), None])
def test_arguments_of_unknown_size_are_refused(argument: object) -> None:
    with pytest.raises(ModelError):
        pack(argument)
