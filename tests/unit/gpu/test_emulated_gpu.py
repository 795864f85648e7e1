"""Run the GPU tests of kernels, detector, and benchmarks on the emulated GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.emulator.process import run_emulated

pytestmark = pytest.mark.emulated

SUITES: Mapping[str, tuple[str, ...]] = {
    "kernels": (
        "tests/gpu/test_postprocess_kernels.py",
        "tests/gpu/test_letterbox_kernel.py",
        "tests/gpu/test_crop_kernel.py",
        "tests/gpu/test_gpu_classifier.py",
        "tests/gpu/test_calibration.py",
    ),
    "video": ("tests/gpu/test_nvdec.py",),
    "contract": ("tests/contract/test_detector.py", "-k", "tensorrt and not thousand"),
    "detector": (
        "tests/gpu/test_exports.py",
        "tests/gpu/test_tensorrt_detector.py",
        "tests/gpu/test_emulated_detector.py",
        "tests/gpu/test_emulated_device.py",
        "tests/gpu/test_shape_inputs.py",
    ),
    "programs": (
        "tests/gpu/test_plugins.py",
        "tests/gpu/test_performance.py",
        "tests/gpu/test_nvdec_detector.py",
    ),
}
"""Arguments of pytest for each process. Few processes are used, because each needs 2 s to start."""
WITHOUT_ENGINES = ("kernels", "video")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", SUITES)
def test_suite_passes_on_the_emulated_gpu(suite: str, tmp_path: Path) -> None:
    run_emulated(SUITES[suite], tmp_path, engines=suite not in WITHOUT_ENGINES)
