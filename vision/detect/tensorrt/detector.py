"""Detection on an NVIDIA GPU with TensorRT or TensorRT-RTX: everything from pixels to boxes in one CUDA graph a batch.

What limits a detector on a GPU is not arithmetic but waiting: for the copy of the frames, for the launch of a hundred
small kernels, for the host. So several batches are in flight, each in a slot with memory of its own, and each batch is
one launch (`vision.detect.tensorrt.slot`). Whatever can be made or found out is, before READY.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from vision.config import DetectConfig, ModelSpec
from vision.detect.classes import class_ids, class_names
from vision.detect.detector import SLOTS_GPU, SLOTS_INTEGRATED, DetectorSpec, GpuMemory, GpuSpec
from vision.detect.reference.heads import make_head
from vision.detect.tensorrt.concurrency_limit import ConcurrencyLimit
from vision.detect.tensorrt.dynamic_outputs import DynamicSlot, bind_open_outputs
from vision.detect.tensorrt.frames import PIXEL_FORMATS, FrameUploader
from vision.detect.tensorrt.graph_check import GraphCheck, Noise, Snapshot
from vision.detect.tensorrt.kernels import KERNELS, Output, PostprocessProgram, kept_classes, threshold
from vision.detect.tensorrt.loaded_engine import LoadedEngine, StartupTimer, kernel_cache, load_letterbox
from vision.detect.tensorrt.slot import ExecutionLane, Kernels, Slot, TensorRoom, UploadPath, drain, slot_bytes
from vision.engine.cuda_memory import CudaMemory
from vision.engine.library import find_library
from vision.engine.memory import MemoryBudget, MemoryPool, detector_budget, make_allocator, shared_scratch
from vision.engine.open import open_engine
from vision.engine.precision import require_precision
from vision.engine.runtime import Context
from vision.errors import Closed, DeviceError, ModelError
from vision.gpu.cuda import Device, Stream, memory_info, open_device, use_device
from vision.gpu.frame_buffer import device_frame_buffer, page_locked_frame_buffer
from vision.gpu.memory import DeviceBuffer, abandon, allocated
from vision.gpu.nvrtc import Module, Source
from vision.types import Detections, Frame, FrameBuffer, PixelFormat

_log = logging.getLogger(__name__)

_CLOSE_S: Final = 5.0
"""Longer than any batches that are still in flight take; with what else has to end, shorter than systemd waits."""


def open_tensorrt_detector(
    folder: Path, spec: ModelSpec, detect: DetectConfig, *, stop: threading.Event | None = None
) -> TensorRTDetector:
    """The detector for a model on the GPU of this machine; builds the engine if there is none yet.

    Args:
        stop: ends a build, and the compiling of kernels between two of their contexts.

    Raises:
        Closed: stopped.
        DeviceMissing: no GPU, no driver, a driver too old, or no TensorRT.
        ConfigError: `detect.classes` names a class that the model does not have.
        ModelError: the model cannot be built or is not what its card says.
        DeviceError: not enough memory, or a graph that cannot be captured or gives other results than without.
    """
    phases = StartupTimer()
    device = open_device()
    if detect.iou_threshold is not None:
        spec = spec.model_copy(update={"nms": spec.nms.model_copy(update={"iou_threshold": detect.iou_threshold})})
    names = class_names(spec)
    head = make_head(spec, len(names), detect.score_threshold, class_ids(names, detect.classes, spec.name))
    with contextlib.ExitStack() as made:
        pool = MemoryPool(CudaMemory())
        made.callback(_close_quietly, pool)
        with phases.phase("engine"):
            engine = made.enter_context(
                open_engine(
                    folder,
                    spec,
                    detect,
                    device,
                    allocator=make_allocator(pool),
                    cancel=stop,
                    prepare_thread=lambda: use_device(device),
                )
            )
        detector = detector_of(device, LoadedEngine(engine, spec, head, names, detect), phases, made, stop=stop)
    _log.info("%s is ready after %s; %s", detector.spec.name, phases, pool.report())
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


def detector_of(
    device: Device,
    model: LoadedEngine,
    phases: StartupTimer,
    made: contextlib.ExitStack,
    *,
    stop: threading.Event | None = None,
) -> TensorRTDetector:
    """A detector over an engine that is open. What `made` holds is the detector's to close from then on."""
    use_device(device)
    count = model.detect.batches_in_flight or (SLOTS_INTEGRATED if device.integrated else SLOTS_GPU)
    with phases.phase("contexts"):
        lanes = _open_lanes(model, [made.enter_context(Stream()) for _ in range(count)], stop)
    frame = model.engine.tensor(model.input_name)
    turns = ConcurrencyLimit(device.cache_bytes, frame.bytes_of(model.input_shape(1)))
    inlet = UploadPath(FrameUploader(model.spec.input), made.enter_context(Stream()), turns)
    sizes = lanes[0].greatest.output_sizes()
    if any(size.shape is None for size in sizes.values()):
        dynamic = _dynamic_slots(device, model, lanes, inlet, phases=phases, made=made)
        return TensorRTDetector(device, model, phases=phases, inlet=inlet, slots=dynamic, made=made)
    slots = _graph_slots(device, model, lanes, inlet, phases=phases, made=made)
    return TensorRTDetector(device, model, phases=phases, inlet=inlet, slots=slots, made=made)


def _open_lanes(model: LoadedEngine, streams: Sequence[Stream], stop: threading.Event | None) -> list[ExecutionLane]:
    """A context for every batch size on every stream, one after the other: TensorRT keeps the GIL meanwhile.

    Raises:
        Closed: `stop` was set. The first contexts of an engine of TensorRT-RTX take seconds each: kernels are compiled.
    """
    lanes = []
    for stream in streams:
        contexts: dict[int, Context] = {}
        for batch in model.batches():
            if stop is not None and stop.is_set():
                raise Closed("stopped while kernels were compiled")
            contexts[batch] = model.context(batch, stream)
            time.sleep(0)  # signals, and messages to who joins, have their turn
        lanes.append(ExecutionLane(stream, contexts))
    return lanes


def _close_quietly(pool: MemoryPool) -> None:
    """Close the pool after a failed start. TensorRT may still hold some of it; why it failed is what matters."""
    try:
        pool.close()
    except DeviceError as error:
        _log.debug("%s", error)


class DetectorSlot(Protocol):
    """One batch in flight: `vision.detect.tensorrt.slot.Slot`, or `DynamicSlot` where the data decides sizes."""

    stream: Stream

    @property
    def frames(self) -> int:
        """Of the batch in flight; 0: none."""

    def submit(self, frames: Sequence[Frame]) -> None:
        """Queue a batch."""

    def ready(self, timeout_s: float) -> bool:
        """Wait until the batch in flight is done, at most so long."""

    def detections(self) -> list[Detections]:
        """Its result, in arrays of its own. The slot is free again."""


class TensorRTDetector:
    """`Detector` on a GPU; the contract is that of `vision.detect.detector.Detector`."""

    def __init__(
        self,
        device: Device,
        model: LoadedEngine,
        *,
        phases: StartupTimer,
        inlet: UploadPath,
        slots: Sequence[DetectorSlot],
        made: contextlib.ExitStack,
    ) -> None:
        self.phases = phases
        self._device = device
        self._model = model
        self._inlet = inlet
        self._slots = list(slots)
        self.spec = _detector_spec(device, model, slots)
        self._made: contextlib.ExitStack | None = made.pop_all()
        self.close_s = _CLOSE_S

    def memory(self) -> GpuMemory:
        held = allocated()
        return GpuMemory(held.device_bytes, held.host_bytes)

    def counters(self) -> Mapping[str, int]:
        """For status messages: how often memory had to grow for outputs whose size the data decides."""
        dynamic = [slot for slot in self._slots if isinstance(slot, DynamicSlot)]
        return {"detector.outputs_grown": sum(slot.grown for slot in dynamic)} if dynamic else {}

    def parts(self) -> tuple[Sequence[DetectorSlot], Stream]:
        """The slots, and the stream of the copies to them: for what measures, and never for what detects."""
        return self._slots, self._inlet.copies

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        self._refuse_if_closed()
        return page_locked_frame_buffer(height_px, width_px, pixel_format, integrated=self._device.integrated)

    def device_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        self._refuse_if_closed()
        return device_frame_buffer(height_px, width_px, pixel_format)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self._refuse_if_closed()
        if not 0 <= slot < len(self._slots):
            raise ValueError(f"slots are 0 to {len(self._slots) - 1}, got {slot}")
        if not 1 <= len(frames) <= self.spec.max_batch:
            raise ValueError(f"a batch has 1 to {self.spec.max_batch} frames, got {len(frames)}")
        chosen = self._slots[slot]
        if chosen.frames:
            raise ValueError(f"slot {slot} is still submitted: wait for it first")
        chosen.submit(frames)

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        self._refuse_if_closed()
        chosen = self._slots[slot] if 0 <= slot < len(self._slots) else None
        if chosen is None or not chosen.frames:
            raise ValueError(f"nothing was submitted to slot {slot}")
        if not chosen.ready(timeout_s):
            raise TimeoutError(f"slot {slot} is not ready after {timeout_s} s")
        return chosen.detections()

    def close(self) -> None:
        made, self._made = self._made, None
        if made is None:
            return
        streams = [*(slot.stream for slot in self._slots), self._inlet.copies]
        self._slots = []
        release_in_time(self._device, streams, made, self.close_s)

    def _refuse_if_closed(self) -> None:
        if self._made is None:
            raise Closed("the detector is closed")

    def __del__(self) -> None:
        if getattr(self, "_made", None) is not None:
            warnings.warn("TensorRTDetector was not closed", ResourceWarning, stacklevel=2)


def release_in_time(
    device: Device, streams: Sequence[Stream], made: contextlib.ExitStack, limit_s: float
) -> threading.Thread:
    """Wait for all work, then free everything. A GPU that hangs lets neither return, so that is done in a thread.

    After `limit_s` the thread is left behind: `vision.cli.main` ends a process that has such a one without waiting
    for it.
    """
    failed: list[BaseException] = []

    def release() -> None:
        try:
            drain(device, streams)
            made.close()
        except BaseException as error:  # noqa: BLE001 - raised below, by who called
            failed.append(error)

    thread = threading.Thread(target=release, name="gpu-release", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        abandon()
        _log.error("%s does not answer: what it holds is left to the end of the process", device.name)
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
    """Why batches do not run as CUDA graphs; empty where they do."""
    if any(isinstance(slot, DynamicSlot) for slot in slots):
        return "the model has outputs whose size depends on the frame"
    return "" if detect.graphs else "`detect: {graphs: off}`"


def _graph_slots(
    device: Device,
    model: LoadedEngine,
    lanes: Sequence[ExecutionLane],
    inlet: UploadPath,
    *,
    phases: StartupTimer,
    made: contextlib.ExitStack,
) -> list[Slot]:
    """Slots that run as graphs, warm and checked."""
    outputs, room = _measured(model, lanes[0])
    with phases.phase("kernels"):
        model.head.bind({name: (None, *output.shape) for name, output in outputs.items()})
        program = PostprocessProgram.of(model.spec, model.head, len(model.class_names), outputs, device.shared_bytes)
        kernels = made.enter_context(_loaded(model, program, device))
    with phases.phase("memory"):
        budget = _budget(model, room, program, len(lanes))
        free_bytes, total_bytes = memory_info()
        budget.require(free_bytes + model.engine.weights_bytes, total_bytes, shared_with_host=device.integrated)
        _log.info("%s\n%s", model.spec.name, budget.table())
        slots = [made.enter_context(Slot(room, lane, kernels, inlet)) for lane in lanes]
    _warm_up(model, slots, outputs, phases)
    if model.engine.save_kernels():
        _log.debug("the kernels that the library compiled are kept for the next start")
    return slots


def _dynamic_slots(
    device: Device,
    model: LoadedEngine,
    lanes: Sequence[ExecutionLane],
    inlet: UploadPath,
    *,
    phases: StartupTimer,
    made: contextlib.ExitStack,
) -> list[DynamicSlot]:
    """Slots of an engine with data-dependent outputs, warm."""
    _log.warning(
        "%s has outputs whose size depends on the frame (NonMaxSuppression or NonZero inside): it runs without CUDA "
        "graphs, and the host waits for it",
        model.spec.name,
    )
    bind_open_outputs(model, lanes[0])
    with phases.phase("kernels"):
        letterbox = made.enter_context(load_letterbox(model, device))
    with phases.phase("memory"):
        slots = [made.enter_context(DynamicSlot(model, lane, letterbox, inlet)) for lane in lanes]
    with phases.phase("warm-up"):
        for slot in slots:
            slot.warm_up()
    model.engine.save_kernels()
    return slots


def _warm_up(model: LoadedEngine, slots: Sequence[Slot], outputs: Mapping[str, Output], phases: StartupTimer) -> None:
    """Run every chain once and capture it, then compare each graph with what it was captured from.

    Compared last, so that what one context does to the memory that it shares with another is seen.
    """
    checked: list[tuple[GraphCheck, Snapshot]] = []
    with Noise(model.spec.input) as noise:
        for number, slot in enumerate(slots):
            noise.fill(slot.memory, max(slot.chains), slot.stream)
            with phases.phase("first slot's graphs" if number == 0 else "other slots' graphs"):
                for batch, chain in slot.chains.items():
                    check = GraphCheck(slot, chain, outputs, f"{model.spec.name}, slot {number}, batch {batch}")
                    checked.append((check, check.run()))
                    if model.detect.graphs:
                        chain.capture(check.what)
        with phases.phase("comparison"):
            for check, eager in checked:
                model.head.check_scores([eager.first(name) for name in model.head.outputs])
                if model.detect.graphs:
                    check.require_same(eager)


def _measured(model: LoadedEngine, lane: ExecutionLane) -> tuple[Mapping[str, Output], TensorRoom]:
    """The outputs of one frame, and the room that one slot needs for all tensors at the greatest batch."""
    outputs: dict[str, Output] = {}
    bytes_of: dict[str, int] = {}
    for name, size in lane.greatest.output_sizes().items():
        if size.shape is None or size.bytes is None:
            raise ModelError(f"{model.spec.name}: the size of output {name} depends on the data")
        dtype = model.engine.tensor(name).dtype
        outputs[name] = Output(size.shape[1:], dtype)
        bytes_of[name] = size.bytes
    batch = max(lane.contexts)
    scratch = shared_scratch((0, context.memory_bytes) for context in lane.contexts.values())[0]
    item = np.dtype(model.engine.tensor(model.input_name).dtype).itemsize
    input_bytes = item * int(np.prod(model.input_shape(batch)))
    return outputs, TensorRoom(batch, model.input_name, input_bytes, bytes_of, scratch)


def _budget(model: LoadedEngine, room: TensorRoom, program: PostprocessProgram, slots: int) -> MemoryBudget:
    """What is allocated before READY. The frames of the cameras come when these have said how large they are."""
    own = slot_bytes(room.batch, program)
    return detector_budget(
        weights_bytes=model.engine.weights_bytes,
        slots=slots,
        scratch_bytes=room.scratch_bytes,
        input_bytes=room.input_bytes,
        output_bytes=sum(room.outputs.values()),
        postprocess_bytes=own.device,
        result_bytes=own.host,
    )


@contextlib.contextmanager
def _loaded(model: LoadedEngine, program: PostprocessProgram, device: Device) -> Iterator[Kernels]:
    """The kernels of a model, on the GPU."""
    with contextlib.ExitStack() as made:
        letterbox = made.enter_context(load_letterbox(model, device))
        source = Source.read(KERNELS / program.file, program.definitions)
        module = made.enter_context(Module.build(source, device.arch, kernel_cache()))
        keep = kept_classes(model.head, len(model.class_names))
        kept = made.enter_context(DeviceBuffer(keep.nbytes, "wanted classes"))
        kept.write(keep)
        yield Kernels(
            letterbox=letterbox,
            pairs=module.kernel("find_pairs"),
            objects=module.kernel("objects", shared_bytes=program.work_bytes if program.shared_work else 0),
            program=program,
            threshold=threshold(model.head, kept.address),
            iou=model.spec.nms.iou_threshold,
        )
