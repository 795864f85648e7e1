"""Runs of tracker and analytics over simulated scenes, and comparison of the results with the ground truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from vision.analytics.camera_analytics import Analytics
from vision.analytics.tracker import Tracker
from vision.config import CameraAnalytics, TrackConfig
from vision.evaluation.mot import Boxes, overlaps
from vision.evaluation.simulation.detector_errors import ErrorModel, SimulatedDetector
from vision.evaluation.simulation.projection import FloatArray
from vision.evaluation.simulation.scenes import Scene, build_scene
from vision.evaluation.simulation.truth import (
    TrueFrame,
    camera_analytics,
    class_ids,
    class_names,
    confused_class_ids,
    observe,
    true_crossings,
    true_occupancy,
)
from vision.evaluation.tracks import TrackingScores, match_frames, score_tracks
from vision.types import Detections, Event, Tracks

Timing: TypeAlias = Literal["steady", "gaps", "bursts"]
TIMINGS: Final[tuple[Timing, ...]] = get_args(Timing)

_START_NS: Final = 1_000_000_000
_GAP_EVERY_S, _GAP_S = 8.0, (0.4, 1.2)
_BURST: Final = 5  # frames that arrive at once, with the capture times of their arrival


class Follower(Protocol):
    """Tracker under test."""

    def update(self, detections: Detections, captured_ns: int) -> Tracks:
        """Process the detections of one frame. Return the published tracks."""


@dataclass(frozen=True, slots=True)
class SceneScores:
    """Metrics of one run of one scene."""

    scene: str
    frames_per_s: float
    tracking: TrackingScores
    true_crossings: int
    wrong_crossings: int  # sum of absolute differences from the true numbers, over lines and directions
    true_occupancy: float  # mean number of objects in all zones
    wrong_occupancy: float  # mean absolute difference from the true number, summed over the zones
    box_overlap: NDArray[np.float64]  # IoU of each published box with the most similar detection


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Scene at one frame rate, and its ground truth."""

    scene: Scene
    section: CameraAnalytics
    frames: Sequence[TrueFrame]
    crossings: Counter[tuple[str, str]]
    occupancy: FloatArray  # (frames, zones)


def frame_times(duration_s: float, frames_per_s: float, timing: Timing, seed: int) -> FloatArray:
    """Return the times in seconds of a camera's frames, ascending.

    Args:
        duration_s: duration of the recording.
        frames_per_s: frame rate, except in gaps and bursts.
        timing: "steady" for constant intervals, "gaps" for random gaps of 0.4 to 1.2 s, or "bursts" for groups of 5
            frames that sometimes arrive together, so that only the last frame of the group is used.
        seed: seed of the random gaps and bursts.
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


def prepare(name: str, seed: int, frames_per_s: float, timing: Timing = "steady") -> _Prepared:
    """Build a scene and its ground truth. The result can be run with several detectors and trackers."""
    scene = build_scene(name, seed)
    section = camera_analytics(scene)
    times_s = frame_times(scene.duration_s, frames_per_s, timing, seed)
    crossings = Counter((crossing.line, crossing.direction) for crossing in true_crossings(scene, section))
    return _Prepared(scene, section, observe(scene, times_s), crossings, true_occupancy(scene, section, times_s))


def run_scene(
    prepared: _Prepared,
    frames_per_s: float,
    errors: ErrorModel,
    seed: int,
    open_tracker: Callable[[], Follower] = Tracker,
) -> SceneScores:
    """Run a tracker and the analytics over one scene. Return their metrics.

    Raises:
        ConfigError: TrackEval is not installed.
    """
    scene, view = prepared.scene, prepared.scene.view
    detector = SimulatedDetector(errors, view, class_ids(scene), confused_class_ids(scene), seed)
    tracker = open_tracker()
    analytics = Analytics(
        prepared.section, scene.name, class_names(), view.width_px, view.height_px, forget_s=TrackConfig().lost_s
    )
    events: list[Event] = []
    published: list[tuple[float, ...]] = []
    wrong_occupancy, fits = 0.0, []
    zones = [zone.name for zone in prepared.section.zones]
    for number, frame in enumerate(prepared.frames, start=1):
        captured_ns = _START_NS + round(frame.time_s * 1e9)
        detections = detector.detect(frame)
        tracks = tracker.update(detections, captured_ns)
        events += analytics.update(tracks, captured_ns)
        occupancy = analytics.counts().occupancy
        truth = prepared.occupancy[number - 1]
        wrong_occupancy += sum(abs(occupancy[name] - there) for name, there in zip(zones, truth, strict=True))
        fits.append(_fit(detections, tracks))
        published += _rows(number, tracks)
    events += analytics.restart(view.width_px, view.height_px, captured_ns)
    counted = Counter((event.name, event.data["direction"]) for event in events if event.kind == "line_crossed")
    wrong = (counted - prepared.crossings) + (prepared.crossings - counted)
    truth_boxes, found = _true_boxes(prepared.frames), Boxes.of(published)
    frames = len(prepared.frames)
    return SceneScores(
        scene=scene.name,
        frames_per_s=frames_per_s,
        tracking=score_tracks(truth_boxes, found, frames, match_frames(truth_boxes, found, frames)),
        true_crossings=prepared.crossings.total(),
        wrong_crossings=wrong.total(),
        true_occupancy=float(prepared.occupancy.sum(axis=1).mean()),
        wrong_occupancy=wrong_occupancy / frames,
        box_overlap=np.concatenate(fits),
    )


def _fit(detections: Detections, tracks: Tracks) -> NDArray[np.float64]:
    """Return the IoU (M,) of each published box with the detection that overlaps it most; 0 if there are none."""
    if not len(tracks) or not len(detections):
        return np.zeros(len(tracks))
    table = overlaps(tracks.boxes_xyxy.astype(np.float64), detections.boxes_xyxy.astype(np.float64))
    best: NDArray[np.float64] = table.max(axis=1)
    return best


def _rows(number: int, tracks: Tracks) -> Iterator[tuple[float, ...]]:
    for box, track_id, score in zip(tracks.boxes_xyxy, tracks.track_ids, tracks.scores, strict=True):
        yield number, int(track_id), *map(float, box), float(score)


def _true_boxes(frames: Sequence[TrueFrame]) -> Boxes:
    return Boxes.of(
        [
            (number, int(object_id), *map(float, box), 1.0)
            for number, frame in enumerate(frames, start=1)
            for object_id, box in zip(frame.ids, frame.boxes_xyxy, strict=True)
        ]
    )
