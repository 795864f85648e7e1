"""Reasons why a build failed, from the parser's errors and the builder's log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from vision.engine.build_plan import Precision
from vision.engine.library import LogLines, find_library, trt
from vision.errors import DeviceError, ModelError

DAMAGED_HINT: Final = (
    "download it again, and compare its sha256 with the one in model.yaml; or export it again: "
    "`onnx.checker.check_model` says more"
)
_WITHOUT_OPERATOR: Final = (
    "export the model without this operator; vision does NMS itself, so NonMaxSuppression and NonZero "
    "behind the network's last layers can go"
)
_OUT_OF_MEMORY: Final = ("OutOfMemory", "out of memory", "OUT_OF_MEMORY")


class Refused(ModelError):
    """TensorRT does not take the network. If we have rewritten it, the original may build."""


def refused_model(file: str, errors: Sequence[Any]) -> Refused:
    """Return the error for a file that the parser does not take."""
    reasons = "; ".join(map(_fault, errors)) or "no reason given"
    damaged = any(is_damage(error) for error in errors)
    return Refused(
        f"{find_library()} cannot take {file}: {reasons}",
        hint=DAMAGED_HINT if damaged else _WITHOUT_OPERATOR,
        code="damaged-model" if damaged else "unsupported-operator",
    )


def _fault(error: Any) -> str:
    """Return the text of one error of the parser: node, operator, reason."""
    operator, node, text = error.node_operator(), error.node_name(), str(error.desc()).strip()
    if not operator:
        return text
    where = f"node {node}" if node else f"node number {error.node()}"
    return f"operator {operator} ({where}){'' if is_damage(error) else ' is not supported'}: {text}"


def is_damage(error: Any) -> bool:
    """Return True if the parser finds the file invalid, and not its operators unsupported."""
    return error.code().name in ("INVALID_GRAPH", "MODEL_DESERIALIZE_FAILED")


def free_memory() -> str:
    """Return the GPU's free memory as the end of a message. Empty without a GPU."""
    try:
        from vision.gpu.cuda import memory_info

        free_bytes, total_bytes = memory_info()
    except DeviceError:  # built ahead of time, for a GPU that is elsewhere
        return ""
    return f"; {free_bytes >> 20} of {total_bytes >> 20} MiB of the GPU are free"


_NO_RUNNER = re.compile(r"(?P<node>\S+) has no runners that implement it")


def build_failure(log: LogLines, network: trt.INetworkDefinition) -> str:
    """Return why a build failed, from the log, with the node and its operator if the log names one."""
    errors = [text for text in log.errors() if "catchCudaError" not in text] or list(log.errors())
    layers = {network.get_layer(index).name: network.get_layer(index) for index in range(network.num_layers)}
    for text in errors:
        found = _NO_RUNNER.search(text)
        if found and found["node"] in layers:
            return f"operator {layers[found['node']].type.name} (node {found['node']}) is not supported on this GPU"
    return "; ".join(errors) or "no reason given"


def failed_build(what: str, cause: str, precision: Precision) -> ModelError:
    """Return the error to raise: `Refused` if another form of the model may build, which lack of memory excludes."""
    if any(word in cause for word in _OUT_OF_MEMORY):
        hint = "lower `detect: {max_batch: ...}`"
        return ModelError(f"{what}: {cause}{free_memory()}", hint=hint, code="out-of-memory")
    hint = "export the model without operators that are named above; `--level 1` and a smaller max_batch ask for less"
    if precision in ("int8", "fp8"):
        hint = f"this library or GPU may have no {precision} kernels for the model's layers: `precision: fp16` works"
    return Refused(f"{what}: {cause}", hint=hint, code="build-failed")


def notes_of(log: LogLines) -> tuple[str, ...]:
    """Return the warnings of a build and its lines on sparsity, each once."""
    lines = (line.text.strip() for line in log.lines if line.severity == "WARNING" or "(Sparsity)" in line.text)
    return tuple(dict.fromkeys(lines))


def bytes_in(log: LogLines, what: str) -> int | None:
    """Return the largest number of bytes that the log gives for `what`: it has a line for each profile."""
    pattern = re.compile(re.escape(what) + r": (\d+)")
    matches = (pattern.search(line.text) for line in log.lines)
    return max((int(match[1]) for match in matches if match), default=None)
