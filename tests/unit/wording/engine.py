"""Expected texts about TensorRT engines."""

from __future__ import annotations

from vision.engine.build_plan import check_quantization, require_precision
from vision.engine.library import GpuDescription
from vision.errors import ModelError


def _precision_text() -> str:
    try:
        require_precision("fp8", GpuDescription("Orin", (8, 7)))
    except ModelError as error:
        return str(error)
    return "no error"


def _quantization_text() -> str:
    try:
        check_quantization("int8", "none")
    except ModelError as error:
        return str(error)
    return "no error"


ROWS = [
    (
        "a precision that the GPU does not have",
        _precision_text,
        (
            "Orin (compute capability 8.7) does not support fp8, only fp32, fp16, int8, tf32, bf16\n"
            "  hint: set `detect: {precision: fp16}`"
        ),
    ),
    (
        "int8 without a quantized model",
        _quantization_text,
        (
            "precision int8 needs a model with int8 QuantizeLinear nodes; this model has none\n"
            "  hint: `vision calibrate` or NVIDIA ModelOpt creates one; or set `detect: {precision: fp16}`"
        ),
    ),
]
