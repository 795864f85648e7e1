"""Functions that generate command lines of `nsys`, `trtexec`, and `tensorrt_rtx` for the installed library.

trtexec 11 has fewer options than version 10, and different defaults: it uses CUDA graphs, spins while it waits, and
transfers no data. Results of both versions can be compared only with the options that this module sets.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from vision.engine.build_plan import Precision
from vision.engine.library import TEGRA_RELEASE, Flavour, find_library, has_weak_typing
from vision.engine.profiles import Profile, Shape

_TRTEXEC_PLACES = (Path("/usr/src/tensorrt/bin/trtexec"), Path("/opt/tensorrt/bin/trtexec"))

Dialect: TypeAlias = Literal["trtexec-10", "trtexec-11", "tensorrt_rtx"]
"""Set of options of a tool. Only `trtexec-10` has options for the precision, because it supports weak typing."""

_LIKE_THE_DETECTOR: Mapping[Dialect, tuple[str, ...]] = {
    "trtexec-10": ("--useCudaGraph", "--useSpinWait", "--noDataTransfers"),
    "trtexec-11": (),  # these options are its defaults
    "tensorrt_rtx": ("--specializeStrategyDS=eager", "--rtxCudaGraphStrategy=wholeGraph"),
}
_PRECISIONS_OF_10: Mapping[Precision, tuple[str, ...]] = {
    "fp16": ("--fp16",),
    "bf16": ("--bf16",),
    "fp8": ("--fp8", "--fp16"),
    "int8": ("--int8", "--fp16"),
}


@dataclass(frozen=True, slots=True)
class Tool:
    """Command-line tool of TensorRT or TensorRT-RTX. `dialect` identifies the set of options that the tool supports.

    `found` is True if the tool is installed on this machine.
    """

    dialect: Dialect
    program: str
    found: bool


def dialect_of(flavour: Flavour, *, weak_typing: bool) -> Dialect:
    """Return the dialect (the set of options) of the command-line tool of TensorRT or TensorRT-RTX.

    `weak_typing` is True if the library supports weak typing.
    """
    if flavour == "tensorrt-rtx":
        return "tensorrt_rtx"
    return "trtexec-10" if weak_typing else "trtexec-11"


def find_tool(dialect: Dialect, places: Sequence[Path] = _TRTEXEC_PLACES) -> Tool:
    """Return the tool from PATH or, only for trtexec, from one of `places`.

    If the tool is missing, `Tool.program` contains only its name.
    """
    name = "tensorrt_rtx" if dialect == "tensorrt_rtx" else "trtexec"
    path = shutil.which(name)
    if path is None and name == "trtexec":
        path = next((str(place) for place in places if place.exists()), None)
    return Tool(dialect, path or name, path is not None)


def installed_tool() -> Tool:
    """Return the command-line tool of the installed library."""
    return find_tool(dialect_of(find_library().flavour, weak_typing=has_weak_typing()))


def nsys_command(target: Sequence[str], *, tegra: bool) -> str:
    """Return the Nsight Systems command that runs `target` and traces each kernel of a CUDA graph.

    If `tegra` is True, the command also traces the video decoder and encoder of a Jetson, which requires root.
    """
    options = ["--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node", "--force-overwrite=true", "--output=vision"]
    command = [shutil.which("nsys") or "nsys", "profile", *options]
    if tegra:  # traces the video decoder and encoder, which requires root
        command = ["sudo", *command, "--accelerator-trace=tegra-accelerators"]
    return shlex.join([*command, *target])


def run_command(tool: Tool, plan: Path, shapes: Mapping[str, Shape], profile: int, *, streams: int = 1) -> str:
    """Return the command that measures the engine in the file `plan` under the conditions of the detector.

    For example, the engine runs as a CUDA graph. `shapes` are the input shapes by name, `profile` is the index of the
    optimization profile, and `streams` is the number of streams that run the engine at the same time.
    """
    options = [f"--loadEngine={plan}", f"--shapes={_shapes(shapes)}", f"--useProfile={profile}"]
    return shlex.join([tool.program, *options, f"--infStreams={streams}", *_LIKE_THE_DETECTOR[tool.dialect]])


def layers_command(tool: Tool, plan: Path, shapes: Mapping[str, Shape], profile: int) -> str:
    """Return the command that shows the time and description of each layer of an engine.

    The command also writes the descriptions to layers.json. For the arguments, see `run_command`.
    """
    options = [f"--loadEngine={plan}", f"--shapes={_shapes(shapes)}", f"--useProfile={profile}"]
    options += ["--profilingVerbosity=detailed", "--dumpProfile", "--dumpLayerInfo", "--exportLayerInfo=layers.json"]
    if tool.dialect == "trtexec-10":
        options.append("--separateProfileRun")  # the default since version 11
    return shlex.join([tool.program, *options])


def build_line(
    tool: Tool,
    *,
    onnx: Path,
    plan: Path,
    profiles: Sequence[Profile],
    precision: Precision,
    half_input: bool = False,
) -> str:
    """Return the command that builds an engine.

    Args:
        onnx: ONNX file. For a tool with strong typing, the file must already have the precision `precision`.
        plan: file to which the tool writes the engine.
        half_input: True if an engine that `trtexec-10` builds has a float16 input. For other tools, `onnx` determines
            the type of the input.
    """
    options = [f"--onnx={onnx}", f"--saveEngine={plan}", "--skipInference", "--profilingVerbosity=detailed"]
    if precision == "fp32":
        options.append("--noTF32")
    if tool.dialect == "trtexec-10":
        options += _PRECISIONS_OF_10.get(precision, ())
    if half_input and tool.dialect == "trtexec-10":
        options.append("--inputIOFormats=fp16:chw")
    for index, profile in enumerate(profiles):
        options.append(f"--profile={index}")
        for end in ("min", "opt", "max"):
            shapes = {name: getattr(shape_range, end) for name, shape_range in profile.shapes.items()}
            options.append(f"--{end}Shapes={_shapes(shapes)}")
    return shlex.join([tool.program, *options])


def _shapes(shapes: Mapping[str, Shape]) -> str:
    """Return shapes by input name as the value of a command-line option. Names that contain a separator are quoted."""
    names = {name: f'"{name}"' if set(name) & {":", ","} else name for name in shapes}
    return ",".join(f"{names[name]}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def trtexec_text(tool: Tool, plan: Path, shapes: Mapping[str, Shape], profile: int) -> str:
    """Return commands that measure an engine, with comments, for ``vision profile --print-trtexec``."""
    source = "the TensorRT-RTX archive"
    if tool.dialect != "tensorrt_rtx":
        source = "the Debian package libnvinfer-bin or the archive"
    missing = "" if tool.found else f" (not found on this machine; {source} contains it, but the wheels do not)"
    lines = [
        f"# {tool.dialect}{missing}",
        "# throughput and latency, under the conditions of the detector",
        run_command(tool, plan, shapes, profile),
        "# the same, with two batches in flight",
        run_command(tool, plan, shapes, profile, streams=2),
        "# time of every layer",
        layers_command(tool, plan, shapes, profile),
    ]
    return "\n".join(lines)


def nsys_text(target: Sequence[str]) -> str:
    """Return the command that traces `target`, with a comment, for ``vision profile --print-nsys``."""
    missing = " (not found; on a Jetson, `sudo apt install nsight-systems`; elsewhere, download it from NVIDIA)"
    title = f"# Nsight Systems{'' if shutil.which('nsys') else missing}; open the .nsys-rep file in its window"
    return f"{title}\n{nsys_command(target, tegra=TEGRA_RELEASE.exists())}"
