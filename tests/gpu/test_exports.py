"""Tests of the output layouts of public exporters on the GPU. Expected results come from ONNX Runtime."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.detector_outputs import EXPORTS, HEIGHT, WIDTH, WITHOUT_BATCH, as_type
from tests.gpu.opening import EMULATED, open_model
from tests.shape_outputs import FRAMES, SHAPED
from tests.tiny_models import save_typed_model
from tests.unit.detect.test_exports import CONSTANTS, assert_found, frame, save_without_batch, spec_of
from tests.unit.detect.test_shapes import assert_found as assert_shapes_found
from tests.unit.detect.test_shapes import frame as shaped_frame
from tests.unit.detect.test_shapes import spec_of as shaped_spec
from vision.config import DetectConfig, ModelSpec
from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
from vision.types import Detections

# In the emulator, each export takes seconds to compile. There, test_postprocess_kernels.py runs the other kernels.
CHOSEN = ("picodet, eight outputs without names", "ids without a name") if EMULATED else tuple(EXPORTS)
CHOSEN_SHAPES = ("pose, yolov8", "faces, yunet", "obb, yolov8", "segment, end-to-end") if EMULATED else tuple(SHAPED)
FORMATS = [(dtype, last) for dtype in ("float32", "float16", "uint8") for last in (False, True)]
CHOSEN_FORMATS = [("float16", True), ("uint8", True), ("uint8", False)] if EMULATED else FORMATS


def detect(folder: Path, spec: ModelSpec, name: str, **engine: Any) -> tuple[Detections, list[Detections], Any]:
    """Return the objects that ONNX Runtime finds in a frame, those that the GPU finds in a batch, and the counters."""
    outputs = as_type(EXPORTS[name], np.float32)
    config = DetectConfig(score_threshold=0.3, batches_in_flight=1, max_batch=2, precision="fp32")
    with closing(OnnxRuntimeDetector(folder / spec.file, spec, score=0.3, batches_in_flight=1, threads=1)) as detector:
        detector.submit(0, [frame()])
        (wanted,) = detector.wait(0, 60)
    shapes = {each: value.shape for each, value in outputs.items()}
    types = {each: str(value.dtype) for each, value in outputs.items() if value.dtype != np.float32}
    engine["dtypes"] = {**types, **engine.get("dtypes", {})}
    with closing(open_model(folder, spec, config, shapes, **engine)) as gpu:
        gpu.submit(0, [frame(), frame()])
        found = gpu.wait(0, 60)
        return wanted, found, gpu.counters()


def assert_same(wanted: Detections, found: list[Detections]) -> None:
    for each in found:
        assert each.class_ids.tolist() == wanted.class_ids.tolist()
        np.testing.assert_allclose(each.boxes_xyxy, wanted.boxes_xyxy, atol=0.02)
        np.testing.assert_allclose(each.scores, wanted.scores, rtol=1e-3)


@pytest.mark.parametrize("name", CHOSEN)
def test_export_finds_the_known_objects_on_the_gpu(device: object, name: str, tmp_path: Path) -> None:
    export = EXPORTS[name]
    spec = spec_of(export)
    save_typed_model(tmp_path / spec.file, as_type(export, np.float32), sides=(HEIGHT, WIDTH))
    wanted, found, counters = detect(tmp_path, spec, name)
    assert_same(wanted, found)
    for each in found:
        assert_found(each, export, rtol=1e-3)
    assert counters["detector.graph_runs"] + counters["detector.step_runs"] == 1
    assert counters.get("detector.unnamed_classes", 0) == 2 * export.unnamed


@pytest.mark.parametrize("name", CHOSEN_SHAPES)
def test_layout_finds_the_known_shapes_on_the_gpu(device: object, name: str, tmp_path: Path) -> None:
    shaped = SHAPED[name]
    spec = shaped_spec(shaped.head)
    save_typed_model(tmp_path / spec.file, shaped.outputs, sides=(HEIGHT, WIDTH))
    shapes = {each: value.shape for each, value in shaped.outputs.items()}
    types = {each: str(value.dtype) for each, value in shaped.outputs.items() if value.dtype != np.float32}
    config = DetectConfig(
        score_threshold=0.3,
        batches_in_flight=1,
        max_batch=4,
        precision="fp16" if "float16" in types.values() else "fp32",  # TensorRT refuses fp32 for float16
    )
    with closing(open_model(tmp_path, spec, config, shapes, dtypes=types)) as gpu:
        for _ in range(2):
            gpu.submit(0, [shaped_frame(size) for size in FRAMES.values()])
            for found, size in zip(gpu.wait(0, 60), FRAMES.values(), strict=True):
                assert_shapes_found(found, shaped, size, atol=1e-3)


@pytest.mark.parametrize(("dtype", "channels_last"), CHOSEN_FORMATS)
def test_input_format_of_the_file_is_used_on_the_gpu(
    device: object, dtype: str, channels_last: bool, tmp_path: Path
) -> None:
    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
    spec = spec_of(EXPORTS["yolov8"])
    outputs = as_type(EXPORTS["yolov8"], np.float32)
    path, sides = tmp_path / spec.file, (HEIGHT, WIDTH)
    save_typed_model(path, outputs, sides=sides, dtype=types[dtype], channels_last=channels_last)
    wanted, found, _ = detect(tmp_path, spec, "yolov8", dtypes={"images": dtype}, channels_last=channels_last)
    assert_same(wanted, found)
    assert_found(found[1], EXPORTS["yolov8"], rtol=1e-3)


@pytest.mark.parametrize("kind", ["int64"] if EMULATED else ["float32", "int64"])
def test_constant_input_is_filled_on_the_gpu(device: object, kind: str, tmp_path: Path) -> None:
    values, name = CONSTANTS["orig_target_sizes"]
    spec, outputs = spec_of(EXPORTS[name]), as_type(EXPORTS[name], np.float32)
    outputs["boxes"] = (outputs["boxes"] / [*values, *values]).astype(np.float32)
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    constants = {"orig_target_sizes": (types[kind], ("batch", 2))}
    save_typed_model(tmp_path / spec.file, outputs, sides=(HEIGHT, WIDTH), constants=constants)
    wanted, found, _ = detect(
        tmp_path, spec, name, dtypes={"orig_target_sizes": kind}, constants={"orig_target_sizes": 2}
    )
    assert_same(wanted, found)
    assert_found(found[1], EXPORTS[name], rtol=1e-3)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", ["torchvision"] if EMULATED else WITHOUT_BATCH)
def test_outputs_without_a_batch_axis_are_of_the_only_frame_on_the_gpu(
    device: object, name: str, free: bool, tmp_path: Path
) -> None:
    export = WITHOUT_BATCH[name]
    spec = spec_of(export)
    shapes = save_without_batch(tmp_path / spec.file, name, free=free)
    config = DetectConfig(score_threshold=0.3, batches_in_flight=1, max_batch=1, precision="fp32")
    form = {"batches": (1, 1), "dtypes": {"labels_flat": "int64"}, "without_batch": tuple(shapes)}
    with closing(open_model(tmp_path, spec, config, shapes, **form)) as gpu:
        for _ in range(2):
            gpu.submit(0, [frame()])
            assert_found(gpu.wait(0, 60)[0], export, rtol=1e-3)
