"""Header of an ONNX file: its metadata, inputs, and outputs, read without the package `onnx`.

An installation that runs models with TensorRT needs neither `onnx` nor ONNX Runtime. Therefore, this module decodes the
few Protocol Buffers fields that it needs, and skips the weights. A field has a key (its number and type) and a value. A
value of the type "length-delimited" can be a nested message.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

Axes: TypeAlias = tuple[int | str | None, ...]
"""Shape of a tensor. A dynamic axis is represented by its name, or by None if it has no name."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_VARINT_BYTES: Final = 10

# Numbers of fields in onnx.proto
_IR_VERSION, _PRODUCER, _GRAPH, _OPSET, _METADATA = 1, 2, 7, 8, 14  # ModelProto
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # GraphProto
_TENSOR_NAME, _EXTERNAL = 8, 13  # TensorProto
_FIRST, _SECOND = 1, 2  # the fields of StringStringEntryProto, ValueInfoProto, TypeProto, and its parts

_DTYPES: Final[Mapping[int, str]] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip


class NotOnnx(Exception):
    """The bytes are not an ONNX model."""


class Truncated(NotOnnx):
    """The bytes start like an ONNX model, but the model is incomplete."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Declaration of an input or output of an ONNX model."""

    name: str
    dtype: str  # NumPy's name, such as "float32"; "" if there is none
    shape: Axes


@dataclass(frozen=True, slots=True)
class OnnxHeader:
    """Producer, metadata, inputs, outputs, and external weights of an ONNX file."""

    producer: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[TensorInfo, ...] = ()  # without the weights, which old files list as inputs
    outputs: tuple[TensorInfo, ...] = ()
    weight_files: frozenset[str] = frozenset()  # files with external weights, relative to the folder of the model


def read_header(path: Path) -> OnnxHeader:
    """Read the header of an ONNX file. The file is mapped into memory, and the weights in it are skipped.

    Raises:
        NotOnnx: the file is not an ONNX model, or is truncated (`Truncated`).
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise NotOnnx("the file is empty")
        return parse_header(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def parse_header(data: memoryview) -> OnnxHeader:
    """Return the header of an ONNX model in memory. Raise `NotOnnx` or `Truncated`, as `read_header` does."""
    seen: set[int] = set()
    try:
        return _parse_model(data, seen)
    except NotOnnx as error:
        if _IR_VERSION in seen:
            raise Truncated(str(error)) from error
        raise NotOnnx(str(error)) from error


def _parse_model(data: memoryview, seen: set[int]) -> OnnxHeader:
    producer, metadata, graph = "", {}, None
    for number, value in _fields(data):
        seen.add(number)
        if isinstance(value, int):
            continue
        if number == _GRAPH:
            graph = value
        elif number == _PRODUCER:
            producer = _text(value)
        elif number == _METADATA:
            key, text = _pair(value)
            metadata[key] = text
    if graph is None or _OPSET not in seen:
        raise Truncated("the graph or the versions of its operators are missing")
    weights: set[str] = set()
    files: set[str] = set()
    inputs, outputs = [], []
    for number, value in _fields(graph):
        if isinstance(value, int):
            continue
        if number == _INITIALIZER:
            weights.add(_weights(value, files))
        elif number == _INPUT:
            inputs.append(_tensor(value))
        elif number == _OUTPUT:
            outputs.append(_tensor(value))
    frames = tuple(tensor for tensor in inputs if tensor.name not in weights)
    return OnnxHeader(producer, metadata, frames, tuple(outputs), frozenset(files))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field of a Protocol Buffers message.

    Raise `NotOnnx` if the message is invalid or truncated.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise NotOnnx(f"byte {at} does not start a field")
        if number == 0:
            raise NotOnnx(f"byte {at} does not start a field")
        if at + size > end:
            raise Truncated(f"a field of {size} bytes starts {end - at} bytes before the end")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the variable-length integer at the position `at` of `data`, and the position after it."""
    value = 0
    for index in range(_MOST_VARINT_BYTES):
        if at + index >= len(data):
            raise Truncated("the last number is incomplete")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise NotOnnx(f"byte {at} does not start a number")


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")


def _pair(message: memoryview) -> tuple[str, str]:
    """Return the key and the value of an entry of ONNX metadata. A missing part becomes an empty string."""
    texts = {number: _text(value) for number, value in _fields(message) if not isinstance(value, int)}
    return texts.get(_FIRST, ""), texts.get(_SECOND, "")


def _weights(message: memoryview, files: set[str]) -> str:
    """Return the name of a tensor of weights. If its values are in an external file, add this file to `files`."""
    name = ""
    for number, value in _fields(message):
        if isinstance(value, int):
            continue
        if number == _TENSOR_NAME:
            name = _text(value)
        elif number == _EXTERNAL:
            key, text = _pair(value)
            if key == "location":
                files.add(text)
    return name


def _tensor(message: memoryview) -> TensorInfo:
    """Return the name, the element type, and the shape in a ValueInfoProto."""
    name, dtype = "", ""
    shape: list[int | str | None] = []
    for number, value in _fields(message):
        if isinstance(value, int):
            continue
        if number == _FIRST:
            name = _text(value)
        elif number == _SECOND:
            for kind, tensor_type in _fields(value):
                if kind == _FIRST and not isinstance(tensor_type, int):
                    dtype, shape = _tensor_type(tensor_type)
    return TensorInfo(name, dtype, tuple(shape))


def _tensor_type(message: memoryview) -> tuple[str, list[int | str | None]]:
    """Return the element type and the shape of a TypeProto.Tensor."""
    dtype = ""
    shape: list[int | str | None] = []
    for number, value in _fields(message):
        if number == _FIRST and isinstance(value, int):
            dtype = _DTYPES.get(value, f"type {value}")
        elif number == _SECOND and not isinstance(value, int):
            shape = [_axis(axis) for _, axis in _fields(value) if not isinstance(axis, int)]
    return dtype, shape


def _axis(message: memoryview) -> int | str | None:
    """Return the size of an axis. If the axis is dynamic, return its name, or None if it has no name."""
    for number, value in _fields(message):
        if number == _FIRST and isinstance(value, int):
            return value
        if number == _SECOND and not isinstance(value, int):
            return _text(value) or None
    return None
