"""Tests of the TensorRT detector. ``test_emulated_detector.py`` contains the tests with engines that fail."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu.opening import EMULATED, open_model
from vision.config import DetectConfig, folder_of_model, load_model_spec, shipped_models
from vision.detect.detector import Detector
from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
from vision.engine.library import find_library
from vision.errors import DeviceError
from vision.gpu.cuda import Event, Graph, Stream, memory_info
from vision.gpu.memory import DeviceBuffer, HostBuffer, allocated, copy_to_device, device_frame_buffer
from vision.types import Detections, Frame, FrameBuffer, FrameMeta, PixelFormat

CLIP = Path(__file__).parents[2] / "configs" / "vtest.mp4"
OUTPUTS = {"scores": (3549, 80), "distances": (3549, 44)}
LONG_S = 120.0
FRAMES = 3 if EMULATED else 200

Image = NDArray[np.uint8]


def images(count: int) -> list[Image]:
    """Return the first `count` frames of the clip, each 768x576 pixels."""
    capture = cv2.VideoCapture(str(CLIP))
    try:
        return [np.asarray(capture.read()[1], np.uint8) for _ in range(count)]
    finally:
        capture.release()


HALF = dict.fromkeys(("images", *OUTPUTS), "float16")
"""Input and output types of nanodet-g-416 in fp16, with strong typing."""


def open_nanodet(dtypes: Mapping[str, str] | None = None, **settings: Any) -> Any:
    """Open nanodet-g-416. `dtypes` are the tensor types of the emulated engine. A real engine has its own types."""
    folder = folder_of_model("nanodet-g-416", shipped_models())
    detect = DetectConfig(
        **{"score_threshold": 0.25, "batches_in_flight": 2, "max_batch": 2 if EMULATED else 8, **settings}
    )
    return open_model(folder, load_model_spec(folder), detect, OUTPUTS, dtypes=dtypes)


@pytest.fixture(scope="module")
def detector(device: object) -> Iterator[Any]:
    with closing(open_nanodet()) as opened:
        yield opened


def frame(pixels: Image, pixel_format: PixelFormat = "bgr", size: tuple[int, int] = (768, 576)) -> Frame:
    return Frame.wrap(FrameMeta("clip", 0, 0, 0, 0, *size), pixels, pixel_format)


def in_buffer(buffer: FrameBuffer) -> Frame:
    """Return a frame of 768x576 pixels, which are in `buffer`."""
    return Frame(FrameMeta("clip", 0, 0, 0, 0, 768, 576), buffer)


def detect(detector: Detector, frames: Sequence[Frame], *, slot: int = 0) -> list[Detections]:
    found: list[Detections] = []
    for start in range(0, len(frames), detector.spec.max_batch):
        detector.submit(slot, frames[start : start + detector.spec.max_batch])
        found += detector.wait(slot, LONG_S)
    return found


def same(one: Sequence[Detections], other: Sequence[Detections]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.boxes_xyxy, b.boxes_xyxy)
        np.testing.assert_array_equal(a.scores, b.scores)
        np.testing.assert_array_equal(a.class_ids, b.class_ids)


def iou(boxes: NDArray[np.float32], box: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.asarray(shared / (areas + np.prod(box[2:] - box[:2]) - shared), np.float32)


def test_detections_match_onnx_runtime(detector: Any) -> None:
    """At least 97.5 % of the boxes with scores over 0.3 must match, with an IoU over 0.98 and scores within 0.01.

    Results can differ if two classes of a box, or two overlapping boxes, have nearly equal scores.
    """
    folder = folder_of_model("nanodet-g-416", shipped_models())
    spec = load_model_spec(folder)
    clip = [frame(image) for image in images(FRAMES)]
    found = detect(detector, clip)
    with closing(
        OnnxRuntimeDetector(folder / spec.file, spec, score=0.25, batches_in_flight=1, threads=None)
    ) as reference:
        wanted = detect(reference, clip)
    total = matched = close = 0
    for given, expected in zip(found, wanted, strict=True):
        for box, score, class_id in zip(expected.boxes_xyxy, expected.scores, expected.class_ids, strict=True):
            if score < 0.3:
                continue
            total += 1
            alike = (given.class_ids == class_id) & (iou(given.boxes_xyxy, box) >= 0.98)
            matched += bool(alike.any())
            close += bool((np.abs(given.scores[alike] - score) <= 0.01).any())
    print(f"{matched} of {total} boxes matched, {close} of them with a score within 0.01")
    assert total > 5 * FRAMES
    assert matched >= 0.975 * total
    assert close >= 0.99 * matched


@pytest.mark.skipif(
    not EMULATED,
    reason="needs an emulated engine; the real one is built like this, and compared with ONNX Runtime above",
)
def test_float16_input_and_outputs_give_the_same_detections(detector: Any) -> None:
    clip = [frame(image) for image in images(2)]
    with closing(open_nanodet(HALF, batches_in_flight=1, max_batch=1)) as half:
        for given, expected in zip(detect(half, clip), detect(detector, clip), strict=True):
            strong = expected.scores > 0.3
            np.testing.assert_allclose(given.scores[: strong.sum()], expected.scores[strong], atol=1e-3)
            np.testing.assert_array_equal(given.class_ids[: strong.sum()], expected.class_ids[strong])
            np.testing.assert_allclose(given.boxes_xyxy[: strong.sum()], expected.boxes_xyxy[strong], atol=0.5)


def test_detections_do_not_depend_on_slot_batch_size_or_buffer(detector: Any) -> None:
    clip = images(4)
    plain = detect(detector, [frame(image) for image in clip])
    locked = []
    for image in clip:
        buffer = detector.frame_buffer(576, 768, "bgr")
        buffer.require_host()[...] = image
        locked.append(in_buffer(buffer))
    on_gpu = []
    with Stream() as stream:
        for image in clip:
            buffer = device_frame_buffer(576, 768, "bgr")
            copy_to_device(buffer.device_address, image.ctypes.data, image.nbytes, stream)
            stream.synchronize()
            np.testing.assert_array_equal(buffer.read(), image)
            on_gpu.append(in_buffer(buffer))
    same(detect(detector, locked), plain)
    same(detect(detector, locked, slot=1), plain)
    same(detect(detector, on_gpu), plain)
    # for another batch size, TensorRT can choose other kernels, whose sums differ in the last bits
    single = [detect(detector, [each])[0] for each in locked]
    for one, other in zip(single, plain, strict=True):
        strong, other_strong = one.scores > 0.4, other.scores > 0.4
        np.testing.assert_allclose(one.boxes_xyxy[strong], other.boxes_xyxy[other_strong], atol=2)


@pytest.mark.parametrize("shape", [(576, 768, 1), (575, 768, 3), (576, 768, 4)])
def test_pixels_that_do_not_fit_the_metadata_are_refused(detector: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        detector.submit(0, [frame(np.zeros(shape, np.uint8))])
    assert "768x576" in str(caught.value)


def test_device_buffer_of_another_size_is_refused(detector: Any) -> None:
    with pytest.raises(ValueError) as caught:
        detector.submit(0, [in_buffer(device_frame_buffer(288, 768, "bgr"))])
    assert "768x288" in str(caught.value)


def test_running_detector_allocates_nothing(detector: Any) -> None:
    batch = []
    for _ in range(2):
        buffer = detector.frame_buffer(576, 768, "bgr")
        buffer.require_host()[...] = 0
        batch.append(in_buffer(buffer))
    detect(detector, batch)
    gc.collect()  # frame buffers of earlier tests
    calls, free, held = allocated().calls, memory_info()[0], detector.memory()
    assert min(held.device_bytes, held.page_locked_bytes) > 0
    for _ in range(2 if EMULATED else 500):
        for slot in (0, 1):
            detector.submit(slot, batch)
        for slot in (0, 1):
            detector.wait(slot, LONG_S)
    assert allocated().calls == calls
    assert detector.memory() == held
    assert memory_info()[0] >= free


def test_detections_without_graphs_are_the_same(detector: Any) -> None:
    clip = [frame(image) for image in images(2)]
    with closing(open_nanodet(graphs=False, batches_in_flight=1)) as eager:
        assert eager.spec.gpu is not None and not eager.spec.gpu.graphs
        same(detect(eager, clip), detect(detector, clip))


# ------------------------------------------------------------------------------------------------ vision.gpu.cuda


def test_failed_allocation_is_reported_with_its_purpose(device: object) -> None:
    for kind in (DeviceBuffer, HostBuffer):
        with pytest.raises(DeviceError) as caught:
            kind(1 << 50, "a test")
        assert "a test" in caught.value.args[0]
    with DeviceBuffer(1000, "a test") as after:  # the error did not persist
        assert after.address % 256 == 0


def test_arrays_keep_page_locked_memory_alive(device: object) -> None:
    before = allocated().host_bytes
    buffer = HostBuffer(100, "a test")
    array = buffer.array((10,), np.uint8, 5)
    buffer.close()
    buffer.close()
    with pytest.raises(ValueError):
        buffer.array((1,))
    array[:] = 7
    part = array[3:]
    del array
    assert allocated().host_bytes == before + 100
    assert part.sum() == 7 * 7
    del part
    assert allocated().host_bytes == before


def test_failed_capture_is_ended_and_reported(device: object) -> None:
    with Stream() as stream, DeviceBuffer(64, "a test") as buffer:
        calls = 0

        def waits_while_captured() -> None:
            nonlocal calls
            calls += 1
            buffer.fill(1, stream)
            if calls == 2:
                stream.synchronize()

        with pytest.raises(DeviceError) as caught:
            Graph.capture(stream, waits_while_captured, "a test")
        assert caught.value.code == "graph-not-captured"

        def fails() -> None:
            if calls == 3:
                raise ValueError("a mistake")

        calls = 3
        with pytest.raises(ValueError):
            Graph.capture(stream, fails, "a test")  # in the warm-up
        with Graph.capture(stream, lambda: buffer.fill(9, stream), "a test") as graph, Event() as done:
            buffer.write(np.zeros(64, np.uint8))
            graph.launch(stream)
            done.record(stream)
            done.synchronize()
            assert done.reached()
            assert buffer.read((64,), np.uint8).tolist() == [9] * 64


def test_buffers_are_not_overrun(device: object) -> None:
    with DeviceBuffer(16, "a test") as buffer:
        with pytest.raises(ValueError):
            buffer.write(np.zeros(17, np.uint8))
        with pytest.raises(ValueError):
            buffer.read((17,), np.uint8)


def test_unclosed_buffer_warns(device: object) -> None:
    with pytest.warns(ResourceWarning):
        DeviceBuffer(16, "a test")


def test_start_after_vision_build_compiles_nothing(device: object, tmp_path: Path) -> None:
    if EMULATED:
        pytest.skip("needs a real GPU")
    command = [sys.executable, "-m", "vision.cli.main", "build", "nanodet-g-416", "--max-batch", "1"]
    states, logs = [], []
    for _ in range(2):
        done = subprocess.run(
            command,
            env={**os.environ, "CACHE_DIRECTORY": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        states.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")})
        logs.append(done.stderr)
    assert len(states[0]) == 2
    assert states[0] == states[1], "what is there is not compiled again"
    if find_library().flavour == "tensorrt-rtx":
        assert list(tmp_path.rglob("*.kernels")), "the first start stores the compiled kernels of TensorRT-RTX"
        assert ["compiling" in log for log in logs] == [True, False]
