"""Descriptions of tensors that TensorRT passes to plugins, and the memory layouts of the tensor formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.engine.library import trt

FORMATS = {"float32": ("LINEAR", "CHW32"), "float16": ("LINEAR", "HWC8", "CHW16", "CHW32")}
_MEMBERS = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "int8": "INT8"}


def tensor_desc(shape: Sequence[int], dtype: str, format_name: str = "LINEAR") -> Any:
    """Return the description of a tensor that TensorRT passes to a plugin at run time."""
    desc = trt.PluginTensorDesc()
    desc.dims = trt.Dims(list(shape))
    desc.type = getattr(trt.DataType, _MEMBERS[dtype])
    desc.format = getattr(trt.TensorFormat, format_name)
    return desc


def dynamic_desc(shape: Sequence[int], dtype: str, format_name: str = "LINEAR", batch: int = 4) -> Any:
    """Return the description of a tensor that TensorRT passes to a plugin during a build.

    `batch` is the largest first dimension.
    """
    desc: Any = trt.DynamicPluginTensorDesc()
    desc.desc = tensor_desc((-1, *shape[1:]), dtype, format_name)
    desc.min, desc.opt, desc.max = (trt.Dims([rows, *shape[1:]]) for rows in (1, batch, batch))
    return desc


def packed(values: NDArray[Any], format_name: str) -> NDArray[Any]:
    """Return the values (N, C, H, W) in the memory layout of the format. The padding of the channels is 0."""
    if format_name == "LINEAR":
        return np.ascontiguousarray(values)
    multiple = int("".join(filter(str.isdigit, format_name)))
    count, channels, height, width = values.shape
    padded = np.zeros((count, -(-channels // multiple) * multiple, height, width), values.dtype)
    padded[:, :channels] = values
    if format_name.startswith("HWC"):
        return np.ascontiguousarray(padded.transpose(0, 2, 3, 1))
    blocks = padded.reshape(count, -1, multiple, height, width)
    return np.ascontiguousarray(blocks.transpose(0, 1, 3, 4, 2))
