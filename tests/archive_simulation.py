"""Simulated cameras whose results go to an archive, as `vision run` publishes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vision.config.analytics import CameraAnalytics
from vision.config.rules import RuleConfig
from vision.evaluation.simulation.detector_errors import DETECTORS, SimulatedDetector
from vision.evaluation.simulation.simulate import PreparedScene, prepare
from vision.evaluation.simulation.truth import class_ids, class_names, confused_class_ids
from vision.messaging import codec
from vision.messaging.schema import AnyMessage, Encoding, EventMessage
from vision.outputs.archive.writer import ArchiveWriter
from vision.stages.analytics import AnalyticsStage, TrackStage
from vision.stages.rules import RuleStage
from vision.types import Detections, FrameMeta, Result, Timing

START_UTC_NS = 1_700_000_000_123_456_789
MONOTONIC_NS = 987_654_321_000_017


@dataclass(frozen=True)
class Site:
    """One simulated camera: its scene, its lines and zones, and its rules."""

    camera: str
    scene: PreparedScene
    rules: tuple[RuleConfig, ...] = ()
    start_s: float = 0.0

    @property
    def section(self) -> CameraAnalytics:
        return self.scene.section


def site(camera: str, scene: str, seed: int, *, rules: tuple[RuleConfig, ...] = (), start_s: float = 0.0) -> Site:
    return Site(camera, prepare(scene, seed, 10.0), rules, start_s)


def detections_of(one: Site, detector: str = "good") -> Iterator[tuple[FrameMeta, Detections]]:
    """Yield the detections of each frame. The epoch changes in the middle, and the frame intervals are irregular."""
    scene = one.scene.scene
    simulated = SimulatedDetector(
        DETECTORS[detector], scene.view, class_ids(scene), confused_class_ids(scene), one.scene.seed
    )
    size = scene.view.width_px, scene.view.height_px
    for index, frame in enumerate(one.scene.frames):
        after_ns = round((one.start_s + frame.time_s) * 1e9) + 977 * (index * 7919 % 1009)
        epoch = int(index > len(one.scene.frames) // 2)
        times = MONOTONIC_NS + after_ns, START_UTC_NS + after_ns
        yield FrameMeta(one.camera, index, epoch, *times, *size), simulated.detect(frame)


def live_results(
    one: Site,
    found: Iterable[tuple[FrameMeta, Detections]],
    track: TrackStage | None = None,
    section: CameraAnalytics | None = None,
) -> Iterator[Result]:
    """Yield the results of the stages of the pipeline `count`. If `section` is None, use the analytics of the site."""
    track = track or TrackStage(score=0.35, class_names=class_names(), camera_ids=[one.camera])
    sections = {one.camera: section or one.section}
    analytics = AnalyticsStage(sections, class_names())
    rules = RuleStage(one.rules, sections)
    for meta, detections in found:
        yield rules(analytics(track(Result(meta, detections, Timing(*[meta.captured_ns] * 3)))))


class Recorder:
    """Recorder that encodes and decodes each result, as a publisher and a subscriber do, and adds it to an archive."""

    def __init__(self, folder: Path, *, instance: str = "first", encoding: Encoding = "json") -> None:
        self.events: list[EventMessage] = []
        self._writer = ArchiveWriter(folder)
        self._numbering = codec.Numbering("node", instance)
        self._encoding: Encoding = encoding
        self._frames = 0

    def add(self, result: Result) -> None:
        meta = result.meta
        topic = f"detections/{meta.camera_id}"
        header = self._numbering.header(topic)
        self._send(topic, codec.detections(header, result, class_names(), meta.captured_ns))
        for event in result.events:
            header = self._numbering.header(f"events/{meta.camera_id}")
            self.events.append(codec.event(header, event, result))
            self._send(f"events/{meta.camera_id}", self.events[-1])
        if result.counts is not None and not self._frames % 10:
            report = codec.counts(meta.camera_id, result.counts, meta.captured_ns, meta.captured_utc_ns)
            self._send(report.topic, codec.status(self._numbering.header(report.topic), report))
        self._frames += 1
        if not self._frames % 500:
            self._writer.commit()

    def _send(self, topic: str, message: AnyMessage) -> None:
        self._writer.add(codec.decode(topic, codec.encode(message, self._encoding)))

    def close(self) -> None:
        self._writer.close()


def record(folder: Path, one: Site, *, watch: Callable[[Result], None] = lambda _: None) -> list[EventMessage]:
    """Run a simulated camera, and store its results in an archive in `folder`. Return the published events."""
    recorder = Recorder(folder)
    for result in live_results(one, detections_of(one)):
        watch(result)
        recorder.add(result)
    recorder.close()
    return recorder.events
