"""Detector that runs on an NVIDIA GPU with TensorRT or TensorRT-RTX.

With only one batch in flight, the GPU would wait longer than it computes: for copies of frames, for the launches of a
hundred small kernels, and for the host. Therefore several batches are in flight, each in a slot with its own memory.
Each batch runs as a CUDA graph, which needs only one launch (`vision.detect.tensorrt.slot`), unless graphs are disabled
or cannot be captured, or the sizes of outputs depend on the frame. All graphs are checked before the detector is ready.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.config import DetectConfig, ModelSpec
from vision.detect.classes import UnnamedClasses, class_ids, class_names
from vision.detect.detector import IN_FLIGHT_GPU, IN_FLIGHT_INTEGRATED, DetectorSpec, GpuMemory, GpuSpec, InFlight
from vision.detect.reference.alternatives import check_sample
from vision.detect.reference.heads import make_head
from vision.detect.tensorrt.completion import ConcurrencyLimit
from vision.detect.tensorrt.dynamic_outputs import DynamicSlot, bind_open_outputs
from vision.detect.tensorrt.frames import PIXEL_FORMATS, FrameUploader
from vision.detect.tensorrt.graph_check import GraphCheck, SampleFrames, Snapshot
from vision.detect.tensorrt.kernels import (
    KERNELS,
    Definitions,
    LetterboxProgram,
    Output,
    PostprocessProgram,
    describe_normalization,
    kept_classes,
    overlaps,
    threshold,
)
from vision.detect.tensorrt.loaded_engine import LoadedEngine, StartupTimer, kernel_cache
from vision.detect.tensorrt.plugins.register import register_plugins
from vision.detect.tensorrt.reading import reads_in_place
from vision.detect.tensorrt.release import close_quietly, release_in_time
from vision.detect.tensorrt.slot import (
    DetectorSlot,
    ExecutionLane,
    Kernels,
    LetterboxKernel,
    Slot,
    TensorSizes,
    UploadPath,
    slot_bytes,
)
from vision.engine.build import BuildOptions
from vision.engine.build_plan import Precision, require_precision, resolve
from vision.engine.library import find_library
from vision.engine.memory import BudgetLine, MemoryBudget, MemoryPool, shared_scratch_bytes
from vision.engine.open import open_engine
from vision.engine.runtime import Context
from vision.errors import Closed, ModelError
from vision.gpu.cuda import Device, Stream, memory_info, open_device, use_device
from vision.gpu.memory import (
    CudaMemory,
    DeviceBuffer,
    allocated,
    device_frame_buffer,
    export_frame_buffers,
    locked_frame_buffers,
    page_locked_frame_buffer,
)
from vision.gpu.nvrtc import Module, Source
from vision.types import Detections, Frame, FrameBuffer, PixelFormat

_log = logging.getLogger(__name__)

_CLOSE_S: Final = 5.0
"""Time limit of `close` in seconds: longer than batches in flight take, but shorter than systemd's stop timeout."""


def open_tensorrt_detector(
    folder: Path, spec: ModelSpec, detect: DetectConfig, *, stop: threading.Event | None = None
) -> TensorRTDetector:
    """Open the detector for a model on the GPU of this machine. Build the engine if none is cached.

    Args:
        stop: event that cancels the call while an engine is built, or before the next context is created.

    Raises:
        Closed: `stop` was set.
        DeviceMissing: the GPU, the driver, or TensorRT is missing, or the driver is too old.
        ConfigError: `detect.classes` names a class that the model does not have.
        ModelError: the model cannot be built, or does not match its specification.
        Unavailable: the cache of engines cannot be used at present.
        DeviceError: the GPU fails or lacks memory, or the results of a graph differ from the results of its steps.
    """
    timer = StartupTimer()
    device = open_device()
    if detect.iou_threshold is not None:
        spec = spec.model_copy(update={"nms": spec.nms.model_copy(update={"iou_threshold": detect.iou_threshold})})
    names = class_names(spec)
    head = make_head(spec, len(names), detect.score_threshold, class_ids(names, detect.classes, spec.name))
    with contextlib.ExitStack() as resources:
        pool = MemoryPool(CudaMemory())
        resources.callback(close_quietly, pool)
        options = BuildOptions(cancel=stop or threading.Event(), prepare_thread=lambda: use_device(device))
        with timer.phase("engine"):
            register_plugins(spec)
            engine = resources.enter_context(
                open_engine(folder, spec, device, resolve(detect, spec), options, pool=pool)
            )
        detector = build_detector(device, LoadedEngine(engine, spec, head, names, detect), timer, resources, stop=stop)
    _log.info("%s is ready after %s; %s", detector.spec.name, timer, pool.report())
    return detector


def check_device(precision: Precision) -> None:
    """Check that TensorRT and a GPU that supports the precision are present.

    Raises:
        DeviceMissing: the GPU, the driver, or TensorRT is missing, or the driver is too old.
        ModelError: the GPU does not support the precision.
    """
    device = open_device()
    find_library()
    require_precision(precision, device)


def build_detector(
    device: Device,
    model: LoadedEngine,
    timer: StartupTimer,
    resources: contextlib.ExitStack,
    *,
    stop: threading.Event | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> TensorRTDetector:
    """Build a detector from an open engine. The detector becomes the owner of all `resources`.

    `clock` returns the time in ns. If `stop` is set, raise `Closed` before the next context is created, because
    TensorRT-RTX can compile kernels for several seconds per context. Raise `ModelError` and `DeviceError` as
    `open_tensorrt_detector` does.
    """
    use_device(device)
    return _Builder(device, model, timer, resources, clock).build(stop)


class TensorRTDetector:
    """`Detector` that runs on an NVIDIA GPU. For the contract, see `vision.detect.detector.Detector`."""

    def __init__(
        self,
        device: Device,
        model: LoadedEngine,
        *,
        timer: StartupTimer,
        uploads: UploadPath,
        slots: Sequence[DetectorSlot],
        graphs_off: str,
        in_place: bool,
        resources: contextlib.ExitStack,
    ) -> None:
        """Create the detector.

        Args:
            graphs_off: reason why batches do not run as CUDA graphs. An empty string means that they do.
            in_place: True if the GPU reads frames in page-locked memory, without a copy.
        """
        self._in_place = in_place
        self.startup = timer
        self._device = device
        self._model = model
        self._uploads = uploads
        self._slots = list(slots)
        self.spec = _detector_spec(device, model, len(slots), graphs_off)
        self._in_flight = InFlight[DetectorSlot](self.spec)
        self._unnamed = UnnamedClasses(model.spec.name, len(model.class_names))
        self.close_s = _CLOSE_S
        self._resources = resources.pop_all()

    def memory(self) -> GpuMemory:
        held = allocated()
        return GpuMemory(held.device_bytes, held.host_bytes)

    def counters(self) -> Mapping[str, int]:
        """Return counters for status messages by name. A counter that does not apply is left out.

        - ``detector.graph_runs``: batches that ran as CUDA graphs.
        - ``detector.step_runs``: batches that ran step by step.
        - ``detector.outputs_grown``: enlargements of the memory of outputs of variable size.
        - ``detector.unnamed_classes``: boxes whose class id has no name.
        """
        runs = {
            "detector.graph_runs": sum(slot.graph_runs for slot in self._slots),
            "detector.step_runs": sum(slot.step_runs for slot in self._slots),
        }
        dynamic = [slot for slot in self._slots if isinstance(slot, DynamicSlot)]
        grown = {"detector.outputs_grown": sum(slot.grown for slot in dynamic)} if dynamic else {}
        return {**runs, **grown, **self._unnamed.counters()}

    def parts(self) -> tuple[Sequence[DetectorSlot], Stream]:
        """Return the slots, and the stream that copies frames to the GPU. For benchmarks only."""
        return self._slots, self._uploads.copies

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        self._refuse_if_closed()
        return page_locked_frame_buffer(height_px, width_px, pixel_format, in_place=self._in_place)

    def device_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        self._refuse_if_closed()
        return device_frame_buffer(height_px, width_px, pixel_format)

    def shared_buffers(self, memory: NDArray[np.uint8], frames: Sequence[FrameBuffer]) -> list[FrameBuffer]:
        self._refuse_if_closed()
        use_device(self._device)
        return locked_frame_buffers(memory, frames, in_place=self._in_place)

    def exported_buffers(
        self, count: int, height_px: int, width_px: int, pixel_format: PixelFormat
    ) -> tuple[bytes, list[FrameBuffer]] | None:
        self._refuse_if_closed()
        use_device(self._device)
        return export_frame_buffers(count, height_px, width_px, pixel_format)

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
        found = submitted.detections()
        self._unnamed.add(submitted.unnamed)
        return found

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


def _detector_spec(device: Device, model: LoadedEngine, slots: int, graphs_off: str) -> DetectorSpec:
    gpu = GpuSpec(model.detect.precision, graphs_off)
    name = f"{find_library()}, {device.name} ({device.arch}), {gpu.precision}"
    return DetectorSpec(
        name=name if gpu.graphs else f"{name}, no graphs",
        class_names=model.class_names,
        batches_in_flight=slots,
        parallel=max(1, slots - 1) if gpu.graphs else 1,
        max_batch=max(model.batches()),
        pixel_formats=PIXEL_FORMATS,
        gpu=gpu,
    )


@dataclass(frozen=True, slots=True)
class _Builder:
    """Builder of a detector. `resources` owns the parts until the detector takes them over."""

    device: Device
    model: LoadedEngine
    timer: StartupTimer
    resources: contextlib.ExitStack
    clock: Callable[[], int]

    def build(self, stop: threading.Event | None) -> TensorRTDetector:
        device, model = self.device, self.model
        with self.timer.phase("contexts"):
            lanes = self._open_lanes(stop)
        limit = ConcurrencyLimit(device.cache_bytes, model.frames.bytes_of(model.input_shape(1)))
        uploads = UploadPath(FrameUploader(model.spec.input), self.resources.enter_context(Stream()), limit)
        dynamic = any(size.shape is None for size in lanes[0].greatest.output_sizes().values())
        with self.timer.phase("kernels"):
            letterbox = self._load_letterbox()
        make_slots = self._dynamic_slots if dynamic else self._graph_slots
        slots, off = make_slots(lanes, uploads, letterbox)
        tensor_bytes = model.frames.bytes_of(model.input_shape(1))
        in_place = reads_in_place(device, letterbox, model.spec.input, tensor_bytes, self.clock)
        if model.engine.save_kernels():
            _log.debug("for the next start, saved the kernels that the library compiled")
        return TensorRTDetector(
            device,
            model,
            timer=self.timer,
            uploads=uploads,
            slots=slots,
            graphs_off=off,
            in_place=in_place,
            resources=self.resources,
        )

    def _open_lanes(self, stop: threading.Event | None) -> list[ExecutionLane]:
        """Create an `ExecutionLane` for each slot: a stream with a TensorRT context for every batch size.

        Raise `Closed` if `stop` is set.
        """
        count = self.model.detect.batches_in_flight or (
            IN_FLIGHT_INTEGRATED if self.device.integrated else IN_FLIGHT_GPU
        )
        lanes = []
        for stream in [self.resources.enter_context(Stream()) for _ in range(count)]:
            contexts: dict[int, Context] = {}
            for batch in self.model.batches():
                if stop is not None and stop.is_set():
                    raise Closed("the start was canceled while kernels were compiled")
                contexts[batch] = self.model.context(batch, stream)
                time.sleep(0)  # creating a context holds the GIL; let other threads handle signals and new subscribers
            lanes.append(ExecutionLane(stream, contexts))
        return lanes

    def _graph_slots(
        self, lanes: Sequence[ExecutionLane], uploads: UploadPath, letterbox: LetterboxKernel
    ) -> tuple[Sequence[DetectorSlot], str]:
        """Build the slots of a model whose output sizes are fixed. Warm up the slots, and check their graphs.

        Also return the reason why batches do not run as CUDA graphs, or an empty string if they do.
        """
        device, model = self.device, self.model
        outputs, sizes = self._measure_tensors(lanes[0])
        with self.timer.phase("kernels"):
            program = PostprocessProgram.of(model.spec, model.head, outputs, device.shared_bytes)
            kernels = self._load_kernels(program, letterbox)
        with self.timer.phase("memory"):
            budget = self._budget(sizes, program, len(lanes))
            free_bytes, total_bytes = memory_info()
            budget.require(free_bytes + model.engine.weights_bytes, total_bytes, shared_with_host=device.integrated)
            _log.info("%s\n%s", model.spec.name, budget.table())
            slots = [self.resources.enter_context(Slot(sizes, lane, kernels, uploads)) for lane in lanes]
        return slots, self._warm_up(slots, program, outputs)

    def _dynamic_slots(
        self, lanes: Sequence[ExecutionLane], uploads: UploadPath, letterbox: LetterboxKernel
    ) -> tuple[Sequence[DetectorSlot], str]:
        """Build and warm up the slots of a model whose output sizes depend on the frame.

        Also return the reason why batches do not run as CUDA graphs.
        """
        model = self.model
        _log.warning(
            "%s has outputs whose size depends on the frame, because it contains NonMaxSuppression or NonZero; it runs "
            "without CUDA graphs, and the host waits for each batch",
            model.spec.name,
        )
        decoder = bind_open_outputs(model, lanes[0])
        with self.timer.phase("memory"):
            constants = self._write_constants(max(lanes[0].contexts))
            opened = (DynamicSlot(model, decoder, lane, letterbox, uploads, constants=constants) for lane in lanes)
            slots = [self.resources.enter_context(slot) for slot in opened]
        with self.timer.phase("warm-up"):
            for slot in slots:
                slot.warm_up()
        return slots, "the model has outputs whose size depends on the frame"

    def _load_letterbox(self) -> LetterboxKernel:
        spec = self.model.spec.input
        program = LetterboxProgram(spec, self.model.frames.dtype, self.model.last_channels)
        module = self._load_module(program.file, program.definitions)
        return LetterboxKernel(module.kernel("letterbox"), program, describe_normalization(spec))

    def _load_module(self, file: str, definitions: Definitions) -> Module:
        source = Source.read(KERNELS / file, definitions)
        return self.resources.enter_context(Module.build(source, self.device.arch, kernel_cache()))

    def _load_kernels(self, program: PostprocessProgram, letterbox: LetterboxKernel) -> Kernels:
        module = self._load_module(program.file, program.definitions)
        keep = kept_classes(program.decoder.rules)
        kept = self.resources.enter_context(DeviceBuffer(keep.nbytes, "classes to report"))
        kept.write(keep)
        return Kernels(
            letterbox=letterbox,
            pairs=module.kernel("find_pairs"),
            objects=module.kernel("objects", shared_bytes=program.work_bytes if program.shared_work else 0),
            masks=None if program.mask_shape is None else module.kernel("masks"),
            program=program,
            threshold=threshold(program.decoder.rules, kept.address),
            overlaps=overlaps(self.model.spec),
        )

    def _measure_tensors(self, lane: ExecutionLane) -> tuple[Mapping[str, Output], TensorSizes]:
        """Copy the constant inputs to the GPU. Return the outputs for one frame, and the sizes of a slot's tensors.

        Raises:
            ModelError: the size of an output depends on the frame, or the outputs have no batch axis.
        """
        model = self.model
        shapes: dict[str, tuple[int, ...]] = {}
        bytes_of: dict[str, int] = {}
        for name, size in lane.greatest.output_sizes().items():
            if size.shape is None or size.bytes is None:
                raise ModelError(f"{model.spec.name}: the size of output {name} depends on the frame")
            shapes[name], bytes_of[name] = size.shape, size.bytes
        batch = max(lane.contexts)
        of_frame = model.shapes_of_frame(shapes, batch)
        outputs = {name: Output(shape, model.engine.tensor(name).dtype) for name, shape in of_frame.items()}
        scratch_bytes = shared_scratch_bytes(context.memory_bytes for context in lane.contexts.values())
        frames, shape = model.frames, model.input_shape(batch)
        constants = self._write_constants(batch)
        return outputs, TensorSizes(batch, frames.name, frames.bytes_of(shape), constants, bytes_of, scratch_bytes)

    def _write_constants(self, batch: int) -> dict[str, int]:
        """Copy the inputs that are the same for every frame to the GPU. Return their addresses by name."""
        addresses = {}
        for name, values in self.model.constants(batch).items():
            buffer = self.resources.enter_context(DeviceBuffer(values.nbytes, f"the network's input {name}"))
            buffer.write(values)
            addresses[name] = buffer.address
        return addresses

    def _budget(self, sizes: TensorSizes, program: PostprocessProgram, slots: int) -> MemoryBudget:
        """Return the amounts of memory that the detector allocates when it starts, by purpose.

        The memory of frames is not included, because their sizes are not known yet.
        """
        device_bytes, host_bytes = slot_bytes(sizes.batch, program)
        lines = (
            BudgetLine("weights", "device", self.model.engine.weights_bytes),
            BudgetLine("activations per slot", "device", sizes.scratch_bytes, slots),
            BudgetLine("network input per slot", "device", sizes.input_bytes, slots),
            BudgetLine("network outputs per slot", "device", sum(sizes.outputs.values()), slots),
            BudgetLine("decoding, NMS per slot", "device", device_bytes, slots),
            BudgetLine("results per slot", "host", host_bytes, slots),
        )
        return MemoryBudget(lines)

    def _warm_up(self, slots: Sequence[Slot], program: PostprocessProgram, outputs: Mapping[str, Output]) -> str:
        """Run the steps of each batch size once, and check the scores. Unless graphs are off, capture and check graphs.

        Return the reason why batches do not run as CUDA graphs, or an empty string if they do.

        Each graph is compared with its steps only after all captures, to detect contexts that overwrite shared memory.
        All batches contain the sample frames. The sample check of the model uses the largest batch of the first slot.
        """
        model = self.model
        off = "" if model.detect.graphs else "`detect: {graphs: off}`"
        checked: list[tuple[GraphCheck, Snapshot]] = []
        with SampleFrames(model.spec.input) as frames:
            for number, slot in enumerate(slots):
                frames.fill(slot.memory, max(slot.graphs), slot.stream)
                with self.timer.phase("first slot's graphs" if number == 0 else "other slots' graphs"):
                    for batch, graph in slot.graphs.items():
                        check = GraphCheck(slot, graph, outputs, f"{model.spec.name}, slot {number}, batch {batch}")
                        checked.append((check, check.run()))
                        if not off:
                            off = graph.capture(check.label)
            if off and model.detect.graphs:
                _log.warning("%s runs without CUDA graphs, which is slower: %s", model.spec.name, off)
                for graph in (graph for slot in slots for graph in slot.graphs.values()):
                    graph.drop_capture()
            with self.timer.phase("comparison"):
                largest = max(slots[0].graphs)
                for check, eager in checked:
                    if check.slot is slots[0] and check.graph.batch == largest:
                        check_sample(model.spec, eager.sample(program.decoder.without_batch))
                    program.decoder.check_scores([eager.first(name) for name in program.outputs])
                    if model.detect.graphs:
                        check.require_same(eager)
        return off
