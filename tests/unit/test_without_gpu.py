"""What who asks for TensorRT is told on a machine without a GPU: one line, what to do, and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.engine_models import needs_no_gpu
from vision.detect.open import has_nvidia_gpu

MODEL = "nanodet-g-416"


@pytest.mark.integration
@needs_no_gpu
@pytest.mark.parametrize("verb", ["run", "build", "bench", "profile"])
def test_one_line_a_hint_and_no_restart(tmp_path: Path, verb: str) -> None:
    config = tmp_path / "camera.yaml"
    config.write_text(
        json.dumps(
            {
                "detect": {"backend": "tensorrt"},
                "cameras": [{"id": "a", "source": "synthetic:64x64"}],
                "publish": {"bind": f"ipc://{tmp_path}/out"},
            }
        )
    )
    arguments = {
        "run": ["run", str(config)],
        "build": ["build", MODEL],
        "bench": ["bench", MODEL, "--backend", "tensorrt"],
        "profile": ["profile", MODEL, "--backend", "tensorrt"],
    }
    command = [sys.executable, "-m", "vision.cli.main", "--log-level", "warning", *arguments[verb]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78, done.stderr
    said, hint = (line for line in done.stderr.splitlines() if not line.startswith("measuring"))
    assert said.startswith("vision: ")
    assert "NVIDIA" in said or "cuda-python" in said or "GPU" in said
    assert hint.startswith("  hint: ")


@pytest.mark.parametrize(("name", "there"), [("nvidiactl", True), ("nvhost-gpu", True), ("null", False)])
def test_a_gpu_that_the_kernel_shows(tmp_path: Path, name: str, there: bool) -> None:
    (tmp_path / name).touch()
    assert has_nvidia_gpu(tmp_path) == there
