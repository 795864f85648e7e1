"""Tests of the second model on the GPU. On the emulated GPU, ONNX Runtime replaces TensorRT."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import tiny_models
from tests.gpu.opening import EMULATED
from vision.config import CascadeConfig, ClassifierSpec, load_classifier_spec
from vision.detect.onnxruntime.classifier import OnnxRuntimeClassifier
from vision.detect.tensorrt.classifier import TensorRTClassifier, build_classifier, open_tensorrt_classifier
from vision.errors import Closed, DeviceError, ModelError
from vision.gpu.cuda import open_device
from vision.gpu.memory import allocated, device_frame_buffer, page_locked_frame_buffer
from vision.stages.secondary_model import CascadeStage
from vision.types import Frame, FrameBuffer, FrameMeta, PixelFormat, Result, Timing, Tracks, frame_shape

HEIGHT, WIDTH = 96, 128
FORMATS: tuple[PixelFormat, ...] = ("bgr", "bgrx", "nv12", "i420")
BOXES = ((0, 0, WIDTH, HEIGHT), (10, 20, 26, 44), (3, 5, 9, 13), (30, 40, 110, 90), (90, 60, 128, 96))


def save(folder: Path, *changes: tuple[str, str], **options: Any) -> ClassifierSpec:
    card = tiny_models.CLASSIFIER_CARD
    for old, new in changes:
        assert old in card
        card = card.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / "model.yaml").write_text(card)
    tiny_models.save_classifier(folder / "paint.onnx", **options)
    return load_classifier_spec(folder)


def opened(folder: Path, spec: ClassifierSpec, *, batches: tuple[int, int] = (1, 64), **config: Any) -> Any:
    """Open the classifier in `folder` on the GPU. `batches` is the range of batch sizes of an emulated engine."""
    cascade = CascadeConfig.model_validate({"model": "paint", "precision": "fp32"} | config)
    if not EMULATED:
        return open_tensorrt_classifier(folder, spec, cascade)
    from tests.emulator.engine import EmulatedEngine, onnx_compute

    sides = (spec.input.height, spec.input.width)
    dtypes = {"images": "float16"} if cascade.precision == "fp16" else None
    with contextlib.ExitStack() as resources:
        compute = onnx_compute(str(folder / spec.file))
        engine: Any = resources.enter_context(
            EmulatedEngine(compute, sides, {"scores": (3,)}, batches=batches, dtypes=dtypes)
        )
        return build_classifier(open_device(), engine, spec, cascade, resources)


@pytest.fixture
def paint(tmp_path: Path) -> Iterator[TensorRTClassifier]:
    with closing(opened(tmp_path, save(tmp_path), max_batch=4)) as classifier:
        yield classifier


def noise(pixel_format: PixelFormat) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, frame_shape(HEIGHT, WIDTH, pixel_format), np.uint8)


def frame_in(buffer: FrameBuffer) -> Frame:
    return Frame(FrameMeta("gate", 0, 0, 0, 0, buffer.width_px, buffer.height_px), buffer)


def on_gpu(pixels: NDArray[np.uint8], pixel_format: PixelFormat, memory: str) -> FrameBuffer:
    """Return a buffer with these pixels. `memory` is the kind of memory: ordinary, gpu, shared, or page-locked."""
    from cuda.bindings import runtime

    if memory == "ordinary":
        return FrameBuffer.wrap(pixels, pixel_format)
    if memory == "gpu":
        buffer = device_frame_buffer(HEIGHT, WIDTH, pixel_format)
    else:
        buffer = page_locked_frame_buffer(HEIGHT, WIDTH, pixel_format, in_place=memory == "shared")
        buffer.require_host()[:] = pixels
    kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    if memory != "shared":
        runtime.cudaMemcpy(buffer.device_address, pixels.ctypes.data, pixels.nbytes, kind)
    return buffer


@pytest.mark.parametrize("memory", ["ordinary", "gpu", "page-locked", "shared"])
@pytest.mark.parametrize("pixel_format", FORMATS)
def test_scores_equal_those_of_onnxruntime(tmp_path: Path, device: Any, pixel_format: PixelFormat, memory: str) -> None:
    spec = save(tmp_path, ("none", "softmax"), gain=4.0)
    frame = frame_in(on_gpu(noise(pixel_format), pixel_format, memory))
    with closing(OnnxRuntimeClassifier(tmp_path / spec.file, spec)) as reference:
        crops = reference.allocate(len(BOXES))
        for box, crop in zip(BOXES, crops, strict=True):
            reference.crop(Frame.wrap(frame.meta, noise(pixel_format), pixel_format), box, crop)
        expected = reference.classify(crops)
    with closing(opened(tmp_path, spec)) as classifier:
        on_device = classifier.allocate(len(BOXES))
        for box, crop in zip(BOXES, on_device, strict=True):
            classifier.crop(frame, box, crop)
        np.testing.assert_allclose(classifier.classify(on_device), expected, atol=4 / 255)
        classifier.wait_until_read()
        assert not classifier.is_reading()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_each_number_of_crops_is_classified(tmp_path: Path, device: Any, precision: str) -> None:
    with closing(opened(tmp_path, save(tmp_path), max_batch=6, precision=precision)) as classifier:
        crops = classifier.allocate(6)
        frames = [
            np.full((HEIGHT, WIDTH, 3), 40 * level, np.uint8) for level in range(6)
        ]  # until the GPU has read them
        for pixels, crop in zip(frames, crops, strict=True):
            classifier.crop(frame_in(FrameBuffer.wrap(pixels, "bgr")), (0, 0, 50, 50), crop)
        for count in (1, 2, 3, 5, 6):
            scores = classifier.classify(crops[:count])
            np.testing.assert_allclose(scores[:, 0], np.arange(count) * 40 / 255, atol=1e-3)
        assert scores.dtype == np.float32
        for wrong in ([], [*crops, crops[0]]):
            with pytest.raises(ValueError):
                classifier.classify(wrong)


def test_fixed_batch_size_of_the_model_is_used(tmp_path: Path, device: Any) -> None:
    spec = save(tmp_path, batch=3)
    with closing(opened(tmp_path, spec, batches=(3, 3), max_batch=8)) as classifier:
        crops = classifier.allocate(8)
        pixels = np.full((HEIGHT, WIDTH, 3), 51, np.uint8)
        for crop in crops:
            classifier.crop(frame_in(FrameBuffer.wrap(pixels, "bgr")), (0, 0, 50, 50), crop)
        np.testing.assert_allclose(classifier.classify(crops), np.full((8, 3), 0.2), atol=1e-4)


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, WIDTH + 1, 5), (5, 5, 4, 9)])
def test_part_outside_the_frame_is_refused(
    paint: TensorRTClassifier, device: Any, box: tuple[int, int, int, int]
) -> None:
    (crop,) = paint.allocate(1)
    with pytest.raises(ValueError):
        paint.crop(frame_in(FrameBuffer.wrap(noise("bgr"), "bgr")), box, crop)


@pytest.mark.parametrize(
    ("changes", "options", "code"),
    [
        ([("[reddish, greenish, bluish]", "[a, b]")], {}, "output-mismatch"),
        ([("scale: 0.00392156862745098", "mean: [-9.0, 0.0, 0.0]")], {}, "scores-out-of-range"),
        ([("none", "softmax")], {"gain": float("inf")}, "not-finite"),
    ],
)
def test_model_that_contradicts_its_spec_is_refused(
    tmp_path: Path, device: Any, changes: list[tuple[str, str]], options: dict[str, Any], code: str
) -> None:
    spec = save(tmp_path, *changes, **options)
    with pytest.raises(ModelError) as caught:
        opened(tmp_path, spec)
    assert caught.value.code == code


def test_closing_releases_all_memory(tmp_path: Path, device: Any) -> None:
    gc.collect()  # tracebacks of other tests hold buffers
    before = allocated()
    classifier = opened(tmp_path, save(tmp_path))
    (crop,) = classifier.allocate(1)
    frame = frame_in(FrameBuffer.wrap(noise("bgr"), "bgr"))
    classifier.crop(frame, (0, 0, 9, 9), crop)
    classifier.close()
    classifier.close()
    after = allocated()
    assert (after.device_bytes, after.host_bytes) == (before.device_bytes, before.host_bytes)
    with pytest.raises(Closed):
        classifier.classify([crop])
    with pytest.raises(Closed):
        classifier.crop(frame, (0, 0, 9, 9), crop)


needs_emulator = pytest.mark.skipif(not EMULATED, reason="needs a driver that can be told what to say")


@needs_emulator
def test_frame_counts_as_read_only_after_the_kernel(paint: TensorRTClassifier) -> None:
    from cuda.bindings import runtime

    (crop,) = paint.allocate(1)
    go = threading.Event()
    runtime.emulate(paint._cuts.handle, partial(go.wait, 60))
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    buffer = on_gpu(pixels, "bgr", "page-locked")
    paint.crop(frame_in(buffer), (0, 0, 50, 50), crop)
    assert paint.is_reading()
    go.set()
    paint.wait_until_read()
    assert not paint.is_reading()
    np.testing.assert_allclose(paint.classify([crop]), [[1, 1, 1]], atol=1e-5)


@needs_emulator
def test_lost_gpu_is_reported(paint: TensorRTClassifier) -> None:
    from cuda.bindings.device import gpu

    (crop,) = paint.allocate(1)
    frame = frame_in(on_gpu(noise("bgr"), "bgr", "page-locked"))
    paint.crop(frame, (0, 0, 9, 9), crop)
    paint.classify([crop])
    try:
        gpu.fault = 700
        with pytest.raises(DeviceError):
            paint.classify([crop])
        with pytest.raises(DeviceError):
            paint.wait_until_read()
    finally:
        gpu.fault = 0


def result_of(frame: Frame, boxes: NDArray[np.float32]) -> Result:
    count = len(boxes)
    tracks = Tracks(
        boxes_xyxy=boxes,
        scores=np.full(count, 0.9, np.float32),
        class_ids=np.zeros(count, np.int32),
        track_ids=np.arange(1, count + 1),
        age_ms=np.zeros(count, np.int64),
    )
    return Result(frame.meta, tracks, Timing(0, 0, 0))


def test_objects_of_several_cameras_get_their_attributes(tmp_path: Path, device: Any) -> None:
    """Objects of all cameras share batches, even if the cameras' frames are in different kinds of memory."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, :64], pixels[:, 64:] = (0, 0, 255), (255, 0, 0)
    boxes = np.array([[4, 4, 44, 84], [70, 4, 120, 84]], np.float32)
    config = CascadeConfig.model_validate({"model": "paint", "precision": "fp32", "min_size_px": 8, "max_batch": 4})
    classifier = opened(tmp_path, save(tmp_path), max_batch=4)
    with closing(CascadeStage(classifier, config, ("person",), lossless=True)) as stage:
        for camera, memory in (("north", "page-locked"), ("south", "gpu"), ("east", "shared")):
            buffer = on_gpu(pixels, "bgr", memory)
            frame = Frame(FrameMeta(camera, 0, 0, 0, 0, WIDTH, HEIGHT), buffer)
            result = stage.with_frame(result_of(frame, boxes), frame)
            names = {track: [each.class_name for each in found] for track, found in result.attributes.items()}
            assert names == {1: ["reddish"], 2: ["bluish"]}, camera
        assert stage.counters()["cascade.looked"] == 6
