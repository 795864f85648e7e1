"""Conversion between the settings of a plugin and the fields that TensorRT stores in an engine.

The settings are a frozen dataclass. From the attributes of the ONNX node, the parser creates a field for each setting
of the same name. Each setting is one number, because the bindings of TensorRT 10.3 and 10.13 read only the first
element of a text or a list.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vision.engine.library import trt
from vision.errors import ModelError

S = TypeVar("S")

_KINDS = {int: ("INT32", np.int32), float: ("FLOAT32", np.float32)}


class FieldCollection:
    """Fields of a plugin, together with the arrays of their values, because TensorRT does not copy the arrays."""

    def __init__(self, settings: type[Any] | Any) -> None:
        """Create the fields of `settings`, which is an instance or a class. For a class, the fields have no values."""
        self._arrays: list[NDArray[Any]] = []
        fields = []
        for name, kind in _types_of(settings).items():
            member, dtype = _KINDS[kind]
            make: Any = trt.PluginField
            array = np.array([] if isinstance(settings, type) else [getattr(settings, name)], dtype)
            self._arrays.append(array)
            fields.append(make(name, array, getattr(trt.PluginFieldType, member)))
        self.raw: Any = trt.PluginFieldCollection(fields)
        self.serialized: Any = getattr(trt, "PluginFieldCollection_")(self.raw)  # noqa: B009 - the stubs lack it
        """The same fields, in the class that TensorRT stores in an engine.

        The bindings convert `raw` to this class only in some calls.
        """


def read_fields(settings: type[S], fields: Any, plugin: str) -> S:
    """Create an instance of `settings` from the fields of a plugin. A setting without a field keeps its default.

    Raises:
        ModelError: a setting without a default has no field, or a field is unknown or has no value of the right type.
    """
    types = _types_of(settings)
    given: dict[str, object] = {}
    for field in fields:
        if field.name not in types:
            raise ModelError(f"{plugin} has no field {field.name}; it has {', '.join(types)}", code="plugin-field")
        given[field.name] = _decode(field, types[field.name], plugin)
    required = [each.name for each in dataclasses.fields(typing.cast(Any, settings)) if _is_required(each)]
    missing = [name for name in required if name not in given]
    if missing:
        raise ModelError(
            f"{plugin} needs the fields {', '.join(required)}; {', '.join(missing)} is missing",
            hint=f"set the attributes of the node {plugin} in the ONNX file",
            code="plugin-field",
        )
    return settings(**given)


def _types_of(settings: type[Any] | Any) -> dict[str, type]:
    """Return the types of the settings by name, in their order."""
    kind = settings if isinstance(settings, type) else type(settings)
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


def _decode(field: Any, kind: type, plugin: str) -> object:
    data = np.asarray(field.data)
    if data.size == 1 and field.type.name.startswith(("INT",) if kind is int else ("INT", "FLOAT")):
        return kind(data[0])
    wanted = "one integer" if kind is int else "one number"
    raise ModelError(
        f"{plugin}: expected {wanted} in the field {field.name}, got {data.size} values of the type {field.type.name}",
        code="plugin-field",
    )
