"""Two passes over the labeled video. The first pass measures the video, and the second pass runs the pipeline.

The first pass measures the length of the video, so that the command can reject ground truth that is longer than the
video before the pipeline runs. The second pass works like the command `vision run --offline`, but also records all
detections with a score of at least `LOWEST_SCORE`, which average precision needs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.capture.frame_reader import read_frames
from vision.capture.synthetic.spec import SyntheticSpec
from vision.config import AppConfig, CameraAnalytics, CameraConfig, DetectConfig, ModelSpec, StatusConfig, nearest
from vision.config.source_address import RECORDED, Synthetic
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.errors import ConfigError, SourceError, redact
from vision.evaluation.mot import Boxes, Truth
from vision.runtime.builder import Build, RunOptions
from vision.stages.stage import Report
from vision.types import Detections, Event, Frame, FrameBuffer, FrameMeta, PixelFormat, Result, Shapes, Tracks

LOWEST_SCORE: Final = 0.05
"""Minimum score of the detections that count for average precision, unless the configured threshold is lower."""

Progress = Callable[[int], None]
"""Function that receives the number of processed frames."""


@dataclass(frozen=True, slots=True)
class Video:
    """Properties of the labeled video, measured in the first pass."""

    name: str  # source without secrets
    frames: int  # number of frames
    width_px: int
    height_px: int
    interval_s: float  # median time from one frame to the next; 1 if unknown

    @property
    def duration_s(self) -> float:
        return self.frames * self.interval_s


@dataclass(frozen=True, slots=True)
class Subject:
    """Inputs of an evaluation, already loaded and checked: configuration, pipeline, class, ground truth, and video."""

    config: AppConfig  # contains only the evaluated camera
    build: Build
    class_id: int
    class_name: str
    truth: Truth
    video: Video

    @property
    def section(self) -> CameraAnalytics:
        """Lines and zones of the evaluated camera, or an empty section if the configuration has no line or zone."""
        return self.config.analytics.get(self.config.cameras[0].id, CameraAnalytics())


@dataclass(frozen=True, slots=True)
class Scene:
    """Ground truth, published objects, matches, and events of a video, for the plots and the annotated video."""

    subject: Subject
    found: Boxes  # published objects of the class
    partners: NDArray[np.int64]  # result of `match_frames`
    tracked: bool  # True if the pipeline has a tracker
    events: tuple[tuple[int, Event], ...]  # events with their frame numbers from 1
    shapes: Mapping[int, Shapes] = field(default_factory=dict)  # of the objects in `found`, by frame number


@dataclass(slots=True)
class Findings:
    """Results of the pipeline on the labeled video: detections, published objects, and events, by frame number.

    Frames are numbered from 1.
    """

    detections: list[tuple[int, Detections]] = field(default_factory=list)  # including scores below the threshold
    objects: list[tuple[int, Detections | Tracks]] = field(default_factory=list)  # as `vision run` publishes them
    events: list[tuple[int, Event]] = field(default_factory=list)
    backend: str = ""  # name of the back-end

    @property
    def tracked(self) -> bool:
        """True if the pipeline has a tracker."""
        return any(isinstance(objects, Tracks) for _, objects in self.objects)


def select_camera(config: AppConfig, camera_id: str | None) -> AppConfig:
    """Return the configuration with only the camera of the labeled video, which is `camera_id`.

    The result contains no rules, and no settings for saved state or snapshots. If `camera_id` is None, the
    configuration must have only one camera.

    Raises:
        ConfigError: the camera does not exist, there are several cameras and `camera_id` is None, or the source of the
            camera is live or never ends.
    """
    ids = [camera.id for camera in config.cameras]
    if camera_id is None:
        if len(ids) > 1:
            fault = f"--camera: expected the camera of the ground truth, one of {', '.join(ids)}"
            raise ConfigError(fault, code="no-camera")
        camera_id = ids[0]
    if camera_id not in ids:
        near = nearest(camera_id, ids)
        hint = f"did you mean {near}?" if near is not None else f"the cameras are {', '.join(ids)}"
        raise ConfigError(f"--camera: no camera {camera_id!r}", hint=hint, code="unknown-camera")
    camera = config.cameras[ids.index(camera_id)]
    _require_end(camera)
    return config.model_copy(
        update={
            "cameras": (camera.model_copy(update={"loop": False}),),
            # The accuracy file may not exist yet.
            "analytics": {
                name: section.model_copy(update={"accuracy": None})
                for name, section in config.analytics.items()
                if name == camera_id
            },
            "status": StatusConfig(interval_s=0.1),
            # An evaluation changes no counters, events, or snapshots of the running system.
            **{"state_dir": None, "snapshots": None, "rules": ()},
        }
    )


def _require_end(camera: CameraConfig) -> None:
    address = camera.address
    if not isinstance(address, RECORDED):
        raise ConfigError(
            f"camera {camera.id}: expected a video file or a folder of images, got {redact(camera.source)}: "
            "a live camera has no ground truth",
            hint="record the camera, label the recording, and use the file as its source",
            code="live-camera",
        )
    if isinstance(address, Synthetic) and SyntheticSpec.parse(camera.source).frames is None:
        fault = f"camera {camera.id}: {camera.source} never ends"
        raise ConfigError(fault, hint="add `frames=100` to the options of the source", code="endless")


def survey(camera: CameraConfig, progress: Progress) -> Video:
    """Read the whole video once, and return its properties.

    Raises:
        SourceError: the video cannot be read to its end, or has no frames.
    """
    times_ns: list[int] = []
    size = (0, 0)
    with closing(read_frames(camera, offline=True)) as frames:
        for frame in frames:
            times_ns.append(frame.grab.captured_ns)
            size = size if frame.index else frame.pixels.shape[:2]
            progress(len(times_ns))
    if not times_ns:
        raise SourceError(f"{redact(camera.source)}: the video has no frames")
    steps_s = [(later - earlier) / 1e9 for earlier, later in pairwise(times_ns)]
    interval_s = median(steps_s) if steps_s else 0.0
    return Video(redact(camera.source), len(times_ns), size[1], size[0], interval_s if interval_s > 0 else 1.0)


def run_pipeline(build: Build, config: AppConfig, progress: Progress, stop: threading.Event) -> Findings:
    """Run the pipeline on every frame of the camera, or until `stop` is set. Return the results.

    `progress` receives the number of each published frame.

    Raises:
        Closed: `stop` was set before the start.
        SourceError: the video cannot be read to its end.
        VisionError: the pipeline cannot start.
    """
    recorder = _Recorder(progress)

    def watch(report: Report) -> None:
        (camera,) = report.cameras
        recorder.findings.backend = report.node.backend
        if camera.last_error or camera.reconnects:  # a recovered camera has no last error
            reason = camera.last_error or "reading failed and was restarted"
            raise SourceError(f"camera {camera.camera}: {reason}", hint=camera.hint or "")

    def open_recording(folder: Path, spec: ModelSpec, detect: DetectConfig) -> Detector:
        lowered = detect.model_copy(update={"score_threshold": min(detect.score_threshold, LOWEST_SCORE)})
        return _RecordingDetector(open_detector(folder, spec, lowered), detect.score_threshold, recorder.note)

    with ExitStack() as resources:
        options = RunOptions(stop, offline=True, sink=recorder, open_detector=open_recording)
        build(config, options, resources).run(stop, on_report=watch)
    return recorder.findings


class _Recorder:
    """Sink that stores the results of the pipeline in `findings`, and also all detections of the detector."""

    def __init__(self, progress: Progress) -> None:
        self.findings = Findings()
        self._progress = progress
        self._detected = _FrameNumbers()
        self._published = _FrameNumbers()

    def note(self, meta: FrameMeta, found: Detections) -> None:
        """Record the detections of one frame. The inference thread calls this method."""
        self.findings.detections.append((self._detected.of(meta), found))

    def publish(self, result: Result) -> None:
        frame = self._published.of(result.meta)
        self.findings.objects.append((frame, result.objects))
        self.findings.events.extend((frame, event) for event in result.events)
        self._progress(frame)

    def report(self, report: Report) -> None:
        """Ignore the status reports of the pipeline, because an evaluation needs only its results."""


class _FrameNumbers:
    """Converter from `FrameMeta.index` to frame numbers from 1 in the whole video.

    `FrameMeta.index` restarts at 0 in each epoch. A new epoch begins when the source reconnects or changes its frame
    size.
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._before = self._last = 0

    def of(self, meta: FrameMeta) -> int:
        if meta.epoch != self._epoch:
            self._epoch, self._before = meta.epoch, self._last
        self._last = self._before + meta.index + 1
        return self._last


class _RecordingDetector:
    """Wrapper of a detector that records all detections, and returns the detections with a score of at least `score`.

    The returned detections are the same as with this threshold in the detector: NMS processes candidates in order of
    descending scores, so candidates below the threshold do not affect the candidates above it.
    """

    def __init__(self, detector: Detector, score: float, note: Callable[[FrameMeta, Detections], None]) -> None:
        self.spec = detector.spec
        self._detector = detector
        self._score = np.float32(score)
        self._note = note
        self._submitted: dict[int, list[FrameMeta]] = {}

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        return self._detector.frame_buffer(height_px, width_px, pixel_format)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self._detector.submit(slot, frames)
        self._submitted[slot] = [frame.meta for frame in frames]

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        results = self._detector.wait(slot, timeout_s)
        for meta, detections in zip(self._submitted[slot], results, strict=True):
            self._note(meta, detections)
        return [self._above(detections) for detections in results]

    def close(self) -> None:
        self._detector.close()

    def _above(self, all_: Detections) -> Detections:
        return all_.take(np.flatnonzero(all_.scores >= self._score))


def boxes_of_class(found: Sequence[tuple[int, Detections | Tracks]], class_id: int) -> Boxes:
    """Return the boxes of one class. `found` contains (frame number, result) pairs, in order.

    The ids of the boxes are the track ids, or -1 if the pipeline has no tracker.
    """
    empty = Detections.empty()
    frames, results = zip(*found, strict=True) if found else ((0,), (empty,))
    ids = [result.track_ids if isinstance(result, Tracks) else np.full(len(result), -1, np.int64) for result in results]
    boxes = Boxes(
        np.repeat(np.array(frames, np.int64), [len(result) for result in results]),
        np.concatenate(ids),
        np.concatenate([result.boxes_xyxy for result in results]).astype(np.float64),
        np.concatenate([result.scores for result in results]).astype(np.float64),
    )
    return boxes.rows(np.concatenate([result.class_ids for result in results]) == class_id)


def shapes_of_class(found: Sequence[tuple[int, Detections | Tracks]], class_id: int) -> dict[int, Shapes]:
    """Return the shapes of the objects of one class, in the order of `boxes_of_class`, by frame number."""
    return {
        frame: result.shapes.take(np.flatnonzero(result.class_ids == class_id))
        for frame, result in found
        if result.shapes is not None
    }
