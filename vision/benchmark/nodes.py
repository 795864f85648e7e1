"""What ONNX Runtime's own profiler wrote, as times of layers: the same figures that TensorRT's profiler gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vision.engine.profiler import Layer, LayerTensor, LayerTimes
from vision.errors import ModelError

_KERNEL: Final = "_kernel_time"
_RUN: Final = "model_run"


def parse_nodes(text: str, *, skip: int = 0) -> tuple[LayerTimes, tuple[Layer, ...]]:
    """Parse the nodes in the order of execution, and their times in every run but the first `skip`.

    Raises:
        ModelError: not a file of ONNX Runtime's profiler, or one without a run that is left.
    """
    try:
        events = [event for event in json.loads(text) if event.get("ph") == "X"]
        runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == _RUN)
        nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)]
        return _times(nodes, runs[skip:]), _layers(nodes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"this is no profile of ONNX Runtime: {type(error).__name__}: {error}") from error


def _times(nodes: Sequence[Mapping[str, Any]], runs: Sequence[tuple[int, int]]) -> LayerTimes:
    if not runs:
        raise ModelError("the profile of ONNX Runtime holds no run of the network")
    times = LayerTimes()
    ordered = sorted(nodes, key=lambda event: event["ts"])
    for begin_us, end_us in runs:
        times.begin_run()
        for event in ordered:
            if begin_us <= event["ts"] < end_us:
                times.add(_name(event), event["dur"] / 1e3)
    return times


def _layers(nodes: Sequence[Mapping[str, Any]]) -> tuple[Layer, ...]:
    found: dict[str, Layer] = {}
    for event in sorted(nodes, key=lambda event: event["ts"]):
        name = _name(event)
        if name not in found:
            arguments = event.get("args", {})
            found[name] = Layer(
                name=name,
                kind=str(arguments.get("op_name", "")),
                inputs=_tensors(arguments.get("input_type_shape", ())),
                outputs=_tensors(arguments.get("output_type_shape", ())),
                tactic=str(arguments.get("provider", "")),
                onnx_nodes=(),
                profile=0,
            )
    return tuple(found.values())


def _name(event: Mapping[str, Any]) -> str:
    return str(event["name"]).removesuffix(_KERNEL)


def _tensors(described: Sequence[Mapping[str, Sequence[int]]]) -> tuple[LayerTensor, ...]:
    return tuple(LayerTensor("", tuple(shape), dtype) for each in described for dtype, shape in each.items())
