"""Coverage of the intervals of counts: fit the model to some clips of a site, and test it on other clips of the site.

    python -m tests.accuracy.intervals [--sites 300] [--scenes 0] [--seed 0]

`--sites`: sites with random miss rates, false rates, and traffic. The errors of clips differ from each other: miss
rates are logit-normal, and false counts come in bursts. The model does not assume these distributions.

`--scenes`: sites of the scene simulator. Tracker and counter process the detections of a simulated detector.

The command prints the share of intervals that contain the true count, and their median width relative to the true
count, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final

import numpy as np

from vision.analytics.camera_analytics import Analytics
from vision.analytics.count_accuracy import BLOCK_S, Clip, CountAccuracy, CountBlock
from vision.analytics.tracker import Tracker
from vision.config import CameraAnalytics, TrackConfig
from vision.evaluation.count_errors import count_errors, match_times
from vision.evaluation.mot import Boxes
from vision.evaluation.passes import Video
from vision.evaluation.simulation.detector_errors import DETECTORS, ErrorModel, SimulatedDetector
from vision.evaluation.simulation.oracle import camera_analytics
from vision.evaluation.simulation.scenes import SCENES, build_scene
from vision.evaluation.simulation.simulate import frame_times
from vision.evaluation.simulation.truth import class_ids, class_names, confused_class_ids, observe
from vision.types import Event

_FITTED: Final = 6  # clips
_JUDGED: Final = 12
_CLIP_S: Final = 120.0
_SCENE_FPS: Final = 5.0
_START_NS: Final = 10**15


@dataclass
class Coverage:
    """Counts of the tested intervals, and of those that contain the true count."""

    intervals: int = 0
    contained: int = 0
    too_low: int = 0  # the true count is above the interval
    too_high: int = 0
    without: int = 0  # counts without an interval, because of too few data
    widths: list[float] = field(default_factory=list)  # relative to the true count

    def judge(self, fitted: Sequence[Clip], judged: Sequence[Clip]) -> None:
        """Fit the model to some clips, test the intervals for the totals of other clips, and add the results."""
        blocks = [
            (name, key, list(added))
            for clip in judged
            for name, counts in clip.items()
            for key, added in counts.items()
        ]
        totals: dict[str, dict[str, int]] = {}
        true: dict[str, dict[str, int]] = {}
        for name, key, added in blocks:
            for sums, number in ((totals, sum(b.counted for b in added)), (true, sum(b.true for b in added))):
                sums.setdefault(name, {})
                sums[name][key] = sums[name].get(key, 0) + number
        intervals = CountAccuracy.of_clips(fitted).intervals(totals)
        for name, counts in true.items():
            for key, number in counts.items():
                self._add(intervals.get(name, {}).get(key), number)

    def _add(self, interval: tuple[int, int] | None, true: int) -> None:
        if interval is None:
            self.without += 1
            return
        low, high = interval
        self.intervals += 1
        self.contained += low <= true <= high
        self.too_low += true > high
        self.too_high += true < low
        self.widths.append((high - low) / max(true, 1))

    def summary(self) -> dict[str, Any]:
        """Return the number of intervals, and the share of the intervals that contain the true count."""
        numbers = {name: value for name, value in vars(self).items() if name != "widths"}
        share = self.contained / self.intervals if self.intervals else None
        return {**numbers, "coverage": share, "median_width": median(self.widths) if self.widths else None}


def random_sites(number: int, seed: int = 0) -> Coverage:
    """Test the intervals on sites with random errors. Each site has two lines, which count in two directions."""
    coverage = Coverage()
    for site in range(number):
        rng = np.random.default_rng((seed, site))
        streams = {(line, key): _Stream(rng) for line in ("door", "gate") for key in ("in", "out")}
        clips: list[dict[str, dict[str, list[CountBlock]]]] = []
        for _ in range(_FITTED + _JUDGED):
            clips.append({"door": {}, "gate": {}})
            for (line, key), stream in streams.items():
                clips[-1][line][key] = stream.clip()
        coverage.judge(clips[:_FITTED], clips[_FITTED:])
    return coverage


class _Stream:
    """True and counted crossings of one line in one direction."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._missed, self._spread = rng.uniform(0.005, 0.12), rng.uniform(0.0, 0.6)
        self._false = rng.uniform(0.0, 0.06)
        self._per_s, self._bunching = np.exp(rng.uniform(np.log(0.05), np.log(0.8))), rng.uniform(1.0, 8.0)

    def clip(self) -> list[CountBlock]:
        rng = self._rng
        true_s: list[float] = []
        counted_s: list[float] = []
        for start_s in np.arange(0.0, _CLIP_S, BLOCK_S):
            traffic = self._per_s * BLOCK_S * rng.gamma(self._bunching) / self._bunching
            now = rng.uniform(start_s, start_s + BLOCK_S, rng.poisson(traffic))
            odds = self._missed / (1 - self._missed) * np.exp(rng.normal(0.0, self._spread))
            found = now[rng.random(len(now)) >= odds / (1 + odds)]
            bursts = rng.uniform(start_s, start_s + BLOCK_S, rng.poisson(traffic * self._false / 1.5))
            twice = bursts[rng.random(len(bursts)) < 0.5]
            true_s += now.tolist()
            counted_s += [*(found + rng.uniform(0.0, 0.5, len(found))).tolist(), *bursts.tolist(), *twice.tolist()]
        return match_times(true_s, counted_s, _CLIP_S, window_s=0.6)


def simulated_sites(number: int, seed: int = 0) -> Coverage:
    """Test the intervals on simulated sites. A site is a scene with a detector. Its clips show different objects."""
    coverage = Coverage()
    for site in range(number):
        rng = np.random.default_rng((seed, site, 7))
        name = list(SCENES)[site % len(SCENES)]
        worse = rng.uniform(0.5, 2.0)
        recall = tuple(float(1 - (1 - part) * worse) for part in DETECTORS["good"].recall)
        x, y, width, height = (float(part * rng.uniform(0.5, 2.0)) for part in DETECTORS["good"].jitter)
        errors = replace(DETECTORS["good"], recall=recall, jitter=(x, y, width, height))
        section = camera_analytics(build_scene(name, 0))
        clips = [_scene_clip(name, section, errors, 1000 * site + clip) for clip in range(_FITTED + _FITTED)]
        coverage.judge(clips[:_FITTED], clips[_FITTED:])
    return coverage


def _scene_clip(name: str, section: CameraAnalytics, errors: ErrorModel, seed: int) -> Clip:
    """Simulate one clip of a scene. The counts combine all classes, because the labels have only one class."""
    scene = build_scene(name, seed)
    view, lost_s = scene.view, TrackConfig().lost_s
    times_s = frame_times(scene.duration_s, _SCENE_FPS, "steady", seed)
    frames = observe(scene, times_s)
    detector = SimulatedDetector(errors, view, class_ids(scene), confused_class_ids(scene), seed)
    tracker = Tracker(TrackConfig(), (view.width_px, view.height_px))
    analytics = Analytics(section, name, class_names(), view.width_px, view.height_px, forget_s=lost_s)
    events: list[tuple[int, Event]] = []
    rows: list[tuple[float, ...]] = []
    for at, frame in enumerate(frames, start=1):
        captured_ns = _START_NS + round(frame.time_s * 1e9)
        tracks = tracker.update(detector.detect(frame), captured_ns)
        events += [(at, _without_class(event)) for event in analytics.update(tracks, captured_ns)]
        rows += _labels(at, frame.ids.tolist(), frame.boxes_xyxy.tolist())
    video = Video(name, len(frames), view.width_px, view.height_px, 1 / _SCENE_FPS)
    return count_errors(section, Boxes.of(rows), events, "person", video, lost_s=lost_s)


def _labels(at: int, ids: Sequence[int], boxes: Sequence[Sequence[float]]) -> Iterator[tuple[float, ...]]:
    for object_id, box in zip(ids, boxes, strict=True):
        yield at, object_id, *box, 1.0


def _without_class(event: Event) -> Event:
    return replace(event, data={key: value for key, value in event.data.items() if key != "class"})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy.intervals")
    parser.add_argument("--sites", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"seed": arguments.seed}
    for name, judge in (("sites", random_sites), ("scenes", simulated_sites)):
        number = getattr(arguments, name)
        if number:
            results[name] = {"number": number, **judge(number, arguments.seed).summary()}
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
