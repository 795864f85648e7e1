"""Which arithmetic a GPU has, and how a library is told to use it.

TensorRT 10 lets a builder flag allow a lower precision (weak typing). TensorRT 11 and TensorRT-RTX take types from the
ONNX file alone (strong typing), so there the file is rewritten: by ONNX Runtime's float16 converter, which keeps the
inputs that must stay float32 (scales of Resize) and leaves no casts inside a plain detector.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from vision.engine.library import Gpu
from vision.errors import ModelError

if TYPE_CHECKING:
    import onnx

Precision: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
Quantised: TypeAlias = Literal["none", "int8", "fp8"]

_SINCE: Mapping[Precision, tuple[int, int]] = {
    "fp32": (0, 0),
    "fp16": (5, 3),
    "int8": (6, 1),
    "tf32": (8, 0),
    "bf16": (8, 0),
    "fp8": (8, 9),
}
"""Least compute capability that computes in a precision."""

_QDQ_OPSET = 19  # from here on QuantizeLinear takes float16


@dataclass(frozen=True, slots=True)
class Typing:
    """How an engine of one precision is built with one library."""

    strongly_typed: bool
    flags_on: tuple[str, ...]
    flags_off: tuple[str, ...]
    rewrite: Literal["none", "fp16", "bf16"]

    def half_ends(self, head: str) -> tuple[bool, bool]:
        """Whether a detector's input, and its outputs, may be float16 without the boxes being worse for it.

        The network rounds its input to float16 itself, so that one may come rounded. A strongly typed one has float16
        behind its last layer too, and a cast to float32 adds nothing; a weakly typed one may have more there. Outputs
        that are coordinates stay float32 everywhere: in float16 they are half a pixel apart from 512 on, and the
        library may fuse the cast with what computes them. `head` is the kind of the model card's head.
        """
        computes_half = self.rewrite == "fp16" or self.flags_on[:1] == ("FP16",)
        return computes_half, self.rewrite == "fp16" and head == "nanodet"


def precisions_of(compute_capability: tuple[int, int]) -> tuple[Precision, ...]:
    """Precisions that a GPU computes in, in the order of `_SINCE`."""
    return tuple(name for name, since in _SINCE.items() if compute_capability >= since)


def require_precision(precision: Precision, gpu: Gpu) -> None:
    """Refuse a precision that the GPU does not have.

    Raises:
        ModelError: it does not; the message names those that it has.
    """
    has = precisions_of(gpu.compute_capability)
    if precision not in has:
        major, minor = gpu.compute_capability
        raise ModelError(
            f"{gpu.name} (compute capability {major}.{minor}) has no {precision}; it has {', '.join(has)}",
            hint=f"set `detect: {{precision: {'fp16' if 'fp16' in has else 'fp32'}}}`",
        )


def plan_typing(precision: Precision, *, weak_typing: bool) -> Typing:
    """Flags, typing and rewriting for `precision`. Names of flags, which the caller looks up in the library at hand."""
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


def check_quantisation(precision: Precision, found: Quantised) -> None:
    """Quantised precisions need a model with quantisation inside, and the other way round.

    Raises:
        ModelError: they do not agree.
    """
    if precision in ("int8", "fp8") and found != precision:
        raise ModelError(
            f"precision {precision} needs a model with {precision} QuantizeLinear nodes, this one has "
            f"{'none' if found == 'none' else f'{found} ones'}",
            hint=("`vision calibrate MODEL` writes one" if precision == "int8" else "NVIDIA ModelOpt writes one")
            + ", or set `detect: {precision: fp16}`",
        )
    if precision not in ("int8", "fp8") and found != "none":
        raise ModelError(
            f"the model is quantised to {found}, and precision {precision} was asked for",
            hint=f"set `detect: {{precision: {found}}}`, or use the model as it was before quantisation",
        )


# ------------------------------------------------------------------------------------------------ rewriting


def rewrite_onnx(model: bytes, to: Literal["fp16", "bf16"], *, keep_inputs: bool, keep_outputs: bool) -> bytes:
    """An ONNX model that computes in float16 or bfloat16.

    Args:
        model: serialised ONNX with float32 weights.
        to: the new type of weights and activations.
        keep_inputs: leave inputs float32, with a cast behind each.
        keep_outputs: leave outputs float32, with a cast before each.

    Raises:
        ModelError: no packages for it, not an ONNX model, or a weight is too large for float16.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ImportError as error:
        raise ModelError(
            f"this TensorRT takes {to} from the ONNX file, and rewriting that needs a package: {error}",
            hint="`pip install onnx onnxruntime`, or give a model that is exported in this precision",
        ) from error
    try:
        original = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise ModelError(f"not an ONNX model: {error}", hint="compare its sha256 with the one in model.yaml") from error
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in _float_tensors(original)}
    if to == "fp16":
        _refuse_overflow(weights)
    original = _for_quantisation(original)
    kept = [each.name for each in original.graph.input if keep_inputs]
    kept += [each.name for each in original.graph.output if keep_outputs]
    with warnings.catch_warnings():  # it says for each weight below 6e-8 that it was rounded up to that
        warnings.simplefilter("ignore")
        converted = convert_float_to_float16(original, keep_io_types=kept)
    graph = OnnxModel(converted)
    graph.topological_sort()  # the casts were appended at the end
    if to == "bf16":
        _retype(graph.model, weights)
    return bytes(graph.model.SerializeToString())


def _for_quantisation(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` at an opset whose QuantizeLinear takes float16, if it has any."""
    import onnx

    version = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), _QDQ_OPSET)
    if version >= _QDQ_OPSET or not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return model
    return onnx.version_converter.convert_version(model, _QDQ_OPSET)


def _float_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Float32 weights: initializers, and constants by the name of what they give."""
    import onnx

    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor
    for node, tensor in _constants(model):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            named = onnx.TensorProto()
            named.CopyFrom(tensor)
            named.name = node.output[0]
            yield named


def _constants(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.TensorProto]]:
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from ((node, attribute.t) for attribute in node.attribute if attribute.name == "value")


def _refuse_overflow(weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
    limit = float(np.finfo(np.float16).max)
    for name, values in weights.items():
        greatest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
        if greatest > limit:
            raise ModelError(
                f"weight {name} has the value {greatest:g}, and float16 ends at {limit:g}",
                hint="set `detect: {precision: bf16}`, or fp32",
            )


def _retype(model: onnx.ModelProto, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Turn every float16 of a converted model into bfloat16, weights from their float32 originals."""
    import onnx

    half, brain = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(_as_bfloat16(weights[tensor.name], tensor.name))
    for node, tensor in _constants(model):
        if tensor.data_type == half:
            tensor.CopyFrom(_as_bfloat16(weights[node.output[0]], tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == half:
                attribute.i = brain
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if info.type.tensor_type.elem_type == half:
            info.type.tensor_type.elem_type = brain


def _as_bfloat16(values: np.ndarray[Any, Any], name: str) -> onnx.TensorProto:
    """Round to the nearest bfloat16, ties to even: the upper half of a float32."""
    import onnx

    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    upper = np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    return onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, values.shape, upper.tobytes(), raw=True)
