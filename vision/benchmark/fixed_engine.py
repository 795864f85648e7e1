"""TensorRT engines of any network with fixed input shapes, for `vision bench --precisions`. This needs a GPU."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, Final, get_args

from vision.benchmark.gpu import GpuLane, device_mib
from vision.benchmark.precisions import Network
from vision.config import DetectConfig, ModelSpec
from vision.engine.build import BuildOptions, build_engine
from vision.engine.build_plan import BuildPlan, Precision, resolve
from vision.engine.memory import MemoryPool
from vision.engine.runtime import load_engine
from vision.errors import ModelError
from vision.gpu.cuda import open_device, use_device
from vision.gpu.memory import CudaMemory
from vision.optimize.onnx_graph import Graph
from vision.optimize.samples import Samples

_SPARSE: Final = "int8-sparse"
_FALLBACK_SIDE: Final = 32  # width and height in the spec of a model without an input for frames; the engine ignores it


def open_on_gpu(graph: Graph, precision: str, samples: Samples) -> Network:
    """Build and open the engine of a model with fixed shapes, and run it on all inputs in `samples`.

    Return the open network, which the caller must close. `precision` is a `Precision` or "int8-sparse".

    Raises:
        ModelError: the GPU, TensorRT, or the model does not support the precision, or the values of an input determine
            shapes.
        DeviceError: the GPU fails, or has too little memory.
    """
    device = open_device()
    use_device(device)
    batch = next(iter(samples.shapes.values()))[0]
    spec = _spec(samples)
    options = BuildOptions(prepare_thread=lambda: use_device(device))
    built = build_engine(graph.serialized(), spec, build_plan(precision, batch, spec), device, options)
    with contextlib.ExitStack() as resources:
        before = device_mib()
        pool = resources.enter_context(contextlib.closing(MemoryPool(CudaMemory())))
        engine = resources.enter_context(load_engine(built.plan, pool=pool, label=f"{spec.name} {precision}"))
        shapes = {tensor.name: samples.shapes[tensor.name] for tensor in engine.inputs}
        if any(tensor.is_shape_io for tensor in engine.inputs):
            raise ModelError("the values of an input determine shapes, so the network is not measured alone")
        first = {name: samples.batches[0][name] for name in shapes}
        lane = GpuLane(engine, shapes, graph=True, values=first)
        resources.callback(lane.close)
        outputs: list[Any] = [lane.run({name: each[name] for name in shapes}) for each in samples.batches]
        added = device_mib() - before
        without_graph = GpuLane(engine, shapes, graph=False, values=first)
        resources.callback(without_graph.close)
        return Network(len(built.plan), added, outputs, lane, without_graph, resources.pop_all().close)


def build_plan(precision: str, batch: int, spec: ModelSpec) -> BuildPlan:
    """Return the build plan of an engine whose inputs and outputs have the types of the ONNX file.

    `precision` is a `Precision` or "int8-sparse". `batch` is the maximum batch size of the engine.
    """
    name = "int8" if precision == _SPARSE else precision
    assert name in get_args(Precision)
    detect = DetectConfig.model_validate({"precision": name, "max_batch": batch})
    plan = resolve(detect, spec)
    return replace(
        plan,
        sparse=precision == _SPARSE,
        half_input=False,
        half_outputs=False,
        interleaved_input=False,
        fixed_batches=False,
    )


def _spec(samples: Samples) -> ModelSpec:
    """Return the specification of the model, or a placeholder if the model has no specification.

    In the placeholder, only the input size is meaningful: the size of the first input with four axes, or
    `_FALLBACK_SIDE` if there is no such input. The other values have no meaning, but make the placeholder valid.
    """
    if samples.spec is not None:
        return samples.spec
    frames = next((shape for shape in samples.shapes.values() if len(shape) == 4), None)
    height, width = frames[2:] if frames is not None else (_FALLBACK_SIDE, _FALLBACK_SIDE)
    return ModelSpec.model_validate(
        {
            "name": "network",
            "file": "network.onnx",
            "input": {"width": width, "height": height},
            "head": {"kind": "yolov8"},
            "classes": ["any"],
            "licence": "unknown",
        }
    )
