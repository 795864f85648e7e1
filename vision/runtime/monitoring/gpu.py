"""Metrics of NVIDIA GPUs in the format of Prometheus. A Jetson provides only some of these metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.core import GaugeMetricFamily

from vision.outputs.hardware import GpuState

_TEXTS: Final = {
    "memory_used_bytes": "Memory in use by all programs.",
    "memory_total_bytes": "Memory of the GPU.",
    "temperature_celsius": "Temperature of the GPU.",
    "clock_hertz": "Clock of the multiprocessors.",
    "utilization_ratio": "Part of the time in which a kernel ran.",
}


def gpu_metrics(gpus: Sequence[GpuState]) -> Iterator[GaugeMetricFamily]:
    """Yield the metrics that the drivers of the GPUs support. Yield nothing if there is no GPU."""
    if not gpus:
        return
    for name, text in _TEXTS.items():
        family = GaugeMetricFamily(f"vision_gpu_{name}", text, labels=["gpu"])
        for index, gpu in enumerate(gpus):
            value = getattr(gpu, name)
            if value is not None:
                family.add_metric([str(index)], float(value))
        yield family
    family = GaugeMetricFamily("vision_gpu_throttled", "1 if the clocks are lowered.", labels=["gpu", "reason"])
    for index, gpu in enumerate(gpus):
        for reason, applies in gpu.throttled.items():
            family.add_metric([str(index), reason], float(applies))
    yield family
