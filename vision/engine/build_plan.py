"""Settings of an engine: its precision, and a `BuildPlan`, in which every decision is made.

In TensorRT 10 a builder flag allows a lower precision (weak typing). TensorRT 11 and TensorRT-RTX take types from the
ONNX file alone (strong typing), so there the file is rewritten with ONNX Runtime's float16 converter, which keeps the
inputs that must stay float32 (scales of Resize) and leaves no casts inside a plain detector.
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
"""Least compute capability that computes in a precision."""


@dataclass(frozen=True, slots=True)
class Typing:
    """Types of one precision with one library."""

    strongly_typed: bool
    flags_on: tuple[str, ...]
    flags_off: tuple[str, ...]
    rewrite: Literal["none", "fp16", "bf16"]

    def half_ends(self, head: str) -> tuple[bool, bool]:
        """Return whether the input and the outputs of a detector can be float16 without worse boxes.

        The network rounds its input to float16 itself, so the input can be rounded before. A strongly typed network has
        float16 after its last layer too, and a cast to float32 adds nothing; a weakly typed one may have more there.
        Outputs that are coordinates stay float32 everywhere: in float16 they are half a pixel apart from 512 on, and
        the library may fuse the cast with what computes them.
        """
        computes_half = self.rewrite == "fp16" or self.flags_on[:1] == ("FP16",)
        return computes_half, self.rewrite == "fp16" and head == "nanodet"


def precisions_of(compute_capability: tuple[int, int]) -> tuple[Precision, ...]:
    """Return the precisions that a GPU computes in, in the order of `_SINCE`."""
    return tuple(name for name, since in _SINCE.items() if compute_capability >= since)


def require_precision(precision: Precision, gpu: Gpu) -> None:
    """Refuse a precision that the GPU does not have. The `ModelError` names those that it has."""
    has = precisions_of(gpu.compute_capability)
    if precision not in has:
        major, minor = gpu.compute_capability
        raise ModelError(
            f"{gpu.name} (compute capability {major}.{minor}) has no {precision}; it has {', '.join(has)}",
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
    """Return flags, typing and rewriting for `precision`. The caller looks up the flags in its library by name."""
    if precision == "fp32":
        return Typing(not weak_typing, (), ("TF32",), "none")
    if precision == "tf32":
        return Typing(not weak_typing, ("TF32",), (), "none")
    if weak_typing:
        return Typing(False, _WEAK_FLAGS[precision], (), "none")
    return Typing(True, ("TF32",), (), "bf16" if precision == "bf16" else "fp16")


def check_types(precision: Precision, types: frozenset[str]) -> None:
    """Refuse a network that has lower types (of `FLOATS`) than float32 where the precision is float32.

    Only for a library that takes types from the ONNX file.
    """
    if precision in ("fp32", "tf32") and types - {"float32"}:
        half = "bf16" if "bfloat16" in types else "fp16"
        raise ModelError(
            f"the model computes in {' and '.join(sorted(types))}, and precision {precision} was asked for",
            hint=f"set `detect: {{precision: {half}}}`, or export the model in float32",
            code="precision-of-model",
        )


def check_quantisation(precision: Precision, quantised: Quantised) -> None:
    """Refuse a quantised precision for a model without quantisation, and the other way round."""
    if precision in ("int8", "fp8") and quantised != precision:
        raise ModelError(
            f"precision {precision} needs a model with {precision} QuantizeLinear nodes, this one has "
            f"{'none' if quantised == 'none' else f'{quantised} ones'}",
            hint="NVIDIA ModelOpt writes one from the model and some frames; or set `detect: {precision: fp16}`",
            code="not-quantised",
        )
    if precision not in ("int8", "fp8") and quantised != "none":
        raise ModelError(
            f"the model is quantised to {quantised}, and precision {precision} was asked for",
            hint=f"set `detect: {{precision: {quantised}}}`, or use the model as it was before quantisation",
            code="quantised",
        )


# ------------------------------------------------------------------------------------------------ build plan

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
    """Four interleaved channels, see `vision.engine.onnx_transform.widen_input`."""
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


class Refused(ModelError):
    """TensorRT, or a package that rewrites the model, does not take it. If it was rewritten, the original may build."""


def prepare_onnx(model: bytes, plan: BuildPlan, file: str) -> tuple[bytes, int]:
    """Rewrite an ONNX file, named `file` in errors, as `plan` needs it.

    Return it with the channels of the frame's input: 3, or 4 that are interleaved. Errors as of `rewrite_onnx`, and
    `Refused` for the errors of a dozen kinds that the packages raise for a damaged file.
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
            hint="`onnx.checker.check_model` says more; export it again, or compare its sha256 with model.yaml's",
            code="not-onnx",
        ) from error
    return model, INTERLEAVED_CHANNELS if widened else 3
