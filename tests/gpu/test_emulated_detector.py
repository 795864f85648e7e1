"""Tests of the TensorRT detector with emulated engines that fail, hang, or give wrong results."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu.opening import EMULATED, open_computed
from tests.log_records import log_args
from tests.perf.deployment import write_config
from vision.benchmark.pipeline import CountingSink
from vision.config import AppConfig, DetectConfig, HeadSpec, InputSpec, ModelSpec, NmsSpec
from vision.detect.tensorrt.detector import TensorRTDetector
from vision.errors import EXIT_RUNTIME, Closed, DeviceError, ModelError
from vision.gpu.memory import allocated
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.types import Frame, FrameBuffer, FrameMeta

pytestmark = pytest.mark.skipif(not EMULATED, reason="needs an engine that can be told what to do")

Outputs = Mapping[str, NDArray[Any]]
Images = NDArray[Any]

OBJECTS = np.array([[10, 10, 20, 20, 0.9, 1], [30, 30, 50, 60, 0.8, 0], [0, 0, 5, 5, 0.1, 2]], np.float32)


def spec(kind: str = "end-to-end", **head: Any) -> ModelSpec:
    return ModelSpec(
        name="test",
        file="test.onnx",
        input=InputSpec(width=96, height=64),
        head=HeadSpec(kind=kind, **head),  # type: ignore[arg-type]
        classes=("a", "b", "c"),
        nms=NmsSpec(max_objects=10),
        licence="none",
    )


def three_objects(images: Images) -> Outputs:
    return {"output": np.repeat(OBJECTS[None], len(images), 0)}


def opened(compute: Callable[[Images], Outputs] = three_objects, **settings: Any) -> TensorRTDetector:
    outputs = settings.pop("outputs", {"output": (3, 6)})
    engine = {name: settings.pop(name) for name in ("batches", "dtypes", "interleaved", "waits") if name in settings}
    how = {name: settings.pop(name) for name in ("stop", "integrated", "clock") if name in settings}
    detect = DetectConfig(**{"score_threshold": 0.5, "batches_in_flight": 2, "max_batch": 4, **settings})
    return open_computed(spec(), detect, outputs, compute=compute, **how, **engine)


def frame(value: int = 0) -> Frame:
    return Frame.wrap(FrameMeta("cam", 0, 0, 0, 0, 96, 64), np.full((64, 96, 3), value, np.uint8), "bgr")


def assert_two_objects(found: Any) -> None:
    assert found.class_ids.tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes_xyxy, OBJECTS[:2, :4], atol=1e-4)


def test_detections_match_the_network_output() -> None:
    with closing(opened()) as detector:
        detector.submit(0, [frame(), frame(), frame()])  # a batch of four with an empty row
        found = detector.wait(0, 10.0)
        assert len(found) == 3
        for each in found:
            assert_two_objects(each)
        assert detector.counters() == {"detector.graph_runs": 1, "detector.step_runs": 0}


def test_graph_with_other_results_than_its_steps_is_refused() -> None:
    calls = itertools.count()

    def changing(images: Images) -> Outputs:
        smaller = 1 - 0.005 * next(calls) * np.array([1, 1, 1, 1, 1, 0])  # the classes stay whole numbers
        return {"output": np.repeat(OBJECTS[None], len(images), 0) * smaller}

    with pytest.raises(DeviceError) as caught:
        opened(changing)
    assert caught.value.code == "graph-differs"
    with closing(opened(changing, graphs=False)):
        pass  # nothing to compare


def test_graph_without_results_is_refused() -> None:
    calls = itertools.count()

    def once(images: Images) -> Outputs:
        return three_objects(images) if next(calls) < 12 else {}

    with pytest.raises(DeviceError) as caught:
        opened(once)
    assert caught.value.code == "graph-differs"


def test_scores_outside_0_and_1_are_refused() -> None:
    def logits(images: Images) -> Outputs:
        return {"output": np.repeat(OBJECTS[None], len(images), 0) * np.array([1, 1, 1, 1, 7, 1])}

    with pytest.raises(ModelError):
        opened(logits)


def test_logged_budget_equals_the_allocated_memory(caplog: pytest.LogCaptureFixture) -> None:
    """The budget excludes the weights, because an emulated engine has none."""
    caplog.set_level("INFO")
    before = allocated()
    with closing(opened(max_batch=24)):
        taken = allocated()
    weights, device, host = (
        float(re.search(rf"^{line} .*?([\d.]+) MiB$", caplog.text, re.MULTILINE)[1])  # type: ignore[index]
        for line in ("weights", "total +device", "total +host")
    )
    assert device - weights == pytest.approx((taken.device_bytes - before.device_bytes) / 2**20, abs=0.06)
    assert host == pytest.approx((taken.host_bytes - before.host_bytes) / 2**20, abs=0.06)
    assert device > 4, "enough to see what would be missing"


def test_stop_during_startup_ends_before_the_next_context() -> None:
    """TensorRT-RTX compiles the kernels of a context in a call that cannot be interrupted."""
    before, stop = allocated(), threading.Event()
    stop.set()
    with pytest.raises(Closed):
        opened(stop=stop)
    assert allocated() == before


def test_systemctl_stop_ends_a_build(tmp_path: Path) -> None:
    """On a Jetson, a build takes minutes. systemd kills a process that does not stop within a shorter time."""
    for attempt in range(3):  # on a busy machine, the short build of this test can end before the signal arrives
        folder = tmp_path / str(attempt)
        returncode, output = _stopped_during_build(folder)
        if not list(folder.rglob("*.engine")):
            break
    assert returncode == 0, output
    assert not list(folder.rglob("*.engine"))


def _stopped_during_build(folder: Path) -> tuple[int, str]:
    """Send SIGTERM to `vision run` when it reports the progress of a build. Return its exit code and its log."""
    (folder / "cache").mkdir(mode=0o700, parents=True)
    config = write_config(folder / "camera.yaml", ["synthetic:96x64@5"], detect={"backend": "tensorrt"})
    environment = {**os.environ, "CACHE_DIRECTORY": str(folder / "cache")}
    command = [sys.executable, "-m", "vision.cli.main", "run", str(config)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        output = ""
        while "vision.engine.progress" not in output:
            line = program.stderr.readline()
            assert line, output
            output += line
        program.terminate()
        output += program.communicate(timeout=60)[1]
    return program.returncode, output


def test_failed_start_releases_all_memory() -> None:
    gc.collect()  # tracebacks of other tests hold buffers
    before = allocated()
    with pytest.raises(ModelError):
        opened(outputs={"output": (3, 7)})
    after = allocated()
    assert (after.device_bytes, after.host_bytes) == (before.device_bytes, before.host_bytes)


def test_close_releases_all_memory() -> None:
    gc.collect()  # tracebacks of other tests hold buffers
    before = allocated()
    detector = opened()
    detector.submit(0, [frame()])
    detector.close()
    after = allocated()
    assert (after.device_bytes, after.host_bytes) == (before.device_bytes, before.host_bytes)


def test_engine_with_a_fixed_batch_size_takes_smaller_batches() -> None:
    with closing(opened(batches=(2, 2))) as detector:
        assert detector.spec.max_batch == 2
        detector.submit(0, [frame()])
        (found,) = detector.wait(0, 10.0)
        assert_two_objects(found)


@pytest.mark.parametrize(
    "dtypes", [{"images": "float16"}, {"output": "float16"}, {"images": "float16", "output": "float16"}]
)
def test_half_precision_input_and_outputs_give_the_same_detections(dtypes: Mapping[str, str]) -> None:
    with closing(opened(dtypes=dtypes)) as detector:
        detector.submit(1, [frame(), frame()])
        for each in detector.wait(1, 10.0):
            assert each.class_ids.tolist() == [1, 0]
            np.testing.assert_allclose(each.boxes_xyxy, OBJECTS[:2, :4], rtol=1e-3)


@pytest.mark.parametrize("dtypes", [{"images": "float16"}, {}])
def test_every_input_pixel_matches_the_frame(dtypes: Mapping[str, str]) -> None:
    shades: list[float] = []

    def seen(images: Images) -> Outputs:
        shades.extend(images[:, 1].mean(axis=(1, 2)).tolist())
        return three_objects(images)

    with closing(opened(seen, dtypes=dtypes, interleaved=True)) as detector:
        detector.submit(0, [frame(200), frame(40)])
        for each in detector.wait(0, 10.0):
            np.testing.assert_allclose(each.boxes_xyxy, OBJECTS[:2, :4], rtol=1e-3)
    np.testing.assert_allclose(shades[-2:], [200, 40], rtol=1e-3)


def test_unsupported_output_type_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        opened(dtypes={"output": "int8"})
    assert "int8" in caught.value.args[0]


def test_efficient_nms_runs_as_a_graph() -> None:
    def plugin(images: Images) -> Outputs:
        batch = len(images)
        return {
            "num_dets": np.full((batch, 1), 2, np.int32),
            "det_boxes": np.repeat(OBJECTS[None, :, :4], batch, 0),
            "det_scores": np.repeat(OBJECTS[None, :, 4], batch, 0),
            "det_classes": np.repeat(OBJECTS[None, :, 5].astype(np.int32), batch, 0),
        }

    outputs = {"num_dets": (1,), "det_boxes": (3, 4), "det_scores": (3,), "det_classes": (3,)}
    dtypes = {"num_dets": "int32", "det_classes": "int32"}
    with closing(opened(plugin, outputs=outputs, dtypes=dtypes)) as detector:
        assert detector.spec.gpu is not None and detector.spec.gpu.graphs
        detector.submit(0, [frame()])
        assert_two_objects(detector.wait(0, 10.0)[0])


def test_outputs_with_a_data_dependent_size_run_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    """The first pixel determines the number of rows in the output. The output needs more memory for more rows."""

    def rows(images: Images) -> Outputs:
        count = round(float(images.max()))
        many = np.tile(OBJECTS[0], (count, 1))
        return {"output": np.repeat(many[None], len(images), 0)}

    with closing(opened(rows, outputs={"output": (-1, 6)})) as detector:
        assert detector.spec.gpu is not None and not detector.spec.gpu.graphs
        assert detector.spec.parallel == 1
        assert log_args(caplog, "vision.detect.tensorrt.detector")
        for count in (2, 0, 200, 7):
            detector.submit(0, [frame(count), frame(count)])
            found = detector.wait(0, 10.0)
            assert [len(each) for each in found] == [min(count, 10)] * 2
            assert [each.truncated_candidates for each in found] == [max(0, count - 10)] * 2
        assert detector.spec.gpu is not None
        assert detector.spec.gpu.graphs_off
        counters = detector.counters()
        assert counters["detector.outputs_grown"] == 1, "room is made in advance for small outputs"
        assert (counters["detector.graph_runs"], counters["detector.step_runs"]) == (0, 4)


def test_engine_that_cannot_be_captured_runs_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    with closing(opened(waits=True)) as detector:
        gpu = detector.spec.gpu
        assert gpu is not None
        assert not gpu.graphs
        assert "captured" in gpu.graphs_off
        assert detector.spec.parallel == 1
        warnings = log_args(caplog, "vision.detect.tensorrt.detector")
        assert ("test", gpu.graphs_off) in warnings, "the cause is in the log"
        for count in (1, 3, 4):
            detector.submit(0, [frame()] * count)
            for each in detector.wait(0, 10.0):
                assert_two_objects(each)
        assert detector.counters() == {"detector.graph_runs": 0, "detector.step_runs": 3}


def test_missing_memory_for_a_growing_output_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT requests the memory in a callback, and ignores exceptions that the callback raises."""
    from cuda.bindings.device import gpu

    def rows(images: Images) -> Outputs:
        return {"output": np.zeros((len(images), 1000 * round(float(images.max())), 6), np.float32)}

    with closing(opened(rows, outputs={"output": (-1, 6)})) as detector:
        detector.submit(0, [frame(1)])
        detector.wait(0, 10.0)
        monkeypatch.setattr(gpu, "total_bytes", gpu.used_bytes + 4096)
        with pytest.raises(DeviceError) as caught:
            detector.submit(0, [frame(100)])
        message = caught.value.args[0]
        del caught
        gc.collect()  # the traceback held a context, and the engine must outlive it
    assert re.search(r"\boutput\b", message), "the name of the output"


def test_engine_with_dynamic_outputs_is_checked_at_startup() -> None:
    def logits(images: Images) -> Outputs:
        return {"output": np.repeat(OBJECTS[None], len(images), 0) * np.array([1, 1, 1, 1, 7, 1])}

    with pytest.raises(ModelError):
        opened(logits, outputs={"output": (-1, 6)})


def test_output_rows_without_a_frame_are_refused() -> None:
    with pytest.raises(ModelError):
        opened(three_objects, outputs={"output": (-1, 5)})


class Crowd:
    """Slow engine that records the number of batches that run at the same time."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self, images: Images) -> Outputs:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.1)
        with self._lock:
            self._now -= 1
        return three_objects(images)


@pytest.mark.parametrize(("frames", "together"), [(1, 5), (4, 3)])
def test_concurrent_batches_fit_into_the_cache(frames: int, together: int) -> None:
    """Five frames of 74 kB fit into 400 kB, so at most three batches run at the same time."""
    crowd = Crowd()
    with closing(opened(crowd, batches_in_flight=6)) as detector:
        crowd.most = 0
        for slot in range(6):
            detector.submit(slot, [frame()] * frames)
        for slot in range(6):
            assert_two_objects(detector.wait(slot, 10.0)[-1])
            detector.submit(slot, [frame()] * frames)
        for slot in range(6):
            detector.wait(slot, 10.0)
    assert crowd.most == together


def test_lost_gpu_is_reported_by_every_call() -> None:
    from cuda.bindings.device import gpu

    detector = opened()
    detector.submit(0, [frame()])
    detector.wait(0, 10.0)
    try:
        gpu.fault = 700
        with pytest.raises(DeviceError) as caught:
            detector.submit(0, [frame()])
        assert "cudaErrorIllegalAddress" in caught.value.args[0]
        assert caught.value.code == "cuda-error"
        began = time.monotonic()
        detector.close()
        assert time.monotonic() - began < 30
    finally:
        gpu.fault = 0


def test_program_exits_for_a_restart_after_the_gpu_is_lost() -> None:
    """The program closes its resources, and exits with a code that makes systemd restart it."""
    from cuda.bindings.device import gpu

    site = AppConfig.model_validate(
        {"cameras": [{"id": f"camera-{n}", "source": f"synthetic:96x64@50?seed={n}"} for n in range(3)]}
    )
    sink = CountingSink()
    losing = threading.Timer(0.5, setattr, (gpu, "fault", 700))
    began = time.monotonic()
    try:
        with pytest.raises(DeviceError) as caught, contextlib.ExitStack() as resources:
            options = RunOptions(stop=threading.Event(), sink=sink, open_detector=lambda *_: opened())
            runtime = load_pipeline("detect")(site, options, resources)
            losing.start()
            runtime.run(options.stop, for_s=60)
        assert time.monotonic() - began < 50
    finally:
        losing.cancel()
        gpu.fault = 0
    assert caught.value.exit_code == EXIT_RUNTIME
    assert "cudaErrorIllegalAddress" in caught.value.args[0]
    assert caught.value.code == "cuda-error"
    assert sink.published, "it ran before"
    assert not [thread for thread in threading.enumerate() if thread.name in ("inference", "results")]


def test_hanging_gpu_does_not_block_the_exit() -> None:
    """The test runs in a separate process, because the memory that the program abandons is never freed."""
    program = """
import logging, threading, time
from cuda.bindings import runtime
from tests.gpu.test_emulated_detector import frame, opened

logging.basicConfig(format="%(levelname)s %(message)s")
detector = opened()
pixels = detector.frame_buffer(64, 96, "bgr")
resume = runtime.hold(detector.parts()[0][0].stream.handle)
detector.submit(0, [frame()])
try:
    detector.wait(0, 0.1)
except TimeoutError:
    print("timeout")
detector.close_s = 0.3
began = time.monotonic()
detector.close()
detector.close()
del pixels  # page-locked: freeing it would wait for the GPU
print("closed" if time.monotonic() - began < 30 else "too late")
print([thread.name for thread in threading.enumerate() if thread.name == "gpu-release"])
resume()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["timeout", "closed", "['gpu-release']"]
    assert "ERROR Emulated GPU" in done.stderr


def test_insufficient_memory_is_reported_before_allocation() -> None:
    from cuda.bindings.device import gpu

    total, gpu.total_bytes = gpu.total_bytes, gpu.used_bytes + (1 << 18)
    try:
        with pytest.raises(DeviceError) as caught:
            opened()
        assert caught.value.code == "memory-budget"
    finally:
        gpu.total_bytes = total


class ReadingClock:
    """Clock that simulates the time in which the detector reads a frame, for each of two ways of reading.

    In each round, the detector first reads the frame in place (`in_place_ns`), and then copies it (`copied_ns`).
    """

    def __init__(self, in_place_ns: int, copied_ns: int) -> None:
        self._steps = itertools.cycle([0, in_place_ns, 0, copied_ns])
        self._noise = itertools.cycle([500, 0, 200])  # the shortest time counts
        self.now_ns = 0

    def __call__(self) -> int:
        step_ns = next(self._steps)
        self.now_ns += step_ns + (next(self._noise) if step_ns else 0)
        return self.now_ns


@pytest.mark.parametrize(("copied_ns", "in_place"), [(800, False), (990, True), (2000, True)])
def test_gpu_that_shares_memory_reads_frames_in_the_faster_way(copied_ns: int, in_place: bool) -> None:
    before = allocated()
    with closing(opened(integrated=True, clock=ReadingClock(1000, copied_ns))) as detector:
        started = allocated()
        buffer = detector.frame_buffer(64, 96, "bgr")
        assert bool(buffer.upload_address) is not in_place
        assert (buffer.device is None) is in_place
        memory = np.zeros(64 * 96 * 3 + 4096, np.uint8)
        pixels = memory[: 64 * 96 * 3].reshape(64, 96, 3)
        (shared,) = detector.shared_buffers(memory, [FrameBuffer.wrap(pixels, "bgr")])
        assert bool(shared.upload_address) is not in_place
        for each in (buffer, shared):
            each.require_host()[:] = 7
            detector.submit(0, [Frame(FrameMeta("cam", 0, 0, 0, 0, 96, 64), each)])
            assert_two_objects(detector.wait(0, 10.0)[0])
        assert started.host_bytes - before.host_bytes < 1920 * 1080, "the frame of the measurement is freed"


def test_gpu_with_its_own_memory_is_not_measured() -> None:
    def clock() -> int:
        raise AssertionError("nothing to measure")

    with closing(opened(clock=clock)) as detector:
        assert detector.frame_buffer(64, 96, "bgr").upload_address
