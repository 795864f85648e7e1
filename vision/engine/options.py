"""What an engine is built with: what the user said, and what is decided where the user said nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vision.engine.channel_packing import INTERLEAVED_CHANNELS
from vision.engine.library import has_weak_typing, keeps_timing
from vision.engine.onnx_transform import refusing_damage, reshape_onnx, rewrite_onnx
from vision.engine.precision import Precision, plan_typing
from vision.errors import ModelError

if TYPE_CHECKING:
    from vision.config.app import ModelSpec


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What makes one engine of a model different from another. All of it is part of the cache's key."""

    precision: Precision = "fp16"
    max_batch: int = 8
    workspace_mib: int | None = None  # most scratch memory of one layer; as much as there is where None
    optimization_level: int | None = None  # 0 quick to build .. 5 quick to run; TensorRT's own choice where None
    dla_core: int | None = None  # run on this accelerator of a Jetson where it has one
    half_input: bool | None = None  # frames in 16 bits instead of float32; where that costs nothing if None
    half_outputs: bool | None = None  # the same of what the network gives
    interleaved_input: bool | None = None  # see `interleaving`; where it helps if None
    folded: bool | None = None  # see `folding`; where it helps if None
    fixed_batches: bool | None = None  # a profile for each, see `make_profiles`; where it helps if None
    max_aux_streams: int | None = None  # branches of the network side by side; TensorRT's own choice where None
    flags: tuple[str, ...] = ()  # further builder flags by name, such as SPARSE_WEIGHTS

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ModelError(f"the optimization level is 0 to 5, got {self.optimization_level}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ModelError(f"the workspace is at least 1 MiB, got {self.workspace_mib}")
        if self.dla_core is not None and self.dla_core < 0:
            raise ModelError(f"DLA cores are counted from 0, got {self.dla_core}")


def settled(settings: BuildOptions, spec: ModelSpec) -> BuildOptions:
    """`settings` with a decision on what was left to the library and the model: see `Typing.half_ends`.

    Interleaved input, folding and profiles of one size are for a library that chooses kernels by rule. One that
    measures them finds out by itself what a narrow convolution takes, and each profile costs it minutes on a Jetson.
    """
    typing = plan_typing(settings.precision, weak_typing=has_weak_typing())
    half = typing.half_ends(spec.head.kind)
    half_input = half[0] if settings.half_input is None else settings.half_input
    by_rule = not keeps_timing()
    usual: dict[str, bool] = {
        "half_input": half_input,
        "half_outputs": half[1],
        "interleaved_input": by_rule and half_input and typing.rewrite == "fp16",
        "folded": by_rule and settings.precision in ("fp16", "bf16"),
        "fixed_batches": by_rule and settings.dla_core is None,
    }
    left = {name: value for name, value in usual.items() if getattr(settings, name) is None}
    return replace(settings, **left)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class PreparedOnnx:
    """The ONNX file that TensorRT gets to see."""

    onnx: bytes
    channels: int  # of the frame's input: 3, or 4 that are interleaved


@refusing_damage
def prepare_onnx(model: bytes, settings: BuildOptions) -> PreparedOnnx:
    """The ONNX file that is built with `settings` (settled). Errors as of `rewrite_onnx` and `refusing_damage`."""
    model, widened = reshape_onnx(model, interleave=bool(settings.interleaved_input), fold=bool(settings.folded))
    typing = plan_typing(settings.precision, weak_typing=has_weak_typing())
    if typing.rewrite != "none":
        ends = {"keep_inputs": not settings.half_input, "keep_outputs": not settings.half_outputs}
        model = rewrite_onnx(model, typing.rewrite, **ends)
    return PreparedOnnx(model, INTERLEAVED_CHANNELS if widened else 3)
