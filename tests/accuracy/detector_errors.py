"""Measure the errors of a detector on a labeled clip, in the terms of the simulator's `ErrorModel`.

    vision run CONFIG --offline --record RESULTS.jsonl      (pipeline: detect; detect.score_threshold: 0.15)
    VISION_PETS_GT=gt.txt python -m tests.accuracy.detector_errors RESULTS.jsonl [--rate 10]

The command prints the recall and the mean score by the visible part of an object, the deviations of the boxes and their
time constant, the second boxes per object, and the false boxes per frame. The visible part follows from the labels: of
two objects, the one whose box ends lower in the frame is nearer.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from tests.accuracy.average_precision import overlaps
from tests.accuracy.following import Floats, argument_parser, read
from vision.evaluation.simulation.detector_errors import PARTS
from vision.evaluation.simulation.truth import unhidden

_BODY: Final = 0.8  # part of the width of its box that a person fills, as in the simulator
_FOUND_IOU: Final = 0.3  # a box that overlaps an object this much shows it
_NEAR_IOU: Final = 0.3  # a further box that overlaps an object this much is a second box of it
_WHOLE: Final = 0.95  # visible part from which the box of an object has no error from occlusion
_LAG_FRAMES: Final = 2  # lag of the autocorrelation from which the time constant follows
_EDGES: Final = np.array([0.05, *((a + b) / 2 for a, b in pairwise(PARTS)), 1.01])


@dataclass(frozen=True)
class Matched:
    """N labeled boxes, and the detected boxes that were matched to them."""

    ids: Floats  # (N,)
    frames: Floats  # (N,)
    visible: Floats  # (N,) part that no nearer object hides
    scores: Floats  # (N,) NaN if the object was not found
    errors: Floats  # (N, 4) center x, center y, width, height, as parts of the size; NaN if it was not found
    second: int  # further boxes on objects
    false: int  # boxes on no object


def match(truth: Floats, found: Floats, frames: range) -> Matched:
    """Match detected to labeled boxes in each frame.

    Rows are frame, id, left, top, width, height, and score (detected) or validity (labeled).
    """
    rows: list[tuple[float, ...]] = []
    second = false = 0
    for frame in frames:
        there = truth[(truth[:, 0] == frame) & (truth[:, 6] > 0)]
        boxes = found[found[:, 0] == frame]
        table = overlaps(there[:, 2:6], boxes[:, 2:6])
        pairs = linear_sum_assignment(np.where(table >= _FOUND_IOU, table, 0.0), maximize=True)
        partner = {a: b for a, b in zip(*(part.tolist() for part in pairs), strict=True) if table[a, b] >= _FOUND_IOU}
        spare = np.setdiff1d(np.arange(len(boxes)), list(partner.values())).astype(int)
        near = table[:, spare].max(axis=0, initial=0.0) >= _NEAR_IOU
        second, false = second + int(near.sum()), false + int((~near).sum())
        visible = visible_parts(there)
        for index, row in enumerate(there):
            best = boxes[partner[index]] if index in partner else np.full(7, math.nan)
            size = row[4:6]
            offset = (best[2:4] + best[4:6] / 2 - row[2:4] - size / 2) / size
            rows.append((row[1], frame, visible[index], best[6], *offset, *np.log(best[4:6] / size)))
    table = np.array(rows).reshape(-1, 8)
    return Matched(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4:], second, false)


def visible_parts(rows: Floats) -> list[float]:
    """Return, for each labeled box of one frame, the fraction that nearer objects do not hide."""
    corners = np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], axis=1)
    nearer = [corners[corners[:, 3] > box[3]] for box in corners]
    return [unhidden(box, boxes, np.full(len(boxes), _BODY))[1] for box, boxes in zip(corners, nearer, strict=True)]


def measure(matched: Matched, frames: int, rate: float) -> dict[str, Any]:
    """Return the parameters of an `ErrorModel`, and the numbers of objects from which they are computed."""
    bins = np.digitize(matched.visible, _EDGES) - 1
    found = ~np.isnan(matched.scores)
    whole = found & (matched.visible >= _WHOLE)
    columns = range(len(PARTS))
    return {
        "objects": [int((bins == column).sum()) for column in columns],
        "recall": [float(found[bins == column].mean()) for column in columns],
        "score": [float(matched.scores[found & (bins == column)].mean()) for column in columns],
        "score_deviation": float(matched.scores[whole].std()),
        "jitter": matched.errors[whole].std(axis=0).tolist(),
        "jitter_s": time_constant_s(matched, whole, rate),
        "double": matched.second / len(matched.ids),
        "false_per_frame": matched.false / frames,
    }


def time_constant_s(matched: Matched, whole: np.ndarray[Any, np.dtype[np.bool_]], rate: float) -> float:
    """Return the time constant, in seconds, of the errors of centers, widths, and heights, from their autocorrelation.

    The function first subtracts the mean error of each object, because this mean is a systematic error of the labels or
    of the detector.
    """
    series: dict[float, Mapping[float, Floats]] = defaultdict(dict)
    for object_id in np.unique(matched.ids[whole]):
        of_object = whole & (matched.ids == object_id)
        errors = matched.errors[of_object] - matched.errors[of_object].mean(axis=0)
        series[object_id] = dict(zip(matched.frames[of_object].tolist(), errors, strict=True))
    pairs = [
        (errors, of_object[frame + _LAG_FRAMES])
        for of_object in series.values()
        for frame, errors in of_object.items()
        if frame + _LAG_FRAMES in of_object
    ]
    before, after = (np.array(part) for part in zip(*pairs, strict=True))
    correlation = (before * after).mean(axis=0) / np.sqrt((before**2).mean(axis=0) * (after**2).mean(axis=0))
    return float(-_LAG_FRAMES / rate / math.log(correlation.mean()))


def main() -> int:
    truth, found, frames, rate = read(argument_parser("tests.accuracy.detector_errors").parse_args())
    measured = measure(match(truth, found, frames), len(frames), rate)
    sys.stdout.write(json.dumps(measured, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
