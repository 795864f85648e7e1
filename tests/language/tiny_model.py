"""Tiny language model with random weights, and its vision projector, as GGUF files for llama.cpp.

The model speaks no language, but every part of a real server runs with it: the tokenizer, the chat template, the image
encoder, the sampling, and the grammar of a JSON schema.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

EMBEDDING, HIDDEN, LAYERS, HEADS, CONTEXT = 64, 128, 2, 4, 2048
IMAGE_PX: Final = 56
PATCH_PX: Final = 14
IMAGE_TOKENS: Final = (IMAGE_PX // PATCH_PX) ** 2
"""Tokens of one image in the prompt."""

_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_language_model(path: Path) -> None:
    """Write a model of the architecture `llama`, whose vocabulary consists of single bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    words = _add_vocabulary(writer)
    weights = _Weights(writer)
    weights.add("token_embd.weight", words, EMBEDDING)
    weights.add("output.weight", words, EMBEDDING)
    weights.add_ones("output_norm.weight", EMBEDDING)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        weights.add_ones(f"{block}.attn_norm.weight", EMBEDDING)
        weights.add_ones(f"{block}.ffn_norm.weight", EMBEDDING)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights.add(f"{block}.{name}.weight", EMBEDDING, EMBEDDING)
        weights.add(f"{block}.ffn_gate.weight", HIDDEN, EMBEDDING)
        weights.add(f"{block}.ffn_up.weight", HIDDEN, EMBEDDING)
        weights.add(f"{block}.ffn_down.weight", EMBEDDING, HIDDEN)
    _finish(writer)


def write_projector(path: Path) -> None:
    """Write the image encoder and the projector of the model (type `mlp`, as in LLaVA)."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name("tiny-projector")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    for name, value in (
        ("image_size", IMAGE_PX),
        ("patch_size", PATCH_PX),
        ("embedding_length", EMBEDDING),
        ("feed_forward_length", HIDDEN),
        ("projection_dim", EMBEDDING),
        ("block_count", LAYERS),
        ("attention.head_count", HEADS),
    ):
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    weights = _Weights(writer)
    weights.add("v.patch_embd.weight", EMBEDDING, 3, PATCH_PX, PATCH_PX)
    weights.add("v.position_embd.weight", IMAGE_TOKENS, EMBEDDING)
    weights.add_norm("v.pre_ln", EMBEDDING)
    for layer in range(LAYERS):
        block = f"v.blk.{layer}"
        weights.add_norm(f"{block}.ln1", EMBEDDING)
        weights.add_norm(f"{block}.ln2", EMBEDDING)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            weights.add_linear(f"{block}.{name}", EMBEDDING, EMBEDDING)
        weights.add_linear(f"{block}.ffn_up", HIDDEN, EMBEDDING)
        weights.add_linear(f"{block}.ffn_down", EMBEDDING, HIDDEN)
    weights.add_linear("mm.0", EMBEDDING, EMBEDDING)
    weights.add_linear("mm.2", EMBEDDING, EMBEDDING)
    _finish(writer)


class _Weights:
    """Writer of random float32 tensors into a GGUF file. The tensors are the same in every run."""

    def __init__(self, writer: gguf.GGUFWriter) -> None:
        self._writer = writer
        self._random = np.random.default_rng(1)

    def add(self, name: str, *shape: int) -> None:
        self._add(name, self._random.normal(0, 0.05, shape).astype(np.float32))

    def add_ones(self, name: str, length: int) -> None:
        self._add(name, np.ones(length, np.float32))

    def add_linear(self, name: str, outputs: int, inputs: int) -> None:
        self.add(f"{name}.weight", outputs, inputs)
        self._add(f"{name}.bias", np.zeros(outputs, np.float32))

    def add_norm(self, name: str, length: int) -> None:
        self.add_ones(f"{name}.weight", length)
        self._add(f"{name}.bias", np.zeros(length, np.float32))

    def _add(self, name: str, values: NDArray[np.float32]) -> None:
        self._writer.add_tensor(name, values)


def _add_vocabulary(writer: gguf.GGUFWriter) -> int:
    """Add a SentencePiece vocabulary of single bytes, and the chat template. Return the number of tokens."""
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens.append(("\u2581", kinds.NORMAL))  # stands for a space
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(_CHAT_TEMPLATE)
    return len(tokens)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_language_model(folder / "tiny.gguf")
    write_projector(folder / "tiny-projector.gguf")
