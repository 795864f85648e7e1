"""Commands of Nsight Systems and trtexec, which show more details than `vision profile`."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from vision.config import DetectConfig, ModelSpec
from vision.engine.build_plan import BuildPlan, plan_typing, prepare_onnx, resolve
from vision.engine.cache import EngineCache, key_of
from vision.engine.library import Gpu, GpuDescription, collect_log, find_library, logger, network_flags, start, trt
from vision.engine.open import read_onnx
from vision.engine.profiles import NetworkInput, Profile, choose_profile, frame_input, make_profiles
from vision.engine.tensors import inputs_of
from vision.engine.trtexec import Tool, build_line, installed_tool, nsys_text, trtexec_text
from vision.errors import DeviceError, ModelError

_NO_GPU: Final = GpuDescription("the GPU", (8, 7))
"""Placeholder for the GPU on a machine without a GPU. The file name of the engine is then only an example."""


def nsys(model: str, batch: int, precision: str) -> str:
    """Return the output of `vision profile --print-nsys`: a command that traces the detection stage."""
    vision = shutil.which("vision")
    program = [vision] if vision is not None else [sys.executable, "-m", "vision.cli.main"]
    options = ["--parts", "stage", "--batch", str(batch), "--precision", precision, "--seconds", "5", "--nvtx"]
    return nsys_text([*program, "bench", model, *options])


def trtexec(folder: Path, spec: ModelSpec, batch: int, detect: DetectConfig, named: Sequence[str]) -> str:
    """Return the output of `vision profile --print-trtexec`: commands that measure the engine in the cache.

    If the engine is not in the cache, the commands that build the engine come first.

    Args:
        folder: folder of the model.
        spec: specification of the model.
        batch: batch size to measure.
        detect: settings of the engine, whose `max_batch` is at least `batch`.
        named: arguments of `vision build` that select the model.

    Raises:
        DeviceMissing: TensorRT is missing or does not start.
        ModelError: the model or the cache cannot be used, or no profile of the model includes this batch size.
    """
    onnx = read_onnx(folder, spec)
    settings = resolve(detect, spec)
    prepared, channels = prepare_onnx(onnx, settings, spec.file)
    inputs = _network_inputs(prepared, spec)
    profiles = make_profiles(inputs, spec, settings, channels=channels)
    shapes = {frame_input(inputs).name: (batch, channels, spec.input.height, spec.input.width)}
    gpu: Gpu | GpuDescription = _NO_GPU
    lines = ["# this machine has no GPU, so the path of the engine is an example"]
    with suppress(DeviceError):
        from vision.gpu.cuda import open_device

        gpu, lines = open_device(), []
    plan = EngineCache().path_of(spec.name, key_of(onnx, find_library(), gpu, settings, spec))
    tool = installed_tool()
    if not plan.exists():
        lines.append(_how_to_build(tool, folder / spec.file, named, plan, profiles=profiles, settings=settings))
    lines.append(trtexec_text(tool, plan, shapes, choose_profile(profiles, shapes)))
    return "\n".join(lines)


def _how_to_build(
    tool: Tool, onnx: Path, named: Sequence[str], plan: Path, *, profiles: Sequence[Profile], settings: BuildPlan
) -> str:
    """Return the `vision build` command that builds the engine and, if `tool` builds the same engine, its command.

    If the ONNX file defines the types, the tool would build a different engine, because `vision build` rewrites the
    file first.
    """
    options = ["--max-batch", str(settings.max_batch), "--precision", settings.precision]
    ours = f"`{shlex.join(['vision', 'build', *named, *options])}`"
    if plan_typing(settings.precision, weak_typing=tool.dialect == "trtexec-10").rewrite != "none":
        return f"# this engine is not built yet: {ours} (this tool would build {onnx.name} without changes, in fp32)"
    build = build_line(
        tool,
        onnx=onnx,
        plan=plan,
        profiles=profiles,
        precision=settings.precision,
        half_input=settings.half_input,
    )
    return f"# this engine is not built yet: {ours}, or\n{build}"


def _network_inputs(onnx: bytes, spec: ModelSpec) -> tuple[NetworkInput, ...]:
    """Return the inputs of an ONNX file as TensorRT's parser reads them. Raise `ModelError` if parsing fails."""
    with collect_log() as log:
        builder = start(trt.Builder)
        network = builder.create_network(network_flags(strongly_typed=True))
        parser = trt.OnnxParser(network, logger())
        if not parser.parse(onnx):
            reason = "; ".join(log.errors()) or "no reason was given"
            raise ModelError(f"{find_library()} cannot read {spec.file}: {reason}")
        return inputs_of(network)
