"""A second model on the frames of followed objects: each is looked at once, and again on a schedule.

Two threads share the work. The results thread cuts the frames of objects that are due out of the frame, while its
lease lasts, into arrays that were made at the start; so nothing but those few pixels leaves the frame. A thread here
takes whatever waits, of all cameras, to the model. What it finds stands in the messages of the object from then on.

When more is due than there is room for, the rest is counted as skipped and tried again with its next frame: those
that were never looked at first, then those that were looked at longest ago.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.config.cascade import CascadeConfig
from vision.config.wording import did_you_mean_class
from vision.errors import ConfigError, DeviceError
from vision.types import Attribute, Frame, FrameMeta, Result, Tracks

log = logging.getLogger(__name__)

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels; right and bottom lie outside."""

_UNSURE_S: Final = 1.0  # until an object of which nothing could be said is looked at again
_FORGET_S: Final = 10.0  # without a sign of an object; trackers forget sooner


class Classifier(Protocol):
    """Says what an object is. `crop` is called by one thread, `classify` by one other."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Columns of what `classify` gives."""

    @property
    def exclusive(self) -> bool:
        """One class at most is true of an object."""

    @property
    def crop_shape(self) -> tuple[int, int, int]:
        """Height, width and 3 of what `crop` writes."""

    @property
    def max_batch(self) -> int:
        """Most crops of one `classify`."""

    def crop(self, frame: Frame, box: Box, out: NDArray[np.uint8]) -> None:
        """Write a part of the frame to `out`, of `crop_shape`."""

    def classify(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Scores (N, classes) from 0 to 1.

        Raises:
            DeviceError: the model failed.
        """

    def close(self) -> None:
        """Free everything. May be called twice."""


@dataclass(slots=True, eq=False)
class _Known:
    """What is known of one object. The worker writes all but `seen_ns`, while `waits`."""

    seen_ns: int
    attributes: tuple[Attribute, ...] = ()
    due_ns: int | None = 0  # None: never again
    looked_ns: int = -1  # -1: never
    waits: bool = False

    def is_due(self, now_ns: int) -> bool:
        """A clock that was set back is no reason to wait until it has caught up."""
        return self.due_ns is not None and (self.due_ns <= now_ns or self.looked_ns > now_ns)


@dataclass(slots=True)
class _Camera:
    epoch: int
    objects: dict[int, _Known] = field(default_factory=dict)  # by track id


@dataclass(frozen=True, slots=True)
class _Job:
    crop: NDArray[np.uint8]
    known: _Known
    captured_ns: int


class CascadeStage:
    """Tracks get attributes."""

    def __init__(
        self, classifier: Classifier, config: CascadeConfig, class_names: Sequence[str], *, lossless: bool = False
    ) -> None:
        """
        Args:
            classifier: belongs to the stage from here on.
            class_names: the detector's, by class id; `config.classes` are among them.
            lossless: wait for room, and for what is found in each frame, so that recordings are the same each time.

        Raises:
            ConfigError: a class that the detector does not have.
        """
        self._classifier = classifier
        self._config = config
        wanted = class_names if config.classes is None else config.classes
        for name in wanted:
            if name not in class_names:
                advice = did_you_mean_class(name, class_names)
                raise ConfigError(
                    f"cascade.classes: the model has no class {name!r}",
                    hint=advice or "`vision models` lists its classes",
                )
        self._classes = np.array([at for at, name in enumerate(class_names) if name in wanted], np.int32)
        self._refresh_ns = None if config.refresh_s is None else round(config.refresh_s * 1e9)
        self._unsure_ns = round(min(_UNSURE_S, config.refresh_s or _UNSURE_S) * 1e9)
        self._lossless = lossless
        self._cameras: dict[str, _Camera] = {}
        self._crops = np.empty((config.queue + classifier.max_batch, *classifier.crop_shape), np.uint8)
        self._free: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        for crop in self._crops:
            self._free.put(crop)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._progress = threading.Condition()
        self._looked = self._skipped = self._waiting = 0
        self._error: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="cascade", daemon=True)
        self._thread.start()

    # --- the results thread -------------------------------------------------------------------------------------------

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Cuts out what is due, and adds what is known.

        Raises:
            DeviceError: the model failed.
        """
        tracks = result.objects
        if not isinstance(tracks, Tracks):
            raise TypeError(f"expected tracks to look at, got {type(tracks).__name__}: is a TrackStage before?")
        objects = self._objects(tracks, result.meta)
        for known, box in list(self._due(tracks, objects, result.meta)):
            self._cut(frame, box, known)
        if self._lossless:
            with self._progress:
                self._progress.wait_for(lambda: self._waiting == 0)
        if self._error is not None:
            raise DeviceError(f"the second model failed: {self._error}") from self._error
        return _with_attributes(result, tracks, objects)

    def counters(self) -> dict[str, int]:
        """What an operator should see."""
        return {
            "cascade.looked": self._looked,
            "cascade.skipped": self._skipped,
            "cascade.waiting": self._waiting,
        }

    def close(self) -> None:
        """End the thread after what it is doing, and the model. May be called twice."""
        self._closing = True
        self._jobs.put(None)
        self._thread.join()
        self._classifier.close()

    def _objects(self, tracks: Tracks, meta: FrameMeta) -> dict[int, _Known]:
        """What is known of the camera's objects, without those that were not seen for long."""
        camera = self._cameras.get(meta.camera_id)
        if camera is None or camera.epoch != meta.epoch:
            camera = self._cameras[meta.camera_id] = _Camera(meta.epoch)
        now_ns, objects = meta.captured_ns, camera.objects
        for track_id in tracks.track_ids.tolist():
            if (known := objects.get(track_id)) is not None:
                known.seen_ns = now_ns
        since_ns = now_ns - round(_FORGET_S * 1e9)
        # Later than now: the clock was set back.
        for track_id in [at for at, known in objects.items() if not since_ns <= known.seen_ns <= now_ns]:
            del objects[track_id]
        return objects

    def _due(self, tracks: Tracks, objects: dict[int, _Known], meta: FrameMeta) -> Iterator[tuple[_Known, Box]]:
        """Objects that are to be looked at in this frame, the most urgent first."""
        now_ns = meta.captured_ns
        boxes = tracks.boxes_xyxy.clip(0, (meta.width_px, meta.height_px) * 2)
        large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= self._config.min_size_px
        large &= np.isin(tracks.class_ids, self._classes)
        due: list[tuple[int, _Known, int]] = []
        for row in large.nonzero()[0].tolist():
            track_id = int(tracks.track_ids[row])
            known = objects.get(track_id)
            if known is None:
                known = objects[track_id] = _Known(now_ns)
            if not known.waits and known.is_due(now_ns):
                due.append((known.looked_ns, known, row))
        due.sort(key=lambda one: one[0])
        for _, known, row in due:
            yield known, self._around(boxes[row], meta)

    def _around(self, box: NDArray[np.float32], meta: FrameMeta) -> Box:
        x1, y1, x2, y2 = (float(side) for side in box)
        margin_x, margin_y = self._config.margin * (x2 - x1), self._config.margin * (y2 - y1)
        return (
            max(0, math.floor(x1 - margin_x)),
            max(0, math.floor(y1 - margin_y)),
            min(meta.width_px, math.ceil(x2 + margin_x)),
            min(meta.height_px, math.ceil(y2 + margin_y)),
        )

    def _cut(self, frame: Frame, box: Box, known: _Known) -> None:
        try:
            crop = self._free.get(block=self._lossless)
        except queue.Empty:
            self._skipped += 1
            return
        self._classifier.crop(frame, box, crop)
        known.waits = True
        with self._progress:
            self._waiting += 1
        self._jobs.put(_Job(crop, known, frame.meta.captured_ns))

    # --- the worker ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._next_batch():
            if self._error is None and not self._closing:
                try:
                    self._look(batch)
                except Exception as error:  # noqa: BLE001 - `with_frame` raises it again, whatever it is
                    self._error = error
            for job in batch:
                job.known.waits = False
                self._free.put(job.crop)
            with self._progress:
                self._waiting -= len(batch)
                self._progress.notify_all()

    def _next_batch(self) -> list[_Job]:
        """Whatever waits; empty at the end."""
        batch: list[_Job] = []
        while len(batch) < self._classifier.max_batch:
            try:
                job = self._jobs.get(block=not batch)
            except queue.Empty:
                break
            if job is None:
                if batch:
                    self._jobs.put(None)
                break
            batch.append(job)
        return batch

    def _look(self, batch: Sequence[_Job]) -> None:
        scores = self._classifier.classify([job.crop for job in batch])
        for job, of_object in zip(batch, scores, strict=True):
            found = tuple(self._attributes(of_object, job.captured_ns))
            # Where one class is true, to find none is to be unsure: what was known is better, and tells its age.
            is_sure = bool(found) or not self._classifier.exclusive
            if is_sure:
                job.known.attributes = found
            after_ns = self._refresh_ns if is_sure else self._unsure_ns
            job.known.due_ns = None if after_ns is None else job.captured_ns + after_ns
            job.known.looked_ns = job.captured_ns
        self._looked += len(batch)

    def _attributes(self, scores: NDArray[np.float32], seen_ns: int) -> Iterator[Attribute]:
        """What is sure enough to be told, the surest first."""
        order = np.argsort(-scores, kind="stable")
        for at in order[: 1 if self._classifier.exclusive else None].tolist():
            if scores[at] >= self._config.score_threshold:
                name = self._classifier.class_names[at]
                yield Attribute(self._classifier.name, name, float(scores[at]), seen_ns)


def _with_attributes(result: Result, tracks: Tracks, objects: Mapping[int, _Known]) -> Result:
    """With those that a cascade before this one has found."""
    found = dict(result.attributes)
    for track_id in tracks.track_ids.tolist():
        known = objects.get(track_id)
        if known is not None and known.attributes:
            found[track_id] = (*found.get(track_id, ()), *known.attributes)
    return replace(result, attributes=found) if found else result
