"""Optional libraries are optional: modules that need none of them import without them."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

NUMPY_ALONE = (
    "vision",
    "vision.errors",
    "vision.types",
    "vision.drawing.test_pattern",
    "vision.metrics",
    "vision.runtime.latest_slot",
    "vision.runtime.batcher",
    "vision.capture.source",
    "vision.detect.detector",
)
NO_GPU_LIBRARY = (
    "vision.cli.main",
    "vision.config",
    "vision.runtime.builder",
    "vision.runtime.runtime",
    "vision.pipelines",
    "vision.capture.open",
    "vision.detect.open",
    "vision.detect.onnxruntime.detector",
    "vision.detect.fake",
    "vision.messaging.publisher",
    "vision.client",
    "vision.cli.watch",
    "vision.cli.check",
    "vision.cli.doctor",
    "vision.analytics.tracker",
)

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""

COUNTING = """
import sys
from vision.cli.main import entry

sys.argv = ["vision", "run", "counting", "--offline", "--bind", "tcp://127.0.0.1:*"]
entry()
"""

GPU = {"cuda", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "PyNvVideoCodec"}
THIRD_PARTY = GPU | {
    "cv2",
    "gi",
    "av",
    "onnx",
    "onnxruntime",
    "zmq",
    "msgspec",
    "pydantic",
    "yaml",
    "rich",
    "lap",
    "scipy",
}


def imports_without(module: str, blocked: set[str]) -> subprocess.CompletedProcess[str]:
    return run_without(f"import {module}", blocked)


def run_without(code: str, blocked: set[str]) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process in which these packages cannot be imported."""
    code = BLOCKED.format(blocked=blocked) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("module", NUMPY_ALONE)
def test_imports_with_numpy_alone(module: str) -> None:
    done = imports_without(module, THIRD_PARTY)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", NO_GPU_LIBRARY)
def test_imports_without_a_gpu_library(module: str) -> None:
    done = imports_without(module, GPU)
    assert done.returncode == 0, done.stderr


def test_counting_runs_without_opencv() -> None:
    done = run_without(COUNTING, {"cv2"})
    assert done.returncode == 0, done.stderr
    assert "crossroads 4" in done.stderr + done.stdout


def test_blocked_library_cannot_be_imported() -> None:
    assert "is blocked" in imports_without("vision.detect.onnxruntime.detector", {"onnxruntime"}).stderr
