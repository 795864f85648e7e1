"""The seam between the loop and whatever finds objects: frames in, detections out.

Preprocessing, decoding and NMS belong to the detector because on a GPU they are part of the same graph as the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vision.types import Detections, Frame, PixelFormat

SLOTS_CPU: Final = 3
"""Two batches computed at once, and one that waits: 5 % more frames/s on two busy cores than without it."""

SLOTS_GPU: Final = 4
"""Copy, compute and the host's turn overlap. On an H100, batches of 1 and of 32: two slots 0.33 and 1.56 ms a batch,
three 0.25 and 1.19 ms, four 0.19 and 1.10 ms."""

SLOTS_INTEGRATED: Final = 3
"""Nothing is copied where CPU and GPU share their memory, and memory is short."""


class Detector(Protocol):
    """One model, several batches in flight.

    A slot is free, then submitted, then free again after `wait`. One thread at a time calls `submit` and `wait`;
    `close` may come from any thread, once the others have returned. Every implementation passes
    ``tests/contract/test_detector.py``.
    """

    @property
    def name(self) -> str:
        """Backend, device and precision for status messages, such as ``onnxruntime cpu fp32``."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """`class_ids` index into this."""

    @property
    def slots(self) -> int:
        """Batches that may be in flight; 2 is double buffering."""

    @property
    def parallel(self) -> int:
        """How many of them are worked on at the same time; the others wait in the device's queue."""

    @property
    def max_batch(self) -> int:
        """Most frames of one `submit`."""

    @property
    def pixel_formats(self) -> tuple[PixelFormat, ...]:
        """Formats that `submit` takes, the cheapest first."""

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> NDArray[np.uint8]:
        """A buffer for one frame, page-locked where that helps. The view keeps its memory alive.

        Raises:
            ValueError: the size is not possible in this format.
        """

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        """Start on 1 to `max_batch` frames and return at once. The frames' leases are held until `wait` returns.

        Raises:
            ValueError: no such slot, no or too many frames, or the slot is still submitted.
            Closed: after `close`.
            DeviceError: the device failed.
        """

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        """Detections of each submitted frame, in order, in arrays of their own. Releases the GIL while it waits.

        Raises:
            TimeoutError: not ready yet; the slot stays submitted, so call again.
            ValueError: nothing was submitted to this slot.
            Closed: after `close`.
            DeviceError: the device failed.
        """

    def close(self) -> None:
        """Wait for what is running, free everything. May be called twice."""


@runtime_checkable
class OnGpu(Protocol):
    """A detector on a GPU of its own memory, whose batches run as CUDA graphs, or could."""

    @property
    def graphs_off(self) -> str:
        """Why they do not; empty where they do."""

    @property
    def device_bytes(self) -> int:
        """GPU memory that is held for it now, the cameras' frames and the library's part included."""

    @property
    def page_locked_bytes(self) -> int:
        """Memory of the host that the GPU reads and writes, the cameras' frames included."""


@runtime_checkable
class ReadsDevice(Protocol):
    """A detector that also takes frames which lie on its device already."""

    def device_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> NDArray[np.uint8]:
        """A buffer there for one frame (`vision.gpu.device_image.DeviceImage`). The view keeps its memory alive.

        Raises:
            ValueError: the size is not possible in this format.
            OutOfMemory: what was asked for, and what is free.
        """
