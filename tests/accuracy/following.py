"""Accuracy of tracking and counting on a labeled clip, from a recording of its detections.

    vision run CONFIG --offline --record RESULTS.jsonl      (pipeline: detect; detect.score_threshold: 0.15)
    VISION_PETS_GT=gt.txt python -m tests.accuracy.following RESULTS.jsonl [--every 2] [--rate 10]

The command prints the counted and the labeled crossings of two lines. If motmetrics is installed, it also prints MOTA,
IDF1, and identity switches. Labels are MOTChallenge rows: frame (from 1), id, left, top, width, height, validity.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.accuracy.average_precision import overlaps
from tests.accuracy.to_mot import mot_rows
from vision.analytics.camera_analytics import Analytics
from vision.analytics.tracker import Tracker
from vision.config.analytics import CameraAnalytics, LineConfig
from vision.evaluation.crossings import crossings_of_path
from vision.types import Detections, Tracks

Floats = NDArray[np.float64]

LINES: Final = {
    "across the crossroads": ((384.0, 150.0), (384.0, 576.0)),
    "along the road": ((100.0, 330.0), (700.0, 330.0)),
}
"""Two lines in the clip PETS09-S2L1, 768x576."""


@dataclass(frozen=True)
class Followed:
    """Tracks and counts of a clip."""

    rows: Floats  # frame, id, left, top, width, height, score
    counts: Mapping[str, int]  # crossings of each line in both directions


def follow(found: Floats, frames: range, rate: float, lines: Mapping[str, Any] = LINES) -> Followed:
    """Run the tracker and the analytics on the detections of `frames`. Return the tracks and the counts.

    `found` has MOTChallenge rows. `rate` is the frame rate of the clip in frames/s.
    """
    tracker = Tracker()
    config = CameraAnalytics(
        lines=tuple(LineConfig(name=f"line{k}", points=ends) for k, ends in enumerate(lines.values()))
    )
    analytics = Analytics(config, "clip", ["person"], 16_384, 16_384)
    rows: list[Floats] = []
    for frame in frames:
        tracks = tracker.update(_detections(found[found[:, 0] == frame]), round(frame / rate * 1e9))
        analytics.update(tracks, round(frame / rate * 1e9))
        rows.append(_rows(frame, tracks))
    counts = analytics.counts().lines
    return Followed(
        np.concatenate(rows),
        {name: counts[f"line{k}"]["in"] + counts[f"line{k}"]["out"] for k, name in enumerate(lines)},
    )


def _detections(rows: Floats) -> Detections:
    rows = rows[np.argsort(-rows[:, 6], kind="stable")]
    boxes = np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], axis=1)
    return Detections(boxes.astype(np.float32), rows[:, 6].astype(np.float32), np.zeros(len(rows), np.int32))


def _rows(frame: int, tracks: Tracks) -> Floats:
    boxes = tracks.boxes_xyxy.astype(np.float64)
    columns = (np.full(len(tracks), frame), tracks.track_ids, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], tracks.scores)
    return np.column_stack(columns).astype(np.float64)


def crossings(truth: Floats, line: tuple[tuple[float, float], tuple[float, float]], rate: float) -> int:
    """Return the number of times that the labeled objects cross a line. docs/analytics.md defines a crossing."""
    config, number = LineConfig(name="line", points=line), 0
    for track_id in np.unique(truth[:, 1]):
        rows = truth[(truth[:, 1] == track_id) & (truth[:, 6] > 0)]
        rows = rows[np.argsort(rows[:, 0])]
        boxes = np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], axis=1)
        number += len(list(crossings_of_path(boxes, rows[:, 0] / rate, config)))
    return number


def line_errors(
    truth: Floats, followed: Followed, rate: float, lines: Mapping[str, Any] = LINES
) -> dict[str, dict[str, float]]:
    """Return, for each line, the labeled crossings, the counted crossings, and their relative difference."""
    result = {}
    for name, ends in lines.items():
        there = crossings(truth, ends, rate)
        counted = followed.counts[name]
        result[name] = {"labelled": there, "counted": counted, "error": abs(counted - there) / max(there, 1)}
    return result


def clear_mot(truth: Floats, rows: Floats, frames: range) -> dict[str, float]:
    """Return MOTA, IDF1, identity switches, recall, and precision (IoU threshold 0.5), computed by motmetrics."""
    if not hasattr(np, "asfarray"):  # motmetrics 1.4 was written for NumPy 1
        np.asfarray = lambda a, dtype=float: np.asarray(a, dtype=dtype)  # type: ignore[attr-defined]
    import motmetrics

    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for frame in frames:
        there = truth[(truth[:, 0] == frame) & (truth[:, 6] > 0)]
        found = rows[rows[:, 0] == frame]
        distance = 1.0 - overlaps(there[:, 2:6], found[:, 2:6])
        accumulator.update(there[:, 1].astype(int), found[:, 1].astype(int), np.where(distance > 0.5, np.nan, distance))
    names = ["mota", "idf1", "num_switches", "recall", "precision"]
    summary = motmetrics.metrics.create().compute(accumulator, metrics=names, name="clip").iloc[0]
    return {name: float(summary[name]) for name in names}


def argument_parser(program: str) -> argparse.ArgumentParser:
    """Return a parser for the arguments that `read` needs."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th frame only")
    parser.add_argument("--rate", type=float, default=10.0, help="frames of the clip per second")
    return parser


def read(arguments: argparse.Namespace) -> tuple[Floats, Floats, range, float]:
    """Return the labels, the detections, the frames to evaluate, and the frame rate in frames/s."""
    truth = np.loadtxt(os.environ["VISION_PETS_GT"], delimiter=",")
    found = np.array(list(mot_rows(arguments.recording)), np.float64)
    return truth, found, range(1, int(truth[:, 0].max()) + 1, arguments.every), arguments.rate


def main() -> int:
    truth, found, frames, rate = read(argument_parser("tests.accuracy.following").parse_args())
    followed = follow(found, frames, rate)
    results: dict[str, Any] = {"lines": line_errors(truth, followed, rate)}
    try:
        results["tracks"] = clear_mot(truth, followed.rows, frames)
    except ImportError:
        results["tracks"] = "needs motmetrics"
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
