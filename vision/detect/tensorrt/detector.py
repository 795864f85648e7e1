"""Detection on an NVIDIA GPU with TensorRT or TensorRT-RTX: one CUDA graph per batch, from pixels to boxes.

Waiting limits a detector on a GPU more than arithmetic does: for the copies of frames, for the launches of a hundred
small kernels, for the host. So several batches are in flight, each in a slot with its own memory, and each batch is one
launch (`vision.detect.tensorrt.slot`). All memory is allocated and all graphs are checked before READY.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vision.config import DetectConfig, ModelSpec
from vision.detect.classes import class_ids, class_names
from vision.detect.detector import SLOTS_GPU, SLOTS_INTEGRATED, DetectorSpec, GpuMemory, GpuSpec, InFlight
from vision.detect.reference.heads import make_head
from vision.detect.tensorrt.completion import ConcurrencyLimit
from vision.detect.tensorrt.dynamic_outputs import DynamicSlot, choose_open_outputs
from vision.detect.tensorrt.frames import PIXEL_FORMATS, FrameUploader
from vision.detect.tensorrt.graph_check import GraphCheck, Noise, Snapshot
from vision.detect.tensorrt.kernels import KERNELS, Output, PostprocessProgram, kept_classes, threshold
from vision.detect.tensorrt.loaded_engine import LoadedEngine, StartupTimer, kernel_cache, load_letterbox
from vision.detect.tensorrt.slot import (
    DetectorSlot,
    ExecutionLane,
    Kernels,
    Slot,
    TensorSizes,
    UploadPath,
    drain,
    slot_bytes,
)
from vision.engine.build import BuildOptions
from vision.engine.build_plan import require_precision, resolve
from vision.engine.cuda_memory import CudaMemory
from vision.engine.library import find_library
from vision.engine.memory import BudgetLine, MemoryBudget, MemoryPool, shared_scratch_bytes
from vision.engine.open import open_engine
from vision.engine.runtime import Context
from vision.errors import Closed, DeviceError, ModelError
from vision.gpu.cuda import Device, Stream, memory_info, open_device, use_device
from vision.gpu.memory import DeviceBuffer, abandon, allocated, device_frame_buffer, page_locked_frame_buffer
from vision.gpu.nvrtc import Module, Source
from vision.types import Detections, Frame, FrameBuffer, PixelFormat

_log = logging.getLogger(__name__)

_CLOSE_S: Final = 5.0
"""Longer than batches in flight take. With the rest of the shutdown, shorter than systemd's stop timeout."""


def open_tensorrt_detector(
    folder: Path, spec: ModelSpec, detect: DetectConfig, *, stop: threading.Event | None = None
) -> TensorRTDetector:
    """Open the detector for a model on this machine's GPU. Build the engine if there is none yet.

    Args:
        stop: ends an engine build, and the creation of contexts between two of them.

    Raises:
        Closed: stopped.
        DeviceMissing: no GPU, no driver, a driver too old, or no TensorRT.
        ConfigError: `detect.classes` names a class that the model does not have.
        ModelError: the model cannot be built or does not match its specification.
        DeviceError: not enough memory, or a graph cannot be captured or gives other results than its steps.
    """
    timer = StartupTimer()
    device = open_device()
    if detect.iou_threshold is not None:
        spec = spec.model_copy(update={"nms": spec.nms.model_copy(update={"iou_threshold": detect.iou_threshold})})
    names = class_names(spec)
    head = make_head(spec, len(names), detect.score_threshold, class_ids(names, detect.classes, spec.name))
    with contextlib.ExitStack() as resources:
        pool = MemoryPool(CudaMemory())
        resources.callback(_close_quietly, pool)
        options = BuildOptions(cancel=stop or threading.Event(), prepare_thread=lambda: use_device(device))
        with timer.phase("engine"):
            engine = resources.enter_context(
                open_engine(folder, spec, device, resolve(detect, spec), options, pool=pool)
            )
        detector = build_detector(device, LoadedEngine(engine, spec, head, names, detect), timer, resources, stop=stop)
    _log.info("%s is ready after %s; %s", detector.spec.name, timer, pool.report())
    return detector


def check_device(detect: DetectConfig) -> None:
    """Check that TensorRT and a GPU that has the precision are present.

    Raises:
        DeviceMissing: no GPU, no driver, a driver too old, or no TensorRT.
        ModelError: the GPU does not have the precision.
    """
    device = open_device()
    find_library()
    require_precision(detect.precision, device)


def build_detector(
    device: Device,
    model: LoadedEngine,
    timer: StartupTimer,
    resources: contextlib.ExitStack,
    *,
    stop: threading.Event | None = None,
) -> TensorRTDetector:
    """Build a detector over an open engine. The detector takes over what `resources` holds."""
    use_device(device)
    count = model.detect.batches_in_flight or (SLOTS_INTEGRATED if device.integrated else SLOTS_GPU)
    with timer.phase("contexts"):
        lanes = _open_lanes(model, [resources.enter_context(Stream()) for _ in range(count)], stop)
    frame = model.engine.tensor(model.input_name)
    limit = ConcurrencyLimit(device.cache_bytes, frame.bytes_of(model.input_shape(1)))
    uploads = UploadPath(FrameUploader(model.spec.input), resources.enter_context(Stream()), limit)
    output_sizes = lanes[0].greatest.output_sizes()
    if any(size.shape is None for size in output_sizes.values()):
        dynamic = _dynamic_slots(device, model, lanes, uploads, timer=timer, resources=resources)
        return TensorRTDetector(device, model, timer=timer, uploads=uploads, slots=dynamic, resources=resources)
    slots = _graph_slots(device, model, lanes, uploads, timer=timer, resources=resources)
    return TensorRTDetector(device, model, timer=timer, uploads=uploads, slots=slots, resources=resources)


def _open_lanes(model: LoadedEngine, streams: Sequence[Stream], stop: threading.Event | None) -> list[ExecutionLane]:
    """Create a context for every batch size on every stream, one by one: TensorRT holds the GIL meanwhile.

    Raises:
        Closed: `stop` was set. TensorRT-RTX compiles kernels for its first contexts, which takes seconds each.
    """
    lanes = []
    for stream in streams:
        contexts: dict[int, Context] = {}
        for batch in model.batches():
            if stop is not None and stop.is_set():
                raise Closed("stopped while kernels were compiled")
            contexts[batch] = model.context(batch, stream)
            time.sleep(0)  # let other threads run, for signals and for subscribers that join
        lanes.append(ExecutionLane(stream, contexts))
    return lanes


def _close_quietly(pool: MemoryPool) -> None:
    """Close the pool after a failed start. TensorRT may still hold some of it; the first error matters more."""
    try:
        pool.close()
    except DeviceError as error:
        _log.debug("%s", error)


class TensorRTDetector:
    """Detector on a GPU. Satisfies `vision.detect.detector.Detector`."""

    def __init__(
        self,
        device: Device,
        model: LoadedEngine,
        *,
        timer: StartupTimer,
        uploads: UploadPath,
        slots: Sequence[DetectorSlot],
        resources: contextlib.ExitStack,
    ) -> None:
        self.startup = timer
        self._device = device
        self._model = model
        self._uploads = uploads
        self._slots = list(slots)
        self.spec = _detector_spec(device, model, slots)
        self._in_flight = InFlight[DetectorSlot](self.spec)
        self.close_s = _CLOSE_S
        self._resources = resources.pop_all()

    def memory(self) -> GpuMemory:
        held = allocated()
        return GpuMemory(held.device_bytes, held.host_bytes)

    def counters(self) -> Mapping[str, int]:
        """Return how often the memory of data-dependent outputs grew, for status messages."""
        dynamic = [slot for slot in self._slots if isinstance(slot, DynamicSlot)]
        return {"detector.outputs_grown": sum(slot.grown for slot in dynamic)} if dynamic else {}

    def parts(self) -> tuple[Sequence[DetectorSlot], Stream]:
        """Return the slots and their copy stream. For benchmarks only."""
        return self._slots, self._uploads.copies

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        self._refuse_if_closed()
        return page_locked_frame_buffer(height_px, width_px, pixel_format, integrated=self._device.integrated)

    def device_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        self._refuse_if_closed()
        return device_frame_buffer(height_px, width_px, pixel_format)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self._in_flight.require_free(slot, frames)
        free = self._slots[slot]
        free.submit(frames)
        self._in_flight.batches[slot] = free

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        submitted = self._in_flight.submitted(slot)
        if not submitted.ready(timeout_s):
            raise TimeoutError(f"slot {slot} is not ready after {timeout_s} s")
        self._in_flight.batches[slot] = None
        return submitted.detections()

    def close(self) -> None:
        if self._in_flight.closed:
            return
        self._in_flight.close()
        streams = [*(slot.stream for slot in self._slots), self._uploads.copies]
        self._slots = []
        release_in_time(self._device, streams, self._resources, self.close_s)

    def _refuse_if_closed(self) -> None:
        if self._in_flight.closed:
            raise Closed("the detector is closed")

    def __del__(self) -> None:
        if hasattr(self, "_resources") and not self._in_flight.closed:
            warnings.warn("TensorRTDetector was not closed", ResourceWarning, stacklevel=2)


def release_in_time(
    device: Device, streams: Sequence[Stream], resources: contextlib.ExitStack, limit_s: float
) -> threading.Thread:
    """Wait for all work, then free everything, in a thread: on a GPU that hangs, neither call returns.

    After `limit_s`, the thread is abandoned. `vision.cli.main` ends such a process without waiting for the thread.
    """
    failed: list[BaseException] = []

    def release() -> None:
        try:
            drain(device, streams)
            resources.close()
        except BaseException as error:  # noqa: BLE001 - raised below, in the calling thread
            failed.append(error)

    thread = threading.Thread(target=release, name="gpu-release", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        abandon()
        _log.error("%s does not respond: its memory is freed when the process ends", device.name)
    elif failed:
        raise failed[0]
    return thread


def _detector_spec(device: Device, model: LoadedEngine, slots: Sequence[DetectorSlot]) -> DetectorSpec:
    gpu = GpuSpec(model.detect.precision, graphs_off(model.detect, slots))
    name = f"{find_library()}, {device.name} ({device.arch}), {gpu.precision}"
    return DetectorSpec(
        name=name if gpu.graphs else f"{name}, no graphs",
        class_names=model.class_names,
        batches_in_flight=len(slots),
        parallel=max(1, len(slots) - 1) if gpu.graphs else 1,
        max_batch=max(model.batches()),
        pixel_formats=PIXEL_FORMATS,
        gpu=gpu,
    )


def graphs_off(detect: DetectConfig, slots: Sequence[DetectorSlot]) -> str:
    """Return why batches do not run as CUDA graphs. Empty if they do."""
    if any(isinstance(slot, DynamicSlot) for slot in slots):
        return "the model has outputs whose size depends on the frame"
    return "" if detect.graphs else "`detect: {graphs: off}`"


def _graph_slots(
    device: Device,
    model: LoadedEngine,
    lanes: Sequence[ExecutionLane],
    uploads: UploadPath,
    *,
    timer: StartupTimer,
    resources: contextlib.ExitStack,
) -> list[Slot]:
    """Build slots that run as CUDA graphs, warmed up and checked."""
    outputs, sizes = _measure_tensors(model, lanes[0])
    with timer.phase("kernels"):
        program = PostprocessProgram.of(model.spec, model.head, len(model.class_names), outputs, device.shared_bytes)
        kernels = resources.enter_context(_load_kernels(model, program, device))
    with timer.phase("memory"):
        budget = _budget(model, sizes, program, len(lanes))
        free_bytes, total_bytes = memory_info()
        budget.require(free_bytes + model.engine.weights_bytes, total_bytes, shared_with_host=device.integrated)
        _log.info("%s\n%s", model.spec.name, budget.table())
        slots = [resources.enter_context(Slot(sizes, lane, kernels, uploads)) for lane in lanes]
    _warm_up(model, slots, program, outputs, timer)
    if model.engine.save_kernels():
        _log.debug("saved the kernels that the library compiled for the next start")
    return slots


def _dynamic_slots(
    device: Device,
    model: LoadedEngine,
    lanes: Sequence[ExecutionLane],
    uploads: UploadPath,
    *,
    timer: StartupTimer,
    resources: contextlib.ExitStack,
) -> list[DynamicSlot]:
    """Build slots for an engine with data-dependent outputs, warmed up."""
    _log.warning(
        "%s has outputs whose size depends on the frame (NonMaxSuppression or NonZero inside): it runs without CUDA "
        "graphs, and the host waits for it",
        model.spec.name,
    )
    names = choose_open_outputs(model, lanes[0])
    with timer.phase("kernels"):
        letterbox = resources.enter_context(load_letterbox(model, device))
    with timer.phase("memory"):
        slots = [resources.enter_context(DynamicSlot(model, names, lane, letterbox, uploads)) for lane in lanes]
    with timer.phase("warm-up"):
        for slot in slots:
            slot.warm_up()
    model.engine.save_kernels()
    return slots


def _warm_up(
    model: LoadedEngine,
    slots: Sequence[Slot],
    program: PostprocessProgram,
    outputs: Mapping[str, Output],
    timer: StartupTimer,
) -> None:
    """Run the steps of every batch size once and capture them, then compare each graph with its steps.

    The comparison comes last, so that it sees what contexts do to the memory that they share.
    """
    checked: list[tuple[GraphCheck, Snapshot]] = []
    with Noise(model.spec.input) as noise:
        for number, slot in enumerate(slots):
            noise.fill(slot.memory, max(slot.graphs), slot.stream)
            with timer.phase("first slot's graphs" if number == 0 else "other slots' graphs"):
                for batch, graph in slot.graphs.items():
                    check = GraphCheck(slot, graph, outputs, f"{model.spec.name}, slot {number}, batch {batch}")
                    checked.append((check, check.run()))
                    if model.detect.graphs:
                        graph.capture(check.label)
        with timer.phase("comparison"):
            for check, eager in checked:
                model.head.check_scores([eager.first(name) for name in program.outputs])
                if model.detect.graphs:
                    check.require_same(eager)


def _measure_tensors(model: LoadedEngine, lane: ExecutionLane) -> tuple[Mapping[str, Output], TensorSizes]:
    """Return the outputs of one frame, and the bytes of all tensors of one slot at the largest batch."""
    outputs: dict[str, Output] = {}
    bytes_of: dict[str, int] = {}
    for name, size in lane.greatest.output_sizes().items():
        if size.shape is None or size.bytes is None:
            raise ModelError(f"{model.spec.name}: the size of output {name} depends on the data")
        dtype = model.engine.tensor(name).dtype
        outputs[name] = Output(size.shape[1:], dtype)
        bytes_of[name] = size.bytes
    batch = max(lane.contexts)
    scratch = shared_scratch_bytes(context.memory_bytes for context in lane.contexts.values())
    item = np.dtype(model.engine.tensor(model.input_name).dtype).itemsize
    input_bytes = item * int(np.prod(model.input_shape(batch)))
    return outputs, TensorSizes(batch, model.input_name, input_bytes, bytes_of, scratch)


def _budget(model: LoadedEngine, sizes: TensorSizes, program: PostprocessProgram, slots: int) -> MemoryBudget:
    """Return what is allocated before READY. The cameras' frames follow when their sizes are known."""
    own = slot_bytes(sizes.batch, program)
    lines = (
        BudgetLine("weights", "device", model.engine.weights_bytes),
        BudgetLine("activations, a slot", "device", sizes.scratch_bytes, slots),
        BudgetLine("network input, a slot", "device", sizes.input_bytes, slots),
        BudgetLine("network outputs, a slot", "device", sum(sizes.outputs.values()), slots),
        BudgetLine("decoding and NMS, a slot", "device", own.device, slots),
        BudgetLine("results, a slot", "host", own.host, slots),
    )
    return MemoryBudget(lines)


@contextlib.contextmanager
def _load_kernels(model: LoadedEngine, program: PostprocessProgram, device: Device) -> Iterator[Kernels]:
    """Load the kernels of a model."""
    with contextlib.ExitStack() as resources:
        letterbox = resources.enter_context(load_letterbox(model, device))
        source = Source.read(KERNELS / program.file, program.definitions)
        module = resources.enter_context(Module.build(source, device.arch, kernel_cache()))
        keep = kept_classes(model.head, len(model.class_names))
        kept = resources.enter_context(DeviceBuffer(keep.nbytes, "classes to report"))
        kept.write(keep)
        yield Kernels(
            letterbox=letterbox,
            pairs=module.kernel("find_pairs"),
            objects=module.kernel("objects", shared_bytes=program.work_bytes if program.shared_work else 0),
            program=program,
            threshold=threshold(model.head, kept.address),
            iou=model.spec.nms.iou_threshold,
        )
