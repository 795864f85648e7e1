"""Runs of tracker and analytics on simulated scenes, and a comparison of the results with the ground truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from vision.analytics.camera_analytics import Analytics
from vision.analytics.class_groups import DEFAULT_GROUPS, ClassGroups
from vision.analytics.tracker import Tracker
from vision.config import CameraAnalytics, DetectConfig, TrackConfig
from vision.evaluation.crossings import LineScore
from vision.evaluation.mot import Boxes, overlaps
from vision.evaluation.simulation.detector_errors import ErrorModel, SimulatedDetector
from vision.evaluation.simulation.oracle import (
    DWELL_S,
    TrueStay,
    camera_analytics,
    true_crossings,
    true_occupancy,
    true_paths,
    true_speed_kmh,
    true_stays,
)
from vision.evaluation.simulation.projection import FloatArray
from vision.evaluation.simulation.scenes import Scene, build_scene
from vision.evaluation.simulation.truth import TrueFrame, class_ids, class_names, confused_class_ids, observe
from vision.evaluation.tracks import TrackingScores, match_frames, score_tracks
from vision.types import Detections, Event, Tracks

Timing: TypeAlias = Literal["steady", "gaps", "bursts"]
TIMINGS: Final[tuple[Timing, ...]] = get_args(Timing)

_START_NS: Final = 1_000_000_000  # capture time at the start of a scene
_GAP_EVERY_S, _GAP_S = 8.0, (0.4, 1.2)  # mean time between two gaps, and range of their durations
_BURST: Final = 5  # number of frames that arrive at once, with the capture time of their arrival
_UNSURE_S: Final = 0.5  # if the duration of a stay differs by less from `DWELL_S`, both results are right


class Follower(Protocol):
    """Interface of a tracker that the simulation evaluates."""

    def update(self, detections: Detections, captured_ns: int) -> Tracks:
        """Process the detections of one frame. Return the published tracks."""


OpenTracker: TypeAlias = Callable[[Scene], Follower]
"""Function that creates the tracker for a scene."""


@dataclass(frozen=True, slots=True)
class ZoneScore:
    """True and counted stays in one zone, and the occupancy of the zone."""

    zone: str  # name of the zone
    true_stays: int  # number of stays of at least `DWELL_S`
    counted_stays: int  # number of stays that the analytics reported
    wrong_stays: int  # difference of both numbers, except for stays whose duration is close to `DWELL_S`
    occupancy: float  # true mean number of objects in the zone
    wrong_occupancy: float  # mean absolute difference between the true and the counted number of objects


@dataclass(frozen=True, slots=True)
class SceneScores:
    """Metrics of one run of one scene."""

    scene: str
    frames_per_s: float
    seed: int
    tracking: TrackingScores
    lines: tuple[LineScore, ...]
    zones: tuple[ZoneScore, ...]
    speeds_kmh: FloatArray  # (K, 2) measured and true speed of the object of each event
    box_overlaps: FloatArray  # (B,) overlap (IoU) of each published box with its detection

    @property
    def true_crossings(self) -> int:
        return sum(line.true for line in self.lines)

    @property
    def wrong_crossings(self) -> int:
        """Sum of the absolute differences between counted and true crossings, over all lines and directions."""
        return sum(abs(line.counted - line.true) for line in self.lines)


@dataclass(frozen=True, slots=True)
class PreparedScene:
    """Scene at one frame rate, and its ground truth, for runs with several detectors and trackers."""

    scene: Scene
    frames_per_s: float
    seed: int
    section: CameraAnalytics  # lines, zones, and ground points
    frames: Sequence[TrueFrame]
    crossings: Counter[tuple[str, str]]  # number of true crossings by line and direction
    stays: Sequence[TrueStay]
    occupancy: FloatArray  # (frames, zones) true number of objects in each zone


@dataclass(frozen=True, slots=True)
class Run:
    """Tracks, events, and counts that one run of one scene published."""

    events: tuple[tuple[int, Event], ...]  # events with their frame numbers from 1
    boxes: Boxes  # boxes of the published tracks
    occupancy: FloatArray  # (frames, zones) counted number of objects in each zone
    box_overlaps: FloatArray  # (B,) overlap (IoU) of each published box with its detection


def frame_times(duration_s: float, frames_per_s: float, timing: Timing, seed: int) -> FloatArray:
    """Return the times in seconds of a camera's frames, ascending.

    Args:
        duration_s: duration of the recording in seconds.
        frames_per_s: usual frame rate.
        timing: "steady" for regular times, "gaps" for times with random gaps of 0.4 to 1.2 s, or "bursts" for a camera
            that sometimes delivers five frames at the same time, of which only the last frame is used.
        seed: random seed of the gaps and bursts.
    """
    times = np.arange(0.0, duration_s, 1.0 / frames_per_s)
    rng = np.random.default_rng((seed, 2))
    if timing == "gaps":
        start_s = rng.uniform(0.0, _GAP_EVERY_S)
        while start_s < duration_s:
            times = times[(times < start_s) | (times > start_s + rng.uniform(*_GAP_S))]
            start_s += rng.uniform(0.5, 1.5) * _GAP_EVERY_S
    elif timing == "bursts":
        late = rng.random(len(times) // _BURST + 1) < 0.3
        group = np.arange(len(times)) // _BURST
        last = np.arange(len(times)) % _BURST == _BURST - 1
        times = times[~late[group] | last]
    return times


def prepare(name: str, seed: int, frames_per_s: float, timing: Timing = "steady") -> PreparedScene:
    """Build the scene called `name`, and compute its ground truth, as `prepare_scene` does."""
    return prepare_scene(build_scene(name, seed), seed, frames_per_s, timing)


def prepare_scene(scene: Scene, seed: int, frames_per_s: float, timing: Timing = "steady") -> PreparedScene:
    """Compute the ground truth of a scene, and keep the seed for the errors of the detector.

    `seed` also selects the gaps and bursts of the frames. `timing` selects the regularity of the frame times.
    """
    section = camera_analytics(scene)
    times_s = frame_times(scene.duration_s, frames_per_s, timing, seed)
    paths = list(true_paths(scene))
    stays = list(true_stays(paths, section, scene.view))
    return PreparedScene(
        scene=scene,
        frames_per_s=frames_per_s,
        seed=seed,
        section=section,
        frames=observe(scene, times_s),
        crossings=Counter((crossing.line, crossing.direction) for crossing in true_crossings(paths, section)),
        stays=stays,
        occupancy=true_occupancy(stays, section, times_s),
    )


def open_tracker(scene: Scene) -> Tracker:
    """Create a tracker with the defaults of camera.yaml, as `vision run` does."""
    config = TrackConfig()
    config = config.model_copy(update={"new_score": max(DetectConfig().score_threshold, config.new_score)})
    groups = ClassGroups(class_names(), DEFAULT_GROUPS)
    return Tracker(config, (scene.view.width_px, scene.view.height_px), groups)


def run_scene(
    prepared: PreparedScene,
    errors: ErrorModel,
    open_follower: OpenTracker = open_tracker,
    progress: Callable[[int], None] = lambda _frames: None,
) -> Run:
    """Run a tracker and the analytics on one scene. Return the published results.

    Args:
        prepared: the scene.
        errors: errors of the detector.
        open_follower: function that creates the tracker for a scene.
        progress: function that receives the number of processed frames.
    """
    scene, view = prepared.scene, prepared.scene.view
    detector = SimulatedDetector(errors, view, class_ids(scene), confused_class_ids(scene), prepared.seed)
    tracker = open_follower(scene)
    analytics = Analytics(
        prepared.section, scene.name, class_names(), view.width_px, view.height_px, forget_s=TrackConfig().lost_s
    )
    events: list[tuple[int, Event]] = []
    published: list[tuple[float, ...]] = []
    occupancy, best = np.zeros_like(prepared.occupancy), [np.zeros(0)]
    zones = [zone.name for zone in prepared.section.zones]
    captured_ns = _START_NS
    for number, frame in enumerate(prepared.frames, start=1):
        captured_ns = _START_NS + round(frame.time_s * 1e9)
        detections = detector.detect(frame)
        tracks = tracker.update(detections, captured_ns)
        events += [(number, event) for event in analytics.update(tracks, captured_ns)]
        inside = analytics.counts().occupancy
        occupancy[number - 1] = [inside[name] for name in zones]
        best.append(nearest_overlaps(tracks, detections))
        published += _rows(number, tracks)
        progress(number)
    last = analytics.restart(view.width_px, view.height_px, captured_ns)
    events += [(len(prepared.frames), event) for event in last]
    return Run(tuple(events), Boxes.of(published), occupancy, np.concatenate(best))


def score_scene(prepared: PreparedScene, run: Run) -> SceneScores:
    """Compare a run with the ground truth. Return the metrics.

    Raises:
        ConfigError: SciPy or TrackEval is not installed.
    """
    truth, frames = true_boxes(prepared.frames), len(prepared.frames)
    partners = match_frames(truth, run.boxes, frames)
    return SceneScores(
        scene=prepared.scene.name,
        frames_per_s=prepared.frames_per_s,
        seed=prepared.seed,
        tracking=score_tracks(truth, run.boxes, frames, partners),
        lines=tuple(score_lines(prepared, run)),
        zones=tuple(score_zones(prepared, run)),
        speeds_kmh=np.array([*_speeds(prepared, run, truth, partners)]).reshape(-1, 2),
        box_overlaps=run.box_overlaps,
    )


def score_lines(prepared: PreparedScene, run: Run) -> Iterator[LineScore]:
    """Yield the true and counted crossings of each line and direction."""
    counted = Counter((event.name, event.data["direction"]) for _, event in run.events if event.kind == "line_crossed")
    for line in prepared.section.lines:
        for direction in ("in", "out"):
            key = line.name, direction
            yield LineScore(line.name, direction, prepared.crossings[key], counted[key])


def score_zones(prepared: PreparedScene, run: Run) -> Iterator[ZoneScore]:
    """Yield the true and counted stays in each zone, and the occupancy of the zone."""
    counts = Counter(
        event.name for _, event in run.events if event.kind == "dwelling" and event.data["phase"] == "begin"
    )
    unsure_s = _UNSURE_S + 1.0 / prepared.frames_per_s
    wrong = np.abs(run.occupancy - prepared.occupancy).mean(axis=0)
    for column, zone in enumerate(prepared.section.zones):
        durations_s = np.array([stay.duration_s for stay in prepared.stays if stay.zone == zone.name])
        counted = counts[zone.name]
        least, true, most = (int((durations_s >= DWELL_S + off).sum()) for off in (unsure_s, 0.0, -unsure_s))
        occupancy = float(prepared.occupancy[:, column].mean())
        wrong_stays = max(least - counted, 0) + max(counted - most, 0)
        yield ZoneScore(zone.name, true, counted, wrong_stays, occupancy, float(wrong[column]))


def _speeds(
    prepared: PreparedScene, run: Run, truth: Boxes, partners: NDArray[np.int64]
) -> Iterator[tuple[float, float]]:
    """Yield the measured and the true speed, in km/h, for each event with a speed.

    Omit events whose track has not been matched to a true object.
    """
    found = partners >= 0
    frames, actors, tracks = truth.frames[found], truth.ids[found], run.boxes.ids[partners[found]]
    for number, event in run.events:
        if "speed_kmh" in event.data:
            rows = np.flatnonzero((tracks == event.track_id) & (frames <= number))
            if len(rows):
                actor = prepared.scene.actors[int(actors[rows[-1]]) - 1]
                true = true_speed_kmh(actor, prepared.frames[number - 1].time_s)
                yield float(event.data["speed_kmh"]), true


def nearest_overlaps(tracks: Tracks, detections: Detections) -> FloatArray:
    """Return the highest IoU (M,) of each published box with any of the detections.

    If a box overlaps no detection, its IoU is 0.
    """
    if not len(tracks) or not len(detections):
        return np.zeros(len(tracks))
    table = overlaps(tracks.boxes_xyxy.astype(np.float64), detections.boxes_xyxy.astype(np.float64))
    best: FloatArray = table.max(axis=1)
    return best


def _rows(number: int, tracks: Tracks) -> Iterator[tuple[float, ...]]:
    for box, track_id, score in zip(tracks.boxes_xyxy, tracks.track_ids, tracks.scores, strict=True):
        yield number, int(track_id), *map(float, box), float(score)


def true_boxes(frames: Sequence[TrueFrame]) -> Boxes:
    """Return the boxes of the visible objects in all frames. The ids are the numbers of the actors, from 1."""
    return Boxes.of(
        [
            (number, int(object_id), *map(float, box), 1.0)
            for number, frame in enumerate(frames, start=1)
            for object_id, box in zip(frame.ids, frame.boxes_xyxy, strict=True)
        ]
    )
