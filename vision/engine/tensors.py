"""Functions that read and set the inputs, outputs, and profiles of engines and of parsed networks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from vision.engine.build_plan import FLOATS, BuildPlan, Quantized
from vision.engine.library import find_library, trt
from vision.engine.onnx_transform import INTERLEAVED_CHANNELS
from vision.engine.profiles import NetworkInput, Profile, Range, Shape
from vision.errors import ModelError

ITEM_BITS: Mapping[str, int] = {
    "float32": 32, "float16": 16, "bfloat16": 16, "fp8": 8, "fp4": 4,
    "int64": 64, "int32": 32, "int8": 8, "int4": 4, "uint8": 8, "bool": 8,
}  # fmt: skip

_DTYPE_OF_MEMBER: Mapping[str, str] = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "fp8", "E4M3": "fp8", "FP4": "fp4",
    "INT64": "int64", "INT32": "int32", "INT8": "int8", "INT4": "int4", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip


class _Dims(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> int: ...


def as_shape(dims: _Dims) -> Shape:
    """Convert a ``trt.Dims`` to a tuple."""
    return tuple(dims[index] for index in range(len(dims)))


def dtype_name(member: str) -> str:
    """Return the type name that this program uses, such as ``float16``, for the name of a ``trt.DataType``.

    Raise `ModelError` for an unsupported type.
    """
    try:
        return _DTYPE_OF_MEMBER[member.upper()]
    except KeyError:
        raise ModelError(f"the engine has a tensor of the unsupported type {member}", code="tensor-type") from None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of an engine."""

    name: str
    mode: Literal["input", "output"]
    dtype: str  # a key of ITEM_BITS
    shape: Shape  # -1 for a dimension that is not fixed
    location: Literal["device", "host"]
    is_shape_io: bool  # True if its values determine other shapes; the address of such an input is a host address
    interleaved: bool = False  # True for a shape (B, 4, H, W) that is stored as (B, H, W, 4)

    @property
    def channels(self) -> int:
        """Number of channels of an input for frames: 3, or 4 if it is interleaved. The fourth channel is always 0."""
        return INTERLEAVED_CHANNELS if self.interleaved else 3

    def bytes_of(self, shape: Shape) -> int:
        """Return the size of this tensor in bytes for a shape. Raise `ValueError` if a dimension is unknown (-1)."""
        if any(size < 0 for size in shape):
            raise ValueError(f"the shape {shape} of {self.name} is not known yet")
        return -(-math.prod(shape) * ITEM_BITS[self.dtype] // 8)


@dataclass(frozen=True, slots=True)
class OutputSize:
    """Shape and maximum size in bytes of one output, for given input shapes."""

    shape: Shape | None  # None if the shape depends on the data (NonMaxSuppression, NonZero)
    bytes: int | None  # maximum size; None if unknown, so that an output allocator is needed


def read_tensors(engine: Any) -> tuple[Tensor, ...]:
    """Return the inputs and outputs of an engine as plain data."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return tuple(
        Tensor(
            name=name,
            mode="input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output",
            dtype=dtype_name(engine.get_tensor_dtype(name).name),
            shape=as_shape(engine.get_tensor_shape(name)),
            location="host" if engine.get_tensor_location(name) == trt.TensorLocation.HOST else "device",
            is_shape_io=bool(engine.is_shape_inference_io(name)),
            interleaved=_format(engine, name) == trt.TensorFormat.CHW4,
        )
        for name in names
    )


def _format(engine: Any, name: str) -> Any:
    """Return the memory format of a tensor in the first profile.

    Without an index of a profile, TensorRT would log a warning.
    """
    return engine.get_tensor_format(name, 0) if engine.num_optimization_profiles else engine.get_tensor_format(name)


def read_profiles(engine: Any, tensors: Sequence[Tensor]) -> tuple[Profile, ...]:
    """Return the profiles of an engine. A profile contains ranges only for inputs, because outputs have none."""
    inputs = [tensor for tensor in tensors if tensor.mode == "input"]
    return tuple(
        Profile(
            shapes={
                tensor.name: Range(*(as_shape(shape) for shape in engine.get_tensor_profile_shape(tensor.name, index)))
                for tensor in inputs
            },
            values={
                # by position, because the bindings swap the names of these two arguments
                tensor.name: Range(*(tuple(values) for values in engine.get_tensor_profile_values(index, tensor.name)))
                for tensor in inputs
                if tensor.is_shape_io and tensor.location == "host"
            },
        )
        for index in range(engine.num_optimization_profiles)
    )


# ------------------------------------------------------------------------------------------------ parsed networks


def inputs_of(network: trt.INetworkDefinition) -> tuple[NetworkInput, ...]:
    """Return the inputs of a parsed network as plain data."""
    tensors = (network.get_input(index) for index in range(network.num_inputs))
    return tuple(NetworkInput(tensor.name, as_shape(tensor.shape), bool(tensor.is_shape_tensor)) for tensor in tensors)


def add_profile(
    builder: trt.Builder, config: trt.IBuilderConfig, inputs: Sequence[NetworkInput], profile: Profile
) -> trt.IOptimizationProfile:
    """Add a profile to a build configuration. The caller must keep the result until the build has ended.

    TensorRT's profile object is false if a minimum exceeds its maximum. TensorRT also accepts `set_shape_input` for
    inputs that are not shape tensors, but the build then fails, because the range of shapes is missing.

    Raises:
        ModelError: TensorRT refuses the profile.
    """
    added = builder.create_optimization_profile()
    try:
        for tensor in inputs:
            if tensor.is_shape_tensor:
                values = profile.values[tensor.name]
                added.set_shape_input(tensor.name, list(values.min), list(values.opt), list(values.max))
            elif min(tensor.shape, default=0) < 0:
                shapes = profile.shapes[tensor.name]
                dims = (trt.Dims(list(shape)) for shape in (shapes.min, shapes.opt, shapes.max))
                added.set_shape(tensor.name, *dims)
        accepted = bool(added) and config.add_optimization_profile(added) >= 0
    except RuntimeError as error:
        raise ModelError(f"{find_library()} refuses the profile {profile}: {error}", code="profile-refused") from error
    if not accepted:
        raise ModelError(f"{find_library()} finds the profile inconsistent: {profile}", code="profile-refused")
    return added


def quantization_of(network: trt.INetworkDefinition) -> Quantized:
    """Return "fp8" or "int8", the type of the first QuantizeLinear node of a network.

    Return "none" if the network has no such node.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.QUANTIZE and dtype_name(layer.get_output(0).dtype.name) == "fp8":
            return "fp8"
        if layer.type == trt.LayerType.QUANTIZE:
            return "int8"
    return "none"


def types_of(network: trt.INetworkDefinition) -> frozenset[str]:
    """Return the types of all floating-point outputs of the layers of a network."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    outputs = (layer.get_output(index) for layer in layers for index in range(layer.num_outputs))
    return frozenset(dtype_name(tensor.dtype.name) for tensor in outputs if tensor is not None) & FLOATS


def halve_ends(network: Any, plan: BuildPlan) -> None:
    """Set the types of the float inputs and outputs of a weakly typed network to 16 bits where `plan` requests this.

    Set the other float inputs and outputs to float32, because the type of an output could otherwise follow from the
    type of an input. For a strongly typed network, the ONNX file contains these types. If `plan` requests no 16-bit
    input or output, do nothing.
    """
    half = {"fp16": "HALF", "bf16": "BF16"}.get(plan.precision)
    if half is None or not (plan.half_input or plan.half_outputs):
        return
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    kinds = [(tensor, half if plan.half_input else "FLOAT") for tensor in inputs]
    kinds += [(tensor, half if plan.half_outputs else "FLOAT") for tensor in outputs]
    floats = [(tensor, kind) for tensor, kind in kinds if dtype_name(tensor.dtype.name) == "float32"]
    with warnings.catch_warnings():  # TensorRT deprecates setting types, but weak typing needs it
        warnings.simplefilter("ignore", DeprecationWarning)
        for tensor, kind in floats:
            tensor.dtype = getattr(trt.DataType, kind)
