"""Measurements of `vision profile MODEL`: the time of each layer, and a timeline of batches in the detector."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from vision.benchmark.bench import load_gpu
from vision.benchmark.frames import load_frames, make_batches, shipped_clip
from vision.benchmark.loops import WAIT_S
from vision.config import DetectConfig, ModelSpec
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.engine.profiler import Layer, LayerTensor, LayerTimes, Profile, parse_layers
from vision.engine.trace import Span, SpanRecorder, layer_spans, write_chrome_trace
from vision.errors import ConfigError, ModelError
from vision.metrics import send_spans
from vision.state.scratch import scratch_folder
from vision.types import Frame

_log = logging.getLogger(__name__)

_WARM_UP: Final = 5  # number of runs before the measured runs
_TRACE_ROUNDS: Final = 6  # number of batches per slot in the timeline
_TRACE_SLOTS: Final = 2  # maximum number of slots in the timeline

_KERNEL: Final = "_kernel_time"
_RUN: Final = "model_run"


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """Options of `vision profile`."""

    batch: int = 1  # batch size
    detect: DetectConfig = field(default_factory=DetectConfig)  # its `max_batch` is at least `batch`
    runs: int = 50  # number of measured runs
    trace: Path | None = None  # file for a timeline in Chrome's trace format; None for no timeline


def profile_model(
    folder: Path, spec: ModelSpec, settings: ProfileSettings, say: Callable[[str], None] = lambda _: None
) -> Profile:
    """Measure and describe every layer of a model. Return the profile.

    If `settings.trace` is not None, write a timeline of batches in flight to this file. `say` receives a description of
    each step.

    Raises:
        ConfigError: the back-end is `fake`, which has no network.
        VisionError: the model or back-end is missing, the model does not accept the batch size, or the trace cannot be
            written.
    """
    if settings.detect.backend == "fake":
        raise ConfigError("the fake back-end has no network", hint="use --backend onnxruntime")
    gpu, note = load_gpu(settings.detect.backend)
    if note:
        _log.info("%s", note)
    say("measuring the layers")
    profile = _tensorrt_layers(gpu, folder, spec, settings) if gpu else _onnxruntime_layers(folder, spec, settings)
    if settings.trace is not None:
        say("recording the timeline")
        write_chrome_trace(settings.trace, _timeline(gpu, folder, spec, settings, profile))
    return profile


# ------------------------------------------------------------------------------------------------ layers


def _onnxruntime_layers(folder: Path, spec: ModelSpec, settings: ProfileSettings) -> Profile:
    from vision.config import checked_model_file
    from vision.detect.onnxruntime.network import OnnxNetwork

    path = checked_model_file(folder, spec)
    threads = _threads(settings)
    with scratch_folder("vision-") as scratch:
        network = OnnxNetwork(path, spec, settings.batch, threads=threads, profile=scratch / "nodes")
        for _ in range(_WARM_UP + settings.runs):
            network.run()
        text = network.end_profiling().read_text(encoding="utf-8")
    times, layers = parse_nodes(text, skip=_WARM_UP)
    return _report(f"{spec.name} on ONNX Runtime, {threads} threads", network.input_shapes, times, layers)


def _threads(settings: ProfileSettings) -> int:
    """Return the number of threads that ONNX Runtime uses for one batch."""
    return settings.detect.threads or len(os.sched_getaffinity(0))


def _tensorrt_layers(gpu: Any, folder: Path, spec: ModelSpec, settings: ProfileSettings) -> Profile:
    from vision.engine.profiler import profile_layers

    with gpu.opened_engine(folder, spec, settings.detect) as engine:
        shapes = gpu.network_shapes(engine, spec, settings.batch)
        with closing(gpu.GpuLane(engine, shapes, graph=False)) as lane:
            times = profile_layers(lane.context, lane.start, lane.finish, runs=settings.runs, warm_up=_WARM_UP)
            layers = parse_layers(engine.information())
            # Some libraries do not report the profile of a layer.
            layers = tuple(layer for layer in layers if layer.profile == lane.profile) or layers
        return _report(f"{engine.label}, profile {lane.profile}", shapes, times, layers)


def _report(label: str, shapes: Any, times: LayerTimes, layers: Sequence[Layer]) -> Profile:
    shape = ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in shapes.items())
    return Profile(label, shape, times.runs, times.total_ms(), times.layers(), tuple(layers))


def profile_json(profile: Profile) -> str:
    """Return the profile as JSON."""
    return json.dumps({"schema": "vision.profile/1", **asdict(profile)}, indent=1)


def parse_nodes(text: str, *, skip: int = 0) -> tuple[LayerTimes, tuple[Layer, ...]]:
    """Parse the output of ONNX Runtime's profiler. Return the times of all layers in each run, and the layers.

    The times do not include the first `skip` runs.

    Raises:
        ModelError: the text has a different format, or contains no run after the first `skip` runs.
    """
    try:
        events = [event for event in json.loads(text) if event.get("ph") == "X"]
        runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == _RUN)
        nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)]
        nodes.sort(key=lambda event: event["ts"])
        return _times(nodes, runs[skip:]), _layers(nodes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fault = f"expected a profile of ONNX Runtime: {type(error).__name__}: {error}"
        raise ModelError(fault, code="no-profile") from error


def _times(nodes: Sequence[Mapping[str, Any]], runs: Sequence[tuple[int, int]]) -> LayerTimes:
    if not runs:
        raise ModelError("the profile of ONNX Runtime contains no run of the network", code="no-run")
    times = LayerTimes()
    for begin_us, end_us in runs:
        times.begin_run()
        for event in nodes:
            if begin_us <= event["ts"] < end_us:
                times.add(_name(event), event["dur"] / 1e3)
    return times


def _layers(nodes: Sequence[Mapping[str, Any]]) -> tuple[Layer, ...]:
    described: dict[str, Mapping[str, Any]] = {}
    for event in nodes:
        described.setdefault(_name(event), event.get("args", {}))
    return tuple(
        Layer(
            name=name,
            kind=str(arguments.get("op_name", "")),
            inputs=_tensors(arguments.get("input_type_shape", ())),
            outputs=_tensors(arguments.get("output_type_shape", ())),
            tactic=str(arguments.get("provider", "")),
            onnx_nodes=(),
            profile=0,
        )
        for name, arguments in described.items()
    )


def _name(event: Mapping[str, Any]) -> str:
    return str(event["name"]).removesuffix(_KERNEL)


def _tensors(described: Sequence[Mapping[str, Sequence[int]]]) -> tuple[LayerTensor, ...]:
    return tuple(LayerTensor("", tuple(shape), dtype) for tensor in described for dtype, shape in tensor.items())


# ------------------------------------------------------------------------------------------------ timeline


def _timeline(gpu: Any, folder: Path, spec: ModelSpec, settings: ProfileSettings, profile: Profile) -> Sequence[Span]:
    recorder = SpanRecorder()
    detect = settings.detect.model_copy(update={"backend": "tensorrt" if gpu else "onnxruntime"})
    if gpu:  # each slot takes seconds to start; on a CPU, the number of slots decides how the cores are shared
        detect = detect.model_copy(update={"batches_in_flight": _TRACE_SLOTS})
    with closing(open_detector(folder, spec, detect)) as detector:
        batch, name = min(settings.batch, detector.spec.max_batch), detector.spec.name
        if batch < settings.batch:
            _log.warning("the timeline shows batches of %d, because %s runs no larger ones", batch, name)
        images = load_frames(shipped_clip(), _TRACE_SLOTS * batch)
        slots = min(_TRACE_SLOTS, detector.spec.batches_in_flight)
        batches = make_batches(detector, images, slots, batch, "bgr")
        trace_slots(detector, batches, 2, SpanRecorder())  # warm-up
        if not gpu:
            trace_slots(detector, batches, _TRACE_ROUNDS, recorder)
        for steps in (False, True) if gpu else ():
            with closing(gpu.DeviceTimeline(detector, steps=steps)) as timeline:
                trace_slots(detector, batches, _TRACE_ROUNDS, recorder, submit=timeline.submit)
                timeline.write_to(recorder)
    begin_ns = min(span.start_ns for span in recorder.spans())
    means = ((time.name, time.mean_ms) for time in profile.times)
    threads = "" if gpu else f", {_threads(settings)} threads"
    lane = f"layers, mean of all runs, batch {settings.batch}{threads}"
    return (*recorder.spans(), *layer_spans(means, lane, begin_ns))


@contextmanager
def recorded_spans(recorder: SpanRecorder) -> Iterator[None]:
    """During a `with` block, record the spans of `vision.metrics.span` in `recorder`, with one lane per thread."""
    send_spans(lambda name: recorder.span(name, f"thread {threading.current_thread().name}"))
    try:
        yield
    finally:
        send_spans(None)


def trace_slots(
    detector: Detector,
    batches: Sequence[Sequence[Frame]],
    rounds: int,
    recorder: SpanRecorder,
    *,
    submit: Callable[[int, Sequence[Frame]], None] | None = None,
) -> None:
    """Run `rounds` batches in each slot, as the program does. Record the spans of each slot and each thread.

    Args:
        detector: the detector, with all slots free.
        batches: one batch per slot.
        rounds: number of batches per slot.
        recorder: receives the spans.
        submit: function to call instead of `detector.submit`, or None for no replacement.
    """
    submit = submit or detector.submit
    submitted_ns = [0] * len(batches)

    def finish(slot: int) -> None:
        results = detector.wait(slot, WAIT_S)
        details = {"frames": len(batches[slot]), "objects": sum(map(len, results))}
        recorder.add(Span("in flight", f"slot {slot}", submitted_ns[slot], time.monotonic_ns(), details))

    with recorded_spans(recorder):
        for turn in range(rounds + 1):
            for slot in range(len(batches)):
                if turn > 0:
                    finish(slot)
                if turn < rounds:
                    submitted_ns[slot] = time.monotonic_ns()
                    submit(slot, batches[slot])
