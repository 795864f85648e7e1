"""Commands that start a server of a vision-language model in the memory that `vision` leaves free.

The options are from the documentation of the servers: TensorRT Edge-LLM 0.11, vLLM 0.20, and llama.cpp. The container
for JetPack 6 is from NVIDIA's instructions for Jetson Orin.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from vision.language.known_models import CONTEXT_TOKENS, KNOWN_MODELS, KnownModel, Precision

Platform: TypeAlias = Literal["jetpack7", "jetpack6", "gpu", "cpu"]
ServerName: TypeAlias = Literal["edge-llm", "vllm", "llama.cpp"]

SERVERS: Final[dict[Platform, tuple[ServerName, ...]]] = {
    "jetpack7": ("edge-llm", "vllm", "llama.cpp"),
    "jetpack6": ("vllm", "llama.cpp"),  # the wheel of Edge-LLM needs the C library of Ubuntu 24.04
    "gpu": ("vllm", "llama.cpp"),
    "cpu": ("llama.cpp",),
}
"""The servers that run on each platform."""

PORT: Final = 8000
MARGIN: Final = 1.1
"""Ratio of the memory that must be free to the estimated memory of a server."""

_ANSWER_TOKENS: Final = 256
_BLACKWELL, _ADA = 100, 89
_METHODS: Final[dict[Precision, tuple[str, ...]]] = {
    "int4": ("--quantization", "int4_awq"),
    "fp8": ("--quantization", "fp8"),
    "nvfp4": ("--quantization", "nvfp4", "--kv_cache_quantization", "fp8"),
}
_EXPERIMENTAL: Final = (
    "NVIDIA calls this server experimental. Its first start builds engines, which takes minutes, and needs the "
    "compiler nvcc of the CUDA toolkit."
)
_CONTAINERS: Final[dict[Platform, str]] = {
    "jetpack7": "vllm/vllm-openai:latest",
    "jetpack6": "ghcr.io/nvidia-ai-iot/vllm:r36.4-tegra-aarch64-cu126-22.04 vllm serve",
}
"""Container of vLLM for each platform, with the command that starts the server if the container does not start it."""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that runs a server. A `capability` of 87 means the compute capability 8.7. 0 means no GPU."""

    platform: Platform
    capability: int
    total_mib: float  # of the memory in which models run
    left_mib: float  # available to a server
    jetpack: str = ""  # version, such as 7.2.1; empty if it is not known, or if the machine is no Jetson

    @property
    def edge_llm(self) -> str:
        """Version of TensorRT Edge-LLM for this machine."""
        return "0.11.1" if _version(self.jetpack) >= (7, 2, 2) else "0.11.0"

    def precisions(self, server: ServerName) -> tuple[Precision, ...]:
        """Return the weight formats that the server can use on this machine, fastest first."""
        if server == "llama.cpp":
            return ("q4_k_m",)
        if self.capability >= _BLACKWELL:
            return ("nvfp4", "fp8", "int4", "fp16")
        return ("fp8", "int4", "fp16") if self.capability >= _ADA else ("int4", "fp16")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part)


@dataclass(frozen=True, slots=True)
class Machine:
    """A type of machine for which `vision` can print recipes while running on a different machine."""

    capability: int
    memory_gib: int
    jetpacks: tuple[str, ...]  # newest first


_ORIN_JETPACKS: Final = ("7.2", "7.2.1", "7.2.2", "6.2", "6.1")
MACHINES: Final = {
    "orin-nano-8gb": Machine(87, 8, _ORIN_JETPACKS),
    "orin-nx-16gb": Machine(87, 16, _ORIN_JETPACKS),
    "agx-orin-32gb": Machine(87, 32, _ORIN_JETPACKS),
    "agx-orin-64gb": Machine(87, 64, _ORIN_JETPACKS),
    "thor-128gb": Machine(110, 128, ("7.2", "7.2.1", "7.2.2", "7.1", "7.0")),
}
"""Jetsons by name, with the versions of JetPack that run on them. The first version is the default."""

_RESERVED: Final = 0.05  # assumed: part of the memory that Linux does not report
_USED_MIB: Final = 2048.0  # assumed: memory of the system and of `vision`


def host_of(name: str, jetpack: str | None = None) -> Host:
    """Return a `Host` that describes a type of Jetson, with an assumed amount of free memory.

    Args:
        name: name in `MACHINES`.
        jetpack: version of JetPack, from `Machine.jetpacks`. None means the first of these versions.
    """
    machine = MACHINES[name]
    version = machine.jetpacks[0] if jetpack is None else jetpack
    total_mib = machine.memory_gib * 1024 * (1 - _RESERVED)
    platform: Platform = "jetpack7" if version.startswith("7") else "jetpack6"
    return Host(platform, machine.capability, total_mib, total_mib - _USED_MIB, version)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The commands that start a server, and restrictions that a user must know."""

    server: ServerName
    model: str
    precision: Precision
    need_mib: float  # estimated memory of the server
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    draft: str | None = None  # model for speculative decoding


def recipes(host: Host, *, parallel: int = 1, model: str | None = None) -> list[Recipe]:
    """Return the recipes for each server of the machine. A server has no recipe if no model fits.

    Prefer published quantized checkpoints, because a Jetson reads all weights for each token. Choose a model that a
    user must quantize only if no published checkpoint fits. If several checkpoints are equally suitable, choose the
    checkpoint of the largest model.

    Args:
        host: the machine.
        parallel: number of requests that the server answers at the same time.
        model: name of the model to use. None means any model.
    """
    candidates = [known for known in reversed(KNOWN_MODELS) if model in (None, known.name)]
    found = []
    for server in SERVERS[host.platform]:
        fitting = _largest_fitting(host, server, candidates, parallel)
        if fitting is not None:
            found.append(_recipe(host, server, *fitting, parallel))
            found += _speculative(host, server, fitting[0], parallel)
    return found


def usable_precisions(host: Host, server: ServerName, known: KnownModel) -> tuple[Precision, ...]:
    """Return the formats in which the server can load the model, fastest first.

    For Edge-LLM, these are all formats of the server, because a user can quantize every model.
    """
    allowed = host.precisions(server)
    if server == "edge-llm":
        return allowed
    return tuple(precision for precision in allowed if precision in known.checkpoints)


def _largest_fitting(
    host: Host, server: ServerName, candidates: Sequence[KnownModel], parallel: int
) -> tuple[KnownModel, Precision] | None:
    fitting = [
        (known, precision)
        for known in candidates
        for precision in usable_precisions(host, server, known)
        if fits(host, known, precision, parallel)
    ]
    return min(fitting, key=lambda choice: _effort(*choice), default=None)


def _effort(known: KnownModel, precision: Precision) -> int:
    """Return 0 for a published quantized checkpoint, 1 for a 16-bit checkpoint, and 2 if neither is published."""
    return 2 if precision not in known.checkpoints else int(precision == "fp16")


def fits(host: Host, known: KnownModel, precision: Precision, parallel: int) -> bool:
    """Return True if the estimated memory of a server of the model, multiplied by `MARGIN`, is free on the host."""
    return known.need_mib(precision, parallel) * MARGIN <= host.left_mib


def _recipe(host: Host, server: ServerName, known: KnownModel, precision: Precision, parallel: int) -> Recipe:
    need = known.need_mib(precision, parallel)
    if server == "edge-llm":
        serve = _edge_llm(host, known.checkpoints.get(precision), known, parallel)
        commands = (*_quantize(host, known, precision), *serve)
        return Recipe(server, known.name, precision, need, commands, _edge_llm_notes(host))
    if server == "vllm":
        return Recipe(server, known.name, precision, need, _vllm(host, known, precision, parallel), _vllm_notes(host))
    return Recipe(server, known.name, precision, need, (_llama(host, known, precision, parallel),), _llama_notes(host))


def _quantize(host: Host, known: KnownModel, precision: Precision) -> Iterator[str]:
    """Yield a comment and the commands that quantize a model. If a published checkpoint exists, yield nothing."""
    if precision not in known.checkpoints:
        arguments = ["--model_dir", known.checkpoints["fp16"], "--output_dir", _own_checkpoint(known)]
        command = shlex.join(["tensorrt-edgellm-quantize", "llm", *arguments, *_METHODS[precision]])
        yield "# on a computer with a GPU; then copy the folder to this machine"
        yield f"pip install 'tensorrt-edgellm[tools]=={host.edge_llm}'"
        yield command


def _own_checkpoint(known: KnownModel) -> str:
    return f"{known.name}-quantized"


def _edge_llm(
    host: Host, checkpoint: str | None, known: KnownModel, parallel: int, extra: Sequence[str] = ()
) -> tuple[str, ...]:
    batching = ("--max-batch-size", str(parallel), "--enable-in-flight-batching") if parallel > 1 else ()
    command = shlex.join(
        [
            *("edge/bin/tensorrt-edgellm-serve", checkpoint or f"./{_own_checkpoint(known)}"),
            *("--host", "127.0.0.1", "--port", str(PORT)),
            *("--max-input-len", str(CONTEXT_TOKENS - _ANSWER_TOKENS), "--max-kv-cache-capacity", str(CONTEXT_TOKENS)),
            *batching,
            *extra,
        ]
    )
    # TensorRT is a system package of JetPack. The packages of the server need NumPy 2, which JetPack's OpenCV cannot
    # use, so the server has an environment of its own.
    install = f"edge/bin/pip install 'tensorrt-edgellm[server]=={host.edge_llm}'"
    path = "export PATH=/usr/local/cuda/bin:$PATH"  # for nvcc
    return "python3 -m venv --system-site-packages edge", install, path, command


def _edge_llm_notes(host: Host) -> tuple[str, ...]:
    if host.edge_llm == "0.11.0":
        return (_EXPERIMENTAL,)
    return _EXPERIMENTAL, "If pip finds no version 0.11.1, build the server from its source code."


def _speculative(host: Host, server: ServerName, known: KnownModel, parallel: int) -> Iterator[Recipe]:
    """Yield a recipe with speculative decoding for Edge-LLM, if the model fits in fp16 together with a draft model."""
    if server != "edge-llm" or known.draft is None:
        return
    need = known.need_mib("fp16", parallel) + known.draft_mib(parallel)
    if need * MARGIN > host.left_mib:
        return
    draft = json.dumps({"method": "eagle3", "model": known.draft.checkpoint, "num_speculative_tokens": 3})
    commands = _edge_llm(host, known.checkpoints["fp16"], known, parallel, ("--speculative-config", draft))
    notes = (
        *_edge_llm_notes(host),
        "A draft model speeds up long answers. It does not help if the answer is one word.",
        f"The estimate contains at most {known.draft_mib(parallel):.0f} MiB for the draft model.",
    )
    yield Recipe(server, known.name, "fp16", need, commands, notes, draft=known.draft.checkpoint)


def _vllm(host: Host, known: KnownModel, precision: Precision, parallel: int) -> tuple[str, ...]:
    # vLLM fills its whole share with KV cache, so a larger share than the model needs would be wasted.
    fraction = math.ceil(known.need_mib(precision, parallel) * MARGIN / host.total_mib * 100) / 100
    options = [
        *("--host", "127.0.0.1", "--port", str(PORT)),
        *("--gpu-memory-utilization", f"{fraction:.2f}"),
        *("--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", str(parallel)),
    ]
    checkpoint = known.checkpoints[precision]
    if host.platform in _CONTAINERS:
        docker = "docker run --rm --runtime nvidia --network host -v $HOME/.cache/huggingface:/root/.cache/huggingface"
        return (f"{docker} {_CONTAINERS[host.platform]} {shlex.join([checkpoint, *options])}",)
    serve = shlex.join(["vllm/bin/vllm", "serve", checkpoint, *options])
    return "python3 -m venv vllm && vllm/bin/pip install vllm", serve


def _vllm_notes(host: Host) -> tuple[str, ...]:
    notes = ["vLLM does not start if less than its share of the memory is free."]
    if host.platform == "jetpack7":
        notes.append("An Orin needs JetPack 7.2 or later for this container.")
    if host.platform == "jetpack6":
        notes.append("NVIDIA publishes this container for L4T 36, and names it for L4T 36.4 (JetPack 6.1 and 6.2).")
    return tuple(notes)


def _llama(host: Host, known: KnownModel, precision: Precision, parallel: int) -> str:
    options = ["--host", "127.0.0.1", "--port", str(PORT), "-c", str(CONTEXT_TOKENS * parallel), "-np", str(parallel)]
    layers = ["-ngl", "99"] if host.platform != "cpu" else []
    return shlex.join(["llama-server", "-hf", known.checkpoints[precision], *options, *layers])


def _llama_notes(host: Host) -> tuple[str, ...]:
    if host.platform == "cpu":
        return ("Without a GPU, one image takes many seconds. Set `timeout_s` accordingly.",)
    return ("Build llama.cpp with `-DGGML_CUDA=ON`, or use a container that includes it.",)
