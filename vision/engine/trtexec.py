"""The `nsys`, `trtexec` and `tensorrt_rtx` commands for the installed library.

trtexec 11 lost options of 10 and inverted others: CUDA graphs, spinning and no transfers became its defaults. Figures
of both are comparable only with the options below.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from vision.engine.library import TEGRA_RELEASE, Flavour, find_library, has_weak_typing
from vision.engine.precision import Precision
from vision.engine.profiles import Profile, Shape

Find: TypeAlias = Callable[[str], str | None]

_TRTEXEC_PLACES = (Path("/usr/src/tensorrt/bin/trtexec"), Path("/opt/tensorrt/bin/trtexec"))

Dialect: TypeAlias = Literal["trtexec-10", "trtexec-11", "tensorrt_rtx"]
"""Which options a tool knows: `trtexec-10` has precisions (weak typing), `trtexec-11` has not."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program and its path."""

    program: str
    found: bool


def dialect_of(flavour: Flavour, *, weak_typing: bool) -> Dialect:
    """Return the options dialect of the tool that comes with a library."""
    if flavour == "tensorrt-rtx":
        return "tensorrt_rtx"
    return "trtexec-10" if weak_typing else "trtexec-11"


def installed_dialect() -> Dialect:
    """Return the options dialect of the tool that comes with the library of this process."""
    return dialect_of(find_library().flavour, weak_typing=has_weak_typing())


def find_tool(dialect: Dialect, find: Find = shutil.which, places: Sequence[Path] = _TRTEXEC_PLACES) -> Tool:
    """Return the tool on this machine, or its plain name. JetPack installs trtexec outside of PATH."""
    name = "tensorrt_rtx" if dialect == "tensorrt_rtx" else "trtexec"
    path = find(name)
    if path is None and name == "trtexec":
        path = next((str(place) for place in places if place.exists()), None)
    return Tool(path or name, path is not None)


def nsys_command(
    target: Sequence[str], output: str = "vision", *, tegra: bool | None = None, find: Find = shutil.which
) -> str:
    """Return the Nsight Systems command for `target`, with CUDA graphs resolved into their kernels."""
    on_jetson = TEGRA_RELEASE.exists() if tegra is None else tegra
    command = [
        find("nsys") or "nsys",
        "profile",
        "--trace=cuda,nvtx,osrt",
        "--cuda-graph-trace=node",
        "--force-overwrite=true",
        f"--output={output}",
    ]
    if on_jetson:  # the GPU's decoder and encoder; needs root
        command = ["sudo", *command, "--accelerator-trace=tegra-accelerators"]
    return shlex.join([*command, *target])


def run_command(
    dialect: Dialect, tool: Tool, plan: Path, shapes: Mapping[str, Shape], profile: int, *, streams: int = 1
) -> str:
    """Return the command that measures an engine as the detector runs it: CUDA graph, no transfers, spinning."""
    options = [
        f"--loadEngine={plan}",
        f"--shapes={_shapes(shapes)}",
        f"--useProfile={profile}",
        f"--infStreams={streams}",
    ]
    options += _like_the_detector(dialect)
    return shlex.join([tool.program, *options])


def layers_command(dialect: Dialect, tool: Tool, plan: Path, shapes: Mapping[str, Shape], profile: int) -> str:
    """Return the command for times and description of every layer."""
    options = [f"--loadEngine={plan}", f"--shapes={_shapes(shapes)}", f"--useProfile={profile}"]
    options += ["--profilingVerbosity=detailed", "--dumpProfile", "--dumpLayerInfo", "--exportLayerInfo=layers.json"]
    if dialect == "trtexec-10":
        options.append("--separateProfileRun")  # always so from 11 on
    return shlex.join([tool.program, *options])


def build_line(
    dialect: Dialect,
    tool: Tool,
    *,
    onnx: Path,
    plan: Path,
    profiles: Sequence[Profile],
    precision: Precision,
    half_input: bool = False,
) -> str:
    """Return the command that builds a similar engine. With strong typing, `onnx` must be in `precision` already."""
    options = [f"--onnx={onnx}", f"--saveEngine={plan}", "--skipInference", "--profilingVerbosity=detailed"]
    options += _precision_options(dialect, precision)
    if half_input and dialect == "trtexec-10":
        options.append("--inputIOFormats=fp16:chw")
    for index, profile in enumerate(profiles):
        options.append(f"--profile={index}")
        for end in ("min", "opt", "max"):
            shapes = {name: getattr(each, end) for name, each in profile.shapes.items()}
            options.append(f"--{end}Shapes={_shapes(shapes)}")
    return shlex.join([tool.program, *options])


def _precision_options(dialect: Dialect, precision: Precision) -> list[str]:
    without_tf32 = ["--noTF32"] if precision == "fp32" else []
    if dialect != "trtexec-10":
        return without_tf32
    allowed: Mapping[Precision, list[str]] = {
        "fp16": ["--fp16"],
        "bf16": ["--bf16"],
        "fp8": ["--fp8", "--fp16"],
        "int8": ["--int8", "--fp16"],
    }
    return allowed.get(precision, without_tf32)


def _like_the_detector(dialect: Dialect) -> list[str]:
    if dialect == "trtexec-10":
        return ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"]
    if dialect == "tensorrt_rtx":
        return ["--specializeStrategyDS=eager", "--rtxCudaGraphStrategy=wholeGraph"]
    return []  # these are what 11 does by itself


def _shapes(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{_name(name)}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _name(name: str) -> str:
    return f'"{name}"' if re.search(r"[:,]", name) else name


def trtexec_text(plan: Path, shapes: Mapping[str, Shape], profile: int, *, dialect: Dialect | None = None) -> str:
    """Return the output of ``vision profile --print-trtexec``."""
    which = dialect or installed_dialect()
    tool = find_tool(which)
    lines = [
        f"# {which}" + ("" if tool.found else f" (not found on this machine: {_where_from(which)})"),
        "# throughput and latency, as the detector runs it",
        run_command(which, tool, plan, shapes, profile),
        "# the same with two batches in flight",
        run_command(which, tool, plan, shapes, profile, streams=2),
        "# every layer",
        layers_command(which, tool, plan, shapes, profile),
    ]
    return "\n".join(lines)


def nsys_text(target: Sequence[str]) -> str:
    """Return the output of ``vision profile --print-nsys``."""
    found = "" if shutil.which("nsys") else " (not found: Jetson `sudo apt install nsight-systems`, else NVIDIA's site)"
    return f"# Nsight Systems{found}; open the .nsys-rep file in its window\n{nsys_command(target)}"


def _where_from(dialect: Dialect) -> str:
    if dialect == "tensorrt_rtx":
        return "it is in the TensorRT-RTX archive, not in the wheels"
    return "it is in the Debian package libnvinfer-bin and in the archive, not in the wheels"
