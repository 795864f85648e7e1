"""Functions that save ONNX files with known outputs. The files are small enough to create in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, checker, helper, numpy_helper, save_model

OPSET = 17  # read by every ONNX Runtime from 1.12 on, and by TensorRT 10
IR_VERSION = 8

COLOUR_CARD = """\
name: colours
file: colours.onnx
input: {width: 32, height: 32, scale: 0.00392156862745098}
head: {kind: yolov8}
classes: [red, green, blue]
nms: {iou_threshold: 0.6}
licence: CC0-1.0
"""


def save_constant_model(
    path: Path,
    outputs: Mapping[str, NDArray[np.float32]],
    *,
    sides: tuple[int, int] = (64, 64),
    batch: int | str = "batch",
) -> None:
    """Save a network that returns `outputs` (given without a batch axis) for every frame.

    `sides` are the height and width of the network's input.
    """
    nodes = [_node("ReduceMean", ["images"], "mean", axes=[1, 2, 3], keepdims=0)]
    nodes.append(_node("Mul", ["mean", "none"], "nothing"))
    constants = {"none": np.float32(0), "shape": np.array([-1, 1, 1])}
    nodes.append(_node("Reshape", ["nothing", "shape"], "zero"))
    for name, value in outputs.items():
        constants[f"{name}_value"] = value[None]
        nodes.append(_node("Add", ["zero", f"{name}_value"], name))
    shapes = {name: [batch, *value.shape] for name, value in outputs.items()}
    _save(path, nodes, constants, [batch, 3, *sides], shapes)


def save_typed_model(
    path: Path,
    outputs: Mapping[str, NDArray[Any]],
    *,
    sides: tuple[int, int] = (64, 64),
    batch: int | str = "batch",
    dtype: int = TensorProto.FLOAT,
    channels_last: bool = False,
    constants: Mapping[str, tuple[int, Sequence[int | str]]] | None = None,
) -> None:
    """Save a network that returns `outputs` (given without a batch axis, in their own types) for every frame.

    The network multiplies the output `boxes`, if it exists, by each constant input. A constant input contains two
    values: the factors for x and y.

    Args:
        sides: height and width of the input for frames.
        dtype: type of the input for frames.
        channels_last: if True, the input is (batch, height, width, 3).
        constants: type and shape of each additional input, by name.
    """
    shape = [batch, *sides, 3] if channels_last else [batch, 3, *sides]
    inputs = {name: (kind, list(axes)) for name, (kind, axes) in (constants or {}).items()}
    inputs["images"] = (dtype, shape)
    values: dict[str, NDArray[np.generic] | np.generic] = {"none": np.float32(0)}
    nodes = [
        _node("Cast", ["images"], "real", to=TensorProto.FLOAT),
        _node("ReduceMean", ["real"], "mean", axes=[1, 2, 3], keepdims=0),
        _node("Mul", ["mean", "none"], "zero"),
    ]
    for name, value in outputs.items():
        values[f"{name}_value"] = value[None].astype(np.float32)
        values[f"{name}_shape"] = np.array([-1, *[1] * value.ndim])
        nodes.append(_node("Reshape", ["zero", f"{name}_shape"], f"{name}_zero"))
        nodes.append(_node("Add", [f"{name}_zero", f"{name}_value"], f"{name}_real"))
        last = f"{name}_real"
        for constant in (constants or {}) if name == "boxes" else ():
            nodes.append(_node("Cast", [constant], f"{constant}_real", to=TensorProto.FLOAT))
            nodes.append(_node("Concat", [f"{constant}_real"] * 2, f"{constant}_twice", axis=1))
            nodes.append(_node("Unsqueeze", [f"{constant}_twice", "one"], f"{constant}_box"))
            nodes.append(_node("Mul", [last, f"{constant}_box"], f"{constant}_scaled"))
            values["one"] = np.array([1])
            last = f"{constant}_scaled"
        nodes.append(_node("Cast", [last], name, to=helper.np_dtype_to_tensor_dtype(value.dtype)))
    graph = helper.make_graph(
        nodes,
        "typed",
        [helper.make_tensor_value_info(name, kind, axes) for name, (kind, axes) in inputs.items()],
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [batch, *value.shape])
            for name, value in outputs.items()
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(model)
    save_model(model, str(path))


def save_colour_model(path: Path, *, slow: bool = False, fragile: bool = False, batch: int | str = "batch") -> None:
    """Save a network that finds one box in each frame. The box covers the whole canvas of 32x32 pixels.

    The scores of the three classes are the channel values of the center pixel. `slow` adds about 10^10 operations.
    `fragile` makes the network fail when the first channel is over 0.9.
    """
    middle = ["images", "low", "high", "axes"]
    nodes = [_node("Slice", middle, "pixel"), _node("Reshape", ["pixel", "scores_shape"], "scores")]
    constants: dict[str, NDArray[np.generic] | np.generic] = {
        "low": np.array([15, 15]),
        "high": np.array([16, 16]),
        "axes": np.array([2, 3]),
        "scores_shape": np.array([-1, 3, 1]),
        "none": np.float32(0),
        "canvas": np.array([16, 16, 32, 32], np.float32).reshape(1, 4, 1),
        "first": np.array([0]),
        "second": np.array([1]),
        "class_axis": np.array([1]),
    }
    nodes.append(_node("Slice", ["scores", "first", "second", "class_axis"], "red"))
    nodes.append(_node("Mul", ["red", "none"], "zero_0"))
    zero = "zero_0"
    if slow:
        constants["matrix"] = np.zeros((1024, 1024), np.float32)
        for index in range(8):
            nodes.append(_node("Add", [zero, "matrix"], f"wide_{index}"))
            nodes.append(_node("MatMul", [f"wide_{index}", "matrix"], f"product_{index}"))
            nodes.append(_node("ReduceMax", [f"product_{index}"], f"slow_{index}", axes=[1, 2], keepdims=1))
            zero = f"slow_{index}"
    if fragile:
        constants |= {"most": np.float32(0.9), "table": np.zeros(1, np.float32)}
        nodes.append(_node("Greater", ["red", "most"], "is_red"))
        nodes.append(_node("Cast", ["is_red"], "row", to=TensorProto.INT64))
        nodes.append(_node("Gather", ["table", "row"], "gathered"))
        zero = "gathered"
    nodes.append(_node("Add", [zero, "canvas"], "boxes"))
    nodes.append(_node("Concat", ["boxes", "scores"], "output", axis=1))
    _save(path, nodes, constants, [batch, 3, 32, 32], {"output": [batch, 7, 1]})


CLASSIFIER_CARD = """\
name: paint
file: paint.onnx
input: {width: 16, height: 24, scale: 0.00392156862745098}
head: {kind: classifier, activation: none}
classes: [reddish, greenish, bluish]
licence: CC0-1.0
"""


def save_classifier(
    path: Path,
    *,
    batch: int | str = "batch",
    sides: tuple[int, int] = (24, 16),
    gain: float = 1.0,
    axes: Sequence[int] = (2, 3),
    fragile: bool = False,
) -> None:
    """Save a network whose scores are `gain` times the means of the three input channels.

    Args:
        sides: height and width of the input.
        axes: axes of the mean.
        fragile: if True, the network fails when the mean of the first channel is over one half.
    """
    nodes = [_node("ReduceMean", ["images"], "mean", axes=list(axes), keepdims=0)]
    constants: dict[str, NDArray[np.generic] | np.generic] = {"gain": np.float32(gain)}
    mean = "mean"
    if fragile:
        constants |= {"half": np.float32(0.5), "table": np.zeros(1, np.float32), "first": np.array(0)}
        nodes.append(_node("Gather", ["mean", "first"], "red", axis=1))
        nodes.append(_node("Greater", ["red", "half"], "is_red"))
        nodes.append(_node("Cast", ["is_red"], "row", to=TensorProto.INT64))
        nodes.append(_node("Gather", ["table", "row"], "nothing"))
        nodes.append(_node("Unsqueeze", ["nothing", "last"], "column"))
        nodes.append(_node("Add", ["mean", "column"], "checked"))
        constants["last"] = np.array([1])
        mean = "checked"
    nodes.append(_node("Mul", [mean, "gain"], "scores"))
    _save(path, nodes, constants, [batch, 3, *sides], {"scores": [batch, 3][: 4 - len(axes)]})


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, list(inputs), [output], **attributes)


def _save(
    path: Path,
    nodes: Sequence[NodeProto],
    constants: Mapping[str, NDArray[np.generic] | np.generic],
    input_shape: Sequence[int | str],
    output_shapes: Mapping[str, Sequence[int | str]],
) -> None:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in output_shapes.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(model)
    save_model(model, str(path))
