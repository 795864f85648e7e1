"""Second model on an NVIDIA GPU. It implements `vision.stages.secondary_model.Classifier`.

A kernel cuts each object out of its frame, which is in GPU memory or in page-locked memory, and writes a tensor. The
tensors of a batch are copied to the input of the network. Only the scores, not the pixels, are copied to the host. Each
batch is queued layer by layer, without a CUDA graph, because results do not wait for the classification.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.config import CascadeConfig, ClassifierSpec
from vision.detect.reference.classifier import ACTIVATIONS, Box, output_mismatch, require_part, require_scores
from vision.detect.tensorrt.crop_kernel import CropProgram
from vision.detect.tensorrt.frames import StagingBuffers, require_size
from vision.detect.tensorrt.kernels import KERNELS, FrameLayout, describe_normalization
from vision.detect.tensorrt.loaded_engine import kernel_cache
from vision.detect.tensorrt.release import close_quietly, release_in_time
from vision.engine.build import BuildOptions
from vision.engine.build_plan import resolve_classifier
from vision.engine.library import find_library
from vision.engine.memory import MemoryPool, shared_scratch_bytes
from vision.engine.open import open_engine
from vision.engine.profiles import batch_sizes
from vision.engine.runtime import Context, Engine
from vision.engine.tensors import Tensor
from vision.errors import Closed, ModelError
from vision.gpu.cuda import Device, Event, Stream, open_device, use_device
from vision.gpu.memory import CudaMemory, DeviceBuffer, HostBuffer, copy_rows, copy_to_host
from vision.gpu.nvrtc import Module, Source
from vision.types import Frame, FrameMeta

_log = logging.getLogger(__name__)

_CLOSE_S: Final = 5.0
_SAMPLE_PX: Final = 64
_FLOATS: Final = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class GpuCrop:
    """GPU memory for one crop as a tensor, and the event that the GPU reaches when the crop is written."""

    address: int  # device address
    written: Event


def open_tensorrt_classifier(
    folder: Path, spec: ClassifierSpec, cascade: CascadeConfig, *, stop: threading.Event | None = None
) -> TensorRTClassifier:
    """Open the second model on the GPU of this machine. Build the engine if none is cached.

    Args:
        stop: event that cancels the call while an engine is built.

    Raises:
        Closed: `stop` was set.
        DeviceMissing: the GPU, the driver, or TensorRT is missing, or the driver is too old.
        ModelError: the model cannot be built, or does not match its specification.
        Unavailable: the cache of engines cannot be used at present.
        DeviceError: the GPU fails or lacks memory.
    """
    device = open_device()
    find_library()
    plan = resolve_classifier(cascade, folder, spec)
    with contextlib.ExitStack() as resources:
        pool = MemoryPool(CudaMemory())
        resources.callback(close_quietly, pool)
        options = BuildOptions(cancel=stop or threading.Event(), prepare_thread=lambda: use_device(device))
        try:
            engine = resources.enter_context(open_engine(folder, spec, device, plan, options, pool=pool))
        except ModelError as error:
            error.hint = error.hint.replace("`detect:", "`cascade:")
            raise
        return build_classifier(device, engine, spec, cascade, resources)


def build_classifier(
    device: Device,
    engine: Engine,
    spec: ClassifierSpec,
    cascade: CascadeConfig,
    resources: contextlib.ExitStack,
) -> TensorRTClassifier:
    """Build a classifier from an open engine, and run each batch size once.

    The classifier becomes the owner of all `resources`.

    Raises:
        ModelError: the inputs or outputs of the engine, or its scores, do not fit the spec.
        DeviceError: the GPU fails or lacks memory.
    """
    use_device(device)
    network = _Network(engine, spec, cascade.max_batch, resources)
    classifier = TensorRTClassifier(device, network, spec, cascade.max_batch, resources)
    try:
        classifier.warm_up()
    except BaseException:
        classifier.close()
        raise
    if engine.save_kernels():
        _log.debug("for the next start, saved the kernels that the library compiled")
    return classifier


class _Network:
    """Stream, contexts, and memory that the engine of the second model uses."""

    def __init__(self, engine: Engine, spec: ClassifierSpec, max_batch: int, resources: contextlib.ExitStack) -> None:
        self.input, output = _checked_tensors(engine, spec)
        self.row_shape = (3, spec.input.height, spec.input.width)
        self.stream = resources.enter_context(Stream())
        sizes = tuple(
            size
            for size in batch_sizes(max_batch)
            if any(profile.contains({self.input.name: (size, *self.row_shape)}) for profile in engine.profiles)
        )
        self.contexts = {size: self._context(engine, size) for size in sizes or (engine.max_batch,)}
        self._scores: NDArray[np.floating] = np.empty(0)
        resources.callback(self._release)
        self.max_batch = max(self.contexts)
        self.row_bytes = self.input.bytes_of((1, *self.row_shape))
        dtype = np.dtype(output.dtype)
        scratch_bytes = shared_scratch_bytes(context.memory_bytes for context in self.contexts.values())
        self._scratch = resources.enter_context(DeviceBuffer(scratch_bytes, "activations of the second model"))
        self._input = resources.enter_context(
            DeviceBuffer(self.input.bytes_of((self.max_batch, *self.row_shape)), "the second model's input")
        )
        scores_shape = (self.max_batch, len(spec.classes))
        self._output = resources.enter_context(
            DeviceBuffer(int(np.prod(scores_shape)) * dtype.itemsize, "the second model's output")
        )
        host = resources.enter_context(HostBuffer(self._output.nbytes, "scores of the second model"))
        self._scores_address = host.address
        self._scores = host.array(scores_shape, dtype)
        self._done = resources.enter_context(Event())
        self._input.fill(0, self.stream)  # rows without a crop are computed too, and must not be NaN
        for context in self.contexts.values():
            context.give_memory(self._scratch.address, scratch_bytes)
            context.set_address(self.input.name, self._input.address)
            context.set_address(output.name, self._output.address)

    def _context(self, engine: Engine, batch: int) -> Context:
        shapes = {self.input.name: (batch, *self.row_shape)}
        context = engine.create_context(engine.choose(shapes), self.stream.address)
        context.set_shape(self.input.name, shapes[self.input.name])
        return context

    def _release(self) -> None:
        """Free the contexts, which must be freed before the engine, and drop the array of scores."""
        self.contexts.clear()
        self._scores = np.empty(0)

    def run(self, crops: Sequence[GpuCrop]) -> NDArray[np.float32]:
        """Run the network on at most `max_batch` crops. Return a copy of its output, float32 (N, classes)."""
        count = len(crops)
        for row, crop in enumerate(crops):
            self.stream.wait(crop.written)
            copy_rows(
                self._input.address + row * self.row_bytes,
                crop.address,
                self.stream,
                rows=1,
                row_bytes=self.row_bytes,
                pitch_bytes=self.row_bytes,
            )
        self.enqueue(next(size for size in sorted(self.contexts) if size >= count))
        nbytes = self._scores[:count].nbytes
        copy_to_host(self._scores_address, self._output.address, nbytes, self.stream)
        self._done.record(self.stream)
        self._done.synchronize()
        return self._scores[:count].astype(np.float32)

    def enqueue(self, batch: int) -> None:
        """Queue one run of the engine. `batch` is a batch size, which must be a key of `contexts`."""
        self.contexts[batch].enqueue(self.stream.address)


class TensorRTClassifier:
    """`Classifier` that runs on an NVIDIA GPU. For the threads, see `vision.stages.secondary_model.Classifier`."""

    def __init__(
        self,
        device: Device,
        network: _Network,
        spec: ClassifierSpec,
        max_batch: int,
        resources: contextlib.ExitStack,
    ) -> None:
        self.name = spec.name
        self.class_names = spec.classes
        self.exclusive = spec.head.labels == "one"
        self.max_batch = max_batch
        self._spec = spec
        self._device = device
        self._network = network
        self._program = CropProgram(spec.input, network.input.dtype)
        self._normalization = describe_normalization(spec.input)
        source = Source.read(KERNELS / self._program.file, self._program.definitions)
        module = resources.enter_context(Module.build(source, device.arch, kernel_cache()))
        self._kernel = module.kernel("cut")
        self._cuts = resources.enter_context(Stream())
        self._cut = resources.enter_context(Event())
        self._staging = resources.enter_context(contextlib.closing(StagingBuffers()))
        self._closed = False
        self._resources = resources.pop_all()

    def allocate(self, count: int) -> list[GpuCrop]:
        """Allocate and return the GPU memory of `count` crops."""
        row_bytes = -(-self._network.row_bytes // 256) * 256
        memory = self._resources.enter_context(DeviceBuffer(count * row_bytes, "crops of objects"))
        return [
            GpuCrop(memory.address + row * row_bytes, self._resources.enter_context(Event())) for row in range(count)
        ]

    def crop(self, frame: Frame, box: Box, out: GpuCrop) -> None:
        """Queue a kernel that scales the part `box` of a frame into `out`.

        A frame that the GPU cannot read is copied to the GPU first.

        Raises:
            ValueError: the part is empty, or is not completely within the frame.
            Closed: the classifier is closed.
            DeviceError: the GPU fails or lacks memory.
        """
        self._refuse_if_closed()
        meta, buffer = frame.meta, frame.buffer
        require_part(box, meta.width_px, meta.height_px)
        require_size(frame)
        use_device(self._device)
        address = buffer.device_address or self._staging.copy(frame, 0, self._cuts)
        layout = FrameLayout(meta.height_px, meta.width_px, buffer.pixel_format, meta.yuv)
        described = self._program.describe(layout, address, box)
        program = self._program
        self._kernel.bind(program.grid, program.block, described, out.address, self._normalization).enqueue(self._cuts)
        out.written.record(self._cuts)
        self._cut.record(self._cuts)

    def is_reading(self) -> bool:
        """Return True if a kernel that `crop` queued may still read a frame. Raise `DeviceError` if the GPU fails."""
        return not self._cut.reached()

    def wait_until_read(self) -> None:
        """Wait until all kernels that `crop` queued have ended. Raise `DeviceError` if the GPU fails."""
        if self.is_reading():
            self._cut.synchronize()

    def classify(self, crops: Sequence[GpuCrop]) -> NDArray[np.float32]:
        """Classify 1 to `max_batch` crops. Return their scores from 0 to 1, float32 (N, classes).

        Raises:
            ValueError: there are no crops, or more than `max_batch`.
            Closed: the classifier is closed.
            DeviceError: the GPU fails.
        """
        if not 1 <= len(crops) <= self.max_batch:
            raise ValueError(f"expected a batch of 1 to {self.max_batch} crops, got {len(crops)}")
        self._refuse_if_closed()
        use_device(self._device)
        size = self._network.max_batch
        chunks = [self._network.run(crops[start : start + size]) for start in range(0, len(crops), size)]
        return ACTIVATIONS[self._spec.head.activation](np.concatenate(chunks))

    def warm_up(self) -> None:
        """Run each batch size once, and check the scores of a black object.

        Raises:
            ModelError: the scores are not finite, or are not from 0 to 1.
            DeviceError: the GPU fails.
        """
        (crop,) = self.allocate(1)
        black = np.zeros((_SAMPLE_PX, _SAMPLE_PX, 3), np.uint8)
        meta = FrameMeta("sample", 0, 0, 0, 0, _SAMPLE_PX, _SAMPLE_PX)
        self.crop(Frame.wrap(meta, black, "bgr"), (0, 0, _SAMPLE_PX, _SAMPLE_PX), crop)
        for batch in self._network.contexts:
            self._network.enqueue(batch)
        require_scores(self._spec, self.classify([crop]))

    def close(self) -> None:
        """Wait for queued work up to a time limit, then free all resources. Idempotent."""
        if not self._closed:
            self._closed = True
            release_in_time(self._device, [self._cuts, self._network.stream], self._resources, _CLOSE_S)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Closed("the classifier is closed")


def _checked_tensors(engine: Engine, spec: ClassifierSpec) -> tuple[Tensor, Tensor]:
    """Return the only input and the only output of an engine. Raise `ModelError` if they do not fit the spec."""
    sides = (3, spec.input.height, spec.input.width)
    given = engine.inputs[0]
    if len(engine.inputs) != 1 or given.shape[1:] != sides or given.dtype not in _FLOATS or given.interleaved:
        raise ModelError(
            f"{spec.name}: expected one input (batch, {', '.join(map(str, sides))}) in fp32 or fp16; "
            f"the engine has {_described(engine.inputs)}",
            hint="`input` in model.yaml sets width and height; export the model with one input, in NCHW",
            code="input-mismatch",
        )
    output = engine.outputs[0]
    if len(engine.outputs) != 1 or output.shape[1:] != (len(spec.classes),) or output.dtype not in _FLOATS:
        raise output_mismatch(spec, _described(engine.outputs))
    return given, output


def _described(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in tensors) or "none"
