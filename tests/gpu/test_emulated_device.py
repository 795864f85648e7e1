"""What is said of a GPU that cannot be used, from the call of CUDA to the line in the terminal. In the emulator."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.gpu.opening import EMULATED
from vision.config import DetectConfig, folder_of_model, load_model_card, shipped_models
from vision.cuda import open_device
from vision.detect.open import open_detector
from vision.doctor import check_cuda
from vision.errors import EXIT_CONFIG, DeviceMissing

pytestmark = pytest.mark.skipif(not EMULATED, reason="needs a driver that can be told what to say")

UNUSABLE = [
    (35, 12020, "the NVIDIA driver is too old: it knows CUDA 12.2, and cuda-python is for CUDA 13.0", "vision[cuda12]"),
    (35, 0, "there is no NVIDIA driver", "install the driver"),
    (100, 13000, "the NVIDIA driver shows no GPU", "CUDA_VISIBLE_DEVICES"),
]


@pytest.fixture(params=UNUSABLE, ids=["old driver", "no driver", "no GPU"])
def unusable(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """What should be said, and hinted at."""
    from cuda.bindings.device import gpu

    status, version, said, hint = request.param
    open_device.cache_clear()
    known, gpu.count_status, gpu.driver_version = gpu.driver_version, status, version
    try:
        yield said, hint
    finally:
        gpu.count_status, gpu.driver_version = 0, known
        open_device.cache_clear()


def test_the_detector_is_refused_and_no_restart_asked_for(unusable: tuple[str, str]) -> None:
    said, hint = unusable
    folder = folder_of_model("nanodet-g-416", shipped_models())
    with pytest.raises(DeviceMissing) as caught:
        open_detector(folder, load_model_card(folder), DetectConfig(backend="tensorrt"))
    assert said in caught.value.args[0]
    assert hint in caught.value.hint
    assert caught.value.exit_code == EXIT_CONFIG


def test_auto_says_why_it_takes_the_cpu(unusable: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of_model("nanodet-g-416", shipped_models())
    with caplog.at_level(logging.INFO):
        open_detector(folder, load_model_card(folder), DetectConfig(threads=1)).close()
    assert f"so ONNX Runtime detects on the CPU: {unusable[0]}" in caplog.text


def test_doctor_says_it_too(unusable: tuple[str, str]) -> None:
    found = check_cuda()
    assert found.verdict in ("missing", "broken")
    assert unusable[0] in found.detail
    assert unusable[1] in found.hint


def test_doctor_says_what_it_opens() -> None:
    open_device.cache_clear()
    found = check_cuda()
    assert found.detail == "Emulated GPU (sm_90), the driver knows CUDA 13.0"
