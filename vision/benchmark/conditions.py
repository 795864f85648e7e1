"""What figures depend on besides the code: the machine, the versions, and the clocks while it was measured.

A GPU at another clock, a Jetson in another power mode, a CPU that others use: each changes every figure by more than
most improvements do. So each row of a benchmark says how the machine was while it ran.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import psutil

_PACKAGES: Final = (
    "vision",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "opencv-python",
    "cuda-bindings",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt-rtx-cu12-bindings",
)

_COMMAND_S: Final = 5.0
_GPU_FIELDS: Final = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "pstate")
_THROTTLE: Final = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # the new name and the old one


class System(Protocol):
    """Where facts about the machine come from: the machine (`ThisSystem`), or a test's tables."""

    def text(self, path: str) -> str | None:
        """Return the text of a small file; None if it cannot be read."""

    def output(self, *command: str) -> str | None:
        """Return the output of a command; None if it is missing or fails."""

    def first_line(self, *command: str) -> str | None:
        """Return the first line of a command that does not end by itself."""


class ThisSystem:
    """The machine that this runs on."""

    def text(self, path: str) -> str | None:
        try:
            return Path(path).read_text(errors="replace").rstrip("\0\n")
        except OSError:
            return None

    def output(self, *command: str) -> str | None:
        if shutil.which(command[0]) is None:
            return None
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    def first_line(self, *command: str) -> str | None:
        if shutil.which(command[0]) is None:
            return None
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            timer = threading.Timer(_COMMAND_S, process.kill)
            timer.start()
            try:
                return process.stdout.readline().strip() or None if process.stdout is not None else None
            finally:
                timer.cancel()
                process.kill()


# ------------------------------------------------------------------------------------------------ what stays


@dataclass(frozen=True, slots=True)
class Machine:
    """The device under the figures. Where any of it differs, figures are of different machines."""

    cpu: str
    cores: int  # that this process may use
    memory_gib: float
    gpu: str = ""
    jetson: str = ""  # module and L4T release
    power_mode: str = ""  # nvpmodel's
    governor: str = ""  # of the CPU's clock


def machine(system: System) -> Machine:
    """Return the description of this machine."""
    return Machine(
        cpu=_cpu_name(system),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=system.output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or _integrated_gpu(system),
        jetson=_jetson(system),
        power_mode=parse_power_mode(system.output("nvpmodel", "-q") or ""),
        governor=system.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "",
    )


def _cpu_name(system: System) -> str:
    for line in (system.text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return " ".join(value.split())
    return system.text("/proc/device-tree/model") or platform.machine()


def _jetson(system: System) -> str:
    release = system.text("/etc/nv_tegra_release")
    if release is None:
        return ""
    found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", release)
    version = f"L4T {found[1]}.{found[2]}" if found else release.splitlines()[0]
    return f"{system.text('/proc/device-tree/model') or 'unknown module'}, {version}"


def _integrated_gpu(system: System) -> str:
    return "integrated" if system.text("/etc/nv_tegra_release") is not None else ""


def parse_power_mode(text: str) -> str:
    """``MAXN (0)`` of what `nvpmodel -q` prints; empty where that is nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    name = next((line.partition(":")[2].strip() for line in lines if "Power Mode" in line), "")
    number = next((line for line in lines if line.isdigit()), "")
    return f"{name} ({number})" if name and number else name or number


def versions(system: System) -> dict[str, str]:
    """Of what computes, by the name of its package. JetPack's TensorRT has none: the back-end's name tells it."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    driver = system.output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if driver:
        found["driver"] = driver.splitlines()[0]
    return found


def file_sha256(path: Path) -> str:
    """Of a model's file; empty where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


# ------------------------------------------------------------------------------------------------ what changes


@dataclass(frozen=True, slots=True)
class Clocks:
    """How the machine was at one moment under load; None where nothing tells."""

    cpu_mhz: float | None = None
    gpu_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_power_w: float | None = None  # of the whole module on a Jetson
    gpu_temperature_c: float | None = None
    power_state: str = ""  # P0 to P15
    throttled: str = ""  # why the GPU's clock is held down; empty: it is not, or nothing tells
    load: float | None = None  # processes that wanted to run in the last minute


def clocks(system: System) -> Clocks:
    """How the machine is now. Takes up to a second: never within what is measured."""
    tegra = system.first_line("tegrastats", "--interval", "200")
    if tegra is not None:
        values = parse_tegrastats(tegra)
    else:
        values = parse_nvidia_smi(system.output(*nvidia_smi_query(_THROTTLE[0]))) or parse_nvidia_smi(
            system.output(*nvidia_smi_query(_THROTTLE[1]))
        )
    load = (system.text("/proc/loadavg") or "").split()
    cpu_mhz = values.get("cpu_mhz", _cpu_mhz(system))
    return Clocks(
        cpu_mhz=cpu_mhz,
        gpu_mhz=values.get("gpu_mhz"),
        gpu_memory_mhz=values.get("gpu_memory_mhz"),
        gpu_power_w=values.get("gpu_power_w"),
        gpu_temperature_c=values.get("gpu_temperature_c"),
        power_state=f"P{values['power_state']:.0f}" if "power_state" in values else "",
        throttled=throttle_reasons(int(values.get("throttled", 0))),
        load=float(load[0]) if load else None,
    )


def _cpu_mhz(system: System) -> float | None:
    frequency = system.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if frequency is not None and frequency.isdigit():
        return int(frequency) / 1e3
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", system.text("/proc/cpuinfo") or "", re.MULTILINE)
    return max(map(float, found), default=None)


def nvidia_smi_query(throttle_field: str) -> tuple[str, ...]:
    """Return the command whose output `parse_nvidia_smi` reads."""
    return ("nvidia-smi", f"--query-gpu={','.join((*_GPU_FIELDS, throttle_field))}", "--format=csv,noheader,nounits")


def parse_nvidia_smi(text: str | None) -> dict[str, float]:
    """Of the first GPU, what is a number; a field that this GPU does not have is left out."""
    names = (
        "gpu_mhz",
        "gpu_memory_mhz",
        "gpu_power_w",
        "gpu_temperature_c",
        "power_state",
        "throttled",
    )
    values: dict[str, float] = {}
    for name, cell in zip(names, (text or "").partition("\n")[0].split(","), strict=False):
        number = cell.strip()
        try:
            values[name] = float(int(number, 16)) if number.startswith("0x") else float(number.removeprefix("P"))
        except ValueError:  # "[N/A]", "[Not Supported]"
            continue
    return values


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
"""NVML's nvmlClocksEventReasons, but for 1, which is a GPU that idles."""


def throttle_reasons(bits: int) -> str:
    """Names of the bits that `nvidia-smi` gives."""
    return ", ".join(name for bit, name in _REASONS.items() if bits & bit)


def parse_tegrastats(line: str) -> dict[str, float]:
    """Parse a line of a Jetson's tegrastats, JetPack 5 to 7."""
    values: dict[str, float] = {}
    patterns = {
        "gpu_mhz": r"GR3D_FREQ \d+%@\[?(\d+)",
        "gpu_memory_mhz": r"EMC_FREQ \d+%@(\d+)",
        "gpu_temperature_c": r"\bgpu@([\d.]+)C",
        "gpu_power_w": r"\b(?:VDD_IN|VIN_SYS_5V0|VIN|POM_5V_IN) (\d+)",
    }
    for name, pattern in patterns.items():
        if found := re.search(pattern, line, re.IGNORECASE):
            values[name] = float(found[1])
    if "gpu_power_w" in values:
        values["gpu_power_w"] /= 1e3
    if cores := re.search(r"CPU \[([^\]]*)\]", line):
        mhz = [float(each) for each in re.findall(r"%@(\d+)", cores[1])]
        if mhz:
            values["cpu_mhz"] = max(mhz)
    return values


# ------------------------------------------------------------------------------------------------ what there is


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Cores kept busy over a while: by this process, and by everything else on the machine."""

    own: float
    others: float


class CpuMeter:
    """Measures CPU use from its construction until `read`."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, machine_busy_s: Callable[[], float] | None = None
    ) -> None:
        self._clock = clock
        self._machine_busy_s = machine_busy_s or _machine_busy_s
        self._begin = self._now()

    def _now(self) -> tuple[float, float, float]:
        return self._clock(), time.process_time(), self._machine_busy_s()

    def read(self) -> CpuUse:
        """Return the cores in use since the meter was made."""
        (begin_s, own_begin_s, all_begin_s), (end_s, own_end_s, all_end_s) = self._begin, self._now()
        wall_s = max(1e-9, end_s - begin_s)
        own = (own_end_s - own_begin_s) / wall_s
        return CpuUse(own, max(0.0, (all_end_s - all_begin_s) / wall_s - own))


def _machine_busy_s() -> float:
    """Return the busy seconds of all cores since the machine started.

    Time that a hypervisor gave to other machines counts too.
    """
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def cores_to_be_had(seconds: float = 0.25, threads: int | None = None) -> float:
    """Cores' worth of work that this process gets done now if it wants all: less than it has where others work too."""
    block = bytes(1 << 20)
    end_s = time.monotonic() + seconds

    def burn() -> None:
        while time.monotonic() < end_s:
            hashlib.sha256(block)  # without the GIL

    workers = [threading.Thread(target=burn) for _ in range(threads or len(os.sched_getaffinity(0)))]
    wall, cpu = time.monotonic(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.process_time() - cpu) / (time.monotonic() - wall)
