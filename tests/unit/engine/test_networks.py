"""Tests that build networks with the layers of ResNet-50 and BERT-Base, and count their parameters."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import onnx
import pytest

from tests.perf.networks import bert_base, resnet50, yolov8
from tests.unit.engine_models import needs_rtx, plan, spec
from vision.engine.build import BuildOptions, build_engine
from vision.engine.library import GpuDescription
from vision.optimize.onnx_graph import Graph
from vision.optimize.samples import with_fixed_shapes

AMPERE = GpuDescription("NVIDIA RTX A4000", (8, 6))


def parameters(model: bytes) -> int:
    """Return the number of floating-point weights."""
    tensors = onnx.load_model_from_string(model).graph.initializer
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT)


def test_networks_have_the_published_numbers_of_parameters() -> None:
    """In these networks, biases replace the four parameters per channel of batch normalization."""
    assert parameters(resnet50()) == pytest.approx(25.56e6, rel=0.005)
    assert parameters(yolov8("s")) == pytest.approx(11.16e6, rel=0.005)


@needs_rtx
@pytest.mark.engine
@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (resnet50, {"images": (2, 3, 224, 224)}),
        (partial(bert_base, 2), {"input_ids": (2, 128), "attention_mask": (2, 128)}),
    ],
    ids=["resnet50", "two-layers-of-bert"],
)
def test_network_is_built_in_float16(make, shapes) -> None:  # type: ignore[no-untyped-def]
    fixed = with_fixed_shapes(Graph(onnx.load_model_from_string(make()), ""), shapes)
    chosen = replace(plan("fp16", 2), half_input=False, half_outputs=False, interleaved_input=False)
    size = spec().input.model_copy(update={"width": 224, "height": 224})
    of = spec().model_copy(update={"input": size})  # only the input for frames is used
    built = build_engine(fixed.serialized(), of, chosen, AMPERE, BuildOptions())
    weights = parameters(fixed.serialized())
    assert 1.9 * weights < len(built.plan) < 2.6 * weights, "two bytes per weight"
