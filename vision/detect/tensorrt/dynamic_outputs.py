# mypy: allow-subclassing-any
"""Engines whose outputs have a size that the data decides: NonMaxSuppression or NonZero inside.

TensorRT asks for the memory of such outputs in the middle of the run and learns their size on the host, so there is no
graph, and a batch stalls the host while it runs. Export a model without them where there is a choice. Decoding is left
to the reference on the CPU: few rows come out of such an engine.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.letterbox import Letterbox
from vision.detect.reference.postprocess import to_detections
from vision.detect.tensorrt.completion import Completion
from vision.detect.tensorrt.frames import DESCRIPTION_BYTES, StagingBuffers
from vision.detect.tensorrt.loaded_engine import LoadedEngine
from vision.detect.tensorrt.slot import ExecutionLane, LetterboxKernel, UploadPath
from vision.engine.library import trt
from vision.engine.memory import shared_scratch
from vision.errors import DeviceError, ModelError
from vision.gpu.cuda import Resource, Stream
from vision.gpu.memory import DeviceBuffer, HostBuffer, copy_to_host, queue_to_device
from vision.types import Detections, Frame, FrameMeta

_log = logging.getLogger(__name__)


class GrowingOutput(Resource):
    """Memory of one output on both sides. It grows when a batch needs more, and never shrinks."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.grown = 0  # times
        self.shape: tuple[int, ...] = ()
        self._refused: DeviceError | None = None  # why there is no room
        self._device: DeviceBuffer | None = None
        self._host: HostBuffer | None = None
        self._opened = True

    def room(self, nbytes: int) -> int:
        """Address of at least `nbytes` on the device; 0, which fails the run, where there is no room.

        Called by TensorRT in the middle of the run, where an exception would be lost.
        """
        try:
            return self._room(nbytes)
        except DeviceError as error:
            self._refused = error
            return 0

    def take_refusal(self) -> DeviceError | None:
        """Why there was no room, once."""
        refused, self._refused = self._refused, None
        return refused

    def _room(self, nbytes: int) -> int:
        if self._device is None or self._device.nbytes < nbytes:
            if self._device is not None:
                self._device.close()
                self._device = None
                self.grown += 1
            self._device = DeviceBuffer(max(4096, nbytes * 3 // 2), f"output {self.name}")
            _log.debug("output %s has room for %d bytes now", self.name, self._device.nbytes)
        return self._device.address

    def fetch(self, stream: Stream) -> None:
        """Queue the copy of what the last run wrote to the host."""
        nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        if self._host is None or self._host.nbytes < nbytes:
            if self._host is not None:
                self._host.close()
            self._host = HostBuffer(max(4096, nbytes * 3 // 2), f"output {self.name}")
        if nbytes and self._device is not None:
            copy_to_host(self._host.address, self._device.address, nbytes, stream)

    def read(self) -> NDArray[np.float32]:
        """What was fetched, as float32."""
        if self._host is None:
            raise ValueError(f"output {self.name} was never fetched")
        return self._host.array(self.shape, self.dtype).astype(np.float32)

    def _release(self) -> None:
        if self._device is not None:
            self._device.close()
        if self._host is not None:
            self._host.close()


def make_output_allocator(output: GrowingOutput) -> trt.IOutputAllocator:
    """`output` as TensorRT wants it."""

    class Allocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, _name: str, _memory: int, size: int, _alignment: int) -> int:
            return output.room(size)

        def reallocate_output_async(self, _name: str, _memory: int, size: int, _alignment: int, _stream: int) -> int:
            return output.room(size)

        def notify_shape(self, _name: str, shape: Sequence[int]) -> None:
            output.shape = tuple(shape)

    return Allocator()


class DynamicSlot(Resource):
    """One batch in flight, step by step."""

    def __init__(self, model: LoadedEngine, lane: ExecutionLane, letterbox: LetterboxKernel, inlet: UploadPath) -> None:
        self.stream = lane.stream
        self._model = model
        self._inlet = inlet
        self._in_flight: tuple[Frame, ...] = ()
        self._contexts = dict(sorted(lane.contexts.items()))
        batch = max(self._contexts)
        scratch_bytes = shared_scratch((0, context.memory_bytes) for context in self._contexts.values())[0]
        tensor = model.engine.tensor(model.input_name)
        with contextlib.ExitStack() as made:
            scratch = made.enter_context(DeviceBuffer(scratch_bytes, "activations"))
            self._rows = made.enter_context(HostBuffer(batch * DESCRIPTION_BYTES, "descriptions"))
            self._frames = made.enter_context(DeviceBuffer(batch * DESCRIPTION_BYTES, "descriptions of frames"))
            counts = made.enter_context(DeviceBuffer(4 * batch, "candidate counts"))
            nbytes = np.dtype(tensor.dtype).itemsize * int(np.prod(model.input_shape(batch)))
            images = made.enter_context(DeviceBuffer(nbytes, "the network's input"))
            images.fill(0, self.stream)
            self.outputs = {
                each.name: made.enter_context(GrowingOutput(each.name, each.dtype)) for each in model.engine.outputs
            }
            self._spare = made.enter_context(contextlib.closing(StagingBuffers(batch)))
            self._done = made.enter_context(Completion())
            self._launches = {
                size: letterbox.bind(size, self._frames.address, images.address, counts.address)
                for size in self._contexts
            }
            for context in self._contexts.values():
                context.give_memory(scratch.address, scratch_bytes)
                context.set_address(model.input_name, images.address)
                for output in self.outputs.values():
                    context.set_output_allocator(output.name, make_output_allocator(output))
            self._made = made.pop_all()
        self._opened = True

    @property
    def frames(self) -> int:
        """Of the batch in flight; 0: none."""
        return len(self._in_flight)

    @property
    def grown(self) -> int:
        """How often the memory of an output had to grow."""
        return sum(output.grown for output in self.outputs.values())

    def submit(self, frames: Sequence[Frame]) -> None:
        """Run a batch up to the point where its outputs are on their way to the host.

        Raises:
            DeviceError: TensorRT refuses, or there is no room for an output.
        """
        self._queue(next(size for size in self._contexts if size >= len(frames)), frames)
        self._in_flight = tuple(frames)

    def warm_up(self) -> None:
        """Run every batch size once, without frames: what does not fit is told before the first camera is there.

        Raises:
            DeviceError: as of `submit`.
            ModelError: scores that cannot be any.
        """
        for batch in self._contexts:
            self._queue(batch, ())
            self.stream.synchronize()
            outputs = [self.outputs[name].read() for name in self._model.head.outputs]
            self._model.head.check_scores([output[0] for output in outputs])

    def _queue(self, batch: int, frames: Sequence[Frame]) -> None:
        rows: memoryview = self._rows.array((batch * DESCRIPTION_BYTES,)).data
        rows[:] = bytes(batch * DESCRIPTION_BYTES)
        for index, frame in enumerate(frames):
            row = rows[index * DESCRIPTION_BYTES : (index + 1) * DESCRIPTION_BYTES]
            self._inlet.uploader.place(frame, row, self._spare, index, self.stream)
        queue_to_device(self._frames.address, self._rows.address, batch * DESCRIPTION_BYTES, self.stream)
        self._launches[batch].enqueue(self.stream)
        self._enqueue(batch)
        for output in self.outputs.values():
            output.fetch(self.stream)
        self._done.record(self.stream, batch)

    def _enqueue(self, batch: int) -> None:
        try:
            self._contexts[batch].enqueue(self.stream.address)
        except DeviceError as error:
            refused = [each for output in self.outputs.values() if (each := output.take_refusal()) is not None]
            raise (refused[0] if refused else error) from None

    def ready(self, timeout_s: float) -> bool:
        """Wait until the batch in flight is done, at most so long."""
        return self._done.wait(timeout_s)

    def detections(self) -> list[Detections]:
        """The result of the batch that is done. The slot is free again."""
        frames, self._in_flight = self._in_flight, ()
        outputs = [self.outputs[name].read() for name in self._model.head.outputs]
        return [self._objects([output[index] for output in outputs], frame.meta) for index, frame in enumerate(frames)]

    def _objects(self, outputs: Sequence[NDArray[np.float32]], meta: FrameMeta) -> Detections:
        spec, head = self._model.spec, self._model.head
        size = spec.input
        letterbox = Letterbox.fit(meta.width_px, meta.height_px, size.width, size.height, size.letterbox)
        limits = spec.nms if head.needs_nms else None
        return to_detections(head.decode(outputs), limits, letterbox, meta.width_px, meta.height_px)

    def _release(self) -> None:
        self._in_flight = ()
        self._contexts = {}  # the engine cannot go before its contexts
        self._made.close()


def bind_open_outputs(model: LoadedEngine, lane: ExecutionLane) -> None:
    """Choose the head's outputs by the axes that are known before a run; open ones stay open.

    Raises:
        ModelError: they do not fit the head, or their rows are not those of the batch.
    """
    shapes: dict[str, tuple[int | None, ...]] = {}
    for name in lane.greatest.output_sizes():
        shape = tuple(int(axis) for axis in lane.greatest.raw.get_tensor_shape(name))
        if shape[:1] not in {(max(lane.contexts),), (-1,)}:
            raise ModelError(
                f"{model.spec.name}: the first axis of output {name} should be the batch, its shape is {shape}",
                hint="export the model so that each frame has its own rows",
            )
        shapes[name] = (None, *(None if axis < 0 else axis for axis in shape[1:]))
    model.head.bind(shapes)
