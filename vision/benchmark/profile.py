"""`vision profile MODEL`: where the time goes in the network, layer by layer, and between the stages around it."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vision.benchmark.frames import load_frames, make_batches, shipped_clip
from vision.benchmark.nodes import parse_nodes
from vision.benchmark.timeline import trace_slots
from vision.config import DetectConfig, ModelSpec
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.engine.profiler import Layer, LayerTimes, Profile, parse_layers
from vision.engine.trace import Span, SpanRecorder, layer_spans, write_chrome_trace
from vision.errors import ConfigError, DeviceMissing, ModelError

_log = logging.getLogger(__name__)

RUNS: Final = 50
_WARM_UP: Final = 5
_TRACE_ROUNDS: Final = 6
_TRACE_SLOTS: Final = 2


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """What to profile."""

    batch: int = 1
    detect: DetectConfig = field(default_factory=DetectConfig)  # of `vision run`; takes such batches
    runs: int = RUNS
    trace: Path | None = None  # a Chrome trace goes there


def profile_model(
    folder: Path, spec: ModelSpec, settings: ProfileSettings, say: Callable[[str], None] = lambda _: None
) -> Profile:
    """Measure and describe every layer; with `settings.trace`, also a time line of two batches in flight.

    Raises:
        VisionError: the model or the back-end is not there, or the model does not take such a batch.
    """
    wanted = settings.detect.backend
    if wanted == "fake":
        raise ConfigError("the fake back-end has no network", hint="--backend onnxruntime")
    gpu = wanted != "onnxruntime" and _has_gpu(required=wanted == "tensorrt")
    say("layers")
    profile = (_tensorrt_layers if gpu else _onnxruntime_layers)(folder, spec, settings)
    if settings.trace is not None:
        say("time line")
        backend = "tensorrt" if gpu else "onnxruntime"
        write_chrome_trace(settings.trace, _timeline(folder, spec, settings, backend, profile))
    return profile


def _has_gpu(*, required: bool) -> bool:
    try:
        from vision.benchmark import gpu

        gpu.require()
    except DeviceMissing as missing:
        if required:
            raise
        _log.info("no TensorRT here, so ONNX Runtime's nodes are shown and no engine's layers: %s", missing.args[0])
        return False
    return True


# ------------------------------------------------------------------------------------------------ layers


def _onnxruntime_layers(folder: Path, spec: ModelSpec, settings: ProfileSettings) -> Profile:
    from vision.detect.model_file import checked_model_file
    from vision.detect.onnxruntime.network import OnnxNetwork

    path = checked_model_file(folder, spec)
    threads = _threads(settings)
    with tempfile.TemporaryDirectory(prefix="vision-") as scratch:
        network = OnnxNetwork(path, spec, settings.batch, threads=threads, profile=Path(scratch) / "nodes")
        for _ in range(_WARM_UP + settings.runs):
            network.run()
        text = network.end_profiling().read_text(encoding="utf-8")
    times, layers = parse_nodes(text, skip=_WARM_UP)
    return _report(f"{spec.name} on ONNX Runtime, {threads} threads", network.input_shapes, times, layers)


def _threads(settings: ProfileSettings) -> int:
    """Return the number of threads for one batch in the profile of ONNX Runtime."""
    return settings.detect.threads or len(os.sched_getaffinity(0))


def _tensorrt_layers(folder: Path, spec: ModelSpec, settings: ProfileSettings) -> Profile:
    from vision.benchmark import gpu
    from vision.engine.profiler import profile_layers

    with gpu.opened_engine(folder, spec, settings.detect) as engine:
        shapes = gpu.frame_shapes(engine, spec, settings.batch)
        with closing(gpu.GpuLane(engine, shapes, graph=False)) as lane:
            if lane.context is None:
                raise ModelError("the context was closed")
            times = profile_layers(lane.context, lane.start, lane.finish, runs=settings.runs, warm_up=_WARM_UP)
            layers = layers_of(parse_layers(engine.information()), lane.profile)
        return _report(f"{engine.label}, profile {lane.profile}", shapes, times, layers)


def layers_of(layers: Sequence[Layer], profile: int) -> tuple[Layer, ...]:
    """Layers of one optimisation profile; all of them where the library does not tell them apart."""
    return tuple(layer for layer in layers if layer.profile == profile) or tuple(layers)


def _report(label: str, shapes: Any, times: LayerTimes, layers: Sequence[Layer]) -> Profile:
    shape = ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in shapes.items())
    return Profile(label, shape, times.runs, times.total_ms(), times.layers(), tuple(layers))


def profile_json(profile: Profile) -> str:
    """All of it, for programs."""
    return json.dumps({"schema": "vision.profile/1", **profile.as_json()}, indent=1)


# ------------------------------------------------------------------------------------------------ time line


def _timeline(
    folder: Path, spec: ModelSpec, settings: ProfileSettings, backend: str, profile: Profile
) -> Sequence[Span]:
    recorder = SpanRecorder()
    detect = settings.detect.model_copy(update={"backend": backend})
    if backend == "tensorrt":  # each slot costs seconds at start; on a CPU their number decides how cores are shared
        detect = detect.model_copy(update={"batches_in_flight": _TRACE_SLOTS})
    with closing(open_detector(folder, spec, detect)) as detector:
        batch = min(settings.batch, detector.spec.max_batch)
        if batch < settings.batch:
            _log.warning(
                "the slots of the time line take batches of %d: %s has no larger ones", batch, detector.spec.name
            )
        images = load_frames(shipped_clip(), _TRACE_SLOTS * batch)
        slots = min(_TRACE_SLOTS, detector.spec.batches_in_flight)
        batches = make_batches(detector, images, slots, batch, "bgr")
        trace_slots(detector, batches, 2, SpanRecorder())  # caches and clocks
        if backend == "tensorrt":
            _trace_on_device(detector, batches, recorder)
        else:
            trace_slots(detector, batches, _TRACE_ROUNDS, recorder)
    begin_ns = min(span.start_ns for span in recorder.spans())
    means = ((time.name, time.mean_ms) for time in profile.times)
    threads = f", {_threads(settings)} threads" if backend == "onnxruntime" else ""
    lane = f"layers, mean of all runs, batch {settings.batch}{threads}"
    return (*recorder.spans(), *layer_spans(means, lane, begin_ns))


def _trace_on_device(detector: Detector, batches: Any, recorder: SpanRecorder) -> None:
    """As it runs, and then step by step."""
    from vision.benchmark.device_timeline import DeviceTimeline
    from vision.detect.tensorrt.detector import TensorRTDetector

    if not isinstance(detector, TensorRTDetector):
        raise ModelError(f"expected the TensorRT detector, got {type(detector).__name__}")
    for steps in (False, True):
        with closing(DeviceTimeline(detector, steps=steps)) as timeline:
            trace_slots(detector, batches, _TRACE_ROUNDS, recorder, submit=timeline.submit)
            timeline.write_to(recorder)
