"""Functions that prepare an ONNX model for TensorRT: they convert types and shapes, and embed external weights.

TensorRT 11 and TensorRT-RTX read types only from the ONNX file. A model runs in float16 or bfloat16 only if its file
has this type. TensorRT-RTX also uses the shapes and the order of channels of the file, whereas TensorRT measures which
shapes and orders are the fastest. See `widen_input` and `conv_folding`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from vision.engine.conv_folding import fold_narrow_convolutions
from vision.errors import ModelError
from vision.version import install_hint

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_log = logging.getLogger(__name__)

INTERLEAVED_CHANNELS = 4
_QDQ_OPSET = 19  # since this version, QuantizeLinear accepts float16
# Start of an entry of TensorProto.external_data in a serialized model: the key that precedes the file name.
_EXTERNAL: Final = b"\x0a\x08location\x12"


def reshape_onnx(model: bytes, *, interleave: bool, fold: bool) -> tuple[bytes, bool]:
    """Change the shapes of an ONNX model to suit tensor cores. The results of the model stay the same.

    If `interleave` is True, widen the input with `widen_input`. If `fold` is True, fold narrow convolutions.

    Returns:
        The model, and True if its input was widened.

    Raises:
        ModelError: a package is missing, or the model is not ONNX.
    """
    if not interleave and not fold:
        return model, False
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise _package_missing(error) from error
    loaded = ir.from_proto(load_onnx(model))
    widened = interleave and widen_input(loaded)
    folded = fold_narrow_convolutions(loaded) if fold else ()
    if folded:
        _log.debug("folded: %s", ", ".join(folded))
    return (ir.to_proto(loaded).SerializeToString() if widened or folded else model), widened


def widen_input(model: ir.Model) -> bool:
    """Add, in place, a fourth channel to the input for frames of a model. The results of the model stay the same.

    Tensor cores need interleaved channels, in groups of at least four. Therefore, a network with an input of three
    planes starts with a kernel that only interleaves the planes and adds a fourth channel of zeros. This kernel is not
    needed if the letterbox kernel, which writes every pixel in any case, writes the interleaved layout. The fourth
    channel gets weights of zero.

    Return True if the channel was added. It is added only if all of these conditions are met:

    - The model has one input, which has three channels.
    - Only convolutions over all three channels use the input.
    - No other node uses the weights of these convolutions.
    """
    import onnx_ir as ir

    if len(model.graph.inputs) != 1:
        return False
    (frame,) = model.graph.inputs
    readers = set(frame.consumers())
    kernels = {node.inputs[1] for node in readers if _convolves(node, frame)}
    users = {user for kernel in kernels if kernel is not None for user in kernel.consumers()}
    if frame.shape is None or len(frame.shape) != 4 or frame.shape[1] != 3 or not readers or users != readers:
        return False
    for kernel in kernels:
        if kernel is not None and kernel.const_value is not None:
            extra = (0, INTERLEAVED_CHANNELS - 3)
            wide = np.pad(kernel.const_value.numpy(), ((0, 0), extra, (0, 0), (0, 0)))
            kernel.const_value, kernel.shape = ir.tensor(wide, name=kernel.name), ir.Shape(wide.shape)
    frame.shape = ir.Shape([frame.shape[0], INTERLEAVED_CHANNELS, *frame.shape[2:]])
    return True


def _convolves(node: ir.Node, frame: ir.Value) -> bool:
    """Return True if a node is a convolution over all channels of the frame, with weights in the file."""
    if node.op_type != "Conv" or node.inputs[0] is not frame or node.inputs[1] is None:
        return False
    weights = node.inputs[1].const_value
    group = node.attributes.get_int("group", 1)
    return group == 1 and weights is not None and len(weights.shape) == 4 and weights.shape[1] == 3


def with_weights(model: bytes, folder: Path) -> bytes:
    """Copy the external weights of an ONNX model from files in `folder` into the model. Return the model.

    Otherwise, TensorRT would look for these files in the working folder, and the hash of the model would not cover the
    weights. A model without external weights is returned unchanged.

    Raises:
        ModelError: a package is missing, the model is not ONNX, a file with weights is missing or damaged, or the
            complete model is too large (2 GB).
    """
    if _EXTERNAL not in model:
        return model
    loaded = load_onnx(model)
    from onnx.external_data_helper import load_external_data_for_model

    try:
        load_external_data_for_model(loaded, str(folder))
        return bytes(loaded.SerializeToString())
    except Exception as error:  # onnx and protobuf raise errors that have no common base class
        raise ModelError(
            f"the external weights in {folder} cannot be used: {error}",
            hint="put all files of the export there; models with more than 2 GB of weights are not supported",
            code="external-weights",
        ) from error


def load_onnx(model: bytes) -> onnx.ModelProto:
    """Parse the contents of an ONNX file. Raise `ModelError` if a package is missing, or the contents are not ONNX."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise _package_missing(error) from error
    try:
        return onnx.load_model_from_string(model)
    except DecodeError as error:
        hint = "compare its sha256 with the one in model.yaml"
        raise ModelError(f"not an ONNX model: {error}", hint=hint, code="not-onnx") from error


def _package_missing(error: ImportError) -> ModelError:
    return ModelError(
        f"this TensorRT reads types and shapes from the ONNX file, and rewriting the file needs a package: {error}",
        hint=f"`{install_hint('build')}`, or use a model that is exported in this precision",
    )


def rewrite_onnx(model: bytes, to: Literal["fp16", "bf16"], *, keep_inputs: bool, keep_outputs: bool) -> bytes:
    """Convert the weights and activations of an ONNX model to float16 or bfloat16.

    A model that already uses the target type is returned unchanged. If `keep_inputs` or `keep_outputs` is True, the
    inputs or outputs stay float32, and casts convert their values. A constant with one value, such as the -3.4e38 of a
    mask, is limited to the range of float16.

    Raises:
        ModelError: a package is missing, the model is not ONNX, or a weight with several values is too large for
            float16.
    """
    original = load_onnx(model)
    if _is_in(original, to):
        return model
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ImportError as error:
        raise _package_missing(error) from error
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in _float_tensors(original)}
    if to == "fp16":
        _refuse_overflow(weights)
    original = _for_quantization(original)
    kept = [info.name for info in original.graph.input if keep_inputs]
    kept += [info.name for info in original.graph.output if keep_outputs]
    with warnings.catch_warnings():  # a warning for each weight below 6e-8, which is rounded up to 6e-8
        warnings.simplefilter("ignore")
        converted = convert_float_to_float16(original, keep_io_types=kept)
    graph = OnnxModel(converted)
    graph.topological_sort()  # the converter appends casts at the end
    if to == "bf16":
        _retype(graph.model, weights)
    return bytes(graph.model.SerializeToString())


def _is_in(model: onnx.ModelProto, to: Literal["fp16", "bf16"]) -> bool:
    """Return True if some tensors with several dimensions, such as weights, have the type `to`, and none is float32."""
    import onnx

    target = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[to]
    tensors = (*model.graph.initializer, *(tensor for _, tensor in _constants(model)))
    kinds = {tensor.data_type for tensor in tensors if len(tensor.dims) > 1}
    return target in kinds and onnx.TensorProto.FLOAT not in kinds


def _for_quantization(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model that uses QuantizeLinear to an opset in which this operator accepts float16. Return the model.

    Any other model is returned unchanged.
    """
    import onnx

    version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), _QDQ_OPSET)
    if version >= _QDQ_OPSET or not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return model
    return onnx.version_converter.convert_version(model, _QDQ_OPSET)


def _float_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield all float32 initializers, and a copy of each float32 constant, named after its node's output."""
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
    """Yield each Constant node that contains a tensor, and this tensor."""
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from ((node, attribute.t) for attribute in node.attribute if attribute.name == "value")


def _refuse_overflow(weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
    limit = float(np.finfo(np.float16).max)
    for name, values in weights.items():
        if values.size == 1:
            continue  # the converter limits it
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
        if largest > limit:
            raise ModelError(
                f"weight {name} has the value {largest:g}, but the largest float16 is {limit:g}",
                hint="set `detect: {precision: bf16}` or `detect: {precision: fp32}`",
                code="float16-overflow",
            )


def _retype(model: onnx.ModelProto, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Change all float16 types of a model to bfloat16. Compute the new weights from the float32 values in `weights`."""
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
    """Return a tensor of the values, rounded to bfloat16. Finite values stay finite.

    Otherwise, a mask could contain -infinity, and its product with 0 would be NaN.
    """
    import ml_dtypes
    import onnx

    limit = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)  # type: ignore[no-untyped-call]
    limited = np.where(np.isfinite(values), np.clip(values, -limit, limit), values)
    contents = limited.astype(ml_dtypes.bfloat16).tobytes()
    return onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, values.shape, contents, raw=True)
