"""What is said of the machine: parsers over what real machines print, and who used the CPU."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from vision.benchmark.conditions import (
    Clocks,
    CpuMeter,
    ThisSystem,
    clocks,
    cores_to_be_had,
    machine,
    parse_nvidia_smi,
    parse_power_mode,
    parse_tegrastats,
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


@dataclass
class Tables:
    """`System` made of what a test says."""

    files: dict[str, str] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)

    def text(self, path: str) -> str | None:
        return self.files.get(path)

    def output(self, *command: str) -> str | None:
        return next((text for start, text in self.commands.items() if " ".join(command).startswith(start)), None)

    def first_line(self, *command: str) -> str | None:
        text = self.output(*command)
        return text.splitlines()[0] if text else None


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
def test_tegrastats(line: str, expected: dict[str, float]) -> None:
    assert parse_tegrastats(line) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "1980, 2619, 512.31, 61, P0, 0x0000000000000004\n1500, 1, 1, 1, P8, 0x0\n",
            {
                "gpu_mhz": 1980,
                "gpu_memory_mhz": 2619,
                "gpu_power_w": 512.31,
                "gpu_temperature_c": 61,
                "power_state": 0,
                "throttled": 4,
            },
        ),
        (
            "[N/A], [Not Supported], 12.5, 40, P8, [N/A]",
            {"gpu_power_w": 12.5, "gpu_temperature_c": 40, "power_state": 8},
        ),
        ("", {}),
        (None, {}),
    ],
)
def test_nvidia_smi(text: str | None, expected: dict[str, float]) -> None:
    assert parse_nvidia_smi(text) == expected


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(0, ""), (1, ""), (0x4, "power cap"), (0x41, "temperature (hardware)"), (0x6, "clocks set by hand, power cap")],
)
def test_why_a_clock_is_held_down(bits: int, expected: str) -> None:
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
def test_power_mode(text: str, expected: str) -> None:
    assert parse_power_mode(text) == expected


def test_a_jetson() -> None:
    system = Tables(
        {
            "/proc/cpuinfo": "processor : 0\nBogoMIPS : 62.50\n",
            "/proc/device-tree/model": "NVIDIA Jetson Orin Nano",
            "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic, EABI: aarch64",
            "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
            "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
            "/proc/loadavg": "0.50 0.4 0.3 1/100 1",
        },
        {"nvpmodel -q": "NV Power Mode: 15W\n1", "tegrastats": NANO},
    )
    found = machine(system)
    assert (found.cpu, found.gpu, found.governor) == ("NVIDIA Jetson Orin Nano", "integrated", "schedutil")
    assert found.jetson == "NVIDIA Jetson Orin Nano, L4T 36.4.7"
    assert found.power_mode == "15W (1)"
    assert clocks(system) == Clocks(cpu_mhz=1728, gpu_mhz=624, gpu_power_w=4.712, gpu_temperature_c=46.1, load=0.5)


def test_a_server() -> None:
    system = Tables(
        {"/proc/cpuinfo": "model name\t: Intel(R)  Xeon(R)\ncpu MHz\t: 2100.5\ncpu MHz\t: 3000.0\n"},
        {
            "nvidia-smi --query-gpu=name": "NVIDIA H100 80GB HBM3",
            "nvidia-smi --query-gpu=driver": "580.95.05",
            "nvidia-smi --query-gpu=clocks": "1755, 2619, 300.5, 55, P0, 0x8",
        },
    )
    assert machine(system).gpu == "NVIDIA H100 80GB HBM3"
    assert machine(system).cpu == "Intel(R) Xeon(R)"
    assert versions(system)["driver"] == "580.95.05"
    assert clocks(system) == Clocks(
        cpu_mhz=3000, gpu_mhz=1755, gpu_memory_mhz=2619, gpu_power_w=300.5, gpu_temperature_c=55, power_state="P0",
        throttled="hardware slowdown",
    )  # fmt: skip


def test_an_older_driver_calls_the_reasons_otherwise() -> None:
    query = (
        "nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,pstate,clocks_throttle_reasons.active"
    )
    assert clocks(Tables({}, {query: "1000, 1, 1, 1, P2, 0x4"})).throttled == "power cap"


def test_a_machine_that_tells_nothing() -> None:
    assert clocks(Tables()) == Clocks()
    assert machine(Tables()).cpu != ""
    assert "numpy" in versions(Tables())


@pytest.mark.integration
def test_this_machine() -> None:
    system = ThisSystem()
    assert system.text("/no/such/file") is None
    assert system.output("no-such-command") is None
    assert system.output("false") is None
    assert system.output("echo", "x") == "x"
    assert system.first_line("no-such-command") is None
    assert system.first_line("yes") == "y"
    assert machine(system).cores >= 1
    assert clocks(system).load is not None


def test_cpu_use_of_other_programs_is_the_rest() -> None:
    now_s = busy_s = 0.0
    meter = CpuMeter(lambda: now_s, lambda: busy_s)
    now_s, busy_s = 10.0, 15.0
    use = meter.read()
    assert use.own + use.others == pytest.approx(1.5, abs=0.01)
    assert CpuMeter(lambda: now_s, lambda: 0.0).read().others == 0.0


def test_own_work_is_seen() -> None:
    meter = CpuMeter()
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        sum(range(1000))
    assert meter.read().own > 0


def test_cores_to_be_had_are_no_more_than_threads() -> None:
    before = threading.active_count()
    assert 0 < cores_to_be_had(0.1, threads=1) <= 1.2
    assert threading.active_count() == before
