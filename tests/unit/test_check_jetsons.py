"""Tests that `make check-jetsons` fails if a requirement is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TESTS = ("tests/unit/engine/test_any.py", "tests/unit/optimize/test_engines.py")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project without TensorRT, with the script, the program, and tests that pass."""
    (tmp_path / "tools").mkdir()
    for name in ("check_jetsons", "setup.sh"):
        shutil.copy(ROOT / "tools" / name, tmp_path / "tools" / name)
    (tmp_path / "vision").symlink_to(ROOT / "vision")
    for name in TESTS:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("def test_that_passes(): pass\n")
    return tmp_path


def check(project: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": str(project)}
    script = [shutil.which("bash") or "bash", str(project / "tools" / "check_jetsons"), *arguments]
    return subprocess.run(script, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [[], ["--installed"]])
def test_missing_python_is_a_failure_unless_permitted(project: Path, options: list[str]) -> None:
    tools = project / "bin"
    tools.mkdir()
    (tools / "dirname").symlink_to(shutil.which("dirname") or "dirname")
    done = check(project, *options, "jetpack-6", path=str(tools))
    assert "jetpack-6 needs Python 3.10, which is missing" in done.stderr
    assert done.returncode == (0 if options else 1)
    assert ("failed: jetpack-6" in done.stderr) is not bool(options)


@pytest.mark.parametrize(("name", "version"), [("tensorrt-rtx-1.7", "1.7"), ("tensorrt-10.16", "10.16")])
def test_missing_library_is_a_failure(project: Path, name: str, version: str) -> None:
    for folder in (name, "cuda"):
        (project / "build" / folder).mkdir(parents=True)
        (project / "build" / folder / ".done").touch()
    done = check(project, name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 1, done.stdout
    assert f"TensorRT {version} cannot be loaded" in done.stderr
