"""Small ONNX models and their specifications for tests of `vision.engine`, and pytest marks for requirements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as Onnx
from onnx import helper, numpy_helper

from vision.config import DetectConfig, ModelSpec
from vision.engine.build_plan import BuildPlan, Precision, resolve
from vision.engine.library import Flavour, find_library, start, trt
from vision.errors import DeviceMissing


def _flavour() -> Flavour | None:
    try:
        return find_library().flavour
    except DeviceMissing:
        return None


def _starts() -> bool:
    """Return True if the library can create a runtime and a builder on this machine."""
    try:
        start(trt.Runtime)
        start(trt.Builder)
    except DeviceMissing:
        return False
    return True


_PREPARE = "tests/typing/prepare_bindings.py gets TensorRT-RTX"

needs_tensorrt = pytest.mark.skipif(_flavour() is None, reason=_PREPARE)
_WITHOUT_DRIVER = "TensorRT starts only with a driver, and TensorRT-RTX also without one"
needs_rtx = pytest.mark.skipif(
    _flavour() != "tensorrt-rtx", reason=_WITHOUT_DRIVER if _flavour() == "tensorrt" else _PREPARE
)
needs_runtime = pytest.mark.skipif(not _starts(), reason=_WITHOUT_DRIVER if _flavour() == "tensorrt" else _PREPARE)
needs_no_gpu = pytest.mark.skipif(
    any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu")),
    reason="is about machines without a GPU",
)


def spec(*, size: int = 16, file: str = "tiny.onnx", **more: Any) -> ModelSpec:
    """Return the specification of a model with an input of `size` x `size` pixels."""
    return ModelSpec.model_validate(
        {
            "name": "tiny",
            "file": file,
            "input": {"width": size, "height": size},
            "head": {"kind": "yolov8"},
            "classes": ["person"],
            "nms": {},
            "licence": "none",
            **more,
        }
    )


def plan(
    precision: Precision = "fp32", max_batch: int = 4, *, of: ModelSpec | None = None, **changes: Any
) -> BuildPlan:
    """Resolve a build plan for a model. Then apply `changes` to the plan."""
    resolved = resolve(DetectConfig(precision=precision, max_batch=max_batch), of or spec())
    return replace(resolved, **changes)


def convolution(
    shape: Sequence[int | str] = ("n", 3, 16, 16), *, weight: float | None = None, seed: int = 0, opset: int = 17
) -> bytes:
    """Return the model images -> Conv -> Relu -> Conv -> y with random weights, of which `weight` replaces one."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(8, 3, 3, 3)).astype(np.float32) * 0.2
    if weight is not None:
        first[0, 0, 0, 0] = weight
    second = rng.normal(size=(4, 8, 1, 1)).astype(np.float32) * 0.2
    nodes = [
        helper.make_node("Conv", ["images", "w0"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w1"], ["y"], name="second"),
    ]
    weights = [numpy_helper.from_array(first, "w0"), numpy_helper.from_array(second, "w1")]
    return model(nodes, [value("images", shape)], [value("y", (shape[0], 4, *shape[2:]))], weights, opset=opset)


def first_layer(
    *, channels: int = 3, group: int = 1, operator: str = "Conv", second_reader: str = "", shared: bool = False
) -> bytes:
    """Return the model images -> Conv -> y. Each option, if used, is a reason not to widen the model."""
    kernel = np.ones((3, channels // group, 3, 3), np.float32)
    nodes = [helper.make_node(operator, ["images", "w"], ["y"], pads=[1, 1, 1, 1], group=group)]
    ends = ["y"]
    if second_reader:
        nodes.append(helper.make_node(second_reader, ["images"], ["z"]))
        ends.append("z")
    if shared:
        nodes.append(helper.make_node("Conv", ["y", "w"], ["z"], pads=[1, 1, 1, 1]))
        ends.append("z")
    results = [value(name, ("n", 3, 8, 8)) for name in ends]
    return model(nodes, [value("images", ("n", channels, 8, 8))], results, [numpy_helper.from_array(kernel, "w")])


def value(name: str, shape: Sequence[int | str] | None, kind: int = Onnx.FLOAT) -> onnx.ValueInfoProto:
    """Return the ONNX description of an input or an output of a model."""
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> bytes:
    """Return a serialized ONNX model with these nodes."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())


def with_operator(operator: str, *, node: str = "odd", domain: str = "") -> bytes:
    """Return the model images -> Relu -> `operator` -> y."""
    nodes = [
        helper.make_node("Relu", ["images"], ["a"], name="relu"),
        helper.make_node(operator, ["a"], ["y"], name=node, domain=domain),
    ]
    kind = Onnx.INT64 if operator == "NonZero" else Onnx.FLOAT
    return model(
        nodes, [value("images", ("n", 3, 16, 16))], [value("y", None, kind)], domains=[domain] if domain else []
    )


def with_shape_input() -> bytes:
    """Return a model that resizes images to the size in the shape tensor `size`."""
    nodes = [
        helper.make_node("Shape", ["images"], ["whole"], name="shape"),
        helper.make_node("Slice", ["whole", "zero", "two", "axis"], ["front"], name="front"),
        helper.make_node("Concat", ["front", "size"], ["target"], name="target", axis=0),
        helper.make_node("Resize", ["images", "", "", "target"], ["y"], name="resize", mode="nearest"),
    ]
    constants = [
        numpy_helper.from_array(np.array([number], np.int64), name)
        for name, number in (("zero", 0), ("two", 2), ("axis", 0))
    ]
    inputs = [value("images", ("n", 3, 16, 16)), value("size", (2,), Onnx.INT64)]
    return model(nodes, inputs, [value("y", ("n", 3, "h", "w"))], constants)


def quantized(kind: int = Onnx.INT8, *, opset: int = 17) -> bytes:
    """Return the quantized model images -> Conv -> Q -> DQ -> Conv (weights Q -> DQ) -> Relu -> y."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(16, 3, 3, 3)).astype(np.float32) * 0.2, "w0"),
        numpy_helper.from_array(rng.normal(size=(16, 16, 3, 3)).astype(np.float32) * 0.1, "w"),
        numpy_helper.from_array(np.float32(0.02), "s"),
        numpy_helper.from_array(np.full(16, 0.003, np.float32), "ws"),
        helper.make_tensor("z", kind, [], [0]),
        helper.make_tensor("wz", kind, [16], [0] * 16),
    ]
    nodes = [
        helper.make_node("Conv", ["images", "w0"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], name="wq", axis=0),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], name="wdq", axis=0),
        helper.make_node("Conv", ["d", "wd"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    return model(nodes, [value("images", ("n", 3, 16, 16))], [value("y", ("n", 16, 16, 16))], weights, opset=opset)
