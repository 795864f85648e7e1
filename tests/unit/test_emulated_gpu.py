"""The GPU's tests without a GPU: kernels, detector and measurements on the emulated one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator.process import run_emulated


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "tests",
    [
        ("tests/gpu/test_letterbox_kernel.py", "tests/gpu/test_postprocess_kernels.py"),
        (
            "tests/gpu/test_tensorrt_detector.py",
            "tests/gpu/test_emulated_detector.py",
            "tests/gpu/test_emulated_device.py",
        ),
        ("tests/contract/test_detector.py", "-k", "tensorrt and not thousand"),
        ("tests/gpu/test_performance.py",),
        ("tests/gpu/test_nvdec_detector.py",),
    ],
    ids=["kernels", "detector", "contract", "measurements", "nvdec to detector"],
)
def test_in_the_emulator(tests: tuple[str, ...], tmp_path: Path) -> None:
    run_emulated(tests, tmp_path / "cache")


def test_video_in_the_emulator(tmp_path: Path) -> None:
    run_emulated(("tests/gpu/test_nvdec.py",), tmp_path / "cache", engines=False)
