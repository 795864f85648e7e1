"""TensorRT on a machine without a GPU: one line of error text, a hint, and an exit code."""

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
def test_missing_driver_is_reported_with_a_hint_and_exit_code_75(tmp_path: Path, verb: str) -> None:
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
    assert done.returncode == 75, done.stderr
    message, hint = (line for line in done.stderr.splitlines() if not line.startswith("measuring"))
    assert message.startswith("vision: ")
    assert "NVIDIA" in message or "cuda-python" in message or "GPU" in message
    assert hint.startswith("  hint: ")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"dev/nvidiactl": b""}, True),
        ({"dev/nvhost-gpu": b""}, True),
        ({"dev/null": b""}, False),
        ({"proc/device-tree/compatible": b"nvidia,p3767-0005\0nvidia,tegra234\0"}, True),
        ({"proc/device-tree/compatible": b"raspberrypi,4-model-b\0"}, False),
        ({"sys/bus/pci/devices/0/vendor": b"0x10de\n", "sys/bus/pci/devices/0/class": b"0x030200\n"}, True),
        ({"sys/bus/pci/devices/0/vendor": b"0x10de\n", "sys/bus/pci/devices/0/class": b"0x0c0330\n"}, False),  # USB
        ({"sys/bus/pci/devices/0/vendor": b"0x8086\n", "sys/bus/pci/devices/0/class": b"0x030000\n"}, False),
    ],
)
def test_gpu_is_found_also_before_its_driver_is_loaded(tmp_path: Path, files: dict[str, bytes], expected: bool) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert has_nvidia_gpu(tmp_path) == expected
