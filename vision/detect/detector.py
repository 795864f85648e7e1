"""Interface between the inference loop and a detector, which finds the objects in batches of frames.

A detector also performs pre-processing, decoding, and non-maximum suppression (NMS), because on a GPU these steps are
part of the same CUDA graph as the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vision.errors import Closed
from vision.types import Detections, Frame, FrameBuffer, PixelFormat

IN_FLIGHT_CPU: Final = 3
"""Default number of slots on a CPU: two batches are computed at the same time, and a third waits.

On two busy cores, the waiting batch increases the throughput by 5 %.
"""

IN_FLIGHT_GPU: Final = 4
"""Default number of slots on a GPU, so that copies, computation, and work of the host overlap.

On an H100, a batch of 1 takes 0.33, 0.25, and 0.19 ms with two, three, and four slots, and a batch of 32 takes 1.56,
1.19, and 1.10 ms.
"""

IN_FLIGHT_INTEGRATED: Final = 3
"""Default number of slots if GPU and CPU share their memory. Then no copies have to overlap, and memory is scarce."""


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """Precision of a detector that runs on a GPU, and whether its batches run as CUDA graphs."""

    precision: str
    """Number format in which the network computes, such as ``fp16``."""
    graphs_off: str = ""
    """Reason why batches do not run as CUDA graphs. Empty if they do."""

    @property
    def graphs(self) -> bool:
        """True if every batch runs as one CUDA graph."""
        return not self.graphs_off


@dataclass(frozen=True, slots=True)
class DetectorSpec:
    """Properties of an open detector, such as its back-end, classes, and batch sizes. They do not change."""

    name: str
    """Back-end, device, and precision as text, such as ``onnxruntime cpu fp32``, for status messages."""
    class_names: tuple[str, ...]
    """Names of the classes. `Detections.class_ids` contains indices of this tuple."""
    batches_in_flight: int
    """Number of slots: the maximum number of batches in flight at the same time. 2 means double buffering."""
    parallel: int
    """Number of batches that the device computes at the same time. Further batches wait in its queue."""
    max_batch: int
    """Maximum number of frames in one `submit`."""
    pixel_formats: tuple[PixelFormat, ...]
    """Pixel formats that `submit` accepts, in order of ascending cost."""
    gpu: GpuSpec | None = None
    """Properties of a detector on a GPU. None if the detector runs on the CPU."""
    gpu_unused: str = ""
    """Reason why the detector runs on the CPU although this machine has an NVIDIA GPU.

    Empty if the detector uses the GPU, if there is none, or if the configuration requests the CPU.
    """


class Detector(Protocol):
    """Detector that finds objects with one model, in several batches of frames at the same time.

    Each batch in flight uses one slot. `submit` occupies a slot, and `wait` frees it. Only one thread at a time can
    call `submit` and `wait`. Any thread can call `close` after these calls have returned. Every implementation passes
    ``tests/contract/test_detector.py``.
    """

    @property
    def spec(self) -> DetectorSpec:
        """Properties of the detector. Every access returns the same object."""

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        """Return a buffer for one frame, in page-locked memory if such memory makes detection faster.

        Raises:
            Closed: the detector is closed. A detector that does not page-lock the memory need not raise this error.
            ValueError: the pixel format does not allow this frame size.
            OutOfMemory: too little memory is free.
        """

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        """Start detection in a batch of 1 to `max_batch` frames, in a free slot. Return without waiting for the result.

        The caller must hold the leases of the frames until `wait` returns the detections.

        Raises:
            ValueError: the slot does not exist or is occupied, the number of frames is out of range, or the buffer of a
                frame does not fit the frame's metadata.
            Closed: the detector is closed.
            DeviceError: the device failed.
        """

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        """Wait for the batch in a slot, without holding the GIL, and free the slot.

        Returns:
            The detections of each frame, in the order of the frames, in new arrays.

        Raises:
            TimeoutError: the batch is not ready after `timeout_s` seconds. The slot stays occupied: call `wait` again.
            ValueError: the slot does not exist, or nothing was submitted to it.
            Closed: the detector is closed.
            DeviceError: the device failed.
        """

    def close(self) -> None:
        """Wait for running batches, then free all resources. Further calls have no effect."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Amounts of GPU memory and page-locked memory that the process holds for a detector and the cameras' frames."""

    device_bytes: int
    """GPU memory, including the memory of the inference library."""
    page_locked_bytes: int
    """Page-locked host memory, which the GPU reads and writes directly."""


@runtime_checkable
class ReportsMemory(Protocol):
    """A detector that reports the GPU memory it holds."""

    def memory(self) -> GpuMemory:
        """Return the amount of memory that the process currently holds."""


@runtime_checkable
class ReadsDevice(Protocol):
    """A detector that also accepts frames in GPU memory."""

    def device_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        """Return a buffer, only in GPU memory, for one frame.

        Raises:
            Closed: the detector is closed.
            ValueError: the pixel format does not allow this frame size.
            OutOfMemory: the GPU has too little free memory. The error states the requested and the free size.
        """


@runtime_checkable
class SharesFrames(Protocol):
    """A detector on a GPU that also accepts frames that another process has written."""

    def shared_buffers(self, memory: NDArray[np.uint8], frames: Sequence[FrameBuffer]) -> list[FrameBuffer]:
        """Page-lock `memory`, which contains the pixels of `frames`. Return buffers for the same pixels.

        The memory stays page-locked as long as one of the returned buffers exists.

        Raises:
            Closed: the detector is closed.
            OutOfMemory: too little memory is free.
        """

    def exported_buffers(
        self, count: int, height_px: int, width_px: int, pixel_format: PixelFormat
    ) -> tuple[bytes, list[FrameBuffer]] | None:
        """Allocate GPU memory that another process can open.

        Return a handle to the memory, and `count` buffers in the memory. Return None if the memory of this GPU cannot
        be exported to another process. In the other process, `vision.gpu.memory.open_exported` opens the handle, and
        returns the same buffers.

        Raises:
            Closed: the detector is closed.
            ValueError: the pixel format does not allow this frame size.
            OutOfMemory: the GPU has too little free memory.
        """


Batch = TypeVar("Batch")


class InFlight(Generic[Batch]):
    """Record of the batch that occupies each slot of a detector. It also checks arguments as `Detector` requires."""

    def __init__(self, spec: DetectorSpec) -> None:
        self.batches: list[Batch | None] = [None] * spec.batches_in_flight  # None if the slot is free
        self.closed = False
        self._max_batch = spec.max_batch

    def require_free(self, slot: int, frames: Sequence[Frame]) -> None:
        """Raise `Closed` or `ValueError` if `Detector.submit` must refuse these arguments."""
        if self.closed:
            raise Closed("the detector is closed")
        if not 0 <= slot < len(self.batches):
            raise ValueError(f"expected a slot from 0 to {len(self.batches) - 1}, got {slot}")
        if not 1 <= len(frames) <= self._max_batch:
            raise ValueError(f"expected a batch of 1 to {self._max_batch} frames, got {len(frames)}")
        if self.batches[slot] is not None:
            raise ValueError(f"slot {slot} is occupied: call `wait` for it first")

    def submitted(self, slot: int) -> Batch:
        """Return the batch that was submitted to a slot. Raise `Closed` or `ValueError` as `Detector.wait` does."""
        if self.closed:
            raise Closed("the detector is closed")
        batch = self.batches[slot] if 0 <= slot < len(self.batches) else None
        if batch is None:
            raise ValueError(f"nothing was submitted to slot {slot}")
        return batch

    def close(self) -> None:
        """Forget the batches of all slots. Afterwards, `require_free` and `submitted` raise `Closed`."""
        self.closed = True
        self.batches = [None] * len(self.batches)
