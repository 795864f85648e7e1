"""Size of the memory in which models run, and of its free part.

A model on a GPU needs memory of this GPU. On a Jetson or a DGX Spark, the CPU and the GPU share one memory.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import psutil
import pynvml as nvml

from vision.engine.library import TEGRA_RELEASE

_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Size of the memory in which models run, and of the part that no program used at the time of the measurement."""

    owner: Literal["GPU", "CPU and GPU", "CPU"]  # the processor whose memory this is
    total_mib: float
    free_mib: float


def model_memory() -> ModelMemory:
    """Return the memory of the first GPU, or the main memory if there is no GPU or the GPU uses the main memory."""
    has_gpu = TEGRA_RELEASE.exists()
    if not has_gpu:
        with suppress(nvml.NVMLError):  # no driver, or no GPU
            nvml.nvmlInit()
            try:
                gpu = nvml.nvmlDeviceGetHandleByIndex(0)
                has_gpu = True
                own = nvml.nvmlDeviceGetMemoryInfo(gpu)  # an error if the GPU has no memory of its own
                return ModelMemory("GPU", own.total / _MIB, own.free / _MIB)
            finally:
                nvml.nvmlShutdown()
    main = psutil.virtual_memory()
    return ModelMemory("CPU and GPU" if has_gpu else "CPU", main.total / _MIB, main.available / _MIB)
