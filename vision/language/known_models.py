"""Vision-language models that TensorRT Edge-LLM, vLLM, and llama.cpp can all run, and the memory that they need.

The numbers of parameters follow from the published configurations of the models. The memory is computed, not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Precision: TypeAlias = Literal["fp16", "fp8", "nvfp4", "int4", "q4_k_m"]
"""Format of the weights. `q4_k_m` is the 4-bit format of llama.cpp."""

_BITS: Final[Mapping[Precision, float]] = {
    "fp16": 16.0,
    "fp8": 8.0,
    "nvfp4": 4.0 + 8 / 16,  # an 8-bit scale for each group of 16 weights
    "int4": 4.0 + 20 / 128,  # a 16-bit scale and a 4-bit zero point for each group of 128 weights
    "q4_k_m": 4.9,  # average, because some layers have 6 bits
}

CONTEXT_TOKENS: Final = 4096
"""Number of tokens for which memory is reserved per request. The prompt, the images, and the answer share them."""

_RUNTIME_MIB: Final = 1024.0  # assumed: CUDA context, code, activations, and memory of the image encoder
_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Draft:
    """An EAGLE-3 draft model for a 16-bit checkpoint. The number of parameters is in millions."""

    checkpoint: str
    parameters: int  # at most: one layer, and an embedding and an output layer for the whole vocabulary
    cache_bytes: int  # KV cache of one token


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A vision-language model. Numbers of parameters are in millions."""

    name: str
    linear: int  # parameters of the linear layers, which are quantized
    vocabulary: int  # parameters of the token embedding and the output layer, which only llama.cpp quantizes
    encoder: int  # parameters of the image encoder, which stays in 16 bits
    cache_bytes: int  # KV cache of one token: layers * KV heads * 128 values * 2 (key and value) * 2 bytes
    checkpoints: Mapping[Precision, str]  # published checkpoints by precision
    draft: Draft | None = None

    def need_mib(self, precision: Precision, parallel: int = 1) -> float:
        """Return the estimated memory in MiB of a server that answers `parallel` requests at the same time."""
        bits = self.linear * _BITS[precision] + self.encoder * 16
        bits += self.vocabulary * (_BITS[precision] if precision == "q4_k_m" else 16)
        cache = self.cache_bytes * CONTEXT_TOKENS * parallel
        return (bits / 8 * 1e6 + cache) / _MIB + _RUNTIME_MIB

    def draft_mib(self, parallel: int = 1) -> float:
        """Return the estimated memory in MiB that the draft model adds for `parallel` simultaneous requests.

        Return 0 if there is no draft model.
        """
        if self.draft is None:
            return 0.0
        return (self.draft.parameters * 2e6 + self.draft.cache_bytes * CONTEXT_TOKENS * parallel) / _MIB


KNOWN_MODELS: Final = (
    KnownModel("qwen3-vl-2b", 1_409, 311, 406, 28 * 8 * 512, {"fp16": "Qwen/Qwen3-VL-2B-Instruct"}),
    KnownModel(
        "qwen2.5-vl-3b",
        2_775,
        311,
        669,
        36 * 2 * 512,
        {
            "fp16": "Qwen/Qwen2.5-VL-3B-Instruct",
            "int4": "Qwen/Qwen2.5-VL-3B-Instruct-AWQ",
            "q4_k_m": "ggml-org/Qwen2.5-VL-3B-Instruct-GGUF",
        },
    ),
    KnownModel("qwen3-vl-4b", 3_633, 389, 415, 36 * 8 * 512, {"fp16": "Qwen/Qwen3-VL-4B-Instruct"}),
    KnownModel(
        "qwen2.5-vl-7b",
        6_525,
        1_090,
        676,
        28 * 4 * 512,
        {
            "fp16": "Qwen/Qwen2.5-VL-7B-Instruct",
            "fp8": "nvidia/Qwen2.5-VL-7B-Instruct-FP8",
            "nvfp4": "nvidia/Qwen2.5-VL-7B-Instruct-NVFP4",
            "int4": "Qwen/Qwen2.5-VL-7B-Instruct-AWQ",
            "q4_k_m": "ggml-org/Qwen2.5-VL-7B-Instruct-GGUF",
        },
        draft=Draft("Rayzl/qwen2.5-vl-7b-eagle3-sgl", 288 + 1_090, 4 * 512),
    ),
    KnownModel("qwen3-vl-8b", 6_946, 1_245, 576, 36 * 8 * 512, {"fp16": "Qwen/Qwen3-VL-8B-Instruct"}),
)
"""The models, smallest first."""
