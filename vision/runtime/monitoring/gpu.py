"""Metrics of NVIDIA GPUs, from the library of the driver (NVML). A Jetson provides only some of them."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily

log = logging.getLogger(__name__)

_THROTTLING: Final = {
    "power": ("nvmlClocksEventReasonSwPowerCap", "nvmlClocksThrottleReasonSwPowerCap"),
    "thermal": ("nvmlClocksEventReasonSwThermalSlowdown", "nvmlClocksThrottleReasonSwThermalSlowdown"),
    "hardware": ("nvmlClocksThrottleReasonHwSlowdown",),
}
"""For each reason to lower the clocks, the names of its bit in new and old versions of the library."""


class GpuSampler:
    """Reads the state of all GPUs. Without a GPU, a driver, or `pynvml`, there are no metrics."""

    def __init__(self, nvml: Any = None) -> None:
        """Open the library. If `nvml` is not None, it replaces the module `pynvml`."""
        self._gpus: list[Any] = []
        try:
            nvml = nvml or importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except Exception as error:  # noqa: BLE001 - NVML raises its own class, and the module can be missing
            log.debug("no GPU metrics: %s", error)
        self._nvml = nvml

    def metrics(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics that the driver supports."""
        if not self._gpus:
            return
        nvml = self._nvml
        for name, text, value in (
            ("memory_used_bytes", "Memory in use by all programs.", lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
            ("memory_total_bytes", "Memory of the GPU.", lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
            ("temperature_celsius", "Temperature of the GPU.", lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, 0)),
            ("clock_hertz", "Clock of the multiprocessors.", lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, 1) * 1e6),
            ("utilization_ratio", "Part of the time in which a kernel ran.", self._utilization),
        ):
            yield self._family(f"vision_gpu_{name}", text, value)
        family = GaugeMetricFamily("vision_gpu_throttled", "1 if the clocks are lowered.", labels=["gpu", "reason"])
        for index, gpu in enumerate(self._gpus):
            with contextlib.suppress(self._nvml.NVMLError):
                reasons = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
                for reason, names in _THROTTLING.items():
                    bits = [getattr(nvml, name) for name in names if hasattr(nvml, name)]
                    family.add_metric([str(index), reason], float(any(reasons & bit for bit in bits)))
        yield family

    def _utilization(self, gpu: Any) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100

    def _family(self, name: str, text: str, value: Callable[[Any], float]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["gpu"])
        for index, gpu in enumerate(self._gpus):
            with contextlib.suppress(self._nvml.NVMLError):  # not supported by this GPU
                family.add_metric([str(index)], float(value(gpu)))
        return family
