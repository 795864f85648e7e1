"""Accuracy of tracking and counting in simulated scenes, compared with the trackers of the package `trackers`.

    python -m tests.perf.tracker_comparison [--fps 2,5,10,15,30] [--detector good,poor] [--scene NAME,NAME] [--seeds 1]
        [--jobs 1]

All trackers receive the same detections and capture times. The tracks of each tracker pass through the same analytics.
The other trackers use their default parameters, with three exceptions: the minimum score of a strong detection, the
minimum score of a new track, and the time until a track ends are those of camera.yaml. The command writes
results/MACHINE/tracker_comparison.json.

`trackers`, `supervision`, and TrackEval must be installed. Install `trackers` with `--no-deps`, because it depends on
the desktop build of OpenCV (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from typing import Any, Final

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from tests.perf.__main__ import result
from tests.perf.results import save
from vision.analytics.class_groups import DEFAULT_GROUPS, ClassGroups
from vision.config import TrackConfig
from vision.evaluation.simulation.detector_errors import DETECTORS
from vision.evaluation.simulation.scenes import SCENES, Scene
from vision.evaluation.simulation.simulate import (
    Follower,
    OpenTracker,
    PreparedScene,
    SceneScores,
    open_tracker,
    prepare,
    run_scene,
    score_scene,
)
from vision.evaluation.simulation.truth import class_names
from vision.types import Detections, Tracks

RATES: Final = (2.0, 5.0, 10.0, 15.0, 30.0)
_DEFAULTS: Final = TrackConfig()
_COMMON: Final = {"high_conf_det_threshold": _DEFAULTS.high_score, "lost_track_buffer": round(30 * _DEFAULTS.lost_s)}
_NEW: Final = {"track_activation_threshold": _DEFAULTS.new_score}
OTHERS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "bytetrack": ("ByteTrackTracker", {**_COMMON, **_NEW}),
    "ocsort": ("OCSORTTracker", _COMMON),
    "botsort": ("BoTSORTTracker", {**_COMMON, **_NEW, "enable_cmc": False}),
}
"""Classes of the package `trackers`, and their parameters. The simulated cameras do not move."""


@dataclass(frozen=True, slots=True)
class Case:
    """Scenes of one type at one frame rate, with the detections of each detector."""

    scene: str
    frames_per_s: float
    seeds: int
    detectors: tuple[str, ...]


_PACKAGES: Final = ("trackers", "supervision", "trackeval", "scipy")


class OtherTracker:
    """Tracker of the package `trackers`, with one instance for each group of classes.

    These trackers ignore classes. Without groups, a person could continue the track of a car.
    """

    def __init__(self, open_one: Callable[[], Any]) -> None:
        self._supervision: Any = importlib.import_module("supervision")
        self._open_one = open_one
        self._trackers: dict[int, Any] = {}
        self._groups = ClassGroups(class_names(), DEFAULT_GROUPS)
        self._ids: dict[tuple[int, int], int] = {}

    def update(self, detections: Detections, captured_ns: int) -> Tracks:
        """Process the detections of one frame. Return the tracks that the trackers report."""
        groups = self._groups.of(detections.class_ids)
        for group in set(groups.tolist()) - self._trackers.keys():
            self._trackers[group] = self._open_one()
        rows: list[tuple[list[float], float, int, int]] = []
        for group, tracker in self._trackers.items():
            chosen = groups == group
            found = tracker.update(
                self._supervision.Detections(
                    xyxy=detections.boxes_xyxy[chosen],
                    confidence=detections.scores[chosen],
                    class_id=detections.class_ids[chosen],
                ),
                timestamp=captured_ns * 1e-9,
            )
            if found.tracker_id is None:
                continue
            columns = (found.xyxy, found.confidence, found.class_id, found.tracker_id)
            for box, score, class_id, track_id in zip(*(column.tolist() for column in columns), strict=True):
                if track_id >= 0:  # -1 is a detection without a track
                    number = self._ids.setdefault((group, track_id), len(self._ids) + 1)
                    rows.append((box, score, class_id, number))
        return Tracks(
            np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
            np.array([row[1] for row in rows], np.float32),
            np.array([row[2] for row in rows], np.int32),
            np.array([row[3] for row in rows], np.int64),
            np.zeros(len(rows), np.int64),
        )


def competitors(frames_per_s: float) -> dict[str, OpenTracker]:
    """Return, for each tracker, a function that creates the tracker for a scene."""
    package: Any = importlib.import_module("trackers")

    def other(class_name: str, parameters: Mapping[str, Any]) -> OpenTracker:
        def open_one() -> Any:
            return getattr(package, class_name)(frame_rate=frames_per_s, **parameters)

        def open_follower(scene: Scene) -> Follower:
            return OtherTracker(open_one)

        return open_follower

    return {"vision": open_tracker, **{name: other(*kind) for name, kind in OTHERS.items()}}


def compare(prepared: PreparedScene, detector: str) -> dict[str, SceneScores]:
    """Run every tracker on the same detections of one scene. Return the scores by name of the tracker."""
    trackers = competitors(prepared.frames_per_s)
    return {
        name: score_scene(prepared, run_scene(prepared, DETECTORS[detector], follower))
        for name, follower in trackers.items()
    }


def values(scores: Sequence[SceneScores]) -> dict[str, Any]:
    """Return the metrics of one tracker: sums of counts, and means of the other metrics."""
    return {
        "true_crossings": sum(one.true_crossings for one in scores),
        "wrong_crossings": sum(one.wrong_crossings for one in scores),
        "wrong_stays": sum(zone.wrong_stays for one in scores for zone in one.zones),
        "switches": sum(one.tracking.switches for one in scores),
        "idf1": round(float(np.mean([one.tracking.idf1 for one in scores])), 4),
        "hota": round(float(np.mean([one.tracking.hota for one in scores])), 4),
    }


def behind(figures: Mapping[str, Any]) -> list[str]:
    """Return a text for each scene and rate in which another tracker makes fewer counting errors.

    The function also compares the sums over all rates of each scene.
    """
    found = []
    for detector, scenes in figures.items():
        for scene, rates in scenes.items():
            wrong = {rate: {name: one["wrong_crossings"] for name, one in case.items()} for rate, case in rates.items()}
            wrong["all rates"] = {name: sum(case[name] for case in wrong.values()) for name in ("vision", *OTHERS)}
            for rate, case in wrong.items():
                if better := [f"{name} {case[name]}" for name in OTHERS if case[name] < case["vision"]]:
                    found.append(f"{detector}, {scene}, {rate}: vision {case['vision']}, {', '.join(better)}")
    return found


def measure(case: Case) -> dict[str, dict[str, list[SceneScores]]]:
    """Run every tracker in the scenes of one type at one frame rate. Return the scores by detector and tracker."""
    prepared = [prepare(case.scene, seed, case.frames_per_s) for seed in range(case.seeds)]
    found = {}
    for detector in case.detectors:
        compared = [compare(one, detector) for one in prepared]
        found[detector] = {tracker: [run[tracker] for run in compared] for tracker in compared[0]}
    return found


def _measured(cases: Sequence[Case], jobs: int) -> Iterator[dict[str, dict[str, list[SceneScores]]]]:
    if jobs == 1:
        yield from map(measure, cases)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(measure, cases)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.tracker_comparison")
    parser.add_argument("--fps", default=",".join(f"{rate:g}" for rate in RATES))
    parser.add_argument("--detector", default="good")
    parser.add_argument("--scene", default=",".join(SCENES))
    parser.add_argument("--seeds", type=int, default=1, help="number of scenes of each type (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: 1)")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    detectors, scenes = arguments.detector.split(","), arguments.scene.split(",")
    figures: dict[str, Any] = {}
    everything: dict[tuple[str, str], list[SceneScores]] = {}
    rates = [float(rate) for rate in arguments.fps.split(",")]
    cases = [Case(name, rate, arguments.seeds, tuple(detectors)) for name, rate in product(scenes, rates)]
    for case, measured in zip(cases, _measured(cases, arguments.jobs), strict=True):
        for detector, scores in measured.items():
            row = {tracker: values(ones) for tracker, ones in scores.items()}
            by_rate = figures.setdefault(detector, {}).setdefault(case.scene, {})
            by_rate[f"{case.frames_per_s:g}_frames_per_s"] = row
            for tracker, ones in scores.items():
                everything.setdefault((detector, tracker), []).extend(ones)
            wrong = ", ".join(f"{tracker} {one['wrong_crossings']}" for tracker, one in row.items())
            line = f"{detector}, {case.scene}, {case.frames_per_s:g} frames/s: wrong crossings: {wrong}"
            console.print(line, highlight=False)
    _print_totals(everything, Console())
    for line in behind(figures):
        sys.stdout.write(f"behind: {line}\n")
    for (detector, tracker), runs in everything.items():
        figures.setdefault("total", {}).setdefault(detector, {})[tracker] = values(runs)
    versions = {name: metadata.version(name) for name in _PACKAGES}
    entry = result("tracker_comparison", figures)
    title = "Tracking and counting in simulated scenes, compared with the trackers of the package trackers"
    path = save(msgspec.structs.replace(entry, title=title, versions={**entry.versions, **versions}))
    sys.stdout.write(f"written: {path}\n")
    return 0


def _print_totals(everything: Mapping[tuple[str, str], Sequence[SceneScores]], console: Console) -> None:
    table = Table("detector", "tracker", "crossings", "wrong", "wrong stays", "switches", "IDF1", "HOTA", box=None)
    for (detector, tracker), scores in everything.items():
        of = values(scores)
        counts = (str(of[key]) for key in ("true_crossings", "wrong_crossings", "wrong_stays", "switches"))
        table.add_row(detector, tracker, *counts, f"{of['idf1']:.3f}", f"{of['hota']:.3f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
