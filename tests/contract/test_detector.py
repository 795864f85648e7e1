"""Contract that every `Detector` fulfills. Add a new detector to `DETECTORS`.

Each frame has one pure color. The detector must find one object: the whole frame, with the class of this color.
"""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import tiny_models
from vision.benchmark.frames import convert
from vision.config import DetectConfig, load_model_spec
from vision.detect.detector import Detector
from vision.detect.fake import FakeDetector
from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
from vision.drawing.test_pattern import FAKE_COLORS
from vision.errors import Closed, DeviceError, DeviceMissing
from vision.types import Detections, Frame, FrameMeta, PixelFormat, frame_shape

LONG_S = 60.0  # for machines that are busy with something else


@dataclass(frozen=True)
class Kind:
    """One kind of detector. Each of its functions opens a new detector with two slots."""

    open: Callable[[Path], Detector]  # batches of up to 4
    open_slow: Callable[[Path], Detector]  # a batch takes some 0.1 s
    open_failing: (
        Callable[[Path], Detector] | None
    )  # the first batch fails if it shows red; None if no batch can be made to fail
    goes_on: bool = True  # whether the detector works after such a batch


def _onnxruntime(folder: Path, *, slow: bool = False, fragile: bool = False) -> Detector:
    (folder / "model.yaml").write_text(tiny_models.COLOUR_CARD)
    tiny_models.save_colour_model(folder / "colours.onnx", slow=slow, fragile=fragile)
    spec = load_model_spec(folder)
    return OnnxRuntimeDetector(folder / spec.file, spec, score=0.35, batches_in_flight=2, threads=2, max_batch=4)


DETECTORS = {
    "fake": Kind(
        open=lambda _: FakeDetector(batches_in_flight=2, max_batch=4),
        open_slow=lambda _: FakeDetector(batches_in_flight=2, max_batch=4, service_ns=100_000_000),
        open_failing=lambda _: FakeDetector(batches_in_flight=2, max_batch=4, fail_at=0),
    ),
    "onnxruntime": Kind(
        open=_onnxruntime,
        open_slow=lambda folder: _onnxruntime(folder, slow=True),
        open_failing=lambda folder: _onnxruntime(folder, fragile=True),
    ),
}


def _tensorrt() -> Kind | None:
    """Return the kind of the TensorRT detector, on a real or emulated GPU, or None if neither exists."""
    try:
        from tests.gpu.opening import EMULATED, SlowDetector, open_model
        from vision.gpu.cuda import open_device

        open_device()
    except DeviceMissing:
        return None

    def open_one(folder: Path) -> Any:
        (folder / "model.yaml").write_text(tiny_models.COLOUR_CARD)
        tiny_models.save_colour_model(folder / "colours.onnx")
        detect = DetectConfig(precision="fp32", batches_in_flight=2, max_batch=4)
        return open_model(folder, load_model_spec(folder), detect, {"output": (7, 1)})

    return Kind(
        open=open_one,
        open_slow=lambda folder: SlowDetector(open_one(folder), 0.1),
        open_failing=(lambda folder: _LosesItsGpu(open_one(folder))) if EMULATED else None,
        goes_on=False,
    )


class _LosesItsGpu:
    """Detector whose emulated GPU is lost in the first batch. The GPU works again in later tests."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self._lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        if self._lost:
            self._detector.submit(slot, frames)
            return
        from cuda.bindings import device, runtime

        def lose() -> None:
            raise device.Failed(runtime.cudaError_t.cudaErrorIllegalAddress)

        stream = self._detector.parts()[0][slot].stream.handle
        resume = runtime.hold(stream)  # until all of the batch is queued behind it
        runtime.emulate(stream, lose)
        self._detector.submit(slot, frames)
        self._lost = True
        resume()

    def close(self) -> None:
        from cuda.bindings.device import gpu

        self._detector.close()
        gpu.fault = 0


if (_kind := _tensorrt()) is not None:
    DETECTORS["tensorrt"] = _kind


@pytest.fixture(params=DETECTORS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return DETECTORS[request.param]


@pytest.fixture
def detector(kind: Kind, tmp_path: Path) -> Iterator[Detector]:
    with closing(kind.open(tmp_path)) as opened:
        yield opened


@pytest.fixture
def slow(kind: Kind, tmp_path: Path) -> Iterator[Detector]:
    with closing(kind.open_slow(tmp_path)) as opened:
        yield opened


def image(color: int, width_px: int, height_px: int, pixel_format: PixelFormat) -> NDArray[np.uint8]:
    """Return a frame whose pixels all have one color."""
    return convert(np.full((height_px, width_px, 3), FAKE_COLORS[color], np.uint8), pixel_format)


def frame(
    detector: Detector, color: int, width_px: int = 64, height_px: int = 48, pixel_format: PixelFormat = "bgr"
) -> Frame:
    """Return a frame in a buffer of the detector, as the thread of a camera does."""
    buffer = detector.frame_buffer(height_px, width_px, pixel_format)
    buffer.require_host()[...] = image(color, width_px, height_px, pixel_format)
    return Frame(FrameMeta("cam", 0, 0, 0, 0, width_px, height_px), buffer)


def foreign_frame(color: int) -> Frame:
    """Return a frame in memory that does not belong to the detector."""
    return Frame.wrap(FrameMeta("cam", 0, 0, 0, 0, 64, 48), image(color, 64, 48, "bgr"), "bgr")


def assert_finds(detections: Detections, color: int, width_px: int = 64, height_px: int = 48) -> None:
    assert detections.class_ids.tolist() == [color]
    assert detections.scores[0] == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(detections.boxes_xyxy, [[0, 0, width_px, height_px]])


def test_spec_describes_the_detector(detector: Detector) -> None:
    assert detector.spec.name
    assert detector.spec.class_names == ("red", "green", "blue")
    assert detector.spec.batches_in_flight == 2
    assert 1 <= detector.spec.parallel <= detector.spec.batches_in_flight
    assert detector.spec.max_batch == 4
    assert {"bgr", "bgrx"} <= set(detector.spec.pixel_formats) <= {"bgr", "bgrx", "nv12", "i420"}


@pytest.mark.parametrize("pixel_format", ["bgr", "bgrx", "nv12", "i420"])
def test_buffers_are_writable_contiguous_and_outlive_the_detector(
    detector: Detector, pixel_format: PixelFormat
) -> None:
    buffer = detector.frame_buffer(48, 64, pixel_format).require_host()
    assert buffer.shape == frame_shape(48, 64, pixel_format)
    assert buffer.dtype == np.uint8
    assert buffer.flags.c_contiguous
    detector.close()
    buffer[...] = 7
    assert buffer.sum() == 7 * buffer.size


@pytest.mark.parametrize("pixel_format", ["nv12", "i420"])
def test_yuv_buffers_have_even_sides(detector: Detector, pixel_format: PixelFormat) -> None:
    with pytest.raises(ValueError):
        detector.frame_buffer(47, 64, pixel_format)


def test_results_have_the_types_of_their_fields(detector: Detector) -> None:
    detector.submit(0, [frame(detector, 1)])
    (detections,) = detector.wait(0, LONG_S)
    assert detections.boxes_xyxy.dtype == np.float32
    assert detections.boxes_xyxy.shape == (1, 4)
    assert detections.scores.dtype == np.float32
    assert detections.class_ids.dtype == np.int32
    assert detections.truncated_candidates == 0


def test_results_belong_to_their_slot(detector: Detector) -> None:
    for round_ in range(30):
        colors = round_ % 3, (round_ + 1) % 3
        for slot, color in enumerate(colors):
            detector.submit(slot, [frame(detector, color)])
        for slot in (0, 1) if round_ % 2 else (1, 0):
            (detections,) = detector.wait(slot, LONG_S)
            assert_finds(detections, colors[slot])


@pytest.mark.parametrize("color", [0, 1, 2])
def test_every_pixel_format_gives_the_same_detections(detector: Detector, color: int) -> None:
    for pixel_format in detector.spec.pixel_formats:
        detector.submit(0, [frame(detector, color, pixel_format=pixel_format)])
        (detections,) = detector.wait(0, LONG_S)
        assert_finds(detections, color)


def test_batch_of_mixed_sizes_and_formats_keeps_the_order_of_its_frames(detector: Detector) -> None:
    formats = detector.spec.pixel_formats
    frames = [
        frame(detector, 0, 1, 1, "bgr"),
        frame(detector, 1, 640, 360, formats[0]),
        frame(detector, 2, 50, 400, formats[1]),
        frame(detector, 0, 33, 31, "bgrx"),
    ]
    detector.submit(1, frames)
    detections = detector.wait(1, LONG_S)
    assert len(detections) == len(frames)
    for result, given in zip(detections, frames, strict=True):
        assert_finds(result, (0, 1, 2, 0)[frames.index(given)], given.meta.width_px, given.meta.height_px)


@pytest.mark.parametrize(("width_px", "height_px"), [(1, 1), (1, 700), (700, 1), (7680, 4320)])
def test_extreme_frame_sizes_are_detected(detector: Detector, width_px: int, height_px: int) -> None:
    detector.submit(0, [frame(detector, 2, width_px, height_px)])
    (detections,) = detector.wait(0, LONG_S)
    assert_finds(detections, 2, width_px, height_px)


def test_smaller_batch_after_a_larger_one_has_only_its_own_results(detector: Detector) -> None:
    for size in (4, 1, 3, 2):
        detector.submit(0, [frame(detector, color % 3) for color in range(size)])
        detections = detector.wait(0, LONG_S)
        assert [result.class_ids.tolist() for result in detections] == [[color % 3] for color in range(size)]


def test_results_are_not_overwritten(detector: Detector) -> None:
    detector.submit(0, [frame(detector, 0), frame(detector, 1)])
    first = detector.wait(0, LONG_S)
    before = [(result.boxes_xyxy.copy(), result.scores.copy(), result.class_ids.copy()) for result in first]
    for _ in range(5):
        for slot in (0, 1):
            detector.submit(slot, [frame(detector, 2, 640, 480), frame(detector, 2, 32, 32)])
        for slot in (0, 1):
            detector.wait(slot, LONG_S)
    for result, (boxes, scores, class_ids) in zip(first, before, strict=True):
        np.testing.assert_array_equal(result.boxes_xyxy, boxes)
        np.testing.assert_array_equal(result.scores, scores)
        np.testing.assert_array_equal(result.class_ids, class_ids)


def test_buffers_may_be_rewritten_after_wait(detector: Detector) -> None:
    given = frame(detector, 0)
    for color in (0, 1, 2, 0):
        given.pixels[...] = image(color, 64, 48, "bgr")
        detector.submit(0, [given])
        (detections,) = detector.wait(0, LONG_S)
        assert_finds(detections, color)


def test_wait_lets_other_threads_run(slow: Detector) -> None:
    stop = threading.Event()
    steps = 0

    def count() -> None:
        nonlocal steps
        while not stop.is_set():
            steps += 1

    other = threading.Thread(target=count)
    other.start()
    try:
        slow.submit(0, [frame(slow, 0)])
        before = steps
        slow.wait(0, LONG_S)
        assert steps - before > 1000
    finally:
        stop.set()
        other.join()


def test_submit_returns_before_the_batch_is_done(slow: Detector) -> None:
    slow.submit(0, [frame(slow, 0)])
    slow.submit(1, [frame(slow, 1)])
    with pytest.raises(TimeoutError):
        slow.wait(0, 0.0)
    for slot in (0, 1):
        assert_finds(slow.wait(slot, LONG_S)[0], slot)


def test_slot_stays_submitted_after_a_timeout(slow: Detector) -> None:
    slow.submit(0, [frame(slow, 1)])
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        slow.wait(0, 0.01)
    assert time.monotonic() - began >= 0.01
    with pytest.raises(ValueError):
        slow.submit(0, [frame(slow, 2)])
    (detections,) = slow.wait(0, LONG_S)
    assert_finds(detections, 1)


@pytest.mark.parametrize("slot", [-1, 2, 1000])
def test_unknown_slot_is_refused(detector: Detector, slot: int) -> None:
    with pytest.raises(ValueError):
        detector.submit(slot, [frame(detector, 0)])
    with pytest.raises(ValueError):
        detector.wait(slot, 0.0)


@pytest.mark.parametrize("count", [0, 5])
def test_batch_size_out_of_range_is_refused(detector: Detector, count: int) -> None:
    with pytest.raises(ValueError):
        detector.submit(0, [frame(detector, 0)] * count)
    detector.submit(0, [frame(detector, 0)])  # the failed call has not taken the slot
    assert_finds(detector.wait(0, LONG_S)[0], 0)


def test_submitted_slot_refuses_a_second_batch(detector: Detector) -> None:
    detector.submit(0, [frame(detector, 0)])
    with pytest.raises(ValueError):
        detector.submit(0, [frame(detector, 1)])
    assert_finds(detector.wait(0, LONG_S)[0], 0)


def test_wait_without_submit_is_refused(detector: Detector) -> None:
    with pytest.raises(ValueError):
        detector.wait(0, 0.0)
    detector.submit(0, [frame(detector, 0)])
    detector.wait(0, LONG_S)
    with pytest.raises(ValueError):
        detector.wait(0, 0.0)


def test_failure_is_raised_by_wait(kind: Kind, tmp_path: Path) -> None:
    """The failed batch frees its slot. If the device is lost, every later call raises the same error."""
    if kind.open_failing is None:
        pytest.skip("after an error of CUDA every call of the process fails, those of other tests too")
    with closing(kind.open_failing(tmp_path)) as detector:
        detector.submit(0, [frame(detector, 0)])
        if not kind.goes_on:
            for _ in range(2):
                with pytest.raises(DeviceError) as caught:
                    detector.wait(0, LONG_S)
                assert caught.value.code == "cuda-error"
            with pytest.raises(DeviceError) as caught:
                detector.submit(1, [foreign_frame(1)])
            assert caught.value.code == "cuda-error"
            return
        detector.submit(1, [frame(detector, 1)])
        with pytest.raises(DeviceError):
            detector.wait(0, LONG_S)
        assert_finds(detector.wait(1, LONG_S)[0], 1)
        detector.submit(0, [frame(detector, 2)])
        assert_finds(detector.wait(0, LONG_S)[0], 2)


def test_close_is_idempotent(detector: Detector) -> None:
    detector.submit(0, [frame(detector, 0)])
    detector.wait(0, LONG_S)
    detector.close()
    detector.close()
    with pytest.raises(Closed):
        detector.submit(0, [frame(detector, 0)])
    with pytest.raises(Closed):
        detector.wait(0, LONG_S)


def test_close_while_batches_run_makes_wait_raise_closed(slow: Detector) -> None:
    for slot in (0, 1):
        slow.submit(slot, [frame(slow, slot)])
    slow.close()
    with pytest.raises(Closed):
        slow.wait(0, LONG_S)


def test_close_from_another_thread_is_allowed(detector: Detector) -> None:
    detector.submit(0, [frame(detector, 0)])
    detector.wait(0, LONG_S)
    closer = threading.Thread(target=detector.close)
    closer.start()
    closer.join(LONG_S)
    assert not closer.is_alive()
    with pytest.raises(Closed):
        detector.submit(0, [frame(detector, 0)])


def test_close_leaves_no_thread(kind: Kind, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    detector = kind.open(tmp_path)
    detector.submit(0, [frame(detector, 0)])
    detector.close()
    assert set(threading.enumerate()) <= before


def test_thousand_submits_leak_no_memory(detector: Detector) -> None:
    batch = [frame(detector, color, 160, 120) for color in (0, 1)]

    def run(times: int) -> None:
        for _ in range(times):
            detector.submit(0, batch)
            detector.submit(1, batch[:1])
            detector.wait(0, LONG_S)
            detector.wait(1, LONG_S)

    run(100)
    gc.collect()
    tracemalloc.start()
    try:
        run(5)
        before_python, before_process = tracemalloc.get_traced_memory()[0], _resident_bytes()
        run(500)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before_python < 20_000
        assert _resident_bytes() - before_process < 4 << 20
    finally:
        tracemalloc.stop()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
