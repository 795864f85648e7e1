"""What an engine is built with: a `BuildPlan`, in which every decision is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vision.engine.channel_packing import INTERLEAVED_CHANNELS
from vision.engine.library import has_weak_typing, keeps_timing
from vision.engine.onnx_transform import refusing_damage, reshape_onnx, rewrite_onnx
from vision.engine.precision import Precision, plan_typing

if TYPE_CHECKING:
    from vision.config import DetectConfig, ModelSpec

DEFAULT_LEVEL: Final = 3
"""TensorRT's own optimization level."""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that makes one engine of a model different from another. All of it is part of the cache's key."""

    precision: Precision
    max_batch: int
    workspace_mib: int = 0
    """Maximum scratch memory of one layer. 0: as much as the GPU has."""
    optimization_level: int = DEFAULT_LEVEL
    """0 is quick to build, 5 is quick to run."""
    on_dla: bool = False
    """Run on the accelerator `dla_core` of a Jetson, and on the GPU what it does not take."""
    dla_core: int = 0
    half_input: bool = False
    """Frames in 16 bits instead of float32."""
    half_outputs: bool = False
    interleaved_input: bool = False
    """Four interleaved channels, see `vision.engine.channel_packing`."""
    folded: bool = False
    """Narrow convolutions folded, see `vision.engine.conv_folding`."""
    fixed_batches: bool = False
    """One profile for each batch size, see `vision.engine.profiles.make_profiles`."""


def resolve(detect: DetectConfig, spec: ModelSpec) -> BuildPlan:
    """Decide what the configuration leaves to the library and the model.

    Interleaved input, folding and profiles of one size are for a library that chooses kernels by rule (TensorRT-RTX).
    TensorRT measures kernels and finds out by itself what a narrow convolution takes, and each profile costs it
    minutes on a Jetson.
    """
    typing = plan_typing(detect.precision, weak_typing=has_weak_typing())
    half_input, half_outputs = typing.half_ends(spec.head.kind)
    by_rule = not keeps_timing()
    engine = detect.engine
    return BuildPlan(
        precision=detect.precision,
        max_batch=detect.max_batch,
        workspace_mib=engine.workspace_mib or 0,
        optimization_level=DEFAULT_LEVEL if engine.optimization_level is None else engine.optimization_level,
        on_dla=engine.dla_core is not None,
        dla_core=engine.dla_core or 0,
        half_input=half_input,
        half_outputs=half_outputs,
        interleaved_input=by_rule and half_input and typing.rewrite == "fp16",
        folded=by_rule and detect.precision in ("fp16", "bf16"),
        fixed_batches=by_rule and engine.dla_core is None,
    )


@dataclass(frozen=True, slots=True)
class PreparedOnnx:
    """The ONNX file that TensorRT parses."""

    onnx: bytes
    channels: int  # of the frame's input: 3, or 4 that are interleaved


@refusing_damage
def prepare_onnx(model: bytes, plan: BuildPlan) -> PreparedOnnx:
    """Rewrite an ONNX file as `plan` needs it. Errors as of `rewrite_onnx` and `refusing_damage`."""
    model, widened = reshape_onnx(model, interleave=plan.interleaved_input, fold=plan.folded)
    typing = plan_typing(plan.precision, weak_typing=has_weak_typing())
    if typing.rewrite != "none":
        model = rewrite_onnx(model, typing.rewrite, keep_inputs=not plan.half_input, keep_outputs=not plan.half_outputs)
    return PreparedOnnx(model, INTERLEAVED_CHANNELS if widened else 3)
