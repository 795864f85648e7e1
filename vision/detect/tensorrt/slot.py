"""Slot for one batch in flight: its memory on host and device, its stream, and one CUDA graph per batch size.

A graph runs the letterbox kernel, the engine, a kernel that collects the pairs of a box and a class whose score reaches
the threshold, and a kernel that selects the objects from these pairs (NMS). If the model predicts masks, another kernel
computes the masks of the objects. The results, up to a fixed number of objects, go to page-locked host memory. Every
address is fixed, so the host starts the whole sequence with one launch.

A separate stream copies the frames and their descriptions, because a copy inside the graph would wait in the copy
engine behind the frames of the next batch.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vision.detect.tensorrt.completion import Completion, ConcurrencyLimit
from vision.detect.tensorrt.frames import DESCRIPTION_BYTES, FrameUploader, StagingBuffers
from vision.detect.tensorrt.kernels import RESULT, LetterboxProgram, PostprocessProgram
from vision.engine.runtime import Context
from vision.errors import DeviceError
from vision.gpu.cuda import Event, Graph, Resource, Stream
from vision.gpu.memory import DeviceBuffer, HostBuffer, queue_to_device
from vision.gpu.nvrtc import Kernel, Launch
from vision.metrics import span
from vision.types import Detections, Frame, FrameMeta


@dataclass(frozen=True, slots=True)
class LetterboxKernel:
    """Kernel that scales the frames of a batch into the network's input."""

    kernel: Kernel
    program: LetterboxProgram
    normalization: NDArray[np.void]

    def bind(self, batch: int, frames: int, tensor: int, counts: int) -> Launch:
        """Return a launch that scales the `batch` frames described at `frames` into `tensor`, and sets `counts` to 0.

        The last three arguments are device addresses.
        """
        grid = self.program.grid(batch)
        return self.kernel.bind(grid, self.program.block, frames, tensor, counts, self.normalization)


@dataclass(frozen=True, slots=True)
class ExecutionLane:
    """Stream and TensorRT contexts of one slot."""

    stream: Stream
    contexts: Mapping[int, Context]  # by batch size

    @property
    def greatest(self) -> Context:
        """Context for the largest batch size."""
        return self.contexts[max(self.contexts)]


@dataclass(frozen=True, slots=True)
class UploadPath:
    """Objects that all slots share to copy frames to the GPU, and to limit how many batches run at the same time."""

    uploader: FrameUploader
    copies: Stream  # a separate stream, so that the copies for one batch overlap the computation of another batch
    limit: ConcurrencyLimit


@dataclass(frozen=True, slots=True)
class Kernels:
    """Compiled kernels of a model, and the kernel parameters that are the same for every batch size."""

    letterbox: LetterboxKernel
    pairs: Kernel
    objects: Kernel
    masks: Kernel | None  # None if the model finds no masks
    program: PostprocessProgram
    threshold: NDArray[np.void]
    overlaps: NDArray[np.void]


@dataclass(frozen=True, slots=True)
class TensorSizes:
    """Sizes of the engine's tensors in one slot for the largest batch, in bytes."""

    batch: int
    input_name: str
    input_bytes: int
    constants: Mapping[str, int]  # device addresses of the inputs that are the same for every frame, by name
    outputs: Mapping[str, int]  # size of each output, by name
    scratch_bytes: int  # maximum over the contexts, because the contexts of a slot run one after another


class ResultMemory(Resource):
    """Page-locked host memory to which the last kernels write the objects of a batch."""

    def __init__(self, max_batch: int, program: PostprocessProgram) -> None:
        *offsets, nbytes = result_offsets(max_batch, program)
        objects = program.objects
        self._program = program
        self._memory = memory = HostBuffer(nbytes, "results")
        self.counts: NDArray[np.uint32] = memory.array((max_batch, 4), np.uint32)  # fields of `kernels.RESULT`
        self.boxes_xyxy: NDArray[np.float32] = memory.array((max_batch, objects, 4), np.float32, offsets[1])
        self.scores: NDArray[np.float32] = memory.array((max_batch, objects), np.float32, offsets[2])
        self.class_ids: NDArray[np.int32] = memory.array((max_batch, objects), np.int32, offsets[3])
        self.extras: NDArray[np.float32] = memory.array((max_batch, objects, program.extras), np.float32, offsets[4])
        self.masks: NDArray[np.uint8] = memory.array((max_batch, objects, program.mask_bytes), np.uint8, offsets[5])
        *self.addresses, self.masks_address = (memory.device_address + offset for offset in offsets)
        self._opened = True

    def detections(self, index: int, meta: FrameMeta) -> Detections:
        """Return the objects of the frame at `index` in the batch, in new arrays. `meta` is the frame's metadata."""
        count, truncated_candidates, _, _ = self.counts[index].tolist()
        shapes = None
        if self._program.extras:
            found = self._program.shapes(self.extras[index, :count].copy(), self.masks[index, :count])
            if found is not None:
                letterbox = self._program.letterbox(meta)
                shapes = found.to_source(letterbox, meta.width_px, meta.height_px)
        return Detections(
            self.boxes_xyxy[index, :count].copy(),
            self.scores[index, :count].copy(),
            self.class_ids[index, :count].copy(),
            truncated_candidates,
            shapes,
        )

    def _release(self) -> None:
        self._memory.close()


class SlotMemory(Resource):
    """Memory of one slot on host and device. All of it is allocated when the slot is created."""

    def __init__(self, sizes: TensorSizes, program: PostprocessProgram) -> None:
        max_batch = sizes.batch
        with contextlib.ExitStack() as resources:

            def device(nbytes: int, purpose: str) -> DeviceBuffer:
                return resources.enter_context(DeviceBuffer(nbytes, purpose))

            self.descriptions_host = resources.enter_context(HostBuffer(max_batch * DESCRIPTION_BYTES, "descriptions"))
            self.descriptions = device(max_batch * DESCRIPTION_BYTES, "descriptions of frames")
            self.scratch = device(sizes.scratch_bytes, "activations")
            self.input = device(sizes.input_bytes, "the network's input")
            self.outputs = {name: device(size, f"the network's output {name}") for name, size in sizes.outputs.items()}
            self.counts = device(4 * max_batch, "candidate counts")
            self.keys = device(max_batch * program.keys_bytes, "candidates")
            self.work = device(0 if program.shared_work else max_batch * program.work_bytes, "NMS")
            self.masked = device(max_batch * program.masked_bytes, "objects with masks")
            self.result = resources.enter_context(ResultMemory(max_batch, program))
            self._resources = resources.pop_all()
        self._rows: memoryview = self.descriptions_host.array((max_batch * DESCRIPTION_BYTES,)).data
        self._opened = True

    def row(self, index: int) -> memoryview:
        """Return the host memory for the description of the frame at `index`."""
        return self._rows[index * DESCRIPTION_BYTES : (index + 1) * DESCRIPTION_BYTES]

    def clear_rows(self, start: int, stop: int) -> None:
        """Mark the rows from `start` to `stop` (exclusive) of the batch as rows without a frame."""
        self._rows[start * DESCRIPTION_BYTES : stop * DESCRIPTION_BYTES] = bytes((stop - start) * DESCRIPTION_BYTES)

    def upload_rows(self, count: int, stream: Stream) -> None:
        """Queue the copy of the first `count` frame descriptions to the GPU."""
        nbytes = count * DESCRIPTION_BYTES
        queue_to_device(self.descriptions.address, self.descriptions_host.address, nbytes, stream)

    def _release(self) -> None:
        self._resources.close()


def result_offsets(max_batch: int, program: PostprocessProgram) -> tuple[int, ...]:
    """Return the offsets of the arrays in `ResultMemory`, followed by the total size, in bytes.

    The arrays are counts, boxes, scores, classes, extra values, and masks, in this order.
    """
    counts, rows = RESULT.itemsize * max_batch, max_batch * program.objects
    sizes = (counts, 16 * rows, 4 * rows, 4 * rows, 4 * program.extras * rows, program.mask_bytes * rows)
    return (0, *itertools.accumulate(sizes))


def slot_bytes(max_batch: int, program: PostprocessProgram) -> tuple[int, int]:
    """Return the sizes of device and page-locked memory, in bytes, that a slot needs besides the engine's tensors."""
    descriptions = max_batch * DESCRIPTION_BYTES
    work = 0 if program.shared_work else max_batch * program.work_bytes
    device = descriptions + 4 * max_batch + max_batch * (program.keys_bytes + program.masked_bytes) + work
    return device, descriptions + result_offsets(max_batch, program)[-1]


class BatchGraph(Resource):
    """Work of one slot for one batch size.

    `run` queues the work: step by step before `capture`, and as a CUDA graph after `capture`.
    """

    def __init__(self, batch: int, context: Context, memory: SlotMemory, stream: Stream, kernels: Kernels) -> None:
        self.batch = batch
        self.context = context
        self._stream = stream
        self._captured = contextlib.ExitStack()
        program = kernels.program
        frames = memory.descriptions.address
        tensors = program.tensors({name: memory.outputs[name].address for name in program.outputs})
        letterbox = kernels.letterbox.bind(batch, frames, memory.input.address, memory.counts.address)
        pairs = kernels.pairs.bind(
            program.pairs_grid(batch),
            program.pairs_block,
            *(frames, tensors, memory.keys.address, memory.counts.address, kernels.threshold),
        )
        objects = kernels.objects.bind(
            program.objects_grid(batch),
            program.objects_block,
            *(frames, tensors, memory.keys.address, memory.counts.address, kernels.threshold),
            *(kernels.overlaps, memory.work.address, memory.masked.address, *memory.result.addresses),
        )
        steps: list[tuple[str, Callable[[], object]]] = [
            ("letterbox", partial(letterbox.enqueue, stream)),
            ("engine", partial(context.enqueue, stream.address)),
            ("find_pairs", partial(pairs.enqueue, stream)),
            ("objects", partial(objects.enqueue, stream)),
        ]
        if kernels.masks is not None:
            arguments = (frames, tensors, memory.masked.address, memory.result.masks_address)
            masks = kernels.masks.bind(program.masks_grid(batch), program.masks_block, *arguments)
            steps.append(("masks", partial(masks.enqueue, stream)))
        self.steps = tuple(steps)
        # A bound method would be a reference cycle, and the context could be freed after the engine, which is an error.
        self.enqueue: Callable[[], None] = partial(_enqueue_steps, self.steps)
        self.run: Callable[[], None] = self.enqueue
        self.is_captured = False
        self._opened = True

    def capture(self, label: str) -> str:
        """Capture the steps as a CUDA graph. After this call, `run` launches the graph.

        If the steps cannot be captured, for example because a layer waits, return the reason. Otherwise, return an
        empty string.

        Raises:
            DeviceError: the steps fail, or there is too little memory for the graph.
        """
        try:
            graph = self._captured.enter_context(Graph.capture(self._stream, self.enqueue, label))
        except DeviceError as error:
            if error.code != "graph-not-captured":
                raise
            return str(error.args[0])
        self.run = partial(graph.launch, self._stream)
        self.is_captured = True
        return ""

    def drop_capture(self) -> None:
        """Free the captured graph, if any. After this call, `run` queues the steps."""
        self.run = self.enqueue
        self.is_captured = False
        self._captured.close()

    def _release(self) -> None:
        self._captured.close()


def _enqueue_steps(steps: Sequence[tuple[str, Callable[[], object]]]) -> None:
    for _, step in steps:
        step()


class DetectorSlot(Resource):
    """Slot that runs one batch at a time. Call `submit`, then `ready` until it returns True, then `detections`."""

    def __init__(self, stream: Stream, uploads: UploadPath) -> None:
        self.stream = stream
        self.unnamed = 0
        """Number of boxes of the last batch whose class id has no name."""
        self.graph_runs = 0
        """Number of batches that ran as a CUDA graph."""
        self.step_runs = 0
        """Number of batches that ran step by step."""
        self._uploads = uploads
        self._in_flight: Sequence[Frame] = ()  # keeps the memory of the frames valid
        self._done = Completion()

    @abstractmethod
    def submit(self, frames: Sequence[Frame]) -> None:
        """Queue the work for a batch of frames.

        Raises:
            ValueError: the buffer of a frame does not fit the frame's metadata.
            DeviceError: the GPU fails or lacks memory.
        """

    def ready(self, timeout_s: float) -> bool:
        """Wait for the batch in flight for at most `timeout_s` seconds. Return True if it is done.

        Raises:
            DeviceError: the batch or previous work on the GPU failed.
        """
        return self._done.wait(timeout_s)

    @abstractmethod
    def detections(self) -> list[Detections]:
        """Return the detections of each frame of the completed batch in new arrays, and free the slot."""


class Slot(DetectorSlot):
    """Slot that runs its batch as a CUDA graph, or step by step if the graph was not captured."""

    def __init__(self, sizes: TensorSizes, lane: ExecutionLane, kernels: Kernels, uploads: UploadPath) -> None:
        super().__init__(lane.stream, uploads)
        stream = self.stream
        with contextlib.ExitStack() as resources:
            resources.enter_context(self._done)
            self.memory = memory = resources.enter_context(SlotMemory(sizes, kernels.program))
            self._staging = resources.enter_context(contextlib.closing(StagingBuffers()))
            self._copied = resources.enter_context(Event())
            memory.input.fill(0, stream)  # rows without a frame are computed too, and must not be NaN
            self.graphs: dict[int, BatchGraph] = {}
            for batch, context in sorted(lane.contexts.items()):
                context.give_memory(memory.scratch.address, sizes.scratch_bytes)
                addresses = {name: buffer.address for name, buffer in memory.outputs.items()}
                addresses |= {sizes.input_name: memory.input.address, **sizes.constants}
                for name, address in addresses.items():  # once: a graph stores addresses
                    context.set_address(name, address)
                graph = BatchGraph(batch, context, memory, stream, kernels)
                self.graphs[batch] = resources.enter_context(graph)
            self._resources = resources.pop_all()
        self._opened = True

    def submit(self, frames: Sequence[Frame]) -> None:
        uploader, copies = self._uploads.uploader, self._uploads.copies
        count = len(frames)
        batch = next(size for size in self.graphs if size >= count)
        with span("copy"):
            for index, frame in enumerate(frames):
                uploader.place(frame, self.memory.row(index), self._staging, index, copies)
            if batch > count:
                self.memory.clear_rows(count, batch)
            self.memory.upload_rows(batch, copies)
            self._copied.record(copies)
        self.stream.wait(self._copied)
        self._uploads.limit.begin(self.stream, batch)
        graph = self.graphs[batch]
        with span("launch"):
            graph.run()
        self.graph_runs += graph.is_captured
        self.step_runs += not graph.is_captured
        self._done.record(self.stream, batch)
        self._uploads.limit.queued(self._done)
        self._in_flight = tuple(frames)

    def detections(self) -> list[Detections]:
        frames, self._in_flight = self._in_flight, ()
        self.unnamed = int(self.memory.result.counts[: len(frames), 3].sum())
        return [self.memory.result.detections(index, frame.meta) for index, frame in enumerate(frames)]

    def _release(self) -> None:
        self._in_flight = ()
        self.graphs = {}  # contexts must be freed before the engine
        self._resources.close()
