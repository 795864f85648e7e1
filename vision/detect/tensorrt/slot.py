"""One batch in flight: its memory on both sides, its stream, and for each batch size a chain of work that replays.

The chain is *letterbox → engine → pairs over the threshold → objects*, and the last kernel writes its fixed-capacity
result straight into page-locked memory of the host. Everything has a fixed address, so the whole chain is one CUDA
graph, and a batch costs the host one launch. Frames and their descriptions come on a stream of their own: a copy inside
the graph would wait in the copy engine behind the frames of the next batch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vision.detect.tensorrt.completion import Completion
from vision.detect.tensorrt.concurrency_limit import ConcurrencyLimit
from vision.detect.tensorrt.frames import DESCRIPTION_BYTES, FrameUploader, StagingBuffers
from vision.detect.tensorrt.kernels import RESULT, LetterboxProgram, PostprocessProgram
from vision.engine.runtime import Context
from vision.errors import DeviceError
from vision.gpu.cuda import Device, Event, Graph, Resource, Stream, use_device
from vision.gpu.memory import DeviceBuffer, HostBuffer, queue_to_device
from vision.gpu.nvrtc import Kernel, Launch
from vision.metrics import span
from vision.types import Detections, Frame

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LetterboxKernel:
    """The kernel that fills the network's input."""

    kernel: Kernel
    program: LetterboxProgram
    normalisation: NDArray[np.void]

    def bind(self, batch: int, frames: int, tensor: int, counts: int) -> Launch:
        """For `batch` descriptions at `frames`; it writes `tensor` and zeroes `counts`, all device addresses."""
        grid = self.program.grid(batch)
        return self.kernel.bind(grid, self.program.block, frames, tensor, counts, self.normalisation)


@dataclass(frozen=True, slots=True)
class ExecutionLane:
    """What one slot runs on."""

    stream: Stream
    contexts: Mapping[int, Context]  # by batch size

    @property
    def greatest(self) -> Context:
        """The context of the greatest batch."""
        return self.contexts[max(self.contexts)]


@dataclass(frozen=True, slots=True)
class UploadPath:
    """The way of the frames to the GPU, the same for all slots."""

    uploader: FrameUploader
    copies: Stream  # of its own, so that the copies of one batch overlap the work on another
    turns: ConcurrencyLimit


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a slot launches besides the engine, the same for all slots."""

    letterbox: LetterboxKernel
    pairs: Kernel
    objects: Kernel
    program: PostprocessProgram
    threshold: NDArray[np.void]
    iou: float


@dataclass(frozen=True, slots=True)
class TensorRoom:
    """Bytes that the engine needs in one slot, at the greatest batch."""

    batch: int  # the greatest
    input_name: str
    input_bytes: int
    outputs: Mapping[str, int]
    scratch_bytes: int  # of the greatest context: those of one slot never run at the same time


class SlotMemory(Resource):
    """All memory of one slot. Made at start, never again."""

    def __init__(self, room: TensorRoom, program: PostprocessProgram) -> None:
        max_batch, objects = room.batch, program.objects
        with contextlib.ExitStack() as made:

            def device(nbytes: int, purpose: str) -> DeviceBuffer:
                return made.enter_context(DeviceBuffer(nbytes, purpose))

            self.max_batch = max_batch
            self.descriptions_host = made.enter_context(HostBuffer(max_batch * DESCRIPTION_BYTES, "descriptions"))
            self.descriptions = device(max_batch * DESCRIPTION_BYTES, "descriptions of frames")
            self.scratch = device(room.scratch_bytes, "activations")
            self.input = device(room.input_bytes, "the network's input")
            self.outputs = {name: device(size, f"the network's output {name}") for name, size in room.outputs.items()}
            self.counts = device(4 * max_batch, "candidate counts")
            self.keys = device(max_batch * program.keys_bytes, "candidates")
            self.work = device(0 if program.shared_work else max_batch * program.work_bytes, "NMS")
            self.result = made.enter_context(HostBuffer(result_bytes(max_batch, objects), "results"))
            self._made = made.pop_all()
        self._rows: memoryview = self.descriptions_host.array((max_batch * DESCRIPTION_BYTES,)).data
        self.counts_host: NDArray[np.uint32] = self.result.array((max_batch, 4), np.uint32)
        offsets = result_offsets(max_batch, objects)
        self.boxes_host: NDArray[np.float32] = self.result.array((max_batch, objects, 4), np.float32, offsets[1])
        self.scores_host: NDArray[np.float32] = self.result.array((max_batch, objects), np.float32, offsets[2])
        self.classes_host: NDArray[np.int32] = self.result.array((max_batch, objects), np.int32, offsets[3])
        self.result_addresses = tuple(self.result.device_address + offset for offset in offsets)
        self._opened = True

    def row(self, index: int) -> memoryview:
        """Where the description of frame `index` goes."""
        return self._rows[index * DESCRIPTION_BYTES : (index + 1) * DESCRIPTION_BYTES]

    def clear_rows(self, start: int, stop: int) -> None:
        """Say that these rows of the batch hold no frame."""
        self._rows[start * DESCRIPTION_BYTES : stop * DESCRIPTION_BYTES] = bytes((stop - start) * DESCRIPTION_BYTES)

    def upload_rows(self, count: int, stream: Stream) -> None:
        """Queue the copy of the first `count` descriptions."""
        nbytes = count * DESCRIPTION_BYTES
        queue_to_device(self.descriptions.address, self.descriptions_host.address, nbytes, stream)

    def _release(self) -> None:
        self._made.close()


def result_offsets(max_batch: int, objects: int) -> tuple[int, int, int, int]:
    """Where counts, boxes, scores and classes begin in the result."""
    boxes = RESULT.itemsize * max_batch
    scores = boxes + 16 * max_batch * objects
    return (0, boxes, scores, scores + 4 * max_batch * objects)


def result_bytes(max_batch: int, objects: int) -> int:
    """Size of a slot's result."""
    return result_offsets(max_batch, objects)[3] + 4 * max_batch * objects


@dataclass(frozen=True, slots=True)
class SlotBytes:
    """What a slot holds besides the tensors of the engine."""

    device: int
    host: int  # page-locked


def slot_bytes(max_batch: int, program: PostprocessProgram) -> SlotBytes:
    """As `SlotMemory` allocates."""
    descriptions = max_batch * DESCRIPTION_BYTES
    work = 0 if program.shared_work else max_batch * program.work_bytes
    device = descriptions + 4 * max_batch + max_batch * program.keys_bytes + work
    return SlotBytes(device, descriptions + result_bytes(max_batch, program.objects))


class BatchGraph(Resource):
    """All work for one batch size of one slot."""

    def __init__(self, batch: int, context: Context, memory: SlotMemory, stream: Stream, kernels: Kernels) -> None:
        self.batch = batch
        self.context = context
        self._stream = stream
        self._graph: Graph | None = None
        program = kernels.program
        frames, scores, boxes = (
            memory.descriptions.address,
            memory.outputs[program.scores].address,
            memory.outputs[program.boxes].address,
        )
        letterbox = kernels.letterbox.bind(batch, frames, memory.input.address, memory.counts.address)
        extra = tuple(memory.outputs[name].address if name else 0 for name in program.extra)
        pairs = kernels.pairs.bind(
            program.pairs_grid(batch),
            program.pairs_block,
            *(frames, scores, *extra, memory.keys.address, memory.counts.address, kernels.threshold),
        )
        objects = kernels.objects.bind(
            program.objects_grid(batch),
            program.objects_block,
            *(frames, scores, boxes, *extra, memory.keys.address, memory.counts.address, kernels.threshold),
            np.float32(kernels.iou),
            memory.work.address,
            *memory.result_addresses,
        )
        self.steps: tuple[tuple[str, Callable[[], object]], ...] = (
            ("letterbox", partial(letterbox.enqueue, stream)),
            ("engine", partial(context.enqueue, stream.address)),
            ("find_pairs", partial(pairs.enqueue, stream)),
            ("objects", partial(objects.enqueue, stream)),
        )
        self._opened = True

    def enqueue(self) -> None:
        """Queue every step by itself."""
        for _, step in self.steps:
            step()

    def capture(self, what: str) -> None:
        """Make a graph of it; `run` launches that from now on.

        Raises:
            DeviceError: it cannot be captured.
        """
        self._graph = Graph.capture(self._stream, self.enqueue, what)

    def run(self) -> None:
        """Queue all of it: as a graph where there is one."""
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self.enqueue()

    def _release(self) -> None:
        if self._graph is not None:
            self._graph.close()


class Slot(Resource):
    """A stream with its memory and chains. `submit`, then `ready` until it says so, then `detections`."""

    def __init__(self, room: TensorRoom, lane: ExecutionLane, kernels: Kernels, inlet: UploadPath) -> None:
        self.stream = stream = lane.stream
        self._inlet = inlet
        self._in_flight: Sequence[Frame] = ()  # kept: their memory goes with them
        with contextlib.ExitStack() as made:
            self.memory = memory = made.enter_context(SlotMemory(room, kernels.program))
            self._spare = made.enter_context(contextlib.closing(StagingBuffers(room.batch)))
            self._copied = made.enter_context(Event())
            self._done = made.enter_context(Completion())
            memory.input.fill(0, stream)  # rows without a frame are computed too, and must be numbers
            self.chains: dict[int, BatchGraph] = {}
            for batch, context in sorted(lane.contexts.items()):
                give_memory(context, memory, room)
                self.chains[batch] = made.enter_context(BatchGraph(batch, context, memory, stream, kernels))
            self._made = made.pop_all()
        self._opened = True

    @property
    def frames(self) -> int:
        """Of the batch in flight; 0: none."""
        return len(self._in_flight)

    def submit(self, frames: Sequence[Frame]) -> None:
        """Queue a batch."""
        uploader, copies = self._inlet.uploader, self._inlet.copies
        count = len(frames)
        batch = next(size for size in self.chains if size >= count)
        with span("copy"):
            for index, frame in enumerate(frames):
                uploader.place(frame, self.memory.row(index), self._spare, index, copies)
            if batch > count:
                self.memory.clear_rows(count, batch)
            self.memory.upload_rows(batch, copies)
            self._copied.record(copies)
        self.stream.wait(self._copied)
        self._inlet.turns.begin(self.stream, batch)
        with span("launch"):
            self.chains[batch].run()
        self._done.record(self.stream, batch)
        self._inlet.turns.queued(self._done)
        self._in_flight = tuple(frames)

    def ready(self, timeout_s: float) -> bool:
        """Wait until the batch in flight is done, at most so long."""
        return self._done.wait(timeout_s)

    def detections(self) -> list[Detections]:
        """The result of the batch that is done, in arrays of its own. The slot is free again."""
        frames, memory = len(self._in_flight), self.memory
        self._in_flight = ()
        found = []
        for index, (count, truncated_candidates, _, _) in enumerate(memory.counts_host[:frames].tolist()):
            found.append(
                Detections(
                    memory.boxes_host[index, :count].copy(),
                    memory.scores_host[index, :count].copy(),
                    memory.classes_host[index, :count].copy(),
                    truncated_candidates,
                )
            )
        return found

    def _release(self) -> None:
        self._in_flight = ()
        self.chains = {}  # the engine cannot go before its contexts
        self._made.close()


def give_memory(context: Context, memory: SlotMemory, room: TensorRoom) -> None:
    """Tell a context where everything is: once, since a graph keeps the addresses."""
    context.give_memory(memory.scratch.address, room.scratch_bytes)
    context.set_address(room.input_name, memory.input.address)
    for name, buffer in memory.outputs.items():
        context.set_address(name, buffer.address)


def drain(device: Device, streams: Sequence[Stream]) -> None:
    """Wait for all work before its memory goes. What failed in it was, or will be, told by `wait`."""
    try:
        use_device(device)  # `close` may come from any thread
        for stream in streams:
            stream.synchronize()
    except DeviceError as error:
        _log.warning("while closing: %s", error.args[0])
