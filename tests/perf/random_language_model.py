"""Write a vision-language model with random weights, with its tokenizer and its processor, into a folder.

    python -m tests.perf.random_language_model FOLDER --device cuda

The architecture is Qwen2-VL. With CUDA, the model has the published dimensions of Qwen2-VL-2B (2.2 billion parameters)
in bfloat16, but its tokenizer uses only a part of the vocabulary. On a CPU, the model is much smaller. The command
downloads nothing. This file imports nothing from the project, so that a Python environment with only `transformers` can
run it. The command prints one JSON object: the token ids of "yes" and "no", the number of parameters, and the versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

_ROOT: Final = Path(__file__).parents[2]
_SEED: Final = 1
_ANSWERS: Final = ("yes", "no")
_END, _START, _STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_VISION: Final = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_LEARNED_TOKENS: Final = 8000
_PATTERN: Final = r"\p{L}+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
_TEMPLATE: Final = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The dimensions in config.json of Qwen/Qwen2-VL-2B-Instruct.
_PUBLISHED: Final[dict[str, dict[str, Any]]] = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16},
}
_SMALL: Final[dict[str, dict[str, Any]]] = {
    "text_config": {
        "vocab_size": 16384,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    },
    "vision_config": {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 4},
}


def write(folder: Path, device: str) -> dict[str, Any]:
    """Write the model into `folder`. Return the token ids of the answers, the number of parameters, and the time."""
    began_s = time.monotonic()
    tokenizer = _tokenizer()
    model = _model(tokenizer, device)
    model.save_pretrained(folder)
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    return {
        "architecture": type(model).__name__,
        "parameters": sum(each.numel() for each in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "answer_tokens": {answer: _only_token(tokenizer, answer) for answer in _ANSWERS},
        "write_s": round(time.monotonic() - began_s, 1),
        "versions": _versions(),
    }


def _tokenizer() -> Any:
    """Return a byte-level BPE tokenizer, trained on the documentation of the project."""
    learner = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(_PATTERN), behavior="isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_LEARNED_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [path.read_text() for path in sorted((_ROOT / "docs").glob("*.md"))]
    learner.train_from_iterator([*texts, *("\n".join(_ANSWERS) for _ in range(1000))], trainer)
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token=_STOP,
        pad_token=_END,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [_START, _STOP, *_VISION]})
    return tokenizer


def _only_token(tokenizer: Any, word: str) -> int:
    """Return the id of the only token of `word`. Raise `ValueError` if `word` has several tokens."""
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1 or tokenizer.decode(ids) != word:
        raise ValueError(f"{word!r} has {len(ids)} tokens; expected 1")
    return int(ids[0])


def _model(tokenizer: Any, device: str) -> Any:
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(_VISION))
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = _PUBLISHED if device == "cuda" else _SMALL
    config = Qwen2VLConfig(
        text_config=sizes["text_config"] | ends | {"bos_token_id": tokenizer.pad_token_id},
        vision_config=sizes["vision_config"],
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
    )
    torch.manual_seed(_SEED)
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**ends)
    return model


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "transformers", "tokenizers", "accelerate", "fastapi", "uvicorn", "openai")
    versions = {name: metadata.version(name) for name in packages}
    cuda = {"cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"python": platform.python_version(), **versions, **cuda}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="Default: %(default)s")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(json.dumps(write(options.folder, options.device)))


if __name__ == "__main__":
    main()
