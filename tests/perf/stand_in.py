"""`vision run` with a stand-in detector, which takes a fixed time per batch and reports moving objects.

    python -m tests.perf.stand_in camera.yaml --service-ms 5 --objects 6

All other parts of the program are real. Use this module to measure them on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.config import DetectConfig, ModelSpec, load_config
from vision.detect.detector import Detector, DetectorSpec, InFlight
from vision.detect.open import published_class_names
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions, open_state
from vision.types import Detections, Frame, FrameBuffer, PixelFormat

_STEP_PX: Final = 4.0  # distance that an object moves from frame to frame
_CYCLE: Final = 400  # number of frames after which the scene repeats


class StandInDetector:
    """Detector whose batches take `service_s` seconds each, one after another.

    The detector does not read the frames. It reports the same `objects` objects for every camera. The objects move
    horizontally, and turn at the borders of the frame. Their paths together cover the whole width of the frame.
    """

    def __init__(self, class_names: Sequence[str], *, service_s: float, objects: int, max_batch: int) -> None:
        self.spec = DetectorSpec(
            name="stand-in",
            class_names=tuple(class_names),
            batches_in_flight=2,
            parallel=1,
            max_batch=max_batch,
            pixel_formats=("nv12", "i420", "bgrx", "bgr"),
        )
        self._service_s = service_s
        self._objects = objects
        self._in_flight = InFlight[tuple[float, list[Detections]]](self.spec)
        self._free_at_s = 0.0
        self._scenes: dict[tuple[int, int], list[Detections]] = {}

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        return FrameBuffer.allocate(height_px, width_px, pixel_format)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self._in_flight.require_free(slot, frames)
        self._free_at_s = max(time.monotonic(), self._free_at_s) + self._service_s
        self._in_flight.batches[slot] = self._free_at_s, [self._find(frame) for frame in frames]

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        ready_s, found = self._in_flight.submitted(slot)
        if (left_s := ready_s - time.monotonic()) > 0:
            time.sleep(min(left_s, max(0.0, timeout_s)))
            if left_s > timeout_s:
                raise TimeoutError(f"the batch is not ready after {timeout_s} s")
        self._in_flight.batches[slot] = None
        return found

    def close(self) -> None:
        self._in_flight.close()

    def _find(self, frame: Frame) -> Detections:
        size = frame.meta.width_px, frame.meta.height_px
        scene = self._scenes.get(size) or self._scenes.setdefault(size, _scene(self._objects, *size))
        return scene[frame.meta.index % _CYCLE]


def _scene(objects: int, width_px: int, height_px: int) -> list[Detections]:
    """Return the detections of every frame of a cycle. All objects have class 0."""
    number = np.arange(objects)
    height, width = 0.3 * height_px, 0.6 * width_px / max(1, objects)
    top = (0.1 + 0.05 * (number % 8)) * height_px
    first = number * width_px / max(1, objects)
    scores = np.linspace(0.9, 0.7, objects, dtype=np.float32)

    def boxes(index: int) -> NDArray[np.float32]:
        way = (first + _STEP_PX * min(index, _CYCLE - index)) % (2 * width_px)
        left = np.minimum(way, 2 * width_px - way) * (1 - width / width_px)
        return np.stack([left, top, left + width, top + height], axis=1).astype(np.float32)

    return [Detections(boxes(index), scores, np.zeros(objects, np.int32)) for index in range(_CYCLE)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="camera.yaml")
    parser.add_argument("--service-ms", type=float, default=5.0, help="duration of a batch. Default: %(default)g")
    parser.add_argument("--objects", type=int, default=6, help="objects in each frame. Default: %(default)d")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    config = load_config(options.config, os.environ)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def opened(_folder: Path, spec: ModelSpec, detect: DetectConfig) -> Detector:
        return StandInDetector(
            published_class_names(spec, detect),
            service_s=options.service_ms / 1e3,
            objects=options.objects,
            max_batch=detect.max_batch,
        )

    with ExitStack() as resources:
        run_options = RunOptions(stop=stop, open_detector=opened, state=open_state(config, resources))
        load_pipeline(config.pipeline)(config, run_options, resources).run(stop)


if __name__ == "__main__":
    main()
