"""Inputs, outputs and profiles of an engine as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol

from vision.engine.channel_packing import INTERLEAVED_CHANNELS
from vision.engine.library import trt
from vision.engine.profiles import Profile, Range, Shape
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
    """Return a ``trt.Dims`` as a tuple."""
    return tuple(dims[index] for index in range(len(dims)))


def dtype_name(member: str) -> str:
    """Return NumPy's or our name of a ``trt.DataType`` member; `trt.nptype` raises for half of them."""
    try:
        return _DTYPE_OF_MEMBER[member.upper()]
    except KeyError:
        raise ModelError(f"the engine has a tensor of type {member}, which nothing here can fill or read") from None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of an engine."""

    name: str
    mode: Literal["input", "output"]
    dtype: str  # a key of ITEM_BITS
    shape: Shape  # -1 where it is not fixed
    location: Literal["device", "host"]
    is_shape_io: bool  # its values decide other shapes; addresses of such inputs are host addresses
    interleaved: bool = False  # (B, 4, H, W) that lies in memory as (B, H, W, 4)

    @property
    def channels(self) -> int:
        """Return the channels of an input for frames. A fourth one, always 0, exists for the memory layout."""
        return INTERLEAVED_CHANNELS if self.interleaved else 3

    def bytes_of(self, shape: Shape) -> int:
        """Return the bytes of a buffer of `shape`.

        Raises:
            ValueError: a dimension is free.
        """
        if any(size < 0 for size in shape):
            raise ValueError(f"the shape {shape} of {self.name} is not known yet")
        return math.ceil(Fraction(math.prod(shape) * ITEM_BITS[self.dtype], 8))


@dataclass(frozen=True, slots=True)
class OutputSize:
    """Size of one output. `shape` is None if the data decides (NonMaxSuppression, NonZero)."""

    shape: Shape | None
    bytes: int | None  # None where not even a bound is known: use an output allocator


def read_tensors(engine: Any) -> tuple[Tensor, ...]:
    """Return inputs and outputs of an engine as plain data."""
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
    """Return the format of the first profile. Without a number, an engine with several profiles logs a warning."""
    return engine.get_tensor_format(name, 0) if engine.num_optimization_profiles else engine.get_tensor_format(name)


def read_profiles(engine: Any, tensors: Sequence[Tensor]) -> tuple[Profile, ...]:
    """Return the ranges of every profile. Inputs only: for outputs TensorRT returns shapes that cannot be iterated."""
    inputs = [tensor for tensor in tensors if tensor.mode == "input"]
    return tuple(
        Profile(
            shapes={
                tensor.name: Range(*(as_shape(shape) for shape in engine.get_tensor_profile_shape(tensor.name, index)))
                for tensor in inputs
            },
            values={
                # positional: the bindings have the names of these two arguments swapped
                tensor.name: Range(*(tuple(values) for values in engine.get_tensor_profile_values(index, tensor.name)))
                for tensor in inputs
                if tensor.is_shape_io and tensor.location == "host"
            },
        )
        for index in range(engine.num_optimization_profiles)
    )
