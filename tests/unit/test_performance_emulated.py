"""What measures a GPU, on the emulated one: in a process of its own, where the stand-in for cuda-python comes first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_in_the_emulator(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "tests" / "emulator" / "site"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/gpu/test_performance.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "CACHE_DIRECTORY": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1]
