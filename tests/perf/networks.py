"""Networks with the layers of published architectures and random weights, as ONNX files. No download is necessary.

ResNet-50 (He et al., 2015) is version 1.5, which has the stride in the 3x3 convolution. YOLOv8 is the network of
Ultralytics 8.0 in the sizes s and x, for 640x640 images and 80 classes. BERT-Base is the encoder of Devlin et al.,
2018: 12 layers, 768 channels, 12 heads. Batch normalization is folded into the convolutions, as exporters do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET: Final = 17
_MASKED: Final = float(np.finfo(np.float32).min)  # added to the scores of masked tokens, as in published exports


class _Builder:
    """Builder of an ONNX graph. A layer method adds a layer and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._generator = np.random.default_rng(1)

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def random(self, *shape: int, scale: float) -> str:
        return self.constant(self._generator.standard_normal(shape, np.float32) * np.float32(scale))

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{kind.lower()}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def split(self, x: str, sizes: list[int], axis: int) -> list[str]:
        self.add("Split", x, self.constant(sizes, np.int64), outputs=len(sizes), axis=axis)
        return list(self.nodes[-1].output)

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, self.constant(shape, np.int64))

    def conv(self, x: str, ins: int, outs: int, size: int = 1, *, stride: int = 1, gain: float = 1.0) -> str:
        """Add a convolution. `gain` scales the weights so that the variance of the activations stays near 1."""
        scale = gain / math.sqrt(ins * size * size)
        weights, bias = self.random(outs, ins, size, size, scale=scale), self.random(outs, scale=0.02)
        return self.add("Conv", x, weights, bias, pads=[size // 2] * 4, strides=[stride] * 2)

    def linear(self, x: str, ins: int, outs: int) -> str:
        product = self.add("MatMul", x, self.random(ins, outs, scale=1 / math.sqrt(ins)))
        return self.add("Add", product, self.random(outs, scale=0.02))

    def model(self, inputs: Mapping[str, tuple[int, tuple[Any, ...]]], outputs: Mapping[str, tuple[Any, ...]]) -> bytes:
        """Return the ONNX file. `inputs` has the type and shape of each input, and `outputs` the shapes of outputs."""
        ends = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, "network", ends, results, self.tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
        return bytes(made.SerializeToString())

    def end(self, x: str, name: str) -> None:
        self.nodes.append(helper.make_node("Identity", [x], [name]))


# ------------------------------------------------------------------------------------------------ ResNet-50


def resnet50() -> bytes:
    """Return ResNet-50 for 224x224 images and 1,000 classes."""
    build = _Builder()
    x = _relu(build, build.conv("images", 3, 64, 7, stride=2, gain=math.sqrt(2)))
    x = build.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    ins = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            x = _bottleneck(build, x, (ins, 64 << stage), stride=2 if stage and not block else 1)
            ins = 256 << stage
    x = build.add("Flatten", build.add("GlobalAveragePool", x))
    build.end(build.linear(x, ins, 1000), "logits")
    return build.model({"images": (TensorProto.FLOAT, ("batch", 3, 224, 224))}, {"logits": ("batch", 1000)})


def _relu(build: _Builder, x: str) -> str:
    return build.add("Relu", x)


def _bottleneck(build: _Builder, x: str, channels: tuple[int, int], stride: int) -> str:
    ins, width = channels
    y = _relu(build, build.conv(x, ins, width, gain=math.sqrt(2)))
    y = _relu(build, build.conv(y, width, width, 3, stride=stride, gain=math.sqrt(2)))
    y = build.conv(y, width, 4 * width, gain=0.5)
    if ins != 4 * width:
        x = build.conv(x, ins, 4 * width, stride=stride)
    return _relu(build, build.add("Add", y, x))


# ------------------------------------------------------------------------------------------------ YOLOv8

_SIZES: Final = {"s": (0.33, 0.50, 1024), "x": (1.00, 1.25, 512)}  # depth, width, most channels
_CLASSES: Final = 80
_BINS: Final = 16  # of the distribution of each side of a box


def yolov8(size: str) -> bytes:
    """Return YOLOv8 of a size (`s` or `x`) for 640x640 images. Its output has the shape (batch, 84, 8400)."""
    depth, width, most = _SIZES[size]
    channels = [math.ceil(min(each, most) * width / 8) * 8 for each in (64, 128, 256, 512, 1024)]
    repeats = [max(1, round(each * depth)) for each in (3, 6, 6, 3)]
    build = _Builder()
    x = _silu(build, "images", 3, channels[0], 3, stride=2)
    levels = []
    for at, count in enumerate(repeats):
        x = _silu(build, x, channels[at], channels[at + 1], 3, stride=2)
        x = _c2f(build, x, channels[at + 1], channels[at + 1], count, residual=True)
        levels.append(x)
    p3, p4, p5 = levels[1], levels[2], _sppf(build, x, channels[4])
    _, _, c3, c4, c5 = channels
    fewest = repeats[0]
    up4 = _c2f(build, _joined(build, _doubled(build, p5), p4), c5 + c4, c4, fewest)
    out3 = _c2f(build, _joined(build, _doubled(build, up4), p3), c4 + c3, c3, fewest)
    out4 = _c2f(build, _joined(build, _silu(build, out3, c3, c3, 3, stride=2), up4), c3 + c4, c4, fewest)
    out5 = _c2f(build, _joined(build, _silu(build, out4, c4, c4, 3, stride=2), p5), c4 + c5, c5, fewest)
    _yolov8_head(build, [(out3, c3, 8), (out4, c4, 16), (out5, c5, 32)])
    shape = ("batch", 4 + _CLASSES, 8400)
    return build.model({"images": (TensorProto.FLOAT, ("batch", 3, 640, 640))}, {"output": shape})


def _silu(build: _Builder, x: str, ins: int, outs: int, size: int = 1, *, stride: int = 1, gain: float = 1.6) -> str:
    y = build.conv(x, ins, outs, size, stride=stride, gain=gain)
    return build.add("Mul", y, build.add("Sigmoid", y))


def _joined(build: _Builder, *parts: str) -> str:
    return build.add("Concat", *parts, axis=1)


def _doubled(build: _Builder, x: str) -> str:
    return build.add("Resize", x, "", build.constant([1, 1, 2, 2]), mode="nearest")


def _c2f(build: _Builder, x: str, ins: int, outs: int, count: int, *, residual: bool = False) -> str:
    half = outs // 2
    parts = build.split(_silu(build, x, ins, 2 * half), [half, half], 1)
    for _ in range(count):
        # A smaller gain in residual blocks, so that the sums of many blocks stay in the range of float16.
        y = _silu(build, _silu(build, parts[-1], half, half, 3), half, half, 3, gain=0.8 if residual else 1.6)
        parts.append(build.add("Add", parts[-1], y) if residual else y)
    return _silu(build, _joined(build, *parts), (2 + count) * half, outs)


def _sppf(build: _Builder, x: str, channels: int) -> str:
    parts = [_silu(build, x, channels, channels // 2)]
    for _ in range(3):
        parts.append(build.add("MaxPool", parts[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4))
    return _silu(build, _joined(build, *parts), 2 * channels, channels)


def _yolov8_head(build: _Builder, levels: list[tuple[str, int, int]]) -> None:
    boxes_width = max(16, levels[0][1] // 4, 4 * _BINS)
    scores_width = max(levels[0][1], min(_CLASSES, 100))
    rows, centers, strides = [], [], []
    for x, channels, stride in levels:
        branches = []
        for width, outs in ((boxes_width, 4 * _BINS), (scores_width, _CLASSES)):
            y = _silu(build, _silu(build, x, channels, width, 3), width, width, 3)
            branches.append(build.conv(y, width, outs))
        side = 640 // stride
        rows.append(build.reshape(_joined(build, *branches), 0, 4 * _BINS + _CLASSES, side * side))
        grid = np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)).reshape(2, -1)
        centers.append(grid)
        strides.append(np.full(side * side, stride))
    sides, scores = build.split(build.add("Concat", *rows, axis=2), [4 * _BINS, _CLASSES], 1)
    bins = build.add("Softmax", build.reshape(sides, 0, 4, _BINS, 8400), axis=2)
    bins = build.add("Transpose", bins, perm=[0, 2, 1, 3])
    mean = build.add("Conv", bins, build.constant(np.arange(_BINS).reshape(1, _BINS, 1, 1)))
    before, after = build.split(build.reshape(mean, 0, 4, 8400), [2, 2], 1)
    middle = build.constant(np.concatenate(centers, 1)[None])
    low, high = build.add("Sub", middle, before), build.add("Add", middle, after)
    center = build.add("Mul", build.add("Add", low, high), build.constant(0.5))
    boxes = build.add(
        "Mul", _joined(build, center, build.add("Sub", high, low)), build.constant(np.concatenate(strides))
    )
    build.end(_joined(build, boxes, build.add("Sigmoid", scores)), "output")


# ------------------------------------------------------------------------------------------------ BERT-Base


def bert_base(layers: int = 12) -> bytes:
    """Return the encoder of BERT-Base for sequences of any length up to 512."""
    build, width = _Builder(), 768
    x = build.add("Gather", build.random(30522, width, scale=0.02), "input_ids")
    length = build.add("Slice", build.add("Shape", "input_ids"), *(build.constant([n], np.int64) for n in (1, 2)))
    zero, axis = build.constant([0], np.int64), build.constant([0], np.int64)
    places = build.add("Slice", build.random(512, width, scale=0.02), zero, length, axis)
    x = _normalized(build, build.add("Add", x, places), width)
    real = build.add(
        "Cast", build.add("Unsqueeze", "attention_mask", build.constant([1, 2], np.int64)), to=TensorProto.FLOAT
    )
    mask = build.add("Mul", build.add("Sub", build.constant(1.0), real), build.constant(_MASKED))
    for _ in range(layers):
        x = _normalized(build, build.add("Add", x, _attention(build, x, mask, width)), width)
        inner = _gelu(build, build.linear(x, width, 4 * width))
        x = _normalized(build, build.add("Add", x, build.linear(inner, 4 * width, width)), width)
    build.end(x, "last_hidden_state")
    tokens = (TensorProto.INT64, ("batch", "length"))
    outputs = {"last_hidden_state": ("batch", "length", width)}
    return build.model({"input_ids": tokens, "attention_mask": tokens}, outputs)


def _normalized(build: _Builder, x: str, width: int) -> str:
    ones, zeros = build.constant(np.ones(width)), build.constant(np.zeros(width))
    return build.add("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-12)


def _gelu(build: _Builder, x: str) -> str:
    error = build.add("Erf", build.add("Mul", x, build.constant(1 / math.sqrt(2))))
    return build.add("Mul", build.add("Mul", x, build.constant(0.5)), build.add("Add", error, build.constant(1.0)))


def _attention(build: _Builder, x: str, mask: str, width: int) -> str:
    heads = 12

    def head_rows() -> str:
        return build.add(
            "Transpose", build.reshape(build.linear(x, width, width), 0, 0, heads, width // heads), perm=[0, 2, 1, 3]
        )

    query, key, value = (head_rows() for _ in range(3))
    scores = build.add("MatMul", query, build.add("Transpose", key, perm=[0, 1, 3, 2]))
    scores = build.add("Mul", scores, build.constant(1 / math.sqrt(width // heads)))
    mixed = build.add("MatMul", build.add("Softmax", build.add("Add", scores, mask), axis=-1), value)
    mixed = build.reshape(build.add("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, width)
    return build.linear(mixed, width, width)


NETWORKS: Final[Mapping[str, tuple[Callable[[], bytes], Mapping[str, tuple[int, ...]]]]] = {
    "resnet50": (resnet50, {"images": (3, 224, 224)}),
    "yolov8s": (partial(yolov8, "s"), {"images": (3, 640, 640)}),
    "yolov8x": (partial(yolov8, "x"), {"images": (3, 640, 640)}),
    "bert_base": (bert_base, {"input_ids": (128,), "attention_mask": (128,)}),
}
"""The function that makes each network, and the shapes of its inputs without the batch."""
