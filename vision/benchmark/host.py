"""The machine as a host of a language model: its platform, its GPU, and the memory that `vision` leaves free."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

import msgspec
import pynvml as nvml

from vision.benchmark.memory import ModelMemory, model_memory
from vision.benchmark.plan import SCHEMA
from vision.engine.library import TEGRA_RELEASE
from vision.errors import ConfigError
from vision.language.recipes import Host, Platform

_THOR, _ORIN = 110, 87  # compute capabilities
_MODEL = Path("/proc/device-tree/model")


def find_host(plan: Path | None) -> Host:
    """Return the platform, the GPU, and the memory of this machine. If `plan` is not None, the memory is from the plan.

    Args:
        plan: file of `vision plan --json`; None means that the memory is measured now.

    Raises:
        ConfigError: the file cannot be read, is not a plan of `vision plan`, or contains no measurement of the memory.
    """
    memory = model_memory() if plan is None else read_memory(plan)
    if TEGRA_RELEASE.exists():
        platform, capability = parse_jetson(TEGRA_RELEASE.read_text(errors="replace"), _model_name())
    else:
        capability = _capability()
        platform = "gpu" if capability else "cpu"
    return Host(platform, capability, memory.total_mib, memory.free_mib)


def parse_jetson(release: str, model: str) -> tuple[Platform, int]:
    """Return the platform and the compute capability of a Jetson.

    Args:
        release: the content of /etc/nv_tegra_release, which starts like ``# R36 (release), REVISION: 4.7``.
        model: the name of the module, such as ``NVIDIA Jetson AGX Thor Developer Kit``.
    """
    found = re.search(r"R(\d+)", release)
    platform: Platform = "jetpack7" if found and int(found[1]) >= 38 else "jetpack6"
    return platform, _THOR if "thor" in model.lower() else _ORIN


def _model_name() -> str:
    return _MODEL.read_text(errors="replace").rstrip("\0\n") if _MODEL.exists() else ""


def _capability() -> int:
    """Return the compute capability of the first GPU, such as 90 for 9.0; 0 if there is no GPU."""
    with suppress(nvml.NVMLError):
        nvml.nvmlInit()
        try:
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(nvml.nvmlDeviceGetHandleByIndex(0))
            return int(major * 10 + minor)
        finally:
            nvml.nvmlShutdown()
    return 0


def read_memory(plan: Path) -> ModelMemory:
    """Return the memory that was free during a run of `vision plan`, from its JSON file.

    Raises:
        ConfigError: the file cannot be read, is not a plan of `vision plan`, or contains no measurement of the memory.
    """
    hint = "write the file with: vision plan CONFIG --json plan.json"
    try:
        document = json.loads(plan.read_bytes())
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
