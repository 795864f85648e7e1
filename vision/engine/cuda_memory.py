"""The memory of a real GPU for `vision.engine.memory`. Needs cuda-python and a driver, and so is small."""

from __future__ import annotations

import logging

from cuda.bindings import runtime

from vision.errors import DeviceError
from vision.gpu.cuda import check, memory_info
from vision.gpu.memory import DeviceBuffer

_log = logging.getLogger(__name__)


class CudaMemory:
    """Segments of a `MemoryPool` from cudaMalloc, counted by `vision.gpu.memory` like all other memory."""

    def __init__(self) -> None:
        self._buffers: dict[int, DeviceBuffer] = {}

    def allocate(self, size: int) -> int:
        """Return the address of `size` new bytes, aligned to 256; 0 if there is not enough memory."""
        try:
            buffer = DeviceBuffer(size, "TensorRT")
        except DeviceError as error:
            _log.debug("%s", error)
            return 0
        self._buffers[buffer.address] = buffer
        return buffer.address

    def free(self, address: int) -> None:
        """Free the result of `allocate`. Nothing may be using it."""
        self._buffers.pop(address).close()

    def synchronize(self, stream: int | None) -> None:
        """Wait for a stream by its handle, or for the whole GPU if None."""
        done = runtime.cudaDeviceSynchronize() if stream is None else runtime.cudaStreamSynchronize(stream)
        check(done, "waiting for TensorRT")

    def free_and_total_bytes(self) -> tuple[int, int]:
        """Return free and total memory of the GPU."""
        return memory_info()
