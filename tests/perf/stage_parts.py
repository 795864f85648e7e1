"""Functions that measure the parts of `tests.perf.stage`: network, copies, stage, steps, and a simple loop."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.benchmark.frames import convert
from vision.config import DetectConfig, ModelSpec, folder_of_model, load_model_spec, shipped_models
from vision.detect.classes import class_ids, class_names
from vision.detect.reference.heads import make_head
from vision.detect.reference.letterbox import Letterbox
from vision.detect.reference.postprocess import to_detections
from vision.detect.tensorrt.detector import TensorRTDetector, build_detector
from vision.detect.tensorrt.loaded_engine import LoadedEngine, StartupTimer
from vision.detect.tensorrt.slot import Slot
from vision.engine.build import BuildOptions
from vision.engine.build_plan import BuildPlan, resolve
from vision.engine.memory import MemoryPool
from vision.engine.open import open_engine
from vision.gpu.cuda import Event, Graph, Stream, open_device
from vision.gpu.memory import CudaMemory, DeviceBuffer, HostBuffer, copy_to_device, copy_to_host, device_frame_buffer
from vision.types import Detections, Frame, FrameBuffer, FrameMeta, PixelFormat

MODEL = "nanodet-g-416"
CLIP = Path(__file__).parents[2] / "configs" / "vtest.mp4"
CLIP_SIZE = (768, 576)
MOST_SLOTS = 6


@dataclass
class Opened:
    """Open detector with its model, its slots, and the durations of the phases of its start."""

    detector: TensorRTDetector
    model: LoadedEngine
    slots: list[Slot]
    phases: StartupTimer


@contextlib.contextmanager
def opened(
    detect: DetectConfig,
    *,
    plan: BuildPlan | None = None,
    update: Callable[[ModelSpec], ModelSpec] = lambda spec: spec,
) -> Iterator[Opened]:
    """Open a detector with the number of slots in `detect`, until the end of the `with` block.

    `plan` replaces the build settings that follow from `detect`. `update` changes the specification of the model.
    """
    folder = folder_of_model(MODEL, shipped_models())
    spec = update(load_model_spec(folder))
    device = open_device()
    phases = StartupTimer()
    with contextlib.ExitStack() as resources:
        pool = MemoryPool(CudaMemory())
        resources.callback(pool.close)
        with phases.phase("engine"):
            engine = resources.enter_context(
                open_engine(folder, spec, device, plan or resolve(detect, spec), BuildOptions(), pool=pool)
            )
        names = class_names(spec)
        head = make_head(spec, len(names), detect.score_threshold, class_ids(names, None, spec.name))
        model = LoadedEngine(engine, spec, head, names, detect)
        detector = build_detector(device, model, phases, resources)
    slots: list[Any] = list(detector._slots)
    try:
        yield Opened(detector, model, slots, phases)
    finally:
        slots.clear()
        detector.close()


# ------------------------------------------------------------------------------------------------ measurement


def repeat(step: Callable[[], object], finish: Callable[[], object], seconds: float, least: int = 20) -> float:
    """Measure the time per `step` in ms. Return the median of three runs, each of which ends with one `finish`."""

    def run(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            step()
        finish()
        return (time.perf_counter() - begin) / count

    run(5)
    count = max(least, int(seconds / 3 / run(10)))
    return statistics.median(run(count) for _ in range(3)) * 1e3


def engine_alone(slots: Sequence[Slot], batch: int, seconds: float) -> float:
    """Measure the time per batch, in ms, of the network alone. The graphs run on one stream per slot, without waits."""
    with contextlib.ExitStack() as resources:
        graphs = [(resources.enter_context(engine_graph(slot, batch)), slot.stream) for slot in slots]
        turn = 0

        def step() -> None:
            nonlocal turn
            graph, stream = graphs[turn % len(graphs)]
            graph.launch(stream)
            turn += 1

        def finish() -> None:
            for slot in slots:
                slot.stream.synchronize()

        return repeat(step, finish, seconds)


def engine_graph(slot: Slot, batch: int) -> Graph:
    """Capture the network of a slot as a CUDA graph, without pre- and post-processing."""
    return Graph.capture(slot.stream, lambda: slot.graphs[batch].context.enqueue(slot.stream.address), "the engine")


def graph_and_eager(target: Opened, batch: int, seconds: float) -> dict[str, float]:
    """Measure the network alone and the whole chain on one stream, in ms, as separate launches and as a CUDA graph.

    The host waits for the result of each batch before it starts the next batch.
    """
    slot = target.slots[0]
    chain, stream = slot.graphs[batch], slot.stream
    frames = frames_for(target.detector, 1, batch, "bgr")[0]  # input of the chain in all measurements below
    target.detector.submit(0, frames)
    target.detector.wait(0, 10.0)

    def waited_for(work: Callable[[], object]) -> float:
        def step() -> None:
            work()
            stream.synchronize()

        return repeat(step, stream.synchronize, seconds)

    with engine_graph(slot, batch) as graph:
        eager_ms = waited_for(lambda: chain.context.enqueue(stream.address))
        graph_ms = waited_for(lambda: graph.launch(stream))
    chain_eager_ms, chain_graph_ms = waited_for(chain.enqueue), waited_for(chain.run)
    return {
        "eager_ms": eager_ms,
        "graph_ms": graph_ms,
        "eager_over_graph": eager_ms / graph_ms,
        "chain_eager_ms": chain_eager_ms,
        "chain_graph_ms": chain_graph_ms,
        "chain_eager_over_graph": chain_eager_ms / chain_graph_ms,
    }


def copy_alone(nbytes: int, batch: int, seconds: float) -> float:
    """Measure the time, in ms, to copy `batch` page-locked frames to the GPU on one stream, with one copy per frame."""
    with contextlib.ExitStack() as resources:
        stream = resources.enter_context(Stream())
        hosts = [resources.enter_context(HostBuffer(nbytes, "frame")).address for _ in range(batch)]
        targets = [resources.enter_context(DeviceBuffer(nbytes, "frame")).address for _ in range(batch)]

        def step() -> None:
            for host, target in zip(hosts, targets, strict=True):
                copy_to_device(target, host, nbytes, stream)

        return repeat(step, stream.synchronize, seconds)


@functools.cache
def images(count: int, pixel_format: PixelFormat, size: tuple[int, int] = CLIP_SIZE) -> Sequence[NDArray[np.uint8]]:
    """Return `count` frames of the clip, scaled to `size` (width, height). Repeat the clip if it is too short."""
    capture = cv2.VideoCapture(str(CLIP))
    found: list[NDArray[np.uint8]] = []
    while len(found) < count:
        good, bgr = capture.read()
        if not good:
            capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            continue
        scaled = bgr if size == CLIP_SIZE else cv2.resize(bgr, size)
        found.append(convert(np.asarray(scaled, np.uint8), pixel_format))
    capture.release()
    return found


def frames_for(
    detector: TensorRTDetector,
    slots: int,
    batch: int,
    pixel_format: PixelFormat,
    *,
    on_gpu: bool = False,
    size: tuple[int, int] = CLIP_SIZE,
) -> list[list[Frame]]:
    """Return a batch of frames for each slot. The frames are in detector buffers or, if `on_gpu`, in GPU memory."""
    clip = images(min(64, slots * batch), pixel_format, size)
    frames: list[Frame] = []
    for index in range(slots * batch):
        image = clip[index % len(clip)]
        if on_gpu:
            buffer = device_image(image, pixel_format)
        else:
            buffer = detector.frame_buffer(size[1], size[0], pixel_format)
            buffer.require_host()[...] = image
        frames.append(Frame(FrameMeta("bench", index, 0, 0, 0, *size), buffer))
    return [frames[slot * batch : (slot + 1) * batch] for slot in range(slots)]


def device_image(image: NDArray[np.uint8], pixel_format: PixelFormat) -> FrameBuffer:
    """Copy a frame of 768x576 pixels to GPU memory. Return the buffer of the copy."""
    buffer = device_frame_buffer(576, 768, pixel_format)
    with Stream() as stream:
        copy_to_device(buffer.device_address, image.ctypes.data, image.nbytes, stream)
        stream.synchronize()
    return buffer


def stage(
    detector: TensorRTDetector, batches: Sequence[Sequence[Frame]], slots: int, seconds: float
) -> dict[str, float]:
    """Measure the loop of the program, which waits for the oldest batch, and then submits the next batch.

    Return the time per batch in ms, the throughput, and the fraction of the time in which the thread was busy.
    """
    for slot in range(slots):
        detector.submit(slot, batches[slot])
    oldest = 0
    objects = 0

    def step() -> None:
        nonlocal oldest, objects
        found = detector.wait(oldest, 10.0)
        objects = sum(map(len, found))
        detector.submit(oldest, batches[oldest])
        oldest = (oldest + 1) % slots

    cpu, wall = time.thread_time(), time.perf_counter()
    took_ms = repeat(step, lambda: None, seconds)
    busy = (time.thread_time() - cpu) / (time.perf_counter() - wall)
    for _ in range(slots):
        detector.wait(oldest, 10.0)
        oldest = (oldest + 1) % slots
    return {
        "slots": slots,
        "ms": took_ms,
        "frames_per_s": len(batches[0]) / took_ms * 1e3,
        "core_busy": busy,
        "objects_of_a_batch": objects,
    }


def latency(detector: TensorRTDetector, batch: Sequence[Frame], seconds: float) -> dict[str, float]:
    """Measure the latency of a batch in ms, both with a blocking `wait` (`asleep_ms`) and with polling (`awake_ms`)."""
    slot: Any = detector._slots[0]

    def asleep() -> None:
        detector.submit(0, batch)
        detector.wait(0, 10.0)

    def awake() -> None:
        detector.submit(0, batch)
        while not slot._done._event.reached():
            pass
        detector.wait(0, 10.0)

    def submit_only() -> float:
        begin = time.perf_counter()
        detector.submit(0, batch)
        took = time.perf_counter() - begin
        detector.wait(0, 10.0)
        return took

    asleep_ms, awake_ms = repeat(asleep, lambda: None, seconds), repeat(awake, lambda: None, seconds)
    submit_ms = statistics.median(submit_only() for _ in range(50)) * 1e3
    return {"asleep_ms": asleep_ms, "awake_ms": awake_ms, "submit_ms": submit_ms}


def steps(slot: Slot, batch: int) -> dict[str, float]:
    """Measure the time, in microseconds, of each step of a single chain, with CUDA events."""
    chain, stream = slot.graphs[batch], slot.stream
    parts: dict[str, Callable[[], object]] = {**dict(chain.steps), "chain as graph": chain.run}
    took = {}
    with Event(timing=True) as begin, Event(timing=True) as end:
        for name, part in parts.items():
            chain.run()
            samples = []
            for _ in range(30):
                stream.synchronize()
                begin.record(stream)
                part()
                end.record(stream)
                end.synchronize()
                samples.append(end.ms_since(begin) * 1e3)
            took[name] = statistics.median(samples)
    return took


def naive(model: LoadedEngine, slot: Slot, count: int = 40) -> float:
    """Measure the time per frame, in ms, of a synchronous loop with pre-processing on the CPU and pageable memory."""
    spec, stream, memory, context = model.spec, slot.stream, slot.memory, slot.graphs[1].context
    frame = model.engine.tensor(model.input_name)
    mean, std = np.array(spec.input.mean, np.float32), np.array(spec.input.std, np.float32)
    shapes = {name: size.shape or () for name, size in context.output_sizes().items()}
    decoder = model.head.bind(shapes)
    outputs = {name: np.empty(shapes[name], model.engine.tensor(name).dtype) for name in decoder.outputs}

    def one(image: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        box = Letterbox.fit(width, height, spec.input.width, spec.input.height, spec.input.letterbox)
        content_width, content_height = box.content(width, height)
        canvas = np.full((spec.input.height, spec.input.width, 3), spec.input.fill, np.uint8)
        scaled = cv2.resize(image, (content_width, content_height))
        canvas[box.pad_y_px : box.pad_y_px + content_height, box.pad_x_px : box.pad_x_px + content_width] = scaled
        pixels = (canvas.astype(np.float32) - mean) / std
        if frame.interleaved:
            tensor = np.pad(pixels, ((0, 0), (0, 0), (0, 1))).astype(frame.dtype)
        else:
            tensor = np.ascontiguousarray(pixels.transpose(2, 0, 1), frame.dtype)
        copy_to_device(memory.input.address, tensor.ctypes.data, tensor.nbytes, stream)
        context.enqueue(stream.address)
        for name, output in outputs.items():
            copy_to_host(output.ctypes.data, memory.outputs[name].address, output.nbytes, stream)
        stream.synchronize()
        candidates = decoder.decode([output[0].astype(np.float32) for output in outputs.values()])
        to_detections(candidates, spec.nms, box, width, height)

    clip = images(count, "bgr")
    one(clip[0])
    begin = time.perf_counter()
    for image in clip:
        one(image)
    return (time.perf_counter() - begin) / count * 1e3


def clip_detections(detector: TensorRTDetector, count: int) -> list[Detections]:
    """Detect objects in the first `count` frames of the clip, in full batches. Return the detections of each frame."""
    found: list[Detections] = []
    pixels = images(count, "bgr")
    metas = [FrameMeta("clip", index, 0, 0, 0, *CLIP_SIZE) for index in range(count)]
    frames = [Frame.wrap(meta, image, "bgr") for meta, image in zip(metas, pixels, strict=True)]
    for begin in range(0, count, detector.spec.max_batch):
        detector.submit(0, frames[begin : begin + detector.spec.max_batch])
        found += detector.wait(0, 10.0)
    return found


def agreement(found: Sequence[Detections], wanted: Sequence[Detections], least: float = 0.3) -> dict[str, float]:
    """Return the fraction of boxes in `wanted` that match a box in `found`, and the largest difference of their scores.

    Boxes match if their IoU is at least 0.98. Only boxes with a score of at least `least` count.
    """
    total = matched = 0
    difference = 0.0
    for given, expected in zip(found, wanted, strict=True):
        for box, score, class_id in zip(expected.boxes_xyxy, expected.scores, expected.class_ids, strict=True):
            if score < least:
                continue
            total += 1
            alike = (given.class_ids == class_id) & (_iou(given.boxes_xyxy, box) >= 0.98)
            matched += bool(alike.any())
            if alike.any():
                difference = max(difference, float(np.abs(given.scores[alike] - score).min()))
    return {"boxes": total, "matched": matched / max(total, 1), "score_difference": difference}


def _iou(boxes: NDArray[np.float32], box: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.asarray(shared / (areas + np.prod(box[2:] - box[:2]) - shared), np.float32)
