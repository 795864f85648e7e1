"""The GPU's tests without a GPU: kernels and detector on the emulated one, in a process of its own.

The stand-in for cuda-python has to come first on the path, before anything has imported the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "selection",
    [
        ("tests/gpu/test_letterbox_kernel.py", "tests/gpu/test_postprocess_kernels.py"),
        ("tests/gpu/test_tensorrt_detector.py", "tests/gpu/test_emulated_detector.py"),
        ("tests/contract/test_detector.py", "-k", "tensorrt and not thousand"),
    ],
    ids=["kernels", "detector", "contract"],
)
def test_in_the_emulator(selection: tuple[str, ...], tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "tests" / "emulator" / "site"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=600", *selection],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "CACHE_DIRECTORY": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout.splitlines()[-1]
