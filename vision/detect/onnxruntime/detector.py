"""Detector that runs on the CPU with ONNX Runtime, for laptops and as the reference for the GPU.

One worker thread performs all steps of a batch: letterbox, network, decoding, and NMS. A second core therefore computes
a second batch instead of waiting for the serial steps of the first. On two cores of a Xeon at 2.1 GHz, the network
nanodet-g-416 reaches 44 frames/s if two threads each compute a batch, but only 31 frames/s if they compute one batch
together.
"""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.config import ModelSpec, NmsSpec
from vision.detect.classes import UnnamedClasses, class_names
from vision.detect.detector import DetectorSpec, InFlight
from vision.detect.onnxruntime.network import Network
from vision.detect.reference.decoder import Decoder
from vision.detect.reference.heads import Head, make_head
from vision.detect.reference.letterbox import Letterbox
from vision.detect.reference.postprocess import to_detections
from vision.detect.reference.preprocess import Preprocessor
from vision.errors import DeviceError
from vision.metrics import span
from vision.types import Detections, Frame, FrameBuffer, PixelFormat

PIXEL_FORMATS: tuple[PixelFormat, ...] = ("bgr", "bgrx")

_WORKERS: Final = 2  # maximum number of batches that are computed at the same time

_Floats: TypeAlias = NDArray[np.float32]


class OnnxRuntimeDetector:
    """`Detector` that runs on the CPU. For the contract, see `vision.detect.detector.Detector`."""

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        *,
        score: float,
        iou: float | None = None,
        classes: Sequence[int] | None = None,
        batches_in_flight: int = 3,
        threads: int | None = None,
        max_batch: int = 1,
        gpu_unused: str = "",
    ) -> None:
        """Load the model, run it once to check its outputs, and start the worker threads.

        On a CPU, larger batches do not increase the throughput, and the first frame of a batch waits for the last
        frame. On one core of a Xeon at 2.1 GHz, nanodet-g-416 takes 31.3 ms per frame in batches of 1, 31.6 ms in
        batches of 2, and 31.4 ms in batches of 4. Thus, the network computes one frame at a time, unless the model file
        fixes the batch size.

        Args:
            score: minimum score of an object.
            iou: IoU threshold of NMS. None uses the threshold in `spec`.
            classes: ids of the classes to report. None means all classes. Background classes are never reported.
            batches_in_flight: number of slots. With more slots than workers, no worker waits for the next batch.
            threads: total number of threads. None or 0 uses one thread per core that the process may use.
            max_batch: maximum number of frames in one `submit`. A larger batch size in the model file overrides it.
            gpu_unused: see `DetectorSpec`.

        Raises:
            ModelError: the model cannot be loaded or run, or its inputs or outputs do not fit the spec.
        """
        names = class_names(spec)
        head = make_head(spec, len(names), score, classes)
        limits = spec.nms if iou is None else spec.nms.model_copy(update={"iou_threshold": iou})
        shares = _split(threads or len(os.sched_getaffinity(0)), min(_WORKERS, batches_in_flight))
        self._unnamed = UnnamedClasses(spec.name, len(names))
        workers = _open_workers(path, spec, head, limits, shares=shares, unnamed=self._unnamed)
        self.spec = DetectorSpec(
            name="onnxruntime cpu fp32",
            class_names=names,
            batches_in_flight=batches_in_flight,
            parallel=len(workers),
            max_batch=max(max_batch, workers[0].batch),
            pixel_formats=PIXEL_FORMATS,
            gpu_unused=gpu_unused,
        )
        self._in_flight = InFlight[_Job](self.spec)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._threads = [
            # daemon threads, because a program that fails before `close` must not hang when it exits
            threading.Thread(target=worker.work, args=(self._jobs, self._in_flight), name=f"detect-{i}", daemon=True)
            for i, worker in enumerate(workers)
        ]
        for thread in self._threads:
            thread.start()

    def counters(self) -> Mapping[str, int]:
        """Return a dict with the number of boxes whose class id has no name, for status messages.

        The dict is empty if there were no such boxes.
        """
        return self._unnamed.counters()

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        return FrameBuffer.allocate(height_px, width_px, pixel_format)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self._in_flight.require_free(slot, frames)
        job = _Job(tuple(frames))
        self._in_flight.batches[slot] = job
        self._jobs.put(job)

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        job = self._in_flight.submitted(slot)
        if not job.done.wait(max(timeout_s, 0.0)):
            raise TimeoutError(f"slot {slot} is not ready after {timeout_s} s")
        self._in_flight.submitted(slot)  # raises an error if the detector was closed during the wait
        self._in_flight.batches[slot] = None
        if job.error is not None:
            raise DeviceError(f"detection failed: {job.error}") from job.error
        return job.detections

    def close(self) -> None:
        with self._closing:
            self._in_flight.close()
            for _ in self._threads:
                self._jobs.put(None)
            for thread in self._threads:
                thread.join()

    def __del__(self) -> None:
        if hasattr(self, "_threads") and not self._in_flight.closed:
            warnings.warn("OnnxRuntimeDetector was not closed", ResourceWarning, stacklevel=2)


@dataclass(slots=True, eq=False)
class _Job:
    """One batch that was submitted to a detector. A worker stores the detections or the error, then sets `done`."""

    frames: tuple[Frame, ...]
    done: threading.Event = field(default_factory=threading.Event)
    detections: list[Detections] = field(default_factory=list)
    error: Exception | None = None


class _Worker:
    """Worker that processes batches in one thread, in memory that is allocated only once."""

    def __init__(self, network: Network, decoder: Decoder, limits: NmsSpec, unnamed: UnnamedClasses) -> None:
        frames = network.frames
        self.batch = frames.batch
        self._network = network
        self._decoder = decoder
        self._limits = limits if decoder.needs_nms else None
        self._unnamed = unnamed
        tensor = self._tensor = np.zeros(frames.shape(network.spec), frames.dtype)
        self._preprocessor = Preprocessor(network.spec.input, tensor, channels_last=frames.channels_last)
        self._binding = network.session.io_binding()
        self._binding.bind_input(frames.name, "cpu", 0, tensor.dtype.type, tensor.shape, tensor.ctypes.data)
        for name, values in network.constants.items():
            self._binding.bind_cpu_input(name, values)
        self._outputs = self._bind_outputs(decoder.outputs)  # empty if ONNX Runtime allocates the outputs

    def _bind_outputs(self, names: Sequence[str]) -> list[NDArray[Any]]:
        """Bind the outputs `names` to new arrays. Return the arrays.

        If an output has no batch axis or a variable size, ONNX Runtime allocates all outputs, and the result is empty.
        """
        sides = [[side for side in self._network.output_shapes[name][1:] if side is not None] for name in names]
        if self._decoder.without_batch.intersection(names) or any(
            len(fixed) + 1 < len(self._network.output_shapes[name]) for name, fixed in zip(names, sides, strict=True)
        ):
            for name in names:
                self._binding.bind_output(name, "cpu")
            return []
        dtypes = self._network.output_dtypes
        outputs = [np.empty((self.batch, *fixed), dtypes[name]) for name, fixed in zip(names, sides, strict=True)]
        for name, output in zip(names, outputs, strict=True):
            self._binding.bind_output(name, "cpu", 0, output.dtype.type, output.shape, output.ctypes.data)
        return outputs

    def work(self, jobs: queue.SimpleQueue[_Job | None], in_flight: InFlight[_Job]) -> None:
        """Process batches from the queue `jobs` until the queue delivers None.

        Skip batches once `in_flight` is closed.
        """
        while (job := jobs.get()) is not None:
            try:
                if not in_flight.closed:
                    job.detections = self._detect(job.frames)
            except Exception as error:  # noqa: BLE001 - `wait` raises the error to its caller
                job.error = error
            job.frames = ()
            job.done.set()
            del job

    def _detect(self, frames: Sequence[Frame]) -> list[Detections]:
        detections = []
        for start in range(0, len(frames), self.batch):
            detections += self._run(frames[start : start + self.batch])
        return detections

    def _run(self, frames: Sequence[Frame]) -> list[Detections]:
        with span("preprocess"):
            letterboxes = [self._preprocessor.write(index, frame.pixels) for index, frame in enumerate(frames)]
        with span("network"):
            self._network.session.run_with_iobinding(self._binding)
            outputs = self._outputs or [value.numpy() for value in self._binding.get_outputs()]
        with span("postprocess"):
            return [
                self._objects(self._decoder.of_frame(outputs, index), letterbox, frame)
                for index, (frame, letterbox) in enumerate(zip(frames, letterboxes, strict=True))
            ]

    def _objects(self, outputs: Sequence[_Floats], letterbox: Letterbox, frame: Frame) -> Detections:
        candidates = self._decoder.decode(outputs)
        self._unnamed.add(candidates.unnamed)
        return to_detections(candidates, self._limits, letterbox, frame.meta.width_px, frame.meta.height_px)


def _open_workers(
    path: Path, spec: ModelSpec, head: Head, limits: NmsSpec, *, shares: Sequence[int], unnamed: UnnamedClasses
) -> list[_Worker]:
    """Open one worker for each number of threads in `shares`.

    If all workers are single-threaded, they share a session. A shared session is as fast as one session per worker
    (39.3 compared with 38.8 frames/s on two cores, standard error 0.8), but keeps the weights in memory only once. This
    saves 33 MB for nanodet-g-416. Otherwise, each worker has its own session, because two runs in one session would
    wait for each other in the session's thread pool.
    """
    network = Network(path, spec, shares[0])
    decoder = network.sample(head)
    single_threaded = max(shares) == 1
    others = [network if single_threaded else Network(path, spec, share) for share in shares[1:]]
    return [_Worker(each, decoder, limits, unnamed) for each in (network, *others)]


def _split(threads: int, workers: int) -> list[int]:
    """Divide `threads` threads among up to `workers` workers. Return the number of threads of each, at least 1."""
    workers = min(threads, workers)
    return [threads // workers + (index < threads % workers) for index in range(workers)]
