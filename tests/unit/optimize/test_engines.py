"""Tests that build engines of quantized and sparse models with TensorRT-RTX without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.engine_models import needs_rtx
from tests.unit.optimize.models import SPEC, cells_model, graph_of
from vision.config import DetectConfig
from vision.engine import library
from vision.engine.build import BuildOptions, Built, build_engine
from vision.engine.build_plan import Precision, resolve
from vision.engine.library import GpuDescription
from vision.errors import ModelError
from vision.optimize.onnx_graph import Graph
from vision.optimize.quantize import quantize, quantized_inputs
from vision.optimize.sparsity import sparsify

pytestmark = [needs_rtx, pytest.mark.engine]

AMPERE = GpuDescription("NVIDIA RTX A4000", (8, 6))


def build(graph: Graph, precision: Precision, *, sparse: bool = False) -> Built:
    plan = replace(resolve(DetectConfig(precision=precision, max_batch=2), SPEC), sparse=sparse)
    return build_engine(graph.serialized(), SPEC, plan, AMPERE, BuildOptions(ahead_of_time=True))


@pytest.mark.parametrize("sparse", [False, True])
def test_quantized_model_is_parsed_and_built(tmp_path: Path, sparse: bool) -> None:
    """TensorRT-RTX before 1.7 parses int8 convolutions, but has no kernels for them."""
    graph = graph_of(cells_model(), tmp_path)
    graph = sparsify(graph) if sparse else graph
    made = quantize(graph, dict.fromkeys(quantized_inputs(graph), 1.0))
    if library.find_library().version.startswith(("1.4", "1.6")):
        with pytest.raises(ModelError) as caught:
            build(made, "int8", sparse=sparse)
        assert caught.value.code == "build-failed", "the parser accepts the model"
        return
    assert build(made, "int8", sparse=sparse).plan


def test_model_with_kept_layers_and_a_sparse_model_are_built(tmp_path: Path) -> None:
    graph = graph_of(cells_model(), tmp_path)
    assert build(sparsify(graph), "fp16", sparse=True).plan
