"""Settings of an engine, derived from the configuration, the model, and the library, and checks of the precision.

In TensorRT 10, a builder flag allows a lower precision (weak typing). TensorRT 11 and TensorRT-RTX read types only from
the ONNX file (strong typing). For these libraries, ONNX Runtime's float16 converter rewrites the file. The converter
keeps inputs that must stay float32, such as the scales of Resize, and adds no casts inside a typical detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from vision.config.model_file import read_model_header
from vision.engine.library import Gpu, has_weak_typing, keeps_timing
from vision.engine.onnx_transform import INTERLEAVED_CHANNELS, reshape_onnx, rewrite_onnx
from vision.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from vision.config import CascadeConfig, ClassifierSpec, DetectConfig, ModelSpec

Precision: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
Quantized: TypeAlias = Literal["none", "int8", "fp8"]
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
    """Method by which a library provides a precision: typing, builder flags, and conversion of the ONNX file."""

    strongly_typed: bool
    flags_on: tuple[str, ...]
    flags_off: tuple[str, ...]
    rewrite: Literal["none", "fp16", "bf16"]

    def half_ends(self, head: str) -> tuple[bool, bool]:
        """Return two flags, for the input and for the outputs: True if boxes are as accurate in float16 as in float32.

        A float16 network rounds its input to float16 in any case. The last layer of a strongly typed network also
        computes in float16, so a cast to float32 adds no precision. The last layer of a weakly typed network may have a
        higher precision. Only outputs of nanodet and picodet heads contain no coordinates. Coordinates always stay
        float32, because float16 values from 512 on are half a pixel apart, and because the library may fuse the cast
        with the layers that compute the coordinates.
        """
        computes_half = self.rewrite == "fp16" or self.flags_on[:1] == ("FP16",)
        return computes_half, self.rewrite == "fp16" and head in ("nanodet", "nanodet-plus", "picodet")


def precisions_of(compute_capability: tuple[int, int]) -> tuple[Precision, ...]:
    """Return the precisions that a GPU with this compute capability supports."""
    return tuple(name for name, since in _SINCE.items() if compute_capability >= since)


def require_precision(precision: Precision, gpu: Gpu) -> None:
    """Raise `ModelError` if the GPU does not support a precision. The error lists the supported precisions."""
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
    """Return the method by which a library, with or without weak typing, provides `precision`."""
    if precision == "fp32":
        return Typing(not weak_typing, (), ("TF32",), "none")
    if precision == "tf32":
        return Typing(not weak_typing, ("TF32",), (), "none")
    if weak_typing:
        return Typing(False, _WEAK_FLAGS[precision], (), "none")
    return Typing(True, ("TF32",), (), "bf16" if precision == "bf16" else "fp16")


def check_types(precision: Precision, types: frozenset[str]) -> None:
    """Raise `ModelError` if the precision is fp32 or tf32, but the network computes in a 16-bit type.

    `types` are the types, from `FLOATS`, in which a strongly typed network computes.
    """
    if precision in ("fp32", "tf32") and types - {"float32"}:
        half = "bf16" if "bfloat16" in types else "fp16"
        raise ModelError(
            f"the model computes in {' and '.join(sorted(types))}, but `precision: {precision}` is configured",
            hint=f"set `detect: {{precision: {half}}}`, or export the model in float32",
            code="precision-of-model",
        )


def check_quantization(precision: Precision, quantized: Quantized) -> None:
    """Raise `ModelError` if the quantization of the model (int8, fp8, or none) does not match the precision."""
    if precision in ("int8", "fp8") and quantized != precision:
        raise ModelError(
            f"precision {precision} needs a model with {precision} QuantizeLinear nodes; this model has "
            f"{'none' if quantized == 'none' else f'{quantized} nodes'}",
            hint="`vision calibrate` or NVIDIA ModelOpt creates one; or set `detect: {precision: fp16}`",
            code="not-quantised",
        )
    if precision not in ("int8", "fp8") and quantized != "none":
        raise ModelError(
            f"the model is quantized to {quantized}, but `precision: {precision}` is configured",
            hint=f"set `detect: {{precision: {quantized}}}`, or use the model from before the quantization",
            code="quantised",
        )


# ------------------------------------------------------------------------------------------------ build plan

DEFAULT_LEVEL: Final = 3
"""Default optimization level of TensorRT."""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Settings that determine the engine of a model. The cache key contains all of them."""

    precision: Precision
    max_batch: int
    """Maximum number of frames in one run."""
    workspace_mib: int = 0
    """Maximum scratch memory of one layer, in MiB. 0 means the default, see `vision.engine.build.workspace_limit`."""
    optimization_level: int = DEFAULT_LEVEL
    """Optimization effort, from 0 (fastest build) to 5 (fastest engine)."""
    on_dla: bool = False
    """True if the DLA core `dla_core` of a Jetson runs the engine, except for layers that only the GPU supports."""
    dla_core: int = 0
    """Index of the DLA core, from 0. It is ignored if `on_dla` is False."""
    sparse: bool = False
    """True if TensorRT may use sparse tensor cores."""
    half_input: bool = False
    """True if input frames have 16 bits per value instead of float32."""
    half_outputs: bool = False
    """True if the outputs have 16 bits per value instead of float32."""
    interleaved_input: bool = False
    """True if input frames have four interleaved channels. See `vision.engine.onnx_transform.widen_input`."""
    folded: bool = False
    """True if narrow convolutions are folded. See `vision.engine.conv_folding`."""
    fixed_batches: bool = False
    """True if each batch size also has a separate profile. See `vision.engine.profiles.make_profiles`."""


def resolve(detect: DetectConfig, spec: ModelSpec) -> BuildPlan:
    """Return the build plan for a configuration. The library and the model determine settings that are not configured.

    An input with interleaved channels, folded convolutions (`vision.engine.conv_folding`), and a separate profile for
    each batch size are used only with TensorRT-RTX, which selects kernels by rules. TensorRT measures kernels instead,
    even for narrow convolutions. On a Jetson, each additional profile makes a build of TensorRT minutes longer.
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
        sparse=engine.sparse_weights,
        half_input=half_input,
        half_outputs=half_outputs,
        interleaved_input=by_rule and half_input and typing.rewrite == "fp16",
        folded=by_rule and detect.precision in ("fp16", "bf16"),
        fixed_batches=by_rule and engine.dla_core is None,
    )


def resolve_classifier(cascade: CascadeConfig, folder: Path, spec: ClassifierSpec) -> BuildPlan:
    """Return the build plan of a second model. A fixed batch size of its ONNX file replaces `cascade.max_batch`.

    Raises:
        DeviceMissing: TensorRT is missing.
        ModelError: the file is missing, damaged, or not an ONNX file.
        Unavailable: the file cannot be read at present.
    """
    inputs = read_model_header(folder / spec.file, spec.name).inputs
    declared = inputs[0].shape[0] if len(inputs) == 1 and inputs[0].shape else None
    batch = declared if isinstance(declared, int) and declared > 0 else cascade.max_batch
    typing = plan_typing(cascade.precision, weak_typing=has_weak_typing())
    half_input, _ = typing.half_ends("classifier")
    return BuildPlan(cascade.precision, batch, half_input=half_input, fixed_batches=not keeps_timing())


class Refused(ModelError):
    """Error of TensorRT, or of a package that rewrites the model. Without rewriting, the build may succeed."""


def prepare_onnx(model: bytes, plan: BuildPlan, file: str) -> tuple[bytes, int]:
    """Rewrite the contents of an ONNX file for `plan`.

    Returns:
        The model, and the number of channels of its input: 4 if the channels are interleaved, otherwise 3.

    Raises:
        Refused: a package fails to process the model. The message contains the file name `file`.
        ModelError: a package is missing, or the model cannot be converted to the precision.
        MemoryError: memory is lacking.
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
