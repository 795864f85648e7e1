"""Comparison of a changed model with its parent, the model before the change.

It compares the average precision on labeled video, or the boxes that both models find.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.capture.frame_reader import CapturedFrame, read_frames
from vision.config import CameraConfig, ModelSpec
from vision.detect.classes import class_names
from vision.detect.detector import Detector
from vision.detect.onnxruntime.detector import OnnxRuntimeDetector
from vision.errors import ConfigError, from_os_error
from vision.evaluation.detection import match_detections, score_detections
from vision.evaluation.mot import Boxes, Truth, read_truth
from vision.evaluation.passes import LOWEST_SCORE, Progress
from vision.optimize.feed import Image
from vision.optimize.frames import Frames
from vision.types import Detections, Frame, FrameMeta

SCORE: Final = 0.35
"""Score from which a box of the parent counts as an object, as in the default configuration."""

JUDGED_FRAMES: Final = 100
"""Maximum number of frames on which boxes are compared."""

StartProgress: TypeAlias = Callable[[str, int | None], AbstractContextManager[Progress]]
"""Function that starts the display of progress.

The arguments are the text that describes the step, and the number of frames in the step, which is None if unknown.
"""

_SLOTS: Final = 3
_WAIT_S: Final = 600.0
_TOLERANCE: Final = 0.1  # difference of a score from the threshold that does not matter


@dataclass(frozen=True, slots=True)
class Labels:
    """A labeled video, and the class of its labels."""

    video: str  # source of the video, as in camera.yaml
    truth: Path  # file with the ground truth; see `vision.evaluation.mot.read_truth`
    class_name: str = "person"  # class whose objects are labeled


def detect_all(path: Path, spec: ModelSpec, images: Iterable[Image], progress: Progress) -> list[Detections]:
    """Return the objects that ONNX Runtime finds in each image, with scores of at least `LOWEST_SCORE`.

    `progress` receives the number of processed images.

    Raises:
        ModelError: the model cannot be loaded or does not fit its spec.
    """
    with closing(OnnxRuntimeDetector(path, spec, score=LOWEST_SCORE, batches_in_flight=_SLOTS)) as detector:
        return _detect_with(detector, images, progress)


def _detect_with(detector: Detector, images: Iterable[Image], progress: Progress) -> list[Detections]:
    found: list[Detections] = []
    for detections in _pipelined(detector, images):
        found += detections
        progress(len(found))
    return found


def _pipelined(detector: Detector, images: Iterable[Image]) -> Iterator[list[Detections]]:
    """Submit the images in batches to all slots of a detector. Yield the detections of each batch, in order."""
    source, size, submitted, waited = iter(images), detector.spec.max_batch, 0, 0
    slots = detector.spec.batches_in_flight
    while batch := list(islice(source, size)):
        if submitted - waited == slots:
            yield detector.wait(waited % slots, _WAIT_S)
            waited += 1
        frames = [
            Frame.wrap(FrameMeta("sample", index, 0, 0, 0, image.shape[1], image.shape[0]), image, "bgr")
            for index, image in enumerate(batch)
        ]
        detector.submit(submitted % slots, frames)
        submitted += 1
    for slot in range(waited, submitted):
        yield detector.wait(slot % slots, _WAIT_S)


def average_precision(path: Path, spec: ModelSpec, labels: Labels, progress: Progress) -> float:
    """Run a model with ONNX Runtime on a labeled video. Return the AP@0.5 of the labeled class, from 0 to 1.

    Raises:
        ConfigError: the ground truth is invalid or longer than the video, or the model does not have the class.
        SourceError: the video cannot be read.
        ModelError: the model cannot be loaded or does not fit its spec.
    """
    with closing(OnnxRuntimeDetector(path, spec, score=LOWEST_SCORE, batches_in_flight=_SLOTS)) as detector:
        return average_precision_of(detector, spec, labels, progress)


def average_precision_of(detector: Detector, spec: ModelSpec, labels: Labels, progress: Progress) -> float:
    """Run a detector on a labeled video. Return the AP@0.5 of the labeled class, from 0 to 1.

    Args:
        detector: detector whose score threshold is `LOWEST_SCORE`.
        spec: spec of the detector's model.
        labels: the labeled video.
        progress: function that receives the number of processed frames.

    Raises:
        ConfigError: the ground truth is invalid or longer than the video, or the model does not have the class.
        SourceError: the video cannot be read.
    """
    class_id, truth = _class_and_truth(spec, labels)
    with closing(_frames_of(labels)) as frames:
        found = _detect_with(detector, (frame.pixels.copy() for frame in frames), progress)
    truth.check_length(len(found), labels.video)
    boxes = _boxes([each.take(np.flatnonzero(each.class_ids == class_id)) for each in found], classes=1)
    return score_detections(truth.boxes, boxes, score=SCORE, lowest_score=LOWEST_SCORE).ap50


def require_labels(spec: ModelSpec, labels: Labels) -> None:
    """Check the class, the ground truth, and the beginning of the video, before work that takes minutes.

    Raises:
        ConfigError: the ground truth is invalid, or the model does not have the class.
        SourceError: the video cannot be read.
    """
    _class_and_truth(spec, labels)
    with closing(_frames_of(labels)) as frames:
        next(frames, None)


def _class_and_truth(spec: ModelSpec, labels: Labels) -> tuple[int, Truth]:
    names = class_names(spec)
    if labels.class_name not in names:
        raise ConfigError(f"--class: the model has no class {labels.class_name!r}", code="unknown-class")
    return names.index(labels.class_name), read_truth(labels.truth)


def _frames_of(labels: Labels) -> Generator[CapturedFrame, None, None]:
    return read_frames(CameraConfig(id="labeled", source=labels.video), offline=True)


def _boxes(found: Sequence[Detections], *, classes: int) -> Boxes:
    """Return the boxes of a model's detections in several images, so that two models can be compared.

    `classes` is the number of classes. If it exceeds 1, the boxes of each image and class get a separate frame number,
    so that only boxes of the same class are compared.
    """
    rows = [
        (index * classes + (class_id if classes > 1 else 0) + 1, -1, *box, score)
        for index, each in enumerate(found)
        for class_id, box, score in zip(
            each.class_ids.tolist(), each.boxes_xyxy.tolist(), each.scores.tolist(), strict=True
        )
    ]
    return Boxes.of(rows)


def agreement(parent: Sequence[Detections], found: Sequence[Detections], classes: int) -> float | None:
    """Return the fraction of objects on which a model and its parent agree, as an F1 score from 0 to 1.

    Return None if the parent finds no objects.

    An object is a box with a score of at least `SCORE`. The models agree on an object of one model if the other model
    finds a box of the same class with an IoU of at least 0.5, and a score of at least `SCORE` - 0.1. The tolerance of
    0.1 exists because a tiny change of the model can move a score across the threshold.
    """
    theirs, ours = _boxes(parent, classes=classes), _boxes(found, classes=classes)
    hits = [_hits(a, b) for a, b in ((ours, theirs), (theirs, ours))]
    objects = sum(len(each) for each in hits)
    return None if not len(hits[1]) else sum(int(each.sum()) for each in hits) / objects


def _hits(boxes: Boxes, others: Boxes) -> NDArray[np.bool_]:
    """Return a mask that is True for each object in `boxes` for which another model found a match in `others`.

    An object is a box with a score of at least `SCORE`.
    """
    objects, near = boxes.rows(boxes.scores >= SCORE), others.rows(others.scores >= SCORE - _TOLERANCE)
    return match_detections(near, objects)[:, 0]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of a changed model and of its parent, in the same metric."""

    metric: str  # name of the metric, for tables and reports
    parent: float  # accuracy of the parent, from 0 to 1
    value: float  # accuracy of the changed model, from 0 to 1

    @property
    def drop(self) -> float:
        """Loss of accuracy. The loss is negative if the changed model is more accurate."""
        return self.parent - self.value


class Judge:
    """Measurement of the accuracy of models that were derived from one parent."""

    def __init__(
        self, parent: Path, spec: ModelSpec, frames: Frames | None, labels: Labels | None, progress: StartProgress
    ) -> None:
        """Measure the accuracy of the parent.

        Args:
            parent: ONNX file of the parent.
            spec: spec of the parent.
            frames: frames on which boxes are compared if there are no labels. None is allowed only with labels.
            labels: labeled video. None means that there are no labels.
            progress: function that starts the display of progress of a step.

        Raises:
            ConfigError: the labels cannot be used, or the parent finds no objects in the frames.
            SourceError: the labeled video cannot be read.
            ModelError: the parent cannot be loaded or does not fit its spec.
        """
        self._spec = spec
        self._labels = labels
        self._frames = frames
        self._progress = progress
        self._detections: Sequence[Detections] = ()
        self.parent = 1.0  # accuracy of the parent
        if labels is not None:
            self.parent = self._average_precision(parent, "measuring the float32 model")
            return
        self._detections = self._detect(parent, "detecting with the float32 model")
        if self._agreement(self._detections) is None:
            raise ConfigError(
                f"the model finds no objects in the frames, with a score of at least {SCORE:g}, so the accuracy of the "
                "changed model cannot be measured",
                hint="use frames that show objects, or a labeled video: --video FILE --truth gt.txt",
                code="nothing-to-compare",
            )

    def measure(self, path: Path, words: str) -> Accuracy:
        """Measure the accuracy of the model in the ONNX file `path`. `words` describe the step in the progress display.

        Raises:
            ConfigError: the labels cannot be used.
            SourceError: the labeled video cannot be read.
            ModelError: the model cannot be loaded or does not fit its spec.
        """
        if self._labels is not None:
            metric = f"AP@0.5 of {self._labels.class_name}"
            return Accuracy(metric, self.parent, self._average_precision(path, words))
        found = self._agreement(self._detect(path, words))
        assert found is not None
        return Accuracy("agreement with float32", self.parent, found)

    def measure_contents(self, contents: bytes, folder: Path, words: str) -> Accuracy:
        """Write a serialized model to the temporary `folder`, and measure its accuracy as `measure` does.

        Raises:
            ConfigError: the file cannot be written.
            Unavailable: the file cannot be written at present, for example because the disk is full.
            VisionError: `measure` raised this error.
        """
        path = folder / "candidate.onnx"
        try:
            path.write_bytes(contents)
        except OSError as error:
            raise from_os_error(f"cannot write {path}", error, code="not-writable") from error
        return self.measure(path, words)

    def _average_precision(self, path: Path, words: str) -> float:
        assert self._labels is not None
        with self._progress(words, None) as step:
            return average_precision(path, self._spec, self._labels, step)

    def _detect(self, path: Path, words: str) -> list[Detections]:
        assert self._frames is not None
        with self._progress(words, min(JUDGED_FRAMES, len(self._frames.paths))) as step:
            return detect_all(path, self._spec, self._frames.images(JUDGED_FRAMES), step)

    def _agreement(self, found: Sequence[Detections]) -> float | None:
        return agreement(self._detections, found, len(class_names(self._spec)))
