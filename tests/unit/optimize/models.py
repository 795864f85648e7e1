"""Small networks with weights for tests of `vision.optimize`, and a detector that finds colored cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vision.config import ModelSpec
from vision.optimize.onnx_graph import Graph, open_graph

SIDE, CELL = 32, 8

SPEC = ModelSpec.model_validate(
    {
        "name": "cells",
        "file": "cells.onnx",
        "input": {"width": SIDE, "height": SIDE, "scale": 1 / 255},
        "head": {"kind": "yolov8"},
        "classes": ["red", "green", "blue"],
        "licence": "CC0-1.0",
    }
)


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [output], name=output, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]],
    *,
    shape: Sequence[int | str] = ("batch", 3, SIDE, SIDE),
    outputs: Sequence[str] = ("output",),
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a model with the input `images`, and with outputs of any shape."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def graph_of(made: onnx.ModelProto, folder: Path) -> Graph:
    """Save a model in a folder. Return its graph as opened by `vision.optimize`."""
    path = folder / "graph.onnx"
    path.write_bytes(made.SerializeToString())
    return open_graph(path)


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cells_model(*, outlier: float = 0.0, opset: int = 17) -> onnx.ModelProto:
    """Return a detector with four convolutions and a residual branch. The score of a cell is the mean of its channel.

    `outlier` is a weight in the second convolution, for a channel that is always 0.
    """
    eye = np.zeros((8, 3, 3, 3), np.float32)
    eye[range(7), [0, 1, 2, 0, 1, 2, 0], 1, 1] = 1
    mix = np.zeros((8, 8, 1, 1), np.float32)
    mix[range(8), range(8)] = 3
    mix[:3, 7] = outlier
    last = np.zeros((3, 8, CELL, CELL), np.float32)
    last[range(3), range(3)] = 1 / (4 * CELL * CELL)
    centers = (np.stack(np.meshgrid(np.arange(4), np.arange(4))).reshape(2, 16) + 0.5) * CELL
    boxes = np.concatenate([centers, np.full((2, 16), float(CELL))]).astype(np.float32)[None]
    weights: dict[str, NDArray[Any]] = {
        "w0": eye, "b0": np.zeros(8, np.float32), "w1": mix, "w2": last,
        "w3": np.eye(3, dtype=np.float32)[..., None, None],
        "shape": np.array([-1, 3, 16]), "boxes": boxes, "axes": np.array([2]), "none": np.zeros(1, np.float32),
    }  # fmt: skip
    nodes = [
        node("Conv", ["images", "w0", "b0"], "conv0", pads=[1, 1, 1, 1]),
        node("Relu", ["conv0"], "relu0"),
        node("Conv", ["relu0", "w1"], "conv1"),
        node("Add", ["relu0", "conv1"], "sum"),
        node("Conv", ["sum", "w2"], "conv2", strides=[CELL, CELL]),
        node("Conv", ["conv2", "w3"], "conv3"),
        node("Reshape", ["conv3", "shape"], "scores"),
        node("Slice", ["scores", "low", "high", "class_axis"], "first"),
        node("Mul", ["first", "none"], "zero"),
        node("Add", ["zero", "boxes"], "all_boxes"),
        node("Concat", ["all_boxes", "scores"], "output", axis=1),
    ]
    weights |= {"low": np.array([0]), "high": np.array([1]), "class_axis": np.array([1])}
    made = model(nodes, weights, opset=opset)
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 7, 16]))
    return made


def save_cells(folder: Path, **options: Any) -> Path:
    """Write the model folder of the detector. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC.file).write_bytes(cells_model(**options).SerializeToString())
    (folder / "model.yaml").write_text(SPEC.model_dump_json(exclude_defaults=True))
    return folder


def cell_images(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Return BGR images whose cells are either black or have one strong color."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        cells = np.zeros((4, 4, 3), np.uint8)
        for row, column in rng.integers(0, 4, (5, 2)):
            cells[row, column] = 0
            cells[row, column, rng.integers(3)] = rng.integers(150, 256)
        images.append(cells.repeat(CELL, axis=0).repeat(CELL, axis=1))
    return images


def save_images(folder: Path, images: Sequence[NDArray[np.uint8]]) -> Path:
    """Write images as PNG files into `folder`. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        with av.open(str(folder / f"{index:03d}.png"), "w", format="image2") as container:
            stream = container.add_stream("png", rate=1)
            stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[..., ::-1]), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return folder
