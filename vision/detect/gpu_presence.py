"""Functions that find out whether this machine has an NVIDIA GPU, and whether its driver answers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from vision.errors import DeviceMissing, DeviceNotReady

MACHINE = Path("/")
"""Folder that contains the folders ``dev``, ``proc``, and ``sys`` of this machine."""

_PROBE: Final = "from vision.gpu.cuda import open_device; open_device()"
_PROBE_TIMEOUT_S: Final = 60.0


def reason_for_cpu(missing: DeviceMissing, section: str) -> str:
    """Return the reason why the program runs on the CPU although this machine has an NVIDIA GPU.

    Return an empty string if this machine has no NVIDIA GPU, or if `CUDA_VISIBLE_DEVICES` hides all GPUs from this
    process.

    Args:
        missing: error that the attempt to use the GPU raised.
        section: section of camera.yaml whose key `backend` is ``auto``.

    Raises:
        DeviceNotReady: the driver of the GPU is installed, but does not answer, for example because it is not loaded
            yet. If the program used the CPU in this case, it would be slow until somebody restarts it.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or not has_nvidia_gpu():
        return ""
    if isinstance(missing, DeviceNotReady) and _driver_is_installed():
        raise DeviceNotReady(
            f"this machine has an NVIDIA GPU, but its driver does not answer: {missing.args[0]}",
            hint=f"{missing.hint}; to run on the CPU on purpose, set `{section}: {{backend: onnxruntime}}`",
            code=missing.code,
        ) from missing
    return f"{missing.args[0]}; {missing.hint}" if missing.hint else str(missing.args[0])


def driver_answers() -> bool:
    """Return True if the driver of the GPU answers.

    The test runs in a new process, because the driver cannot be tested again in a process in which it has failed.
    """
    command = [sys.executable, "-c", _PROBE]
    try:
        return subprocess.run(command, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def has_nvidia_gpu(root: Path | None = None) -> bool:
    """Return True if this machine has an NVIDIA GPU, integrated or discrete, even if its driver is not loaded.

    `root` is the folder that contains ``dev``, ``proc``, and ``sys``. None means the root folder of this machine.
    """
    root = root or MACHINE
    if any((root / "dev" / name).exists() for name in ("nvidiactl", "nvhost-gpu", "nvgpu")):
        return True
    with contextlib.suppress(OSError):
        if b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes():  # a Jetson
            return True
    return any(map(_is_nvidia_graphics_card, (root / "sys/bus/pci/devices").glob("*")))


def _is_nvidia_graphics_card(device: Path) -> bool:
    """Return True if a PCI device has NVIDIA's vendor id, and the class of a display controller."""
    with contextlib.suppress(OSError):
        return (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03")
    return False


def _driver_is_installed() -> bool:
    """Return True if the library of the driver can be loaded.

    The library is missing if the driver is not installed, as on a laptop whose screen uses a different driver, or in a
    container that was started without the GPU. In these cases, waiting does not help.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
