"""Settings of an engine: its precision, and a `BuildPlan`, which contains every decision about the build.

In TensorRT 10, a builder flag allows a lower precision (weak typing). TensorRT 11 and TensorRT-RTX read types only from
the ONNX file (strong typing). For them, ONNX Runtime's float16 converter rewrites the file. It keeps the inputs that
must stay float32 (scales of Resize), and leaves no casts inside a plain detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from vision.engine.library import Gpu, has_weak_typing, keeps_timing
from vision.engine.onnx_transform import INTERLEAVED_CHANNELS, reshape_onnx, rewrite_onnx
from vision.errors import ModelError

if TYPE_CHECKING:
    from vision.config import DetectConfig, ModelSpec

Precision: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
Quantised: TypeAlias = Literal["none", "int8", "fp8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
FLOATS: Final = frozenset({"float32", "float16", "bfloat16"})

_SINCE: Mapping[Precision, tuple[int, int]] = {
    "fp32": (0, 0),
    "fp16": (5, 3),
    "int8": (6, 1),
    "tf32": (8, 0),
    "bf16": (8, 0),
    "fp8": (8, 9),
}
"""Lowest compute capability that supports each precision."""


@dataclass(frozen=True, slots=True)
class Typing:
    """Method to get one precision with one library: typing, builder flags, and the conversion of the ONNX file."""

    strongly_typed: bool
    flags_on: tuple[str, ...]
    flags_off: tuple[str, ...]
    rewrite: Literal["none", "fp16", "bf16"]

    def half_ends(self, head: str) -> tuple[bool, bool]:
        """Return two flags: the input and the outputs of a detector can be float16 without worse boxes.

        The network rounds its input to float16 itself, so the input can be rounded earlier. The last layer of a
        strongly typed network also computes float16, so a cast to float32 adds no precision. A weakly typed network may
        have a higher precision there. Outputs that are coordinates always stay float32: from 512 on, float16 values are
        half a pixel apart, and the library may fuse the cast with the layers that compute them.
        """
        computes_half = self.rewrite == "fp16" or self.flags_on[:1] == ("FP16",)
        return computes_half, self.rewrite == "fp16" and head == "nanodet"


def precisions_of(compute_capability: tuple[int, int]) -> tuple[Precision, ...]:
    """Return the precisions that a GPU supports, in the order of `_SINCE`."""
    return tuple(name for name, since in _SINCE.items() if compute_capability >= since)


def require_precision(precision: Precision, gpu: Gpu) -> None:
    """Raise `ModelError` if the GPU does not support a precision. The error lists those that it supports."""
    has = precisions_of(gpu.compute_capability)
    if precision not in has:
        major, minor = gpu.compute_capability
        raise ModelError(
            f"{gpu.name} (compute capability {major}.{minor}) does not support {precision}, only {', '.join(has)}",
            hint=f"set `detect: {{precision: {'fp16' if 'fp16' in has else 'fp32'}}}`",
            code="precision-of-gpu",
        )


_WEAK_FLAGS: Mapping[Precision, tuple[str, ...]] = {
    "fp16": ("FP16", "TF32"),
    "bf16": ("BF16", "TF32"),
    "fp8": ("FP8", "FP16", "TF32"),
    "int8": ("INT8", "FP16", "TF32"),
}


def plan_typing(precision: Precision, *, weak_typing: bool) -> Typing:
    """Return the typing, flags, and conversion for `precision`. The caller looks up the flags by name."""
    if precision == "fp32":
        return Typing(not weak_typing, (), ("TF32",), "none")
    if precision == "tf32":
        return Typing(not weak_typing, ("TF32",), (), "none")
    if weak_typing:
        return Typing(False, _WEAK_FLAGS[precision], (), "none")
    return Typing(True, ("TF32",), (), "bf16" if precision == "bf16" else "fp16")


def check_types(precision: Precision, types: frozenset[str]) -> None:
    """Raise `ModelError` if the precision is float32, but the network has lower types (of `FLOATS`).

    Only for a library that reads types from the ONNX file.
    """
    if precision in ("fp32", "tf32") and types - {"float32"}:
        half = "bf16" if "bfloat16" in types else "fp16"
        raise ModelError(
            f"the model computes in {' and '.join(sorted(types))}, but `precision: {precision}` is configured",
            hint=f"set `detect: {{precision: {half}}}`, or export the model in float32",
            code="precision-of-model",
        )


def check_quantisation(precision: Precision, quantised: Quantised) -> None:
    """Raise `ModelError` if the precision is quantized and the model is not, or the opposite."""
    if precision in ("int8", "fp8") and quantised != precision:
        raise ModelError(
            f"precision {precision} needs a model with {precision} QuantizeLinear nodes; this model has "
            f"{'none' if quantised == 'none' else f'{quantised} nodes'}",
            hint="NVIDIA ModelOpt creates it from the model and some frames; or set `detect: {precision: fp16}`",
            code="not-quantised",
        )
    if precision not in ("int8", "fp8") and quantised != "none":
        raise ModelError(
            f"the model is quantized to {quantised}, but `precision: {precision}` is configured",
            hint=f"set `detect: {{precision: {quantised}}}`, or use the model from before the quantization",
            code="quantised",
        )


# ------------------------------------------------------------------------------------------------ build plan

DEFAULT_LEVEL: Final = 3
"""TensorRT's default optimization level."""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """All settings that change the engine of a model. All of them are part of the cache key."""

    precision: Precision
    max_batch: int
    workspace_mib: int = 0
    """Maximum scratch memory of one layer. 0 means no limit except the memory of the GPU."""
    optimization_level: int = DEFAULT_LEVEL
    """0 gives the fastest build, 5 the fastest engine."""
    on_dla: bool = False
    """Run on the accelerator `dla_core` of a Jetson, and run layers that it does not support on the GPU."""
    dla_core: int = 0
    half_input: bool = False
    """Frames in 16 bits instead of float32."""
    half_outputs: bool = False
    interleaved_input: bool = False
    """Four interleaved channels, see `vision.engine.onnx_transform.widen_input`."""
    folded: bool = False
    """Narrow convolutions are folded, see `vision.engine.conv_folding`."""
    fixed_batches: bool = False
    """One profile for each batch size, see `vision.engine.profiles.make_profiles`."""


def resolve(detect: DetectConfig, spec: ModelSpec) -> BuildPlan:
    """Return the plan for a configuration. Settings that it leaves open follow from the library and the model.

    Interleaved input, folding, and profiles with one size are for a library that selects kernels by rules
    (TensorRT-RTX). TensorRT measures kernels, also for narrow convolutions, and each profile takes minutes on a Jetson.
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


class Refused(ModelError):
    """Error of TensorRT, or of a package that rewrites the model. The model may build without the rewriting."""


def prepare_onnx(model: bytes, plan: BuildPlan, file: str) -> tuple[bytes, int]:
    """Rewrite an ONNX file, named `file` in errors, for `plan`.

    Return the model and the number of channels of its input: 3, or 4 if they are interleaved. Raises the errors of
    `rewrite_onnx`, and `Refused` for the many kinds of errors that the packages raise for a damaged file.
    """
    rewrite = plan_typing(plan.precision, weak_typing=has_weak_typing()).rewrite
    try:
        model, widened = reshape_onnx(model, interleave=plan.interleaved_input, fold=plan.folded)
        if rewrite != "none":
            keep_inputs, keep_outputs = not plan.half_input, not plan.half_outputs
            model = rewrite_onnx(model, rewrite, keep_inputs=keep_inputs, keep_outputs=keep_outputs)
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        raise Refused(
            f"{file} is not a valid ONNX model: {type(error).__name__}: {error}",
            hint="`onnx.checker.check_model` shows details; export the model again, or compare its sha256 with the one "
            "in model.yaml",
            code="not-onnx",
        ) from error
    return model, INTERLEAVED_CHANNELS if widened else 3
