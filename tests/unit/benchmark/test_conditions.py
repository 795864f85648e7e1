"""Tests of the description of the machine: parsers for the output of real machines, NVML, and the CPU usage."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field

import pynvml
import pytest

from vision.benchmark import conditions
from vision.benchmark.conditions import (
    Clocks,
    CpuMeter,
    CpuUse,
    available_cores,
    clocks,
    machine,
    parse_power_mode,
    parse_tegrastats,
    query_gpu,
    throttle_reasons,
    versions,
)

ORIN = (
    "11-22-2026 10:12:13 RAM 3467/62841MB (lfb 4x4MB) SWAP 0/31420MB (cached 0MB) "
    "CPU [12%@1510,5%@2201,off,off] EMC_FREQ 5%@2133 GR3D_FREQ 99%@[1300,1290] NVDEC off "
    "cpu@50.2C soc2@48C gpu@48.5C tj@50.2C VDD_GPU_SOC 4800mW/4800mW VDD_CPU_CV 1200mW/1200mW VIN_SYS_5V0 5200mW/5100mW"
)
NANO = (
    "RAM 2100/7620MB (lfb 10x4MB) CPU [20%@1728,0%@1728,off,off,off,off] GR3D_FREQ 45%@624 "
    "CPU@47.5C GPU@46.1C VDD_IN 4712mW/4600mW VDD_CPU_GPU_CV 900mW/850mW"
)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    """Replace everything that describes this machine, apart from the CPU."""
    system = System()
    monkeypatch.setattr(conditions, "_text", lambda path: system.files.get(path, ""))
    monkeypatch.setattr(conditions, "_output", lambda *command: system.commands.get(command[0], ""))
    monkeypatch.setattr("shutil.which", lambda name: system.commands.get(name))  # noqa: PLW0108
    monkeypatch.setattr(conditions, "query_gpu", lambda: dict(system.gpu))
    monkeypatch.setattr(conditions, "_cpu_mhz", lambda: system.cpu_mhz)
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.0, 0.0))
    return system


@dataclass
class System:
    files: dict[str, str] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    gpu: dict[str, object] = field(default_factory=dict)
    cpu_mhz: float | None = None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            ORIN,
            {"gpu_mhz": 1300, "gpu_memory_mhz": 2133, "gpu_temperature_c": 48.5, "gpu_power_w": 5.2, "cpu_mhz": 2201},
        ),
        (NANO, {"gpu_mhz": 624, "gpu_temperature_c": 46.1, "gpu_power_w": 4.712, "cpu_mhz": 1728}),
        ("RAM 1/2MB CPU [off,off] GR3D_FREQ 0%", {}),
        ("", {}),
    ],
)
def test_tegrastats_line_is_parsed(line: str, expected: dict[str, float]) -> None:
    assert parse_tegrastats(line) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(0, ""), (1, ""), (0x4, "power cap"), (0x41, "temperature (hardware)"), (0x6, "clocks set by hand, power cap")],
)
def test_throttle_reasons_have_names(bits: int, expected: str) -> None:
    assert throttle_reasons(bits) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n", "MAXN (0)"),
        ("NV Power Mode: 15W\n2", "15W (2)"),
        ("NV Power Mode: MAXN_SUPER", "MAXN_SUPER"),
        ("", ""),
    ],
)
def test_power_mode_is_parsed(text: str, expected: str) -> None:
    assert parse_power_mode(text) == expected


def test_machine_is_described_on_a_jetson(system: System) -> None:
    system.files = {
        "/proc/cpuinfo": "processor : 0\nBogoMIPS : 62.50\n",
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano",
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic, EABI: aarch64",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
    }
    system.commands = {"nvpmodel": "NV Power Mode: 15W\n1", "tegrastats": "/usr/bin/tegrastats", "sh": NANO}
    jetson = machine()
    assert (jetson.cpu, jetson.gpu, jetson.governor) == ("NVIDIA Jetson Orin Nano", "integrated", "schedutil")
    assert jetson.jetson == "NVIDIA Jetson Orin Nano, L4T 36.4.7"
    assert jetson.power_mode == "15W (1)"
    assert clocks() == Clocks(cpu_mhz=1728, gpu_mhz=624, gpu_power_w=4.712, gpu_temperature_c=46.1, load=0.5)


def test_machine_is_described_on_a_server(system: System) -> None:
    system.files = {"/proc/cpuinfo": "model name\t: Intel(R)  Xeon(R)\n"}
    system.gpu = {"name": "NVIDIA H100 80GB HBM3", "driver": "580.95.05", "gpu_mhz": 1755.0, "power_state": "P0"}
    system.cpu_mhz = 3000.0
    assert machine().gpu == "NVIDIA H100 80GB HBM3"
    assert machine().cpu == "Intel(R) Xeon(R)"
    assert versions()["driver"] == "580.95.05"
    assert clocks() == Clocks(cpu_mhz=3000.0, gpu_mhz=1755.0, power_state="P0", load=0.5)


def test_unknown_machine_has_empty_fields(system: System) -> None:
    assert clocks() == Clocks(load=0.5)
    assert machine().cpu
    assert "numpy" in versions()
    assert "driver" not in versions()
    assert not system.gpu


class Nvml:
    """NVML of a GPU for which NVML reports neither a memory clock nor a temperature."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = 0
        clocks = {pynvml.NVML_CLOCK_SM: 1980}
        answers = {
            "nvmlDeviceGetHandleByIndex": lambda _: "gpu",
            "nvmlInit": self.init,
            "nvmlShutdown": self.shutdown,
        }
        facts = {
            "name": lambda _: "NVIDIA H200",
            "gpu_mhz": lambda _: clocks[pynvml.NVML_CLOCK_SM],
            "gpu_temperature_c": self.fail,
            "gpu_memory_mhz": self.fail,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, answer)
        monkeypatch.setattr(conditions, "_GPU_FACTS", facts)

    def init(self) -> None:
        self.open += 1

    def shutdown(self) -> None:
        self.open -= 1

    def fail(self, _: object) -> object:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_gpu_facts_that_nvml_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(monkeypatch)
    assert query_gpu() == {"name": "NVIDIA H200", "gpu_mhz": 1980}
    assert nvml.open == 0


def test_gpu_without_a_driver_has_no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(monkeypatch)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: nvml.fail(None))
    assert query_gpu() == {}
    assert nvml.open == 0


@pytest.mark.integration
def test_this_machine_is_described() -> None:
    assert conditions._text("/no/such/file") == ""
    assert conditions._output("no-such-command") == ""
    assert conditions._output("false") == ""
    assert conditions._output("echo", "x") == "x"
    assert conditions._output("sh", "-c", "yes | head -n 1") == "y"
    assert machine().cores >= 1
    assert clocks().load is not None


def test_cpu_use_of_other_programs_is_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(0.0, 1.0, 10.0), (10.0, 6.0, 25.0), (20.0, 99.0, 26.0)])
    monkeypatch.setattr(conditions, "_cpu_times", lambda: next(readings))
    meter = CpuMeter()
    assert meter.read() == CpuUse(own=0.5, others=1.0)
    assert meter.read().others == 0.0


def test_cpu_meter_measures_own_work() -> None:
    meter = CpuMeter()
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        sum(range(1000))
    assert meter.read().own > 0


def test_available_cores_do_not_exceed_threads() -> None:
    before = threading.active_count()
    assert 0 < available_cores(0.1) <= 1.2 * len(os.sched_getaffinity(0))
    assert threading.active_count() == before
