"""Run tests on the emulated GPU in a separate process, which imports the stand-in for cuda-python first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.plugins.driver import MISSING
from vision.engine.library import find_library
from vision.errors import DeviceMissing

ROOT = Path(__file__).parents[2]

_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""Settings of glibc. Without them, Linux clears the pages of each frame again, which takes a quarter of the time."""


def run_emulated(tests: Sequence[str], cache: Path, *, engines: bool = True) -> None:
    """Run pytest with `tests` on the emulated GPU. Fail if a test fails, or if a test is skipped without need.

    Args:
        tests: pytest's arguments.
        cache: folder for compiled files.
        engines: if True, the tests need TensorRT to build engines.
    """
    try:
        if engines:
            find_library()  # the real library builds the engines, from the place that PYTHONPATH names
    except DeviceMissing as error:
        pytest.skip(str(error))
    path = [str(ROOT / "tests" / "emulator" / "site"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-rs", "-p", "no:cacheprovider", "--timeout=600", *tests],
        cwd=ROOT,
        env={
            **os.environ,
            **_KEEP_MEMORY,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "CACHE_DIRECTORY": str(cache),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert " passed" in lines[-1], lines[-1]
    allowed = ("needs a real GPU", MISSING)
    skipped = [line for line in lines if line.startswith("SKIPPED") and not line.endswith(allowed)]
    assert not skipped, skipped
