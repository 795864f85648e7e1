"""What is said of errors, and where there is no GPU to work on. The rest is in ``tests/gpu``."""

from __future__ import annotations

import pytest

from vision.errors import EXIT_CONFIG, EXIT_RUNTIME, DeviceError, DeviceMissing, OutOfMemory
from vision.gpu.cuda import Event, check, failure, no_device, open_device
from vision.gpu.driver_calls import SUCCESS, calls
from vision.gpu.memory import out_of_memory

cuda = pytest.importorskip("cuda.bindings.runtime")


@pytest.mark.parametrize(
    ("code", "driver", "said", "hint"),
    [
        (35, 0, "no NVIDIA driver", "--gpus all"),
        (35, 12020, "knows CUDA 12.2, and cuda-python is for CUDA 13.0", "cuda12"),
        (35, 11040, "knows CUDA 11.4", "update the driver"),
        (100, 13000, "shows no GPU", "CUDA_VISIBLE_DEVICES"),
        (803, 13000, "cudaErrorSystemDriverMismatch", "restart the machine"),
    ],
)
def test_why_there_is_no_gpu(code: int, driver: int, said: str, hint: str) -> None:
    error = no_device(code, driver, 13000)
    assert said in error.args[0]
    assert hint in error.hint
    assert isinstance(error, DeviceMissing)
    assert error.exit_code == EXIT_CONFIG


@pytest.mark.parametrize(
    ("code", "said"),
    [(2, "MemoryAllocation"), (3, "InitializationError"), (46, "DevicesUnavailable"), (999, "Unknown"), (9999, "9999")],
)
def test_a_gpu_that_fails_is_not_one_that_is_not_there(code: int, said: str) -> None:
    """It may work after a restart, so the program must not go on without it, or stay down."""
    error = no_device(code, 13000, 13000)
    assert said in error.args[0]
    assert "restarted" in error.hint
    assert not isinstance(error, DeviceMissing)
    assert error.exit_code == EXIT_RUNTIME


def test_a_machine_with_or_without_a_gpu() -> None:
    try:
        assert open_device().arch.startswith("sm_")
    except DeviceMissing as missing:
        assert "driver" in missing.args[0] or "GPU" in missing.args[0]
        assert missing.hint


def test_what_queues_work_needs_a_driver() -> None:
    try:
        open_device()
    except DeviceMissing:
        with pytest.raises(DeviceMissing, match="the NVIDIA driver has no cuMemcpyHtoDAsync: cudaError"):
            calls()
    else:
        with Event() as never_recorded:
            assert calls().query(never_recorded.address) == SUCCESS


def test_lack_of_memory_does_not_ask_for_a_restart() -> None:
    """It does not stick to the process: one camera's decoder may fail so, and the others go on."""
    error = failure(cuda.cudaError_t.cudaErrorMemoryAllocation, "making a stream")
    assert isinstance(error, OutOfMemory)
    assert "making a stream" in error.args[0]
    assert "restarted" not in error.hint


@pytest.mark.parametrize("status", [700, 719, 214, 12345])
def test_errors_name_what_was_done_and_what_came(status: int) -> None:
    try:
        given = cuda.cudaError_t(status)
    except ValueError:  # one that this cuda-python does not know yet
        given = status
    with pytest.raises(DeviceError, match="moving the moon failed with") as caught:
        check((given,), "moving the moon")
    assert "restarted" in caught.value.hint
    assert isinstance(failure(given, "moving the moon"), DeviceError)


def test_values_behind_a_status() -> None:
    good = cuda.cudaError_t.cudaSuccess
    assert check((good,), "x") is None
    assert check((good, 5), "x") == 5
    assert check((good, 5, 6), "x") == (5, 6)


def test_lack_of_memory_says_what_was_asked_and_what_is_free() -> None:
    error = out_of_memory(3 << 20, "activations", "device", 1 << 20, 8 << 30)
    assert "activations: 3.0 MiB of device memory were asked for; 1.0 MiB of 8192.0 MiB device memory are free" in str(
        error
    )
    assert "max_batch" in error.hint
