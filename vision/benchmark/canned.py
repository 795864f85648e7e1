"""A detector that knows its answer beforehand and costs nothing: what is left is the cost of everything around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from vision.detect.detector import DetectorSpec
from vision.errors import Closed
from vision.types import Detections, Frame, FrameBuffer, PixelFormat


class StubDetector:
    """`Detector` that finds the same objects in every frame, at once, and notes what its thread spends meanwhile."""

    def __init__(
        self,
        class_names: Sequence[str],
        objects: int,
        *,
        max_batch: int = 8,
        thread_time: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self.frames = 0
        self.busy_ns = 0  # CPU time of the thread that submits, between its first and its last submission
        self._found = _detections(objects, len(class_names))
        self.spec = DetectorSpec(
            name="canned",
            class_names=tuple(class_names),
            batches_in_flight=2,
            parallel=1,
            max_batch=max_batch,
            pixel_formats=("bgr", "bgrx", "nv12", "i420"),
        )
        self._pending: list[int] = [0] * self.spec.batches_in_flight
        self._thread_time = thread_time
        self._first_ns: int | None = None
        self._first_frames = 0
        self._closed = False

    @property
    def ms_per_frame(self) -> float:
        """CPU time of the loop around the detector."""
        frames = self.frames - self._first_frames
        return self.busy_ns / 1e6 / frames if frames else 0.0

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        return FrameBuffer.allocate(height_px, width_px, pixel_format)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self._refuse_if_closed()
        if not 0 <= slot < len(self._pending):
            raise ValueError(f"slots are 0 to {len(self._pending) - 1}, got {slot}")
        if not 1 <= len(frames) <= self.spec.max_batch:
            raise ValueError(f"a batch has 1 to {self.spec.max_batch} frames, got {len(frames)}")
        if self._pending[slot]:
            raise ValueError(f"slot {slot} is still submitted: wait for it first")
        self._pending[slot] = len(frames)
        self.frames += len(frames)
        now_ns = self._thread_time()
        if self._first_ns is None:
            self._first_ns, self._first_frames = now_ns, self.frames
        self.busy_ns = now_ns - self._first_ns

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:  # noqa: ARG002 - it is always done
        self._refuse_if_closed()
        if not 0 <= slot < len(self._pending) or not self._pending[slot]:
            raise ValueError(f"nothing was submitted to slot {slot}")
        frames, self._pending[slot] = self._pending[slot], 0
        return [self._found] * frames

    def close(self) -> None:
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Closed("the detector is closed")


def _detections(objects: int, classes: int) -> Detections:
    """A grid of boxes that do not touch, best score first."""
    index = np.arange(objects)
    left, top = (index % 8) * 40.0, (index // 8) * 40.0
    return Detections(
        np.stack([left, top, left + 24, top + 32], axis=1).astype(np.float32).reshape(objects, 4),
        np.linspace(0.9, 0.5, objects, dtype=np.float32),
        (index % classes).astype(np.int32),
    )
