"""Precisions of a GPU, and how a library builds an engine in one.

In TensorRT 10 a builder flag allows a lower precision (weak typing). TensorRT 11 and TensorRT-RTX take types from the
ONNX file alone (strong typing), so there the file is rewritten with ONNX Runtime's float16 converter, which keeps the
inputs that must stay float32 (scales of Resize) and leaves no casts inside a plain detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from vision.engine.library import Gpu
from vision.errors import ModelError

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
        """Return whether a detector's input and outputs can be float16 without worse boxes.

        The network rounds its input to float16 itself, so the input can be rounded before. A strongly typed network has
        float16 after its last layer too, and a cast to float32 adds nothing; a weakly typed one may have more there.
        Outputs that are coordinates stay float32 everywhere: in float16 they are half a pixel apart from 512 on, and
        the library may fuse the cast with what computes them.

        Args:
            head: kind of the head in the model spec.
        """
        computes_half = self.rewrite == "fp16" or self.flags_on[:1] == ("FP16",)
        return computes_half, self.rewrite == "fp16" and head == "nanodet"


def precisions_of(compute_capability: tuple[int, int]) -> tuple[Precision, ...]:
    """Return the precisions that a GPU computes in, in the order of `_SINCE`."""
    return tuple(name for name, since in _SINCE.items() if compute_capability >= since)


def require_precision(precision: Precision, gpu: Gpu) -> None:
    """Refuse a precision that the GPU does not have.

    Raises:
        ModelError: the GPU does not have it; the message names those that it has.
    """
    has = precisions_of(gpu.compute_capability)
    if precision not in has:
        major, minor = gpu.compute_capability
        raise ModelError(
            f"{gpu.name} (compute capability {major}.{minor}) has no {precision}; it has {', '.join(has)}",
            hint=f"set `detect: {{precision: {'fp16' if 'fp16' in has else 'fp32'}}}`",
        )


def plan_typing(precision: Precision, *, weak_typing: bool) -> Typing:
    """Return flags, typing and rewriting for `precision`. The caller looks up the flags in its library by name."""
    tensor_cores_on_floats = ("TF32",)
    if precision == "fp32":
        return Typing(not weak_typing, (), tensor_cores_on_floats, "none")
    if precision == "tf32":
        return Typing(not weak_typing, tensor_cores_on_floats, (), "none")
    allowed: Mapping[str, tuple[str, ...]] = {
        "fp16": ("FP16",),
        "bf16": ("BF16",),
        "fp8": ("FP8", "FP16"),
        "int8": ("INT8", "FP16"),
    }
    if weak_typing:
        return Typing(False, (*allowed[precision], *tensor_cores_on_floats), (), "none")
    return Typing(True, tensor_cores_on_floats, (), "bf16" if precision == "bf16" else "fp16")


def check_types(precision: Precision, found: frozenset[str]) -> None:
    """Refuse a network whose types contradict the precision, for a library that takes types from the ONNX file.

    Args:
        precision: precision of the configuration.
        found: the types of `FLOATS` that the network has.

    Raises:
        ModelError: float32 is expected, and the network has other types.
    """
    if precision in ("fp32", "tf32") and found - {"float32"}:
        half = "bf16" if "bfloat16" in found else "fp16"
        raise ModelError(
            f"the model computes in {' and '.join(sorted(found))}, and precision {precision} was asked for",
            hint=f"set `detect: {{precision: {half}}}`, or export the model in float32",
        )


def check_quantisation(precision: Precision, found: Quantised) -> None:
    """Refuse a quantised precision for a model without quantisation, and the other way round.

    Raises:
        ModelError: they do not agree.
    """
    if precision in ("int8", "fp8") and found != precision:
        raise ModelError(
            f"precision {precision} needs a model with {precision} QuantizeLinear nodes, this one has "
            f"{'none' if found == 'none' else f'{found} ones'}",
            hint="NVIDIA ModelOpt writes one from the model and some frames; or set `detect: {precision: fp16}`",
        )
    if precision not in ("int8", "fp8") and found != "none":
        raise ModelError(
            f"the model is quantised to {found}, and precision {precision} was asked for",
            hint=f"set `detect: {{precision: {found}}}`, or use the model as it was before quantisation",
        )
