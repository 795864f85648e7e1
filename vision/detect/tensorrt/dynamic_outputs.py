# mypy: allow-subclassing-any
"""Detection with engines whose output sizes depend on the frame, because they contain NonMaxSuppression or NonZero.

TensorRT requests the memory for such outputs during the run, and determines their size on the host. Therefore a CUDA
graph is not possible, and the host waits for each batch. If possible, export the model without these layers. An engine
with these layers returns few rows, so the reference implementation decodes the rows on the CPU.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.decoder import Decoder
from vision.detect.reference.letterbox import Letterbox
from vision.detect.reference.postprocess import to_detections
from vision.detect.tensorrt.frames import DESCRIPTION_BYTES, StagingBuffers
from vision.detect.tensorrt.loaded_engine import LoadedEngine
from vision.detect.tensorrt.slot import DetectorSlot, ExecutionLane, LetterboxKernel, UploadPath
from vision.engine.library import trt
from vision.engine.memory import shared_scratch_bytes
from vision.errors import DeviceError
from vision.gpu.cuda import Resource, Stream
from vision.gpu.memory import DeviceBuffer, HostBuffer, copy_to_host, queue_to_device
from vision.types import Detections, Frame, FrameMeta

_log = logging.getLogger(__name__)

_LEAST_BYTES: Final = 4096


class GrowingOutput(Resource):
    """Host and device memory of one output. The memory grows if a batch needs more, and never shrinks."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.grown = 0  # number of times that the device memory was enlarged
        self.shape: tuple[int, ...] = (0,)  # shape of the output of the last run
        self.refused: DeviceError | None = None  # error of the last request that failed; None if none failed
        self._purpose = f"output {name}"
        self._device = DeviceBuffer(_LEAST_BYTES, self._purpose)
        self._host = HostBuffer(_LEAST_BYTES, self._purpose)
        self._opened = True

    def room(self, nbytes: int) -> int:
        """Return the address of at least `nbytes` bytes of device memory, or 0 if an allocation fails.

        TensorRT calls this method during the run, where an exception would be lost. The address 0 makes the run fail.
        """
        try:
            if self._device.nbytes < nbytes:
                larger = DeviceBuffer(nbytes * 3 // 2, self._purpose)
                self._device.close()
                self._device = larger
                self.grown += 1
                _log.debug("the memory of output %s was enlarged to %d bytes", self.name, self._device.nbytes)
        except DeviceError as error:
            self.refused = error
            return 0
        return self._device.address

    def fetch(self, stream: Stream) -> None:
        """Queue the copy of the output from the GPU to the host, with the shape of the latest run."""
        nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        if self._host.nbytes < nbytes:
            larger = HostBuffer(nbytes * 3 // 2, self._purpose)
            self._host.close()
            self._host = larger
        if nbytes:
            copy_to_host(self._host.address, self._device.address, nbytes, stream)

    def read(self) -> NDArray[np.float32]:
        """Return the output as float32. The copy that `fetch` queued must have ended."""
        return self._host.array(self.shape, self.dtype).astype(np.float32)

    def _release(self) -> None:
        self._device.close()
        self._host.close()


def make_output_allocator(output: GrowingOutput) -> trt.IOutputAllocator:
    """Return an allocator through which TensorRT requests the memory of `output`."""

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


class DynamicSlot(DetectorSlot):
    """Slot that runs its batch step by step, without a CUDA graph."""

    def __init__(
        self,
        model: LoadedEngine,
        decoder: Decoder,
        lane: ExecutionLane,
        letterbox: LetterboxKernel,
        uploads: UploadPath,
        *,
        constants: Mapping[str, int],
    ) -> None:
        self._model = model
        self._decoder = decoder
        self._contexts = dict(sorted(lane.contexts.items()))
        batch = max(self._contexts)
        scratch_bytes = shared_scratch_bytes(context.memory_bytes for context in self._contexts.values())
        tensor = model.engine.tensor(model.input_name)
        super().__init__(lane.stream, uploads)
        with contextlib.ExitStack() as resources:
            resources.enter_context(self._done)
            scratch = resources.enter_context(DeviceBuffer(scratch_bytes, "activations"))
            self._rows = resources.enter_context(HostBuffer(batch * DESCRIPTION_BYTES, "descriptions"))
            self._frames = resources.enter_context(DeviceBuffer(batch * DESCRIPTION_BYTES, "descriptions of frames"))
            counts = resources.enter_context(DeviceBuffer(4 * batch, "candidate counts"))
            nbytes = np.dtype(tensor.dtype).itemsize * int(np.prod(model.input_shape(batch)))
            images = resources.enter_context(DeviceBuffer(nbytes, "the network's input"))
            images.fill(0, self.stream)
            self.outputs = {
                output.name: resources.enter_context(GrowingOutput(output.name, output.dtype))
                for output in model.engine.outputs
            }
            self._staging = resources.enter_context(contextlib.closing(StagingBuffers()))
            self._launches = {
                size: letterbox.bind(size, self._frames.address, images.address, counts.address)
                for size in self._contexts
            }
            for context in self._contexts.values():
                context.give_memory(scratch.address, scratch_bytes)
                for name, address in {model.input_name: images.address, **constants}.items():
                    context.set_address(name, address)
                for output in self.outputs.values():
                    context.set_output_allocator(output.name, make_output_allocator(output))
            self._resources = resources.pop_all()
        self._opened = True

    @property
    def grown(self) -> int:
        """Number of times that this slot enlarged the memory of an output, because a batch had more results."""
        return sum(output.grown for output in self.outputs.values())

    def submit(self, frames: Sequence[Frame]) -> None:
        """Run a batch, and queue the copies of its outputs to the host.

        Raises:
            ValueError: the buffer of a frame does not fit the frame's metadata.
            DeviceError: TensorRT refuses the batch, or there is too little memory for an output.
        """
        self._queue(next(size for size in self._contexts if size >= len(frames)), frames)
        self.step_runs += 1
        self._in_flight = tuple(frames)

    def warm_up(self) -> None:
        """Run every batch size once without frames, so that errors appear before the first camera opens.

        Raises:
            DeviceError: TensorRT refuses the batch, or there is too little memory for an output.
            ModelError: the head has no activation, and a score is not from 0 to 1.
        """
        for batch in self._contexts:
            self._queue(batch, ())
            self.stream.synchronize()
            outputs = [self.outputs[name].read() for name in self._decoder.outputs]
            self._decoder.check_scores(self._decoder.of_frame(outputs, 0))

    def _queue(self, batch: int, frames: Sequence[Frame]) -> None:
        rows: memoryview = self._rows.array((batch * DESCRIPTION_BYTES,)).data
        rows[:] = bytes(batch * DESCRIPTION_BYTES)
        for index, frame in enumerate(frames):
            row = rows[index * DESCRIPTION_BYTES : (index + 1) * DESCRIPTION_BYTES]
            self._uploads.uploader.place(frame, row, self._staging, index, self.stream)
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
            refused = [output.refused for output in self.outputs.values() if output.refused is not None]
            for output in self.outputs.values():
                output.refused = None
            raise (refused[0] if refused else error) from None

    def detections(self) -> list[Detections]:
        frames, self._in_flight = self._in_flight, ()
        self.unnamed = 0
        outputs = [self.outputs[name].read() for name in self._decoder.outputs]
        return [self._objects(self._decoder.of_frame(outputs, index), frame.meta) for index, frame in enumerate(frames)]

    def _objects(self, outputs: Sequence[NDArray[np.float32]], meta: FrameMeta) -> Detections:
        spec = self._model.spec
        size = spec.input
        letterbox = Letterbox.fit(meta.width_px, meta.height_px, size.width, size.height, size.letterbox)
        limits = spec.nms if self._decoder.needs_nms else None
        candidates = self._decoder.decode(outputs)
        self.unnamed += candidates.unnamed
        return to_detections(candidates, limits, letterbox, meta.width_px, meta.height_px)

    def _release(self) -> None:
        self._in_flight = ()
        self._contexts = {}  # contexts must be freed before the engine
        self._resources.close()


def bind_open_outputs(model: LoadedEngine, lane: ExecutionLane) -> Decoder:
    """Return the decoder for outputs of variable size. An axis of variable size fits any size that the head expects.

    Raises:
        ModelError: the outputs do not fit the head, or the first axis of an output is not the batch.
    """
    raw = lane.greatest.raw
    shapes = {name: tuple(int(axis) for axis in raw.get_tensor_shape(name)) for name in lane.greatest.output_sizes()}
    model.shapes_of_frame(shapes, max(lane.contexts))  # checks the batch axis
    known = {name: tuple(None if axis < 0 else axis for axis in shape) for name, shape in shapes.items()}
    return model.head.bind(known)
