"""Tests that modules that do not need optional libraries can be imported without these libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.short_video import save_beginning

pytestmark = pytest.mark.integration

NUMPY_AND_MSGSPEC = (
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

sys.argv = ["vision", "run", {config!r}, "--offline", "--bind", "tcp://127.0.0.1:*"]
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
    "pydantic",
    "yaml",
    "rich",
    "lap",
    "scipy",
}


def imports_without(modules: str, blocked: set[str]) -> subprocess.CompletedProcess[str]:
    return run_without(f"import {modules}", blocked)


def run_without(code: str, blocked: set[str]) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process in which the packages `blocked` cannot be imported."""
    code = BLOCKED.format(blocked=blocked) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(("modules", "blocked"), [(NUMPY_AND_MSGSPEC, THIRD_PARTY), (NO_GPU_LIBRARY, GPU)])
def test_modules_need_no_blocked_library(modules: tuple[str, ...], blocked: set[str]) -> None:
    done = imports_without(", ".join(modules), blocked)
    assert done.returncode == 0, done.stderr


def test_counting_runs_without_opencv(tmp_path: Path) -> None:
    save_beginning(ROOT / "configs" / "vtest.mp4", tmp_path / "vtest.mp4", 40)
    (tmp_path / "camera.yaml").write_text((ROOT / "configs" / "counting.yaml").read_text())
    done = run_without(COUNTING.format(config=str(tmp_path / "camera.yaml")), {"cv2"})
    assert done.returncode == 0, done.stderr
    assert "crossroads 2 in" in done.stderr + done.stdout


def test_blocked_library_cannot_be_imported() -> None:
    assert "is blocked" in imports_without("vision.detect.onnxruntime.detector", {"onnxruntime"}).stderr
