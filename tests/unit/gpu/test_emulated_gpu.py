"""The GPU's tests without a GPU: kernels, detector and measurements on the emulated one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.emulator.process import run_emulated

SUITES: Mapping[str, tuple[str, ...]] = {  # the longest first
    "postprocess": ("tests/gpu/test_postprocess_kernels.py",),
    "letterbox": ("tests/gpu/test_letterbox_kernel.py",),
    "contract": ("tests/contract/test_detector.py", "-k", "tensorrt and not thousand"),
    "detector": (
        "tests/gpu/test_tensorrt_detector.py",
        "tests/gpu/test_emulated_detector.py",
        "tests/gpu/test_emulated_device.py",
    ),
    "video": ("tests/gpu/test_nvdec.py",),
    "measurements": ("tests/gpu/test_performance.py",),
    "nvdec to detector": ("tests/gpu/test_nvdec_detector.py",),
}
WITHOUT_ENGINES = ("postprocess", "letterbox", "video")


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """All suites that are asked for, two at a time: each is a process of its own and waits for the compiler a lot."""
    cases = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = [suite for suite in SUITES if any(case.get("suite") == suite for case in cases)]
    with ThreadPoolExecutor(2) as pool:
        yield {
            suite: pool.submit(
                run_emulated, SUITES[suite], tmp_path_factory.mktemp("cache"), engines=suite not in WITHOUT_ENGINES
            )
            for suite in wanted
        }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", SUITES)
def test_in_the_emulator(suite: str, running: Mapping[str, Future[None]]) -> None:
    running[suite].result()
