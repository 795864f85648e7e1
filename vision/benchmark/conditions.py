"""Conditions of a measurement: the machine, the versions, the clocks under load, and the CPU use.

A different GPU clock, a different power mode of a Jetson, or other programs on the CPU change measurements more than
most improvements of the code do. Therefore, every row of a benchmark includes the state of the machine under load.

NVML reports the state of an NVIDIA GPU, and tegrastats reports the state of a Jetson. See
docs/decisions/070-machine-conditions.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pynvml as nvml

_PACKAGES: Final = (
    "vision",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "opencv-python",
    "cuda-bindings",
    "cuda-python",  # until 12.6, which JetPack 6 needs, it contains the bindings itself
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt-rtx-cu12-bindings",
)
_COMMAND_S: Final = 5.0  # timeout of a command
_TEGRASTATS: Final = "tegrastats --interval 200 | head -n 1"  # tegrastats does not stop by itself


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").rstrip("\0\n")
    except OSError:
        return ""


def _output(*command: str) -> str:
    """Return the standard output of a command, or an empty string if it is missing, fails, or takes more than 5 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------------ machine


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and its settings. Measurements are comparable only if all values are equal."""

    cpu: str
    cores: int  # number of CPU cores that this process can use
    memory_gib: float
    gpu: str = ""
    jetson: str = ""  # module and L4T release
    power_mode: str = ""  # as reported by nvpmodel
    governor: str = ""  # CPU frequency governor


def machine() -> Machine:
    """Return the hardware of this machine and its settings."""
    jetson = _jetson()
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=query_gpu().get("name") or ("integrated" if jetson else ""),
        jetson=jetson,
        power_mode=parse_power_mode(_output("nvpmodel", "-q")),
        governor=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def _cpu_name() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return " ".join(value.split())
    return _text("/proc/device-tree/model") or platform.machine()


def _jetson() -> str:
    release = _text("/etc/nv_tegra_release")
    if not release:
        return ""
    parts = re.search(r"R(\d+).*?REVISION: ([\d.]+)", release)
    version = f"L4T {parts[1]}.{parts[2]}" if parts else release.splitlines()[0]
    return f"{_text('/proc/device-tree/model') or 'unknown module'}, {version}"


def parse_power_mode(text: str) -> str:
    """Return the power mode in the output of `nvpmodel -q`, such as ``MAXN (0)``, or "" if there is no mode."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    name = next((line.partition(":")[2].strip() for line in lines if "Power Mode" in line), "")
    number = next((line for line in lines if line.isdigit()), "")
    return f"{name} ({number})" if name and number else name or number


def versions() -> dict[str, str]:
    """Return the versions of Python, of the installed packages in `_PACKAGES`, and of the GPU driver, by name.

    If JetPack installed TensorRT, the result lacks the version of TensorRT. The name of the back-end contains this
    version.
    """
    packages = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[package] = importlib.metadata.version(package)
    driver = query_gpu().get("driver")
    return {**packages, "driver": driver} if driver else packages


# ------------------------------------------------------------------------------------------------ clocks


@dataclass(frozen=True, slots=True)
class Clocks:
    """State of the machine at one moment under load. A value is None or empty if it is unknown."""

    cpu_mhz: float | None = None
    gpu_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_power_w: float | None = None  # of the whole module on a Jetson
    gpu_temperature_c: float | None = None
    power_state: str = ""  # P0 to P15
    throttled: str = ""  # reasons for a reduced GPU clock; empty if the clock is not reduced
    load: float | None = None  # load average of the last minute


def clocks() -> Clocks:
    """Return the current state of the machine. The call takes up to a second, so avoid it during a measurement."""
    if shutil.which("tegrastats"):
        values: dict[str, Any] = parse_tegrastats(_output("sh", "-c", _TEGRASTATS))
    else:
        values = {name: value for name, value in query_gpu().items() if name not in ("name", "driver")}
    values.setdefault("cpu_mhz", _cpu_mhz())
    return Clocks(**values, load=os.getloadavg()[0])


def _cpu_mhz() -> float | None:
    with suppress(NotImplementedError, OSError):  # some virtual machines do not report the clock
        return max((core.current for core in psutil.cpu_freq(percpu=True)), default=None)
    return None


_REASONS: Final[Mapping[int, str]] = {
    0x2: "clocks set by hand",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}
"""Bits of NVML's nvmlClocksEventReasons in words. Bit 0x1, which means an idle GPU, is left out."""


def throttle_reasons(bits: int) -> str:
    """Return the reasons in NVML's bit mask in words, separated by commas, or an empty string if there is no reason."""
    return ", ".join(name for bit, name in _REASONS.items() if bits & bit)


_GPU_FACTS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "name": nvml.nvmlDeviceGetName,
    "driver": lambda _: nvml.nvmlSystemGetDriverVersion(),
    "gpu_mhz": lambda gpu: float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
    "gpu_memory_mhz": lambda gpu: float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
    "gpu_power_w": lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    "gpu_temperature_c": lambda gpu: float(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
    "power_state": lambda gpu: f"P{nvml.nvmlDeviceGetPerformanceState(gpu)}",
    # Every driver has the function with this name. Older drivers lack its new name, ClocksEventReasons.
    "throttled": lambda gpu: throttle_reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)),
}


def query_gpu() -> dict[str, Any]:
    """Return NVML's values for the first GPU, by the keys of `_GPU_FACTS`, or an empty dict if there is no GPU."""
    facts: dict[str, Any] = {}
    with suppress(nvml.NVMLError):  # no driver, or no GPU
        nvml.nvmlInit()
        try:
            gpu = nvml.nvmlDeviceGetHandleByIndex(0)
            for name, query in _GPU_FACTS.items():
                with suppress(nvml.NVMLError):  # this GPU does not report the value
                    facts[name] = query(gpu)
        finally:
            nvml.nvmlShutdown()
    return facts


def parse_tegrastats(line: str) -> dict[str, float]:
    """Parse a line of tegrastats (JetPack 5 to 7). Return its values, by field name of `Clocks`."""
    patterns = {
        "gpu_mhz": r"GR3D_FREQ \d+%@\[?(\d+)",
        "gpu_memory_mhz": r"EMC_FREQ \d+%@(\d+)",
        "gpu_temperature_c": r"\bgpu@([\d.]+)C",
        "gpu_power_w": r"\b(?:VDD_IN|VIN_SYS_5V0|VIN|POM_5V_IN) (\d+)",
    }
    matches = {name: re.search(pattern, line, re.IGNORECASE) for name, pattern in patterns.items()}
    values = {name: float(match[1]) for name, match in matches.items() if match}
    if "gpu_power_w" in values:
        values["gpu_power_w"] /= 1e3
    if (cores := re.search(r"CPU \[([^\]]*)\]", line)) and (mhz := re.findall(r"%@(\d+)", cores[1])):
        values["cpu_mhz"] = max(map(float, mhz))
    return values


# ------------------------------------------------------------------------------------------------ CPU use


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Mean number of CPU cores that this process (`own`) and all other programs (`others`) used."""

    own: float
    others: float


class CpuMeter:
    """Meter of the CPU use of this process and of other programs since the creation of the meter."""

    def __init__(self) -> None:
        self._begin = _cpu_times()

    def read(self) -> CpuUse:
        """Return the mean CPU use since the meter was created."""
        wall_s, own_s, all_s = (end - begin for begin, end in zip(self._begin, _cpu_times(), strict=True))
        wall_s = max(1e-9, wall_s)
        return CpuUse(own_s / wall_s, max(0.0, (all_s - own_s) / wall_s))


def _cpu_times() -> tuple[float, float, float]:
    """Return the monotonic time, the CPU time of this process and its children, and the CPU time of the machine.

    All times are in seconds. The CPU time of the machine includes the time that a hypervisor gave to other virtual
    machines.
    """
    times = psutil.cpu_times()
    machine_s = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    own_s = time.process_time()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            used = child.cpu_times()
            own_s += used.user + used.system
    return time.monotonic(), own_s, machine_s


def available_cores(seconds: float = 0.25) -> float:
    """Return the mean number of CPU cores that this process gets.

    For the measurement, the process tries to use all cores for `seconds` seconds.
    """
    block = bytes(1 << 20)
    end_s = time.monotonic() + seconds

    def burn() -> None:
        while time.monotonic() < end_s:
            hashlib.sha256(block)  # releases the GIL

    cores = len(os.sched_getaffinity(0))
    wall, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(cores):
            pool.submit(burn)
    return (time.process_time() - cpu) / (time.monotonic() - wall)
