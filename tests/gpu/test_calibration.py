"""Tests of calibration with TensorRT 10 on a real GPU, and of the GPU memory that calibration uses."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.opening import EMULATED
from tests.unit.optimize.models import SPEC, cell_images, save_cells, save_images
from vision.engine.calibrators import device_memory, require_calibrators
from vision.errors import ModelError
from vision.gpu.memory import allocated
from vision.optimize.calibration import Calibration
from vision.optimize.frames import frames_of_images
from vision.optimize.onnx_graph import open_graph


def test_batches_are_copied_to_the_same_gpu_memory(device: Any) -> None:
    from cuda.bindings import runtime

    first = {"images": np.full((2, 3, 4, 5), 1.0, np.float32), "size": np.full((2, 2), 7.0, np.float32)}
    before = allocated()
    with ExitStack() as resources:
        upload = device_memory(first, resources)
        addresses = [upload({name: array * factor for name, array in first.items()}) for factor in (1, 2, 3)]
        assert addresses[0] == addresses[1] == addresses[2]
        for name, array in first.items():
            found = np.empty_like(array)
            kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            runtime.cudaMemcpy(found.ctypes.data, addresses[0][name], found.nbytes, kind)
            np.testing.assert_array_equal(found, array * 3)
    assert allocated().device_bytes == before.device_bytes


@pytest.mark.skipif(EMULATED, reason="needs a real GPU")
@pytest.mark.parametrize("algorithm", ["minmax", "entropy"])
def test_ranges_of_tensorrt_are_close_to_those_of_onnxruntime(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: Any
) -> None:
    try:
        require_calibrators()
    except ModelError as error:
        pytest.skip(f"needs a real GPU with TensorRT 10: {error.args[0]}")
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    (tmp_path / "frames").mkdir()
    images = save_images(tmp_path / "images", cell_images(16))
    frames = frames_of_images(images, tmp_path / "frames", SPEC.input, 16, lambda _: None)
    graph = open_graph(save_cells(tmp_path / "cells") / SPEC.file)
    given = Calibration(graph, SPEC, frames, route="tensorrt").thresholds(algorithm, lambda _: None)
    largest = Calibration(graph, SPEC, frames).thresholds("minmax", lambda _: None)
    assert given.keys() == largest.keys()
    for name, threshold in given.items():
        assert 0 < threshold <= largest[name] * 1.02, name
        if algorithm == "minmax":
            assert threshold == pytest.approx(largest[name], rel=0.02), name
