"""Machine that hosts a language model: its platform, its GPU, and the memory that `vision` leaves free."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import pynvml as nvml

from vision.benchmark.memory import ModelMemory, model_memory
from vision.benchmark.plan import SCHEMA
from vision.config.user_files import read_input
from vision.engine.library import TEGRA_RELEASE
from vision.errors import ConfigError
from vision.language.recipes import Host, Platform, host_of

_THOR, _ORIN = 110, 87  # compute capabilities
_JETPACK_7: Final = 38  # first major version of L4T in JetPack 7
_JETPACKS: Final = {
    (38, "2"): "7.0",
    (38, "2.0"): "7.0",
    (38, "4"): "7.1",
    (38, "4.0"): "7.1",
    (39, "2"): "7.2",
    (39, "2.0"): "7.2",
    (39, "2.1"): "7.2.1",
}
"""Versions of JetPack 7 by the major version and the revision of L4T."""

_MODEL = Path("/proc/device-tree/model")


def other_host(machine: str, jetpack: str | None, plan: Path | None) -> Host:
    """Return a Jetson other than this machine as a host.

    Args:
        machine: name in `MACHINES`.
        jetpack: version of JetPack that the machine supports, or None for the default of the machine.
        plan: file of `vision plan --json` from such a Jetson, which contains the memory, or None for an assumed memory.

    Raises:
        ConfigError: the file cannot be read, is not a plan of `vision plan`, or contains no measurement of the memory.
    """
    host = host_of(machine, jetpack)
    if plan is None:
        return host
    memory = read_memory(plan)
    return replace(host, total_mib=memory.total_mib, left_mib=memory.free_mib)


def find_host(plan: Path | None) -> Host:
    """Return the platform, the GPU, and the memory of this machine.

    Args:
        plan: file of `vision plan --json`, which contains the memory. If None, this call measures the memory.

    Raises:
        ConfigError: the file cannot be read, is not a plan of `vision plan`, or contains no measurement of the memory.
    """
    memory = model_memory() if plan is None else read_memory(plan)
    if TEGRA_RELEASE.exists():
        platform, capability, jetpack = parse_jetson(TEGRA_RELEASE.read_text(errors="replace"), _model_name())
        return Host(platform, capability, memory.total_mib, memory.free_mib, jetpack)
    capability = _capability()
    return Host("gpu" if capability else "cpu", capability, memory.total_mib, memory.free_mib)


def parse_jetson(release: str, model: str) -> tuple[Platform, int, str]:
    """Return the platform, the compute capability, and the version of JetPack of a Jetson.

    An unknown version is an empty string. A release of L4T 39 after JetPack 7.2.1 counts as JetPack 7.2.2.

    Args:
        release: contents of /etc/nv_tegra_release, which start like ``# R36 (release), REVISION: 4.7``.
        model: name of the module, such as ``NVIDIA Jetson AGX Thor Developer Kit``.
    """
    found = re.search(r"R(\d+)(?:.*REVISION: ([\d.]+))?", release)
    major = int(found[1]) if found else 0
    capability = _THOR if "thor" in model.lower() else _ORIN
    if major < _JETPACK_7:
        return "jetpack6", capability, ""
    revision = (found[2] or "").strip(".") if found else ""
    newest = "7.2.2" if major > _JETPACK_7 and revision else ""
    return "jetpack7", capability, _JETPACKS.get((major, revision), newest)


def _model_name() -> str:
    return _MODEL.read_text(errors="replace").rstrip("\0\n") if _MODEL.exists() else ""


def _capability() -> int:
    """Return the compute capability of the first GPU, such as 90 for 9.0, or 0 if there is no GPU."""
    with suppress(nvml.NVMLError):
        nvml.nvmlInit()
        try:
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(nvml.nvmlDeviceGetHandleByIndex(0))
            return int(major * 10 + minor)
        finally:
            nvml.nvmlShutdown()
    return 0


def read_memory(plan: Path) -> ModelMemory:
    """Return the memory that a run of `vision plan` measured, from the JSON file `plan`.

    Raises:
        ConfigError: the file cannot be read, is not a plan of `vision plan`, or contains no measurement of the memory.
    """
    hint = "write the file with: vision plan CONFIG --json plan.json"
    try:
        document = json.loads(read_input(plan))
    except OSError as error:
        raise ConfigError(f"--plan: cannot read {plan}: {error.strerror}", hint=hint, code="not-readable") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--plan: {plan} is not JSON: {error}", hint=hint, code="not-a-plan") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ConfigError(f"--plan: expected a file with the schema {SCHEMA}: {plan}", hint=hint, code="not-a-plan")
    try:
        return msgspec.convert(document.get("memory"), ModelMemory)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--plan: {plan} has no valid `memory`: {error}", hint=hint, code="no-memory") from error
