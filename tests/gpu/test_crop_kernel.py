"""Comparison of ``crops.cu`` with `tests.crop_reference`, and with the crops of the CPU back-end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import tiny_models
from tests.crop_reference import crop_levels, crop_tensor
from tests.gpu.launching import Bench
from vision.config import load_classifier_spec
from vision.config.model_spec import CropSpec
from vision.detect.onnxruntime.classifier import OnnxRuntimeClassifier
from vision.detect.reference.classifier import Box
from vision.detect.tensorrt.crop_kernel import CropProgram
from vision.detect.tensorrt.kernels import FrameLayout, describe_normalization
from vision.types import Frame, FrameMeta, PixelFormat, YuvEncoding, frame_shape

FORMATS: tuple[PixelFormat, ...] = ("bgr", "bgrx", "nv12", "i420")
HEIGHT, WIDTH = 120, 160
BOXES: tuple[Box, ...] = (
    (0, 0, WIDTH, HEIGHT),
    (0, 0, 1, 1),
    (WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT),
    (5, 7, 21, 31),  # as large as the input
    (3, 5, 8, 9),  # is enlarged
    (10, 20, 20, 119),  # shrinks along one axis only
    (11, 13, 92, 101),
    (20, 20, 52, 68),  # exactly twice the input
)


def noise(pixel_format: PixelFormat, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, frame_shape(HEIGHT, WIDTH, pixel_format), np.uint8)


def cut(
    device: Any, spec: CropSpec, pixels: NDArray[np.uint8], layout: FrameLayout, box: Box, *, dtype: str = "float32"
) -> NDArray[Any]:
    """Cut `box` out of a frame with the kernel. Return the tensor (3, H, W) of type `dtype`."""
    program = CropProgram(spec, dtype)
    with Bench(device) as bench:
        shape = (3, spec.height, spec.width)
        tensor = bench.buffer(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        kernel = bench.module(program.file, program.definitions).kernel("cut")
        described = program.describe(layout, bench.put(pixels), box)
        normalization = describe_normalization(spec)
        launch = kernel.bind(program.grid, program.block, described, tensor.address, normalization)
        launch.enqueue(bench.stream)
        bench.stream.synchronize()
        return tensor.read(shape, dtype)


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("pixel_format", FORMATS)
def test_crop_equals_the_reference(device: Any, pixel_format: PixelFormat, fit: Any) -> None:
    spec = CropSpec(width=16, height=24, fit=fit, fill=7)
    pixels = noise(pixel_format)
    for box in BOXES:
        given = cut(device, spec, pixels, FrameLayout(HEIGHT, WIDTH, pixel_format), box)
        np.testing.assert_array_equal(given, crop_tensor(crop_levels(pixels, pixel_format, box, spec), spec), str(box))


@pytest.mark.parametrize("encoding", ["bt601-full", "bt709", "bt709-full"])
def test_each_color_encoding_equals_the_reference(device: Any, encoding: YuvEncoding) -> None:
    spec, pixels = CropSpec(width=16, height=24), noise("nv12")
    for box in BOXES:
        given = cut(device, spec, pixels, FrameLayout(HEIGHT, WIDTH, "nv12", encoding), box)
        expected = crop_tensor(crop_levels(pixels, "nv12", box, spec, encoding), spec)
        np.testing.assert_array_equal(given, expected, str(box))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("color", ["bgr", "rgb"])
def test_tensor_is_normalized(device: Any, color: Any, dtype: str) -> None:
    spec = CropSpec(
        width=17, height=9, color=color, scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), fit="letterbox"
    )
    pixels = noise("bgr")
    for box in BOXES:
        given = cut(device, spec, pixels, FrameLayout(HEIGHT, WIDTH, "bgr"), box, dtype=dtype)
        expected = crop_tensor(crop_levels(pixels, "bgr", box, spec), spec)
        np.testing.assert_allclose(given, expected, atol=2e-6 if dtype == "float32" else 2e-3)


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize(
    ("pixel_format", "encoding"), [*((name, "bt601") for name in FORMATS), ("nv12", "bt709"), ("i420", "bt601-full")]
)
def test_crop_equals_that_of_the_cpu_within_one_level(
    device: Any, tmp_path: Path, pixel_format: PixelFormat, encoding: YuvEncoding, fit: str
) -> None:
    card = tiny_models.CLASSIFIER_CARD.replace("scale: 0.00392156862745098", f"color: bgr, fit: {fit}")
    (tmp_path / "model.yaml").write_text(card.replace("none", "softmax"))
    tiny_models.save_classifier(tmp_path / "paint.onnx")
    spec = load_classifier_spec(tmp_path)
    pixels = noise(pixel_format, 3)
    frame = Frame.wrap(FrameMeta("a", 0, 0, 0, 0, WIDTH, HEIGHT, yuv=encoding), pixels, pixel_format)
    classifier = OnnxRuntimeClassifier(tmp_path / "paint.onnx", spec)
    (out,) = classifier.allocate(1)
    for box in BOXES:
        classifier.crop(frame, box, out)
        given = cut(device, spec.input, pixels, FrameLayout(HEIGHT, WIDTH, pixel_format, encoding), box)
        assert np.abs(given.transpose(1, 2, 0) - out.astype(np.float32)).max() <= 1, str(box)
    classifier.close()
