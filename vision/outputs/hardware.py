"""Functions and classes that read the state of the GPUs, thermal zones, memory, and disks of this machine."""

from __future__ import annotations

import contextlib
import importlib
import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

log = logging.getLogger(__name__)

_THERMAL: Final = Path("/sys/class/thermal")
_THROTTLING: Final = {
    "power": ("nvmlClocksEventReasonSwPowerCap", "nvmlClocksThrottleReasonSwPowerCap"),
    "thermal": ("nvmlClocksEventReasonSwThermalSlowdown", "nvmlClocksThrottleReasonSwThermalSlowdown"),
    "hardware": ("nvmlClocksThrottleReasonHwSlowdown",),
}
"""For each reason why clocks are lowered, the names of the bit in new and old versions of NVIDIA's library (NVML)."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """The state of one GPU. Values that the driver does not report are None."""

    memory_used_bytes: int | None  # by all programs
    memory_total_bytes: int | None
    temperature_celsius: float | None
    clock_hertz: float | None  # of the multiprocessors
    utilization_ratio: float | None  # part of the time in which a kernel ran
    throttled: dict[str, bool] = field(default_factory=dict)  # by reason; empty if the driver does not report it


class GpuSampler:
    """Sampler of the state of all GPUs. If there is no GPU, driver, or `pynvml`, `read` returns an empty list."""

    def __init__(self, nvml: Any = None) -> None:
        """Open NVIDIA's library (NVML). If `nvml` is not None, it replaces the module `pynvml`."""
        self._gpus: list[Any] = []
        try:
            nvml = nvml or importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except Exception as error:  # noqa: BLE001 - NVML raises its own class, and the module can be missing
            log.debug("no state of GPUs: %s", error)
        self._nvml = nvml

    def read(self) -> list[GpuState]:
        """Return the state of each GPU."""
        return [self._state(gpu) for gpu in self._gpus]

    def _state(self, gpu: Any) -> GpuState:
        nvml = self._nvml
        return GpuState(
            memory_used_bytes=self._value(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
            memory_total_bytes=self._value(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
            temperature_celsius=self._value(lambda: nvml.nvmlDeviceGetTemperature(gpu, 0)),
            clock_hertz=self._value(lambda: nvml.nvmlDeviceGetClockInfo(gpu, 1) * 1e6),
            utilization_ratio=self._value(lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
            throttled=self._value(lambda: self._throttled(gpu)) or {},
        )

    def _throttled(self, gpu: Any) -> dict[str, bool]:
        reasons = int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
        found = {}
        for reason, names in _THROTTLING.items():
            bits = [getattr(self._nvml, name) for name in names if hasattr(self._nvml, name)]
            found[reason] = any(reasons & bit for bit in bits)
        return found

    def _value(self, read: Callable[[], Any]) -> Any:
        with contextlib.suppress(self._nvml.NVMLError):  # not supported by this GPU
            return read()
        return None


def temperatures() -> dict[str, float]:
    """Return the temperatures that the kernel measures, in degrees Celsius.

    The keys consist of the number and the type of the thermal zone, such as ``0-x86_pkg_temp``.
    """
    found = {}
    for zone in sorted(_THERMAL.glob("thermal_zone*")):
        with contextlib.suppress(OSError, ValueError):  # a zone without a sensor
            name, value = (zone / "type").read_text().strip(), int((zone / "temp").read_text()) / 1000
            found[f"{zone.name.removeprefix('thermal_zone')}-{name}"] = value
    return found


@dataclass(frozen=True, slots=True)
class Space:
    """The used and the total space of the main memory or of a disk, in bytes."""

    used_bytes: int
    total_bytes: int


def memory() -> Space:
    """Return the used and the total memory of this machine. Memory that is not available counts as used."""
    found = psutil.virtual_memory()
    return Space(found.total - found.available, found.total)


def disks(folders: Iterable[tuple[str, Path]]) -> dict[str, Space]:
    """Return, for each pair of a name and a folder, the space of the disk that contains the folder, by name.

    Leave out folders that do not exist.
    """
    found = {}
    for name, folder in folders:
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(folder)
            found[name] = Space(usage.total - usage.free, usage.total)
    return found
