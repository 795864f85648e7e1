"""The labelled video is read twice: once for its length, so that a truth that does not fit is refused before any work,
and once through the pipeline that the site configures, as `vision run --offline` would.

The pipeline sees what it would see in production. Only the detector is asked for more, because average precision is
about all scores: everything down to `LOWEST_SCORE` is noted, and what the configuration asks for is handed on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from vision.capture.frame_reader import read_frames
from vision.capture.synthetic.spec import SyntheticSpec
from vision.config import AppConfig, CameraConfig, DetectConfig, ModelSpec, StatusConfig, nearest
from vision.config.source_address import RECORDED, Synthetic
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.errors import ConfigError, SourceError, redact
from vision.evaluation.mot import Boxes
from vision.runtime.builder import Build, RunOptions
from vision.runtime.status import Report
from vision.types import Detections, Event, Frame, FrameBuffer, FrameMeta, PixelFormat, Result, Tracks

LOWEST_SCORE: Final = 0.05

Progress = Callable[[int], None]
"""Told how many frames are done."""


@dataclass(frozen=True, slots=True)
class Video:
    """What the first pass learned."""

    name: str  # without secrets
    frames: int
    width_px: int
    height_px: int
    interval_s: float  # from frame to frame, the usual one

    @property
    def duration_s(self) -> float:
        return self.frames * self.interval_s


@dataclass(slots=True)
class Findings:
    """What the second pass found, by frame from 1."""

    detections: list[tuple[int, Detections]] = field(default_factory=list)  # all that the detector gave
    objects: list[tuple[int, Detections | Tracks]] = field(default_factory=list)  # what would have been published
    events: list[tuple[int, Event]] = field(default_factory=list)
    backend: str = ""

    @property
    def tracked(self) -> bool:
        """Whether the pipeline follows objects."""
        return any(isinstance(objects, Tracks) for _, objects in self.objects)

    def detected(self, class_id: int) -> Boxes:
        """Every detection of a class."""
        return _boxes(self.detections, class_id)

    def published(self, class_id: int) -> Boxes:
        """Every published object of a class."""
        return _boxes(self.objects, class_id)


def site_of_camera(site: AppConfig, camera_id: str | None) -> AppConfig:
    """Return the configuration with only the camera of the labelled video.

    Raises:
        ConfigError: there is no such camera, none was named and there are several, or its source never ends.
    """
    ids = [camera.id for camera in site.cameras]
    if camera_id is None:
        if len(ids) > 1:
            raise ConfigError(f"--camera: expected which camera the truth is of, one of {', '.join(ids)}")
        camera_id = ids[0]
    if camera_id not in ids:
        near = nearest(camera_id, ids)
        hint = f"did you mean {near}?" if near is not None else f"there are {', '.join(ids)}"
        raise ConfigError(f"--camera: no camera {camera_id!r}", hint=hint)
    camera = site.cameras[ids.index(camera_id)]
    _require_end(camera)
    # Nothing of an evaluation goes into the counters, events and snapshots of the running system.
    silent = {"state_dir": None, "snapshots": None, "rules": ()}
    return site.model_copy(
        update={
            "cameras": (camera.model_copy(update={"loop": False}),),
            "analytics": {name: section for name, section in site.analytics.items() if name == camera_id},
            "status": StatusConfig(interval_s=0.1),
            **silent,
        }
    )


def _require_end(camera: CameraConfig) -> None:
    address = camera.address
    if not isinstance(address, RECORDED):
        raise ConfigError(
            f"camera {camera.id}: expected a video file or a folder of images, got {redact(camera.source)}: "
            "there is no truth of what a live camera will show",
            hint="record it, label the recording, and name the file as its source",
        )
    if isinstance(address, Synthetic) and SyntheticSpec.parse(camera.source).frames is None:
        raise ConfigError(f"camera {camera.id}: {camera.source} never ends", hint="add frames=100 to its options")


def survey(camera: CameraConfig, progress: Progress) -> Video:
    """Read the whole video once.

    Raises:
        SourceError: it cannot be read to its end, or has no frames.
    """
    times_ns: list[int] = []
    size = (0, 0)
    with closing(read_frames(camera, offline=True)) as stills:
        for still in stills:
            times_ns.append(still.grab.captured_ns)
            size = size if still.index else still.pixels.shape[:2]
            progress(len(times_ns))
    if not times_ns:
        raise SourceError(f"{redact(camera.source)}: it has no frames")
    steps_s = [(later - earlier) / 1e9 for earlier, later in pairwise(times_ns)]
    interval_s = median(steps_s) if steps_s else 0.0
    return Video(redact(camera.source), len(times_ns), size[1], size[0], interval_s if interval_s > 0 else 1.0)


def run_pipeline(build: Build, site: AppConfig, progress: Progress, stop: threading.Event) -> Findings:
    """Every frame of the site's one camera through its pipeline; fewer where `stop` was set meanwhile.

    Raises:
        Closed: `stop` was set before it had begun.
        SourceError: the video could not be read to its end.
        VisionError: whatever keeps the pipeline from starting.
    """
    recorder = _Recorder(progress)

    def watch(report: Report) -> None:
        (camera,) = report.cameras
        recorder.findings.backend = report.node.backend
        if camera.last_error or camera.reconnects:  # a recovered camera has no last error
            reason = camera.last_error or "reading failed, and started again"
            raise SourceError(f"camera {camera.camera}: {reason}", hint=camera.hint or "")

    def open_noting(folder: Path, spec: ModelSpec, detect: DetectConfig) -> Detector:
        lowered = detect.model_copy(update={"score_threshold": min(detect.score_threshold, LOWEST_SCORE)})
        return _RecordingDetector(open_detector(folder, spec, lowered), detect.score_threshold, recorder.note)

    with ExitStack() as resources:
        options = RunOptions(stop, offline=True, sink=recorder, open_detector=open_noting)
        build(site, options, resources).run(stop, on_report=watch)
    return recorder.findings


class _Recorder:
    """The sink of results, and where the detector's own findings are noted."""

    def __init__(self, progress: Progress) -> None:
        self.findings = Findings()
        self._progress = progress
        self._detected = _FrameNumbers()
        self._published = _FrameNumbers()

    def note(self, meta: FrameMeta, found: Detections) -> None:
        """Note detections. Called by the inference thread."""
        self.findings.detections.append((self._detected.of(meta), found))

    def publish(self, result: Result) -> None:
        frame = self._published.of(result.meta)
        self.findings.objects.append((frame, result.objects))
        self.findings.events.extend((frame, event) for event in result.events)
        self._progress(frame)

    def report(self, report: Report) -> None:
        """Only results are of interest."""


class _FrameNumbers:
    """Numbers from 1 through the whole video: `FrameMeta.index` begins again where the frame changes its size."""

    def __init__(self) -> None:
        self._epoch = 0
        self._before = self._last = 0

    def of(self, meta: FrameMeta) -> int:
        if meta.epoch != self._epoch:
            self._epoch, self._before = meta.epoch, self._last
        self._last = self._before + meta.index + 1
        return self._last


class _RecordingDetector:
    """Notes everything that a detector finds and hands on what has at least `score`, as the detector itself would.

    NMS goes from the best score down, so that what lies below a threshold has no influence on what lies above it.
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
        found = self._detector.wait(slot, timeout_s)
        for meta, each in zip(self._submitted[slot], found, strict=True):
            self._note(meta, each)
        return [self._above(each) for each in found]

    def close(self) -> None:
        self._detector.close()

    def _above(self, found: Detections) -> Detections:
        keep = found.scores >= self._score
        return Detections(found.boxes_xyxy[keep], found.scores[keep], found.class_ids[keep], found.truncated_candidates)


def _boxes(found: Sequence[tuple[int, Detections | Tracks]], class_id: int) -> Boxes:
    empty = Detections.empty()
    frames, objects = zip(*found, strict=True) if found else ((0,), (empty,))
    ids = [each.track_ids if isinstance(each, Tracks) else np.full(len(each), -1, np.int64) for each in objects]
    boxes = Boxes(
        np.repeat(np.array(frames, np.int64), [len(each) for each in objects]),
        np.concatenate(ids),
        np.concatenate([each.boxes_xyxy for each in objects]).astype(np.float64),
        np.concatenate([each.scores for each in objects]).astype(np.float64),
    )
    return boxes.rows(np.concatenate([each.class_ids for each in objects]) == class_id)
