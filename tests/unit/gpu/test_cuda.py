"""Tests of CUDA errors, and of machines without a usable GPU. ``tests/gpu`` contains the other GPU tests."""

from __future__ import annotations

import pytest

from vision.errors import EXIT_CONFIG, EXIT_RUNTIME, EXIT_TEMPORARY, DeviceError, DeviceMissing, OutOfMemory
from vision.gpu import memory
from vision.gpu.cuda import Event, check, driver_calls, failure, no_device, open_device

cuda = pytest.importorskip("cuda.bindings.runtime")


@pytest.mark.parametrize(
    ("status", "driver", "code", "exit_code"),
    [
        (35, 0, "no-driver", EXIT_TEMPORARY),
        (35, 12020, "old-driver", EXIT_CONFIG),
        (35, 11040, "old-driver", EXIT_CONFIG),
        (100, 13000, "no-gpu", EXIT_TEMPORARY),
        (803, 13000, "driver-mismatch", EXIT_TEMPORARY),
    ],
)
def test_only_an_old_driver_is_a_configuration_error(status: int, driver: int, code: str, exit_code: int) -> None:
    error = no_device(status, driver, 13000)
    assert isinstance(error, DeviceMissing)
    assert error.code == code
    assert error.hint
    assert error.exit_code == exit_code


@pytest.mark.parametrize(
    ("driver", "runtime", "package"),
    [(12020, 13000, "[cuda12]"), (12060, 12090, "cuda-python==12.6.*"), (13000, 13020, "cuda-python==13.0.*")],
)
def test_hint_for_an_old_driver_installs_a_version_that_it_supports(driver: int, runtime: int, package: str) -> None:
    assert package in no_device(35, driver, runtime).hint


@pytest.mark.parametrize(
    ("status", "name"),
    [(2, "MemoryAllocation"), (3, "InitializationError"), (46, "DevicesUnavailable"), (999, "Unknown"), (9999, "9999")],
)
def test_unusable_gpu_is_an_error_that_a_restart_can_fix(status: int, name: str) -> None:
    error = no_device(status, 13000, 13000)
    assert name in error.args[0]
    assert error.code == "cuda-error"
    assert not isinstance(error, DeviceMissing)
    assert error.exit_code == EXIT_RUNTIME


def test_device_is_opened_or_its_absence_explained() -> None:
    try:
        assert open_device().arch.startswith("sm_")
    except DeviceMissing as missing:
        assert missing.code in ("no-driver", "old-driver", "no-gpu", "driver-mismatch")
        assert missing.hint


def test_driver_calls_need_a_driver() -> None:
    try:
        open_device()
    except DeviceMissing:
        with pytest.raises(DeviceMissing) as caught:
            driver_calls()
        assert caught.value.code in ("no-driver", "old-driver", "no-gpu", "driver-mismatch")
    else:
        with Event() as never_recorded:
            assert driver_calls().query(never_recorded.address) == 0


def test_out_of_memory_does_not_need_a_restart() -> None:
    """The error is temporary. For example, the decoder of one camera can lack memory while the others continue."""
    error = failure(cuda.cudaError_t.cudaErrorMemoryAllocation, "making a stream")
    assert isinstance(error, OutOfMemory)
    assert error.code == "out-of-memory"


@pytest.mark.parametrize("status", [700, 719, 214, 12345])
def test_error_names_the_action(status: int) -> None:
    try:
        value = cuda.cudaError_t(status)
    except ValueError:  # newer than this cuda-python
        value = status
    with pytest.raises(DeviceError) as caught:
        check((value,), "a test")
    assert "a test" in caught.value.args[0]
    assert caught.value.code == "cuda-error"
    assert isinstance(failure(value, "a test"), DeviceError)


def test_check_returns_the_values_after_the_status() -> None:
    good = cuda.cudaError_t.cudaSuccess
    assert check((good,), "x") is None
    assert check((good, 5), "x") == 5
    assert check((good, 5, 6), "x") == (5, 6)


def test_failed_allocation_names_size_and_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_info", lambda: (1 << 20, 8 << 30))
    monkeypatch.setattr(cuda, "cudaMalloc", lambda _: (cuda.cudaError_t.cudaErrorMemoryAllocation, None))
    monkeypatch.setattr(cuda, "cudaGetLastError", lambda: None)
    with pytest.raises(OutOfMemory) as caught:
        memory.DeviceBuffer(3 << 20, "activations")
    error = caught.value
    assert error.code == "out-of-memory"
    for part in ("activations", "3.0 MiB", "1.0 MiB", "8192.0 MiB"):
        assert part in error.args[0]
    assert "max_batch" in error.hint
