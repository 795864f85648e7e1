"""Tests that mypy finds incorrect calls of TensorRT if it uses the stubs of TensorRT.

The tests need the repaired stubs: ``python tests/typing/prepare_stubs.py build/stubs``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.typing.prepare_stubs import prepare, repair

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "build" / "stubs"

needs_stubs = pytest.mark.skipif(not STUBS.exists(), reason="tests/typing/prepare_stubs.py build/stubs gets them")

BROKEN = """
class A:
    def get_workspace_size(self, in: list[int], out: list[int]) -> int: ...
    def get_workspace_size(self, in: list[int], out: list[int]) -> int: ...
    def configure_plugin(self, in: list[int], out: list[int]) -> None: ...
    def on_shape_change(self, in: list[int], out: list[int]) -> None: ...
    def add_scale_nd(self, shift: Weights = None, power: Weights = None, channel_axis: int) -> int: ...
"""


def test_stubs_are_repaired_to_valid_python() -> None:
    with pytest.raises(SyntaxError):
        compile(BROKEN, "stub", "exec")
    repaired = repair(BROKEN)
    compile(repaired, "stub", "exec")
    assert repaired.startswith("# mypy: ignore-errors\n")
    assert repaired.count("in_: list[int]") == 4


def test_stubs_with_other_faults_are_refused() -> None:
    with pytest.raises(ValueError):
        repair("class A: ...")


def test_wheel_is_unpacked_where_mypy_looks(tmp_path: Path) -> None:
    wheel = tmp_path / "tensorrt_stubs-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tensorrt/__init__.pyi", "from tensorrt_bindings import *")
        archive.writestr("tensorrt_bindings/__init__.pyi", "")
        archive.writestr("tensorrt_bindings/tensorrt.pyi", BROKEN)
    prepare(wheel, tmp_path / "stubs")
    assert "in_:" in (tmp_path / "stubs" / "tensorrt_bindings" / "tensorrt.pyi").read_text()
    assert (tmp_path / "stubs" / "tensorrt" / "__init__.pyi").exists()


def check(root: Path, *modules: str) -> subprocess.CompletedProcess[str]:
    """Run mypy with the stubs on `modules` in the folder `root`. Return its output."""
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *modules],
        cwd=root,
        env={**os.environ, "MYPYPATH": str(STUBS), "MYPY_CACHE_DIR": str(ROOT / "build" / "mypy-stubs")},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_stubs
def test_engine_package_matches_the_stubs() -> None:
    done = check(ROOT, "vision/engine")
    assert done.returncode == 0, done.stdout


@needs_stubs
@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        (".execute_async_v3(stream)", ".execute_async_v4(stream)", 'has no attribute "execute_async_v4"'),
        (".infer_shapes()", ".infer_shapes(1)", "Too many arguments"),
        (".set_tensor_address(name, address)", ".set_tensor_address(address, name)", "incompatible type"),
    ],
)
def test_misspelt_call_is_reported(right: str, wrong: str, says: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "vision", tmp_path / "vision", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "vision" / "engine" / "runtime.py"
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    done = check(tmp_path, "vision/engine/runtime.py")
    assert done.returncode == 1
    assert "vision/engine/runtime.py" in done.stdout
    assert says in done.stdout
