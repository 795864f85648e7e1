"""Launch kernels on arrays: copy the arrays to the GPU, and copy the results back."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.config import InputSpec, ModelSpec
from vision.detect.reference.heads import Head
from vision.detect.tensorrt.kernels import (
    FRAME,
    KERNELS,
    FrameLayout,
    LetterboxProgram,
    Output,
    PostprocessProgram,
    describe_frame,
    describe_normalization,
    kept_classes,
    overlaps,
    threshold,
)
from vision.detect.tensorrt.slot import LetterboxKernel, ResultMemory
from vision.gpu.cuda import Device, Stream
from vision.gpu.memory import DeviceBuffer
from vision.gpu.nvrtc import Module, Source
from vision.types import Detections, FrameMeta

NO_FRAME = bytes(FRAME.itemsize)
POISON = 0xA7


class Bench(contextlib.ExitStack):
    """Stream and device memory for one test. The end of the `with` block frees them."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.stream = self.enter_context(Stream())

    def buffer(self, nbytes: int) -> DeviceBuffer:
        """Allocate GPU memory, and fill it with `POISON`."""
        buffer = self.enter_context(DeviceBuffer(nbytes, "a test"))
        buffer.fill(POISON, self.stream)
        self.stream.synchronize()
        return buffer

    def put(self, array: NDArray[Any]) -> int:
        """Copy an array to the GPU, with the padding of the detector's buffers. Return the address."""
        buffer = self.buffer(-(-array.nbytes // 16) * 16)
        if array.nbytes:
            buffer.write(np.ascontiguousarray(array))
        return buffer.address

    def module(self, file: str, definitions: Mapping[str, int | float | str]) -> Module:
        """Compile a file of kernels, and return the module."""
        return self.enter_context(Module.build(Source.read(KERNELS / file, definitions), self.device.arch, None))


def letterbox(
    device: Device,
    spec: InputSpec,
    images: Sequence[tuple[NDArray[np.uint8], FrameLayout] | None],
    *,
    dtype: str,
    channels: int = 0,
) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """Run the letterbox kernel on a batch of frames. If an image is None, its row of the batch remains empty.

    Return the network's input, and the number of candidates of each row, which the kernel resets. The input is (B, 3,
    H, W) or, if `channels` is 3 or 4, a view (B, channels, H, W) of an array (B, H, W, channels).
    """
    program = LetterboxProgram(spec, dtype, channels)
    batch = len(images)
    with Bench(device) as bench:
        rows = b"".join(
            NO_FRAME if each is None else describe_frame(spec, each[1], bench.put(each[0])) for each in images
        )
        frames = bench.put(np.frombuffer(rows, np.uint8))
        sides = (spec.height, spec.width)
        shape = (batch, *sides, channels) if channels else (batch, 3, *sides)
        tensor = bench.buffer(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        counts = bench.buffer(4 * batch)
        kernel = bench.module(program.file, program.definitions).kernel("letterbox")
        bound = LetterboxKernel(kernel, program, describe_normalization(spec))
        bound.bind(batch, frames, tensor.address, counts.address).enqueue(bench.stream)
        bench.stream.synchronize()
        written = tensor.read(shape, dtype)
        return (written.transpose(0, 3, 1, 2) if channels else written), counts.read((batch,), np.uint32)


def postprocess(
    device: Device,
    spec: ModelSpec,
    head: Head,
    outputs: Mapping[str, NDArray[Any]],
    sizes: Sequence[tuple[int, int] | None],
) -> list[tuple[Detections, int]]:
    """Run the post-processing kernels on raw outputs. `sizes` has the (height, width) of each frame, or None.

    Return the result of each frame, and the number of boxes of the frame whose class has no name.
    """
    layout = {name: Output(value.shape[1:], str(value.dtype)) for name, value in outputs.items()}
    program = PostprocessProgram.of(spec, head, layout, device.shared_bytes)
    batch = len(sizes)
    with Bench(device) as bench:
        rows = b"".join(
            NO_FRAME if size is None else describe_frame(spec.input, FrameLayout(*size, "bgr"), 0) for size in sizes
        )
        frames = bench.put(np.frombuffer(rows, np.uint8))
        on_gpu = {name: bench.put(value) for name, value in outputs.items()}
        tensors = program.tensors(on_gpu)
        rules = program.decoder.rules
        limit = threshold(rules, bench.put(kept_classes(rules)))
        keys, counts = bench.buffer(batch * program.keys_bytes), bench.put(np.zeros(batch, np.uint32))
        work = bench.buffer(1 if program.shared_work else batch * program.work_bytes)
        masked = bench.buffer(max(1, batch * program.masked_bytes))
        result = bench.enter_context(ResultMemory(batch, program))
        result.counts[:] = POISON
        for array in (result.boxes_xyxy, result.scores, result.extras):
            array[:] = np.nan
        result.masks[:] = POISON
        module = bench.module(program.file, program.definitions)
        pairs = module.kernel("find_pairs")
        pairs.bind(
            program.pairs_grid(batch),
            program.pairs_block,
            *(frames, tensors, keys.address, counts, limit),
        ).enqueue(bench.stream)
        kernel = module.kernel("objects", shared_bytes=program.work_bytes if program.shared_work else 0)
        kernel.bind(
            program.objects_grid(batch),
            program.objects_block,
            *(frames, tensors, keys.address, counts, limit),
            *(overlaps(spec), work.address, masked.address, *result.addresses),
        ).enqueue(bench.stream)
        if program.mask_shape is not None:
            module.kernel("masks").bind(
                program.masks_grid(batch),
                program.masks_block,
                *(frames, tensors, masked.address, result.masks_address),
            ).enqueue(bench.stream)
        bench.stream.synchronize()
        metas = [FrameMeta("", 0, 0, 0, 0, *(size or (1, 1))[::-1]) for size in sizes]
        return [(result.detections(i, meta), int(result.counts[i, 3])) for i, meta in enumerate(metas)]
