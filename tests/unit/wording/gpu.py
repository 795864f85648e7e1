"""Expected texts about GPUs, engines, and memory."""

from __future__ import annotations

from tests.unit.engine_models import spec
from vision.engine.build_plan import BuildPlan
from vision.engine.memory import BudgetLine, MemoryBudget
from vision.engine.profiles import NetworkInput, Range, make_profiles
from vision.errors import VisionError


def _budget_text() -> str:
    lines = (BudgetLine("weights", "device", 7 << 20), BudgetLine("activations per slot", "device", 50 << 20, 3))
    try:
        MemoryBudget(lines).require(100 << 20, 8192 << 20)
    except VisionError as error:
        return str(error)
    return "no error"


def _batch_text() -> str:
    try:
        make_profiles([NetworkInput("images", (4, 3, 16, 16))], spec(), BuildPlan("fp16", 8))
    except VisionError as error:
        return str(error)
    return "no error"


def _profile_text() -> str:
    return str(Range((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16)))


ROWS = [
    (
        "a detector that does not fit into the GPU",
        _budget_text,
        (
            "the detector needs 157.0 MiB of memory, 150.0 MiB of it for activations per slot; "
            "100.0 MiB of 8192.0 MiB are free\n"
            "  hint: lower `detect: {max_batch: ...}` or `batches_in_flight`, or end other programs that use the GPU"
        ),
    ),
    (
        "a batch size that the ONNX file does not allow",
        _batch_text,
        (
            "the model's batch is fixed to 4 in the ONNX file, but max_batch is 8\n"
            "  hint: set `detect: {max_batch: 4}`, or export the model with a dynamic batch dimension"
        ),
    ),
    ("a range of an optimisation profile", _profile_text, "1x3x16x16 .. 8x3x16x16 (best 4x3x16x16)"),
]
