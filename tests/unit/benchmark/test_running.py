"""Tests of measurement loops for detectors and lanes, of frames, of deployments, and of ONNX Runtime's profiler."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from vision.benchmark.bench import pace
from vision.benchmark.frames import convert, load_frames, make_batches, shipped_clip, size_of
from vision.benchmark.loops import ThreadLane, measure_alone, measure_engine, measure_stage
from vision.benchmark.pipeline import NonClosingDetector, run_deployment, synthetic_deployment
from vision.benchmark.profile import parse_nodes, recorded_spans, trace_slots
from vision.capture.synthetic.spec import SyntheticSpec
from vision.config import AppConfig, load_model_spec, shipped_models
from vision.detect.fake import FakeDetector
from vision.detect.onnxruntime.network import OnnxNetwork
from vision.engine.trace import SpanRecorder
from vision.errors import DeviceError, ModelError, SourceError
from vision.metrics import span
from vision.types import PixelFormat


class Time:
    """Clock that advances only when the code under test sleeps."""

    def __init__(self) -> None:
        self.now_ns = 0

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def time_(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Replace the clock of the measurement loops. Return the new clock."""
    time_ = Time()
    clock = SimpleNamespace(monotonic_ns=time_.clock, sleep=time_.sleep)
    monkeypatch.setattr("vision.benchmark.loops.time", clock)
    monkeypatch.setattr("vision.benchmark.profile.time", clock)
    return time_


def fake(time_: Time, *, slots: int = 2, parallel: int = 1, service_ms: int = 10) -> FakeDetector:
    return FakeDetector(
        batches_in_flight=slots,
        parallel=parallel,
        service_ns=service_ms * 1_000_000,
        clock=time_.clock,
        sleep=time_.sleep,
    )


# ------------------------------------------------------------------------------------------------ stage


@pytest.mark.parametrize(
    ("slots", "parallel", "batch", "expected"),
    [(1, 1, 1, (100, 10)), (2, 1, 1, (100, 20)), (2, 2, 1, (200, 10)), (3, 2, 4, (800, 15)), (1, 2, 4, (400, 10))],
)
def test_stage_has_the_throughput_and_latency_of_its_detector(
    time_: Time, slots: int, parallel: int, batch: int, expected: tuple[float, float]
) -> None:
    images = load_frames("synthetic:64x48?objects=2", 4)
    with closing(fake(time_, slots=slots, parallel=parallel)) as detector:
        batches = make_batches(detector, images, slots, batch, "bgr")
        found = measure_stage(detector, batches, 1.0)
        assert found.frames_per_s == pytest.approx(expected[0], rel=0.02)
        assert found.durations.p50_ms == pytest.approx(expected[1], rel=0.5)
        assert found.objects_per_frame == 2
        detector.submit(0, batches[0])  # all slots are free again


def test_stage_warms_up_until_it_is_ready(time_: Time) -> None:
    asked = itertools.count()
    with closing(fake(time_)) as detector:
        batches = make_batches(detector, load_frames("synthetic:64x48", 1), 2, 1, "bgr")
        measure_stage(detector, batches, 0.1, warm=lambda: next(asked) >= 20)
    assert time_.now_ns > 0.3e9


def test_slow_stage_is_measured_at_least_five_times(time_: Time) -> None:
    with closing(fake(time_, slots=1, service_ms=5000)) as detector:
        batches = make_batches(detector, load_frames("synthetic:64x48", 1), 1, 1, "bgr")
        assert measure_stage(detector, batches, 0.1).durations.count == 5


def test_single_batches_are_measured_without_their_pauses(time_: Time) -> None:
    with closing(fake(time_, slots=2, parallel=2)) as detector:
        frames = make_batches(detector, load_frames("synthetic:64x48?objects=2", 2), 1, 2, "bgr")[0]
        asked = itertools.count()
        found = measure_alone(
            detector,
            frames,
            1.0,
            warm=lambda: next(asked) >= 3,
        )
    assert found.durations.p50_ms == pytest.approx(10.0)
    assert found.durations.count == 34  # of 30 ms each, pause included
    assert found.frames_per_s == pytest.approx(200)
    assert found.objects_per_frame == 2


def test_failing_detector_ends_the_measurement() -> None:
    with closing(FakeDetector(fail_at=3)) as detector, pytest.raises(DeviceError):
        batches = make_batches(detector, load_frames("synthetic:64x48", 1), 2, 1, "bgr")
        measure_stage(detector, batches, 1.0)


# ------------------------------------------------------------------------------------------------ engine


class TimedLane:
    """Lane of a device that takes 10 ms per batch. The host notices the end of a batch 2 ms late."""

    def __init__(self, time_: Time) -> None:
        self._time = time_
        self._free_ns = 0
        self.closed = False

    def start(self) -> None:
        self._free_ns = max(self._time.now_ns, self._free_ns) + 10_000_000

    def finish(self) -> None:
        self._time.now_ns = max(self._time.now_ns, self._free_ns) + 2_000_000

    def close(self) -> None:
        self.closed = True


def test_engine_latency_and_throughput_are_measured_separately(time_: Time) -> None:
    found = measure_engine([TimedLane(time_)], 4.0)
    assert found.durations.p50_ms == pytest.approx(12.0)
    assert found.frames_per_s == pytest.approx(100, rel=0.03)


def test_engine_rate_error_comes_from_the_bursts(time_: Time) -> None:

    class Uneven(TimedLane):
        """Lane in which every second burst takes 50 % longer. Batches for which the host waits take a constant time."""

        queued = bursts = 0

        def start(self) -> None:
            super().start()
            self.queued += 1

        def finish(self) -> None:
            if self.queued > 1:
                self.bursts += 1
                self._free_ns += 5_000_000 * self.queued * (self.bursts % 2)
            self.queued = 0
            super().finish()

    steady = measure_engine([TimedLane(time_)], 4.0)
    uneven = measure_engine([Uneven(time_)], 4.0)
    assert steady.durations.std_ms == uneven.durations.std_ms == 0
    assert steady.rate_error == 0
    assert (uneven.rate_error or 0) > 0.05


def test_engine_throughput_adds_up_over_streams(time_: Time) -> None:
    found = measure_engine([TimedLane(time_), TimedLane(time_)], 4.0, batch_size=4)
    assert found.frames_per_s == pytest.approx(800, rel=0.03)


def test_thread_lane_runs_in_its_thread() -> None:
    calls: list[str] = []
    with closing(ThreadLane(lambda: calls.append(threading.current_thread().name))) as lane:
        lane.finish()
        lane.start()
        lane.start()
        lane.finish()
    assert len(calls) == 2
    assert "MainThread" not in calls


def test_thread_lane_raises_the_error_of_its_work() -> None:
    with closing(ThreadLane(lambda: 1 / 0)) as lane:
        lane.start()
        with pytest.raises(ZeroDivisionError):
            lane.finish()


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    yield shipped_models() / "nanodet-g-416"


def test_network_accepts_any_batch_size(model: Path) -> None:
    spec = load_model_spec(model)
    network = OnnxNetwork(model / spec.file, spec, 2, threads=1)
    assert network.input_shapes == {"images": (2, 3, 416, 416)}
    network.run()


def test_network_with_a_fixed_batch_refuses_others(tmp_path: Path) -> None:
    from tests import tiny_models

    (tmp_path / "model.yaml").write_text(tiny_models.COLOUR_CARD)
    tiny_models.save_colour_model(tmp_path / "colours.onnx", batch=1)
    spec = load_model_spec(tmp_path)
    with pytest.raises(ModelError):
        OnnxNetwork(tmp_path / spec.file, spec, 4, threads=1)


# ------------------------------------------------------------------------------------------------ frames


@pytest.mark.parametrize(("pixel_format", "code"), [("nv12", cv2.COLOR_YUV2BGR_NV12), ("i420", cv2.COLOR_YUV2BGR_I420)])
def test_converted_yuv_frames_match_opencv(pixel_format: PixelFormat, code: int) -> None:
    bgr = cv2.GaussianBlur(load_frames(shipped_clip(), 1)[0], (0, 0), 4).astype(np.uint8)  # colors without edges
    converted = convert(bgr, pixel_format)
    assert size_of(converted, pixel_format) == bgr.shape[:2]
    back = cv2.cvtColor(converted, code)
    assert np.abs(back.astype(int) - bgr).mean() < 2


def test_bgrx_frames_have_the_bgr_channels() -> None:
    bgr = load_frames("synthetic:64x48", 1)[0]
    assert np.array_equal(convert(bgr, "bgrx")[..., :3], bgr)
    assert convert(bgr, "bgr") is bgr


def test_yuv_needs_even_sides() -> None:
    with pytest.raises(ValueError):
        convert(np.zeros((3, 5, 3), np.uint8), "nv12")


def test_load_frames_returns_fewer_of_a_short_recording() -> None:
    assert len(load_frames("synthetic:64x48?frames=3", 10)) == 3
    with pytest.raises(SourceError):
        load_frames("/no/such/file.mp4", 1)


# ------------------------------------------------------------------------------------------------ program


@pytest.mark.integration
def test_run_publishes_every_frame_of_a_fast_detector() -> None:
    ran = run_deployment(synthetic_deployment(2, 20.0, 64, 48, None), 2.0, lambda *_: FakeDetector(), publish=True)
    assert set(ran.cameras) == {"camera-0", "camera-1"}
    assert ran.published_per_s == pytest.approx(40, rel=0.2)
    assert sum(ran.dropped_per_s.values()) < 0.2 * ran.published_per_s  # a busy machine drops some
    assert ran.latency.count == sum(each.latency.count for each in ran.cameras.values())
    assert ran.cpu.own > 0


@pytest.mark.integration
def test_run_counts_drops_of_a_slow_detector() -> None:
    slow = lambda *_: FakeDetector(service_ns=100_000_000, max_batch=1)  # noqa: E731
    ran = run_deployment(synthetic_deployment(2, 20.0, 64, 48, "nv12"), 2.0, slow)
    assert ran.published_per_s == pytest.approx(10, rel=0.3)
    assert ran.dropped_per_s["superseded"] == pytest.approx(30, rel=0.3)


@pytest.mark.integration
def test_run_counts_drops_of_a_camera_without_results() -> None:
    slow = lambda *_: FakeDetector(service_ns=1_500_000_000, max_batch=1)  # noqa: E731
    ran = run_deployment(synthetic_deployment(1, 50.0, 64, 48, "nv12"), 1.0, slow)
    assert ran.published_per_s == 0
    assert ran.grabbed_per_s > 0
    assert sum(ran.dropped_per_s.values()) > 0


def test_synthetic_cameras_can_be_slow() -> None:
    for fps in (1000.0, 30.0, 1 / 3, 1 / 300):
        (slow,) = synthetic_deployment(1, fps, 64, 48, None).cameras
        assert SyntheticSpec.parse(slow.source).fps == pytest.approx(fps, rel=0.001)


def test_pace_of_slow_cameras_lengthens_the_run() -> None:
    assert pace(600.0, 3, 2.0) == (200.0, 4.0)
    assert pace(5e4, 4, 0.1) == (1000.0, 1.0)
    fps, seconds = pace(1.5, 3, 2.0)
    assert fps == 0.5  # not 1, because three cameras would deliver twice as many frames
    assert seconds >= 4 / fps  # long enough for four frames of each camera
    assert pace(0.001, 3, 2.0)[1] == 60


@pytest.mark.integration
def test_run_reports_a_camera_without_frames() -> None:
    config = AppConfig.model_validate({"cameras": [{"id": "gone", "source": "http://127.0.0.1:9/gone"}]})
    ran = run_deployment(config, 0.5, lambda *_: FakeDetector())
    assert ran.cameras["gone"].published_per_s == 0
    assert ran.objects_per_frame == 0


@pytest.mark.integration
def test_file_that_is_missing_ends_a_run() -> None:
    config = AppConfig.model_validate({"cameras": [{"id": "gone", "source": "/no/such.mp4"}]})
    with pytest.raises(SourceError) as raised:
        run_deployment(config, 0.5, lambda *_: FakeDetector())
    assert raised.value.code == "source-failed"


@pytest.mark.integration
def test_non_closing_detector_stays_open() -> None:
    with closing(FakeDetector(batches_in_flight=2, max_batch=8)) as detector:
        ran = run_deployment(
            synthetic_deployment(2, 20.0, 64, 48, None), 0.5, lambda *_: NonClosingDetector(detector, 4)
        )
        assert ran.cpu.own > 0  # measured although the run is short
        borrowed = NonClosingDetector(detector, 4)
        assert borrowed.spec.max_batch == 4
        assert NonClosingDetector(detector, 99).spec.max_batch == 8
        frames = make_batches(detector, load_frames("synthetic:64x48", 1), 1, 1, "bgr")[0]
        borrowed.submit(0, frames)
        borrowed.close()  # waits for the batch in flight
        detector.submit(0, frames)
        assert len(detector.wait(0, 1.0)) == 1


@pytest.mark.integration
def test_non_closing_detector_accepts_other_frames() -> None:
    with closing(FakeDetector(batches_in_flight=2, max_batch=8)) as detector:
        shown = make_batches(detector, load_frames("synthetic:64x48?objects=5", 4), 2, 4, "bgr")
        config = AppConfig.model_validate(
            {"cameras": [{"id": f"c{n}", "source": "synthetic:64x48@20?objects=0"} for n in range(3)]}
        )
        assert run_deployment(config, 0.5, lambda *_: NonClosingDetector(detector, 4)).objects_per_frame == 0
        assert run_deployment(config, 0.5, lambda *_: NonClosingDetector(detector, 4, shown)).objects_per_frame == 5


# ------------------------------------------------------------------------------------------------ profile


def event(name: str, ts: int, dur: int, **other: object) -> dict[str, object]:
    return {"ph": "X", "name": name, "ts": ts, "dur": dur, "cat": "Node" if "kernel" in name else "Session", **other}


CONV = {"op_name": "Conv", "provider": "CPU", "output_type_shape": [{"float": [1, 8]}]}
PROFILE = [event("model_loading_uri", 0, 5)]
for begin in (100, 200, 300):
    PROFILE += [
        event("conv_kernel_time", begin + 1, begin // 10, args=CONV),
        event("relu_kernel_time", begin + 50, 5, args={"op_name": "Relu"}),
        event("model_run", begin, 90),
    ]


def test_nodes_of_skipped_runs_do_not_count() -> None:
    times, layers = parse_nodes(json.dumps(PROFILE), skip=1)
    assert times.runs == 2
    conv, relu = times.layers()
    assert (conv.name, conv.min_ms, conv.max_ms) == ("conv", 0.02, 0.03)
    assert relu.mean_ms == 0.005
    assert [(layer.name, layer.kind) for layer in layers] == [("conv", "Conv"), ("relu", "Relu")]
    assert layers[0].outputs[0].dimensions == (1, 8)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"ph": "X"}]', json.dumps(PROFILE[:1])])
def test_other_files_are_no_profile(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_nodes(text)
    assert caught.value.code in ("no-profile", "no-run")


def test_profile_without_a_run_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        parse_nodes(json.dumps(PROFILE), skip=3)
    assert caught.value.code == "no-run"


def test_time_line_shows_slots_in_parallel(time_: Time) -> None:
    recorder = SpanRecorder(clock=time_.clock)
    with closing(fake(time_, slots=2, parallel=2)) as detector:
        batches = make_batches(detector, load_frames("synthetic:64x48?objects=2", 2), 2, 2, "bgr")
        trace_slots(detector, batches, 3, recorder)
    lanes = {lane: [s for s in recorder.spans() if s.lane == lane] for lane in ("slot 0", "slot 1")}
    assert [len(spans) for spans in lanes.values()] == [3, 3]
    for one, other in zip(*lanes.values(), strict=True):
        assert one.start_ns < other.end_ns  # in flight at the same time
        assert other.start_ns < one.end_ns
    assert lanes["slot 0"][0].details == {"frames": 2, "objects": 4}


def test_spans_go_to_the_lane_of_their_thread() -> None:
    recorder = SpanRecorder()

    def work() -> None:
        with span("network"):
            pass

    with recorded_spans(recorder):
        worker = threading.Thread(target=work, name="detect-0")
        worker.start()
        worker.join()
        with span("here"):
            pass
    with span("after"):
        pass
    spans = [(each.name, each.lane) for each in recorder.spans()]
    assert spans == [("network", "thread detect-0"), ("here", "thread MainThread")]


def test_spans_are_not_recorded_after_a_failed_block() -> None:
    recorder = SpanRecorder()
    with pytest.raises(RuntimeError), recorded_spans(recorder):
        raise RuntimeError
    with span("after"):
        pass
    assert recorder.spans() == ()
