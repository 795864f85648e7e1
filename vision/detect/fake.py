"""Detector for tests that finds the rectangles of the synthetic source in the pixels of each frame.

The results of this detector are known in advance, so tests of the whole program can check them without a neural
network. The duration of detection is simulated: each batch takes `service_ns` on one of `parallel` devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.detect.detector import DetectorSpec, InFlight
from vision.drawing.test_pattern import FAKE_CLASSES, FAKE_COLORS
from vision.errors import DeviceError
from vision.types import Detections, Frame, FrameBuffer, PixelFormat

_SATURATION = 128  # minimum difference between color levels; gray stays below it, and a video codec preserves it


@dataclass(frozen=True, slots=True)
class _Batch:
    frames: tuple[Frame, ...]
    ready_ns: int
    fails: bool


class FakeDetector:
    """Detector of rectangles in the colors `FAKE_COLORS`, one color per class.

    The score is the fraction of the bounding box that the object fills.
    """

    def __init__(
        self,
        *,
        score: float = 0.0,
        classes: Sequence[int] | None = None,
        batches_in_flight: int = 2,
        parallel: int = 1,
        max_batch: int = 8,
        service_ns: int = 0,
        fail_at: int | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Create a detector with `batches_in_flight` slots and `parallel` simulated devices, at most one per slot.

        Args:
            score: minimum score of an object.
            classes: ids of the classes to report. None reports all classes.
            service_ns: simulated duration of a batch, in ns.
            fail_at: 0-based index of the batch for which `wait` raises `DeviceError`. None means that no batch fails.
            sleep: function that sleeps for a duration in seconds. It advances `clock`, which returns the time in ns.
        """
        self._score = np.float32(score)
        self._classes = tuple(range(len(FAKE_CLASSES)) if classes is None else sorted(set(classes)))
        self.spec = DetectorSpec(
            name="fake",
            class_names=FAKE_CLASSES,
            batches_in_flight=batches_in_flight,
            parallel=min(parallel, batches_in_flight),
            max_batch=max_batch,
            pixel_formats=("bgr", "bgrx", "nv12", "i420"),
        )
        self._service_ns = service_ns
        self._fail_at = fail_at
        self._clock = clock
        self._sleep = sleep
        self._in_flight = InFlight[_Batch](self.spec)
        self._free_at_ns = [0] * self.spec.parallel
        self._submitted = 0

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        return FrameBuffer.allocate(height_px, width_px, pixel_format)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self._in_flight.require_free(slot, frames)
        device = self._free_at_ns.index(min(self._free_at_ns))
        ready_ns = max(self._clock(), self._free_at_ns[device]) + self._service_ns
        self._free_at_ns[device] = ready_ns
        self._in_flight.batches[slot] = _Batch(tuple(frames), ready_ns, self._submitted == self._fail_at)
        self._submitted += 1

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        self._sleep_until(self._in_flight.submitted(slot).ready_ns, timeout_s)
        batch = self._in_flight.submitted(slot)  # raises an error if the detector was closed during the wait
        self._in_flight.batches[slot] = None
        if batch.fails:
            raise DeviceError(f"detection failed: batch {self._fail_at} is configured to fail")
        return [self._detect(frame) for frame in batch.frames]

    def close(self) -> None:
        self._in_flight.close()

    def _sleep_until(self, ready_ns: int, timeout_s: float) -> None:
        deadline_ns = self._clock() + int(max(timeout_s, 0.0) * 1e9)
        while (now_ns := self._clock()) < ready_ns:
            if now_ns >= deadline_ns:
                raise TimeoutError(f"the batch is not ready after {timeout_s} s")
            self._sleep((min(ready_ns, deadline_ns) - now_ns) / 1e9)

    def _detect(self, frame: Frame) -> Detections:
        planes = [np.asarray(plane, np.uint8) for plane in cv2.split(_to_bgr(frame))]
        by_class = [Detections.empty(), *(_find(planes, class_id) for class_id in self._classes)]
        boxes = np.concatenate([objects.boxes_xyxy for objects in by_class])
        scores = np.concatenate([objects.scores for objects in by_class])
        class_ids = np.concatenate([objects.class_ids for objects in by_class])
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self._score]
        return Detections(boxes[order], scores[order], class_ids[order])


def _to_bgr(frame: Frame) -> NDArray[np.uint8]:
    """Convert a frame to BGR, uint8 (H, W, 3). Every YUV encoding is read as BT.601, which suffices for pure colors."""
    match frame.pixel_format:
        case "bgr":
            return frame.pixels
        case "bgrx":
            code = cv2.COLOR_BGRA2BGR
        case "nv12":
            code = cv2.COLOR_YUV2BGR_NV12
        case "i420":
            code = cv2.COLOR_YUV2BGR_I420
    return np.asarray(cv2.cvtColor(frame.pixels, code), np.uint8)


def _find(planes: Sequence[NDArray[np.uint8]], class_id: int) -> Detections:
    """Find the objects of one class, which are connected areas in the color of the class.

    Return the objects sorted from top to bottom.

    Args:
        planes: levels of blue, green, and red, each uint8 (H, W).
        class_id: id of the class.
    """
    channel = FAKE_COLORS[class_id].index(255)
    others = np.maximum(planes[channel - 1], planes[channel - 2])
    mask = cv2.subtract(planes[channel], others) >= _SATURATION
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = sorted((y, x, y + height, x + width) for x, y, width, height in map(cv2.boundingRect, outlines))
    boxes = np.array([(x1, y1, x2, y2) for y1, x1, y2, x2 in corners], np.float32).reshape(-1, 4)
    covered = np.array([mask[y1:y2, x1:x2].mean() for y1, x1, y2, x2 in corners], np.float32)
    return Detections(boxes, covered, np.full(len(boxes), class_id, np.int32))
