"""Plugin `VisionStarRelu`: the activation ``scale * max(x, 0)^2 + bias``, and an example of a small plugin.

The exporters of PyTorch turn this activation into four nodes. The plugin computes it in one pass over the memory. The
plugin accepts the formats in which convolutions exchange their tensors, so that TensorRT converts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vision.detect.tensorrt.plugins.base import KernelPlugin, Step, dtype_of
from vision.engine.library import trt

if TYPE_CHECKING:
    from vision.gpu.cuda import BorrowedStream

_FORMATS: Mapping[str, tuple[str, ...]] = {
    "FLOAT": ("LINEAR", "CHW32"),
    "HALF": ("LINEAR", "HWC8", "CHW16", "CHW32"),
}
"""Formats by type. Only linear tensors can have fewer than three dimensions."""
_THREADS = 256


@dataclass(frozen=True, slots=True)
class StarReluSettings:
    """Settings of `StarRelu`. With the defaults, standard normal input gives output of mean 0 and variance 1."""

    scale: float = 0.8944
    bias: float = -0.4472


@dataclass(frozen=True, slots=True)
class Padding:
    """Position of the channels in the memory of a tensor.

    Memory formats other than linear pad the number of channels to a multiple of 8, 16, or 32.
    """

    channels: int  # 0 if there is no padding
    vector: int  # number of channels that are adjacent
    blocks: int
    inner: int  # number of positions in a plane
    count: int  # number of values in memory

    @classmethod
    def of(cls, shape: Sequence[int], format_name: str) -> Padding:
        """Return the position of the channels, the third dimension from the end, in a tensor (..., C, H, W)."""
        if format_name == "LINEAR":
            return cls(0, 1, 1, 1, math.prod(shape))
        *outer, channels, height, width = shape
        multiple = int("".join(filter(str.isdigit, format_name)))
        blocks = -(-channels // multiple)
        vector = blocks * multiple if format_name.startswith("HWC") else multiple
        count = math.prod(outer) * blocks * multiple * height * width
        return cls(channels, vector, blocks * multiple // vector, height * width, count)


def definitions_of(settings: StarReluSettings, dtype: str, padding: Padding) -> Mapping[str, int | float | str]:
    """Return the preprocessor definitions of ``star_relu.cu``."""
    return {
        "HALF": int(dtype == "float16"),
        "SCALE": settings.scale,
        "BIAS": settings.bias,
        "CHANNELS": padding.channels,
        "VECTOR": padding.vector,
        "BLOCKS": padding.blocks,
        "INNER": padding.inner,
    }


class StarRelu(KernelPlugin):
    """Plugin for one tensor of any shape, in float32 or float16."""

    name: ClassVar[str] = "VisionStarRelu"
    settings_type: ClassVar[type[Any]] = StarReluSettings

    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        return [input_types[0]]

    def get_output_shapes(self, inputs: Sequence[Any], _shape_inputs: Sequence[Any], _builder: Any) -> list[Any]:
        return [trt.DimsExprs(inputs[0])]

    def supports_format_combination(self, position: int, tensors: Sequence[Any], _inputs: int) -> bool:
        """Return True if the plugin supports the type and format of the tensor at `position`.

        The output (position 1) must have the type and format of the input (position 0).
        """
        desc = tensors[position].desc
        if position:
            first = tensors[0].desc
            return bool(desc.type == first.type and desc.format == first.format)
        formats = _FORMATS.get(desc.type.name, ())
        return desc.format.name in (formats if len(desc.dims) >= 3 else formats[:1])

    def get_workspace_size(self, _inputs: Sequence[Any], _outputs: Sequence[Any]) -> int:
        return 0

    def prepare(self, inputs: Sequence[Any], _outputs: Sequence[Any]) -> Step:
        desc = inputs[0]
        padding = Padding.of(tuple(desc.dims), desc.format.name)
        kernel = self.load("star_relu.cu", definitions_of(self.settings, dtype_of(desc), padding)).kernel("star_relu")
        grid, count = (-(-padding.count // _THREADS), 1, 1), np.uint32(padding.count)

        def step(given: Sequence[int], results: Sequence[int], _workspace: int, stream: BorrowedStream) -> None:
            if padding.count:
                kernel.bind(grid, (_THREADS, 1, 1), given[0], count, results[0]).enqueue(stream)

        return step
