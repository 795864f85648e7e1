"""`CascadeStage` classifies tracked objects with a second model, once or periodically.

Two threads share the work. While the results thread holds a frame, whose memory is then not reused, it cuts out the
objects that are due for classification. If the GPU cuts out the objects, the results thread holds the frame until the
GPU has read it. A thread of the stage classifies the crops of all cameras in batches. The messages of an object contain
the result once it is available.

If more objects are due than buffers are free, the stage counts the remaining objects as skipped, and retries each with
the next frame of its camera. Objects that were never classified come first, followed by objects with the oldest
results.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from vision.config import AppConfig, CascadeConfig
from vision.detect.reference.classifier import Box
from vision.errors import DeviceError
from vision.types import Attribute, Frame, FrameMeta, Result, Tracks

Crop = TypeVar("Crop")
"""Memory of one crop: an array on the CPU, or GPU memory."""

_UNSURE_S: Final = 1.0  # time after which an object without a clear result is classified again
_FORGET_S: Final = 10.0  # time after which an undetected object is forgotten; longer than in a tracker


class Classifier(Protocol[Crop]):
    """A model that classifies crops of objects.

    The results thread calls `crop`, `is_reading`, and `wait_until_read`. A different thread calls `classify`.
    """

    name: str  # name of the model in messages
    class_names: tuple[str, ...]  # class name of each column that `classify` returns
    exclusive: bool  # True if at most one class applies to an object
    max_batch: int  # maximum number of crops in one call of `classify`

    def allocate(self, count: int) -> list[Crop]:
        """Return memory for `count` crops, to which `crop` then writes. Call this method once."""

    def crop(self, frame: Frame, box: Box, out: Crop) -> None:
        """Scale the part of the frame inside `box` to the model's input, and write the result to `out`."""

    def is_reading(self) -> bool:
        """Return True while the GPU still reads a frame that was passed to `crop`."""

    def wait_until_read(self) -> None:
        """Wait until the GPU no longer reads any frame that was passed to `crop`."""

    def classify(self, crops: Sequence[Crop]) -> NDArray[np.float32]:
        """Return the scores (N, classes) of N crops, from 0 to 1. Raise `DeviceError` if the model fails."""

    def close(self) -> None:
        """Free all resources. Idempotent."""


@dataclass(slots=True, eq=False)
class _ObjectState:
    """The attributes of one object, which are its classes, and the time at which it is due for classification.

    While `waits` is True, a thread classifies a crop of the object, and writes all fields except `seen_ns`.
    """

    seen_ns: int  # capture time of the last frame in which the object was detected
    attributes: tuple[Attribute, ...] = ()
    due_ns: int | None = 0  # time of the next classification; None if there is none
    looked_ns: int = -1  # capture time of the last classified crop; -1 if there is none
    waits: bool = False  # a crop of the object is queued or being classified

    def is_due(self, now_ns: int) -> bool:
        """Return True if the object is due for classification, and none of its crops waits.

        If the clock was set back to before the object's last classification, the object is due immediately.
        """
        return not self.waits and self.due_ns is not None and (self.due_ns <= now_ns or self.looked_ns > now_ns)


@dataclass(frozen=True, slots=True)
class _Job(Generic[Crop]):
    crop: Crop
    state: _ObjectState
    captured_ns: int


class CascadeStage:
    """Stage that classifies tracked objects with a second model, and adds the classes to the results as attributes."""

    def __init__(
        self, classifier: Classifier[Any], config: CascadeConfig, class_names: Sequence[str], *, lossless: bool = False
    ) -> None:
        """Start the thread that classifies crops.

        Args:
            classifier: the second model. The stage closes it.
            class_names: class names of the detector, by class id. `config.classes` must use only these names.
            lossless: if True, wait for a free buffer and for the results of each frame, so that offline runs are
                repeatable.
        """
        self._config = config
        names = class_names if config.classes is None else config.classes
        self._classes = np.array([class_id for class_id, name in enumerate(class_names) if name in names], np.int32)
        self._cameras: dict[str, tuple[int, dict[int, _ObjectState]]] = {}  # epoch, and objects by track id
        self._skipped = 0
        self._worker = _ClassifierThread(classifier, config, lossless=lossless)

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Cut out the objects that are due for classification. Return the result with all known attributes.

        Raises:
            DeviceError: the model has failed.
            TypeError: the objects are not tracks.
        """
        tracks = result.objects
        if not isinstance(tracks, Tracks):
            raise TypeError(f"expected tracks, got {type(tracks).__name__}: add a TrackStage before this stage")
        objects = self._objects(tracks, result.meta)
        for state, box in self._due(tracks, objects, result.meta):
            self._skipped += not self._worker.add(frame, box, state)
        self._worker.check()
        return _with_attributes(result, tracks, objects)

    def is_reading(self) -> bool:
        """Return True if the GPU may still read frames that were passed to `with_frame`."""
        return self._worker.classifier.is_reading()

    def wait_until_read(self) -> None:
        """Wait until no frame that was passed to `with_frame` is being read."""
        self._worker.classifier.wait_until_read()

    def reconfigure(self, config: AppConfig) -> None:
        """Forget the objects of removed cameras."""
        cameras = {camera.id for camera in config.cameras}
        self._cameras = {camera_id: each for camera_id, each in self._cameras.items() if camera_id in cameras}

    def counters(self) -> dict[str, int]:
        """Return the numbers of classified and skipped crops since the start, and the number of crops that wait."""
        worker = self._worker
        return {"cascade.looked": worker.looked, "cascade.skipped": self._skipped, "cascade.waiting": worker.waiting}

    def progress(self) -> dict[str, int | None]:
        """Return, by thread name, the number of classified crops, or None if no crop waits."""
        return {"cascade": self._worker.looked if self._worker.waiting else None}

    def close(self) -> None:
        """Stop the thread after its current batch, and close the model. Idempotent."""
        self._worker.close()

    def _objects(self, tracks: Tracks, meta: FrameMeta) -> dict[int, _ObjectState]:
        """Forget objects of previous epochs, and objects that were not detected for `_FORGET_S` seconds.

        Return the states of the remaining objects, by track id.
        """
        epoch, objects = self._cameras.get(meta.camera_id, (None, {}))
        if epoch != meta.epoch:
            objects = {}
            self._cameras[meta.camera_id] = meta.epoch, objects
        now_ns = meta.captured_ns
        for track_id in tracks.track_ids.tolist():
            if (state := objects.get(track_id)) is not None:
                state.seen_ns = now_ns
        since_ns = now_ns - round(_FORGET_S * 1e9)
        # If `seen_ns` is after `now_ns`, the clock was set back.
        for track_id in [track_id for track_id, state in objects.items() if not since_ns <= state.seen_ns <= now_ns]:
            del objects[track_id]
        return objects

    def _due(self, tracks: Tracks, objects: dict[int, _ObjectState], meta: FrameMeta) -> list[tuple[_ObjectState, Box]]:
        """Return the states and boxes of the objects to classify: first new objects, then objects with old results."""
        boxes = tracks.boxes_xyxy.clip(0, (meta.width_px, meta.height_px) * 2)
        large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= self._config.min_size_px
        large &= np.isin(tracks.class_ids, self._classes)
        due: list[tuple[_ObjectState, Box]] = []
        for row in large.nonzero()[0].tolist():
            track_id = int(tracks.track_ids[row])
            if (state := objects.get(track_id)) is None:
                state = objects[track_id] = _ObjectState(meta.captured_ns)
            if state.is_due(meta.captured_ns):
                due.append((state, self._around(boxes[row], meta)))
        return sorted(due, key=lambda entry: entry[0].looked_ns)

    def _around(self, box: NDArray[np.float32], meta: FrameMeta) -> Box:
        x1, y1, x2, y2 = (float(side) for side in box)
        margin_x, margin_y = self._config.margin * (x2 - x1), self._config.margin * (y2 - y1)
        return (
            max(0, math.floor(x1 - margin_x)),
            max(0, math.floor(y1 - margin_y)),
            min(meta.width_px, math.ceil(x2 + margin_x)),
            min(meta.height_px, math.ceil(y2 + margin_y)),
        )


class _ClassifierThread(Generic[Crop]):
    """Thread that classifies the waiting crops of all cameras. It allocates the memory for crops only once."""

    def __init__(self, classifier: Classifier[Crop], config: CascadeConfig, *, lossless: bool) -> None:
        self.looked = self.waiting = 0
        self.classifier = classifier
        self._lossless = lossless
        self._score_threshold = config.score_threshold
        self._refresh_ns = None if config.refresh_s is None else round(config.refresh_s * 1e9)
        self._unsure_ns = round(min(_UNSURE_S, config.refresh_s or _UNSURE_S) * 1e9)
        self._free: queue.SimpleQueue[Crop] = queue.SimpleQueue()
        for crop in classifier.allocate(config.queue + classifier.max_batch):
            self._free.put(crop)
        self._jobs: queue.SimpleQueue[_Job[Crop] | None] = queue.SimpleQueue()
        self._progress = threading.Condition()
        self._error: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="cascade", daemon=True)
        self._thread.start()

    # --- the results thread -------------------------------------------------------------------------------------------

    def add(self, frame: Frame, box: Box, state: _ObjectState) -> bool:
        """Cut out the object in `box`, and queue the crop.

        If no buffer is free, return False, or, in lossless mode, wait.
        """
        try:
            crop = self._free.get(block=self._lossless)
        except queue.Empty:
            return False
        self.classifier.crop(frame, box, crop)
        state.waits = True
        with self._progress:
            self.waiting += 1
        self._jobs.put(_Job(crop, state, frame.meta.captured_ns))
        return True

    def check(self) -> None:
        """Raise `DeviceError` if the model has failed. In lossless mode, first wait until every crop is classified."""
        if self._lossless:
            with self._progress:
                self._progress.wait_for(lambda: self.waiting == 0)
        if self._error is not None:
            raise DeviceError(f"the second model failed: {self._error}") from self._error

    def close(self) -> None:
        self._closing = True
        self._jobs.put(None)
        self._thread.join()
        self.classifier.close()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._next_batch():
            if self._error is None and not self._closing:
                try:
                    self._classify(batch)
                except Exception as error:  # noqa: BLE001 - `check` raises it
                    self._error = error
            for job in batch:
                job.state.waits = False
                self._free.put(job.crop)
            with self._progress:
                self.waiting -= len(batch)
                self._progress.notify_all()

    def _next_batch(self) -> list[_Job[Crop]]:
        """Wait for a crop. Return up to `max_batch` crops as jobs, or an empty list if the thread must end."""
        batch: list[_Job[Crop]] = []
        with suppress(queue.Empty):
            while len(batch) < self.classifier.max_batch and (job := self._jobs.get(block=not batch)) is not None:
                batch.append(job)
        if batch and self._closing:
            self._jobs.put(None)  # because `get` can have removed the end mark
        return batch

    def _classify(self, batch: Sequence[_Job[Crop]]) -> None:
        scores = self.classifier.classify([job.crop for job in batch])
        for job, of_object in zip(batch, scores, strict=True):
            attributes = tuple(self._attributes(of_object, job.captured_ns))
            # If classes are exclusive, an empty result means that the model is unsure. Then the old result stays.
            is_sure = bool(attributes) or not self.classifier.exclusive
            if is_sure:
                job.state.attributes = attributes
            after_ns = self._refresh_ns if is_sure else self._unsure_ns
            job.state.due_ns = None if after_ns is None else job.captured_ns + after_ns
            job.state.looked_ns = job.captured_ns
        self.looked += len(batch)

    def _attributes(self, scores: NDArray[np.float32], seen_ns: int) -> Iterator[Attribute]:
        """Yield the classes whose scores reach the threshold, best first.

        If the classes are exclusive, yield at most the best class.
        """
        order = np.argsort(-scores, kind="stable")
        for column in order[: 1 if self.classifier.exclusive else None].tolist():
            if scores[column] >= self._score_threshold:
                name = self.classifier.class_names[column]
                yield Attribute(self.classifier.name, name, float(scores[column]), seen_ns)


def _with_attributes(result: Result, tracks: Tracks, objects: Mapping[int, _ObjectState]) -> Result:
    """Return `result` with the attributes of this stage in addition to the attributes of previous stages."""
    attributes = dict(result.attributes)
    for track_id in tracks.track_ids.tolist():
        state = objects.get(track_id)
        if state is not None and state.attributes:
            attributes[track_id] = (*attributes.get(track_id, ()), *state.attributes)
    return replace(result, attributes=attributes) if attributes else result
