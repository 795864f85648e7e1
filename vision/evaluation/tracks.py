"""Tracking metrics: MOTA, IDF1, HOTA, and identity switches.

TrackEval, the implementation by the authors of HOTA, computes IDF1 and HOTA.

MOTA and identity switches follow the definition of CLEAR (Bernardin and Stiefelhagen, "Evaluating Multiple Object
Tracking Performance", EURASIP JIVP 2008), as in the package motmetrics: an object stays matched to a track until it is
matched to a different track, even if it is not found in some frames. TrackEval only prefers the matches of the previous
frame, and so counts a few more switches (18 instead of 16 for the shipped tracker on PETS09-S2L1). Video and plots show
the matches from which the switches are counted.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.evaluation.mot import Boxes, overlaps
from vision.version import install_hint, pip_hint, require_package

MIN_OVERLAP: Final = 0.5
"""Minimum IoU of a true box and a found box that match."""
INSTALL: Final = f"{install_hint('eval')} && {pip_hint('--no-deps', 'trackeval>=1.3')}"
"""Command that installs TrackEval without its dependencies, because one of them is a desktop OpenCV."""


@dataclass(frozen=True, slots=True)
class TrackingScores:
    """Metrics of the tracks at an IoU threshold of 0.5, except HOTA and its two parts.

    HOTA and its parts are means over IoU thresholds from 0.05 to 0.95.
    """

    mota: float  # 1 - (misses + false boxes + switches) / true boxes; Bernardin and Stiefelhagen 2008
    idf1: float  # Ristani et al. 2016
    hota: float  # Luiten et al. 2020
    detection_accuracy: float
    association_accuracy: float
    precision: float
    recall: float
    switches: int
    fragments: int
    misses: int
    false_boxes: int
    true_boxes: int
    true_objects: int
    tracks: int
    mostly_tracked: int  # true objects found in at least 80 % of their frames
    mostly_lost: int  # true objects found in less than 20 % of their frames


def score_tracks(truth: Boxes, tracks: Boxes, frames: int, partners: NDArray[np.int64]) -> TrackingScores:
    """Compare tracks with the ground truth. `partners` is the result of `match_frames`.

    Raises:
        ConfigError: SciPy or TrackEval is not installed.
    """
    metrics = load_metrics()
    sequence = _sequence(truth, tracks, frames)
    identity = metrics.Identity({"THRESHOLD": MIN_OVERLAP, "PRINT_CONFIG": False}).eval_sequence(sequence)
    hota = metrics.HOTA().eval_sequence(sequence)
    found = partners >= 0
    lives = [_life(partners[rows], tracks.ids) for rows in _rows_of_objects(truth)]
    shares, switches_of, interruptions = zip(*lives, strict=True) if lives else ((), (), ())
    switches = sum(switches_of)
    misses, false_boxes = int((~found).sum()), len(tracks) - int(found.sum())
    return TrackingScores(
        mota=1.0 - (misses + false_boxes + switches) / max(len(truth), 1),
        idf1=float(identity["IDF1"]),
        hota=float(np.mean(hota["HOTA"])),
        detection_accuracy=float(np.mean(hota["DetA"])),
        association_accuracy=float(np.mean(hota["AssA"])),
        precision=float(found.sum()) / len(tracks) if len(tracks) else 1.0,
        recall=float(found.mean()) if len(truth) else 1.0,
        switches=switches,
        fragments=sum(interruptions),
        misses=misses,
        false_boxes=false_boxes,
        true_boxes=len(truth),
        true_objects=len(lives),
        tracks=sequence["num_tracker_ids"],
        mostly_tracked=sum(share >= 0.8 for share in shares),
        mostly_lost=sum(share < 0.2 for share in shares),
    )


def _life(partners: NDArray[np.int64], track_ids: NDArray[np.int64]) -> tuple[float, int, int]:
    """Return the fraction of a true object's frames with a matched track, and the number of switches and gaps.

    `partners` contains, for each frame of the object in order, the row of the matched track, or -1 without a match.
    """
    found = partners >= 0
    switches = np.diff(track_ids[partners[found]]) != 0
    # An interruption counts where it ends: the object was not found in the previous row, but in an earlier row.
    again = found[1:] & ~found[:-1] & np.logical_or.accumulate(found)[:-1]
    return float(found.mean()), int(switches.sum()), int(again.sum())


def match_frames(truth: Boxes, found: Boxes, frames: int) -> NDArray[np.int64]:
    """Match N true boxes to found boxes. Return the row of `found` for each true box (N,), or -1 without a match.

    A true object keeps the track of its previous match while the IoU of their boxes is at least `MIN_OVERLAP`. For the
    other boxes, choose the largest number of matches. If there are several such solutions, choose the solution with the
    largest sum of IoUs. `frames` is the number of frames of the video.
    """
    assign = importlib.import_module("scipy.optimize").linear_sum_assignment
    partners = np.full(len(truth), -1, np.int64)
    last: dict[int, int] = {}  # true id -> track id
    for true_rows, found_rows in zip(truth.slices(frames), found.slices(frames), strict=True):
        true_ids, found_ids = truth.ids[true_rows].tolist(), found.ids[found_rows].tolist()
        if not true_ids or not found_ids:
            continue
        table = overlaps(truth.boxes_xyxy[true_rows], found.boxes_xyxy[found_rows])
        table[table < MIN_OVERLAP] = 0.0
        # One additional pair outweighs all overlaps together, and one additional kept pair outweighs all other pairs.
        count = len(true_ids)
        weights = np.where(table > 0, table + count, 0.0)
        for row, column in _kept_pairs(table, true_ids, found_ids, last):
            weights[row, column] += count * (count + 2)
        rows, columns = assign(weights, maximize=True)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if table[row, column] > 0:
                partners[true_rows.start + row] = found_rows.start + column
                last[true_ids[row]] = found_ids[column]
    return partners


def _kept_pairs(
    table: NDArray[np.float64], true_ids: list[int], found_ids: list[int], last: dict[int, int]
) -> Iterator[tuple[int, int]]:
    columns = {found_id: column for column, found_id in enumerate(found_ids) if found_id >= 0}
    for row, true_id in enumerate(true_ids):
        column = columns.get(last.get(true_id, -1))
        if column is not None and table[row, column] > 0:
            yield row, column
            del columns[found_ids[column]]


def _rows_of_objects(truth: Boxes) -> list[NDArray[np.intp]]:
    """Return the row numbers of each true object, in the order of frames. The objects are in the order of their ids."""
    order = np.argsort(truth.ids, kind="stable")
    edges = np.flatnonzero(np.diff(truth.ids[order])) + 1
    return np.split(order, edges) if len(order) else []


def _sequence(truth: Boxes, tracks: Boxes, frames: int) -> dict[str, Any]:
    """Convert true boxes and tracks to the format of TrackEval."""
    true_names, true_ids = np.unique(truth.ids, return_inverse=True)
    track_names, track_ids = np.unique(tracks.ids, return_inverse=True)
    rows = list(zip(truth.slices(frames), tracks.slices(frames), strict=True))
    return {
        "num_timesteps": frames,
        "num_gt_dets": len(truth),
        "num_tracker_dets": len(tracks),
        "num_gt_ids": len(true_names),
        "num_tracker_ids": len(track_names),
        "gt_ids": [true_ids[true_rows] for true_rows, _ in rows],
        "tracker_ids": [track_ids[track_rows] for _, track_rows in rows],
        "similarity_scores": [overlaps(truth.boxes_xyxy[a], tracks.boxes_xyxy[b]) for a, b in rows],
    }


def load_metrics() -> ModuleType:
    """Import the metrics of TrackEval, and return the module.

    Raises:
        ConfigError: SciPy or TrackEval is not installed.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # the import prints which packages are missing for data sets
        return require_package("trackeval.metrics", "the tracking metrics need SciPy and TrackEval", INSTALL)
