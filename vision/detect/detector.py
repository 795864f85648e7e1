"""Interface between the inference loop and a detector: frames in, detections out.

The detector includes pre-processing, decoding, and NMS: on a GPU, they are part of the same graph as the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar, runtime_checkable

from vision.errors import Closed
from vision.types import Detections, Frame, FrameBuffer, PixelFormat

IN_FLIGHT_CPU: Final = 3
"""Number of slots on a CPU. The device computes two batches at the same time, and one waits. On two busy cores, the
waiting batch increases the throughput by 5 %."""

IN_FLIGHT_GPU: Final = 4
"""Number of slots on a GPU: copies, computation, and work of the host overlap. On an H100, a batch of 1 and a batch of
32 take 0.33 and 1.56 ms with two slots, 0.25 and 1.19 ms with three, and 0.19 and 1.10 ms with four."""

IN_FLIGHT_INTEGRATED: Final = 3
"""Number of slots if CPU and GPU share their memory. In that case, nothing is copied, and memory is scarce."""


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """Properties of a detector that runs on a GPU."""

    precision: str
    graphs_off: str = ""
    """Reason why batches do not run as CUDA graphs. Empty if they do."""

    @property
    def graphs(self) -> bool:
        """True if every batch is one CUDA graph."""
        return not self.graphs_off


@dataclass(frozen=True, slots=True)
class DetectorSpec:
    """Fixed properties of an open detector."""

    name: str
    """Back-end, device, and precision for status messages, such as ``onnxruntime cpu fp32``."""
    class_names: tuple[str, ...]
    """Names of the classes. `Detections.class_ids` contains indices into this tuple."""
    batches_in_flight: int
    """Number of slots, that is, of batches that can be submitted at the same time. 2 is double buffering."""
    parallel: int
    """Number of batches that the device computes at the same time. The others wait in the device's queue."""
    max_batch: int
    """Maximum number of frames in one `submit`."""
    pixel_formats: tuple[PixelFormat, ...]
    """Formats that `submit` accepts, the cheapest first."""
    gpu: GpuSpec | None = None
    """None for a detector that runs on the CPU."""


class Detector(Protocol):
    """One model with several batches in flight.

    A slot is free, then submitted, then free again after `wait`. One thread at a time calls `submit` and `wait`.
    Any thread can call `close` after the others have returned. Every implementation passes
    ``tests/contract/test_detector.py``.
    """

    @property
    def spec(self) -> DetectorSpec:
        """Fixed properties. Always the same object."""

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        """Return a buffer for one frame, page-locked if that helps. The buffer keeps its memory alive.

        Raises:
            ValueError: the format does not allow this size.
        """

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        """Start detection in 1 to `max_batch` frames. Does not wait. Keeps the frames' leases until `wait` returns.

        Raises:
            ValueError: the slot does not exist or is still submitted, or the number of frames is out of range.
            Closed: the detector is closed.
            DeviceError: the device failed.
        """

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        """Return the detections of each submitted frame, in order, in new arrays. Releases the GIL while it waits.

        Raises:
            TimeoutError: the batch is not ready. The slot stays submitted, so call `wait` again.
            ValueError: nothing was submitted to this slot.
            Closed: the detector is closed.
            DeviceError: the device failed.
        """

    def close(self) -> None:
        """Wait for running batches and free everything. Idempotent."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Memory that the process holds for a detector and for the cameras' frames."""

    device_bytes: int
    """GPU memory, including the memory of the inference library."""
    page_locked_bytes: int
    """Host memory that the GPU reads and writes."""


@runtime_checkable
class ReportsMemory(Protocol):
    """A detector that reports the GPU memory it holds."""

    def memory(self) -> GpuMemory:
        """Return the memory that is currently held."""


@runtime_checkable
class ReadsDevice(Protocol):
    """A detector that also accepts frames in GPU memory."""

    def device_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        """Return a buffer for one frame in GPU memory only.

        Raises:
            ValueError: the format does not allow this size.
            OutOfMemory: the GPU has too little free memory. The error contains the requested and the free memory.
        """


Batch = TypeVar("Batch")


class InFlight(Generic[Batch]):
    """The batch in each slot, and the checks of arguments that the `Detector` protocol requires."""

    def __init__(self, spec: DetectorSpec) -> None:
        self.batches: list[Batch | None] = [None] * spec.batches_in_flight  # None: the slot is free
        self.closed = False
        self._max_batch = spec.max_batch

    def require_free(self, slot: int, frames: Sequence[Frame]) -> None:
        """Check the arguments of `Detector.submit`. Raises the errors that are documented there."""
        if self.closed:
            raise Closed("the detector is closed")
        if not 0 <= slot < len(self.batches):
            raise ValueError(f"slots are 0 to {len(self.batches) - 1}, got {slot}")
        if not 1 <= len(frames) <= self._max_batch:
            raise ValueError(f"a batch has 1 to {self._max_batch} frames, got {len(frames)}")
        if self.batches[slot] is not None:
            raise ValueError(f"slot {slot} is still submitted: wait for it first")

    def submitted(self, slot: int) -> Batch:
        """Return the batch in a slot for `Detector.wait`. Raises the errors that are documented there."""
        if self.closed:
            raise Closed("the detector is closed")
        batch = self.batches[slot] if 0 <= slot < len(self.batches) else None
        if batch is None:
            raise ValueError(f"nothing was submitted to slot {slot}")
        return batch

    def close(self) -> None:
        """Refuse further calls, and drop the batches."""
        self.closed = True
        self.batches = [None] * len(self.batches)
