"""Tests of the precisions that GPUs support, and of strongly and weakly typed builds."""

from __future__ import annotations

import pytest

from vision.engine.build_plan import (
    Precision,
    Quantized,
    Typing,
    check_quantization,
    plan_typing,
    precisions_of,
    require_precision,
)
from vision.engine.library import GpuDescription
from vision.errors import ModelError


@pytest.mark.parametrize(
    ("capability", "has"),
    [
        ((5, 0), "fp32"),
        ((5, 3), "fp32 fp16"),
        ((7, 2), "fp32 fp16 int8"),
        ((7, 5), "fp32 fp16 int8"),
        ((8, 0), "fp32 fp16 int8 tf32 bf16"),
        ((8, 7), "fp32 fp16 int8 tf32 bf16"),  # Orin
        ((8, 9), "fp32 fp16 int8 tf32 bf16 fp8"),
        ((9, 0), "fp32 fp16 int8 tf32 bf16 fp8"),
        ((11, 0), "fp32 fp16 int8 tf32 bf16 fp8"),  # Thor
    ],
)
def test_precisions_follow_the_compute_capability(capability: tuple[int, int], has: str) -> None:
    assert precisions_of(capability) == tuple(has.split())


def test_precision_that_the_gpu_lacks_is_refused_with_a_suggestion() -> None:
    require_precision("fp8", GpuDescription("NVIDIA L4", (8, 9)))
    with pytest.raises(ModelError) as caught:
        require_precision("fp8", GpuDescription("Orin", (8, 7)))
    assert caught.value.code == "precision-of-gpu"
    assert "precision: fp16" in caught.value.hint


@pytest.mark.parametrize(
    ("precision", "weak", "typing"),
    [
        ("fp32", True, Typing(False, (), ("TF32",), "none")),
        ("fp32", False, Typing(True, (), ("TF32",), "none")),
        ("tf32", True, Typing(False, ("TF32",), (), "none")),
        ("tf32", False, Typing(True, ("TF32",), (), "none")),
        ("fp16", True, Typing(False, ("FP16", "TF32"), (), "none")),
        ("fp16", False, Typing(True, ("TF32",), (), "fp16")),
        ("bf16", True, Typing(False, ("BF16", "TF32"), (), "none")),
        ("bf16", False, Typing(True, ("TF32",), (), "bf16")),
        ("int8", True, Typing(False, ("INT8", "FP16", "TF32"), (), "none")),
        ("int8", False, Typing(True, ("TF32",), (), "fp16")),
        ("fp8", True, Typing(False, ("FP8", "FP16", "TF32"), (), "none")),
        ("fp8", False, Typing(True, ("TF32",), (), "fp16")),
    ],
)
def test_typing_follows_from_precision_and_library(precision: Precision, weak: bool, typing: Typing) -> None:
    assert plan_typing(precision, weak_typing=weak) == typing


@pytest.mark.parametrize(
    ("precision", "found", "code"),
    [
        ("int8", "none", "not-quantised"),
        ("int8", "fp8", "not-quantised"),
        ("fp8", "int8", "not-quantised"),
        ("fp16", "int8", "quantised"),
    ],
)
def test_mismatched_quantization_and_precision_are_refused(precision: Precision, found: Quantized, code: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_quantization(precision, found)
    assert caught.value.code == code


@pytest.mark.parametrize(("precision", "found"), [("int8", "int8"), ("fp8", "fp8"), ("fp16", "none"), ("fp32", "none")])
def test_matching_quantization_and_precision_are_accepted(precision: Precision, found: Quantized) -> None:
    check_quantization(precision, found)


@pytest.mark.parametrize(
    ("precision", "weak_typing", "head", "half_ends"),
    [
        ("fp16", False, "nanodet", (True, True)),
        ("fp16", False, "yolov8", (True, False)),  # the outputs of the model are coordinates
        ("fp16", True, "nanodet", (True, False)),  # the last layers of the model can be float32
        ("int8", False, "nanodet", (True, True)),
        ("int8", True, "nanodet", (False, False)),
        ("bf16", False, "nanodet", (False, False)),  # the kernels have no bfloat16
        ("bf16", True, "nanodet", (False, False)),
        ("fp32", False, "nanodet", (False, False)),
        ("tf32", True, "nanodet", (False, False)),
    ],
)
def test_half_precision_of_inputs_and_outputs_follows_precision_and_head(
    precision: Precision, weak_typing: bool, head: str, half_ends: tuple[bool, bool]
) -> None:
    assert plan_typing(precision, weak_typing=weak_typing).half_ends(head) == half_ends
